//! From settings to a run in which nothing is open: the configuration with its defaults, the model,
//! the adapter, the task, the labels and the rows, all read and checked before the weights are.

use lowrank_data::{ChatFormat, LabelMap, Loaded, reads_chats};
use lowrank_engine::Device;
use lowrank_model::{Recompute, TokenTables};
use lowrank_train::config::{
    EvaluationSettings, IntervalStrategy, LoraSettings, Method, NumericSettings,
    OptimizationSettings, Task, TrainConfig,
};
use serde::Deserialize;

use crate::adapter::AdapterSource;
use crate::base::{Base, Head};
use crate::chat;
use crate::device::{NumericChoices, device};
use crate::error::{RunError, RunResult};
use crate::hub::Hub;
use crate::labels::{self, TaskChoice};
use crate::machine::Machine;
use crate::presets::{Preset, SFT};
use crate::rates;
use crate::rows::{KnownLabels, load_rows, load_spec, max_length, rows_of};
use crate::settings::{ModelSettings, RowSettings, Settings, laid_over, typed};
use crate::unused::Unused;

/// What the process lends to a run.
///
/// Without more, the processor's best instruction set, and ids of models are not looked up.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The processor. A run that goes on keeps its bits with the instruction set that
    /// [`crate::machine::isa_to_resume`] gives.
    pub machine: Machine,
    /// Where ids of models are looked up.
    pub hub: Hub,
}

/// What is asked of a training run.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Settings by name, with those of a preset, or of the run that is resumed, below them.
    pub settings: Settings,
    /// Those of them that must have an effect: what was given for this run.
    pub given: Settings,
}

impl Request {
    /// Settings as they are given, over those of the preset that they name, if any.
    ///
    /// # Errors
    /// A name is not known, or there is no such preset.
    pub fn new(given: Settings) -> RunResult<Self> {
        check_names(&given)?;
        let mut settings = match given.get("preset").and_then(|name| name.as_str()) {
            None => Settings::new(),
            Some(name) => Preset::find(name)?.below(&given),
        };
        settings.retain(|name, _| is_known(name));
        settings.extend(given.clone());
        Ok(Self { settings, given })
    }
}

/// Settings beside those of a configuration.
const BESIDE: [&str; 3] = ["allow_other_base", "full", "preset"];

/// Whether a training run has a setting of this name.
pub fn is_known(name: &str) -> bool {
    BESIDE.contains(&name)
        || TrainConfig::of("", "", Task::SingleLabel, "")
            .to_map()
            .contains_key(name)
}

fn check_names(settings: &Settings) -> RunResult {
    let Some(name) = settings.keys().find(|name| !is_known(name)) else {
        return Ok(());
    };
    let known = TrainConfig::of("", "", Task::SingleLabel, "").to_map();
    let names = known.keys().map(String::as_str).chain(BESIDE);
    let near = lowrank_formats::nearest(name, names);
    Err(RunError::usage(format!("unknown setting `{name}`"))
        .maybe_hint(near.map(|near| format!("did you mean `{near}`?"))))
}

/// The settings that decide which defaults the others have.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    preset: Option<String>,
    model: Option<String>,
    ignore_mismatched_sizes: Option<bool>,
    adapter: Option<String>,
    lora_alpha: Option<f64>,
    #[serde(flatten)]
    method: AskedMethod,
    train_file: Option<String>,
    validation_file: Option<String>,
    test_file: Option<String>,
    eval_strategy: Option<IntervalStrategy>,
    eval_steps: Option<u64>,
    save_strategy: Option<IntervalStrategy>,
    save_steps: Option<u64>,
    #[serde(flatten)]
    numerics: NumericChoices,
    threads: Option<usize>,
    gradient_checkpointing: Option<bool>,
}

impl Asked {
    /// How values are stored and multiplied.
    fn numerics_on(&self, host: &Host, method: Option<Method>) -> RunResult<NumericSettings> {
        let (method, model) = (method.unwrap_or(Method::Lora), self.model.as_deref());
        let choices = self.numerics.for_training(method, model)?;
        choices.on(&host.machine)
    }
}

/// What is to train, as it is asked for.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AskedMethod {
    /// The method; LoRA, or an existing adapter's, where absent.
    pub method: Option<Method>,
    /// The short form of full fine-tuning.
    pub full: Option<bool>,
}

