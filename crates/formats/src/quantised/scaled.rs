//! Weights of 8 bits, floats (e4m3, e5m2) or whole numbers, with a scale for the tensor, each row,
//! or each block. Source: transformers 5.24 `finegrained_fp8`; compressed-tensors 0.20,
//! `float-quantized` and `int-quantized`.

use super::packed::{Files, Packed, Part, by_rows, rounded};
use crate::Result;
use crate::dtype::DType;

/// A weight and its scales.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) format: &'static str,
    pub(super) codes: Part,
    pub(super) scales: Part,
    /// Rows and columns that share a scale.
    pub(super) block: [usize; 2],
}

impl Packed for Scaled {
    fn format(&self) -> &'static str {
        self.format
    }

    fn parts(&self) -> Vec<&Part> {
        vec![&self.codes, &self.scales]
    }

    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.codes.shape[1];
        let a_row = cols.div_ceil(self.block[1]);
        let mut known: Option<(usize, Vec<f32>)> = None;
        by_rows(cols, start, out, |row, column, out| {
            let row_of_scales = row / self.block[0];
            let scales = match known.take() {
                Some((of, scales)) if of == row_of_scales => scales,
                _ => self.scales.floats(files, row_of_scales * a_row, a_row)?,
            };
            let codes = self.codes.bytes(files, row * cols + column, out.len())?;
            for (i, (value, code)) in out.iter_mut().zip(codes).enumerate() {
                let scale = scales[(column + i) / self.block[1]];
                *value = rounded(number(code, self.codes.dtype) * scale, self.scales.dtype);
            }
            known = Some((row_of_scales, scales));
            Ok(())
        })
    }
}

/// The number that 8 bits stand for.
fn number(code: u8, dtype: DType) -> f32 {
    match dtype {
        DType::I8 => f32::from(code as i8),
        // e5m2 is the upper half of f16.
        DType::F8E5M2 => half::f16::from_bits(u16::from(code) << 8).to_f32(),
        _ => e4m3(code),
    }
}

/// e4m3 without infinities: one bit of sign, four of exponent, three of fraction.
fn e4m3(code: u8) -> f32 {
    let fraction = f32::from(code & 7);
    let size = match code >> 3 & 15 {
        15 if code & 7 == 7 => f32::NAN,
        0 => fraction * 0.001_953_125,
        exponent => (1.0 + fraction / 8.0) * 2.0f32.powi(i32::from(exponent) - 7),
    };
    if code & 0x80 != 0 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_eight_bits_are_those_of_their_definition() {
        assert_eq!(
            [0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8].map(e4m3),
            [0.0, 0.001_953_125, 0.015_625, 1.0, 448.0, -1.0]
        );
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert_eq!(number(0x3c, DType::F8E5M2), 1.0);
        assert_eq!(number(0xff, DType::I8), -1.0);
    }
}
