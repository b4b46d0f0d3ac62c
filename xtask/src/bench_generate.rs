//! `cargo xtask bench-generate`: how fast lowrank and transformers' `generate` write, greedily, in
//! turns. Both read one checkpoint with random weights and one file of prompts
//! (tools/bench/prepare.py); each run is a process of its own that prints one JSON line with its
//! speeds and its tokens.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::arguments::Arguments;
use crate::golden::require_packages;
use crate::root;
use crate::sides::{
    Side, build_ours, in_turns, list, median, output_line, ratios, script, with_prepared,
};

/// What all sides are asked to do.
struct Work {
    model_config: String,
    prompt: usize,
    new: usize,
    threads: Option<usize>,
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
    let sides = Side::with(&peers);
    let most = sizes.iter().copied().max().unwrap_or(1);
    let [rows, prompt] = [most, work.prompt].map(|n| n.to_string());
    let config = work.model_config.as_str();
    let arguments = ["--model-config", config, "--batch", &rows, "--seq", &prompt];
    with_prepared(&python, arguments, |folder| {
        for dtype in &dtypes {
            for &batch in &sizes {
                let command = |side| work.command(&python, folder, dtype, batch, side);
                work.compare(dtype, batch, &sides, rounds, command)?;
            }
        }
        Ok(())
    })
}

impl Work {
    /// One process. The peer's cache grows; under torch.compile it is static.
    fn command(
        &self,
        python: &str,
        folder: &Path,
        dtype: &str,
        batch: usize,
        side: Side,
    ) -> Command {
        let mut command = match side {
            Side::Lowrank => {
                let mut command = Command::new(root().join("target/release/lowrank"));
                command.args(["profile", "--json", "--steps", "1", "--precision", dtype]);
                let rows = folder.join("rows.jsonl");
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
        command.arg("--model").arg(folder);
        command.args(["--batch", &batch.to_string()]);
        if let Some(n) = self.threads {
            command.args(["--threads", &n.to_string()]);
        }
        command
    }

    /// One precision and size of batch: every side in each round.
    fn compare(
        &self,
        dtype: &str,
        batch: usize,
        sides: &[Side],
        rounds: usize,
        command: impl Fn(Side) -> Command,
    ) -> Result<(), String> {
        let samples = in_turns(sides, rounds, |_, side| {
            let object = output_line(side.name(), &mut command(side))?;
            Sample::of(&object).map_err(|error| format!("{}: {error}", side.name()))
        })?;
        let name = Path::new(&self.model_config);
        println!(
            "{}, {}, batch {}, {} new tokens after {}, {rounds} rounds",
            name.display(),
            dtype,
            batch,
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
        let speeds =
            |samples: &[Sample]| samples.iter().map(|s| s.tokens_per_s).collect::<Vec<_>>();
        println!(
            "lowrank / {}: {}, {:.0}% of the tokens are equal",
            side.name(),
            ratios(&speeds(&samples[0]), &speeds(theirs)),
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
