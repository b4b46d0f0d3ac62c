//! The bytes of a pickle: part of a file, read forwards in blocks, every length checked against
//! what is left. Knows no opcode.

use super::PickleFault;
use crate::Result;
use crate::error::FormatError;
use crate::source::Source;
use crate::torch::TorchFault;

/// A part of a file, read forwards.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    source: &'a Source,
    /// Next byte to give.
    position: u64,
    end: u64,
    block: Vec<u8>,
    block_start: u64,
}

impl<'a> Input<'a> {
    /// The bytes from `start` to `end` of a file; `end` may not lie past the file's.
    pub(crate) fn new(source: &'a Source, start: u64, end: u64) -> Input<'a> {
        Input {
            source,
            position: start,
            end: end.min(source.len()),
            block: Vec::new(),
            block_start: start,
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }

    pub(crate) fn fault(&self, fault: PickleFault) -> FormatError {
        FormatError::Torch {
            path: self.source.path().to_owned(),
            fault: TorchFault::Pickle(fault),
        }
    }

    pub(super) fn malformed(&self, message: impl Into<String>) -> FormatError {
        self.fault(PickleFault::Malformed {
            position: self.position,
            message: message.into(),
        })
    }

    fn ended(&self, inside: &'static str) -> FormatError {
        self.fault(PickleFault::Ended {
            position: self.end,
            inside,
        })
    }

    pub(super) fn byte(&mut self, inside: &'static str) -> Result<u8> {
        const BLOCK_BYTES: u64 = 1 << 16;
        if self.remaining() == 0 {
            return Err(self.ended(inside));
        }
        let mut at = self.position - self.block_start;
        if at >= self.block.len() as u64 {
            let len = self.remaining().min(BLOCK_BYTES);
            self.block = self.source.read_vec(self.position, len)?;
            self.block_start = self.position;
            at = 0;
        }
        self.position += 1;
        Ok(self.block[at as usize])
    }

    pub(super) fn array<const N: usize>(&mut self, inside: &'static str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte(inside)?;
        }
        Ok(bytes)
    }

    /// `len` bytes; the length is checked against what is left before anything is allocated.
    pub(super) fn bytes(&mut self, len: u64, inside: &'static str) -> Result<Vec<u8>> {
        if len > self.remaining() {
            return Err(self.ended(inside));
        }
        // Short strings come from the block that is at hand; only long ones go to the file.
        let at = (self.position - self.block_start) as usize;
        let cached = usize::try_from(len)
            .ok()
            .and_then(|len| self.block.get(at..at.checked_add(len)?))
            .map(<[u8]>::to_vec);
        let bytes = match cached {
            Some(bytes) => bytes,
            None => self.source.read_vec(self.position, len)?,
        };
        self.position += len;
        Ok(bytes)
    }

    pub(super) fn text(&mut self, len: u64, inside: &'static str) -> Result<String> {
        let bytes = self.bytes(len, inside)?;
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{inside} is not UTF-8")))
    }

    /// Text up to a newline, which is consumed.
    pub(super) fn line(&mut self, inside: &'static str) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            match self.byte(inside)? {
                b'\n' => break,
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{inside} is not UTF-8")))
    }

    /// A little-endian unsigned length of N bytes.
    pub(super) fn length<const N: usize>(&mut self, inside: &'static str) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>(inside)?);
        Ok(u64::from_le_bytes(wide))
    }
}
