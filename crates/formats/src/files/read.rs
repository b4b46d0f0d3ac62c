//! Regular files: read whole up to a ceiling, or by position.

use std::io;
use std::path::Path;

use super::system::{self, Handle};
use crate::Result;
use crate::error::FormatError;

/// How long a file may be that is read whole, and what it is: both stand in the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// The most bytes.
    pub bytes: u64,
    /// What such a file is, with its article: `a file of settings`.
    pub what: &'static str,
}

impl Ceiling {
    /// Settings written by hand.
    pub const SETTINGS: Ceiling = Ceiling::mib(16, "a file of settings");
    /// JSON beside a model: configurations, label maps, indices of shards.
    pub const JSON: Ceiling = Ceiling::mib(256, "a JSON file");
    /// Vocabularies, merges, SentencePiece models, tokenizer.json.
    pub const TOKENIZER: Ceiling = Ceiling::mib(256, "a tokenizer file");
    /// Files that hold one name or number.
    pub const NAME: Ceiling = Ceiling {
        bytes: 4096,
        what: "a file with one name",
    };
    /// Rows, texts and tables, held in memory as a whole.
    pub const DATA: Ceiling = Ceiling::mib(16 << 10, "a data file");

    /// A ceiling in MiB.
    pub const fn mib(mib: u64, what: &'static str) -> Ceiling {
        Ceiling {
            bytes: mib << 20,
            what,
        }
    }

    /// The error of a file with `found` bytes, or more.
    pub(super) fn exceeded(self, path: &Path, found: u64) -> FormatError {
        FormatError::TooLarge {
            path: path.to_owned(),
            found,
            most: self.bytes,
            what: self.what,
        }
    }
}

/// An open regular file of known length, read by position, by several threads at once.
#[derive(Debug)]
pub struct Regular {
    handle: Handle,
    len: u64,
}

impl Regular {
    /// Opens a regular file; a folder, a pipe and a device are errors.
    pub fn open(path: &Path) -> Result<Regular> {
        // Asked before opening: opening a named pipe would wait for its other end for ever.
        let found = system::metadata(path).map_err(FormatError::io("read", path))?;
        if !found.is_file() {
            return Err(FormatError::NotRegular {
                path: path.to_owned(),
                found: kind_name(&found.file_type()),
            });
        }
        let handle = system::open(path).map_err(FormatError::io("read", path))?;
        let len = handle
            .metadata()
            .map_err(FormatError::io("read", path))?
            .len();
        Ok(Regular { handle, len })
    }

    /// Its length when it was opened, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it held nothing when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        self.handle.path()
    }

    /// Fills `buffer` from `offset`; an end of the file before that is an error.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let outcome = self.handle.read_exact_at(buffer, offset);
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::Io {
                action: "read",
                path: self.path().to_owned(),
                error: io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!(
                        "the file ends before byte {}",
                        offset.saturating_add(buffer.len() as u64)
                    ),
                ),
            },
            _ => FormatError::io("read", self.path())(error),
        })
    }

    /// All its bytes; more than the ceiling is an error before anything is allocated.
    fn read_whole(self, ceiling: Ceiling) -> Result<Vec<u8>> {
        if self.len > ceiling.bytes {
            return Err(ceiling.exceeded(self.path(), self.len));
        }
        // Files of the system's own (`/proc`) say 0 and hold more.
        if self.len == 0 {
            let path = self.path().to_owned();
            return super::stream::drain(self.handle, &path, ceiling);
        }
        let Ok(len) = usize::try_from(self.len) else {
            return Err(ceiling.exceeded(self.path(), self.len));
        };
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(len)
            .map_err(|_| out_of_memory(self.path(), self.len))?;
        bytes.resize(len, 0);
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

fn out_of_memory(path: &Path, len: u64) -> FormatError {
    FormatError::io("read", path)(io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!("its {len} bytes do not fit into memory"),
    ))
}

/// All bytes of a regular file. A folder, a pipe, a device, and a file above the ceiling are
/// errors.
pub fn read(path: &Path, ceiling: Ceiling) -> Result<Vec<u8>> {
    Regular::open(path)?.read_whole(ceiling)
}

/// Like [`read`]; nothing where there is no such file. Any other trouble is an error: a file that
/// cannot be read is not a file that is missing, nor is a link that leads nowhere.
pub fn read_if_there(path: &Path, ceiling: Ceiling) -> Result<Option<Vec<u8>>> {
    match read(path, ceiling) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(FormatError::Io { error, .. })
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) && !super::is_named(path) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The text of a regular file, which must be UTF-8.
pub fn read_text(path: &Path, ceiling: Ceiling) -> Result<String> {
    String::from_utf8(read(path, ceiling)?).map_err(|error| FormatError::NotUtf8 {
        path: path.to_owned(),
        line: 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count(),
    })
}

/// What a path leads to, in words.
pub(super) fn kind_name(kind: &std::fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    match kind.is_dir() {
        true => "a folder",
        false => "no file",
    }
}
