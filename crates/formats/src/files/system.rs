//! The calls to the operating system themselves, one function each, none with a policy. Each first
//! passes [`enter`], where a test makes it fail and where a process that is about to end stops. The
//! only file with `std::fs` in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a call does, for the list that the fault injection keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Opening for reading.
    Open,
    /// Reading bytes.
    Read,
    /// Making a file.
    Create,
    /// Writing bytes.
    Write,
    /// Cutting a file off.
    Truncate,
    /// Flushing to the disk.
    Sync,
    /// Giving another name.
    Rename,
    /// Removing a file or folder.
    Remove,
    /// Making a folder.
    CreateDir,
    /// Listing a folder.
    List,
    /// Taking a lock.
    Lock,
}

/// Set by [`stop_all`]: the process is about to end, and no call may begin any more.
static STOPPED: AtomicBool = AtomicBool::new(false);

std::thread_local! {
    /// Whether this thread is the one that cleans up at the end.
    static CLEANS_UP: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// From now on every other thread stops at its next file call, for ever: what is being cleaned up
/// is not made anew.
pub(super) fn stop_all() {
    CLEANS_UP.set(true);
    STOPPED.store(true, Ordering::SeqCst);
}

fn enter(call: Call, path: &Path) -> io::Result<()> {
    while STOPPED.load(Ordering::SeqCst) && !CLEANS_UP.get() {
        std::thread::park();
    }
    super::fault::meet(call, path)
}

/// An open file and its name.
#[derive(Debug)]
pub(crate) struct Handle {
    file: File,
    path: PathBuf,
}

/// What an attempt to lock gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockOutcome {
    /// It is ours until the handle is dropped.
    Taken,
    /// Another process holds it.
    Held,
    /// This file system has no locks.
    Unsupported,
}

impl Handle {
    fn new(file: File, path: &Path) -> Handle {
        Handle {
            file,
            path: path.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    pub(crate) fn sync_all(&self) -> io::Result<()> {
        enter(Call::Sync, &self.path)?;
        self.file.sync_all()
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        enter(Call::Truncate, &self.path)?;
        self.file.set_len(len)
    }

    pub(crate) fn try_lock(&self) -> io::Result<LockOutcome> {
        enter(Call::Lock, &self.path)?;
        match self.file.try_lock() {
            Ok(()) => Ok(LockOutcome::Taken),
            Err(fs::TryLockError::WouldBlock) => Ok(LockOutcome::Held),
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(LockOutcome::Unsupported)
            }
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Fills `buffer` from `offset`.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        enter(Call::Read, &self.path)?;
        read_exact_at(&self.file, buffer, offset)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        std::io::IsTerminal::is_terminal(&self.file)
    }

    #[cfg(unix)]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Read for Handle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        enter(Call::Read, &self.path)?;
        self.file.read(buffer)
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        enter(Call::Write, &self.path)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(crate) fn open(path: &Path) -> io::Result<Handle> {
    enter(Call::Open, path)?;
    Ok(Handle::new(File::open(path)?, path))
}

/// Opens a pipe for reading without waiting for its other end.
#[cfg(unix)]
pub(crate) fn open_without_waiting(path: &Path) -> io::Result<Handle> {
    use std::os::unix::fs::OpenOptionsExt;
    enter(Call::Open, path)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    Ok(Handle::new(file, path))
}

/// Makes a file that must not be there.
pub(crate) fn create_new(path: &Path) -> io::Result<Handle> {
    enter(Call::Create, path)?;
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    Ok(Handle::new(file, path))
}

/// Opens a file that is there, to read and change it.
pub(crate) fn open_update(path: &Path) -> io::Result<Handle> {
    enter(Call::Open, path)?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(Handle::new(file, path))
}

/// Opens a device or a pipe to write to.
pub(crate) fn open_write(path: &Path) -> io::Result<Handle> {
    enter(Call::Open, path)?;
    let file = OpenOptions::new().write(true).open(path)?;
    Ok(Handle::new(file, path))
}

/// Opens a pipe for writing without waiting for its other end, which must be there.
#[cfg(unix)]
pub(crate) fn open_write_without_waiting(path: &Path) -> io::Result<Handle> {
    use std::os::unix::fs::OpenOptionsExt;
    enter(Call::Open, path)?;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    Ok(Handle::new(file, path))
}

/// Opens a file to add to its end, making it where it is missing.
pub(crate) fn open_append(path: &Path) -> io::Result<Handle> {
    enter(Call::Create, path)?;
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(Handle::new(file, path))
}

pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    enter(Call::CreateDir, path)?;
    fs::create_dir(path)
}

pub(crate) fn create_dir_all(path: &Path) -> io::Result<()> {
    enter(Call::CreateDir, path)?;
    fs::create_dir_all(path)
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    enter(Call::Rename, to)?;
    fs::rename(from, to)
}

/// Swaps what stands under two names, in one step. Not every system and file system can.
#[cfg(target_os = "linux")]
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    enter(Call::Rename, other)?;
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    enter(Call::Remove, path)?;
    fs::remove_file(path)
}

pub(crate) fn remove_dir_all(path: &Path) -> io::Result<()> {
    enter(Call::Remove, path)?;
    fs::remove_dir_all(path)
}

pub(crate) fn read_dir(path: &Path) -> io::Result<fs::ReadDir> {
    enter(Call::List, path)?;
    fs::read_dir(path)
}

/// What a path leads to, links followed.
pub(crate) fn metadata(path: &Path) -> io::Result<fs::Metadata> {
    fs::metadata(path)
}

/// What a path is itself, links not followed.
pub(crate) fn link_metadata(path: &Path) -> io::Result<fs::Metadata> {
    fs::symlink_metadata(path)
}

pub(crate) fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path)
}

/// Flushes a folder's own entries.
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    enter(Call::Sync, dir)?;
    File::open(dir)?.sync_all()
}
