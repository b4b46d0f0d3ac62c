//! Removing what killed processes left, and putting back what they had moved aside.

use std::io;
use std::path::Path;
#[cfg(not(target_os = "linux"))]
use std::time::Duration;

use super::folders::{Entry, exists, list, parent};
use super::names::parse;
use super::system::{self, LockOutcome};
use crate::Result;
use crate::error::FormatError;

/// Where the system does not say which processes live, what is older than this is taken for left.
#[cfg(not(target_os = "linux"))]
const LEFT_AFTER: Duration = Duration::from_secs(3600);

/// Removes temporary files and folders that killed processes left directly in `dir`; a folder that
/// was moved aside for one that then never came is put back. Only for a folder that is this
/// process's alone (a locked run): another's pending work looks the same.
pub fn remove_stale(dir: &Path) -> Result<()> {
    for entry in list(dir)? {
        clear(dir, &entry)?;
    }
    Ok(())
}

/// The same for one target, in a folder that others use too: what a living process holds stays.
/// What cannot be removed stays as well: it is in nobody's way.
pub(super) fn sweep_beside(target: &Path) {
    let dir = parent(target);
    let name = target.file_name().and_then(|name| name.to_str());
    let (Some(name), Ok(entries)) = (name, list(dir)) else {
        return;
    };
    for entry in entries {
        let hidden = entry.name.to_str().and_then(parse);
        let of_target = hidden.filter(|hidden| hidden.target == name);
        if of_target.is_some_and(|hidden| is_left(&entry, hidden.process)) {
            let _ = clear(dir, &entry);
        }
    }
}

/// Removes one entry with a hidden name, or puts it back; any other stays.
fn clear(dir: &Path, entry: &Entry) -> Result<()> {
    let Some(hidden) = entry.name.to_str().and_then(parse) else {
        return Ok(());
    };
    let target = dir.join(hidden.target);
    if hidden.is_aside && !exists(&target) {
        return system::rename(&entry.path, &target).map_err(FormatError::io("put back", &target));
    }
    let removed = match entry.is_dir {
        true => system::remove_dir_all(&entry.path),
        false => system::remove_file(&entry.path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FormatError::io("remove the left-over of", &target)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether nobody works on it: its lock is free, and the process that made it is no more (between
/// making and locking there is a moment without the lock).
fn is_left(entry: &Entry, process: u32) -> bool {
    if process != std::process::id() && may_live(entry, process) {
        return false;
    }
    let lock = system::open(&entry.path).and_then(|handle| handle.try_lock());
    matches!(lock, Ok(LockOutcome::Taken))
}

#[cfg(target_os = "linux")]
fn may_live(_: &Entry, process: u32) -> bool {
    exists(Path::new(&format!("/proc/{process}")))
}

#[cfg(not(target_os = "linux"))]
fn may_live(entry: &Entry, _: u32) -> bool {
    let changed = system::metadata(&entry.path).and_then(|found| found.modified());
    !changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_AFTER))
}
