//! `cargo xtask golden`: runs the script that makes tests/golden.

use std::process::Command;

use crate::arguments::Arguments;
use crate::root;

/// Starts `tools/golden/make_golden.py` with the given interpreter and case prefix.
pub fn run(words: &[String]) -> Result<(), String> {
    let mut arguments = Arguments::new(words);
    let python = arguments
        .value("--python")?
        .unwrap_or_else(|| "python3".to_owned());
    let prefix = arguments.word();
    arguments.finish()?;
    require_packages(
        &python,
        "torch, transformers, peft, sklearn, scipy",
        "tools/golden/requirements.txt",
    )?;
    let status = Command::new(&python)
        .arg("tools/golden/make_golden.py")
        .args(prefix)
        .current_dir(root())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status()
        .map_err(|error| format!("cannot start `{python}`: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("tools/golden/make_golden.py failed".to_owned())
    }
}

/// Fails with a hint unless `python` runs and can import the packages.
pub fn require_packages(python: &str, packages: &str, list: &str) -> Result<(), String> {
    let hint = format!(
        "hint: pass --python FILE, an interpreter with {packages} \
         (`python3 -m venv .venv && .venv/bin/pip install -r {list}`, then --python .venv/bin/python)"
    );
    let output = Command::new(python)
        .args(["-c", &format!("import {packages}")])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .map_err(|error| {
            format!("cannot start the Python interpreter `{python}`: {error}\n{hint}")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or("no message");
    Err(format!(
        "`{python}` cannot import {packages}: {last}\n{hint}"
    ))
}
