//! Files and folders that appear whole under their final name, or not at all. Knows nothing of what is in them.
//!
//! Everything is written under a temporary name beside the target, flushed to the disk, and then renamed: a reader, a killed
//! process or a full disk never meets half of it, and what stood under the name before stays until the new is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::error::FormatError;

/// Temporary names end so; [`remove_stale`] goes by it.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// A folder that is being replaced waits under a name that ends so.
const ASIDE_EXTENSION: &str = "old";

/// Distinguishes several pending files of one process.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Writes `bytes` to `path` as a whole, replacing what was there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = PendingFile::create(path)?;
    file.write_all(bytes)
        .map_err(FormatError::io("write", path))?;
    file.commit()
}

/// A file being written under a temporary name; dropped without [`commit`](PendingFile::commit), it is removed.
#[derive(Debug)]
pub struct PendingFile {
    target: PathBuf,
    temporary: PathBuf,
    file: Option<io::BufWriter<File>>,
}

impl PendingFile {
    /// Begins a file that will be `target`. The folder must exist.
    pub fn create(target: &Path) -> Result<PendingFile> {
        if target.is_dir() {
            return Err(FormatError::Io {
                action: "write",
                path: target.to_owned(),
                error: io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"),
            });
        }
        // A link is written through, as by any other program; a device or a pipe cannot be renamed over.
        let target = &fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        if fs::metadata(target).is_ok_and(|found| !found.is_file()) {
            return Err(FormatError::Io {
                action: "replace",
                path: target.to_owned(),
                error: io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"),
            });
        }
        let temporary = temporary_sibling(target)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(FormatError::io("create", target))?;
        Ok(PendingFile {
            target: target.to_owned(),
            temporary,
            file: Some(io::BufWriter::with_capacity(1 << 16, file)),
        })
    }

    /// Flushes to the disk and renames to the final name, replacing a file that was there.
    pub fn commit(mut self) -> Result<()> {
        let Some(writer) = self.file.take() else {
            return Ok(());
        };
        let finish = || -> io::Result<()> {
            let file = writer
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            drop(file);
            fs::rename(&self.temporary, &self.target)
        };
        if let Err(error) = finish() {
            // Best effort: the error that matters is the one being reported.
            let _ = fs::remove_file(&self.temporary);
            return Err(FormatError::io("write", &self.target)(error));
        }
        sync_dir(parent(&self.target));
        Ok(())
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::Error::other("the file is committed already")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing can be reported from here, and a left-over has a name that says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A folder being filled under a temporary name; dropped without a commit, it is removed with all that is in it.
#[derive(Debug)]
pub struct PendingDir {
    target: PathBuf,
    temporary: PathBuf,
    committed: bool,
}

impl PendingDir {
    /// Begins a folder that will be `target`; its parents are made where they are missing.
    pub fn create(target: &Path) -> Result<PendingDir> {
        let temporary = temporary_sibling(target)?;
        let above = parent(target);
        fs::create_dir_all(above).map_err(FormatError::io("create", above))?;
        fs::create_dir(&temporary).map_err(FormatError::io("create", target))?;
        Ok(PendingDir {
            target: target.to_owned(),
            temporary,
            committed: false,
        })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// The name it will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes everything and renames to the final name. A target that exists is an error unless it is an empty folder.
    pub fn commit(mut self) -> Result<()> {
        if self.target.exists() && !is_empty_dir(&self.target) {
            return Err(FormatError::AlreadyExists {
                path: self.target.clone(),
            });
        }
        self.flush_and_rename()
    }

    /// Like [`commit`](PendingDir::commit), but a folder that was there is replaced: renamed aside, and removed once the new
    /// one stands. A process killed between the two renames leaves both folders whole, the old one under a name ending `.old`.
    pub fn commit_replacing(mut self) -> Result<()> {
        if !self.target.exists() {
            return self.flush_and_rename();
        }
        sync_tree(&self.temporary).map_err(FormatError::io("write", &self.target))?;
        let aside = self.temporary.with_extension(ASIDE_EXTENSION);
        fs::rename(&self.target, &aside).map_err(FormatError::io("replace", &self.target))?;
        if let Err(error) = self.flush_and_rename() {
            // Put the old one back: better the old state than none.
            let _ = fs::rename(&aside, &self.target);
            return Err(error);
        }
        fs::remove_dir_all(&aside).map_err(FormatError::io("remove", &aside))
    }

    fn flush_and_rename(&mut self) -> Result<()> {
        sync_tree(&self.temporary).map_err(FormatError::io("write", &self.target))?;
        fs::rename(&self.temporary, &self.target)
            .map_err(FormatError::io("create", &self.target))?;
        self.committed = true;
        sync_dir(parent(&self.target));
        Ok(())
    }
}

impl Drop for PendingDir {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be reported from here, and a left-over has a name that says what it is.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Removes temporary files and folders that killed processes left directly in `dir`; a folder that was moved aside for one
/// that then never came is put back. Only for a folder that is this process's alone (a locked run): another's pending work
/// looks the same.
pub fn remove_stale(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(FormatError::io("read", dir))?;
    for entry in entries {
        let entry = entry.map_err(FormatError::io("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        let aside_of = replaced_name(&name).map(|target| dir.join(target));
        if let Some(target) = aside_of.as_ref().filter(|target| !target.exists()) {
            fs::rename(&path, target).map_err(FormatError::io("put back", target))?;
            continue;
        }
        let is_temporary = name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX);
        if !is_temporary && aside_of.is_none() {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(FormatError::io("remove", &path))?;
    }
    Ok(())
}

/// `adapter` for `.adapter.12-0-18ea.old`: whose place a folder moved aside had.
fn replaced_name(name: &str) -> Option<&str> {
    let hidden = name.strip_prefix('.')?.strip_suffix(ASIDE_EXTENSION)?;
    let (target, id) = hidden.strip_suffix('.')?.rsplit_once('.')?;
    let is_id = id.split('-').count() == 3
        && id
            .split('-')
            .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_hexdigit()));
    (is_id && !target.is_empty()).then_some(target)
}

/// A hidden name beside `target` that no other pending write uses.
fn temporary_sibling(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(FormatError::Io {
            action: "create",
            path: target.to_owned(),
            error: io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"),
        });
    };
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    // The time keeps a new process with a dead one's number from meeting its left-overs.
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(
        ".{}-{id}-{nanos:x}{TEMPORARY_SUFFIX}",
        std::process::id()
    ));
    Ok(target.with_file_name(hidden))
}

/// The folder that holds `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    }
}

fn is_empty_dir(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Flushes a folder's own entries, so that a rename in it survives a power cut. Some file systems cannot; that is no error.
pub(crate) fn sync_dir(dir: &Path) {
    if cfg!(unix)
        && let Ok(handle) = File::open(dir)
    {
        let _ = handle.sync_all();
    }
}

/// Flushes every file below `dir`, then the folders.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir);
    Ok(())
}
