//! Frequencies of rotary positions, by `rope_type`. In f32, as transformers computes them. It reads
//! no file.
//! Source: transformers 5.24 `modeling_rope_utils.py`; Peng et al. 2023, "YaRN"; Ding et al. 2024,
//! "LongRoPE".

use std::f64::consts::PI;

use crate::modules::{LongFrequencies, RopeKind};

/// How frequencies follow from the base.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scaling {
    /// θ^(-2i/d).
    Default,
    /// All of them divided.
    Linear { factor: f64 },
    /// Low ones divided, high ones kept, a smooth way between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original: f64,
    },
    /// A ramp between interpolated and extrapolated ones.
    Yarn(Yarn),
    /// A divisor for each, others in sequences beyond the original length.
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        original: usize,
        attention_factor: f64,
    },
}

/// The fields of `yarn`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Yarn {
    pub(super) factor: f64,
    pub(super) attention_factor: f64,
    pub(super) beta_fast: f64,
    pub(super) beta_slow: f64,
    pub(super) original: f64,
    /// Whether the ramp begins and ends at whole dimensions.
    pub(super) truncate: bool,
}

impl Yarn {
    /// What `attention_factor` is where a file does not say it.
    pub(super) fn attention_factor(factor: f64, mscale: Option<f64>, all_dim: Option<f64>) -> f64 {
        let scale = |mscale: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * mscale * factor.ln() + 1.0,
        };
        let given = |x: Option<f64>| x.filter(|x| *x != 0.0);
        match (given(mscale), given(all_dim)) {
            (Some(mscale), Some(all_dim)) => scale(mscale) / scale(all_dim),
            _ => scale(1.0),
        }
    }
}

/// The rotation of the first `dim` elements of a head, an even number, from the base `theta`.
pub(super) fn rope_kind(dim: usize, theta: f64, scaling: &Scaling) -> RopeKind {
    let powers = (0..dim / 2).map(|i| (theta as f32).powf((2 * i) as f32 / dim as f32));
    let powers: Vec<f32> = powers.collect();
    let plain = || powers.iter().map(|power| 1.0 / power);
    let divided = |factors: &[f64]| {
        let pairs = factors.iter().zip(&powers);
        let scaled = pairs.map(|(factor, power)| 1.0 / (*factor as f32 * power));
        scaled.collect()
    };
    let mut long = None;
    let (inverse_frequencies, attention_scaling) = match scaling {
        Scaling::Default => (plain().collect(), 1.0),
        Scaling::Linear { factor } => (plain().map(|x| x / *factor as f32).collect(), 1.0),
        Scaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original,
        } => {
            let bounds = [*low_freq_factor as f32, *high_freq_factor as f32];
            let scaled = plain().map(|x| llama3(x, *factor as f32, bounds, *original as f32));
            (scaled.collect(), 1.0)
        }
        Scaling::Yarn(yarn) => (
            yarn_frequencies(dim, theta, &powers, yarn),
            yarn.attention_factor,
        ),
        Scaling::LongRope {
            short_factor,
            long_factor,
            original,
            attention_factor,
        } => {
            long = Some(LongFrequencies {
                beyond: *original,
                inverse_frequencies: divided(long_factor),
            });
            (divided(short_factor), *attention_factor)
        }
    };
    RopeKind {
        inverse_frequencies,
        long,
        attention_scaling: attention_scaling as f32,
    }
}

fn llama3(x: f32, factor: f32, [low, high]: [f32; 2], original: f32) -> f32 {
    let wavelength = 2.0 * PI as f32 / x;
    if wavelength < original / high {
        return x;
    }
    if wavelength > original / low {
        return x / factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * x / factor + smooth * x
}

fn yarn_frequencies(dim: usize, theta: f64, powers: &[f32], yarn: &Yarn) -> Vec<f32> {
    let dim = dim as f64;
    // The dimension whose wavelength makes so many turns over the original length.
    let dimension =
        |turns: f64| dim * (yarn.original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(yarn.beta_fast), dimension(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let frequency = |(i, power): (usize, &f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        // As transformers rounds it, twice.
        let extrapolated = 1.0 - ramp;
        1.0 / (yarn.factor as f32 * power) * (1.0 - extrapolated) + 1.0 / power * extrapolated
    };
    powers.iter().enumerate().map(frequency).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn high_frequencies_stay_and_low_ones_are_divided() {
        let plain = rope_kind(64, 5e5, &Scaling::Default).inverse_frequencies;
        let llama3 = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        let yarn = Scaling::Yarn(Yarn {
            factor: 8.0,
            attention_factor: Yarn::attention_factor(8.0, None, None),
            beta_fast: 32.0,
            beta_slow: 1.0,
            original: 8192.0,
            truncate: true,
        });
        for scaling in [llama3, yarn] {
            let scaled = rope_kind(64, 5e5, &scaling).inverse_frequencies;
            assert_eq!(scaled[0], plain[0]);
            assert_eq!(scaled[31], plain[31] / 8.0);
            let falls = scaled.windows(2).all(|pair| pair[1] < pair[0]);
            assert!(falls, "{scaling:?}: {scaled:?}");
        }
    }

    #[test]
    fn mscale_counts_where_both_are_given() {
        assert_eq!(Yarn::attention_factor(0.5, None, None), 1.0);
        assert_eq!(Yarn::attention_factor(4.0, Some(1.0), Some(1.0)), 1.0);
        let alone = Yarn::attention_factor(4.0, Some(0.7), None);
        assert_eq!(alone, 0.1 * 4f64.ln() + 1.0);
    }
}
