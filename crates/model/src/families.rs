//! The families, by `model_type`. To add one: write its file, add its line to [`FAMILIES`].

pub mod bert;
pub mod deberta;
pub mod deberta_v2;
mod decoder;
pub mod gpt2;
pub mod gpt_neo;
pub mod opt;
pub mod roberta;

use std::fmt::Debug;
use std::sync::Arc;

use lowrank_engine::{Matrix, Tape, Var};
use lowrank_formats::ConfigReader;

use crate::config::{FamilyConfig, ModelConfig, Task};
use crate::error::ModelError;
use crate::generate::Kept;
use crate::loader::Loader;
use crate::model::Batch;
use crate::modules::Modules;
use crate::stored_head::HeadTensors;
use crate::stretch::Stretch;

/// What a family's configuration says beside [`crate::Facts`] and dropout.
pub trait Architecture: Debug + Send + Sync {
    /// Loads a network for the loader's task.
    ///
    /// # Errors
    /// Files that cannot be read; what is wrong with tensors, the loader says at its end.
    fn build(
        &self,
        config: &ModelConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError>;
}

/// The forward code of one model; its parameters are in the list of modules that it was loaded into.
pub trait Network: Send + Sync {
    /// The logits [N, num_labels]: one row a sequence, or one row a token for token classification. A language model has
    /// none here: see [`Network::language_model`].
    fn logits<'m>(
        &'m self,
        modules: &'m Modules,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        stretch: Stretch,
    ) -> Var;

    /// What the embeddings and the first `layers`, fewer than there are, give for every token [M, D].
    fn prefix<'m>(
        &'m self,
        modules: &'m Modules,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        layers: usize,
    ) -> Var;

    /// What a language model has beside; absent for every other task.
    fn language_model(&self) -> Option<&dyn LanguageModel> {
        None
    }
}

/// A network whose head is its table of tokens.
pub trait LanguageModel: Send + Sync {
    /// The hidden states [N, D] of the tokens `rows` of the batch, which rise, ready for [`LanguageModel::head`].
    fn hidden<'m>(
        &'m self,
        modules: &'m Modules,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        rows: &[usize],
        stretch: Stretch,
    ) -> Var;

    /// The output table [V, D]: logits = hidden · tableᵀ.
    fn head<'m>(&self, modules: &'m Modules) -> &'m Matrix;

    /// The number of layers, each with keys and values of its own to keep.
    fn num_layers(&self) -> usize;

    /// Goes on with each sequence of `kept` by the tokens of the batch's sequence of the same number, and keeps their keys
    /// and values: prompts of any length into an empty cache, or one token each after that. Gives the hidden states
    /// [B, D] of each sequence's last token, ready for [`LanguageModel::head`].
    fn extend<'m>(
        &'m self,
        modules: &'m Modules,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        kept: &mut Kept,
    ) -> Var;
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
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The base model's attribute in the full model, with its dot.
    pub prefix: &'static str,
    /// The path of the table of tokens.
    pub tokens: &'static str,
    /// The tensors of its classification heads.
    pub heads: HeadTensors,
    /// Its class names in `architectures`.
    pub classes: Classes,
    /// Targets where the user names none. Source: PEFT's mapping of default targets.
    pub default_targets: &'static [&'static str],
    /// Modules that are trained and saved with an adapter where the user names none and the model has them.
    pub default_saved: &'static [&'static str],
    /// Names of layers that give queries, keys and values one under the other, whose parts can be adapted each by itself.
    pub fused: &'static [&'static str],
    /// Ends of names of tensors in checkpoints that hold nothing: buffers.
    pub ignored: &'static [&'static str],
    /// Reads the family's fields and notes every fault.
    pub read: fn(&ConfigReader<'_>) -> FamilyConfig,
}

impl Family {
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
    gpt2::FAMILY,
    gpt_neo::FAMILY,
    opt::FAMILY,
];

/// The family of a `model_type`.
pub fn family(model_type: &str) -> Result<&'static Family, ModelError> {
    FAMILIES
        .iter()
        .find(|f| f.model_type == model_type)
        .ok_or_else(|| ModelError::UnknownFamily {
            found: model_type.to_string(),
            supported: FAMILIES
                .iter()
                .map(|f| f.model_type)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// The row of each sequence's first token, and the offsets of a batch of one row a sequence.
pub(crate) fn first_rows(offsets: &[usize]) -> (Vec<usize>, Arc<[usize]>) {
    let firsts = offsets[..offsets.len() - 1].to_vec();
    let single = (0..offsets.len()).collect();
    (firsts, single)
}
