//! Dropout whose mask is a pure function of a key and the element's index: it is recomputed, never
//! stored.
//!
//! Elements come in groups of 128: element 128 g + 32 w + 16 h + b takes half h, the low one first,
//! of word w of Philox block 16 g + b, so that sixteen blocks in vector lanes yield eight vectors
//! of neighbouring elements without a shuffle.

use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::{CHUNK, for_each_chunk};
use crate::philox::{philox_blocks, philox4x32, philox4x32_10, words};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

/// Elements whose half words come from sixteen neighbouring Philox blocks.
pub(crate) const GROUP: usize = 128;

/// Rounds of Philox for a mask: the fewest that pass BigCrush.
const ROUNDS: usize = 7;

/// What a mask is a function of, beside the element's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// Counts micro-steps.
    pub step: u64,
    /// The place in the model.
    pub site: u32,
}

/// Dropout with probability `p`, rounded to a multiple of 2^-16: kept elements are scaled by 1 /
/// (1 - p), p the rounded one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in [0, 1].
    pub p: f32,
    /// What the mask is a function of.
    pub key: DropoutKey,
}

/// Dropout made ready: the key hashed once, the threshold and the scale.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    high: [u32; 2],
    key: [u32; 2],
    /// Elements whose half word, in the upper half of a word, is below this are dropped.
    threshold: u32,
    scale: f32,
}

/// Step and site do not fit beside a 64-bit index in one counter: they are hashed into the key of
/// the stream. Streams of different purposes are apart.
fn stream_of(key: DropoutKey, purpose: u32) -> [u32; 4] {
    let [step_low, step_high] = words(key.step);
    philox4x32_10([step_low, step_high, key.site, purpose], words(key.seed))
}

/// The half word of an element.
fn half_word(index: u64, high: [u32; 2], key: [u32; 2]) -> u16 {
    let within = (index % GROUP as u64) as usize;
    let block = index / GROUP as u64 * 16 + within as u64 % 16;
    let [b0, b1] = words(block);
    let word = philox4x32::<ROUNDS>([b0, b1, high[0], high[1]], key)[within / 32];
    match within / 16 % 2 {
        0 => word as u16,
        _ => (word >> 16) as u16,
    }
}

/// Uniform numbers above -1/2 and below 1/2, whose mean is zero: what makes rounding to the nearest
/// stochastic. Never those of a mask.
pub(crate) struct Noise {
    high: [u32; 2],
    key: [u32; 2],
}

/// 2^23: what turns the low bits of a number's fraction into an integer.
const INTEGERS: f32 = 8_388_608.0;

impl Noise {
    /// Elements that share Philox blocks.
    pub(crate) const GROUP: usize = GROUP;

    pub(crate) fn new(key: DropoutKey) -> Self {
        let hashed = stream_of(key, 1);
        Self {
            high: [hashed[0], hashed[1]],
            key: [hashed[2], hashed[3]],
        }
    }

    /// That of one element: the definition.
    pub(crate) fn number(&self, index: u64) -> f32 {
        let half = half_word(index, self.high, self.key);
        (f32::from(half) - 32_767.5) / 65_536.0
    }

    /// Those of the elements of a group, in the order of [`Mask::group`].
    #[inline(always)]
    pub(crate) fn group<S: Simd>(&self, s: S, group: u64) -> [f32; GROUP] {
        let mut numbers = [0.0; GROUP];
        let [b0, b1] = words(group * 16);
        let (low_half, integers) = (s.splat_u(0xffff), s.splat_u(INTEGERS.to_bits()));
        for lane in (0..16).step_by(S::LANES) {
            let counter = [b0 + lane as u32, b1, self.high[0], self.high[1]];
            let random = philox_blocks::<S, ROUNDS>(s, counter, self.key);
            for (w, word) in random.into_iter().enumerate() {
                let halves = [s.and_u(word, low_half), s.shr16_u(word)];
                for (h, half) in halves.into_iter().enumerate() {
                    // 2^23 + half, exactly; then (half + 1/2) / 2^16 - 1/2.
                    let integer = s.sub(s.of_bits(s.or_u(half, integers)), s.splat(INTEGERS));
                    let number = s.mul(s.sub(integer, s.splat(32_767.5)), s.splat(1.0 / 65_536.0));
                    store_at(s, &mut numbers, 32 * w + 16 * h + lane, number, S::LANES);
                }
            }
        }
        numbers
    }
}

