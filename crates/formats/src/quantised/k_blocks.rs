//! Blocks of 256 values in groups of 16 or 32, each group with a scale (and a minimum) of its own
//! that is stored in few bits beside an f16 for all. Source: gguf-py 0.19, `quants.py`.

use super::blocks::{each, half_at};
use super::small_blocks::IQ4_VALUES;

/// Eight scales and eight minima of 6 bits in 12 bytes.
pub(super) fn scales_and_minima(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (d, m, both) = (bytes[i], bytes[i + 4], bytes[i + 8]);
        scales[i] = d & 0x3f;
        minima[i] = m & 0x3f;
        scales[i + 4] = (both & 15) | (d >> 2 & 0x30);
        minima[i + 4] = (both >> 4) | (m >> 2 & 0x30);
    }
    (scales, minima)
}

/// 16 bytes of scale (low nibble) and minimum (high), 64 bytes of 2 bits, f16 d, f16 dmin: d·sc·q −
/// dmin·m.
pub(super) fn q2_k(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 84], out: &mut [f32; 256]| {
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        let (scales, codes) = block[..80].split_at(16);
        for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let dl = d * f32::from(scales[group] & 15);
            let ml = dmin * f32::from(scales[group] >> 4);
            // Four layers of 2 bits over 32 bytes, for each half of the block.
            let (from, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
            for (value, byte) in values.iter_mut().zip(&codes[from..]) {
                *value = dl * f32::from(byte >> shift & 3) - ml;
            }
        }
    });
}

/// 32 bytes of high bits, 64 bytes of 2 bits, 12 bytes of 16 scales of 6 bits, f16 d: d·(sc −
/// 32)·(q − 4·no high bit).
pub(super) fn q3_k(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 110], out: &mut [f32; 256]| {
        let d = half_at(block, 108);
        let (mask, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
        for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let low = packed[group % 8] >> (group / 8 * 4) & 15;
            let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
            let dl = d * (f32::from(low | high << 4) - 32.0);
            let (half, shift, bit) = (group / 8 * 32, group % 8 / 2 * 2, group / 2);
            let column = group % 2 * 16;
            for (i, value) in values.iter_mut().enumerate() {
                let q = codes[half + column + i] >> shift & 3;
                // The offset is zero where the bit is set.
                let offset = 4 * (mask[column + i] >> bit & 1 ^ 1);
                *value = dl * (f32::from(q) - f32::from(offset));
            }
        }
    });
}

/// f16 d, f16 dmin, 12 bytes of scales and minima, nibbles in 4 groups of 64, low 32 then high 32:
/// d·sc·q − dmin·m.
pub(super) fn q4_k(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 144], out: &mut [f32; 256]| {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, minima) = scales_and_minima(&block[4..16]);
        let codes = block[16..].as_chunks::<32>().0;
        for (pair, (values, codes)) in out
            .as_chunks_mut::<64>()
            .0
            .iter_mut()
            .zip(codes)
            .enumerate()
        {
            let of = |i: usize| (d * f32::from(scales[i]), dmin * f32::from(minima[i]));
            let ((d_low, m_low), (d_high, m_high)) = (of(2 * pair), of(2 * pair + 1));
            let (low, high) = values.split_at_mut(32);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(codes) {
                *low = d_low * f32::from(byte & 15) - m_low;
                *high = d_high * f32::from(byte >> 4) - m_high;
            }
        }
    });
}

/// As [`q4_k`] with 32 bytes of fifth bits between scales and nibbles.
pub(super) fn q5_k(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 176], out: &mut [f32; 256]| {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, minima) = scales_and_minima(&block[4..16]);
        let (bits, codes) = (&block[16..48], &block[48..]);
        for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (d, m) = (
                d * f32::from(scales[group]),
                dmin * f32::from(minima[group]),
            );
            let (codes, shift) = (&codes[group / 2 * 32..], group % 2 * 4);
            for ((value, byte), bits) in values.iter_mut().zip(codes).zip(bits) {
                let q = (byte >> shift & 15) | (bits >> group & 1) << 4;
                *value = d * f32::from(q) - m;
            }
        }
    });
}

/// 128 bytes of low nibbles, 64 bytes of 2 high bits, 16 i8 scales, f16 d: d·sc·(q − 32).
pub(super) fn q6_k(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 210], out: &mut [f32; 256]| {
        let d = half_at(block, 208);
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = d * f32::from(scales[group] as i8);
            // Of each half: low nibbles of 64 bytes, then their high ones; 2 bits in four layers
            // over 32 bytes.
            let (half, within) = (group / 8, group % 8);
            let low = &low[half * 64 + within % 4 * 16..];
            let high = &high[half * 32 + within % 2 * 16..];
            let (low_shift, high_shift) = (within / 4 * 4, within / 2 * 2);
            for ((value, low), high) in values.iter_mut().zip(low).zip(high) {
                let q = (low >> low_shift & 15) | (high >> high_shift & 3) << 4;
                *value = d * (f32::from(q) - 32.0);
            }
        }
    });
}

/// f16 d, 8 high pairs of bits and 8 low nibbles of scales, nibbles that are codes of a table:
/// d·(sc − 32)·table[q].
pub(super) fn iq4_xs(bytes: &[u8], out: &mut [f32]) {
    each(bytes, out, |block: &[u8; 136], out: &mut [f32; 256]| {
        let d = half_at(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        let (low, codes) = (&block[4..8], &block[8..]);
        for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = low[group / 2] >> (group % 2 * 4) & 15;
            let high = (high >> (2 * group)) as u8 & 3;
            let d = d * (f32::from(low | high << 4) - 32.0);
            let (first, second) = values.split_at_mut(16);
            for ((first, second), byte) in first.iter_mut().zip(second).zip(&codes[16 * group..]) {
                *first = d * IQ4_VALUES[usize::from(byte & 15)];
                *second = d * IQ4_VALUES[usize::from(byte >> 4)];
            }
        }
    });
}
