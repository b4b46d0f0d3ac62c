//! OPT (Zhang et al. 2022), Meta's replication of GPT-3: positions start at row 2, norms before the sublayers (after them in
//! the 350M model, whose token table is narrower too), ReLU. Source: transformers `modeling_opt.py`.

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::config::{Facts, Task, read_activation, read_dropout, read_heads};
use crate::error::ModelError;
use crate::families::Family;
use crate::families::decoder::{Block, BlockForm, Decoder, Head, Norm, Projections};
use crate::loader::{LM_HEAD, LinearSpec, Loader, Presence};
use crate::modules::{Layout, Linear};
use crate::stored_head::HeadTensors;

/// The registry's line.
pub const FAMILY: Family = Family {
    model_type: "opt",
    prefix: "model.",
    tokens: "model.decoder.embed_tokens",
    heads: HeadTensors {
        sequence: &["score.weight"],
        tokens: None,
    },
    default_targets: &["q_proj", "v_proj"],
    default_saved: &[],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("OPTForSequenceClassification")
        }
        Task::CausalLm => Some("OPTForCausalLM"),
        Task::TokenClassification => None,
    },
    facts: |reader| OptConfig::read(reader).facts(),
    fused: &[],
    dropouts: &["dropout", "attention_dropout"],
    // The copy of a tied table that some files hold.
    ignored: &["lm_head.weight"],
    build: |config, task, num_labels, loader| {
        let config = OptConfig::read(&config.reader());
        Ok(Box::new(config.build(task, num_labels, loader)?))
    },
};

/// Rows of the position table that no token has.
const POSITION_OFFSET: usize = 2;

/// PyTorch's default.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The family's fields of config.json.
struct OptConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    word_embed_proj_dim: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    ffn_dim: usize,
    activation_function: Activation,
    do_layer_norm_before: bool,
    has_final_norm: bool,
    layer_norm_elementwise_affine: bool,
    enable_bias: bool,
    dropout: f32,
    attention_dropout: f32,
    init_std: f32,
    tie_word_embeddings: bool,
    pad_token_id: Option<u32>,
}

impl OptConfig {
    fn read(reader: &ConfigReader<'_>) -> Self {
        let hidden_size = reader.usize_or("hidden_size", 768, 1..=1 << 16);
        let do_layer_norm_before = reader.bool_or("do_layer_norm_before", true);
        if reader.f64_or("layerdrop", 0.0, 0.0..=1.0) > 0.0 {
            reader.fault("layerdrop", "expected 0: layers are not dropped here");
        }
        OptConfig {
            vocab_size: reader.usize_or("vocab_size", 50272, 1..=1 << 24),
            max_position_embeddings: reader.usize_or("max_position_embeddings", 2048, 1..=1 << 20),
            hidden_size,
            word_embed_proj_dim: reader.usize_or("word_embed_proj_dim", hidden_size, 1..=1 << 16),
            num_hidden_layers: reader.usize_or("num_hidden_layers", 12, 1..=1 << 10),
            num_attention_heads: read_heads(
                reader,
                "num_attention_heads",
                12,
                ("hidden_size", hidden_size),
            ),
            ffn_dim: reader.usize_or("ffn_dim", 3072, 1..=1 << 20),
            activation_function: read_activation(reader, "activation_function", Activation::Relu),
            do_layer_norm_before,
            has_final_norm: do_layer_norm_before
                && !reader.bool_or("_remove_final_layer_norm", false),
            layer_norm_elementwise_affine: reader.bool_or("layer_norm_elementwise_affine", true),
            enable_bias: reader.bool_or("enable_bias", true),
            dropout: read_dropout(reader, "dropout", 0.1),
            attention_dropout: read_dropout(reader, "attention_dropout", 0.0),
            init_std: reader.f64_or("init_std", 0.02, 0.0..=10.0) as f32,
            tie_word_embeddings: reader.bool_or("tie_word_embeddings", true),
            pad_token_id: Some(reader.usize_or("pad_token_id", 1, 0..=1 << 24) as u32),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.ffn_dim,
            max_positions: self.max_position_embeddings,
            type_vocab_size: 1,
            pad_token_id: self.pad_token_id,
            initializer_range: self.init_std,
        }
    }

