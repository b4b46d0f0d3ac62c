//! Where a command may write: nothing that it did not make itself is replaced. A folder that
//! `merge` made is known by a list of its files that it leaves in it. Knows paths, not models.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::{PendingDir, RunDir, write_atomic};
use serde::{Deserialize, Serialize};

use crate::error::{RunError, RunResult};
use crate::side_files::{self, Copied, MERGED_MANIFEST as MANIFEST};

/// Something that a command reads: the flag that named it, and the path, where it was given.
pub type Input<'a> = (&'static str, Option<&'a str>);

/// A folder that a plain model is to be written to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The folder.
    pub dir: &'a Path,
    /// Whether one that `merge` made may be replaced.
    pub overwrite: bool,
}

impl Target<'_> {
    /// Refuses a folder that a model is to be written to, unless it is missing, empty, or may be
    /// replaced: made by `merge`, unchanged since, and nothing that this command reads.
    ///
    /// # Errors
    /// The folder must stay; the message says why and which flag takes another.
    pub fn check(&self, inputs: &[Input<'_>]) -> RunResult {
        let dir = self.dir;
        if !files::exists(dir) {
            return Ok(());
        }
        let shown = dir.display();
        let elsewhere = "--output-dir takes another folder";
        if !files::is_dir(dir) {
            let message = format!("`{shown}` is a file, expected a folder to write to");
            return Err(RunError::usage(message).hint(elsewhere));
        }
        if files::list(dir)?.is_empty() {
            return Ok(());
        }
        let real = files::resolve(dir)?;
        for (flag, input) in inputs {
            let Some(input) = input.and_then(|path| files::resolve(Path::new(path)).ok()) else {
                continue;
            };
            if input.starts_with(&real) {
                let what = if input == real { "is" } else { "holds" };
                let message = format!("`{shown}` {what} what {flag} names; it is not replaced");
                return Err(RunError::usage(message).hint(elsewhere));
            }
        }
        if RunDir::is_run(dir) {
            let message = format!("`{shown}` is a run; it is not replaced");
            return Err(RunError::usage(message).hint(elsewhere));
        }
        if !self.overwrite {
            return Err(RunError::usage(format!("`{shown}` is not empty")).hint(
                "--overwrite replaces a folder that `lowrank merge` made, --output-dir takes another",
            ));
        }
        match foreign(dir)? {
            None => Ok(()),
            Some(what) => Err(RunError::usage(format!(
                "`{shown}` {what}; --overwrite replaces only what `lowrank merge` made"
            ))
            .hint("move or remove the folder yourself, or --output-dir takes another")),
        }
    }

    /// A folder beside it, with what goes with a model copied from `model`.
    pub(crate) fn begin(&self, model: &Path) -> RunResult<(PendingDir, Copied)> {
        let pending = PendingDir::create(self.dir)?;
        let beside = side_files::copy(model, pending.path())?;
        Ok((pending, beside))
    }

    /// Gives the finished folder its name.
    pub(crate) fn finish(&self, pending: PendingDir) -> RunResult {
        write_manifest(pending.path())?;
        match self.overwrite {
            true => pending.commit_replacing()?,
            false => pending.commit()?,
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    lowrank_merged: u32,
    files: BTreeMap<String, u64>,
}

/// Leaves the list of what a finished folder holds in it.
///
/// # Errors
/// The folder cannot be listed or written to.
fn write_manifest(dir: &Path) -> RunResult {
    let manifest = Manifest {
        lowrank_merged: 1,
        files: sizes(dir)?,
    };
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| RunError::from_error(&e))?;
    Ok(write_atomic(&dir.join(MANIFEST), &json)?)
}

/// What makes a folder more than the work of `merge`.
fn foreign(dir: &Path) -> RunResult<Option<String>> {
    let Some(bytes) = files::read_if_there(&dir.join(MANIFEST), Ceiling::JSON)? else {
        return Ok(Some(format!("was not made by it (it has no `{MANIFEST}`)")));
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
        return Ok(Some(format!("has a damaged `{MANIFEST}`")));
    };
    for entry in files::list(dir)? {
        let name = entry.name.to_string_lossy().into_owned();
        if name == MANIFEST {
            continue;
        }
        match manifest.files.get(&name) {
            Some(size) if entry.is_file && files::size(&entry.path)? == *size => {}
            Some(_) => return Ok(Some(format!("holds `{name}`, which was changed since"))),
            None => return Ok(Some(format!("holds `{name}`, which it did not make"))),
        }
    }
    Ok(None)
}

fn sizes(dir: &Path) -> RunResult<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in files::list(dir)? {
        let size = files::size(&entry.path)?;
        sizes.insert(entry.name.to_string_lossy().into_owned(), size);
    }
    Ok(sizes)
}