impl Mask {
    /// Panics if `p` is not in [0, 1].
    pub(crate) fn new(d: Dropout) -> Self {
        assert!((0.0..=1.0).contains(&d.p), "dropout probability {}", d.p);
        let hashed = stream_of(d.key, 0);
        const HALVES: u32 = 1 << 16;
        let dropped = (f64::from(d.p) * f64::from(HALVES)).round() as u32;
        let kept = HALVES - dropped;
        Self {
            high: [hashed[0], hashed[1]],
            key: [hashed[2], hashed[3]],
            threshold: dropped.min(HALVES - 1) << 16,
            // Where all are dropped, no threshold drops the largest half word: its factor is 0 as
            // well.
            scale: if kept == 0 {
                0.0
            } else {
                HALVES as f32 / kept as f32
            },
        }
    }

    /// The factor of one element, 0 or 1 / (1 - p): the definition.
    pub(crate) fn factor(&self, index: u64) -> f32 {
        let half = half_word(index, self.high, self.key);
        if u32::from(half) << 16 >= self.threshold {
            self.scale
        } else {
            0.0
        }
    }

    /// The factors of the elements of a group.
    #[inline(always)]
    pub(crate) fn group<S: Simd>(&self, s: S, group: u64) -> [f32; GROUP] {
        let mut factors = [0.0; GROUP];
        let [b0, b1] = words(group * 16);
        let scale = s.splat(self.scale);
        let mut lane = 0;
        while lane < 16 {
            // The first word is a multiple of sixteen: adding lanes cannot wrap.
            let counter = [b0 + lane as u32, b1, self.high[0], self.high[1]];
            let random = philox_blocks::<S, ROUNDS>(s, counter, self.key);
            for (w, word) in random.into_iter().enumerate() {
                // The lower half of a word decides only between equals, which are kept.
                for (h, half) in [s.shl16_u(word), word].into_iter().enumerate() {
                    let kept = s.keep(half, self.threshold, scale);
                    store_at(s, &mut factors, 32 * w + 16 * h + lane, kept, S::LANES);
                }
            }
            lane += S::LANES;
        }
        factors
    }

    /// Multiplies `x`, whose first element has the given index, by the factors.
    #[inline(always)]
    pub(crate) fn apply<S: Simd, E: Element>(&self, s: S, first: u64, x: &mut [E]) {
        let mut at = 0;
        while at < x.len() {
            let index = first + at as u64;
            let within = (index % GROUP as u64) as usize;
            let n = (GROUP - within).min(x.len() - at);
            let factors = self.group(s, index / GROUP as u64);
            let mut j = 0;
            while j < n {
                let lanes = lanes_at::<S>(j, n);
                let product = s.mul(
                    load_at(s, x, at + j, lanes),
                    load_at(s, &factors, within + j, lanes),
                );
                store_at(s, x, at + j, product, lanes);
                j += S::LANES;
            }
            at += n;
        }
    }
}

struct Apply<'a, E> {
    mask: Mask,
    first: u64,
    x: &'a mut [E],
}

impl<E: Element> SimdOp for Apply<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.mask.apply(s, self.first, self.x);
    }
}

/// dst = src mask / (1 - p): [`dropout_apply`] where the source is still needed. Panics if the
/// lengths differ, or as it does.
pub fn dropout_into<E: Element>(isa: Isa, d: Dropout, src: &[E], dst: &mut [E]) {
    assert_eq!(src.len(), dst.len());
    let mask = Mask::new(d);
    for_each_chunk(dst, CHUNK, |start, x| {
        // The copy of a chunk is still in the cache when the mask meets it.
        x.copy_from_slice(&src[start..start + x.len()]);
        if mask.threshold > 0 {
            let first = start as u64;
            dispatch(isa, Apply { mask, first, x });
        }
    });
}

/// x *= mask / (1 - p). An element's index is its position in the slice; the same call on the
/// gradient is the backward.
///
/// Panics if `p` is not in [0, 1].
pub fn dropout_apply<E: Element>(isa: Isa, d: Dropout, x: &mut [E]) {
    let mask = Mask::new(d);
    if mask.threshold == 0 {
        return;
    }
    for_each_chunk(x, CHUNK, |start, x| {
        let first = start as u64;
        dispatch(isa, Apply { mask, first, x });
    });
}
