//! `cargo xtask bench`: our training step and the peer's, in turns, so that the machine's drift meets both alike.
//! Each side is a process of its own that prints one JSON line with `tokens_per_s`, `step_ms_median`,
//! `peak_rss_bytes` and `loss`.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::golden::require_packages;
use crate::root;

/// What both sides are asked to do.
struct Shape {
    model_config: String,
    batch: usize,
    seq: usize,
    steps: usize,
    dropout: Option<f64>,
    threads: Option<usize>,
    dtype: String,
    /// Whether the peer runs under torch.compile.
    compile: bool,
}

impl Shape {
    fn arguments(&self) -> Vec<String> {
        let mut out = vec![
            "--model-config".to_owned(),
            self.model_config.clone(),
            "--batch".to_owned(),
            self.batch.to_string(),
            "--seq".to_owned(),
            self.seq.to_string(),
            "--steps".to_owned(),
            self.steps.to_string(),
        ];
        if let Some(p) = self.dropout {
            out.extend(["--dropout".to_owned(), p.to_string()]);
        }
        if let Some(n) = self.threads {
            out.extend(["--threads".to_owned(), n.to_string()]);
        }
        out
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

/// Runs both sides alternately and prints medians, ratio and spread.
pub fn run(words: &[String]) -> Result<(), String> {
    let mut arguments = Arguments::new(words);
    let python = arguments
        .value("--python")?
        .unwrap_or_else(|| "python3".to_owned());
    let rounds = arguments.number("--rounds", 3_usize)?;
    let shape = Shape {
        model_config: arguments
            .value("--model-config")?
            .unwrap_or_else(|| "tools/bench/configs/roberta-base.json".to_owned()),
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
        dtype: arguments
            .value("--dtype")?
            .unwrap_or_else(|| "f32".to_owned()),
        compile: arguments.value("--compile")?.is_some_and(|v| v == "true"),
    };
    arguments.finish()?;
    if !["f32", "bf16"].contains(&shape.dtype.as_str()) {
        return Err(format!(
            "--dtype: expected f32 or bf16, found `{}`",
            shape.dtype
        ));
    }
    if rounds == 0 {
        return Err("--rounds: expected at least 1".to_owned());
    }
    require_packages(
        &python,
        "torch, transformers, peft",
        "tools/golden/requirements.txt",
    )?;
    build_ours()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        // Who goes first changes each round.
        let order = if round % 2 == 1 {
            [true, false]
        } else {
            [false, true]
        };
        for is_ours in order {
            let mut command = if is_ours {
                our_command()
            } else {
                peer_command(&python)
            };
            command.args([
                if is_ours { "--precision" } else { "--dtype" },
                &shape.dtype,
            ]);
            if shape.compile && !is_ours {
                command.arg("--compile");
            }
            let name = if is_ours { "lowrank" } else { "peer" };
            let sample = measure(name, command.args(shape.arguments()))?;
            println!("round {round}  {}", line(name, &sample));
            if is_ours {
                ours.push(sample)
            } else {
                theirs.push(sample)
            }
        }
    }
    print_summary(&shape, &ours, &theirs);
    Ok(())
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

fn build_ours() -> Result<(), String> {
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

fn our_command() -> Command {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--quiet",
        "--package",
        "lowrank-cli",
        "--",
        "bench-step",
        "--json",
    ]);
    command
}

fn peer_command(python: &str) -> Command {
    let mut command = Command::new(python);
    command
        .arg("tools/bench/peft_step.py")
        .current_dir(root())
        .env("HF_HUB_OFFLINE", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn measure(name: &str, command: &mut Command) -> Result<Sample, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{name}: cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {command:?} ended with {}", output.status));
    }
    parse(&String::from_utf8_lossy(&output.stdout)).map_err(|error| format!("{name}: {error}"))
}

/// The last line that is a JSON object.
fn parse(text: &str) -> Result<Sample, String> {
    let object = text
        .lines()
        .rev()
        .find_map(|line| {
            serde_json::from_str::<Value>(line)
                .ok()
                .filter(Value::is_object)
        })
        .ok_or("expected a line of JSON on standard output, found none")?;
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

fn print_summary(shape: &Shape, ours: &[Sample], theirs: &[Sample]) {
    let median_of =
        |samples: &[Sample], value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| a.tokens_per_s / b.tokens_per_s)
        .collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "\n{}, {}, batch {} x {} tokens, {} steps a round, {} rounds",
        shape.model_config,
        shape.dtype,
        shape.batch,
        shape.seq,
        shape.steps,
        ours.len()
    );
    for (name, samples) in [("lowrank", ours), ("peer", theirs)] {
        println!(
            "{name:8} median {:8.0} tok/s, {:5.2} GB",
            median_of(samples, |s| s.tokens_per_s),
            median_of(samples, |s| s.peak_gb)
        );
    }
    println!(
        "lowrank / peer: {:.2} (median of the rounds; {low:.2} to {high:.2})",
        median(ratios)
    );
}

/// The middle value; of an even number, the mean of the two in the middle. NaN for none.
fn median(mut values: Vec<f64>) -> f64 {
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
        assert_eq!(parse(text), Ok(sample));
        assert!(parse("no numbers").is_err());
        assert!(parse("{\"loss\": 1}").unwrap_err().contains("tokens_per_s"));
    }
}
