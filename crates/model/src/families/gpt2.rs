//! GPT-2 (Radford et al. 2019) and what shares its architecture, such as DistilGPT-2 and Cerebras-GPT: weights stored as
//! `Conv1D` [in, out], queries, keys and values from one fused layer, pre-norm. Source: transformers `modeling_gpt2.py`.

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
    model_type: "gpt2",
    prefix: "transformer.",
    tokens: "transformer.wte",
    heads: HeadTensors {
        sequence: &["score.weight"],
        tokens: None,
    },
    default_targets: &["c_attn"],
    default_saved: &[],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("GPT2ForSequenceClassification")
        }
        Task::CausalLm => Some("GPT2LMHeadModel"),
        Task::TokenClassification => None,
    },
    facts: |reader| Gpt2Config::read(reader).facts(),
    fused: &["c_attn"],
    dropouts: &["embd_pdrop", "attn_pdrop", "resid_pdrop"],
    // The causal mask as a buffer, and the copy of a tied table that some files hold.
    ignored: &[".attn.bias", ".attn.masked_bias", "lm_head.weight"],
    build: |config, task, num_labels, loader| {
        let config = Gpt2Config::read(&config.reader());
        Ok(Box::new(config.build(task, num_labels, loader)?))
    },
};

/// The family's fields of config.json, under the names of the files.
struct Gpt2Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    activation_function: Activation,
    embd_pdrop: f32,
    attn_pdrop: f32,
    resid_pdrop: f32,
    layer_norm_epsilon: f32,
    initializer_range: f32,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
    pad_token_id: Option<u32>,
}

impl Gpt2Config {
    fn read(reader: &ConfigReader<'_>) -> Self {
        let n_embd = reader.usize_or("n_embd", 768, 1..=1 << 16);
        // Computes the scores in f32, as is always done here.
        reader.bool_or("reorder_and_upcast_attn", false);
        if reader.bool_or("add_cross_attention", false) {
            reader.fault("add_cross_attention", "expected false: there is no encoder");
        }
        Gpt2Config {
            vocab_size: reader.usize_or("vocab_size", 50257, 1..=1 << 24),
            n_positions: reader.usize_or("n_positions", 1024, 1..=1 << 20),
            n_embd,
            n_layer: reader.usize_or("n_layer", 12, 1..=1 << 10),
            n_head: read_heads(reader, "n_head", 12, ("n_embd", n_embd)),
            n_inner: reader.usize_or("n_inner", 4 * n_embd, 1..=1 << 20),
            activation_function: read_activation(
                reader,
                "activation_function",
                Activation::GeluTanh,
            ),
            embd_pdrop: read_dropout(reader, "embd_pdrop", 0.1),
            attn_pdrop: read_dropout(reader, "attn_pdrop", 0.1),
            resid_pdrop: read_dropout(reader, "resid_pdrop", 0.1),
            layer_norm_epsilon: reader.f64_or("layer_norm_epsilon", 1e-5, 0.0..=1.0) as f32,
            initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
            scale_attn_weights: reader.bool_or("scale_attn_weights", true),
            scale_attn_by_inverse_layer_idx: reader
                .bool_or("scale_attn_by_inverse_layer_idx", false),
            tie_word_embeddings: reader.bool_or("tie_word_embeddings", true),
            pad_token_id: reader
                .opt_usize("pad_token_id", 0..=1 << 24)
                .map(|id| id as u32),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.n_embd,
            num_hidden_layers: self.n_layer,
            num_attention_heads: self.n_head,
            intermediate_size: self.n_inner,
            max_positions: self.n_positions,
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
        let (vocab, width) = (self.vocab_size, self.n_embd);
        let is_tied = task == Task::CausalLm && self.tie_word_embeddings;
        let tokens = if is_tied {
            loader.head_table("transformer.wte", vocab, width)?
        } else {
            loader.embedding("transformer.wte", vocab, width, None)?
        };
        let positions = loader.embedding("transformer.wpe", self.n_positions, width, None)?;
        let blocks = (0..self.n_layer)
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
            embedding_dropout: self.embd_pdrop,
            blocks,
            final_norm: Some(final_norm),
            project_out: None,
            head,
            pad_token_id: self.pad_token_id,
        })
    }

    fn block(&self, i: usize, loader: &mut Loader<'_>) -> Result<Block, ModelError> {
        let at = |name: &str| format!("transformer.h.{i}.{name}");
        let (width, inner) = (self.n_embd, self.n_inner);
        let std = self.initializer_range;
        // What is summed into the residual stream starts smaller the deeper the model. Source: Radford et al. 2019, 2.3.
        let residual_std = std / (2.0 * self.n_layer as f32).sqrt();
        let head_dim = width / self.n_head;
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale = 1.0 / (head_dim as f32).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (i + 1) as f32;
        }
        Ok(Block {
            attention_norm: self.norm(&at("ln_1"), loader)?,
            projections: Projections::Fused(Box::new(conv1d(
                loader,
                &at("attn.c_attn"),
                [width, 3 * width],
                std,
            )?)),
            attention_output: conv1d(loader, &at("attn.c_proj"), [width, width], residual_std)?,
            mlp_norm: self.norm(&at("ln_2"), loader)?,
            mlp_input: conv1d(loader, &at("mlp.c_fc"), [width, inner], std)?,
            mlp_output: conv1d(loader, &at("mlp.c_proj"), [inner, width], residual_std)?,
            form: BlockForm {
                num_heads: self.n_head,
                head_dim,
                scale,
                window: None,
                activation: self.activation_function,
                norm_first: true,
                attention_dropout: self.attn_pdrop,
                dropout: self.resid_pdrop,
            },
        })
    }

    fn norm(&self, path: &str, loader: &mut Loader<'_>) -> Result<Norm, ModelError> {
        Ok(Norm {
            layer: loader.layer_norm(path, self.n_embd, self.layer_norm_epsilon)?,
            is_listed: true,
        })
    }
}

fn conv1d(
    loader: &mut Loader<'_>,
    path: &str,
    [in_features, out_features]: [usize; 2],
    std: f32,
) -> Result<Linear, ModelError> {
    loader.linear_of(LinearSpec {
        path,
        in_features,
        out_features,
        presence: Presence::Required,
        has_bias: true,
        layout: Layout::Conv1d,
        std,
    })
}
