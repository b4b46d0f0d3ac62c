//! A tensor whose values are packed into several others: codes, scales, zeros. The parts are read
//! by position, those that a stretch of values needs and no more. Knows no configuration.

use crate::Result;
use crate::dtype::{DType, decode_f32, decode_i64};
use crate::source::Source;

/// One stored tensor of a packed one.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) file: usize,
    pub(crate) offset: u64,
}

impl Part {
    /// Values.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in its file.
    pub(crate) fn byte_len(&self) -> u64 {
        (self.count() * self.dtype.size_bytes()) as u64
    }

    /// The bytes of values `start..start + len`.
    pub(crate) fn bytes(&self, files: Files<'_>, start: usize, len: usize) -> Result<Vec<u8>> {
        let size = self.dtype.size_bytes();
        let offset = self.offset + (start * size) as u64;
        files.0[self.file].read_vec(offset, (len * size) as u64)
    }

    /// Floats `start..start + len`.
    pub(crate) fn floats(&self, files: Files<'_>, start: usize, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        decode_f32(self.dtype, &self.bytes(files, start, len)?, &mut values);
        Ok(values)
    }

    /// Whole numbers `start..start + len`.
    pub(crate) fn integers(&self, files: Files<'_>, start: usize, len: usize) -> Result<Vec<i64>> {
        Ok(decode_i64(self.dtype, &self.bytes(files, start, len)?))
    }

    /// Words of 32 bits `start..start + len`.
    pub(crate) fn words(&self, files: Files<'_>, start: usize, len: usize) -> Result<Vec<u32>> {
        let bytes = self.bytes(files, start, len)?;
        let words = bytes.as_chunks::<4>().0.iter();
        Ok(words.map(|word| u32::from_le_bytes(*word)).collect())
    }
}

/// The open files of a checkpoint.
#[derive(Clone, Copy)]
pub(crate) struct Files<'a>(pub(crate) &'a [Source]);

/// How values are packed.
pub(crate) trait Packed: std::fmt::Debug + Send + Sync {
    /// The format's name.
    fn format(&self) -> &'static str;

    /// Every stored tensor that the values are made of.
    fn parts(&self) -> Vec<&Part>;

    /// The values `start..start + out.len()` in row-major order; the range is inside the tensor.
    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()>;
}

/// A value as a tensor of this type holds it: what the reference computes in, it also rounds to.
pub(super) fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(value).to_f32(),
        DType::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Calls `read` for each stretch of a row in `start..start + out.len()`: row, first column, values.
pub(super) fn by_rows(
    cols: usize,
    start: usize,
    out: &mut [f32],
    mut read: impl FnMut(usize, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let (mut at, mut rest) = (start, out);
    while !rest.is_empty() {
        let within = at % cols;
        let (part, after) = rest.split_at_mut((cols - within).min(rest.len()));
        read(at / cols, within, part)?;
        at += part.len();
        rest = after;
    }
    Ok(())
}
