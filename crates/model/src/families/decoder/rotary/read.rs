//! What config.json says of a decoder with rotary positions, in the old form of rotations
//! (`rope_theta` with `rope_scaling`) and in the new one (`rope_parameters`). It knows no family:
//! what differs comes as [`Defaults`] and rules.
//! Source: transformers 5.24 `configuration_utils.py`, `modeling_rope_utils.py`.

use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_engine::ops::norm::RmsFactor;
use lowrank_formats::ConfigReader;

use super::frequencies::{Scaling, Yarn, rope_kind};
use super::{Biases, Fusion, HeadNorms, LayerKind, NormPlaces, RotaryConfig};
use crate::config::{Dropouts, Facts, read_activation, read_dropout, read_pad_token};
use crate::families::FamilyConfig;
use crate::modules::RopeKind;

/// Largest base of rotations, and largest factor.
const LARGE: f64 = 1e12;

/// What a family's class in transformers has where the file says nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    /// As many as heads of queries if absent.
    pub(crate) num_key_value_heads: Option<usize>,
    /// The hidden size divided by the heads if absent.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) pad_token_id: Option<u32>,
    pub(crate) tie_word_embeddings: bool,
    /// The field that names the activation.
    pub(crate) activation: (&'static str, Activation),
}

/// LLaMA's.
pub(crate) const LLAMA: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    pad_token_id: None,
    tie_word_embeddings: false,
    activation: ("hidden_act", Activation::Silu),
};

/// Which layers look at a window.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WindowRule {
    /// None.
    Never,
    /// Every one, where `sliding_window` is there; this many keys where the file does not say.
    Always(Option<usize>),
    /// With `use_sliding_window`, those from `max_window_layers` on, unless `layer_types` says it;
    /// this many keys where the file does not say.
    Upper(usize),
    /// All but every so many-th, unless `layer_types` says it.
    AllBut { every: usize, window: usize },
}

/// How a family says its rotations.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RopeRule {
    /// One for all layers.
    One,
    /// The same, where `yarn` is an old name of `longrope`: Phi-3.
    OneOfPhi3,
    /// One for layers that look at a window, with this base where the file does not say, and one
    /// for the others.
    ByWindow { local_theta: f64 },
}

/// A decoder as the file says it, each family changing what it does otherwise.
pub(crate) struct Read {
    pub(crate) facts: Facts,
    pub(crate) dropouts: Dropouts,
    pub(crate) config: RotaryConfig,
}

impl Read {
    /// Reads what all families share, and notes every fault. What is not read here is LLaMA's.
    pub(crate) fn new(
        reader: &ConfigReader<'_>,
        defaults: &Defaults,
        windows: WindowRule,
        ropes: RopeRule,
    ) -> Self {
        let facts = read_facts(reader, defaults);
        let windows = read_windows(reader, facts.num_hidden_layers, windows);
        let of_rope = RopeFields {
            head_dim: facts.head_dim,
            max_positions: facts.max_positions,
            theta: defaults.rope_theta,
            yarn: match ropes {
                RopeRule::OneOfPhi3 => "longrope",
                RopeRule::One | RopeRule::ByWindow { .. } => "yarn",
            },
        };
        let kinds = match ropes {
            RopeRule::One | RopeRule::OneOfPhi3 => vec![of_rope.read(reader, None)],
            RopeRule::ByWindow { local_theta } => {
                let global = of_rope.read(reader, Some("full_attention"));
                let local = RopeFields {
                    theta: reader.f64_or("rope_local_base_freq", local_theta, 1.0..=LARGE),
                    ..of_rope
                };
                vec![global, local.read_local(reader)]
            }
        };
        let layer = |window: &Option<usize>| LayerKind {
            rope: Some(usize::from(window.is_some() && kinds.len() > 1)),
            window: *window,
        };
        let (key, activation) = defaults.activation;
        let eps = reader.f64_or("rms_norm_eps", defaults.rms_norm_eps, 0.0..=1.0);
        Read {
            dropouts: Dropouts {
                hidden: 0.0,
                attention: read_dropout(reader, "attention_dropout", 0.0),
                embedding: None,
                pooler: None,
                classifier: None,
            },
            config: RotaryConfig {
                fusion: Fusion::None,
                biases: Biases::default(),
                head_norms: HeadNorms::None,
                norms: NormPlaces::First,
                norm_factor: RmsFactor::Weight,
                rms_norm_eps: eps as f32,
                activation: read_activation(reader, key, activation),
                token_scale: 1.0,
                score_scale: 1.0 / (facts.head_dim as f32).sqrt(),
                residual_scale: 1.0,
                logit_scale: 1.0,
                score_soft_cap: None,
                logit_soft_cap: None,
                layers: windows.iter().map(layer).collect(),
                ropes: kinds,
            },
            facts,
        }
    }
}