/// Refuses a file for results that is one of the command's inputs, or a file of a run, a model or
/// an adapter. Any other file is replaced when the new one is whole.
///
/// # Errors
/// The file must stay.
pub fn check_file(path: Option<&str>, inputs: &[Input<'_>]) -> RunResult {
    let Some(path) = path.filter(|path| *path != "-").map(Path::new) else {
        return Ok(());
    };
    let Ok(real) = files::resolve(path) else {
        return Ok(());
    };
    let hint = "--output-file takes another file";
    for (flag, input) in inputs {
        let input = input.and_then(|path| files::resolve(Path::new(path)).ok());
        if input.is_some_and(|input| input == real) && files::is_file(&real) {
            let message = format!(
                "`{}` is what {flag} names; it is not replaced",
                path.display()
            );
            return Err(RunError::usage(message).hint(hint));
        }
    }
    match files::is_file(&real).then(|| owner(&real)).flatten() {
        None => Ok(()),
        Some(owner) => Err(RunError::usage(format!(
            "`{}` is a file of {owner}; it is not replaced",
            path.display()
        ))
        .hint(hint)),
    }
}

/// Whose file it is, told by what stands beside it; nothing for a file that stands for itself.
fn owner(file: &Path) -> Option<&'static str> {
    let dir = file.parent()?;
    let name = file.file_name()?.to_str()?;
    let beside = |name: &str| files::is_file(&dir.join(name));
    let is = |names: &[&str]| names.contains(&name);
    let of_run = [
        ".lowrank-run",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "before.json",
    ];
    if RunDir::is_run(dir) && is(&of_run) {
        return Some("a run");
    }
    let extension = file.extension().and_then(|extension| extension.to_str());
    let part = matches!(
        extension,
        Some("json" | "safetensors" | "bin" | "txt" | "model" | "jinja")
    );
    let folders = [
        ("state.json", "a checkpoint"),
        ("adapter_config.json", "an adapter"),
        ("config.json", "a model"),
    ];
    let found = folders.iter().find(|(mark, _)| part && beside(mark));
    found.map(|(_, owner)| *owner)
}

/// Refuses a folder for a model's configuration that holds another one, or something that is more
/// than a configuration.
///
/// # Errors
/// The folder's `config.json` must stay.
pub fn check_config_folder(dir: &Path, config: &[u8]) -> RunResult {
    let shown = dir.display();
    let hint = "--write-config takes another folder";
    let refuse = |message: String| Err(RunError::usage(message).hint(hint));
    if files::exists(dir) && !files::is_dir(dir) {
        return refuse(format!(
            "`{shown}` is a file, expected a folder to write to"
        ));
    }
    if RunDir::is_run(dir) {
        return refuse(format!(
            "`{shown}` is a run; no configuration is written into it"
        ));
    }
    let mark = |name: &&str| files::exists(&dir.join(name));
    let weights = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "adapter_config.json",
    ];
    if let Some(name) = weights.iter().find(|name| mark(name)) {
        return refuse(format!(
            "`{shown}` holds `{name}`; no other configuration is written beside it"
        ));
    }
    let there = files::read_if_there(&dir.join("config.json"), Ceiling::JSON)?;
    match there {
        Some(bytes) if bytes != config => refuse(format!(
            "`{}` is there and differs; it is not replaced",
            dir.join("config.json").display()
        )),
        Some(_) | None => Ok(()),
    }
}
