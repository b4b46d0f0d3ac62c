//! Writing a GGUF file: keys, copied from another file or new, and tensors whose values are asked
//! for one after the other. Version 3. Knows no model.

use std::io::Write;
use std::path::Path;

use super::tensors::ALIGNMENT;
use super::{Gguf, GgufTensor, MAGIC};
use crate::Result;
use crate::error::FormatError;
use crate::files::PendingFile;
use crate::quantised::BlockFormat;

const VERSION: u32 = 3;

/// Keys that say how a file is divided and laid out, which is each file's own.
const OF_THE_FILE: [&str; 4] = [
    "general.alignment",
    "split.no",
    "split.count",
    "split.tensors.count",
];

/// A tensor that is to be written.
#[derive(Debug, Clone)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its shape, the innermost dimension last.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub format: &'static BlockFormat,
}

impl NewTensor {
    /// As a file has it.
    pub fn of(tensor: &GgufTensor) -> Self {
        NewTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            format: tensor.format,
        }
    }

    /// Bytes of its values.
    pub fn byte_len(&self) -> usize {
        let values: usize = self.shape.iter().product();
        values / self.format.values * self.format.bytes
    }
}

/// What a file is to hold.
#[derive(Debug, Default)]
pub struct GgufDraft {
    keys: Vec<u8>,
    count: u64,
    tensors: Vec<NewTensor>,
}

impl GgufDraft {
    /// The keys of a file, byte for byte, but for those that are named and those that are each
    /// file's own.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_keys_of(gguf: &Gguf, except: &[&str]) -> Result<Self> {
        let mut draft = GgufDraft::default();
        for (key, span) in gguf.metadata.spans() {
            if except.contains(&key) || OF_THE_FILE.contains(&key) {
                continue;
            }
            let bytes = gguf.sources[0].read_vec(span.start, span.end - span.start)?;
            draft.keys.extend(bytes);
            draft.count += 1;
        }
        Ok(draft)
    }

    fn key(&mut self, key: &str, kind: u32) {
        put_text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.count += 1;
    }

    /// Adds a key with a text.
    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_text(&mut self.keys, value);
    }

    /// Adds a key with a number.
    pub fn unsigned(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.keys.extend(value.to_le_bytes());
    }

    /// Adds a key with a number.
    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.keys.extend(value.to_le_bytes());
    }

    /// Adds a tensor behind those that are there.
    pub fn tensor(&mut self, tensor: NewTensor) {
        self.tensors.push(tensor);
    }

    /// Writes the file under a temporary name; `values` gives the bytes of a tensor when its turn
    /// comes, so that one of them is in memory at a time. The caller gives it its name.
    ///
    /// # Errors
    /// Those of `values`, and of the disk. Panics if a tensor has not as many bytes as its shape
    /// says.
    pub fn write<E: From<FormatError>>(
        &self,
        path: &Path,
        mut values: impl FnMut(usize, &NewTensor) -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<PendingFile, E> {
        let mut file = PendingFile::create(path)?;
        let failed = |error| FormatError::io("write", path)(error);
        let header = self.header();
        file.write_all(&header).map_err(failed)?;
        for (at, tensor) in self.tensors.iter().enumerate() {
            let mut bytes = values(at, tensor)?;
            let (found, name) = (bytes.len(), &tensor.name);
            assert_eq!(found, tensor.byte_len(), "bytes of `{name}`");
            bytes.resize(padded(found), 0);
            file.write_all(&bytes).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok(file)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(&self.keys);
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dimension in tensor.shape.iter().rev() {
                out.extend((*dimension as u64).to_le_bytes());
            }
            out.extend(tensor.format.id.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += padded(tensor.byte_len());
        }
        out.resize(padded(out.len()), 0);
        out
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT as usize)
}
