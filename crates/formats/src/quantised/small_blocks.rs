//! Blocks of 32 values: a scale, perhaps a minimum, and 4, 5 or 8 bits a value. The low nibbles of
//! the 16 bytes are the first 16 values, the high nibbles the last 16. Source: gguf-py 0.19,
//! `quants.py`.

use super::blocks::{each, half_at};

/// The values of IQ4's codes.
pub(super) const IQ4_VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Twice the values of e2m1's codes, whose scale is half.
const E2M1_DOUBLED: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

/// Values of the low nibbles, then of the high ones.
fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// The same with a fifth bit each from `high_bits`, the lowest first.
fn nibbles_and_bit(bytes: &[u8], high_bits: u32, out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    for (i, byte) in bytes.iter().enumerate() {
        let bit = |at: usize| ((high_bits >> at) as u8 & 1) << 4;
        out[i] = value(byte & 15 | bit(i));
        out[i + 16] = value(byte >> 4 | bit(i + 16));
    }
}

pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// f16 d, nibbles: d·(q − 8).
pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 18], out| {
        let d = half_at(block, 0);
        nibbles(&block[2..], out, |q| d * (f32::from(q) - 8.0));
    });
}

/// f16 d, f16 m, nibbles: d·q + m.
pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 20], out| {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        nibbles(&block[4..], out, |q| d * f32::from(q) + m);
    });
}

/// f16 d, 32 high bits, nibbles: d·(q − 16).
pub(super) fn q5_0(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 22], out| {
        let (d, bits) = (half_at(block, 0), u32_at(block, 2));
        nibbles_and_bit(&block[6..], bits, out, |q| d * (f32::from(q) - 16.0));
    });
}

/// f16 d, f16 m, 32 high bits, nibbles: d·q + m.
pub(super) fn q5_1(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 24], out| {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        let bits = u32_at(block, 4);
        nibbles_and_bit(&block[8..], bits, out, |q| d * f32::from(q) + m);
    });
}

/// f16 d, 32 i8: d·q.
pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 34], out: &mut [f32; 32]| {
        let d = half_at(block, 0);
        for (value, q) in out.iter_mut().zip(&block[2..]) {
            *value = f32::from(*q as i8) * d;
        }
    });
}

/// f16 d, nibbles that are codes of a table: d·table[q].
pub(super) fn iq4_nl(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 18], out| {
        let d = half_at(block, 0);
        nibbles(&block[2..], out, |q| d * IQ4_VALUES[usize::from(q)]);
    });
}

/// An exponent e8m0, nibbles that are e2m1: 2^(e − 128)·(2·value).
pub(super) fn mxfp4(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 17], out| {
        let d = half_of_e8m0(block[0]);
        nibbles(&block[1..], out, |q| d * E2M1_DOUBLED[usize::from(q)]);
    });
}

/// 2^(e − 128); the two smallest are subnormal.
fn half_of_e8m0(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}
