//! Rotary position embedding: pairs of a head's elements are turned by angles that grow with the
//! token's position.
//!
//! Nothing here knows how frequencies are scaled for long contexts: the table of cosines and sines
//! is an argument.

use crate::element::Element;
use crate::elementwise::convert_in;
use crate::isa::Isa;
use crate::parallel::{CHUNK, for_each_chunk, rows_per_task};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Element i of the first half with element i of the second, as in GPT-NeoX and Llama.
    HalfSplit,
    /// Neighbours, as in GPT-J, GLM and Cohere.
    Interleaved,
}

/// Arguments of [`rope_forward`] and [`rope_backward`] beside the rows.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that are turned, from its start on: an even number up to `head_dim`. The
    /// others stay as they are.
    pub rotary_dim: usize,
    /// The pairs.
    pub layout: RopeLayout,
    /// Cosines [positions, rotary_dim / 2].
    pub cos: &'a [f32],
    /// Sines [positions, rotary_dim / 2].
    pub sin: &'a [f32],
    /// The position of each token `[M]`: the row of the table that it takes.
    pub positions: &'a [u32],
}

/// Turns each pair (a, b) of each head to (a cos - b sin, b cos + a sin), in place. Shape:
/// x [M, heads * head_dim].
///
/// Two products and a sum, each rounded to f32: on a table of the same bits, those of transformers
/// in f32, whatever the instruction set. A stored bf16 is widened before and rounded once, after
/// the sum: as Cohere's `apply_rotary_pos_emb` does, while Llama's rounds the table and both
/// products too.
///
/// Panics if a length disagrees or a position has no row in the table. Source: Su et al. 2021,
/// equation 34; transformers 5.24, `apply_rotary_pos_emb` of `LlamaModel` and of `GlmModel`.
pub fn rope_forward<E: Element>(isa: Isa, rope: &Rope, x: &mut [E]) {
    rotate(isa, rope, 1.0, x);
}

/// The gradient of [`rope_forward`], in place: the inverse rotation. Rounds and panics as it does.
/// Shape: d_x [M, heads * head_dim].
pub fn rope_backward<E: Element>(isa: Isa, rope: &Rope, d_x: &mut [E]) {
    rotate(isa, rope, -1.0, d_x);
}

/// 1 / theta^(2i / rotary_dim) for each pair i.
///
/// Exponent, power and quotient are rounded to f32 as in transformers, whose power differs from
/// ours by a unit in the last place in about one of a hundred values. Panics if `rotary_dim` is
/// odd.
pub fn rope_inverse_frequencies(theta: f64, rotary_dim: usize) -> Vec<f32> {
    assert!(rotary_dim.is_multiple_of(2), "{rotary_dim} has no pairs");
    let exponents = (0..rotary_dim / 2).map(|i| (2 * i) as f32 / rotary_dim as f32);
    exponents
        .map(|exponent| 1.0 / theta.powf(f64::from(exponent)) as f32)
        .collect()
}

/// The table of the positions from 0 on: cosine and sine of position * frequency, times
/// `attention_scaling`, which is 1 but for some scaled frequencies. Shapes:
/// cos, sin [positions, frequencies].
///
/// The angle is rounded to f32 as in transformers; its cosine and sine are taken in f64 and
/// rounded. Panics if the lengths disagree.
pub fn rope_table(
    inverse_frequencies: &[f32],
    attention_scaling: f32,
    cos: &mut [f32],
    sin: &mut [f32],
) {
    assert_eq!(cos.len(), sin.len());
    let pairs = inverse_frequencies.len().max(1);
    assert_eq!(cos.len() % pairs, 0, "whole rows of {pairs}");
    fill_table(inverse_frequencies, attention_scaling, f64::cos, cos);
    fill_table(inverse_frequencies, attention_scaling, f64::sin, sin);
}

fn fill_table(frequencies: &[f32], scaling: f32, function: fn(f64) -> f64, table: &mut [f32]) {
    let pairs = frequencies.len();
    for_each_chunk(table, CHUNK, |start, table| {
        for (at, entry) in (start..).zip(table) {
            let angle = (at / pairs) as f32 * frequencies[at % pairs];
            *entry = function(f64::from(angle)) as f32 * scaling;
        }
    });
}

