//! A quantised model, or a GGUF file, written as a plain model directory.

use std::path::Path;

use lowrank_formats::{Converted, DType};

use crate::error::RunResult;
use crate::result::MAX_SHARD_BYTES;
use crate::side_files::Copied;
use crate::targets::Target;

/// Writes the weights of `model` in `dtype`, and gives what was written and what was copied beside.
///
/// # Errors
/// The model cannot be read, or the disk refuses.
pub fn convert(model: &Path, target: &Target<'_>, dtype: DType) -> RunResult<(Converted, Copied)> {
    let (pending, beside) = target.begin(model)?;
    let written = lowrank_formats::convert(model, pending.path(), dtype, MAX_SHARD_BYTES)?;
    target.finish(pending)?;
    Ok((written, beside))
}
