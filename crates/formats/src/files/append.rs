//! A log that grows by whole records.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::system::{self, Handle};
use crate::Result;
use crate::error::FormatError;

/// A file to whose end records are added, each in one call and at once.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    handle: Handle,
}

impl Appender {
    /// Opens a log, makes it where it is missing, and cuts it off after `keep` bytes.
    pub fn open(path: &Path, keep: u64) -> Result<Appender> {
        if system::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(FormatError::io("write", path)(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            )));
        }
        let handle = system::open_append(path).map_err(FormatError::io("open", path))?;
        handle
            .set_len(keep)
            .map_err(FormatError::io("truncate", path))?;
        Ok(Appender {
            path: path.to_owned(),
            handle,
        })
    }

    /// Adds a record.
    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        self.handle
            .write_all(record)
            .map_err(FormatError::io("write", &self.path))
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
