//! The families, by `model_type`. To add one: write its file, add its line to [`FAMILIES`]; its tokenizer, PEFT's default
//! targets and presets are known in the crates data, formats and cli.

pub mod bert;
pub mod deberta;
pub mod deberta_v2;
mod decoder;
pub mod gpt2;
pub mod gpt_neo;
pub mod opt;
pub mod roberta;

use std::sync::Arc;

use lowrank_engine::{Matrix, Tape, Var};
use lowrank_formats::ConfigReader;

use crate::config::{Facts, ModelConfig, Task};
use crate::error::ModelError;
use crate::generate::Kept;
use crate::loader::Loader;
use crate::model::Batch;
use crate::modules::{ModuleMut, ModuleRef};
use crate::stored_head::HeadTensors;
use crate::stretch::Stretch;

/// A network of one family: forward code and a list of its modules.
pub trait Network: Send + Sync {
    /// The logits [N, num_labels]: one row a sequence, or one row a token for token classification. A language model has
    /// none here: see [`Network::language_model`].
    fn logits<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, stretch: Stretch) -> Var;

    /// What the embeddings and the first `layers`, fewer than there are, give for every token [M, D].
    fn prefix<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, layers: usize) -> Var;

    /// What a language model has beside; absent for every other task.
    fn language_model(&self) -> Option<&dyn LanguageModel> {
        None
    }

    /// Every module, in the order of PyTorch's `named_modules`.
    fn modules(&self) -> Vec<ModuleRef<'_>>;

    /// Every module, to change it; the same order.
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>>;
}

/// A network whose head is its table of tokens.
pub trait LanguageModel: Send + Sync {
    /// The hidden states [N, D] of the tokens `rows` of the batch, which rise, ready for [`LanguageModel::head`].
    fn hidden<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        rows: &[usize],
        stretch: Stretch,
    ) -> Var;

    /// The output table [V, D]: logits = hidden · tableᵀ.
    fn head(&self) -> &Matrix;

    /// The number of layers, each with keys and values of its own to keep.
    fn num_layers(&self) -> usize;

    /// Goes on with each sequence of `kept` by the tokens of the batch's sequence of the same number, and keeps their keys
    /// and values: prompts of any length into an empty cache, or one token each after that. Gives the hidden states
    /// [B, D] of each sequence's last token, ready for [`LanguageModel::head`].
    fn extend<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, kept: &mut Kept) -> Var;
}

/// Builds a network of a family for a task with that many outputs.
pub type Build =
    fn(&ModelConfig, Task, usize, &mut Loader<'_>) -> Result<Box<dyn Network>, ModelError>;

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
    /// Targets where the user names none. Source: PEFT's mapping of default targets.
    pub default_targets: &'static [&'static str],
    /// Modules that are trained and saved with an adapter where the user names none and the model has them.
    pub default_saved: &'static [&'static str],
    /// The class name for `architectures`, by task; none where the family cannot do the task.
    pub architecture: fn(Task) -> Option<&'static str>,
    /// Reads the family's fields, notes every fault, and says what the rest of the program needs.
    pub facts: fn(&ConfigReader<'_>) -> Facts,
    /// Names of layers that give queries, keys and values one under the other, whose parts can be adapted each by itself.
    pub fused: &'static [&'static str],
    /// The keys of the dropout probabilities in config.json.
    pub dropouts: &'static [&'static str],
    /// Ends of names of tensors in checkpoints that hold nothing: buffers.
    pub ignored: &'static [&'static str],
    /// Builds the network; the config has passed `facts`.
    pub build: Build,
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
