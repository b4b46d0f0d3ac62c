//! `cargo xtask bench`: our training step and the peer's, in turns, so that the machine's drift
//! meets all alike. Both read one checkpoint with random weights and one file of rows
//! (tools/bench/prepare.py). Each run is a process of its own that prints one JSON line with
//! `tokens_per_s`, `peak_rss_bytes` and `loss`.

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
    };
    let rounds = arguments.number("--rounds", 3_usize)?;
    arguments.finish()?;
    if rounds == 0 {
        return Err("--rounds: expected at least 1".to_owned());
    }
    let packages = "torch, transformers, peft";
    require_packages(&python, packages, "tools/golden/requirements.txt")?;
    build_ours()?;
    let sides = Side::with(&peers);
    let arguments = work.preparation();
    with_prepared(&python, arguments.iter().map(String::as_str), |folder| {
        (dtypes.iter()).try_for_each(|dtype| {
            let command = |side| command(&python, &work, folder, dtype, side);
            compare(&work, dtype, &sides, rounds, command)
        })
    })
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p| (0.0..1.0).contains(p))
        .ok_or_else(|| format!("--dropout: expected a number from 0 to below 1, found `{text}`"))
}

impl Work {
    /// What tools/bench/prepare.py is told.
    fn preparation(&self) -> Vec<String> {
        let numbers = [self.batch, self.seq, self.steps + 1].map(|n| n.to_string());
        let [batch, seq, steps] = &numbers;
        let mut words = vec!["--model-config", &self.model_config, "--rows", &self.rows];
        words.extend(["--batch", batch, "--seq", seq, "--steps", steps]);
        if let Some(dir) = &self.tokenizer {
            words.extend(["--tokenizer", dir]);
        }
        let dropout = self.dropout.map(|p| p.to_string());
        if let Some(p) = &dropout {
            words.extend(["--dropout", p]);
        }
        words.into_iter().map(str::to_owned).collect()
    }
}

fn command(python: &str, work: &Work, folder: &Path, dtype: &str, side: Side) -> Command {
    let mut command = match side {
        Side::Lowrank => {
            let mut command = Command::new(root().join("target/release/lowrank"));
            command.args(["profile", "--json", "--precision", dtype]);
            command.args(["--labels", "0", "1", "--lora-alpha", "8"]);
            command.arg("--train-file").arg(folder.join("rows.jsonl"));
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
    command.arg("--model").arg(folder);
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

/// One precision: every side in each round.
fn compare(
    work: &Work,
    dtype: &str,
    sides: &[Side],
    rounds: usize,
    command: impl Fn(Side) -> Command,
) -> Result<(), String> {
    let samples = in_turns(sides, rounds, |round, side| {
        let sample = measure(side.name(), &mut command(side))?;
        let line = line(side.name(), &sample);
        println!("round {}  {dtype}  {line}", round + 1);
        Ok(sample)
    })?;
    print_summary(work, dtype, sides, &samples);
    Ok(())
}

fn measure(name: &str, command: &mut Command) -> Result<Sample, String> {
    output_line(name, command)
        .and_then(|object| sample(&object).map_err(|error| format!("{name}: {error}")))
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
        let speeds =
            |samples: &[Sample]| samples.iter().map(|s| s.tokens_per_s).collect::<Vec<_>>();
        println!(
            "lowrank / {}: {}, memory {:.0}%",
            side.name(),
            ratios(&speeds(&samples[0]), &speeds(theirs)),
            100.0 * median_of(&samples[0], |s| s.peak_gb) / median_of(theirs, |s| s.peak_gb)
        );
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_need_their_numbers() {
        let object = serde_json::json!({"tokens_per_s": 10.5, "peak_rss_bytes": 2e9, "loss": 0.5});
        let want = Sample {
            tokens_per_s: 10.5,
            peak_gb: 2.0,
            loss: 0.5,
            share_of_peak: None,
        };
        assert_eq!(sample(&object), Ok(want));
        let error = sample(&serde_json::json!({"loss": 1})).unwrap_err();
        assert!(error.contains("tokens_per_s"));
    }
}