impl AskedMethod {
    /// The method, if one is asked for.
    ///
    /// # Errors
    /// Both are given, and contradict each other.
    pub fn get(self) -> RunResult<Option<Method>> {
        let Self { method, full } = self;
        match (method, full) {
            (method, None) => Ok(method),
            (None, Some(true)) => Ok(Some(Method::Full)),
            (None, Some(false)) => Ok(None),
            (Some(method), Some(full)) if (method == Method::Full) == full => Ok(Some(method)),
            (Some(method), Some(full)) => Err(RunError::usage(format!(
                "`full` is {full}, but `method` is {}",
                method.name()
            ))
            .hint("leave one of them out; --full is --method full")),
        }
    }
}

/// A training run in which nothing is open.
pub struct RunSpec {
    /// The configuration.
    pub config: TrainConfig,
    /// The processor, as the configuration asks for it.
    pub device: Device,
    /// The model directory.
    pub base: Base,
    /// The adapter to start from.
    pub adapter: Option<AdapterSource>,
    /// The head.
    pub head: Head,
    /// Training rows.
    pub train: Loaded,
    /// Validation rows.
    pub validation: Option<Loaded>,
    /// Test rows.
    pub test: Option<Loaded>,
    /// How chats are laid out, where the training rows are some.
    pub chat: Option<ChatFormat>,
    /// Whether the learning rate is to be found by trials around that of the configuration.
    pub finds_rate: bool,
    /// Why this is the task.
    pub choice: TaskChoice,
    /// Whether activations are to be recomputed, where that is said.
    pub recompute: Option<Recompute>,
}

impl RunSpec {
    /// Decides what is left open, and reads the rows.
    ///
    /// # Errors
    /// A file cannot be read, rows or labels do not fit, or a setting cannot be or has no effect.
    pub fn resolve(request: &Request, host: &Host) -> RunResult<Self> {
        let (ref settings, finds_rate) = rates::taken_out(&request.settings)?;
        let asked: Asked = typed(settings)?;
        let rows: RowSettings = typed(settings)?;
        let method = asked.method.get()?;
        let numerics = asked.numerics_on(host, method)?;
        let device = device(host.machine.isa(), numerics, asked.threads)?;
        let mut base = open_base(settings, &asked, host)?;
        let adapter = open_adapter(&asked, &mut base, &device)?;
        let method = method_of(method, adapter.as_ref())?;
        let notes = adapter.as_ref().and_then(|a| a.notes.as_ref());
        let train_file = asked.train_file.as_deref().unwrap_or_default();
        let noted = notes.map(|n| n.task);
        let table = labels::table_of(&base, &rows, noted, train_file, &device)?;
        let choice = TaskChoice::new(&base, &rows, adapter.as_ref(), &table)?;
        let task = choice.task;
        let noted_length = notes.map(|n| n.max_length);
        let max_length = max_length(&base, &rows, task, &table, noted_length)?;
        let known = labels::known_labels(&base, &rows, adapter.as_ref());
        let spec = load_spec(&base, &rows, task, known.as_ref(), max_length)?;
        let are_chats = reads_chats(&table, &spec)?;
        let chat = spec.chat.clone().filter(|_| are_chats);
        let is_fresh = method == Method::Lora && adapter.is_none() && asked.preset.is_none();
        let fresh = (is_fresh && are_chats).then_some(settings);
        let recipe = fresh.map_or(Ok(None), |settings| recipe_for_chats(settings, &base))?;
        let settings = recipe.as_ref().unwrap_or(settings);
        let mut config = configuration(settings, &asked, &base, method, task, numerics)?;
        config.data.max_length = max_length;
        config.lora = lora_of(settings, &base, adapter.as_ref())?;
        config.validate()?;
        base.set_dropouts(&config.optimization)?;
        Unused::of(&rates::taken_out(&request.given)?.0).check_train(&config)?;
        config.data.chat_time = chat.as_ref().and_then(chat::time);
        let mut train = rows_of(&table, &spec, &base, &device)?;
        let note = "what is not given is as --preset sft has it, the recipe for chats";
        let notes = &mut train.report.notes;
        notes.extend(recipe.is_some().then(|| note.to_owned()));
        let labels = labels::choose_labels(&base, task, known, train.label_map.as_ref());
        let spec = load_spec(&base, &rows, task, Some(&labels), max_length)?;
        // Where the names learned from the rows gave way to the checkpoint's own, the rows are read
        // by those.
        let is_other = |map: &LabelMap| map.names() != labels.names;
        if train.label_map.as_ref().is_some_and(is_other) {
            train = rows_of(&table, &spec, &base, &device)?;
        }
        drop(table);
        labels::refuse_single_class(task, &labels, &train.report)?;
        let read = |file: &Option<String>| {
            let read = |file: &str| load_rows(file, &spec, &base, &device);
            file.as_deref().map(read).transpose()
        };
        let (validation, test) = (read(&asked.validation_file)?, read(&asked.test_file)?);
        if finds_rate {
            rates::require_rows(validation.as_ref())?;
        }
        config.data.labels = labels.names.clone();
        config.validate()?;
        config.validate_for(train.examples.len())?;
        Ok(Self {
            head: head_of(task, labels),
            config,
            device,
            base,
            adapter,
            train,
            validation,
            test,
            chat,
            finds_rate,
            choice,
            recompute: asked.gradient_checkpointing.map(Recompute::from),
        })
    }

