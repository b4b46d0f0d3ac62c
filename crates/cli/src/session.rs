//! What several commands do first: open a model directory, choose the device, find an adapter and what it says about its
//! labels, read rows.

use std::path::{Path, PathBuf};

use lowrank_data::{
    ColumnSpec, DataError, LabelMap, LabelNeed, LoadSpec, Loaded, Template, TemplateError,
    Tokenizer, TokenizerError, TokenizerFamily,
};
use lowrank_engine::{DType, Device, Isa};
use lowrank_formats::peft::{AdapterFile, LoraConfig, Loralib, TaskType};
use lowrank_formats::{Checkpoint, FormatError, write_atomic};
use lowrank_model::{LoadOptions, LoadReport, Model, ModelConfig, ModelError};
use lowrank_train::checkpoint::RunState;
use lowrank_train::config::{DataSettings, OptimizationSettings, TaskKind};
use lowrank_train::fingerprint;
use serde::{Deserialize, Serialize};

use crate::args::{CommonArgs, DataArgs, ModelArgs, PrecisionArg};
use crate::errors::{CliError, CliResult};
use crate::source::find_model;

/// Rows are cut to this many tokens unless told otherwise.
pub const DEFAULT_MAX_LENGTH: usize = 128;

/// A model directory with its configuration and tokenizer.
pub struct Base {
    /// As the user named it; written into adapters as the name of their base.
    pub name: String,
    /// Where it is.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its tokenizer, or why there is none; rows that are tokenised already need none.
    pub tokenizer: Result<Tokenizer, TokenizerError>,
    ignore_mismatched_sizes: bool,
    allow_other_base: bool,
}

impl Base {
    /// Opens the directory; weights are not read yet.
    pub fn open(args: &ModelArgs) -> CliResult<Self> {
        let dir = find_model(args)?;
        let config = ModelConfig::read(&dir.join("config.json"))?;
        let family = TokenizerFamily::from_name(&config.model_type);
        let tokenizer = Tokenizer::from_dir(&dir, family);
        Ok(Self {
            name: args.model.clone().unwrap_or_default(),
            dir,
            config,
            tokenizer,
            ignore_mismatched_sizes: args.ignore_mismatched_sizes.unwrap_or(false),
            allow_other_base: args.allow_other_base.unwrap_or(false),
        })
    }

    /// SHA-256 of the weights' files.
    pub fn weights_hash(&self) -> CliResult<String> {
        let files = Checkpoint::open_dir(&self.dir)?;
        fingerprint::of_files(files.files()).map_err(|error| {
            CliError::failure(format!(
                "cannot read the weights in `{}`",
                self.dir.display()
            ))
            .caused_by(Some(&error))
        })
    }

    /// Refuses an adapter whose notes name other weights. Adapters of other programs name none.
    pub fn check_adapter(&self, adapter: &AdapterSource) -> CliResult {
        let noted = adapter.notes.as_ref();
        let Some((notes, expected)) = noted.and_then(|n| Some((n, n.base_sha256.as_ref()?))) else {
            return Ok(());
        };
        if self.allow_other_base || *expected == self.weights_hash()? {
            return Ok(());
        }
        Err(CliError::failure(format!(
            "the adapter was trained on other weights than those of `{}`",
            self.name
        ))
        .hint(format!(
            "its base was `{}`; pass --model with that, or --allow-other-base if these weights are the same in another type",
            notes.base_model
        )))
    }

    /// The head to load.
    pub fn load_options(&self, head: &Head, seed: u64) -> LoadOptions {
        LoadOptions {
            task: head.task.into(),
            num_labels: head.num_labels,
            seed,
            ignore_mismatched_sizes: self.ignore_mismatched_sizes,
        }
    }

    /// Reads the weights.
    pub fn load(&self, head: &Head, seed: u64, device: &Device) -> CliResult<(Model, LoadReport)> {
        Ok(Model::load_as(
            &self.dir,
            self.config.clone(),
            &self.load_options(head, seed),
            device,
        )?)
    }

    /// The model as shapes. A directory without weights, from which one can train from scratch, has all that it takes.
    pub fn shape(&self, head: &Head) -> CliResult<Model> {
        let (dry, options) = (Device::dry(), self.load_options(head, 0));
        match Model::load_as(&self.dir, self.config.clone(), &options, &dry) {
            Err(ModelError::Format(FormatError::NothingFound { .. })) => {
                Ok(Model::from_config(self.config.clone(), &options, &dry)?)
            }
            loaded => Ok(loaded?.0),
        }
    }