impl Read {
    /// `attention_bias`, of all four layers of attention.
    pub(crate) fn read_attention_bias(&mut self, reader: &ConfigReader<'_>) {
        let has_bias = reader.bool_or("attention_bias", false);
        self.config.biases.qkv = has_bias;
        self.config.biases.output = has_bias;
    }

    /// `attention_bias` and `mlp_bias`.
    pub(crate) fn read_biases(&mut self, reader: &ConfigReader<'_>) {
        self.read_attention_bias(reader);
        self.config.biases.mlp = reader.bool_or("mlp_bias", false);
    }

    pub(crate) fn family(self) -> FamilyConfig {
        FamilyConfig {
            facts: self.facts,
            dropouts: self.dropouts,
            architecture: Arc::new(self.config),
        }
    }
}

fn read_facts(reader: &ConfigReader<'_>, defaults: &Defaults) -> Facts {
    let width = reader.usize_or("hidden_size", defaults.hidden_size, 1..=1 << 16);
    let heads = defaults.num_attention_heads;
    let heads = reader.usize_or("num_attention_heads", heads, 1..=1 << 12);
    let is_null = |key: &str| reader.raw(key).is_some_and(serde_json::Value::is_null);
    // What a file leaves out has the class's default; `null` is what follows from the others.
    let default = defaults
        .num_key_value_heads
        .filter(|_| !is_null("num_key_value_heads"));
    let key_value_heads =
        reader.usize_or("num_key_value_heads", default.unwrap_or(heads), 1..=1 << 12);
    if !heads.is_multiple_of(key_value_heads) {
        let message =
            format!("expected a divisor of num_attention_heads = {heads}, found {key_value_heads}");
        reader.fault("num_key_value_heads", message);
    }
    let default = defaults.head_dim.filter(|_| !is_null("head_dim"));
    let head_dim = reader.usize_or("head_dim", default.unwrap_or(width / heads), 1..=1 << 12);
    if !head_dim.is_multiple_of(2) {
        let message = format!("expected an even number, as rotations want, found {head_dim}");
        reader.fault("head_dim", message);
    }
    let (layers, inner) = (defaults.num_hidden_layers, defaults.intermediate_size);
    let positions = defaults.max_position_embeddings;
    let pad_token_id = match reader.has("pad_token_id") {
        true => read_pad_token(reader),
        false => defaults
            .pad_token_id
            .filter(|_| reader.raw("pad_token_id").is_none()),
    };
    Facts {
        vocab_size: reader.usize_or("vocab_size", defaults.vocab_size, 1..=1 << 24),
        hidden_size: width,
        num_hidden_layers: reader.usize_or("num_hidden_layers", layers, 1..=1 << 10),
        num_attention_heads: heads,
        num_key_value_heads: key_value_heads,
        head_dim,
        intermediate_size: reader.usize_or("intermediate_size", inner, 1..=1 << 20),
        max_positions: reader.usize_or("max_position_embeddings", positions, 1..=1 << 24),
        type_vocab_size: 1,
        pad_token_id,
        initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
        tie_word_embeddings: reader.bool_or("tie_word_embeddings", defaults.tie_word_embeddings),
    }
}

