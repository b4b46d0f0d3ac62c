//! PyTorch's files: the zip archives of today and the pickles in a row of before 1.6. Tensors are
//! found and checked here, and read as any other tensor; nothing in the file is executed. Knows no
//! model.

mod legacy;
mod zip;

use std::collections::HashMap;
use std::path::Path;

use crate::Result;
use crate::dtype::DType;
use crate::error::FormatError;
use crate::pickle::{Pickle, PickleFault, Tensor, ValueRef};
use crate::source::Source;

/// Where trainers put the state dict when a checkpoint holds more than that, in order of
/// preference.
const STATE_DICT_KEYS: [&str; 6] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "model_state",
    "net",
];

/// How many of those dicts may lie in one another.
const STATE_DICT_DEPTH: usize = 3;

/// An expanded tensor (one value seen many times) may have this many values before it is refused as
/// absurd.
const MOST_EXPANDED_VALUES: u64 = 1 << 20;

/// No module path is as long; one text of megabytes may name thousands of tensors.
const LONGEST_NAME: usize = 4096;

/// What is wrong with a PyTorch file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TorchFault {
    /// Its pickle is broken or asks for what is refused.
    #[error(transparent)]
    Pickle(PickleFault),
    /// Its zip archive is broken or of an unknown kind.
    #[error("its archive is damaged: {message}")]
    Archive {
        /// What is wrong.
        message: String,
    },
    /// A TorchScript program rather than a checkpoint.
    #[error("it is a TorchScript program, expected a state dict")]
    TorchScript,
    /// The tar files of before 2017.
    #[error("it is a tar archive as PyTorch wrote before version 0.1.10")]
    Tar,
    /// A pickle that no version of PyTorch wrote.
    #[error("it is a pickle, but not one written by `torch.save`: {message}")]
    NotTorch {
        /// What was expected.
        message: String,
    },
    /// Written on a big-endian machine.
    #[error("its values are stored big-endian, expected little-endian")]
    BigEndian,
    /// The data of a tensor is not where it should be.
    #[error("tensor `{name}`: {message}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// There are no tensors where a state dict was expected.
    #[error("it holds no state dict; at the top there is {found}")]
    NoStateDict {
        /// What is there instead.
        found: String,
    },
}

impl TorchFault {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            TorchFault::Pickle(PickleFault::Global { .. } | PickleFault::Opcode { .. }) => Some(
                "reading it would mean running code from the file; if you trust it, convert it with Python to safetensors".into(),
            ),
            TorchFault::Pickle(PickleFault::Ended { .. }) | TorchFault::Archive { .. } => {
                Some("the file is incomplete or damaged; download or copy it again".into())
            }
            TorchFault::TorchScript | TorchFault::Tar | TorchFault::BigEndian => {
                Some("load it in Python and save its state dict as safetensors".into())
            }
            _ => None,
        }
    }
}

/// Where the values of one storage lie in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A tensor found and checked: all of it lies inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// In elements; none if the values lie row-major without gaps.
    pub(crate) strides: Option<Vec<usize>>,
    /// Of the first value, in bytes from the file's start.
    pub(crate) offset: u64,
}

/// An open PyTorch file: the pickled value, and where the storages are.
#[derive(Debug)]
pub struct TorchFile {
    source: Source,
    pickle: Pickle,
    regions: HashMap<String, Region>,
}

impl TorchFile {
    /// Opens a file by content: zip, or the legacy pickles.
    pub fn open(path: &Path) -> Result<TorchFile> {
        TorchFile::from_source(Source::open(path)?)
    }