    /// Puts a run's dropout in the place of the configuration's own.
    pub fn set_dropouts(&mut self, settings: &OptimizationSettings) -> CliResult {
        if let Some(p) = settings.dropout {
            self.config.set_dropout(p)?;
        }
        if let Some(p) = settings.classifier_dropout {
            self.config.set_classifier_dropout(p)?;
        }
        Ok(())
    }

    /// The limit of tokens a row: what was asked for, if the model can take it.
    pub fn max_length(&self, asked: Option<usize>) -> CliResult<usize> {
        let most = self.config.facts.max_positions;
        match asked {
            None => Ok(DEFAULT_MAX_LENGTH.min(most)),
            Some(length) if length <= most => Ok(length),
            Some(length) => Err(CliError::usage(format!(
                "`max_length` is {length}, but the model has {most} positions"
            ))
            .hint(format!("pass --max-length {most} or less"))),
        }
    }

    /// Whether the checkpoint was saved with a head of this program's kinds.
    pub fn has_head(&self) -> bool {
        self.config
            .architectures
            .iter()
            .any(|a| a.ends_with("Classification"))
    }

    /// The task that the configuration speaks of.
    pub fn task(&self) -> TaskKind {
        task_of(&self.config)
    }
}

/// The task that a configuration speaks of.
pub fn task_of(config: &ModelConfig) -> TaskKind {
    let named = |end: &str| config.architectures.iter().any(|a| a.ends_with(end));
    if named("ForTokenClassification") {
        return TaskKind::TokenClassification;
    }
    if named("LMHeadModel") || named("ForCausalLM") {
        return TaskKind::CausalLm;
    }
    match config.problem_type.as_deref() {
        Some("regression") => TaskKind::Regression,
        Some("multi_label_classification") => TaskKind::MultiLabel,
        Some(_) | None => {
            let one = config.id2label.as_ref().is_some_and(|l| l.len() == 1);
            if one && named("Classification") {
                TaskKind::Regression
            } else {
                TaskKind::SingleLabel
            }
        }
    }
}

/// What the head predicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The task.
    pub task: TaskKind,
    /// Its outputs.
    pub num_labels: usize,
    /// Names of the outputs; none for regression.
    pub labels: Vec<String>,
}

/// The processor with the threads asked for. `LOWRANK_ISA` chooses another instruction set than the best, for comparisons.
pub fn device(common: &CommonArgs, precision: PrecisionArg) -> CliResult<Device> {
    let isa = instruction_set()?;
    if common.threads == Some(0) {
        return Err(CliError::usage("`threads` is 0, expected at least 1"));
    }
    let threads = common.threads.unwrap_or(0);
    Device::cpu_in(precision_on(isa, precision), isa, threads)
        .map_err(|error| CliError::from_error(&error))
}

/// The storage that a choice means on an instruction set.
fn precision_on(isa: Isa, precision: PrecisionArg) -> DType {
    match precision {
        PrecisionArg::Auto if isa.multiplies_bf16() => DType::Bf16,
        PrecisionArg::Auto | PrecisionArg::F32 => DType::F32,
        PrecisionArg::Bf16 => DType::Bf16,
    }
}

/// The device that counts what [`device`] would use.
pub fn dry_device(precision: PrecisionArg) -> CliResult<Device> {
    Ok(Device::dry_in(precision_on(instruction_set()?, precision)))
}

fn instruction_set() -> CliResult<Isa> {
    match std::env::var("LOWRANK_ISA") {
        Err(_) => Ok(Isa::best()),
        Ok(name) => {
            let found = Isa::from_name(&name).filter(|isa| isa.is_available());
            found.ok_or_else(|| {
                let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
                CliError::usage(format!(
                    "LOWRANK_ISA is `{name}`, expected one of {}",
                    names.join(", ")
                ))
            })
        }
    }
}

/// Notes of ours beside an adapter's own files, which stay as PEFT writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterNotes {
    /// What the adapter predicts.
    pub task: TaskKind,
    /// Names of the labels.
    pub labels: Vec<String>,
    /// Rows were cut to this many tokens.
    pub max_length: usize,
    /// The base as it was named.
    pub base_model: String,
    /// SHA-256 of the base's weights.
    #[serde(default)]
    pub base_sha256: Option<String>,
    /// How a language model's prompts and completions were laid out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

