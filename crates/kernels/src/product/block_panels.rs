//! Panels of values in blocks, decoded in cache: a group's scales become two lines of f32, each
//! line of codes one more, and the products and sums are those of the format's source, bit for bit.

use std::ops::Range;

use crate::isa::Isa;
use crate::simd::{Scalar, Simd, SimdOp, dispatch, load_at, store_at};

use super::block_forms::{BlockFormat, HALF, NF4_VALUES, Scales, code_at};
use super::pack_f32::turn_panel;
use super::panels::{PANEL, PanelPart};
use super::weights::{PackedOf, Side};

type Line = [f32; PANEL];

/// A part of a panel of packed weights in f32, straight or transposed.
pub(super) fn widen(
    isa: Isa,
    format: BlockFormat,
    w: &PackedOf<u8>,
    side: Side,
    part: &PanelPart,
    out: &mut [f32],
) {
    let depth = part.depth.clone();
    assert_eq!(out.len(), depth.len() * PANEL, "lines of a panel");
    match side {
        Side::Straight => {
            assert!(depth.end <= w.depth, "the panel's depth");
            let panel = panel_of(format, w, part.panel);
            dispatch(
                isa,
                Widen {
                    format,
                    panel,
                    depth,
                    out,
                },
            );
        }
        Side::Transposed => {
            assert!(depth.end <= w.rows && depth.start.is_multiple_of(PANEL));
            dispatch(
                isa,
                WidenTransposed {
                    format,
                    w,
                    part,
                    out,
                },
            );
        }
    }
}

fn panel_of<'a>(format: BlockFormat, w: &PackedOf<'a, u8>, panel: usize) -> &'a [u8] {
    let len = format.panel_bytes(w.depth);
    &w.values[panel * len..][..len]
}

/// Some depths of a panel.
struct Widen<'a> {
    format: BlockFormat,
    panel: &'a [u8],
    depth: Range<usize>,
    out: &'a mut [f32],
}

impl SimdOp for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        lines(s, self.format, self.panel, self.depth, self.out);
    }
}

/// Some rows of W, from a panel's start on, at the 32 columns of one panel of Wᵀ.
struct WidenTransposed<'a> {
    format: BlockFormat,
    w: &'a PackedOf<'a, u8>,
    part: &'a PanelPart,
    out: &'a mut [f32],
}

impl SimdOp for WidenTransposed<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WidenTransposed {
            format,
            w,
            part,
            out,
        } = self;
        let first = part.panel * PANEL;
        let columns = first..(first + PANEL).min(w.depth);
        let mut values = [0.0f32; PANEL * PANEL];
        let from = part.depth.start / PANEL;
        for (i, out) in out.chunks_mut(PANEL * PANEL).enumerate() {
            let values = &mut values[..columns.len() * PANEL];
            let panel = panel_of(format, w, from + i);
            lines(s, format, panel, columns.clone(), values);
            turn_panel(s, values, [out.len() / PANEL, columns.len()], 0, out);
        }
    }
}

/// Some depths of a panel, which begin and end at multiples of 16.
#[inline(always)]
fn lines<S: Simd>(s: S, format: BlockFormat, panel: &[u8], depth: Range<usize>, out: &mut [f32]) {
    match (format.bits(), format.has_min()) {
        (4, _) if format == BlockFormat::Nf4 => groups::<S, Mapped>(s, format, panel, depth, out),
        (4, false) => groups::<S, Coded<4, false>>(s, format, panel, depth, out),
        (4, true) => groups::<S, Coded<4, true>>(s, format, panel, depth, out),
        (5, false) => groups::<S, Coded<5, false>>(s, format, panel, depth, out),
        (5, true) => groups::<S, Coded<5, true>>(s, format, panel, depth, out),
        (6, _) => groups::<S, Coded<6, false>>(s, format, panel, depth, out),
        _ => groups::<S, Coded<8, false>>(s, format, panel, depth, out),
    }
}

/// How codes become values.
trait Decode {
    /// `LANES` values from column `j` of a depth of a group on, before they are scaled.
    ///
    /// # Safety
    /// `codes` are those of a whole group of such codes, `depth` is in it, and LANES columns from
    /// `j` on lie in one half of the panel.
    unsafe fn unscaled<S: Simd>(
        s: S,
        codes: *const u8,
        group: usize,
        depth: usize,
        j: usize,
    ) -> S::V;

    /// Whether something is added to what is scaled.
    const HAS_MIN: bool;

    /// What is taken from the values before they are scaled.
    fn offset(format: BlockFormat) -> f32;
}

/// Integers of some bits.
struct Coded<const BITS: usize, const MIN: bool>;

/// Codes of a table.
struct Mapped;

