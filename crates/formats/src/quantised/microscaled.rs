//! MXFP4 in Hugging Face directories, as gpt-oss has it: blocks of 32 values e2m1, the low nibble
//! first, with an exponent each. Source: transformers 5.24 `integrations/mxfp4.py`.

use super::packed::{Files, Packed, Part, rounded};
use crate::Result;
use crate::dtype::DType;

/// Bytes of a block's codes.
pub(super) const BLOCK_BYTES: usize = 16;

/// Values in a block.
const BLOCK: usize = 2 * BLOCK_BYTES;

/// Values decoded at a time.
const AT_ONCE: usize = 1 << 16;

/// The values of e2m1's codes.
const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// Codes […, 16] in u8 and their exponents […] in u8, less by 127.
#[derive(Debug)]
pub(super) struct Microscaled {
    pub(super) blocks: Part,
    pub(super) scales: Part,
}

impl Packed for Microscaled {
    fn format(&self) -> &'static str {
        "MXFP4"
    }

    fn parts(&self) -> Vec<&Part> {
        vec![&self.blocks, &self.scales]
    }

    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let mut at = start;
        for out in out.chunks_mut(AT_ONCE) {
            let (first, end) = (at / BLOCK, (at + out.len()).div_ceil(BLOCK));
            let count = end - first;
            let codes = self
                .blocks
                .bytes(files, first * BLOCK_BYTES, count * BLOCK_BYTES)?;
            let scales = self.scales.bytes(files, first, count)?;
            for (i, value) in (at - first * BLOCK..).zip(out.iter_mut()) {
                let byte = codes[i / 2];
                let code = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
                let product = E2M1[usize::from(code)] * power_of_two(scales[i / BLOCK]);
                // transformers holds them in bf16.
                *value = rounded(product, DType::BF16);
            }
            at += out.len();
        }
        Ok(())
    }
}

/// 2^(e − 127) as f32 has it: the smallest is subnormal, the largest infinite.
fn power_of_two(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(e) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_powers_of_two() {
        for e in 0..=255u8 {
            let expected = 2f64.powi(i32::from(e) - 127) as f32;
            assert_eq!(power_of_two(e).to_bits(), expected.to_bits(), "{e}");
        }
    }
}
