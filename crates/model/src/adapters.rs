//! What of a model is trained, a file a method: it attaches, and says what is merged and saved.
//! What methods share is here; `file` reads and writes PEFT's files of whatever is trained.

mod bitfit;
mod file;
mod full;
mod lora;
mod slots;

use lowrank_engine::{Device, Trainables};

use crate::config::Task;
use crate::error::ModelError;
use crate::families::LM_HEAD;
use crate::model::Model;
use crate::modules::{Module, Parameter};
use crate::trained::{SavedModule, TrainMode};
pub(crate) use lora::{merged_table, merged_weight, whole_b};
pub use slots::AdapterSlot;

/// Names that PEFT saves with the adapter for classification tasks, whether or not the model has
/// them.
const HEAD_NAMES: [&str; 2] = ["classifier", "score"];

impl Model {
    /// A model has one method.
    fn check_frozen(&self) -> Result<(), ModelError> {
        if matches!(self.mode, TrainMode::Frozen) && self.trainables.is_empty() {
            return Ok(());
        }
        Err(ModelError::State(
            "this model is already being trained: load it anew".to_string(),
        ))
    }

    /// Adds the modules that are trained whole beside a new adapter: the family's own, unless some
    /// are named, poolers that the checkpoint lacks, and the head. Returns what a user should know.
    fn complete_saved(&self, saved: &mut Option<Vec<String>>) -> Vec<String> {
        let mut notes = Vec::new();
        if saved.is_none() {
            let has = |name: &&&str| self.modules.iter().any(|module| module.has_part(name));
            for name in self.config.family.default_saved.iter().filter(has) {
                add_name(saved, name);
                notes.push(format!("`{name}` is trained and saved too"));
            }
        }
        for (path, name) in self.new_poolers(saved.as_deref()) {
            // A new pooler that were neither trained nor saved would be another one at each load.
            add_name(saved, name);
            notes.push(format!(
                "`{path}` is new, so `{name}` is trained and saved too"
            ));
        }
        if self.task != Task::CausalLm {
            HEAD_NAMES.iter().for_each(|name| add_name(saved, name));
        }
        notes
    }

    /// Poolers that the checkpoint lacks and that are not among the modules saved, with the names
    /// that save them.
    fn new_poolers(&self, saved: Option<&[String]>) -> Vec<(String, &'static str)> {
        let is_saved = |of: &str| saved.into_iter().flatten().any(|name| name.contains(of));
        let pooler = |module: &Module| {
            let of = ["pooler", "head."].into_iter();
            let mut of = of.filter(|of| module.path.contains(of));
            let name = of.next()?.trim_end_matches('.');
            let is_new = module.parameters[0].is_new && !is_saved(name);
            is_new.then(|| (module.path.clone(), name))
        };
        self.modules.iter().filter_map(pooler).collect()
    }
}

fn add_name(names: &mut Option<Vec<String>>, name: &str) {
    let names = names.get_or_insert_default();
    if !names.iter().any(|n| n == name) {
        names.push(name.to_string());
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

/// A table that is input and output at once cannot be trained beside adapters: PEFT would train one
/// of two copies.
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
