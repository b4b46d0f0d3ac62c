//! The families, by `model_type`. To add one: write its file, add its line to [`FAMILIES`].

pub mod bert;
pub mod deberta;
pub mod deberta_v2;
mod decoder;
pub mod gemma;
pub mod gemma2;
pub mod gemma3_text;
pub mod gpt2;
pub mod gpt_neo;
pub mod granite;
pub mod llama;
pub mod mistral;
pub mod modernbert;
pub mod olmo2;
pub mod opt;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
mod residual;
pub mod roberta;
pub mod smollm3;
mod stored_head;

use std::fmt::Debug;
use std::sync::Arc;

use lowrank_engine::Var;
use lowrank_engine::ops::blocks::PARTS;
use lowrank_engine::ops::lm_head::LmHead;
use lowrank_formats::{Checkpoint, ConfigReader};

use crate::config::{Dropouts, Facts, Task};
use crate::error::ModelError;
use crate::load::{Loader, Names, Naming};
use crate::pass::{Batch, CausalBatch, LayerRange, Pass};
pub use stored_head::{HeadKind, StoredHead};

/// A family's fields of config.json after they were read.
#[derive(Debug, Clone)]
pub struct FamilyConfig {
    /// The model's shape.
    pub facts: Facts,
    /// Its dropout.
    pub dropouts: Dropouts,
    /// All else, which only the family's network needs.
    pub architecture: Arc<dyn Architecture>,
}

/// What a family's configuration says beside [`Facts`] and dropout.
pub trait Architecture: Debug + Send + Sync {
    /// Loads a network for the loader's task.
    ///
    /// # Errors
    /// Files that cannot be read; what is wrong with tensors, the loader says at its end.
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError>;
}

/// The forward code of one model; its parameters are in the list of modules that it was loaded
/// into.
pub trait Network: Send + Sync {
    /// The hidden states [N, D] that the classifier reads, one a sequence or one a token; where the
    /// range ends below the head, what its last layer gives for every token [M, D].
    fn hidden(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>, range: LayerRange) -> Var;

    /// The logits [N, num_labels] of hidden states. A language model has none here.
    fn classify(&self, pass: &mut Pass<'_, '_>, hidden: Var) -> Var;

    /// Whether the rows of each layer's input are tokens of one sequence each, so that sequences
    /// may have adapters of their own.
    fn keeps_rows_apart(&self) -> bool {
        true
    }

    /// What a language model has beside; absent for every other task.
    fn language_model(&self) -> Option<&dyn LanguageModel> {
        None
    }
}

/// A network whose head is its table of tokens.
pub trait LanguageModel: Send + Sync {
    /// The hidden states [N, D] of the wanted tokens, ready for [`LanguageModel::head`]; where the
    /// range ends below the head, what its last layer gives for every token [M, D].
    fn hidden_of(&self, pass: &mut Pass<'_, '_>, batch: &CausalBatch, range: LayerRange) -> Var;

    /// What makes logits of hidden states: the output table [V, D] and what adapters add.
    fn head<'m>(&self, pass: &Pass<'_, 'm>) -> LmHead<'m>;

    /// The number of layers, each with keys and values of its own to keep.
    fn num_layers(&self) -> usize;
}

/// The output table of a language model that is not tied to the input's, in every family.
pub(crate) const LM_HEAD: &str = "lm_head";

/// The tensors that make a family's heads, by the model's names.
#[derive(Debug, Clone, Copy)]
pub struct HeadTensors {
    /// Of a sequence's head, its outputs' weight first.
    pub sequence: &'static [&'static str],
    /// The outputs' weight of the head for each token, where the family has one.
    pub tokens: Option<&'static str>,
}

/// transformers' class names, by task.
#[derive(Debug, Clone, Copy)]
pub struct Classes {
    /// Of sequences.
    pub sequence: &'static str,
    /// Of each token, where the family has that head.
    pub tokens: Option<&'static str>,
    /// Of language models, where the family has that head.
    pub causal_lm: Option<&'static str>,
}

