//! `cargo xtask emulate`: the kernels and one pass of every family on another processor than this
//! one, aarch64, cross-built and run under qemu. It takes minutes, so that it is not in the gate.

use std::process::Command;
use std::time::Instant;

use crate::arguments::Arguments;
use crate::root;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// What must be there, by a command that only works where it is, and how it is had.
const NEEDED: [(&str, &str); 2] = [
    (
        "qemu-aarch64",
        "apt-get install qemu-user (on Debian and its kin)",
    ),
    (
        "aarch64-linux-gnu-gcc",
        "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    ),
];

/// The case tables of the kernels, and the peers' numbers for every family and instruction set.
/// That threads change no bit has nothing of the processor in it, and takes minutes here.
const TESTS: [&str; 3] = [
    "--package lowrank-kernels --lib",
    "--package lowrank-kernels --test products --test correctness --test decoder --test cached --test disentangled",
    "--package lowrank-model --test golden every_instruction_set",
];

/// Builds and runs them.
pub fn run(words: &[String]) -> Result<(), String> {
    Arguments::new(words).finish()?;
    for (program, install) in NEEDED {
        let found = Command::new(program).arg("--version").output();
        found.map_err(|error| format!("cannot start {program}: {error}; {install}"))?;
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let name = TARGET.to_uppercase().replace('-', "_");
    for tests in TESTS {
        let started = Instant::now();
        println!("== {tests}");
        let status = Command::new(&cargo)
            .args(["test", "--quiet", "--no-fail-fast", "--target", TARGET])
            .args(tests.split(' '))
            .env(
                format!("CARGO_TARGET_{name}_LINKER"),
                "aarch64-linux-gnu-gcc",
            )
            .env(
                format!("CARGO_TARGET_{name}_RUNNER"),
                "qemu-aarch64 -L /usr/aarch64-linux-gnu",
            )
            .current_dir(root())
            .status()
            .map_err(|error| format!("cannot start `{cargo}`: {error}"))?;
        if !status.success() {
            return Err(format!(
                "{tests} failed on {TARGET}; `rustup target add {TARGET}` gets what is not installed"
            ));
        }
        println!("   {:.0?}", started.elapsed());
    }
    Ok(())
}
