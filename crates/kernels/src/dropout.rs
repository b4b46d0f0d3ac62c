//! Dropout whose mask is a pure function of a key and the element's index: it is recomputed, never stored.
//!
//! Elements come in groups of 64: element 64 g + 16 w + b takes word w of Philox block 16 g + b, so that sixteen blocks in
//! vector lanes yield four vectors of neighbouring elements without a shuffle.

use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::{CHUNK, for_each_chunk};
use crate::philox::{philox_blocks, philox4x32_10, words};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

/// Elements whose words come from sixteen neighbouring Philox blocks.
pub(crate) const GROUP: usize = 64;

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

/// Dropout with probability `p`: kept elements are scaled by 1 / (1 - p).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in [0, 1]; its resolution is 2^-24.
    pub p: f32,
    /// What the mask is a function of.
    pub key: DropoutKey,
}

/// Dropout made ready: the key hashed once, the threshold and the scale.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    high: [u32; 2],
    key: [u32; 2],
    threshold: u32,
    scale: f32,
}

impl Mask {
    /// Panics if `p` is not in [0, 1].
    pub(crate) fn new(d: Dropout) -> Self {
        assert!((0.0..=1.0).contains(&d.p), "dropout probability {}", d.p);
        // Step and site do not fit beside a 64-bit index in one counter: they are hashed into the key of the stream.
        let [step_low, step_high] = words(d.key.step);
        let hashed = philox4x32_10([step_low, step_high, d.key.site, 0], words(d.key.seed));
        Self {
            high: [hashed[0], hashed[1]],
            key: [hashed[2], hashed[3]],
            threshold: (f64::from(d.p) * f64::from(1u32 << 24)).round() as u32,
            scale: if d.p < 1.0 { 1.0 / (1.0 - d.p) } else { 0.0 },
        }
    }

    /// The factor of one element, 0 or 1 / (1 - p): the definition.
    pub(crate) fn factor(&self, index: u64) -> f32 {
        let within = (index % GROUP as u64) as usize;
        let block = index / GROUP as u64 * 16 + within as u64 % 16;
        let [b0, b1] = words(block);
        let word = philox4x32_10([b0, b1, self.high[0], self.high[1]], self.key)[within / 16];
        if (word >> 8) >= self.threshold {
            self.scale
        } else {
            0.0
        }
    }

    /// The factors of a group of 64 elements.
    #[inline(always)]
    pub(crate) fn group<S: Simd>(&self, s: S, group: u64) -> [f32; GROUP] {
        let mut factors = [0.0; GROUP];
        let [b0, b1] = words(group * 16);
        let scale = s.splat(self.scale);
        let mut lane = 0;
        while lane < 16 {
            // The first word is a multiple of sixteen: adding lanes cannot wrap.
            let counter = [b0 + lane as u32, b1, self.high[0], self.high[1]];
            let random = philox_blocks(s, counter, self.key);
            for (w, word) in random.into_iter().enumerate() {
                let kept = s.keep(word, self.threshold, scale);
                store_at(s, &mut factors, 16 * w + lane, kept, S::LANES);
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

/// x *= mask / (1 - p). An element's index is its position in the slice; the same call on the gradient is the backward.
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
