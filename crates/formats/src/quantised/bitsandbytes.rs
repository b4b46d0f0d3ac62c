//! bitsandbytes: 4 bits (NF4 and FP4, absolute maxima perhaps quantised once more) and LLM.int8.
//! Source: bitsandbytes 0.50.

use serde_json::Value;

use super::packed::{Files, Packed, Part, by_rows, rounded};
use crate::Result;
use crate::dtype::DType;

/// 1/127 as bitsandbytes has it.
const ONE_127TH: f32 = 7.874_016e-3;

/// Bytes of a [`QuantState`] at most.
pub(super) const LARGEST_STATE: usize = 1 << 16;

/// What bitsandbytes says of one four-bit tensor, as JSON in a tensor of bytes.
pub(super) struct QuantState {
    /// Values a block, each of which has a largest one.
    pub(super) block: usize,
    pub(super) shape: Vec<usize>,
    /// Values in all.
    pub(super) count: usize,
    /// What the values were stored as before.
    pub(super) dtype: DType,
    pub(super) json: Value,
}

/// A number of JSON as a size.
pub(super) fn size(value: Option<&Value>) -> Option<usize> {
    usize::try_from(value?.as_u64()?).ok()
}

impl QuantState {
    pub(super) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let Ok(json) = serde_json::from_slice::<Value>(bytes) else {
            return Err("is no JSON object".into());
        };
        let wrong = |key: &str| format!("has no usable `{key}`");
        let block = size(json.get("blocksize")).filter(|n| n.is_power_of_two());
        let block = block.ok_or_else(|| wrong("blocksize"))?;
        let sizes = json.get("shape").and_then(Value::as_array);
        let shape = sizes.and_then(|list| list.iter().map(|n| size(Some(n))).collect());
        let shape: Vec<usize> = shape.ok_or_else(|| wrong("shape"))?;
        let dtype = match json.get("dtype").and_then(Value::as_str) {
            _ if shape.is_empty() => return Err(wrong("shape")),
            Some("float32") => DType::F32,
            Some("float16") => DType::F16,
            Some("bfloat16") => DType::BF16,
            _ => return Err(wrong("dtype")),
        };
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let count = count.filter(|n| *n > 0).ok_or_else(|| wrong("shape"))?;
        Ok(Self {
            block,
            shape,
            count,
            dtype,
            json,
        })
    }
}

/// Two values a byte, the first in the high nibble, in flat blocks that may cross rows.
#[derive(Debug)]
pub(super) struct FourBits {
    pub(super) format: &'static str,
    pub(super) codes: Part,
    pub(super) map: [f32; 16],
    pub(super) block: usize,
    pub(super) maxima: Maxima,
    /// Of the tensor that was quantised; the values are rounded to it.
    pub(super) dtype: DType,
    /// The tensors that were read when the file was opened.
    pub(super) settings: Vec<Part>,
}

/// The largest absolute value of each block.
#[derive(Debug)]
pub(super) enum Maxima {
    /// As floats.
    Plain(Part),
    /// As codes of a map, in blocks with a largest value of their own, from an offset.
    Nested {
        codes: Part,
        maxima: Part,
        map: Vec<f32>,
        block: usize,
        offset: f32,
    },
}

impl Maxima {
    fn read(&self, files: Files<'_>, start: usize, len: usize) -> Result<Vec<f32>> {
        match self {
            Maxima::Plain(part) => part.floats(files, start, len),
            Maxima::Nested {
                codes,
                maxima,
                map,
                block,
                offset,
            } => {
                let first = start / block;
                let outer = maxima.floats(files, first, (start + len).div_ceil(*block) - first)?;
                let codes = codes.bytes(files, start, len)?;
                let value = |(i, code): (usize, &u8)| {
                    let outer = outer[(start + i) / block - first];
                    map[usize::from(*code)] * outer + offset
                };
                Ok(codes.iter().enumerate().map(value).collect())
            }
        }
    }
}

impl Packed for FourBits {
    fn format(&self) -> &'static str {
        self.format
    }

    fn parts(&self) -> Vec<&Part> {
        let maxima = match &self.maxima {
            Maxima::Plain(part) => vec![part],
            Maxima::Nested { codes, maxima, .. } => vec![codes, maxima],
        };
        let codes = std::iter::once(&self.codes);
        codes.chain(maxima).chain(&self.settings).collect()
    }

    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        const BLOCK_VALUES: usize = 1 << 16;
        let mut at = start;
        for out in out.chunks_mut(BLOCK_VALUES) {
            let end = at + out.len();
            let bytes = self.codes.bytes(files, at / 2, end.div_ceil(2) - at / 2)?;
            let first = at / self.block;
            let maxima = self
                .maxima
                .read(files, first, end.div_ceil(self.block) - first)?;
            for (i, value) in (at..end).zip(out) {
                let byte = bytes[i / 2 - at / 2];
                let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
                let product = self.map[usize::from(code)] * maxima[i / self.block - first];
                *value = rounded(product, self.dtype);
            }
            at = end;
        }
        Ok(())
    }
}

/// i8 with the largest absolute value of each row.
#[derive(Debug)]
pub(super) struct EightBits {
    pub(super) codes: Part,
    pub(super) maxima: Part,
    /// `weight_format`, where it is there.
    pub(super) settings: Option<Part>,
}

impl Packed for EightBits {
    fn format(&self) -> &'static str {
        "LLM.int8"
    }

    fn parts(&self) -> Vec<&Part> {
        [&self.codes, &self.maxima]
            .into_iter()
            .chain(&self.settings)
            .collect()
    }

    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.codes.shape[1];
        by_rows(cols, start, out, |row, column, out| {
            let maximum = self.maxima.floats(files, row, 1)?[0];
            let codes = self.codes.bytes(files, row * cols + column, out.len())?;
            for (value, code) in out.iter_mut().zip(codes) {
                *value = f32::from(code as i8) * maximum * ONE_127TH;
            }
            Ok(())
        })
    }
}