/// `direction` is 1 for the rotation, -1 for its inverse.
fn rotate<E: Element>(isa: Isa, rope: &Rope, direction: f32, x: &mut [E]) {
    let (dim, tokens) = (rope.head_dim, rope.positions.len());
    assert!(
        rope.rotary_dim.is_multiple_of(2) && rope.rotary_dim <= dim,
        "{} of {dim} elements in pairs",
        rope.rotary_dim
    );
    assert_eq!(rope.cos.len(), rope.sin.len());
    let width = x.len() / tokens.max(1);
    assert_eq!(x.len(), tokens * width, "{tokens} rows");
    if width == 0 || rope.rotary_dim == 0 {
        return;
    }
    assert_eq!(width % dim, 0, "whole heads of {dim}");
    for_each_chunk(x, rows_per_task(width) * width, |start, x| {
        let first = start / width;
        let op = Rotate {
            rope,
            direction,
            positions: &rope.positions[first..first + x.len() / width],
            x,
        };
        dispatch(isa, op);
    });
}

struct Rotate<'a, E> {
    rope: &'a Rope<'a>,
    direction: f32,
    positions: &'a [u32],
    x: &'a mut [E],
}

impl<E: Element> SimdOp for Rotate<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rope, pairs) = (self.rope, self.rope.rotary_dim / 2);
        let width = self.x.len() / self.positions.len();
        for (row, &position) in self.x.chunks_exact_mut(width).zip(self.positions) {
            let at = position as usize * pairs;
            let (cos, sin) = (&rope.cos[at..][..pairs], &rope.sin[at..][..pairs]);
            for head in row.chunks_exact_mut(rope.head_dim) {
                let turned = &mut head[..2 * pairs];
                match rope.layout {
                    RopeLayout::HalfSplit => half_split(s, cos, sin, self.direction, turned),
                    RopeLayout::Interleaved => interleaved(s, cos, sin, self.direction, turned),
                }
            }
        }
    }
}

#[inline(always)]
fn half_split<S: Simd, E: Element>(s: S, cos: &[f32], sin: &[f32], direction: f32, x: &mut [E]) {
    let (first, second) = x.split_at_mut(cos.len());
    let direction = s.splat(direction);
    let mut at = 0;
    while at < cos.len() {
        let n = lanes_at::<S>(at, cos.len());
        let cosine = load_at(s, cos, at, n);
        let sine = s.mul(direction, load_at(s, sin, at, n));
        let (a, b) = (load_at(s, first, at, n), load_at(s, second, at, n));
        // Not fused: a fused product would have other bits than transformers'.
        let turned = s.sub(s.mul(a, cosine), s.mul(b, sine));
        store_at(s, first, at, turned, n);
        let turned = s.add(s.mul(b, cosine), s.mul(a, sine));
        store_at(s, second, at, turned, n);
        at += S::LANES;
    }
}

/// Elements that are widened, turned and stored at a time.
const RUN: usize = 128;

/// A plain loop on widened values: the compiler parts and joins pairs by the shuffles of the
/// instruction set that this is inlined into. On stored bf16 it does not, which took 6.3 ms in
/// place of 0.34 for [512, 2048] with AVX-512 on a thread of an AMD EPYC.
#[inline(always)]
fn interleaved<S: Simd, E: Element>(s: S, cos: &[f32], sin: &[f32], direction: f32, x: &mut [E]) {
    let mut wide = [0.0; RUN];
    let table = cos.chunks(RUN / 2).zip(sin.chunks(RUN / 2));
    for (x, (cos, sin)) in x.chunks_mut(RUN).zip(table) {
        let wide = &mut wide[..x.len()];
        convert_in(s, wide, x);
        for ((pair, &cos), &sin) in wide.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b, sin) = (pair[0], pair[1], direction * sin);
            pair[0] = a * cos - b * sin;
            pair[1] = b * cos + a * sin;
        }
        convert_in(s, x, wide);
    }
}