impl<const BITS: usize, const MIN: bool> Decode for Coded<BITS, MIN> {
    const HAS_MIN: bool = MIN;

    #[inline(always)]
    unsafe fn unscaled<S: Simd>(
        s: S,
        codes: *const u8,
        group: usize,
        depth: usize,
        j: usize,
    ) -> S::V {
        // SAFETY: the caller's contract; see `block_forms::put` for what stands where.
        let code = unsafe {
            if BITS == 8 {
                s.load_bytes(codes.add(depth * PANEL + j))
            } else {
                let low = low_bits(s, codes, depth, j);
                let high = codes.add(group * HALF);
                match BITS {
                    5 => {
                        let bits = s.load_bytes(high.add(depth / 8 * PANEL + j));
                        let bits = s.shr_u(s.shl_u(bits, 4), (depth % 8) as u32);
                        s.or_u(low, s.and_u(bits, s.splat_u(16)))
                    }
                    6 => {
                        let bits = s.load_bytes(high.add(depth / 4 * PANEL + j));
                        let bits = s.shr_u(s.shl_u(bits, 4), 2 * (depth % 4) as u32);
                        s.or_u(low, s.and_u(bits, s.splat_u(48)))
                    }
                    _ => low,
                }
            }
        };
        s.to_f32(code)
    }

    #[inline(always)]
    fn offset(format: BlockFormat) -> f32 {
        f32::from(format.offset())
    }
}

impl Decode for Mapped {
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn unscaled<S: Simd>(s: S, codes: *const u8, _: usize, depth: usize, j: usize) -> S::V {
        // SAFETY: the caller's contract.
        s.lookup(&NF4_VALUES, unsafe { low_bits(s, codes, depth, j) })
    }

    #[inline(always)]
    fn offset(_: BlockFormat) -> f32 {
        0.0
    }
}

/// The four low bits of `LANES` columns of a depth, of which two share a byte.
///
/// # Safety
/// As [`Decode::unscaled`].
#[inline(always)]
unsafe fn low_bits<S: Simd>(s: S, codes: *const u8, depth: usize, j: usize) -> S::U {
    // SAFETY: the caller's contract.
    let both = unsafe { s.load_bytes(codes.add(depth * HALF + j % HALF)) };
    match j < HALF {
        true => s.and_u(both, s.splat_u(15)),
        false => s.shr_u(both, 4),
    }
}

#[inline(always)]
fn groups<S: Simd, D: Decode>(
    s: S,
    format: BlockFormat,
    panel: &[u8],
    depth: Range<usize>,
    out: &mut [f32],
) {
    let (block, group) = (format.block(), format.group());
    let offset = s.splat(D::offset(format));
    let mut at = depth.start;
    let mut rest = out;
    while at < depth.end {
        let bytes = &panel[at / block * format.block_bytes()..][..format.block_bytes()];
        let (head, bytes) = bytes.split_at(format.block_head());
        let bytes = &bytes[at % block / group * format.group_bytes()..][..format.group_bytes()];
        let (own, codes) = bytes.split_at(format.group_head());
        let factors = factors_of(s, format.scales(), head, own);
        let within = at % group;
        let len = (group - within).min(depth.end - at);
        let (these, after) = rest.split_at_mut(len * PANEL);
        for j in (0..PANEL).step_by(S::LANES) {
            let scale = load_at(s, &factors[0], j, S::LANES);
            let min = load_at(s, &factors[1], j, S::LANES);
            for i in 0..len {
                // SAFETY: the slice holds a whole group, and LANES divides half a panel.
                let code = unsafe { D::unscaled(s, codes.as_ptr(), group, within + i, j) };
                let value = s.mul(scale, s.sub(code, offset));
                let value = if D::HAS_MIN { s.add(value, min) } else { value };
                // SAFETY: `these` holds whole lines of PANEL values, `len` of them.
                unsafe { s.store(these.as_mut_ptr().add(i * PANEL + j), value) };
            }
        }
        at += len;
        rest = after;
    }
}

/// What the values of a group are multiplied with, and what is added then, for each column.
#[inline(always)]
fn factors_of<S: Simd>(s: S, scales: Scales, head: &[u8], own: &[u8]) -> [Line; 2] {
    let [mut scale, mut min] = [[0.0; PANEL]; 2];
    match scales {
        Scales::Half => halves(s, head, &mut scale),
        Scales::HalfAndMin => {
            halves(s, head, &mut scale);
            halves(s, &head[2 * PANEL..], &mut min);
        }
        Scales::Single => {
            for (scale, bits) in scale.iter_mut().zip(head.as_chunks::<4>().0) {
                *scale = f32::from_le_bytes(*bits);
            }
        }
        Scales::SuperSigned => {
            halves(s, head, &mut scale);
            times_bytes(s, own, 128.0, &mut scale);
        }
        Scales::Super => {
            halves(s, head, &mut scale);
            times_bytes(s, own, 0.0, &mut scale);
            halves(s, &head[2 * PANEL..], &mut min);
            times_bytes(s, &own[PANEL..], 0.0, &mut min);
            for value in &mut min {
                *value = -*value;
            }
        }
    }
    [scale, min]
}

