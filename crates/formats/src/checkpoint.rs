//! Tensors by name, from whatever files hold them: one safetensors, PyTorch or GGUF file, or the
//! shards of a Hugging Face folder. Knows no model: what a name means, and whether one is missing,
//! is the reader's business.

mod open;
pub(crate) mod values;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::dtype::{DType, decode_i64, f32_bytes};
use crate::error::FormatError;
use crate::gguf::GgufFault;
use crate::quantised::BlockParts;
use crate::source::Source;
use crate::suggest::nearest;
use values::{Kept, Reading, RowOrder, Values};

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its values are stored; F32 where they are packed, since that is what they are read as.
    pub dtype: DType,
    /// The packed form, if its values are stored in one.
    pub packed: Option<PackedAs>,
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::files`] holds it.
    pub file: usize,
}

impl TensorInfo {
    /// The number of values. The shape was checked when the file was opened, so it can be counted.
    pub fn numel(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        self.shape.iter().product()
    }

    /// How its values are stored, in the words of its format.
    pub fn stored_as(&self) -> &'static str {
        self.packed
            .map_or(self.dtype.name(), |packed| packed.format)
    }

    /// Bytes of its values in the files.
    pub fn stored_bytes(&self) -> u64 {
        let plain = || (self.numel() * self.dtype.size_bytes()) as u64;
        self.packed.map_or_else(plain, |packed| packed.bytes)
    }
}

/// How the values of a tensor are stored where they are no elements of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedAs {
    /// The format's name: `Q4_K`, `NF4`.
    pub format: &'static str,
    /// Bytes in the files, scales included.
    pub bytes: u64,
}

/// A matrix that is stored in blocks which can be kept as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parted {
    /// The format's name: `Q4_K`.
    pub format: &'static str,
    /// Rows and columns as they are stored.
    pub shape: [usize; 2],
    /// Whether the stored rows are the tensor's columns.
    pub is_transposed: bool,
}

/// A tensor and where its values lie.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    pub(crate) values: Values,
}

/// An open checkpoint. Reading takes `&self`, and several threads may read at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    sources: Vec<Source>,
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
    kept: Kept,
}

impl Checkpoint {
    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The text that safetensors files carry about themselves.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Every tensor, in the order of the files.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.entries.iter().map(|entry| &entry.info)
    }

    /// What is known of one tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.entries[at].info)
    }

    /// Reads all values of a float tensor as f32 (exact from f16, bf16 and f32). `out` has the
    /// tensor's length.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let found = entry.info.numel();
        if out.len() != found {
            return Err(self.out_of_range(entry, 0, out.len()));
        }
        self.read_f32_range(name, 0, out)
    }

    /// Reads `out.len()` values of a float tensor as f32, from the value `start` in row-major
    /// order.
    pub fn read_f32_range(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        if !entry.info.dtype.is_float() {
            return Err(self.wrong_dtype(entry, "F32, F16, BF16 or F64"));
        }
        self.check_range(entry, start, out.len())?;
        let reading = self.reading(entry);
        match &entry.values {
            Values::Plain(plain) => plain.read_f32(reading, start, out),
            Values::Blocks(blocks) if !blocks.format.is_read() => Err(FormatError::Gguf {
                path: self.files[entry.info.file].clone(),
                fault: Box::new(GgufFault::Unread {
                    name: name.to_owned(),
                    format: blocks.format.name,
                }),
            }),
            Values::Blocks(blocks) => blocks.read_f32(reading, start, out),
            Values::Packed(packed) => packed.read_f32(reading, start, out),
        }
    }

    /// Reads all values of a float tensor as f32.
    pub fn read_f32_vec(&self, name: &str) -> Result<Vec<f32>> {
        // The length is that of values that lie in the file (or of a small expanded tensor): see
        // `TorchFile`.
        let mut values = vec![0.0; self.entry(name)?.info.numel()];
        self.read_f32(name, &mut values)?;
        Ok(values)
    }

    /// Reads all values of an integer or bool tensor.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let entry = self.entry(name)?;
        if !entry.info.dtype.is_integer() {
            return Err(self.wrong_dtype(entry, "an integer type"));
        }
        let bytes = self.read_range(entry, 0, entry.info.numel())?;
        Ok(decode_i64(entry.info.dtype, &bytes))
    }

    /// Reads all values of a tensor as the little-endian, row-major bytes of its type: those that
    /// are stored, or of packed values the f32 that they stand for.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        self.read_range(entry, 0, entry.info.numel())
    }

    /// Reads `len` values of a tensor, from the value `start` in row-major order, as
    /// [`Checkpoint::read_bytes`] does.
    pub fn read_bytes_range(&self, name: &str, start: usize, len: usize) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        self.check_range(entry, start, len)?;
        self.read_range(entry, start, len)
    }

    /// Reads `len` bytes of a packed tensor as they are stored, from the byte `start`.
    ///
    /// # Errors
    /// The file cannot be read, or the tensor is not packed or not so long.
    pub fn read_packed(&self, name: &str, start: u64, len: usize) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let found = entry.info.packed.map_or(0, |packed| packed.bytes);
        let Some(end) = start.checked_add(len as u64).filter(|end| *end <= found) else {
            return Err(self.out_of_range(entry, start as usize, len));
        };
        match &entry.values {
            Values::Blocks(blocks) => {
                self.sources[entry.info.file].read_vec(blocks.offset + start, end - start)
            }
            Values::Packed(packed) => packed.stored_bytes(self.reading(entry), start, len as u64),
            Values::Plain(_) => Err(self.out_of_range(entry, start as usize, len)),
        }
    }

    /// The blocks of a matrix that can be taken apart row by row: [`Checkpoint::read_parts`].
    pub fn parted(&self, name: &str) -> Option<Parted> {
        let entry = &self.entries[*self.by_name.get(name)?];
        let (Values::Blocks(blocks), [_, _]) = (&entry.values, &entry.info.shape[..]) else {
            return None;
        };
        blocks.format.has_parts().then_some(Parted {
            format: blocks.format.name,
            shape: blocks.stored,
            is_transposed: blocks.order == RowOrder::Transposed,
        })
    }

    /// The parts of some rows of a matrix's blocks; see [`Checkpoint::parted`].
    ///
    /// # Errors
    /// The file cannot be read, or the matrix has no such blocks or rows.
    pub fn read_parts(&self, name: &str, rows: Range<usize>) -> Result<BlockParts> {
        let entry = self.entry(name)?;
        match &entry.values {
            Values::Blocks(blocks) if blocks.format.has_parts() && rows.end <= blocks.stored[0] => {
                blocks.parts(self.reading(entry), rows)
            }
            _ => Err(self.out_of_range(entry, rows.start, rows.len())),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        match self.by_name.get(name) {
            Some(&at) => Ok(&self.entries[at]),
            None => Err(FormatError::MissingTensor {
                path: self.path.clone(),
                name: name.to_owned(),
                nearest: nearest(name, self.by_name.keys().map(String::as_str)).map(str::to_owned),
            }),
        }
    }

    fn reading(&self, entry: &Entry) -> Reading<'_> {
        Reading {
            source: &self.sources[entry.info.file],
            files: &self.sources,
            kept: &self.kept,
            entry: self.by_name[&entry.info.name],
            dtype: entry.info.dtype,
            count: entry.info.numel(),
        }
    }

    fn wrong_dtype(&self, entry: &Entry, expected: &'static str) -> FormatError {
        FormatError::WrongDType {
            path: self.files[entry.info.file].clone(),
            name: entry.info.name.clone(),
            found: entry.info.dtype,
            expected,
        }
    }

    fn out_of_range(&self, entry: &Entry, start: usize, len: usize) -> FormatError {
        FormatError::OutOfRange {
            path: self.files[entry.info.file].clone(),
            name: entry.info.name.clone(),
            found: entry.info.numel(),
            start,
            end: start.saturating_add(len),
        }
    }

    fn check_range(&self, entry: &Entry, start: usize, len: usize) -> Result<()> {
        match start.checked_add(len) {
            Some(end) if end <= entry.info.numel() => Ok(()),
            _ => Err(self.out_of_range(entry, start, len)),
        }
    }

    /// The bytes of values `start..start + len` in row-major order; the range is inside the tensor.
    fn read_range(&self, entry: &Entry, start: usize, len: usize) -> Result<Vec<u8>> {
        match &entry.values {
            Values::Plain(plain) => plain.read_bytes(self.reading(entry), start, len),
            Values::Blocks(_) | Values::Packed(_) => {
                let mut values = vec![0.0; len];
                self.read_f32_range(&entry.info.name, start, &mut values)?;
                Ok(f32_bytes(&values).into_owned())
            }
        }
    }
}