/// What the rest of the program needs to know of a family.
#[derive(Debug)]
pub struct Family {
    /// What its tensors are called.
    pub naming: Naming,
    /// The tensors of its classification heads.
    pub heads: HeadTensors,
    /// Its class names in `architectures`.
    pub classes: Classes,
    /// Targets where the user names none. Source: PEFT's mapping of default targets.
    pub default_targets: &'static [&'static str],
    /// Modules that are trained and saved with an adapter where the user names none and the model
    /// has them.
    pub default_saved: &'static [&'static str],
    /// Layers of which each gives several things one under the other, so that parts can be adapted
    /// each by itself.
    pub fused: &'static [Fused],
    /// Ends of names of tensors in checkpoints that hold nothing: buffers.
    pub ignored: &'static [&'static str],
    /// Reads the family's fields and notes every fault.
    pub read: fn(&ConfigReader<'_>) -> FamilyConfig,
}

/// A layer that several are fused in.
#[derive(Debug, Clone, Copy)]
pub struct Fused {
    /// Its name.
    pub layer: &'static str,
    /// Names of its parts, in the order of its rows.
    pub parts: &'static [&'static str],
    /// Rows of each; 0 behind the last.
    pub(crate) rows: fn(&Facts) -> [usize; PARTS],
}

impl Fused {
    /// Queries, keys and values.
    const fn qkv(layer: &'static str) -> Self {
        Fused {
            layer,
            parts: &["q", "k", "v"],
            rows: |facts| {
                let kv = facts.num_key_value_heads * facts.head_dim;
                [facts.num_attention_heads * facts.head_dim, kv, kv]
            },
        }
    }

    /// The two halves of a gated feed-forward layer.
    const fn gate_up(layer: &'static str) -> Self {
        Fused {
            layer,
            parts: &["gate", "up"],
            rows: |facts| [facts.intermediate_size, facts.intermediate_size, 0],
        }
    }
}

impl Family {
    /// A decoder with rotary positions, under LLaMA's names.
    const fn rotary(
        model_type: &'static str,
        classes: Classes,
        default_targets: &'static [&'static str],
        read: fn(&ConfigReader<'_>) -> FamilyConfig,
    ) -> Self {
        Family {
            naming: Naming {
                model_type,
                prefix: "model.",
                tokens: decoder::TOKENS,
            },
            heads: decoder::SCORE,
            classes,
            default_targets,
            default_saved: &[],
            fused: &[],
            // Frequencies as a buffer, and the copy of a tied table that some files hold.
            ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
            read,
        }
    }

    /// The names of a checkpoint of this family.
    ///
    /// # Errors
    /// The file is the state dict of a model with adapters, or holds several models, or one of
    /// another family.
    pub(crate) fn names_in(&self, checkpoint: &Checkpoint) -> Result<Names, ModelError> {
        let all: Vec<Naming> = FAMILIES.iter().map(|family| family.naming).collect();
        Names::read(checkpoint, self.naming, &all)
    }

    /// The class name for `architectures`; none where the family cannot do the task.
    pub fn class(&self, task: Task) -> Option<&'static str> {
        match task {
            Task::SingleLabel | Task::MultiLabel | Task::Regression => Some(self.classes.sequence),
            Task::TokenClassification => self.classes.tokens,
            Task::CausalLm => self.classes.causal_lm,
        }
    }
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    bert::FAMILY,
    roberta::FAMILY,
    roberta::XLM_FAMILY,
    deberta::FAMILY,
    deberta_v2::FAMILY,
    modernbert::FAMILY,
    gpt2::FAMILY,
    gpt_neo::FAMILY,
    opt::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3_text::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    smollm3::FAMILY,
    granite::FAMILY,
];

/// The family of a `model_type`.
pub fn family(model_type: &str) -> Result<&'static Family, ModelError> {
    FAMILIES
        .iter()
        .find(|f| f.naming.model_type == model_type)
        .ok_or_else(|| ModelError::UnknownFamily {
            found: model_type.to_string(),
            supported: FAMILIES
                .iter()
                .map(|f| f.naming.model_type)
                .collect::<Vec<_>>()
                .join(", "),
        })
}
