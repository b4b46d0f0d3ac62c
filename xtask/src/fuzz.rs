//! `cargo xtask fuzz`: every fuzz target for ten minutes, outside the gate. Needs
//! `cargo install cargo-fuzz`.

use std::process::Command;

use crate::arguments::Arguments;
use crate::root;

/// Ten minutes a target.
const SECONDS: u64 = 600;

/// Real files that make good first inputs, by target.
const SEEDS: [(&str, &str); 8] = [
    ("torch_file", "crates/formats/tests/fixtures/torch"),
    ("safetensors", "crates/formats/tests/fixtures/safetensors"),
    ("adapter_config", "crates/formats/tests/fixtures/peft"),
    ("spm", "crates/data/tests/fixtures/deberta-v2"),
    ("tokenizer_config", "crates/data/tests/fixtures/roberta"),
    ("gguf", "crates/data/tests/fixtures/gguf"),
    ("gguf", "tests/golden/quantised/decoders"),
    ("packed", "tests/golden/quantised/packed"),
];

/// Runs the targets that are named, or all of them; a target that finds something does not keep the
/// others from running.
pub fn run(words: &[String]) -> Result<(), String> {
    let mut arguments = Arguments::new(words);
    let seconds = arguments.number("--seconds", SECONDS)?;
    let all = targets()?;
    let mut chosen = Vec::new();
    while let Some(name) = arguments.word() {
        if !all.contains(&name) {
            return Err(format!(
                "no target `{name}`, expected one of {}",
                all.join(", ")
            ));
        }
        chosen.push(name);
    }
    arguments.finish()?;
    let chosen = if chosen.is_empty() { all } else { chosen };
    let mut failed = Vec::new();
    for target in &chosen {
        println!("== {target}: {seconds} s");
        if !fuzz(target, seconds)? {
            failed.push(target.as_str());
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "found by {}; the inputs are in fuzz/artifacts: make each a test, then mend what it shows",
            failed.join(", ")
        )),
    }
}

/// The names in the manifest.
fn targets() -> Result<Vec<String>, String> {
    let path = root().join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let names = text.split("[[bin]]").skip(1).filter_map(|bin| {
        let line = bin.lines().find(|line| line.starts_with("name = "))?;
        Some(line.split('"').nth(1)?.to_owned())
    });
    Ok(names.collect())
}

fn fuzz(target: &str, seconds: u64) -> Result<bool, String> {
    let corpus = format!("fuzz/corpus/{target}");
    let fault = |error: std::io::Error| format!("cannot start `cargo fuzz`: {error}");
    std::fs::create_dir_all(root().join(&corpus)).map_err(fault)?;
    let seeds = SEEDS.iter().filter(|(name, _)| *name == target);
    let status = Command::new("cargo")
        .args(["fuzz", "run", "-s", "none", target, &corpus])
        .args(seeds.map(|(_, folder)| *folder))
        .args([
            "--",
            &format!("-max_total_time={seconds}"),
            "-rss_limit_mb=4096",
        ])
        // The instrumentation asks for unstable flags, which the stable compiler has under another
        // name.
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(root())
        .status()
        .map_err(fault)?;
    Ok(status.success())
}
