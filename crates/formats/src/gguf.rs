//! GGUF, the format of llama.cpp: a header of keys and values, tensors in blocks, perhaps in
//! several files. Versions 2 and 3, little-endian. Source: ggml `docs/gguf.md`; gguf-py 0.19. Knows
//! what keys and tensors are called, not what a model computes.
//!
//! Layout: `GGUF`, u32 version, u64 tensors, u64 keys; the keys, each with its type; of each tensor
//! its name, dimensions (the innermost first), type and offset; padding to `general.alignment`; the
//! data.

mod architecture;
mod cursor;
mod fault;
mod metadata;
mod split;
mod tensors;
mod write;

use std::path::{Path, PathBuf};

use crate::Result;
use crate::dtype::{DType, decode_f32};
use crate::error::FormatError;
use crate::files;
use crate::source::Source;
pub(crate) use architecture::View;
pub use architecture::{Architecture, Stored};
use cursor::{Cursor, Trouble};
pub use fault::GgufFault;
pub use metadata::{List, Metadata, Value, ValueKind};
pub use tensors::GgufTensor;
pub use write::{GgufDraft, NewTensor};

/// The first bytes of every file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// An open file, or the parts of one that was split.
#[derive(Debug)]
pub struct Gguf {
    sources: Vec<Source>,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
}

impl Gguf {
    /// Opens a file. One that is named `…-00001-of-00003.gguf` is opened with its other parts,
    /// whichever of them is named.
    ///
    /// # Errors
    /// Parts that cannot be read, and every count, length, offset and type that the file cannot
    /// hold.
    pub fn open(path: &Path) -> Result<Gguf> {
        let Some(names) = split::parts_of(path)? else {
            return Gguf::from_sources(vec![Source::open(path)?]);
        };
        let sources = names.iter().map(|name| Source::open(name));
        Gguf::from_sources(sources.collect::<Result<_>>()?)
    }

    /// A file in memory.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Gguf> {
        Gguf::from_sources(vec![Source::from_bytes(name, bytes)])
    }

    pub(crate) fn from_sources(sources: Vec<Source>) -> Result<Gguf> {
        let mut gguf = Gguf {
            sources,
            metadata: Metadata::default(),
            tensors: Vec::new(),
        };
        let of = gguf.sources.len();
        for number in 0..of {
            let source = &gguf.sources[number];
            let (metadata, tensors) = read_part(source, number).map_err(|t| t.of(source.path()))?;
            let checked = split::check(&metadata, number, of);
            checked.map_err(|fault| Trouble::from(fault).of(source.path()))?;
            if number == 0 {
                gguf.metadata = metadata;
            }
            gguf.tensors.extend(tensors);
        }
        let checked = tensors::check_names(&gguf.tensors)
            .and_then(|()| split::check_count(&gguf.metadata, gguf.tensors.len()));
        checked.map_err(|fault| gguf.fault(fault))?;
        Ok(gguf)
    }

    /// The file, or the first part.
    pub fn path(&self) -> &Path {
        self.sources[0].path()
    }

    /// All files.
    pub fn files(&self) -> Vec<PathBuf> {
        let paths = self.sources.iter().map(|source| source.path().to_owned());
        paths.collect()
    }

    /// The keys of the first part.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors of all parts, in their order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// A whole number from 0 on, if the key is there.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.metadata.unsigned(key).map_err(|f| self.fault(f))
    }

    /// A number, if the key is there.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.float(key).map_err(|f| self.fault(f))
    }

    /// True or false, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.metadata.bool(key).map_err(|f| self.fault(f))
    }

    /// Text, if the key is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.text(key).map_err(|f| self.fault(f))
    }

    /// A list of text, read from the file, if the key is there.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let list = self.metadata.list(key).map_err(|f| self.fault(f))?;
        let texts = list.map(|list| list.texts(key, &self.sources[0]));
        texts.transpose().map_err(|t| t.of(self.path()))
    }

    /// A list of numbers, read from the file, if the key is there.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let list = self.metadata.list(key).map_err(|f| self.fault(f))?;
        let numbers = list.map(|list| list.numbers(key, &self.sources[0]));
        numbers.transpose().map_err(|t| t.of(self.path()))
    }

    /// The values of a vector of f32 that is no longer than a head is wide.
    pub(crate) fn vector(&self, tensor: &GgufTensor) -> Result<Vec<f32>> {
        let (found, most) = (tensor.numel(), 1 << 16);
        if tensor.format.plain() != Some(DType::F32) || found > most {
            let found = format!("{found} values of {}", tensor.format.name);
            let expected = format!("at most {most} values of F32");
            return Err(self.wrong_key(&tensor.name, &expected, &found));
        }
        let bytes = self.bytes_of(tensor)?;
        let mut values = vec![0.0; found];
        decode_f32(DType::F32, &bytes, &mut values);
        Ok(values)
    }

    /// The bytes of a tensor, as they are stored.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes_of(&self, tensor: &GgufTensor) -> Result<Vec<u8>> {
        self.sources[tensor.file].read_vec(tensor.offset, tensor.bytes)
    }

    /// The error of a fault in this file.
    pub fn fault(&self, fault: GgufFault) -> FormatError {
        Trouble::from(fault).of(self.path())
    }

    /// The error of a key that does not hold what it should.
    pub fn wrong_key(&self, key: &str, expected: &str, found: &str) -> FormatError {
        self.fault(GgufFault::Key {
            key: key.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        })
    }

    pub(crate) fn into_sources(self) -> Vec<Source> {
        self.sources
    }
}

/// Whether a path is that of a GGUF file, told by its name or its first bytes. A folder and a file
/// that is not there are none.
///
/// # Errors
/// The file cannot be read.
pub fn is_gguf(path: &Path) -> Result<bool> {
    let is_named = path
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    match files::is_file(path) {
        true => Ok(is_named || Source::open(path)?.begins_with(MAGIC)?),
        false => Ok(false),
    }
}

/// The keys and tensors of one file.
fn read_part(
    source: &Source,
    file: usize,
) -> std::result::Result<(Metadata, Vec<GgufTensor>), Trouble> {
    let mut cursor = Cursor::new(source, 0);
    let magic: [u8; 4] = cursor.bytes("the beginning")?;
    if magic != *MAGIC {
        let found = magic.escape_ascii().to_string();
        return Err(GgufFault::Magic { found }.into());
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        found if matches!(found.swap_bytes(), 1..=0xffff) => {
            return Err(GgufFault::BigEndian.into());
        }
        found => return Err(GgufFault::Version { found }.into()),
    }
    let (tensors, keys) = (
        cursor.u64("the count of tensors")?,
        cursor.u64("the count of keys")?,
    );
    let metadata = Metadata::read(&mut cursor, keys)?;
    let tensors = tensors::read(&mut cursor, &metadata, tensors, file)?;
    Ok((metadata, tensors))
}