/// A line of f16 values, widened.
#[inline(always)]
fn halves<S: Simd>(s: S, bytes: &[u8], out: &mut Line) {
    assert!(bytes.len() >= 2 * PANEL && S::LANES <= HALF);
    for j in (0..HALF).step_by(S::LANES) {
        // SAFETY: the words lie inside the bytes.
        let words = unsafe { s.load_u(bytes.as_ptr().cast::<u32>().add(j)) };
        store_at(s, out, j, widened_half(s, words), S::LANES);
        let high = s.shr16_u(words);
        store_at(s, out, HALF + j, widened_half(s, high), S::LANES);
    }
}

/// 2¹¹²: by which an f32 with the exponent of an f16 is too small.
const TWO_TO_112: u32 = 0x7780_0000;

/// The f16 in the low half of each lane, which is finite. A product with a power of two is exact,
/// small values included.
#[inline(always)]
fn widened_half<S: Simd>(s: S, words: S::U) -> S::V {
    let magnitude = s.shl_u(s.and_u(words, s.splat_u(0x7fff)), 13);
    let magnitude = s.mul(s.of_bits(magnitude), s.splat(f32::from_bits(TWO_TO_112)));
    let sign = s.shl_u(s.and_u(words, s.splat_u(0x8000)), 16);
    s.of_bits(s.or_u(s.to_bits(magnitude), sign))
}

/// out *= bytes − offset.
#[inline(always)]
fn times_bytes<S: Simd>(s: S, bytes: &[u8], offset: f32, out: &mut Line) {
    assert!(bytes.len() >= PANEL);
    for j in (0..PANEL).step_by(S::LANES) {
        // SAFETY: the lanes lie inside the bytes.
        let factor = s.to_f32(unsafe { s.load_bytes(bytes.as_ptr().add(j)) });
        let factor = s.sub(factor, s.splat(offset));
        let value = s.mul(load_at(s, out, j, S::LANES), factor);
        store_at(s, out, j, value, S::LANES);
    }
}

/// The row-major [n, k] matrix of a packed form. Panics if a length disagrees.
pub(super) fn unpack(format: BlockFormat, w: &PackedOf<u8>, dst: &mut [f32]) {
    assert_eq!(dst.len(), w.rows * w.depth);
    let mut values = vec![0.0; w.depth * PANEL];
    for (panel, rows) in dst.chunks_mut((w.depth * PANEL).max(1)).enumerate() {
        let panel = panel_of(format, w, panel);
        lines(Scalar, format, panel, 0..w.depth, &mut values);
        for (j, row) in rows.chunks_exact_mut(w.depth).enumerate() {
            let column = values.iter().skip(j).step_by(PANEL);
            row.iter_mut()
                .zip(column)
                .for_each(|(to, from)| *to = *from);
        }
    }
}

/// sum += a row of packed weights.
pub(super) fn add_row(format: BlockFormat, w: &PackedOf<u8>, row: usize, sum: &mut [f32]) {
    let panel = panel_of(format, w, row / PANEL);
    let (j, block) = (row % PANEL, format.block());
    let blocks = panel.chunks_exact(format.block_bytes());
    for (sum, bytes) in sum.chunks_exact_mut(block).zip(blocks) {
        let (head, rest) = bytes.split_at(format.block_head());
        let each = rest.chunks_exact(format.group_bytes());
        for (sum, bytes) in sum.chunks_exact_mut(format.group()).zip(each) {
            let (own, codes) = bytes.split_at(format.group_head());
            let factors = factors_of(Scalar, format.scales(), head, own);
            let [scale, min] = factors.map(|line| line[j]);
            for (depth, sum) in sum.iter_mut().enumerate() {
                let value = scale * format.unscaled(code_at(format, codes, depth, j));
                *sum += if format.has_min() { value + min } else { value };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_f16_has_its_value() {
        for bits in 0..=u16::MAX {
            let value = half::f16::from_bits(bits);
            if value.is_finite() {
                assert_eq!(
                    widened_half(Scalar, u32::from(bits)).to_bits(),
                    value.to_f32().to_bits(),
                    "{bits:x}"
                );
            }
        }
    }
}
