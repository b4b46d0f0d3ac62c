//! `cargo xtask check`: every step runs, so that one call shows all that is wrong.

use std::process::Command;
use std::time::Instant;

use crate::arguments::Arguments;
use crate::{root, tidy};

const STEPS: [(&str, &str); 5] = [
    ("format", "fmt --all --check"),
    (
        "clippy",
        "clippy --workspace --all-targets --quiet -- -D warnings",
    ),
    ("tests", "test --workspace --no-fail-fast --quiet"),
    (
        "tests of the Parquet reader",
        "test -p lowrank-data --features parquet --test parquet --quiet",
    ),
    // The program's page would take the library's name, `lowrank`.
    (
        "docs",
        "doc --workspace --no-deps --exclude lowrank-cli --quiet",
    ),
];

/// Runs format, clippy, tests, docs and tidy.
pub fn run(words: &[String]) -> Result<(), String> {
    Arguments::new(words).finish()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut failed = Vec::new();
    for (name, arguments) in STEPS {
        println!("== {name}");
        let start = Instant::now();
        let status = Command::new(&cargo)
            .args(arguments.split(' '))
            .current_dir(root())
            .env("RUSTDOCFLAGS", "-D warnings")
            // A changed text fails, whatever the caller's environment asks snapshots to become.
            .env("INSTA_UPDATE", "no")
            .env_remove("INSTA_FORCE_PASS")
            .status()
            .map_err(|error| format!("cannot start `{cargo}`: {error}"))?;
        println!(
            "   {name}: {} ({:.0?})",
            if status.success() { "ok" } else { "failed" },
            start.elapsed()
        );
        if !status.success() {
            failed.push(name);
        }
    }
    println!("== tidy");
    if let Err(message) = tidy::run(&[]) {
        eprintln!("{message}");
        failed.push("tidy");
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("failed: {}", failed.join(", ")))
    }
}
