//! `cargo xtask bench-generate`: how fast lowrank and transformers' `generate` write, greedily, in turns. Both read one
//! checkpoint with random weights and one file of prompts (tools/bench/prepare.py); each run is a process of its own that
//! prints one JSON line with its speeds and its tokens.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::arguments::Arguments;
use crate::bench::{build_ours, list, median, output_line, script};
use crate::golden::require_packages;
use crate::root;

/// What all sides are asked to do.
struct Work {
    model_config: String,
    prompt: usize,
    new: usize,
    threads: Option<usize>,
    /// Where checkpoint and prompts are.
    folder: PathBuf,
}

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Lowrank,
    /// transformers as it comes: a cache that grows.
    Eager,
    /// A static cache, under torch.compile.
    Compiled,
}

/// One side's numbers of one round.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    /// New tokens a second, the reading of the prompts included.
    tokens_per_s: f64,
    /// The same of the steps after the first.
    decode_tokens_per_s: f64,
    prompt_tokens_per_s: f64,
    peak_gb: f64,
    tokens: Vec<u64>,
}

/// Runs all sides in turns and prints medians, ratios and spread.
pub fn run(words: &[String]) -> Result<(), String> {
    let mut arguments = Arguments::new(words);
    let mut text = |name: &str, default: &str| -> Result<String, String> {
        Ok(arguments.value(name)?.unwrap_or_else(|| default.to_owned()))
    };
    let python = text("--python", "python3")?;
    let dtypes = list(&text("--dtype", "f32,bf16")?, "--dtype", &["f32", "bf16"])?;
    let known = ["eager", "compiled"];
    let peers = list(&text("--peers", "eager")?, "--peers", &known)?;
    let model_config = text("--model-config", "tools/bench/configs/gpt2.json")?;
    let sizes = text("--batch", "1,16")?;
    let size = |text: &str| {
        let size = text.parse().ok().filter(|n: &usize| *n > 0);
        size.ok_or_else(|| format!("--batch: expected numbers from 1 on, found `{text}`"))
    };
    let sizes: Vec<usize> = sizes.split(',').map(size).collect::<Result<_, _>>()?;
    let work = Work {
        model_config,
        prompt: arguments.number("--prompt", 32)?,
        new: arguments.number("--new", 128)?,
        threads: Some(arguments.number("--threads", 0)?).filter(|n| *n > 0),
        folder: root()
            .join("target/bench")
            .join(format!("generate-{}", std::process::id())),
    };
    let rounds = arguments.number("--rounds", 3_usize)?;
    arguments.finish()?;
    if rounds == 0 || work.new < 2 {
        return Err("expected --rounds from 1 and --new from 2 on".to_owned());
    }
    require_packages(
        &python,
        "torch, transformers",
        "tools/golden/requirements.txt",
    )?;
    build_ours()?;
    let mut sides = vec![Side::Lowrank];
    sides.extend(peers.iter().map(|name| match name.as_str() {
        "eager" => Side::Eager,
        _ => Side::Compiled,
    }));
    let most = sizes.iter().copied().max().unwrap_or(1);
    let outcome = prepare(&python, &work, most).and_then(|()| {
        for dtype in &dtypes {
            for &batch in &sizes {
                work.compare(&python, (dtype, batch), &sides, rounds)?;
            }
        }
        Ok(())
    });
    // Half a gigabyte that nobody needs any more.
    std::fs::remove_dir_all(&work.folder)
        .map_err(|error| format!("cannot remove {}: {error}", work.folder.display()))?;
    outcome
}

fn prepare(python: &str, work: &Work, rows: usize) -> Result<(), String> {
    std::fs::create_dir_all(&work.folder)
        .map_err(|error| format!("cannot make {}: {error}", work.folder.display()))?;
    let mut command = script(python, "prepare.py");
    command.arg("--out").arg(&work.folder);
    command.args(["--model-config", &work.model_config]);
    command.args([
        "--batch",
        &rows.to_string(),
        "--seq",
        &work.prompt.to_string(),
    ]);
    let output = command
        .output()
        .map_err(|error| format!("cannot start {python}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?} ended with {}\n{said}", output.status))
    }
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Lowrank => "lowrank",
            Side::Eager => "eager",
            Side::Compiled => "compiled",
        }
    }
}