/// The window of each layer.
fn read_windows(reader: &ConfigReader<'_>, layers: usize, rule: WindowRule) -> Vec<Option<usize>> {
    let most = 1..=1 << 24;
    let (default, is_on) = match rule {
        WindowRule::Never => return vec![None; layers],
        WindowRule::Always(default) => (default, true),
        WindowRule::Upper(window) => (Some(window), reader.bool_or("use_sliding_window", false)),
        WindowRule::AllBut { window, .. } => (Some(window), true),
    };
    let default = default.filter(|_| reader.raw("sliding_window").is_none());
    let window = reader.opt_usize("sliding_window", most).or(default);
    let window = window.filter(|_| is_on);
    let by_rule = |i: usize| match rule {
        WindowRule::Never => false,
        WindowRule::Always(_) => true,
        WindowRule::Upper(_) => i >= reader.usize_or("max_window_layers", 28, 0..=1 << 10),
        WindowRule::AllBut { every, .. } => {
            !(i + 1).is_multiple_of(reader.usize_or("sliding_window_pattern", every, 1..=1 << 10))
        }
    };
    let has_types = !matches!(rule, WindowRule::Always(_));
    let is_local = match reader.opt_strings("layer_types").filter(|_| has_types) {
        Some(types) => local_layers(reader, &types, layers),
        None => (0..layers).map(by_rule).collect(),
    };
    is_local
        .into_iter()
        .map(|is_local| window.filter(|_| is_local))
        .collect()
}

/// Which layers look at a window, by `layer_types`.
pub(crate) fn local_layers(
    reader: &ConfigReader<'_>,
    types: &[String],
    layers: usize,
) -> Vec<bool> {
    if types.len() != layers {
        let message = format!("expected {layers} layers, found {}", types.len());
        reader.fault("layer_types", message);
    }
    let is_local = |i: usize| match types.get(i).map(String::as_str) {
        Some("sliding_attention") => true,
        Some("full_attention") | None => false,
        Some(other) => {
            let message = format!(
                "expected `full_attention` or `sliding_attention`, found `{other}` for layer {i}"
            );
            reader.fault("layer_types", message);
            false
        }
    };
    (0..layers).map(is_local).collect()
}

/// The rotations of layers that look at all tokens and of those that look at some, with these bases
/// where the file says none.
pub(crate) fn read_ropes_by_window(
    reader: &ConfigReader<'_>,
    facts: &Facts,
    [global, local]: [f64; 2],
) -> [RopeKind; 2] {
    let of = |theta: f64| RopeFields {
        head_dim: facts.head_dim,
        max_positions: facts.max_positions,
        theta,
        yarn: "yarn",
    };
    let global = of(global).read(reader, Some("full_attention"));
    [global, of(local).read_local(reader)]
}

/// What a rotation follows from beside its own fields.
#[derive(Clone, Copy)]
struct RopeFields {
    head_dim: usize,
    max_positions: usize,
    /// The base where the file says none.
    theta: f64,
    /// What `yarn` means.
    yarn: &'static str,
}

impl RopeFields {
    /// The rotation of all layers, or of those of a type.
    fn read(self, reader: &ConfigReader<'_>, layer_type: Option<&str>) -> RopeKind {
        let theta = reader.f64_or("rope_theta", self.theta, 1.0..=LARGE);
        let partial = reader.f64_or("partial_rotary_factor", 1.0, 0.0..=1.0);
        let original = reader.opt_f64("original_max_position_embeddings", 1.0..=LARGE);
        let of = |fields: &ConfigReader<'_>| self.of_fields(fields, [theta, partial], original);
        let new = reader.within("rope_parameters", |fields| match layer_type {
            Some(layer_type) if fields.has(layer_type) => fields.within(layer_type, of),
            _ => Some(of(fields)),
        });
        let old = || reader.within("rope_scaling", of);
        let plain = || rope_kind(self.rotary_dim(partial), theta, &Scaling::Default);
        new.flatten().or_else(old).unwrap_or_else(plain)
    }

    /// The rotation of layers that look at a window: `rope_scaling` is not theirs.
    fn read_local(self, reader: &ConfigReader<'_>) -> RopeKind {
        let of = |fields: &ConfigReader<'_>| self.of_fields(fields, [self.theta, 1.0], None);
        let new = reader.within("rope_parameters", |fields| {
            fields.within("sliding_attention", of)
        });
        new.flatten()
            .unwrap_or_else(|| rope_kind(self.head_dim, self.theta, &Scaling::Default))
    }

