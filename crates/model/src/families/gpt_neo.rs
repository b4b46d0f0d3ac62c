//! GPT-Neo (Black et al. 2021): GPT-3's architecture (Brown et al. 2020) with layers that see all tokens and layers that
//! see a window in turn; scores are not scaled, projections have no bias. Source: transformers `modeling_gpt_neo.py`.

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;
use serde_json::Value;

use crate::config::{Facts, Task, read_activation, read_dropout, read_heads};
use crate::error::ModelError;
use crate::families::Family;
use crate::families::decoder::{Block, BlockForm, Decoder, Head, Norm, Projections};
use crate::loader::{LM_HEAD, LinearSpec, Loader, Presence};
use crate::modules::{Layout, Linear};
use crate::stored_head::HeadTensors;

/// The registry's line.
pub const FAMILY: Family = Family {
    model_type: "gpt_neo",
    prefix: "transformer.",
    tokens: "transformer.wte",
    heads: HeadTensors {
        sequence: &["score.weight"],
        tokens: None,
    },
    default_targets: &["q_proj", "v_proj"],
    default_saved: &[],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("GPTNeoForSequenceClassification")
        }
        Task::CausalLm => Some("GPTNeoForCausalLM"),
        Task::TokenClassification => None,
    },
    facts: |reader| GptNeoConfig::read(reader).facts(),
    fused: &[],
    dropouts: &["embed_dropout", "attention_dropout", "resid_dropout"],
    // The masks as buffers, and the copy of a tied table that some files hold.
    ignored: &[
        ".attention.bias",
        ".attention.masked_bias",
        "lm_head.weight",
    ],
    build: |config, task, num_labels, loader| {
        let config = GptNeoConfig::read(&config.reader());
        Ok(Box::new(config.build(task, num_labels, loader)?))
    },
};

/// The family's fields of config.json.
struct GptNeoConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    intermediate_size: usize,
    /// Whether each layer sees a window only.
    is_local: Vec<bool>,
    window_size: usize,
    activation_function: Activation,
    embed_dropout: f32,
    attention_dropout: f32,
    resid_dropout: f32,
    layer_norm_epsilon: f32,
    initializer_range: f32,
    tie_word_embeddings: bool,
    pad_token_id: Option<u32>,
}

impl GptNeoConfig {
    fn read(reader: &ConfigReader<'_>) -> Self {
        let hidden_size = reader.usize_or("hidden_size", 2048, 1..=1 << 16);
        let num_layers = reader.usize_or("num_layers", 24, 1..=1 << 10);
        GptNeoConfig {
            vocab_size: reader.usize_or("vocab_size", 50257, 1..=1 << 24),
            max_position_embeddings: reader.usize_or("max_position_embeddings", 2048, 1..=1 << 20),
            hidden_size,
            num_layers,
            num_heads: read_heads(reader, "num_heads", 16, ("hidden_size", hidden_size)),
            intermediate_size: reader.usize_or("intermediate_size", 4 * hidden_size, 1..=1 << 20),
            is_local: read_attention_types(reader, num_layers),
            window_size: reader.usize_or("window_size", 256, 1..=1 << 20),
            activation_function: read_activation(
                reader,
                "activation_function",
                Activation::GeluTanh,
            ),
            embed_dropout: read_dropout(reader, "embed_dropout", 0.0),
            attention_dropout: read_dropout(reader, "attention_dropout", 0.0),
            resid_dropout: read_dropout(reader, "resid_dropout", 0.0),
            layer_norm_epsilon: reader.f64_or("layer_norm_epsilon", 1e-5, 0.0..=1.0) as f32,
            initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
            tie_word_embeddings: reader.bool_or("tie_word_embeddings", true),
            pad_token_id: reader
                .opt_usize("pad_token_id", 0..=1 << 24)
                .map(|id| id as u32),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_layers,
            num_attention_heads: self.num_heads,
            intermediate_size: self.intermediate_size,
            max_positions: self.max_position_embeddings,
            type_vocab_size: 1,
            pad_token_id: self.pad_token_id,
            initializer_range: self.initializer_range,
        }
    }