    /// A file in memory.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<TorchFile> {
        TorchFile::from_source(Source::from_bytes(name, bytes))
    }

    pub(crate) fn from_source(source: Source) -> Result<TorchFile> {
        let mut magic = [0; 4];
        let len = source.len().min(4) as usize;
        source.read_exact_at(&mut magic[..len], 0)?;
        if is_tar(&source)? {
            return Err(fault(&source, TorchFault::Tar));
        }
        let (pickle, regions) = if magic == *b"PK\x03\x04" {
            zip::read(&source)?
        } else {
            legacy::read(&source)?
        };
        Ok(TorchFile {
            source,
            pickle,
            regions,
        })
    }

    /// The pickled value, to be looked through.
    pub fn root(&self) -> ValueRef<'_> {
        self.pickle.root()
    }

    /// Names, types and shapes of the state dict: see
    /// [`Checkpoint::open_file`](crate::Checkpoint::open_file).
    pub(crate) fn state_dict(&self) -> Result<Vec<StoredTensor>> {
        let root = self.root();
        match state_dict_in(root, STATE_DICT_DEPTH).or_else(|| only_dict_of_tensors(root)) {
            Some(value) => self.tensors_in(value),
            // An empty dict is a state dict of nothing.
            None if root.kind() == "dict" && root.items().next().is_none() => Ok(Vec::new()),
            None => Err(fault(
                &self.source,
                TorchFault::NoStateDict {
                    found: describe(root),
                },
            )),
        }
    }

    /// The tensors directly in a dict, in its order. Other values in it are passed over.
    fn tensors_in(&self, dict: ValueRef<'_>) -> Result<Vec<StoredTensor>> {
        let mut tensors: Vec<StoredTensor> = Vec::new();
        let mut positions: HashMap<&str, usize> = HashMap::new();
        for (key, value) in dict.items() {
            let (Some(name), Some(tensor)) = (key.as_str(), value.tensor()) else {
                continue;
            };
            if name.len() > LONGEST_NAME {
                let start: String = name.chars().take(60).collect();
                return Err(fault(
                    &self.source,
                    TorchFault::Tensor {
                        name: format!("{start}…"),
                        message: format!(
                            "its name has {} bytes, expected at most {LONGEST_NAME}",
                            name.len()
                        ),
                    },
                ));
            }
            let stored = self.locate(name, tensor)?;
            match positions.get(name) {
                Some(&position) => tensors[position] = stored,
                None => {
                    positions.insert(name, tensors.len());
                    tensors.push(stored);
                }
            }
        }
        Ok(tensors)
    }

    /// Checks that every value of a tensor lies inside its storage.
    fn locate(&self, name: &str, tensor: &Tensor) -> Result<StoredTensor> {
        let refuse = |message: String| {
            let name = name.to_owned();
            fault(&self.source, TorchFault::Tensor { name, message })
        };
        let Some(region) = self.regions.get(&*tensor.storage.key) else {
            return Err(refuse(format!(
                "its storage `{}` is not in the file",
                tensor.storage.key
            )));
        };
        let size = tensor.dtype.size_bytes() as u64;
        let claimed = tensor
            .storage
            .dtype
            .map_or(1, |dtype| dtype.size_bytes() as u64)
            .checked_mul(tensor.storage.len);
        if tensor.storage.view_offset == 0 && claimed != Some(region.bytes) {
            return Err(refuse(format!(
                "its storage `{}` is said to have {} values, but {} bytes of it are in the file",
                tensor.storage.key, tensor.storage.len, region.bytes
            )));
        }
        let available = region.bytes / size;
        let absurd = || {
            refuse(format!(
                "the shape {:?} with strides {:?} is absurd",
                tensor.shape, tensor.strides
            ))
        };
        let values = values(&tensor.shape).ok_or_else(absurd)?;
        let start = tensor
            .offset
            .checked_add(tensor.storage.view_offset)
            .ok_or_else(absurd)?;
        let end = end_of(start, &tensor.shape, &tensor.strides, values).ok_or_else(absurd)?;
        if end > available {
            return Err(refuse(format!(
                "its values reach to {end}, but its storage has {available}"
            )));
        }
        if values > available.max(MOST_EXPANDED_VALUES) {
            return Err(absurd());
        }
        // An empty tensor may begin anywhere; nothing is read of it.
        let offset = if values == 0 {
            region.offset
        } else {
            region.offset + start * size
        };
        Ok(StoredTensor {
            name: name.to_owned(),
            dtype: tensor.dtype,
            strides: (!is_row_major(&tensor.shape, &tensor.strides))
                .then(|| tensor.strides.clone()),
            shape: tensor.shape.clone(),
            offset,
        })
    }

    pub(crate) fn into_source(self) -> Source {
        self.source
    }
}

