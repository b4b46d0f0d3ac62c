//! `cargo xtask real-models`: what is proved with files that are too large for the repository, in
//! full.

use std::path::Path;
use std::process::Command;

use crate::arguments::Arguments;
use crate::root;

/// Runs the tests with real models, those that take minutes included.
pub fn run(words: &[String]) -> Result<(), String> {
    let mut arguments = Arguments::new(words);
    let folder = arguments.word().ok_or("no folder of models given")?;
    arguments.finish()?;
    let folder = Path::new(&folder)
        .canonicalize()
        .map_err(|error| format!("{folder}: {error}"))?;
    let tests = [
        ["lowrank-model", "--test", "real_models"],
        ["lowrank-cli", "--test", "cli"],
    ];
    for [package, kind, test] in tests {
        let status = Command::new("cargo")
            .args(["test", "--release", "--package", package, kind, test])
            .args(["--", "--include-ignored", "--nocapture"])
            .args((test == "cli").then_some("real_models"))
            .env("LOWRANK_REAL_MODELS", &folder)
            .current_dir(root())
            .status()
            .map_err(|error| format!("cannot start `cargo test`: {error}"))?;
        if !status.success() {
            return Err(format!("the tests of {package} with real models failed"));
        }
    }
    Ok(())
}
