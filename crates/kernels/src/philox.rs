//! Philox4x32, the counter-based generator: ten rounds for initialisation, seven for dropout.
//!
//! Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", whose table 2 has
//! both pass every test of BigCrush; the known answers of ten rounds are random123's.

use crate::simd::Simd;

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// Ten rounds of Philox4x32: four random words, a pure function of the counter and the key.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox4x32::<10>(counter, key)
}

/// As [`philox4x32_10`] with another number of rounds.
pub(crate) fn philox4x32<const ROUNDS: usize>(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIER_0) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER_1) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL_0), k[1].wrapping_add(WEYL_1)];
    }
    c
}

/// `LANES` blocks at once: lane l has the counter [counter[0] + l, counter[1], ..]. The first word
/// must not wrap.
#[inline(always)]
pub(crate) fn philox_blocks<S: Simd, const ROUNDS: usize>(
    s: S,
    counter: [u32; 4],
    key: [u32; 2],
) -> [S::U; 4] {
    let m0 = s.splat_u(MULTIPLIER_0);
    let m1 = s.splat_u(MULTIPLIER_1);
    let mut c0 = s.iota_u(counter[0]);
    let mut c1 = s.splat_u(counter[1]);
    let mut c2 = s.splat_u(counter[2]);
    let mut c3 = s.splat_u(counter[3]);
    let mut k = key;
    for _ in 0..ROUNDS {
        let (high0, low0) = s.mul_wide_u(m0, c0);
        let (high1, low1) = s.mul_wide_u(m1, c2);
        c0 = s.xor_u(s.xor_u(high1, c1), s.splat_u(k[0]));
        c1 = low1;
        c2 = s.xor_u(s.xor_u(high0, c3), s.splat_u(k[1]));
        c3 = low0;
        k = [k[0].wrapping_add(WEYL_0), k[1].wrapping_add(WEYL_1)];
    }
    [c0, c1, c2, c3]
}

pub(crate) fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn block(seed: u64, stream: u64, index: u64) -> [u32; 4] {
    let [i0, i1] = words(index);
    let [s0, s1] = words(stream);
    philox4x32_10([i0, i1, s0, s1], words(seed))
}

/// Fills with uniform values in [low, high); a pure function of seed, stream and position, the same
/// on every machine.
pub fn fill_uniform(seed: u64, stream: u64, low: f32, high: f32, out: &mut [f32]) {
    const SCALE: f32 = 1.0 / (1 << 24) as f32;
    for (index, chunk) in out.chunks_mut(4).enumerate() {
        for (value, word) in chunk.iter_mut().zip(block(seed, stream, index as u64)) {
            let unit = (word >> 8) as f32 * SCALE;
            *value = low + (high - low) * unit;
            // Rounding may reach `high` itself, which the interval excludes.
            if *value >= high && high > low {
                *value = high.next_down().max(low);
            }
        }
    }
}

/// Fills with normal values (Box–Muller in f64); a pure function of seed, stream and position.
pub fn fill_normal(seed: u64, stream: u64, mean: f32, std: f32, out: &mut [f32]) {
    const SCALE: f64 = 1.0 / (1u64 << 32) as f64;
    for (index, chunk) in out.chunks_mut(4).enumerate() {
        let word = block(seed, stream, index as u64);
        for (pair_index, pair) in chunk.chunks_mut(2).enumerate() {
            // Half a step off zero: the logarithm is finite.
            let u = (f64::from(word[2 * pair_index]) + 0.5) * SCALE;
            let angle = std::f64::consts::TAU * f64::from(word[2 * pair_index + 1]) * SCALE;
            let radius = (-2.0 * u.ln()).sqrt();
            let normal = [radius * angle.cos(), radius * angle.sin()];
            for (value, z) in pair.iter_mut().zip(normal) {
                *value = (f64::from(mean) + f64::from(std) * z) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn fills_are_a_function_of_position() {
        for fill in [fill_uniform, fill_normal] {
            let mut long = vec![0.0; 37];
            let mut short = vec![0.0; 13];
            fill(7, 3, -0.5, 0.5, &mut long);
            fill(7, 3, -0.5, 0.5, &mut short);
            assert_eq!(long[..13], short[..]);
        }
    }

    #[test]
    fn fills_have_the_moments_asked_for() {
        let n = 100_000;
        let mut x = vec![0.0; n];
        fill_normal(1, 2, 0.25, 2.0, &mut x);
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
        let var = x
            .iter()
            .map(|v| (f64::from(*v) - mean).powi(2))
            .sum::<f64>()
            / n as f64;
        assert!((mean - 0.25).abs() < 0.03 && (var - 4.0).abs() < 0.08);
        fill_uniform(1, 2, -1.0, 3.0, &mut x);
        assert!(x.iter().all(|v| (-1.0..3.0).contains(v)));
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.02);
    }
}