    fn build(
        &self,
        task: Task,
        num_labels: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Decoder, ModelError> {
        let (vocab, width) = (self.vocab_size, self.hidden_size);
        let is_tied = task == Task::CausalLm && self.tie_word_embeddings;
        let tokens = if is_tied {
            loader.head_table("transformer.wte", vocab, width)?
        } else {
            loader.embedding("transformer.wte", vocab, width, None)?
        };
        let rows = self.max_position_embeddings;
        let positions = loader.embedding("transformer.wpe", rows, width, None)?;
        let blocks = (0..self.num_layers)
            .map(|i| self.block(i, loader))
            .collect::<Result<_, _>>()?;
        let final_norm = self.norm("transformer.ln_f", loader)?;
        let head = match task {
            Task::CausalLm if is_tied => Head::Tied,
            Task::CausalLm => Head::Table(Box::new(loader.head_table(LM_HEAD, vocab, width)?)),
            _ => Head::Score(Box::new(loader.score(width, num_labels)?)),
        };
        Ok(Decoder {
            tokens,
            positions,
            first_position: 0,
            project_in: None,
            embedding_dropout: self.embed_dropout,
            blocks,
            final_norm: Some(final_norm),
            project_out: None,
            head,
            pad_token_id: self.pad_token_id,
        })
    }

    fn block(&self, i: usize, loader: &mut Loader<'_>) -> Result<Block, ModelError> {
        let at = |name: &str| format!("transformer.h.{i}.{name}");
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let mut projection = |name: &str| -> Result<Linear, ModelError> {
            loader.linear_of(LinearSpec {
                path: &at(&format!("attn.attention.{name}")),
                in_features: width,
                out_features: width,
                presence: Presence::Required,
                has_bias: false,
                layout: Layout::Linear,
                std: self.initializer_range,
            })
        };
        let separate = [
            projection("k_proj")?,
            projection("v_proj")?,
            projection("q_proj")?,
        ];
        let mut linear =
            |name: &str, from, to| loader.linear(&at(name), from, to, Presence::Required);
        let attention_output = linear("attn.attention.out_proj", width, width)?;
        let (mlp_input, mlp_output) = (
            linear("mlp.c_fc", width, inner)?,
            linear("mlp.c_proj", inner, width)?,
        );
        Ok(Block {
            attention_norm: self.norm(&at("ln_1"), loader)?,
            projections: Projections::Separate(Box::new(separate)),
            attention_output,
            mlp_norm: self.norm(&at("ln_2"), loader)?,
            mlp_input,
            mlp_output,
            form: BlockForm {
                num_heads: self.num_heads,
                head_dim: width / self.num_heads,
                scale: 1.0,
                window: self.is_local[i].then_some(self.window_size),
                activation: self.activation_function,
                norm_first: true,
                attention_dropout: self.attention_dropout,
                dropout: self.resid_dropout,
            },
        })
    }

    fn norm(&self, path: &str, loader: &mut Loader<'_>) -> Result<Norm, ModelError> {
        Ok(Norm {
            layer: loader.layer_norm(path, self.hidden_size, self.layer_norm_epsilon)?,
            is_listed: true,
        })
    }
}

/// `attention_types`, a list of [kinds, repetitions]: whether each layer is local. Source: transformers
/// `GPTNeoConfig.expand_attention_types_params`.
fn read_attention_types(reader: &ConfigReader<'_>, num_layers: usize) -> Vec<bool> {
    let alternating = || (0..num_layers).map(|i| i % 2 == 1).collect();
    let Some(value) = reader.raw("attention_types").filter(|v| !v.is_null()) else {
        return alternating();
    };
    match expand(value) {
        Some(layers) if layers.len() == num_layers => layers,
        Some(layers) => {
            let message = format!(
                "expected kinds for num_layers = {num_layers} layers, found {}",
                layers.len()
            );
            reader.fault("attention_types", message);
            alternating()
        }
        None => {
            reader.fault(
                "attention_types",
                "expected a list such as [[[\"global\", \"local\"], 12]]",
            );
            alternating()
        }
    }
}

fn expand(value: &Value) -> Option<Vec<bool>> {
    const MOST: u64 = 1 << 10;
    let mut layers = Vec::new();
    for item in value.as_array()? {
        let kinds: Option<Vec<bool>> = item
            .get(0)?
            .as_array()?
            .iter()
            .map(|kind| match kind.as_str()? {
                "global" => Some(false),
                "local" => Some(true),
                _ => None,
            })
            .collect();
        let (kinds, times) = (kinds?, item.get(1)?.as_u64()?);
        for _ in 0..times.min(MOST) {
            layers.extend_from_slice(&kinds);
        }
    }
    Some(layers)
}