    fn build(
        &self,
        task: Task,
        num_labels: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Decoder, ModelError> {
        let (vocab, width, narrow) = (self.vocab_size, self.hidden_size, self.word_embed_proj_dim);
        let is_tied = task == Task::CausalLm && self.tie_word_embeddings;
        let tokens_path = "model.decoder.embed_tokens";
        let tokens = if is_tied {
            loader.head_table(tokens_path, vocab, narrow)?
        } else {
            loader.embedding(tokens_path, vocab, narrow, self.pad_token_id)?
        };
        let rows = self.max_position_embeddings + POSITION_OFFSET;
        let positions = loader.embedding("model.decoder.embed_positions", rows, width, None)?;
        let (mut project_in, mut project_out) = (None, None);
        if narrow != width {
            let spec = LinearSpec {
                path: "model.decoder.project_in",
                in_features: narrow,
                out_features: width,
                presence: Presence::Required,
                has_bias: false,
                layout: Layout::Linear,
                std: self.init_std,
            };
            project_in = Some(loader.linear_of(spec)?);
            project_out = Some(loader.linear_of(LinearSpec {
                path: "model.decoder.project_out",
                in_features: width,
                out_features: narrow,
                ..spec
            })?);
        }
        let blocks = (0..self.num_hidden_layers)
            .map(|i| self.block(i, loader))
            .collect::<Result<_, _>>()?;
        let final_norm = self
            .has_final_norm
            .then(|| self.norm("model.decoder.final_layer_norm", loader))
            .transpose()?;
        let head = match task {
            Task::CausalLm if is_tied => Head::Tied,
            Task::CausalLm => Head::Table(Box::new(loader.head_table(LM_HEAD, vocab, narrow)?)),
            _ => Head::Score(Box::new(loader.score(narrow, num_labels)?)),
        };
        Ok(Decoder {
            tokens,
            positions,
            first_position: POSITION_OFFSET as u32,
            project_in,
            embedding_dropout: 0.0,
            blocks,
            final_norm,
            project_out,
            head,
            pad_token_id: self.pad_token_id,
        })
    }

    fn block(&self, i: usize, loader: &mut Loader<'_>) -> Result<Block, ModelError> {
        let at = |name: &str| format!("model.decoder.layers.{i}.{name}");
        let (width, inner) = (self.hidden_size, self.ffn_dim);
        let mut linear = |name: &str, in_features, out_features| -> Result<Linear, ModelError> {
            loader.linear_of(LinearSpec {
                path: &at(name),
                in_features,
                out_features,
                presence: Presence::Required,
                has_bias: self.enable_bias,
                layout: Layout::Linear,
                std: self.init_std,
            })
        };
        let separate = [
            linear("self_attn.k_proj", width, width)?,
            linear("self_attn.v_proj", width, width)?,
            linear("self_attn.q_proj", width, width)?,
        ];
        let attention_output = linear("self_attn.out_proj", width, width)?;
        let (mlp_input, mlp_output) = (linear("fc1", width, inner)?, linear("fc2", inner, width)?);
        let head_dim = width / self.num_attention_heads;
        Ok(Block {
            attention_norm: self.norm(&at("self_attn_layer_norm"), loader)?,
            projections: Projections::Separate(Box::new(separate)),
            attention_output,
            mlp_norm: self.norm(&at("final_layer_norm"), loader)?,
            mlp_input,
            mlp_output,
            form: BlockForm {
                num_heads: self.num_attention_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: None,
                activation: self.activation_function,
                norm_first: self.do_layer_norm_before,
                attention_dropout: self.attention_dropout,
                dropout: self.dropout,
            },
        })
    }

    fn norm(&self, path: &str, loader: &mut Loader<'_>) -> Result<Norm, ModelError> {
        let is_listed = self.layer_norm_elementwise_affine;
        let layer = if is_listed {
            loader.layer_norm(path, self.hidden_size, LAYER_NORM_EPS)?
        } else {
            loader.plain_layer_norm(path, self.hidden_size, LAYER_NORM_EPS)
        };
        Ok(Norm { layer, is_listed })
    }
}
