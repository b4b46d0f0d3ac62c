//! Writing safetensors: the bytes that the Python library would write, under a temporary name until
//! they are complete.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::METADATA_KEY;
use crate::Result;
use crate::dtype::DType;
use crate::error::FormatError;
use crate::files::{PendingFile, write_atomic};
use crate::pyjson::to_python_json;

/// A tensor whose bytes are at hand.
#[derive(Debug, Clone)]
pub struct OutTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; empty for a single value.
    pub shape: &'a [usize],
    /// Its values, little-endian, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> OutTensor<'a> {
    /// An f32 tensor.
    pub fn f32(name: &'a str, shape: &'a [usize], values: &'a [f32]) -> OutTensor<'a> {
        OutTensor {
            name,
            dtype: DType::F32,
            shape,
            bytes: crate::dtype::f32_bytes(values),
        }
    }
}

/// A tensor whose bytes will be given while writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of all values; none if that cannot be counted.
    pub fn byte_len(&self) -> Option<u64> {
        byte_len(self.dtype, &self.shape)
    }
}

/// Writes one tensor's bytes, little-endian and row-major, to the writer.
pub type TensorData<'a> = dyn FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()> + 'a;

/// Writes tensors to `path`, atomically; equal to the bytes of Python's `save_file` for the same
/// tensors and metadata.
///
/// With more than one metadata pair the Python library's own bytes are not determined; ours are in
/// the order given.
pub fn write_safetensors(
    path: &Path,
    tensors: &[OutTensor<'_>],
    metadata: &[(String, String)],
) -> Result<()> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|tensor| TensorSpec {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
        })
        .collect();
    for (tensor, spec) in tensors.iter().zip(&specs) {
        if spec.byte_len() != Some(tensor.bytes.len() as u64) {
            return Err(unwritable(
                path,
                format!(
                    "tensor `{}` is {} {:?}, but {} bytes of it were given",
                    spec.name,
                    spec.dtype,
                    spec.shape,
                    tensor.bytes.len()
                ),
            ));
        }
    }
    write_in_order(path, &specs, metadata, &mut |index, writer| {
        writer.write_all(&tensors[index].bytes)
    })
}

/// Writes tensors to `path`, atomically, asking `data` for one after the other in the order of the
/// file: no more than one tensor need be in memory.
pub fn write_safetensors_streaming(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &[(String, String)],
    data: &mut TensorData<'_>,
) -> Result<()> {
    write_in_order(path, specs, metadata, &mut |index, writer| {
        data(&specs[index], writer)
    })
}

/// Writes the weights of a Hugging Face model into `dir`: `model.safetensors`, or, if they take
/// more than `max_shard_bytes`, `model-00001-of-0000N.safetensors` and their index. Tensors fill
/// the shards in the order given. Gives the files written.
pub fn write_model(
    dir: &Path,
    specs: &[TensorSpec],
    max_shard_bytes: u64,
    data: &mut TensorData<'_>,
) -> Result<Vec<PathBuf>> {
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let shards = split_shards(dir, specs, max_shard_bytes)?;
    if let [only] = shards.as_slice() {
        let path = dir.join("model.safetensors");
        write_safetensors_streaming(&path, only, &metadata, data)?;
        return Ok(vec![path]);
    }
    let mut paths = Vec::with_capacity(shards.len() + 1);
    let mut weight_map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let path = dir.join(&name);
        write_safetensors_streaming(&path, shard, &metadata, data)?;
        paths.push(path);
        for spec in shard {
            weight_map.insert(spec.name.clone(), name.clone().into());
        }
    }
    let total: u64 = specs.iter().filter_map(TensorSpec::byte_len).sum();
    let index =
        serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let path = dir.join("model.safetensors.index.json");
    write_atomic(&path, (to_python_json(&index) + "\n").as_bytes())?;
    paths.push(path);
    Ok(paths)
}

/// Fills shards greedily; a tensor larger than the limit has a shard to itself.
fn split_shards(dir: &Path, specs: &[TensorSpec], limit: u64) -> Result<Vec<Vec<TensorSpec>>> {
    let mut shards = vec![Vec::new()];
    let mut used = 0u64;
    for spec in specs {
        let size = spec.byte_len().ok_or_else(|| overflow(dir, spec))?;
        if used > 0 && used.saturating_add(size) > limit {
            shards.push(Vec::new());
            used = 0;
        }
        used += size;
        if let Some(last) = shards.last_mut() {
            last.push(spec.clone());
        }
    }
    Ok(shards)
}

/// Writes header and data; `data(i, writer)` gives the bytes of tensor i.
fn write_in_order(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &[(String, String)],
    data: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&specs[a], &specs[b]);
        b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))
    });
    let header = header_json(path, specs, &order, metadata)?;
    let mut file = PendingFile::create(path)?;
    let write = FormatError::io;
    file.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(write("write", path))?;
    file.write_all(header.as_bytes())
        .map_err(write("write", path))?;
    for index in order {
        let spec = &specs[index];
        let mut counted = CountedWriter {
            inner: &mut file,
            written: 0,
        };
        data(index, &mut counted).map_err(write("write", path))?;
        let expected = spec.byte_len().ok_or_else(|| overflow(path, spec))?;
        if counted.written != expected {
            return Err(unwritable(
                path,
                format!(
                    "tensor `{}` takes {expected} bytes, but {} were given",
                    spec.name, counted.written
                ),
            ));
        }
    }
    file.commit()
}

/// The header's JSON as serde writes it, padded to a multiple of 8.
fn header_json(
    path: &Path,
    specs: &[TensorSpec],
    order: &[usize],
    metadata: &[(String, String)],
) -> Result<String> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let pairs = metadata
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        header.insert(METADATA_KEY.into(), serde_json::Value::Object(pairs));
    }
    let mut names = HashSet::with_capacity(specs.len());
    let mut start = 0u64;
    for &index in order {
        let spec = &specs[index];
        if !names.insert(spec.name.as_str()) || spec.name == METADATA_KEY {
            return Err(unwritable(
                path,
                format!(
                    "tensor `{}` is given twice or has a reserved name",
                    spec.name
                ),
            ));
        }
        let end = spec
            .byte_len()
            .and_then(|len| start.checked_add(len))
            .ok_or_else(|| overflow(path, spec))?;
        header.insert(
            spec.name.clone(),
            serde_json::json!({
                "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [start, end]
            }),
        );
        start = end;
    }
    let mut json = serde_json::Value::Object(header).to_string();
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    Ok(json)
}

struct CountedWriter<'a> {
    inner: &'a mut PendingFile,
    written: u64,
}

impl Write for CountedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn byte_len(dtype: DType, shape: &[usize]) -> Option<u64> {
    shape
        .iter()
        .try_fold(dtype.size_bytes() as u64, |size, &dimension| {
            size.checked_mul(dimension as u64)
        })
}

fn overflow(path: &Path, spec: &TensorSpec) -> FormatError {
    unwritable(
        path,
        format!(
            "tensor `{}` has the absurd shape {:?}",
            spec.name, spec.shape
        ),
    )
}

fn unwritable(path: &Path, message: String) -> FormatError {
    FormatError::Unwritable {
        path: path.to_owned(),
        message,
    }
}