/// The template that a language model's rows were laid out by.
pub fn template_of(data: &DataSettings) -> Option<String> {
    (data.task == TaskKind::CausalLm).then(|| {
        let default = || Template::default().to_string();
        data.template.clone().unwrap_or_else(default)
    })
}

const NOTES_FILE: &str = "lowrank.json";

impl AdapterNotes {
    /// Writes them into a directory.
    pub fn write(&self, dir: &Path) -> CliResult {
        let json = serde_json::to_vec_pretty(self).map_err(|error| CliError::from_error(&error))?;
        Ok(write_atomic(&dir.join(NOTES_FILE), &json)?)
    }

    /// Those of a directory, or of the run state of a checkpoint.
    fn read(dir: &Path) -> Option<Self> {
        if let Ok(bytes) = std::fs::read(dir.join(NOTES_FILE)) {
            return serde_json::from_slice(&bytes).ok();
        }
        let state: RunState =
            serde_json::from_slice(&std::fs::read(dir.join("state.json")).ok()?).ok()?;
        let template = template_of(&state.config.data);
        Some(Self {
            task: state.config.data.task,
            labels: state.config.data.labels,
            max_length: state.config.data.max_length,
            base_model: state.config.model,
            base_sha256: None,
            template,
        })
    }
}

/// An adapter on disk.
pub struct AdapterSource {
    /// Its configuration.
    pub config: LoraConfig,
    /// Its tensors.
    pub tensors: AdapterFile,
    /// Our notes, where there are some.
    pub notes: Option<AdapterNotes>,
}

impl AdapterSource {
    /// Opens a PEFT directory, a run, a checkpoint of a run, or a loralib file (whose alpha is `alpha`, as it holds none).
    pub fn open(path: &str, alpha: Option<f64>) -> CliResult<Self> {
        let given = Path::new(path);
        let in_run = given.join("adapter");
        let dir = if !given.join("adapter_config.json").is_file() && in_run.is_dir() {
            in_run
        } else {
            given.to_owned()
        };
        if dir.is_dir() {
            return Ok(Self {
                config: LoraConfig::read(&dir)?,
                tensors: AdapterFile::read(&dir)?,
                notes: AdapterNotes::read(&dir),
            });
        }
        if !dir.is_file() {
            return Err(CliError::usage(format!("there is no adapter `{path}`"))
                .hint("an adapter is a directory with adapter_config.json, a run, or a loralib .bin file"));
        }
        let checkpoint = Checkpoint::open_file(&dir)?;
        if !Loralib::is_loralib(&checkpoint) {
            return Err(
                CliError::usage(format!("`{path}` is not a loralib checkpoint"))
                    .hint("pass the directory that holds adapter_config.json"),
            );
        }
        let loralib = Loralib::read(&dir)?;
        let alpha = alpha.ok_or_else(|| {
            CliError::usage(format!(
                "`{path}` is a loralib checkpoint, which does not hold its alpha"
            ))
            .hint("pass --lora-alpha with the value it was trained with")
        })?;
        Ok(Self {
            config: loralib.config(alpha),
            tensors: loralib.tensors,
            notes: None,
        })
    }

    /// Rows of the head among the tensors.
    pub fn num_labels(&self) -> Option<usize> {
        let heads = [
            ".classifier.weight",
            ".classifier.out_proj.weight",
            ".score.weight",
        ];
        let mut tensors = self.tensors.iter();
        let head = tensors.find(|(key, _)| heads.iter().any(|end| key.ends_with(end)));
        head.and_then(|(_, tensor)| tensor.shape.first().copied())
    }
}