impl Work {
    fn command(&self, python: &str, (dtype, batch): (&str, usize), side: Side) -> Command {
        let mut command = match side {
            Side::Lowrank => {
                let mut command = Command::new(root().join("target/release/lowrank"));
                command.args(["profile", "--json", "--steps", "1", "--precision", dtype]);
                let rows = self.folder.join("rows.jsonl");
                command.arg("--train-file").arg(rows);
                command.args(["--max-length", &self.prompt.to_string()]);
                command.args(["--generate", &self.new.to_string()]);
                command
            }
            Side::Eager | Side::Compiled => {
                let mut command = script(python, "generate.py");
                command.args(["--dtype", dtype, "--new", &self.new.to_string()]);
                if side == Side::Compiled {
                    command.arg("--compile");
                }
                command
            }
        };
        command.arg("--model").arg(&self.folder);
        command.args(["--batch", &batch.to_string()]);
        if let Some(n) = self.threads {
            command.args(["--threads", &n.to_string()]);
        }
        command
    }

    /// One precision and size of batch: every side in each round, another first each time.
    fn compare(
        &self,
        python: &str,
        what: (&str, usize),
        sides: &[Side],
        rounds: usize,
    ) -> Result<(), String> {
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); sides.len()];
        for round in 0..rounds {
            for turn in 0..sides.len() {
                let at = (round + turn) % sides.len();
                let name = sides[at].name();
                let mut command = self.command(python, what, sides[at]);
                let object = output_line(name, &mut command)?;
                samples[at].push(Sample::of(&object).map_err(|e| format!("{name}: {e}"))?);
            }
        }
        let name = Path::new(&self.model_config);
        println!(
            "{}, {}, batch {}, {} new tokens after {}, {rounds} rounds",
            name.display(),
            what.0,
            what.1,
            self.new,
            self.prompt,
        );
        print_summary(sides, &samples);
        Ok(())
    }
}

impl Sample {
    fn of(object: &Value) -> Result<Self, String> {
        let number = |key: &str| {
            object[key]
                .as_f64()
                .ok_or_else(|| format!("expected a number `{key}`"))
        };
        let rows = object["tokens"].as_array().ok_or("expected `tokens`")?;
        let rows = rows.iter().filter_map(Value::as_array).flatten();
        Ok(Sample {
            tokens_per_s: number("tokens_per_s")?,
            decode_tokens_per_s: number("decode_tokens_per_s")?,
            prompt_tokens_per_s: number("prompt_tokens_per_s")?,
            peak_gb: number("peak_rss_bytes")? / 1e9,
            tokens: rows.filter_map(Value::as_u64).collect(),
        })
    }
}

fn print_summary(sides: &[Side], samples: &[Vec<Sample>]) {
    let of = |samples: &[Sample], value: fn(&Sample) -> f64| {
        median(samples.iter().map(value).collect::<Vec<_>>())
    };
    for (side, own) in sides.iter().zip(samples) {
        println!(
            "{:8} median {:6.0} tok/s, after the first token {:6.0}, prompts {:6.0}, {:5.2} GB",
            side.name(),
            of(own, |s| s.tokens_per_s),
            of(own, |s| s.decode_tokens_per_s),
            of(own, |s| s.prompt_tokens_per_s),
            of(own, |s| s.peak_gb),
        );
    }
    for (side, theirs) in sides.iter().zip(samples).skip(1) {
        let pairs = samples[0].iter().zip(theirs);
        let ratios: Vec<f64> = pairs
            .map(|(a, b)| a.tokens_per_s / b.tokens_per_s)
            .collect();
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "lowrank / {}: {:.2} (median of the rounds; {low:.2} to {high:.2}), {:.0}% of the tokens are equal",
            side.name(),
            median(ratios),
            100.0 * equal_share(&samples[0][0].tokens, &theirs[0].tokens),
        );
    }
    println!();
}

/// Share of the places with equal tokens; 0 where there are not as many.
fn equal_share(a: &[u64], b: &[u64]) -> f64 {
    if a.len() != b.len() || a.is_empty() {
        return 0.0;
    }
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    equal as f64 / a.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_equal_tokens() {
        assert_eq!(equal_share(&[1, 2, 3, 4], &[1, 2, 3, 5]), 0.75);
        assert_eq!(equal_share(&[1, 2], &[1]), 0.0);
        assert_eq!(equal_share(&[], &[]), 0.0);
    }

    #[test]
    fn samples_need_every_number() {
        let mut object = serde_json::json!({
            "tokens_per_s": 10.0, "decode_tokens_per_s": 11.0, "prompt_tokens_per_s": 12.0,
            "peak_rss_bytes": 2e9, "tokens": [[1, 2], [3]],
        });
        assert_eq!(Sample::of(&object).map(|s| s.tokens), Ok(vec![1, 2, 3]));
        object["peak_rss_bytes"] = Value::Null;
        assert!(Sample::of(&object).unwrap_err().contains("peak_rss_bytes"));
    }
}
