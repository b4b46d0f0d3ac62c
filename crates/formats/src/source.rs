//! Bytes by position: an open file, or bytes in memory (for tests and fuzzing). Knows no format.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::FormatError;
use crate::files::Regular;

/// Something of known length that can be read at any position, by several threads at once.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    len: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File(Regular),
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let file = Regular::open(path)?;
        Ok(Source {
            path: path.to_owned(),
            len: file.len(),
            bytes: Bytes::File(file),
        })
    }

    /// Bytes that act as the file `name`.
    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Source {
        Source {
            path: PathBuf::from(name),
            len: bytes.len() as u64,
            bytes: Bytes::Memory(bytes),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `offset`; an end of the file before that is an error.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match &self.bytes {
            Bytes::File(file) => file.read_exact_at(buffer, offset),
            Bytes::Memory(bytes) => usize::try_from(offset)
                .ok()
                .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?))
                .map(|part| buffer.copy_from_slice(part))
                .ok_or_else(|| FormatError::io("read", &self.path)(ends_before(buffer, offset))),
        }
    }

    /// Whether its first bytes are these.
    pub(crate) fn begins_with(&self, magic: &[u8]) -> Result<bool> {
        let start = self.read_vec(0, self.len.min(magic.len() as u64))?;
        Ok(start == magic)
    }

    /// `len` bytes from `offset`. The range is checked against the file's length before anything is
    /// allocated.
    pub(crate) fn read_vec(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let Some(size) = usize::try_from(len).ok().filter(|_| inside) else {
            return Err(FormatError::Io {
                action: "read",
                path: self.path.clone(),
                error: std::io::Error::new(
                    std::io::ErrorKind::UnexpectedEof,
                    format!(
                        "{len} bytes at {offset} lie outside the file's {}",
                        self.len
                    ),
                ),
            });
        };
        let mut buffer = vec![0; size];
        self.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }
}

fn ends_before(buffer: &[u8], offset: u64) -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::UnexpectedEof,
        format!(
            "the file ends before byte {}",
            offset.saturating_add(buffer.len() as u64)
        ),
    )
}
