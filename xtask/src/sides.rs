//! What the benchmarks against peers share: who runs, in which turns, on what both sides read, and
//! the ratios of the rounds. It does not know what is measured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::root;

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Lowrank,
    /// The peer as it comes.
    Eager,
    /// The peer under torch.compile.
    Compiled,
}

impl Side {
    /// Ours, and the peers of a [`list`] of `eager` and `compiled`.
    pub fn with(peers: &[String]) -> Vec<Self> {
        let peer = |name: &String| match name.as_str() {
            "eager" => Side::Eager,
            _ => Side::Compiled,
        };
        std::iter::once(Side::Lowrank)
            .chain(peers.iter().map(peer))
            .collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Side::Lowrank => "lowrank",
            Side::Eager => "eager",
            Side::Compiled => "compiled",
        }
    }
}

/// Names between commas, each of which must be known.
pub fn list(text: &str, flag: &str, known: &[&str]) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(names),
        Some(name) => Err(format!(
            "{flag}: expected {}, found `{name}`",
            known.join(" or ")
        )),
    }
}

/// Builds the release program.
pub fn build_ours() -> Result<(), String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .current_dir(root())
        .args(["build", "--release", "--quiet", "--package", "lowrank-cli"])
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("lowrank does not build".to_owned())
    }
}

/// A script of tools/bench.
pub fn script(python: &str, name: &str) -> Command {
    let mut command = Command::new(python);
    command
        .arg(Path::new("tools/bench").join(name))
        .current_dir(root())
        .env("HF_HUB_OFFLINE", "1")
        .env("TOKENIZERS_PARALLELISM", "false")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Makes a folder of this process with a checkpoint and rows (tools/bench/prepare.py, told
/// `arguments`), and removes it when `work` is done with it: half a gigabyte that nobody needs any
/// more.
pub fn with_prepared<'a>(
    python: &str,
    arguments: impl IntoIterator<Item = &'a str>,
    work: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), String> {
    let folder: PathBuf = root()
        .join("target/bench")
        .join(std::process::id().to_string());
    std::fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let outcome = prepare(python, &folder, arguments).and_then(|()| work(&folder));
    std::fs::remove_dir_all(&folder)
        .map_err(|error| format!("cannot remove {}: {error}", folder.display()))?;
    outcome
}

fn prepare<'a>(
    python: &str,
    folder: &Path,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<(), String> {
    let mut command = script(python, "prepare.py");
    let status = command
        .arg("--out")
        .arg(folder)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("cannot start {python}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?} ended with {status}"))
    }
}

/// Every side in each round, another first each time: what `run` gives, by side and round.
pub fn in_turns<T>(
    sides: &[Side],
    rounds: usize,
    mut run: impl FnMut(usize, Side) -> Result<T, String>,
) -> Result<Vec<Vec<T>>, String> {
    let mut samples: Vec<Vec<T>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            samples[at].push(run(round, sides[at])?);
        }
    }
    Ok(samples)
}

/// How many times as fast we are, by rounds: the median and the range, for people.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> String {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let median = median(ratios);
    format!("{median:.2} (median of the rounds; {low:.2} to {high:.2})")
}

/// The last line that is a JSON object of what a command writes.
pub fn output_line(name: &str, command: &mut Command) -> Result<Value, String> {
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

/// The middle value; of an even number, the mean of the two in the middle. NaN for none.
pub fn median(mut values: Vec<f64>) -> f64 {
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
    fn another_side_begins_each_round() {
        let sides = Side::with(&["eager".to_owned()]);
        let mut order = Vec::new();
        let samples = in_turns(&sides, 2, |round, side| {
            order.push(side.name());
            Ok(round)
        });
        assert_eq!(samples, Ok(vec![vec![0, 1], vec![0, 1]]));
        assert_eq!(order, ["lowrank", "eager", "eager", "lowrank"]);
    }

    #[test]
    fn the_last_json_line_counts() {
        let object = last_object("warming up\n{\"loss\": 1}\n{\"loss\": 0.5}\nbye\n");
        assert_eq!(object, Ok(serde_json::json!({"loss": 0.5})));
        assert!(last_object("no numbers").is_err());
    }
}
