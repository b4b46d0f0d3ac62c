//! `cargo xtask faults`: the test that lets file calls fail, with every call in place of some.
//! Minutes, outside the gate.

use std::process::Command;

use crate::arguments::Arguments;
use crate::root;

/// Runs the tests of faults without leaving any call out.
pub fn run(words: &[String]) -> Result<(), String> {
    Arguments::new(words).finish()?;
    let status = Command::new("cargo")
        .args(["test", "-p", "lowrank-cli", "--test", "cli", "faults::"])
        .env("LOWRANK_FAULTS_ALL", "1")
        .current_dir(root())
        .status()
        .map_err(|error| format!("cannot start `cargo`: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err("a file call that fails leaves what it should not".to_owned()),
    }
}
