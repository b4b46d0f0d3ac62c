//! A model in plain values: every tensor decoded and written again, block by block, with the
//! configuration beside it. Knows no model: a family need not be known for its files to be
//! converted.

use std::path::Path;

use serde_json::json;

use crate::checkpoint::Checkpoint;
use crate::config::read_model_config;
use crate::dtype::{DType, encode_f32, fits};
use crate::error::FormatError;
use crate::pyjson::to_python_json;
use crate::safetensors::{TensorSpec, write_model};
use crate::{Result, write_atomic};

/// Values decoded at a time.
const BLOCK_VALUES: usize = 1 << 16;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converted {
    /// Tensors.
    pub tensors: usize,
    /// Of them those that were packed.
    pub unpacked: usize,
    /// Bytes of the weights.
    pub bytes: u64,
}

/// Writes the weights and the configuration of the model in `model`, a folder or a GGUF file, into
/// the folder `dir`, which must exist. Floats get the type `dtype`, f32, f16 or bf16; whole numbers
/// stay as they are.
///
/// # Errors
/// Files that cannot be read or written; values that `dtype` cannot hold.
pub fn convert(model: &Path, dir: &Path, dtype: DType, max_shard_bytes: u64) -> Result<Converted> {
    let checkpoint = Checkpoint::open_model(model)?;
    let specs: Vec<TensorSpec> = checkpoint
        .infos()
        .map(|info| TensorSpec {
            name: info.name.clone(),
            dtype: if info.dtype.is_float() {
                dtype
            } else {
                info.dtype
            },
            shape: info.shape.clone(),
        })
        .collect();
    // An error of reading is not one of the file that is written.
    let mut fault = None;
    let written = write_model(dir, &specs, max_shard_bytes, &mut |spec, out| {
        copy(&checkpoint, spec, out).map_err(|error| match error {
            Trouble::Writing(error) => error,
            Trouble::Values(error) => {
                let message = error.to_string();
                fault = Some(error);
                std::io::Error::other(message)
            }
        })
    });
    if let Some(fault) = fault {
        return Err(fault);
    }
    written?;
    let mut config = read_model_config(model)?;
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        let key = match fields.contains_key("dtype") {
            true => "dtype",
            false => "torch_dtype",
        };
        fields.insert(key.to_owned(), json!(name));
    }
    let text = format!("{}\n", to_python_json(&config));
    write_atomic(&dir.join("config.json"), text.as_bytes())?;
    Ok(Converted {
        tensors: specs.len(),
        unpacked: checkpoint.infos().filter(|t| t.packed.is_some()).count(),
        bytes: specs.iter().filter_map(TensorSpec::byte_len).sum(),
    })
}

enum Trouble {
    Writing(std::io::Error),
    Values(FormatError),
}

/// Writes one tensor's values.
fn copy(
    checkpoint: &Checkpoint,
    spec: &TensorSpec,
    out: &mut dyn std::io::Write,
) -> std::result::Result<(), Trouble> {
    let Some(info) = checkpoint.info(&spec.name) else {
        unreachable!("the list was made of the checkpoint's tensors");
    };
    let count = info.numel();
    let mut values = Vec::new();
    for start in (0..count).step_by(BLOCK_VALUES) {
        let len = BLOCK_VALUES.min(count - start);
        let bytes = if info.dtype.is_float() {
            values.resize(len, 0.0);
            let read = checkpoint.read_f32_range(&spec.name, start, &mut values);
            read.map_err(Trouble::Values)?;
            if let Some(at) = values.iter().position(|value| !fits(*value, spec.dtype)) {
                return Err(Trouble::Values(FormatError::Unwritable {
                    path: checkpoint.path().to_owned(),
                    message: format!(
                        "value {} of `{}` is {:e}, which is no finite {}",
                        start + at,
                        spec.name,
                        values[at],
                        spec.dtype
                    ),
                }));
            }
            encode_f32(&values, spec.dtype)
        } else {
            let bytes = checkpoint.read_bytes_range(&spec.name, start, len);
            bytes.map_err(Trouble::Values)?
        };
        out.write_all(&bytes).map_err(Trouble::Writing)?;
    }
    Ok(())
}
