//! Blocks taken apart: the codes of the values and the scales as they are stored, for readers that
//! keep a matrix as the file has it. Each type's order of bits is read here once more than where it
//! is decoded; a test holds the two against each other. Source: gguf-py 0.19, `quants.py`.

use super::k_blocks::scales_and_minima;
use super::small_blocks::u32_at;

/// Values in blocks, row by row: what they are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockParts {
    /// A code for each value, from zero: of Q8_0 with 128 added.
    pub codes: Vec<u8>,
    /// Of each group of values with a scale of its own: the bits of an f16, or a byte.
    pub scales: Vec<u32>,
    /// Of each group what is added, likewise; empty where the type has none.
    pub mins: Vec<u32>,
    /// Of each block the bits of d and dmin; empty where groups stand alone.
    pub supers: Vec<[u16; 2]>,
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Takes one block apart.
pub(super) type TakeApart = fn(&[u8], &mut BlockParts);

/// As its decoding has it, like those below.
pub(super) fn q4_0(block: &[u8], parts: &mut BlockParts) {
    parts.scales.push(u32::from(u16_at(block, 0)));
    nibbles(&block[2..], 0, parts);
}

pub(super) fn q4_1(block: &[u8], parts: &mut BlockParts) {
    parts.scales.push(u32::from(u16_at(block, 0)));
    parts.mins.push(u32::from(u16_at(block, 2)));
    nibbles(&block[4..], 0, parts);
}

pub(super) fn q5_0(block: &[u8], parts: &mut BlockParts) {
    parts.scales.push(u32::from(u16_at(block, 0)));
    nibbles(&block[6..], u32_at(block, 2), parts);
}

pub(super) fn q5_1(block: &[u8], parts: &mut BlockParts) {
    parts.scales.push(u32::from(u16_at(block, 0)));
    parts.mins.push(u32::from(u16_at(block, 2)));
    nibbles(&block[8..], u32_at(block, 4), parts);
}

pub(super) fn q8_0(block: &[u8], parts: &mut BlockParts) {
    parts.scales.push(u32::from(u16_at(block, 0)));
    parts.codes.extend(block[2..].iter().map(|q| q ^ 128));
}

pub(super) fn q4_k(block: &[u8], parts: &mut BlockParts) {
    k_block(block, &[0; 32], &block[16..], parts);
}

pub(super) fn q5_k(block: &[u8], parts: &mut BlockParts) {
    k_block(block, &block[16..48], &block[48..], parts);
}

impl BlockParts {
    /// The first scale of 16 bits that is no finite number.
    pub fn not_finite(&self) -> Option<f32> {
        let halves = self
            .scales
            .iter()
            .chain(&self.mins)
            .map(|bits| *bits as u16);
        let mut halves = halves.chain(self.supers.iter().flatten().copied());
        let bits = halves.find(|bits| bits & 0x7c00 == 0x7c00)?;
        Some(half::f16::from_bits(bits).to_f32())
    }
}

/// 32 codes: the low nibbles of 16 bytes, then the high ones, each with a fifth bit.
fn nibbles(bytes: &[u8], fifth: u32, parts: &mut BlockParts) {
    let bit = |at: usize| ((fifth >> at) as u8 & 1) << 4;
    let low = bytes.iter().enumerate().map(|(i, q)| q & 15 | bit(i));
    parts.codes.extend(low);
    let high = bytes.iter().enumerate().map(|(i, q)| q >> 4 | bit(i + 16));
    parts.codes.extend(high);
}

/// Eight groups of 32 with scale and minimum, nibbles in pairs of groups, perhaps fifth bits.
fn k_block(block: &[u8], fifth: &[u8], codes: &[u8], parts: &mut BlockParts) {
    parts.supers.push([u16_at(block, 0), u16_at(block, 2)]);
    let (scales, minima) = scales_and_minima(&block[4..16]);
    parts.scales.extend(scales.map(u32::from));
    parts.mins.extend(minima.map(u32::from));
    for group in 0..8 {
        let (codes, shift) = (&codes[group / 2 * 32..][..32], group % 2 * 4);
        let codes = codes.iter().zip(fifth);
        let code = |(q, bits): (&u8, &u8)| (q >> shift & 15) | (bits >> group & 1) << 4;
        parts.codes.extend(codes.map(code));
    }
}

/// Sixteen groups of 16 with a signed scale; see [`super::k_blocks::q6_k`] for the bits.
pub(super) fn q6_k(block: &[u8], parts: &mut BlockParts) {
    let (low, high) = (&block[..128], &block[128..192]);
    parts.supers.push([u16_at(block, 208), 0]);
    parts
        .scales
        .extend(block[192..208].iter().map(|scale| u32::from(*scale)));
    for group in 0..16 {
        let (half, within) = (group / 8, group % 8);
        let low = &low[half * 64 + within % 4 * 16..][..16];
        let high = &high[half * 32 + within % 2 * 16..][..16];
        let (low_shift, high_shift) = (within / 4 * 4, within / 2 * 2);
        let code =
            |(low, high): (&u8, &u8)| (low >> low_shift & 15) | (high >> high_shift & 3) << 4;
        parts.codes.extend(low.iter().zip(high).map(code));
    }
}