/// The head of a model that is not being trained: by flags, by the adapter's notes and tensors, by the configuration.
pub fn existing_head(
    base: &Base,
    data: &DataArgs,
    adapter: Option<&AdapterSource>,
) -> CliResult<Head> {
    let notes = adapter.and_then(|a| a.notes.as_ref());
    let in_tensors = adapter.and_then(AdapterSource::num_labels);
    let of_adapter = adapter.and_then(|a| a.config.task_type);
    let is_causal = match data.task.or(notes.map(|n| n.task)) {
        Some(task) => task == TaskKind::CausalLm,
        None => match of_adapter {
            Some(task_type) => task_type == TaskType::CausalLm,
            None => base.task() == TaskKind::CausalLm,
        },
    };
    if is_causal {
        return Ok(Head {
            task: TaskKind::CausalLm,
            num_labels: 0,
            labels: Vec::new(),
        });
    }
    if adapter.is_none() && !base.has_head() {
        return Err(CliError::usage(format!(
            "`{}` has no classification head, and no adapter is given",
            base.name
        ))
        .hint("pass --adapter with the directory of an adapter or of a run"));
    }
    let config_labels = || {
        base.config
            .id2label
            .clone()
            .filter(|l| in_tensors.is_none_or(|n| n == l.len()))
    };
    let labels = data
        .labels
        .clone()
        .or_else(|| notes.map(|n| n.labels.clone()))
        .or_else(config_labels);
    let token_adapter = of_adapter == Some(TaskType::TokenClassification);
    let task = data
        .task
        .or_else(|| notes.map(|n| n.task))
        .unwrap_or_else(|| match (token_adapter, in_tensors) {
            (true, _) => TaskKind::TokenClassification,
            // transformers' rule: a head with one output is a regression.
            (false, Some(1)) => TaskKind::Regression,
            (false, Some(_) | None) => base.task(),
        });
    let num_labels = in_tensors
        .or(labels.as_ref().map(Vec::len).filter(|&n| n > 0))
        .unwrap_or(match task {
            TaskKind::Regression | TaskKind::CausalLm => 1,
            TaskKind::SingleLabel | TaskKind::MultiLabel | TaskKind::TokenClassification => 2,
        });
    let labels = match task {
        TaskKind::Regression | TaskKind::CausalLm => Vec::new(),
        TaskKind::SingleLabel | TaskKind::MultiLabel | TaskKind::TokenClassification => {
            labels.unwrap_or_else(|| (0..num_labels).map(|i| format!("LABEL_{i}")).collect())
        }
    };
    if task != TaskKind::Regression && labels.len() != num_labels {
        return Err(CliError::usage(format!(
            "{} label names for a head with {num_labels} outputs",
            labels.len()
        )));
    }
    Ok(Head {
        task,
        num_labels,
        labels,
    })
}

/// How a file of rows is read.
pub fn load_spec(
    base: &Base,
    data: &DataArgs,
    task: TaskKind,
    labels: Option<Vec<String>>,
    max_length: usize,
) -> CliResult<LoadSpec> {
    Ok(LoadSpec {
        columns: ColumnSpec {
            text: data.text_column.clone(),
            text_pair: data.text_pair_column.clone(),
            label: data.label_column.clone(),
        },
        labels: labels
            .filter(|l| !l.is_empty())
            .map(LabelMap::new)
            .transpose()
            .map_err(DataError::from)?,
        max_length: Some(max_length),
        nlg: data.data_format,
        template: match &data.template {
            None => Template::default(),
            Some(text) => text.parse().map_err(|error: TemplateError| {
                CliError::usage(error.to_string())
                    .hint("an example: --template 'Question: {prompt} Answer: {completion}{eos}'")
            })?,
        },
        vocab_size: Some(base.config.facts.vocab_size),
        type_vocab_size: Some(base.config.facts.type_vocab_size),
        ..LoadSpec::new(task.into())
    })
}

/// Reads a file of rows on the device's threads.
pub fn load_rows(path: &str, spec: &LoadSpec, base: &Base, device: &Device) -> CliResult<Loaded> {
    let tokenizer = base.tokenizer.as_ref();
    let loaded =
        device.install(|| lowrank_data::load_examples(Path::new(path), spec, tokenizer.ok()));
    loaded.map_err(|error| match (&error, tokenizer) {
        (DataError::NoTokenizer { .. }, Err(reason)) => {
            CliError::from(error).caused_by(Some(reason))
        }
        _ => CliError::from(error),
    })
}

/// The same without needing labels.
pub fn unlabelled(spec: LoadSpec) -> LoadSpec {
    LoadSpec {
        need: LabelNeed::Ignored,
        ..spec
    }
}

/// What loading found that a user should know, one sentence each.
pub fn load_notes(report: &LoadReport) -> Vec<String> {
    let list = |names: &[String]| {
        let shown: Vec<_> = names.iter().take(4).map(|n| format!("`{n}`")).collect();
        let more = names.len().saturating_sub(4);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{}{more}", shown.join(", "))
    };
    let mut notes = Vec::new();
    if !report.new.is_empty() {
        notes.push(format!("new, not in the checkpoint: {}", list(&report.new)));
    }
    if !report.mismatched.is_empty() {
        notes.push(format!(
            "started anew, of another shape in the checkpoint: {}",
            list(&report.mismatched)
        ));
    }
    if !report.unused.is_empty() {
        notes.push(format!(
            "in the checkpoint, not used: {}",
            list(&report.unused)
        ));
    }
    notes
}