    fn rotary_dim(self, partial: f64) -> usize {
        (self.head_dim as f64 * partial) as usize / 2 * 2
    }

    /// The rotation that an object of fields says; a base and a part that stand outside count where
    /// they say none.
    fn of_fields(
        self,
        fields: &ConfigReader<'_>,
        [theta, partial]: [f64; 2],
        original: Option<f64>,
    ) -> RopeKind {
        let theta = fields.f64_or("rope_theta", theta, 1.0..=LARGE);
        let partial = fields.f64_or("partial_rotary_factor", partial, 0.0..=1.0);
        let dim = self.rotary_dim(partial);
        // What stands outside goes first, as in Phi-3's files.
        let key = "original_max_position_embeddings";
        let original =
            original.unwrap_or_else(|| fields.f64_or(key, self.max_positions as f64, 1.0..=LARGE));
        let name = match fields.has("rope_type") {
            true => "rope_type",
            false => "type",
        };
        let factor = |least: f64| match fields.has("factor") {
            true => fields.f64("factor", least..=LARGE),
            false => self.max_positions as f64 / original,
        };
        let word = fields.string_or(name, "default");
        let word = match word.as_str() {
            "yarn" => self.yarn,
            other => other,
        };
        let scaling = match word {
            // Within the model's positions `dynamic` is the plain rotation.
            "default" | "dynamic" => Scaling::Default,
            "linear" => Scaling::Linear {
                factor: fields.f64("factor", 1e-6..=LARGE),
            },
            "llama3" => Scaling::Llama3 {
                factor: fields.f64("factor", 1e-6..=LARGE),
                low_freq_factor: fields.f64("low_freq_factor", 1e-6..=LARGE),
                high_freq_factor: fields.f64("high_freq_factor", 1e-6..=LARGE),
                original,
            },
            "yarn" => {
                let factor = factor(1e-6);
                let scale = |key: &str| fields.opt_f64(key, 0.0..=LARGE);
                let given = fields.opt_f64("attention_factor", 0.0..=LARGE);
                let (mscale, all_dim) = (scale("mscale"), scale("mscale_all_dim"));
                Scaling::Yarn(Yarn {
                    factor,
                    attention_factor: given
                        .unwrap_or_else(|| Yarn::attention_factor(factor, mscale, all_dim)),
                    beta_fast: fields.f64_or("beta_fast", 32.0, 1e-6..=LARGE),
                    beta_slow: fields.f64_or("beta_slow", 1.0, 1e-6..=LARGE),
                    original,
                    truncate: fields.bool_or("truncate", true),
                })
            }
            "longrope" | "su" => {
                let given = fields.opt_f64("attention_factor", 0.0..=LARGE);
                let factor = factor(1e-6);
                Scaling::LongRope {
                    short_factor: factors(fields, "short_factor", dim / 2),
                    long_factor: factors(fields, "long_factor", dim / 2),
                    original: original as usize,
                    attention_factor: given.unwrap_or_else(|| match factor <= 1.0 {
                        true => 1.0,
                        false => (1.0 + factor.ln() / original.ln()).sqrt(),
                    }),
                }
            }
            other => {
                let message = format!(
                    "expected `default`, `linear`, `dynamic`, `llama3`, `yarn` or `longrope`, found `{other}`"
                );
                fields.fault(name, message);
                Scaling::Default
            }
        };
        rope_kind(dim, theta, &scaling)
    }
}

/// One divisor for each pair.
fn factors(fields: &ConfigReader<'_>, key: &str, pairs: usize) -> Vec<f64> {
    let factors = fields.opt_numbers(key, 1e-6..=LARGE);
    match factors {
        Some(factors) if factors.len() == pairs => return factors,
        Some(factors) => {
            let message = format!("expected {pairs} numbers, found {}", factors.len());
            fields.fault(key, message);
        }
        // A fault of another kind has been noted.
        None if fields.has(key) => {}
        None => fields.fault(key, format!("missing, expected a list of {pairs} numbers")),
    }
    vec![1.0; pairs]
}
