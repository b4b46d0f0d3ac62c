//! Files and folders that appear whole under their final name, or not at all. Knows nothing of what
//! is in them.
//!
//! Everything is written under a temporary name beside the target, flushed to the disk, and then
//! renamed: a reader, a killed process or a full disk never meets half of it, and what stood under
//! the name before stays until the new is complete. What a killed process left is swept by the next
//! one that writes the same target; a living one's is known by its lock.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::folders::{create_dir, is_dir, parent, sync_dir, sync_tree};
use super::names::{aside_of, temporary_sibling};
use super::sweep::sweep_beside;
use super::system::{self, Handle, LockOutcome};
use crate::Result;
use crate::error::FormatError;

/// Temporary names of this process that are in use. Held while a name is being made final, so that
/// an end by signal comes before or after that.
static IN_USE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn in_use() -> MutexGuard<'static, Vec<PathBuf>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary name of this process, kept in the list while it lives; what stands under it is
/// removed with it.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    fn new(target: &Path) -> Result<Temporary> {
        let path = temporary_sibling(target)?;
        in_use().push(path.clone());
        Ok(Temporary(path))
    }

    /// Nothing of ours stands under the name any more.
    fn forget(&self) {
        in_use().retain(|path| *path != self.0);
    }
}

/// For a process that is told to end: removes every temporary file and folder of its pending
/// writes. Every other thread stops at its next file call, so that nothing is made anew; the
/// process must exit now.
pub fn abandon_pending() {
    let pending = in_use();
    system::stop_all();
    for path in pending.iter() {
        // A call that had begun may put one more file into a folder that is being removed.
        for _ in 0..5 {
            let removed = match is_dir(path) {
                true => system::remove_dir_all(path),
                false => system::remove_file(path),
            };
            match removed {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Writes `bytes` to `path` as a whole, replacing what was there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = PendingFile::create(path)?;
    file.write_all(bytes)
        .map_err(FormatError::io("write", path))?;
    file.commit()
}

/// A file being written under a temporary name; dropped without [`commit`](PendingFile::commit), it
/// is removed.
#[derive(Debug)]
pub struct PendingFile {
    target: PathBuf,
    temporary: Temporary,
    file: Option<io::BufWriter<Handle>>,
}

impl PendingFile {
    /// Begins a file that will be `target`. The folder must exist.
    pub fn create(target: &Path) -> Result<PendingFile> {
        if is_dir(target) {
            return Err(FormatError::Io {
                action: "write",
                path: target.to_owned(),
                error: io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"),
            });
        }
        // A link is written through, as by any other program; a device or a pipe cannot be renamed
        // over.
        let target = &system::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        if system::metadata(target).is_ok_and(|found| !found.is_file()) {
            return Err(FormatError::Io {
                action: "replace",
                path: target.to_owned(),
                error: io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"),
            });
        }
        sweep_beside(target);
        let temporary = Temporary::new(target)?;
        let opened = system::create_new(&temporary.0);
        let mut pending = PendingFile {
            target: target.to_owned(),
            temporary,
            file: None,
        };
        let handle = match opened {
            Ok(handle) => handle,
            Err(error) => {
                pending.temporary.forget();
                return Err(FormatError::io("create", target)(error));
            }
        };
        // Held as long as the file is open: a sweep leaves it alone. Without locks it is never
        // swept.
        let locked = handle.try_lock();
        pending.file = Some(io::BufWriter::with_capacity(1 << 16, handle));
        match locked {
            Ok(LockOutcome::Taken | LockOutcome::Held | LockOutcome::Unsupported) => Ok(pending),
            Err(error) => Err(FormatError::io("lock", target)(error)),
        }
    }

    /// Where it stands until then: for a look at what is written, after a flush.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// Flushes to the disk and renames to the final name, replacing a file that was there.
    pub fn commit(mut self) -> Result<()> {
        let Some(mut writer) = self.file.take() else {
            return Ok(());
        };
        let mut finish = || -> io::Result<()> {
            writer.flush()?;
            writer.get_ref().sync_all()?;
            let mut pending = in_use();
            system::rename(&self.temporary.0, &self.target)?;
            pending.retain(|path| *path != self.temporary.0);
            Ok(())
        };
        if let Err(error) = finish() {
            self.file = Some(writer);
            return Err(FormatError::io("write", &self.target)(error));
        }
        // Without this the buffer would be written again where its flush failed.
        drop(writer.into_parts());
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
        if let Some(writer) = self.file.take() {
            // What is still in the buffer is of no use; nothing can be reported from here, and a
            // left-over is swept later.
            drop(writer.into_parts());
            let _ = system::remove_file(&self.temporary.0);
            self.temporary.forget();
        }
    }
}

/// A folder being filled under a temporary name; dropped without a commit, it is removed with all
/// that is in it.
#[derive(Debug)]
pub struct PendingDir {
    target: PathBuf,
    temporary: Temporary,
    committed: bool,
    /// The folder itself, held for its lock alone; none where a folder cannot be locked.
    _lock: Option<Handle>,
}

impl PendingDir {
    /// Begins a folder that will be `target`; its parents are made where they are missing. What
    /// killed processes left for this target is removed or put back first, see
    /// [`super::remove_stale`].
    pub fn create(target: &Path) -> Result<PendingDir> {
        // Of a link the folder that it leads to is replaced, not the link. A path without a name is
        // refused below.
        let named = target.file_name().is_some();
        let target = match system::canonicalize(target) {
            Ok(real) if named => real,
            Ok(_) | Err(_) => target.to_owned(),
        };
        let above = parent(&target);
        system::create_dir_all(above).map_err(FormatError::io("create", above))?;
        sweep_beside(&target);
        let temporary = Temporary::new(&target)?;
        if let Err(error) = create_dir(&temporary.0, &target) {
            temporary.forget();
            return Err(error);
        }
        let lock = system::open(&temporary.0).ok();
        let is_locked = |handle: &Handle| handle.try_lock().is_ok();
        Ok(PendingDir {
            target,
            temporary,
            committed: false,
            _lock: lock.filter(is_locked),
        })
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// The name it will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes everything and renames to the final name. A target that exists is an error unless it
    /// is an empty folder.
    pub fn commit(mut self) -> Result<()> {
        if super::exists(&self.target) && !is_empty_dir(&self.target) {
            return Err(FormatError::AlreadyExists {
                path: self.target.clone(),
            });
        }
        self.flush()?;
        self.rename()
    }

    /// Like [`commit`](PendingDir::commit), but a folder that was there is replaced, and removed
    /// once the new one stands.
    ///
    /// Where the system can, the two exchange their names in one step: the target is always one of
    /// both. Elsewhere the old one is renamed aside first; a process killed between the two renames
    /// leaves both whole, and the next write puts the old one back.
    pub fn commit_replacing(mut self) -> Result<()> {
        self.flush()?;
        if !super::exists(&self.target) {
            return self.rename();
        }
        let exchanged = {
            let _names = in_use();
            system::exchange(&self.temporary.0, &self.target)
        };
        let old = match exchanged {
            Ok(()) => {
                sync_dir(parent(&self.target));
                self.temporary.0.clone()
            }
            Err(error) if cannot_exchange(&error) => self.rename_aside()?,
            Err(error) => return Err(FormatError::io("replace", &self.target)(error)),
        };
        system::remove_dir_all(&old)
            .map_err(FormatError::io("remove the old content of", &self.target))?;
        self.settle();
        Ok(())
    }

    /// Two renames in place of the exchange. Gives where the old folder is now.
    fn rename_aside(&mut self) -> Result<PathBuf> {
        let aside = aside_of(&self.temporary.0);
        system::rename(&self.target, &aside).map_err(FormatError::io("replace", &self.target))?;
        if let Err(error) = self.rename() {
            // Put the old one back: better the old state than none.
            let _ = system::rename(&aside, &self.target);
            return Err(error);
        }
        Ok(aside)
    }

    fn flush(&self) -> Result<()> {
        sync_tree(&self.temporary.0).map_err(FormatError::io("write", &self.target))
    }

    fn rename(&mut self) -> Result<()> {
        {
            let mut pending = in_use();
            system::rename(&self.temporary.0, &self.target)
                .map_err(FormatError::io("create", &self.target))?;
            pending.retain(|path| *path != self.temporary.0);
        }
        self.committed = true;
        sync_dir(parent(&self.target));
        Ok(())
    }

    /// Nothing is left under the temporary name.
    fn settle(&mut self) {
        self.committed = true;
        self.temporary.forget();
    }
}

impl Drop for PendingDir {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be reported from here, and a left-over is swept by the next write of this
            // target.
            let _ = system::remove_dir_all(&self.temporary.0);
            self.temporary.forget();
        }
    }
}

/// Whether the system, or this file system, has no exchange of names.
fn cannot_exchange(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput | io::ErrorKind::CrossesDevices
    )
}

fn is_empty_dir(path: &Path) -> bool {
    system::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
