//! A model that can be run and trained: a network on a device, its trained values, and the checks
//! of what goes in.

mod config;
mod frozen_layers;
mod int8_error;
mod outliers;
mod passes;
mod token_tables;

use std::path::Path;

use lowrank_engine::ops::loss::Targets;
use lowrank_engine::{Device, Trainables};
use lowrank_formats::Checkpoint;

use crate::config::Task;
use crate::error::ModelError;
use crate::families::Network;
use crate::load::{LoadOptions, LoadReport, Loader, Source};
use crate::modules::{Module, Modules};
use crate::pass::Batch;
use crate::trained::{AdapterReport, TrainMode};
pub use config::ModelConfig;
pub use frozen_layers::Passes;
pub use int8_error::Int8Error;
pub use passes::{Evaluated, PassOptions};
pub use token_tables::TokenTables;

/// A model on a device.
pub struct Model {
    pub(crate) device: Device,
    pub(crate) config: ModelConfig,
    pub(crate) task: Task,
    pub(crate) num_labels: usize,
    pub(crate) network: Box<dyn Network>,
    pub(crate) modules: Modules,
    pub(crate) trainables: Trainables,
    /// The names of loaded adapters in the order of their slots; those that were removed have none.
    pub(crate) slots: Vec<Option<String>>,
    pub(crate) mode: TrainMode,
    pub(crate) report: AdapterReport,
    /// Whether the columns that integers keep beside are those of the run's first rows.
    pub(crate) knows_outliers: bool,
}

impl Model {
    /// Loads a Hugging Face directory, `config.json` and its weights, or a GGUF file. All weights
    /// are frozen. Errors: unreadable files, an unsupported config, tensors that are absent, of
    /// another shape or not finite.
    pub fn load(
        dir: &Path,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, LoadReport), ModelError> {
        let config = ModelConfig::open(dir)?;
        Self::load_as(dir, config, options, device)
    }

    /// As [`Model::load`] with a configuration other than the directory's, such as one with other
    /// dropout.
    pub fn load_as(
        dir: &Path,
        config: ModelConfig,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, LoadReport), ModelError> {
        Self::load_with_tables(dir, config, None, options, device)
    }

    /// As [`Model::load_as`] with the tables of tokens that an adapter brings in the place of the
    /// directory's own; the configuration's vocabulary becomes theirs.
    pub fn load_with_tables(
        dir: &Path,
        mut config: ModelConfig,
        tables: Option<&TokenTables>,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, LoadReport), ModelError> {
        if let Some(tables) = tables {
            config.facts.vocab_size = tables.rows();
        }
        let checkpoint = Checkpoint::open_model(dir)?;
        Self::build(config, Some((&checkpoint, tables)), options, device)
    }

    /// A model of the same shape whose weights are all new: random on a device that computes, mere
    /// shapes on the dry one.
    pub fn from_config(
        config: ModelConfig,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Ok(Self::build(config, None, options, device)?.0)
    }

    fn build<'a>(
        config: ModelConfig,
        files: Option<(&'a Checkpoint, Option<&'a TokenTables>)>,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<(Self, LoadReport), ModelError> {
        let family = config.family;
        if family.class(options.task).is_none() {
            return Err(ModelError::UnsupportedConfig(format!(
                "a `{}` model has no head for {}",
                config.model_type,
                options.task.problem_type()
            )));
        }
        let source = |(checkpoint, tables): (_, Option<&'a TokenTables>)| {
            Ok::<_, ModelError>(Source {
                checkpoint,
                names: family.names_in(checkpoint)?,
                ignored: family.ignored,
                tables: tables.map(TokenTables::tensors),
            })
        };
        let source = files.map(source).transpose()?;
        let own = config.of_family();
        let mut loader = Loader::new(device, source, options, own.facts.initializer_range);
        let network = device.install(|| own.architecture.build(&own, &mut loader))?;
        let (modules, load_report) = loader.finish()?;
        let model = Model {
            device: device.clone(),
            task: options.task,
            num_labels: match options.task {
                Task::CausalLm => config.facts.vocab_size,
                _ => options.num_labels,
            },
            config,
            network,
            modules,
            trainables: Trainables::default(),
            slots: Vec::new(),
            mode: TrainMode::Frozen,
            report: AdapterReport::default(),
            knows_outliers: false,
        };
        Ok((model, load_report))
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The head's task.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Outputs of the head: labels, or the vocabulary of a language model.
    pub fn num_labels(&self) -> usize {
        self.num_labels
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The longest sequence it takes, in tokens.
    pub fn max_positions(&self) -> usize {
        self.config.facts.max_positions
    }

    /// Where PEFT would put adapters if none were named.
    pub fn default_targets(&self) -> &'static [&'static str] {
        self.config.family.default_targets
    }

    /// The class name for `architectures` in config.json.
    pub fn architecture(&self) -> &'static str {
        self.config
            .family
            .class(self.task)
            .expect("checked when the model was built")
    }