/// Closure-free shorthand for an error about `source`.
pub(crate) fn fault(source: &Source, fault: TorchFault) -> FormatError {
    FormatError::Torch {
        path: source.path().to_owned(),
        fault,
    }
}

fn is_tar(source: &Source) -> Result<bool> {
    const MAGIC_OFFSET: u64 = 257;
    if source.len() < MAGIC_OFFSET + 5 {
        return Ok(false);
    }
    Ok(source.read_vec(MAGIC_OFFSET, 5)? == b"ustar" && source.read_vec(0, 1)? != [0x80])
}

/// How many tensors a dict holds under names.
fn count_tensors(value: ValueRef<'_>) -> usize {
    if value.kind() != "dict" {
        return 0;
    }
    let items = value.items();
    items
        .filter(|(key, value)| key.as_str().is_some() && value.tensor().is_some())
        .count()
}

/// The value itself or a dict at trainers' keys in it, whichever holds the most tensors: a counter
/// beside the model may be a tensor too.
fn state_dict_in(value: ValueRef<'_>, depth: usize) -> Option<ValueRef<'_>> {
    let mut best = Some(value).filter(|value| count_tensors(*value) > 0);
    if depth == 0 || value.kind() != "dict" {
        return best;
    }
    for key in STATE_DICT_KEYS {
        let inner = value
            .get(key)
            .and_then(|inner| state_dict_in(inner, depth - 1));
        let most = best.map_or(0, count_tensors);
        best = inner.filter(|inner| count_tensors(*inner) > most).or(best);
    }
    best
}

/// The one dict of tensors among the values of a dict, whatever its key.
fn only_dict_of_tensors(root: ValueRef<'_>) -> Option<ValueRef<'_>> {
    if root.kind() != "dict" {
        return None;
    }
    let mut dicts = root
        .items()
        .map(|(_, value)| value)
        .filter(|value| count_tensors(*value) > 0);
    let only = dicts.next();
    only.filter(|_| dicts.next().is_none())
}

/// The kind of a value, with the first keys if it is a dict.
fn describe(value: ValueRef<'_>) -> String {
    const SHOWN: usize = 8;
    if value.kind() != "dict" {
        return format!("a value of type {}", value.kind());
    }
    let keys: Vec<String> = value
        .items()
        .take(SHOWN)
        .map(|(key, value)| match key.as_str() {
            Some(key) => format!(
                "`{}` ({})",
                key.chars().take(60).collect::<String>(),
                value.kind()
            ),
            None => format!("a {}", key.kind()),
        })
        .collect();
    format!("a dict with {}", keys.join(", "))
}

fn values(shape: &[usize]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |count, &dimension| {
        count.checked_mul(dimension as u64)
    })
}

/// One past the last element that the tensor touches.
fn end_of(start: u64, shape: &[usize], strides: &[usize], values: u64) -> Option<u64> {
    if values == 0 {
        return Some(0);
    }
    let mut last = start;
    for (&dimension, &stride) in shape.iter().zip(strides) {
        last = last.checked_add((dimension as u64 - 1).checked_mul(stride as u64)?)?;
    }
    last.checked_add(1)
}

fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1usize;
    for (&dimension, &stride) in shape.iter().zip(strides).rev() {
        if dimension == 1 {
            continue;
        }
        if stride != expected {
            return false;
        }
        expected = expected.saturating_mul(dimension);
    }
    true
}
