//! DeBERTa's own fields of config.json, of both versions. Source: transformers
//! `configuration_deberta_v2.py`, `configuration_deberta.py` and the `getattr` defaults in the
//! models.

use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::config::{
    Dropouts, Facts, read_activation, read_dropout, read_dropout_else, read_heads,
};
use crate::families::deberta_v2::positions::RelativeRows;
use crate::families::{Architecture, FamilyConfig};

/// What the configuration says beside the facts.
#[derive(Debug, Clone)]
pub(crate) struct DebertaConfig {
    /// Width of the token tables.
    pub(crate) embedding_size: usize,
    pub(crate) hidden_act: Activation,
    /// Rows of the table of segments; there is none at 0.
    pub(crate) type_vocab_size: usize,
    /// Whether absolute positions are added to the tokens.
    pub(crate) position_biased_input: bool,
    pub(crate) layer_norm_eps: f32,
    pub(crate) pooler_hidden_act: Activation,
    /// The rows of the table of relative positions, where there is one.
    pub(crate) relative: Option<RelativeRows>,
    /// Which of c2p and p2c `pos_att_type` lists; they count for the scale even without a table.
    pos_att_type: [bool; 2],
    pub(crate) share_att_key: bool,
    /// Whether the table of relative positions is normalised.
    pub(crate) norm_rel_ebd: bool,
    /// Width and activation of the convolution, if there is one.
    pub(crate) conv: Option<(usize, Activation)>,
}

/// A configuration in its parts.
pub(crate) struct Parts {
    pub(crate) facts: Facts,
    pub(crate) dropouts: Dropouts,
    pub(crate) own: DebertaConfig,
}

impl Parts {
    /// Reads the fields of `deberta-v2` and notes every fault.
    pub(crate) fn read_v2(reader: &ConfigReader<'_>) -> Self {
        let base = Self::read(reader, 128_100);
        let span = signed(reader, "position_buckets");
        let reach = base.reach(reader);
        if span.is_some_and(|buckets| buckets < 2 || reach <= buckets / 2 + 1) {
            let message = format!("expected at least 2 buckets, and fewer than 2 * {reach}");
            reader.fault("position_buckets", message);
        }
        let norms = reader.string_or("norm_rel_ebd", "none").to_lowercase();
        let taps = reader.usize_or("conv_kernel_size", 0, 0..=63);
        if taps > 0 && taps.is_multiple_of(2) {
            reader.fault(
                "conv_kernel_size",
                format!("expected an odd number, found {taps}"),
            );
        }
        if reader.usize_or("conv_groups", 1, 1..=1 << 16) != 1 {
            reader.fault(
                "conv_groups",
                "expected 1: grouped convolutions are not supported",
            );
        }
        let conv_act = read_activation(reader, "conv_act", Activation::Tanh);
        let head_dim = base.facts.head_dim;
        let head_size = reader.usize_or("attention_head_size", head_dim, 1..=1 << 16);
        if head_size != head_dim {
            let message = format!("expected {head_dim}, found {head_size}");
            reader.fault("attention_head_size", message);
        }
        let relative = reader.bool_or("relative_attention", false);
        let own = DebertaConfig {
            relative: relative.then(|| match span {
                Some(buckets) => RelativeRows::bucketed(buckets, reach),
                None => RelativeRows::exact(reach),
            }),
            share_att_key: reader.bool_or("share_att_key", false),
            norm_rel_ebd: norms.split('|').any(|norm| norm.trim() == "layer_norm"),
            conv: (taps > 0).then_some((taps, conv_act)),
            ..base.own
        };
        Parts { own, ..base }
    }

    /// Reads the fields of `deberta` (v1) and notes every fault.
    pub(crate) fn read_v1(reader: &ConfigReader<'_>) -> Self {
        let mut base = Self::read(reader, 50_265);
        if reader.bool_or("talking_head", false) {
            reader.fault("talking_head", "expected false: it is not supported");
        }
        let reach = base.reach(reader);
        let relative = reader.bool_or("relative_attention", false);
        base.own.relative = relative.then(|| RelativeRows::exact(reach));
        base
    }