    /// What is trained.
    pub fn mode(&self) -> &TrainMode {
        &self.mode
    }

    /// What was adapted, layer by layer; empty if nothing is.
    pub fn adapter_report(&self) -> &AdapterReport {
        &self.report
    }

    /// The trained values.
    pub fn trainables(&self) -> &Trainables {
        &self.trainables
    }

    /// The trained values, to change them.
    pub fn trainables_mut(&mut self) -> &mut Trainables {
        &mut self.trainables
    }

    /// Every module, with its parameters.
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Number of values in the model without adapters.
    pub fn base_parameters(&self) -> u64 {
        self.modules.iter().map(Module::count).sum()
    }

    /// Everything about a batch that could be out of range comes from outside: checked before any
    /// op.
    pub(crate) fn check(
        &self,
        batch: &Batch<'_>,
        targets: Option<Targets<'_>>,
    ) -> Result<(), ModelError> {
        let fail = |message: String| Err(ModelError::Batch(message));
        let tokens = batch.input_ids.len();
        let rising = batch.offsets.windows(2).all(|w| w[0] < w[1]);
        if batch.sequences() == 0
            || batch.offsets[0] != 0
            || !rising
            || batch.offsets.last() != Some(&tokens)
        {
            return fail(format!(
                "a batch of {tokens} tokens has offsets {:?}: empty or not in order",
                batch.offsets
            ));
        }
        let longest = batch
            .offsets
            .windows(2)
            .map(|w| w[1] - w[0])
            .max()
            .unwrap_or(0);
        if longest > self.max_positions() {
            return fail(format!(
                "a sequence has {longest} tokens, the model has {} positions",
                self.max_positions()
            ));
        }
        if let Some(id) = batch
            .input_ids
            .iter()
            .find(|&&id| id as usize >= self.config.facts.vocab_size)
        {
            return fail(format!(
                "token id {id} is outside the vocabulary of {} tokens",
                self.config.facts.vocab_size
            ));
        }
        if let Some(ids) = batch.token_type_ids {
            if ids.len() != tokens {
                return fail(format!("{} token types for {tokens} tokens", ids.len()));
            }
            let types = self.config.facts.type_vocab_size;
            if let Some(id) = ids.iter().find(|&&id| types > 1 && id as usize >= types) {
                return fail(format!(
                    "token type {id} is outside the table of {types} types"
                ));
            }
        }
        targets.map_or(Ok(()), |targets| self.check_targets(batch, targets))
    }

    fn check_targets(&self, batch: &Batch<'_>, targets: Targets<'_>) -> Result<(), ModelError> {
        let rows = match self.task.is_per_token() {
            true => batch.tokens(),
            false => batch.sequences(),
        };
        let labels = self.num_labels;
        let fault = match (self.task, targets) {
            (
                Task::SingleLabel | Task::TokenClassification | Task::CausalLm,
                Targets::Class(classes),
            ) => {
                let in_range =
                    |&c: &i64| c == crate::IGNORE_INDEX || (0..labels as i64).contains(&c);
                let firsts = &batch.offsets[..batch.sequences()];
                let is_target = |&&row: &&usize| classes[row] != crate::IGNORE_INDEX;
                if classes.len() != rows {
                    Some(format!("{} labels for {rows} rows", classes.len()))
                } else if self.task == Task::CausalLm && firsts.iter().any(|row| is_target(&row)) {
                    Some(
                        "the first token of a sequence has a label, but nothing predicts it: expected -100"
                            .to_string(),
                    )
                } else {
                    let bad = classes.iter().find(|c| !in_range(c));
                    bad.map(|c| format!("label {c} is outside 0..{labels}"))
                }
            }
            (Task::Regression, Targets::Value(values))
            | (Task::MultiLabel, Targets::Multi(values)) => {
                if values.len() != rows * labels {
                    Some(format!(
                        "{} target values for {rows} rows of {labels}",
                        values.len()
                    ))
                } else {
                    values
                        .iter()
                        .find(|v| !v.is_finite())
                        .map(|v| format!("target value {v} is not finite"))
                }
            }
            (task, _) => Some(format!(
                "the targets are not those of {}",
                task.problem_type()
            )),
        };
        fault.map_or(Ok(()), |message| Err(ModelError::Batch(message)))
    }
}
