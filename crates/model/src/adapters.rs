//! What of a model is trained, a file a method: it attaches, and says what is merged and saved. What methods share is here;
//! `file` reads and writes PEFT's files of whatever is trained.

mod file;
mod full;
mod lora;

use lowrank_engine::{Device, Trainables};

use crate::error::ModelError;
use crate::families::LM_HEAD;
use crate::model::Model;
use crate::modules::{Module, Parameter};
use crate::trained::{SavedModule, TrainMode};
pub(crate) use lora::merged_weight;

/// Names that PEFT saves with the adapter for classification tasks, whether or not the model has them.
const HEAD_NAMES: [&str; 2] = ["classifier", "score"];

impl Model {
    /// A model has one method.
    fn check_frozen(&self) -> Result<(), ModelError> {
        if matches!(self.mode, TrainMode::Frozen) {
            return Ok(());
        }
        Err(ModelError::State(
            "this model is already being trained: load it anew".to_string(),
        ))
    }
}

/// Trains all parameters of a module, under their names behind `prefix`.
fn train_whole(
    module: &mut Module,
    prefix: &str,
    device: &Device,
    trainables: &mut Trainables,
) -> SavedModule {
    let train = |parameter: &mut Parameter| {
        let name = format!("{prefix}{}", parameter.name);
        parameter.train(name, device, trainables)
    };
    SavedModule {
        parameters: module.parameters.iter_mut().map(train).sum(),
        path: module.path.clone(),
    }
}

/// A table that is input and output at once cannot be trained beside adapters: PEFT would train one of two copies.
fn check_shared(module: &Module) -> Result<(), ModelError> {
    let path = &module.path;
    if !module.is_table_of_head() || path == LM_HEAD {
        return Ok(());
    }
    Err(ModelError::Pattern {
        field: "modules_to_save",
        faults: vec![format!(
            "`{path}` is the output head too (`tie_word_embeddings`); only full fine-tuning trains it"
        )],
    })
}
