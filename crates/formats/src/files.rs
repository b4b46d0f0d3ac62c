//! The seam to the file system: every file call of the program goes through here, and nowhere else
//! (`cargo xtask tidy`). Knows nothing of what is in a file.
//!
//! | need | call |
//! | --- | --- |
//! | a file of settings, a vocabulary, a config: the whole of it | [`read`], [`read_text`], [`read_if_there`] with a [`Ceiling`] |
//! | rows that come one after the other, from a pipe too | [`Stream::open`]; [`read_any`] for the whole of a stream |
//! | a tensor at its offset | [`Regular::open`] and its `read_exact_at` |
//! | a file that appears whole | [`write_atomic`], [`PendingFile`] |
//! | a folder that appears whole | [`PendingDir`] |
//! | a log that grows | [`Appender`] |
//! | names, folders, removal | [`list`], [`create_dir_all`], [`rename`], [`remove_file`], [`remove_dir_all`], … |
//!
//! Each error names the file and what was tried. A file that is read whole must be a regular one,
//! so that no pipe hangs and no device is read until memory ends. In a debug build the system's
//! answers can be made to fail, one after the other: see [`fault`].

mod append;
mod folders;
mod names;
mod pending;
mod read;
mod stream;
mod sweep;
mod system;

pub mod fault;

pub use append::Appender;
pub use folders::{
    Entry, copy, create_dir_all, exists, is_dir, is_file, is_named, list, remove_dir_all,
    remove_file, rename, resolve, size,
};
pub(crate) use folders::{parent, sync_dir};
pub use names::{Shown, shown};
pub use pending::{PendingDir, PendingFile, abandon_pending, write_atomic};
pub use read::{Ceiling, Regular, read, read_if_there, read_text};
pub use stream::{DeviceFile, Stream, read_any};
pub use sweep::remove_stale;
pub(crate) use system::{Handle, LockOutcome, create_new, open_update};