    /// The configuration as the settings that read back as it, a rate that is to be found by its
    /// word.
    pub fn to_settings(&self) -> Settings {
        let mut settings = to_settings(&self.config);
        if self.finds_rate {
            settings.insert("learning_rate".to_owned(), "auto".into());
        }
        settings
    }

    /// The rows by which the result is told: test rows, else validation rows.
    pub fn reported(&self) -> Option<&Loaded> {
        self.test.as_ref().or(self.validation.as_ref())
    }
}

/// The settings over those of the recipe for chats, where it is made for such a model.
fn recipe_for_chats(settings: &Settings, base: &Base) -> RunResult<Option<Settings>> {
    let preset = Preset::find(SFT)?;
    if preset.check_family(&base.config.model_type).is_err() {
        return Ok(None);
    }
    let mut all = preset.below(settings);
    let given = settings.iter().filter(|(_, value)| !value.is_null());
    all.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    Ok(Some(all))
}

/// The method asked for, or else the adapter's.
fn method_of(asked: Option<Method>, adapter: Option<&AdapterSource>) -> RunResult<Method> {
    let own = adapter.map(|adapter| adapter.config.method());
    match (asked, own) {
        // That there is no adapter under full fine-tuning is checked with the configuration.
        (Some(asked), Some(own)) if asked != own && asked != Method::Full => {
            Err(RunError::usage(format!(
                "the adapter is one of {}, but `method` is {}",
                own.title(),
                asked.name()
            ))
            .hint(format!("pass --method {}, or leave it out", own.name())))
        }
        (asked, own) => Ok(asked.or(own).unwrap_or_default()),
    }
}

/// The model, which the preset, if one is named, must be made for.
fn open_base(settings: &Settings, asked: &Asked, host: &Host) -> RunResult<Base> {
    let model = ModelSettings {
        hub: host.hub.clone(),
        ..typed(settings)?
    };
    let base = Base::open(&model)?.with_new_head(asked.ignore_mismatched_sizes);
    if let Some(name) = &asked.preset {
        Preset::find(name)?.check_family(&base.config.model_type)?;
    }
    Ok(base)
}

/// The adapter to start from; the model takes the chat template that it brings.
fn open_adapter(
    asked: &Asked,
    base: &mut Base,
    device: &Device,
) -> RunResult<Option<AdapterSource>> {
    let open = |path: &str| AdapterSource::open(path, asked.lora_alpha);
    let adapter = asked.adapter.as_deref().map(open).transpose()?;
    if let Some(adapter) = &adapter {
        base.check_adapter(adapter, device)?;
        refuse_token_tables(base, adapter)?;
        base.take_chat(adapter)?;
    }
    Ok(adapter)
}

fn head_of(task: Task, labels: KnownLabels) -> Head {
    let num_labels = match task {
        Task::Regression => 1,
        Task::SingleLabel | Task::MultiLabel | Task::TokenClassification | Task::CausalLm => {
            labels.names.len()
        }
    };
    Head {
        task,
        num_labels,
        labels: labels.names,
    }
}

