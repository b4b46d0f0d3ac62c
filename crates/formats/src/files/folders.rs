//! Names and folders: what is there, listing, making, renaming, removing.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::read::{Ceiling, read};
use super::{pending, system};
use crate::Result;
use crate::error::FormatError;

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder.
    pub name: OsString,
    /// The folder's path with that name.
    pub path: PathBuf,
    /// Whether it is a folder itself; a link to one is none.
    pub is_dir: bool,
    /// Whether it is a regular file itself; a link to one is none.
    pub is_file: bool,
}

/// Whether anything is there, links followed. What cannot be asked counts as missing: opening it
/// says why.
pub fn exists(path: &Path) -> bool {
    system::metadata(path).is_ok()
}

/// Whether the name is taken, be it by a pipe or by a link that leads nowhere: reading it says what
/// is wrong with it.
pub fn is_named(path: &Path) -> bool {
    system::link_metadata(path).is_ok()
}

/// Whether there is a regular file, links followed.
pub fn is_file(path: &Path) -> bool {
    system::metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether there is a folder, links followed.
pub fn is_dir(path: &Path) -> bool {
    system::metadata(path).is_ok_and(|found| found.is_dir())
}

/// The length of a file in bytes.
pub fn size(path: &Path) -> Result<u64> {
    let found = system::metadata(path).map_err(FormatError::io("read", path))?;
    Ok(found.len())
}

/// The path without links, from the root.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    system::canonicalize(path).map_err(FormatError::io("read", path))
}

/// What a folder holds, in the order of the names.
pub fn list(dir: &Path) -> Result<Vec<Entry>> {
    let fault = || FormatError::io("read", dir);
    let mut entries = Vec::new();
    for entry in system::read_dir(dir).map_err(fault())? {
        let entry = entry.map_err(fault())?;
        let kind = entry.file_type().map_err(fault())?;
        entries.push(Entry {
            name: entry.file_name(),
            path: entry.path(),
            is_dir: kind.is_dir(),
            is_file: kind.is_file(),
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Makes a folder and what is missing above it.
pub fn create_dir_all(path: &Path) -> Result<()> {
    system::create_dir_all(path).map_err(FormatError::io("create", path))
}

/// Makes one folder, for the one that is called `shown` in an error.
pub(crate) fn create_dir(path: &Path, shown: &Path) -> Result<()> {
    system::create_dir(path).map_err(FormatError::io("create", shown))
}

/// Gives a file or folder another name; a file under that name is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    system::rename(from, to).map_err(FormatError::io("write", to))
}

/// Removes a file.
pub fn remove_file(path: &Path) -> Result<()> {
    system::remove_file(path).map_err(FormatError::io("remove", path))
}

/// Removes a folder with all that is in it.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    system::remove_dir_all(path).map_err(FormatError::io("remove", path))
}

/// Writes the bytes of the file `from` to `to` as a whole.
pub fn copy(from: &Path, to: &Path, ceiling: Ceiling) -> Result<()> {
    pending::write_atomic(to, &read(from, ceiling)?)
}

/// The folder that holds `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    }
}

/// Flushes a folder's own entries, so that a rename in it survives a power cut. Some file systems
/// cannot; that is no error.
pub(crate) fn sync_dir(dir: &Path) {
    if cfg!(unix) {
        let _ = system::sync_folder(dir);
    }
}

/// Flushes every file below `dir`, then the folders.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in system::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            system::open(&entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir);
    Ok(())
}
