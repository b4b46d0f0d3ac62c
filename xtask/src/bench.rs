//! `cargo xtask bench`: our training step and the peer's, in turns, so that the machine's drift meets all alike.
//! Both read one checkpoint with random weights and one file of rows (tools/bench/prepare.py). Each run is a process of its
//! own that prints one JSON line with `tokens_per_s`, `peak_rss_bytes` and `loss`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::golden::require_packages;
use crate::root;

/// What all sides are asked to do.
struct Work {
    model_config: String,
    /// `full`, or a file of rows.
    rows: String,
    tokenizer: Option<String>,
    batch: usize,
    seq: usize,
    steps: usize,
    dropout: Option<f64>,
    threads: Option<usize>,
    /// Full fine-tuning instead of LoRA.
    full: bool,
    /// Where checkpoint and rows are.
    folder: PathBuf,
}

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Lowrank,
    /// PyTorch as it comes.
    Eager,
    /// PyTorch under torch.compile.
    Compiled,
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

/// One side's numbers of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    tokens_per_s: f64,
    peak_gb: f64,
    loss: f64,
    /// Share of the GEMM peak measured in the same process, where the side reports it.
    share_of_peak: Option<f64>,
}

/// Runs all sides in turns and prints medians, ratios and spread.
pub fn run(words: &[String]) -> Result<(), String> {
    let mut arguments = Arguments::new(words);
    let mut text = |name: &str, default: &str| -> Result<String, String> {
        Ok(arguments.value(name)?.unwrap_or_else(|| default.to_owned()))
    };
    let python = text("--python", "python3")?;
    let dtypes = list(&text("--dtype", "f32,bf16")?, "--dtype", &["f32", "bf16"])?;
    let peers = list(
        &text("--peers", "eager,compiled")?,
        "--peers",
        &["eager", "compiled"],
    )?;
    let work = Work {
        model_config: text("--model-config", "tools/bench/configs/roberta-base.json")?,
        rows: text("--rows", "full")?,
        full: text("--mode", "lora")? == "full",
        tokenizer: arguments.value("--tokenizer")?,
        batch: arguments.number("--batch", 16)?,
        seq: arguments.number("--seq", 128)?,
        steps: arguments.number("--steps", 8)?,
        dropout: arguments
            .value("--dropout")?
            .map(|text| fraction(&text))
            .transpose()?,
        threads: match arguments.number("--threads", 0)? {
            0 => None,
            n => Some(n),
        },
        folder: root()
            .join("target")
            .join("bench")
            .join(std::process::id().to_string()),
    };
    let rounds = arguments.number("--rounds", 3_usize)?;
    arguments.finish()?;
    if rounds == 0 {
        return Err("--rounds: expected at least 1".to_owned());
    }
    let packages = "torch, transformers, peft";
    require_packages(&python, packages, "tools/golden/requirements.txt")?;
    build_ours()?;
    let mut sides = vec![Side::Lowrank];
    let peer = |name: &String| {
        if name == "eager" {
            Side::Eager
        } else {
            Side::Compiled
        }
    };
    sides.extend(peers.iter().map(peer));
    let outcome = prepare(&python, &work).and_then(|()| {
        let mut one = |dtype: &String| compare(&python, &work, dtype, &sides, rounds);
        dtypes.iter().try_for_each(&mut one)
    });
    // Half a gigabyte that nobody needs any more.
    std::fs::remove_dir_all(&work.folder)
        .map_err(|error| format!("cannot remove {}: {error}", work.folder.display()))?;
    outcome
}

pub(crate) fn list(text: &str, flag: &str, known: &[&str]) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(names),
        Some(name) => Err(format!(
            "{flag}: expected {}, found `{name}`",
            known.join(" or ")
        )),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p| (0.0..1.0).contains(p))
        .ok_or_else(|| format!("--dropout: expected a number from 0 to below 1, found `{text}`"))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.current_dir(root());
    command
}

pub(crate) fn build_ours() -> Result<(), String> {
    let status = cargo()
        .args(["build", "--release", "--quiet", "--package", "lowrank-cli"])
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("lowrank does not build".to_owned())
    }
}

pub(crate) fn script(python: &str, name: &str) -> Command {
    let mut command = Command::new(python);
    command
        .arg(Path::new("tools/bench").join(name))
        .current_dir(root())
        .env("HF_HUB_OFFLINE", "1")
        .env("TOKENIZERS_PARALLELISM", "false")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn prepare(python: &str, work: &Work) -> Result<(), String> {
    std::fs::create_dir_all(&work.folder)
        .map_err(|error| format!("cannot make {}: {error}", work.folder.display()))?;
    let mut command = script(python, "prepare.py");
    command.arg("--out").arg(&work.folder);
    command.args(["--model-config", &work.model_config, "--rows", &work.rows]);
    command.args([
        "--batch",
        &work.batch.to_string(),
        "--seq",
        &work.seq.to_string(),
    ]);
    command.args(["--steps", &(work.steps + 1).to_string()]);
    if let Some(dir) = &work.tokenizer {
        command.args(["--tokenizer", dir]);
    }
    if let Some(p) = work.dropout {
        command.args(["--dropout", &p.to_string()]);
    }
    let status = command
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("cannot start {python}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?} ended with {status}"))
    }
}