    /// What both versions have.
    fn read(reader: &ConfigReader<'_>, vocab_size: usize) -> Self {
        let width = reader.usize("hidden_size", 1..=1 << 16);
        let hidden = read_dropout(reader, "hidden_dropout_prob", 0.1);
        let pooler_size = reader.usize_or("pooler_hidden_size", width, 1..=1 << 16);
        if pooler_size != width {
            let message = format!("expected hidden_size = {width}, found {pooler_size}");
            reader.fault("pooler_hidden_size", message);
        }
        let vocab_size = reader.usize_or("vocab_size", vocab_size, 1..=1 << 24);
        let num_hidden_layers = reader.usize("num_hidden_layers", 1..=1 << 10);
        let heads = read_heads(reader, "num_attention_heads", 12, "hidden_size", width);
        let type_vocab_size = reader.usize_or("type_vocab_size", 0, 0..=1 << 16);
        let facts = Facts {
            vocab_size,
            hidden_size: width,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: width / heads,
            intermediate_size: reader.usize("intermediate_size", 1..=1 << 20),
            max_positions: reader.usize_or("max_position_embeddings", 512, 1..=1 << 20),
            type_vocab_size: type_vocab_size.max(1),
            pad_token_id: Some(reader.usize_or("pad_token_id", 0, 0..=1 << 24) as u32),
            initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
            tie_word_embeddings: true,
        };
        let dropouts = Dropouts {
            hidden,
            attention: read_dropout(reader, "attention_probs_dropout_prob", 0.1),
            embedding: None,
            pooler: Some(read_dropout(reader, "pooler_dropout", 0.0)),
            classifier: Some(read_dropout_else(reader, "cls_dropout", hidden)),
        };
        let own = DebertaConfig {
            embedding_size: reader.usize_or("embedding_size", width, 1..=1 << 16),
            hidden_act: read_activation(reader, "hidden_act", Activation::Gelu),
            type_vocab_size,
            position_biased_input: reader.bool_or("position_biased_input", true),
            layer_norm_eps: reader.f64_or("layer_norm_eps", 1e-7, 0.0..=1.0) as f32,
            pooler_hidden_act: read_activation(reader, "pooler_hidden_act", Activation::Gelu),
            relative: None,
            pos_att_type: terms(reader),
            share_att_key: false,
            norm_rel_ebd: false,
            conv: None,
        };
        Parts {
            facts,
            dropouts,
            own,
        }
    }

    /// The largest distance that is told from the next one, plus one.
    fn reach(&self, reader: &ConfigReader<'_>) -> usize {
        signed(reader, "max_relative_positions").unwrap_or(self.facts.max_positions)
    }

    /// The family's configuration.
    pub(crate) fn with<A: Architecture + 'static>(
        self,
        architecture: fn(DebertaConfig) -> A,
    ) -> FamilyConfig {
        FamilyConfig {
            facts: self.facts,
            dropouts: self.dropouts,
            architecture: Arc::new(architecture(self.own)),
        }
    }
}

impl DebertaConfig {
    /// Whether there are scores of content to position, and of position to content.
    pub(crate) fn terms(&self) -> [bool; 2] {
        self.pos_att_type
            .map(|term| term && self.relative.is_some())
    }

    /// 1 more than the number of terms that `pos_att_type` lists.
    pub(crate) fn scale_factor(&self) -> usize {
        1 + self.pos_att_type.into_iter().filter(|&term| term).count()
    }
}

/// A number for which anything below 1 (usually -1) stands for none.
fn signed(reader: &ConfigReader<'_>, key: &str) -> Option<usize> {
    let number = reader.opt_f64(key, -1e6..=1e6).filter(|&n| n >= 1.0)?;
    if number.fract() != 0.0 {
        reader.fault(key, format!("expected a whole number, found {number}"));
    }
    Some(number as usize)
}

/// `pos_att_type`: a list, or one string with `|` between the names.
fn terms(reader: &ConfigReader<'_>) -> [bool; 2] {
    let is_list = reader
        .raw("pos_att_type")
        .is_some_and(|value| value.is_array());
    let names = if is_list {
        reader.opt_strings("pos_att_type").unwrap_or_default()
    } else {
        let text = reader
            .opt_string("pos_att_type")
            .unwrap_or_default()
            .to_lowercase();
        text.split('|')
            .map(|name| name.trim().to_string())
            .collect()
    };
    let mut terms = [false; 2];
    for name in names {
        match name.as_str() {
            "c2p" => terms[0] = true,
            "p2c" => terms[1] = true,
            "" | "none" => {}
            other => {
                let message = format!("expected `c2p` and `p2c`, found `{other}`");
                reader.fault("pos_att_type", message);
            }
        }
    }
    terms
}
