//! Reading a header front to back through a small buffer, every length checked against the file
//! before anything is allocated. Knows no key.

use super::fault::GgufFault;
use crate::error::FormatError;
use crate::source::Source;

/// Bytes read from the file at a time.
const BUFFER: u64 = 1 << 16;

/// An error of the file system, or a fault of the file.
#[derive(Debug)]
pub(super) enum Trouble {
    File(FormatError),
    Fault(GgufFault),
}

impl From<FormatError> for Trouble {
    fn from(error: FormatError) -> Trouble {
        Trouble::File(error)
    }
}

impl From<GgufFault> for Trouble {
    fn from(fault: GgufFault) -> Trouble {
        Trouble::Fault(fault)
    }
}

impl Trouble {
    /// The error of the file at `path`.
    pub(super) fn of(self, path: &std::path::Path) -> FormatError {
        match self {
            Trouble::File(error) => error,
            Trouble::Fault(fault) => FormatError::Gguf {
                path: path.to_owned(),
                fault: Box::new(fault),
            },
        }
    }
}

/// A place in a file.
pub(super) struct Cursor<'a> {
    source: &'a Source,
    at: u64,
    buffer: Vec<u8>,
    /// Of the buffer's first byte.
    start: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a Source, at: u64) -> Cursor<'a> {
        Cursor {
            source,
            at,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// The next byte's position.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The file's bytes.
    pub(super) fn len(&self) -> u64 {
        self.source.len()
    }

    /// Bytes that follow.
    pub(super) fn left(&self) -> u64 {
        self.source.len().saturating_sub(self.at)
    }

    /// Refuses what would reach past the end.
    pub(super) fn need(&self, what: &str, bytes: u128) -> Result<(), GgufFault> {
        if bytes <= u128::from(self.left()) {
            return Ok(());
        }
        Err(GgufFault::Outside {
            what: what.to_owned(),
            at: self.at,
            needed: bytes,
            len: self.source.len(),
        })
    }

    /// Passes over `bytes`, which must be there.
    pub(super) fn skip(&mut self, what: &str, bytes: u128) -> Result<(), GgufFault> {
        self.need(what, bytes)?;
        self.at += bytes as u64;
        Ok(())
    }

    pub(super) fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Trouble> {
        self.need(what, N as u128)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.view(N as u64)?);
        self.at += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Trouble> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Trouble> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// The number that comes next, which is not passed over.
    pub(super) fn peek_u64(&mut self, what: &str) -> Result<u64, Trouble> {
        let number = self.u64(what)?;
        self.at -= 8;
        Ok(number)
    }

    /// A text: its bytes as u64, then they.
    pub(super) fn text(&mut self, what: &str) -> Result<String, Trouble> {
        let len = self.u64(what)?;
        self.need(what, u128::from(len))?;
        let at = self.at;
        let text = if len <= BUFFER {
            String::from_utf8(self.view(len)?.to_vec())
        } else {
            String::from_utf8(self.source.read_vec(at, len)?)
        };
        self.at += len;
        text.map_err(|_| {
            let what = what.to_owned();
            GgufFault::NotUtf8 { what, at }.into()
        })
    }

    /// The next `len` bytes, of which there are so many, at most a buffer.
    fn view(&mut self, len: u64) -> Result<&[u8], FormatError> {
        let inside =
            self.at >= self.start && self.at + len <= self.start + self.buffer.len() as u64;
        if !inside {
            let take = BUFFER.min(self.source.len() - self.at);
            self.buffer.resize(take as usize, 0);
            self.source.read_exact_at(&mut self.buffer, self.at)?;
            self.start = self.at;
        }
        let from = (self.at - self.start) as usize;
        Ok(&self.buffer[from..from + len as usize])
    }
}