fn command(python: &str, work: &Work, dtype: &str, side: Side) -> Command {
    let mut command = match side {
        Side::Lowrank => {
            let mut command = Command::new(root().join("target/release/lowrank"));
            command.args(["profile", "--json", "--precision", dtype]);
            command.args(["--labels", "0", "1", "--lora-alpha", "8"]);
            command
                .arg("--train-file")
                .arg(work.folder.join("rows.jsonl"));
            command.args(["--max-length", &work.seq.to_string()]);
            if work.full {
                command.arg("--full");
            }
            command
        }
        Side::Eager | Side::Compiled => {
            let mut command = script(python, "peft_step.py");
            command.args([
                "--dtype",
                dtype,
                "--mode",
                if work.full { "full" } else { "lora" },
            ]);
            if side == Side::Compiled {
                command.arg("--compile");
            }
            command
        }
    };
    command.arg("--model").arg(&work.folder);
    command.args([
        "--batch",
        &work.batch.to_string(),
        "--steps",
        &work.steps.to_string(),
    ]);
    if let Some(n) = work.threads {
        command.args(["--threads", &n.to_string()]);
    }
    command
}

/// One precision: every side in each round, another first each time.
fn compare(
    python: &str,
    work: &Work,
    dtype: &str,
    sides: &[Side],
    rounds: usize,
) -> Result<(), String> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); sides.len()];
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            let side = sides[at];
            let sample = measure(side.name(), &mut command(python, work, dtype, side))?;
            println!(
                "round {}  {dtype}  {}",
                round + 1,
                line(side.name(), &sample)
            );
            samples[at].push(sample);
        }
    }
    print_summary(work, dtype, sides, &samples);
    Ok(())
}

fn measure(name: &str, command: &mut Command) -> Result<Sample, String> {
    output_line(name, command)
        .and_then(|object| sample(&object).map_err(|error| format!("{name}: {error}")))
}

/// The last line that is a JSON object of what a command writes.
pub(crate) fn output_line(name: &str, command: &mut Command) -> Result<Value, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{name}: cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {command:?} ended with {}", output.status));
    }
    last_object(&String::from_utf8_lossy(&output.stdout))
        .map_err(|error| format!("{name}: {error}"))
}

fn last_object(text: &str) -> Result<Value, String> {
    let mut objects = text.lines().rev().filter_map(|line| {
        serde_json::from_str::<Value>(line)
            .ok()
            .filter(Value::is_object)
    });
    objects
        .next()
        .ok_or_else(|| "expected a line of JSON on standard output, found none".to_owned())
}

fn sample(object: &Value) -> Result<Sample, String> {
    let number = |key: &str| {
        object[key]
            .as_f64()
            .ok_or_else(|| format!("expected a number `{key}` in {object}"))
    };
    Ok(Sample {
        tokens_per_s: number("tokens_per_s")?,
        peak_gb: number("peak_rss_bytes")? / 1e9,
        loss: number("loss")?,
        share_of_peak: object["share_of_peak"].as_f64(),
    })
}

fn line(name: &str, sample: &Sample) -> String {
    let share = sample.share_of_peak.map_or(String::new(), |s| {
        format!("  {:.0}% of the GEMM peak", 100.0 * s)
    });
    format!(
        "{name:8} {:8.0} tok/s  {:5.2} GB  loss {:.4}{share}",
        sample.tokens_per_s, sample.peak_gb, sample.loss
    )
}

fn print_summary(work: &Work, dtype: &str, sides: &[Side], samples: &[Vec<Sample>]) {
    let median_of =
        |samples: &[Sample], value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    println!(
        "\n{}, {}, {dtype}, rows {}, batch {}, up to {} tokens, dropout {}, {} steps a round, {} rounds",
        work.model_config,
        if work.full { "all weights" } else { "LoRA" },
        work.rows,
        work.batch,
        work.seq,
        work.dropout
            .map_or_else(|| "of the config".to_owned(), |p| p.to_string()),
        work.steps,
        samples[0].len()
    );
    for (side, own) in sides.iter().zip(samples) {
        let share = own[0].share_of_peak.map_or(String::new(), |_| {
            let share = median_of(own, |s| s.share_of_peak.unwrap_or(f64::NAN));
            format!(", {:.0}% of the GEMM peak", 100.0 * share)
        });
        println!(
            "{:8} median {:8.0} tok/s, {:5.2} GB, loss {:.4}{share}",
            side.name(),
            median_of(own, |s| s.tokens_per_s),
            median_of(own, |s| s.peak_gb),
            median_of(own, |s| s.loss),
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
            "lowrank / {}: {:.2} (median of the rounds; {low:.2} to {high:.2}), memory {:.0}%",
            side.name(),
            median(ratios),
            100.0 * median_of(&samples[0], |s| s.peak_gb) / median_of(theirs, |s| s.peak_gb)
        );
    }
    println!();
}

/// The middle value; of an even number, the mean of the two in the middle. NaN for none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn the_last_json_line_counts() {
        let text = "warming up\n{\"tokens_per_s\": 10.5, \"peak_rss_bytes\": 2e9, \"loss\": 0.5}\n";
        let sample = Sample {
            tokens_per_s: 10.5,
            peak_gb: 2.0,
            loss: 0.5,
            share_of_peak: None,
        };
        let parse = |text: &str| last_object(text).and_then(|object| super::sample(&object));
        assert_eq!(parse(text), Ok(sample));
        assert!(parse("no numbers").is_err());
        assert!(parse("{\"loss\": 1}").unwrap_err().contains("tokens_per_s"));
    }
}