/// Tables of tokens that an adapter brings are run and merged, but nothing trains beside them.
fn refuse_token_tables(base: &Base, adapter: &AdapterSource) -> RunResult {
    let (_, tables) = TokenTables::take(adapter.tensors.clone(), &adapter.config, &base.config)?;
    let own = base.config.facts.vocab_size;
    let Some(tables) = tables.filter(|t| !t.is_trained() || t.rows() != own) else {
        return Ok(());
    };
    let names: Vec<String> = tables.names().map(|name| format!("`{name}`")).collect();
    Err(RunError::usage(format!(
        "the adapter brings a token table ({}), and no training goes on from that",
        names.join(", ")
    ))
    .hint("fold it in with `lowrank merge`, and pass --model with the merged model in the place of --adapter"))
}

/// The defaults with what is asked for in their place; the labels are filled in when the rows are
/// read.
fn configuration(
    settings: &Settings,
    asked: &Asked,
    base: &Base,
    method: Method,
    task: Task,
    numerics: NumericSettings,
) -> RunResult<TrainConfig> {
    let implied = |steps: Option<u64>, otherwise| match steps {
        Some(_) => IntervalStrategy::Steps,
        None => otherwise,
    };
    let without_steps = match asked.validation_file {
        Some(_) => IntervalStrategy::Epoch,
        None => IntervalStrategy::No,
    };
    let eval_strategy = asked.eval_strategy;
    let eval_strategy = eval_strategy.unwrap_or(implied(asked.eval_steps, without_steps));
    let evaluation = EvaluationSettings::of(task, eval_strategy);
    let save_strategy = implied(asked.save_steps, evaluation.save_strategy);
    let defaults = TrainConfig {
        method,
        optimization: OptimizationSettings::of(method),
        evaluation: EvaluationSettings {
            save_strategy: asked.save_strategy.unwrap_or(save_strategy),
            ..evaluation
        },
        numerics,
        ..TrainConfig::of(&base.name, &base.config.model_type, task, "")
    };
    // These are decided together with the model and the rows.
    let decided = [
        "model",
        "method",
        "task",
        "labels",
        "max_length",
        "precision",
        "base_format",
        "arithmetic",
    ];
    let mut settings = settings.clone();
    settings.retain(|name, _| !decided.contains(&name.as_str()));
    laid_over(&defaults, &settings)
}

/// The adapter settings: an existing adapter's own, or fresh ones with defaults.
fn lora_of(
    settings: &Settings,
    base: &Base,
    adapter: Option<&AdapterSource>,
) -> RunResult<LoraSettings> {
    let Some(config) = adapter.and_then(|adapter| adapter.config.lora()) else {
        return laid_over(&LoraSettings::of(&base.config.model_type), settings);
    };
    let own = LoraSettings::from_peft(config);
    let asked = laid_over(&own, settings)?;
    let (asked_map, own_map) = (serde_json::to_value(&asked), serde_json::to_value(&own));
    if let (Ok(asked), Ok(own)) = (asked_map, own_map) {
        let fields = own.as_object().into_iter().flatten();
        let differing: Vec<_> = fields
            .filter(|(k, v)| asked.get(k) != Some(v))
            .map(|(k, v)| format!("`{k}` is {v} there"))
            .collect();
        if !differing.is_empty() {
            return Err(RunError::usage(format!(
                "an existing adapter keeps its shape, but other values were asked for: {}",
                differing.join(", ")
            ))
            .hint("leave these settings out, or leave out --adapter to start fresh"));
        }
    }
    Ok(own)
}

/// The configuration as the settings that read back as it: flags' names, flags' values.
pub fn to_settings(config: &TrainConfig) -> serde_json::Map<String, serde_json::Value> {
    let mut map = config.to_map();
    for empty in [
        "labels",
        "modules_to_save",
        "trainable_token_indices",
        "rank_pattern",
        "alpha_pattern",
    ] {
        let is_empty = |v: &serde_json::Value| {
            v.as_array().is_some_and(Vec::is_empty)
                || v.as_object().is_some_and(serde_json::Map::is_empty)
        };
        if map.get(empty).is_some_and(is_empty) {
            map.shift_remove(empty);
        }
    }
    map
}
