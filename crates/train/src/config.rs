//! The resolved configuration of a run: every option typed, every default filled in.
//!
//! It serialises to one flat map whose keys are the names of the command line's flags, so that a
//! printed configuration can be fed back. Where values come from (flags, a file, defaults) is the
//! command line's business, not this file's.

mod bytes;
mod defaults;
mod numerics;
mod validate;

use std::collections::BTreeMap;
use std::str::FromStr;

use lowrank_data::{BadRows, Batching, LongRows, LossOn, NlgFormat, Order, UnlabelledRows};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::metrics::Metric;
pub use bytes::{ByteSize, PrefixCacheLimit};
pub use defaults::{DEFAULT_MAX_LENGTH, DEFAULT_RUN};
pub use lowrank_formats::{Method, Task};
pub use numerics::NumericSettings;
pub use validate::{ConfigError, Fault, LARGEST_BATCH, LARGEST_THREADS};

use crate::schedule::{
    Schedule, SchedulerType, steps_per_epoch, total_steps, warmup_steps_for_ratio,
};

/// When something periodic happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalStrategy {
    /// Never (the end of the run excepted, where stated).
    No,
    /// Every so many optimizer steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

/// Which biases train along with the adapters, as PEFT's `bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasMode {
    /// None.
    None,
    /// Every bias of the model.
    All,
    /// The biases of the adapted linears.
    LoraOnly,
}

/// How fresh adapters start, written as PEFT's `init_lora_weights`: `true`, `"gaussian"` or
/// `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitLora {
    /// PEFT's default: A Kaiming-uniform with a = √5, B zero.
    Default,
    /// A normal with standard deviation 1/r, B zero.
    Gaussian,
    /// PEFT's `False`: A as the default, B not zero either, so that the adapter does something from
    /// the start (for tests).
    Random,
}

impl FromStr for InitLora {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "true" | "True" | "default" => Ok(Self::Default),
            "false" | "False" | "random" => Ok(Self::Random),
            "gaussian" => Ok(Self::Gaussian),
            other => Err(format!("`{other}`, expected true, false or gaussian")),
        }
    }
}

impl Serialize for InitLora {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => to.serialize_bool(true),
            Self::Gaussian => to.serialize_str("gaussian"),
            Self::Random => to.serialize_bool(false),
        }
    }
}

/// What a file can hold: a switch, or a name (older versions wrote `default` and `random`).
#[derive(Deserialize)]
#[serde(untagged)]
enum InitWritten {
    Switch(bool),
    Name(String),
}

impl<'de> Deserialize<'de> for InitLora {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = "expected true, false or gaussian";
        match InitWritten::deserialize(from).map_err(|_| D::Error::custom(expected))? {
            InitWritten::Switch(true) => Ok(Self::Default),
            InitWritten::Switch(false) => Ok(Self::Random),
            InitWritten::Name(name) => name.parse().map_err(D::Error::custom),
        }
    }
}

/// Which modules: a list of names (equal, or equal after a dot), or one regular expression over
/// whole paths, or `all-linear`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModulePattern {
    /// `all-linear`, or a regular expression that must match a whole module path.
    Text(String),
    /// Names, each equal to a module path or to its end after a dot.
    Names(Vec<String>),
}

/// The rows and how to read them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSettings {
    /// File of training rows.
    pub train_file: String,
    /// File of validation rows.
    pub validation_file: Option<String>,
    /// File of test rows, evaluated before and after training.
    pub test_file: Option<String>,
    /// What is predicted.
    pub task: Task,
    /// Names of the labels in the order of their class numbers; empty for regression.
    pub labels: Vec<String>,
    /// Column with the text.
    pub text_column: Option<String>,
    /// Column with the second text.
    pub text_pair_column: Option<String>,
    /// Column with the label.
    pub label_column: Option<String>,
    /// Columns of 0 and 1, each of which is a label.
    #[serde(default)]
    pub label_columns: Option<Vec<String>>,
    /// What becomes of rows without a label.
    #[serde(default)]
    pub unlabelled: UnlabelledRows,
    /// Column with what a language model's prompt is about; found by its name where absent.
    #[serde(default)]
    pub context_column: Option<String>,
    /// Whether the first line of a table is a row; it names the columns where absent.
    #[serde(default)]
    pub no_header: Option<bool>,
    /// Tokens a row at most.
    pub max_length: usize,
    /// What becomes of longer rows; they are cut where absent.
    #[serde(default)]
    pub long_rows: Option<LongRows>,
    /// What becomes of rows that cannot be used; the file is refused where absent.
    #[serde(default)]
    pub bad_rows: Option<BadRows>,
    /// The largest share of rows that may be left out as unusable.
    #[serde(default)]
    pub max_bad_rows: Option<f64>,
    /// Which data set of text generation the files are of; told by how they begin where absent.
    #[serde(default)]
    pub data_format: Option<NlgFormat>,
    /// How a language model's prompts and completions are laid out; the paper's layout where
    /// absent.
    #[serde(default)]
    pub template: Option<String>,
    /// The chat template: a file, or its name; the adapter's or the model's own where absent.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// Which part of a chat is learned; the assistant's turns where absent.
    #[serde(default)]
    pub loss_on: Option<LossOn>,
    /// What time it is for chat templates that ask: that of the run's first start.
    #[serde(default)]
    pub chat_time: Option<String>,
}

/// Makes a language model's run from before columns beside the prompt were read go on without them:
/// its rows stay the same. Runs since then always say what becomes of rows without a label.
pub fn keep_old_prompts(settings: &mut serde_json::Map<String, serde_json::Value>) {
    let is_of_prompts = settings.get("task").is_some_and(|task| task == "causal_lm");
    if is_of_prompts && !settings.contains_key("unlabelled") {
        settings
            .entry("context_column")
            .or_insert_with(|| lowrank_data::NO_COLUMN.into());
    }
}

/// Reads the settings of a run from before `method`, which had `full` in its place.
pub fn keep_old_method(settings: &mut serde_json::Map<String, serde_json::Value>) {
    let Some(full) = settings.shift_remove("full") else {
        return;
    };
    let method = match full.as_bool() {
        Some(true) => Method::Full,
        Some(false) | None => Method::Lora,
    };
    settings
        .entry("method")
        .or_insert_with(|| method.name().into());
}

/// The adapters, in PEFT's terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// Rank.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input.
    pub lora_dropout: f64,
    /// Which modules are adapted.
    pub target_modules: ModulePattern,
    /// Which of them are not.
    pub exclude_modules: Option<ModulePattern>,
    /// Layer numbers to adapt; all where absent.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list of layers that those numbers index.
    pub layers_pattern: Option<Vec<String>>,
    /// Rank by module name or regular expression.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha by module name or regular expression.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Which biases train.
    pub bias: BiasMode,
    /// Scaling alpha/√r in place of alpha/r.
    pub use_rslora: bool,
    /// How fresh adapters start.
    pub init_lora_weights: InitLora,
    /// Modules trained and saved whole, the head always among them.
    pub modules_to_save: Vec<String>,
    /// Rows of the table of tokens that are trained in their place.
    #[serde(default)]
    pub trainable_token_indices: Vec<u32>,
}

/// The optimizer, the schedule and the batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizationSettings {
    /// Base learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's β₁.
    pub adam_beta1: f64,
    /// AdamW's β₂.
    pub adam_beta2: f64,
    /// AdamW's ε.
    pub adam_epsilon: f64,
    /// LoRA+: how many times the learning rate of A that of B is; one rate for both where absent.
    #[serde(default)]
    pub loraplus_lr_ratio: Option<f64>,
    /// Shape of the learning rate over the run.
    pub lr_scheduler_type: SchedulerType,
    /// Warm-up steps; wins over the ratio.
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of the run.
    pub warmup_ratio: f64,
    /// Waves of the cosine schedule.
    pub lr_num_cycles: f64,
    /// Final rate of the polynomial schedule.
    pub lr_end: f64,
    /// Exponent of the polynomial schedule.
    pub lr_power: f64,
    /// Gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Rows a micro-batch.
    pub per_device_batch_size: usize,
    /// Micro-batches an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the rows; may be a fraction.
    pub num_train_epochs: f64,
    /// Optimizer steps of the run; wins over the epochs.
    pub max_steps: Option<u64>,
    /// Seed of the order of rows, of fresh adapters and heads, and of dropout.
    pub seed: u64,
    /// Whether rows are shuffled each epoch.
    pub shuffle: bool,
    /// Whether activations are recomputed block by block in the backward pass: less memory, the
    /// same bits, more time.
    pub gradient_checkpointing: bool,
    /// Share of a language model's target that is spread over the vocabulary.
    #[serde(default)]
    pub label_smoothing_factor: f64,
    /// Every dropout of the model itself; those of its configuration where absent.
    #[serde(default)]
    pub dropout: Option<f64>,
    /// The dropout before the classifier; that of the configuration, or `dropout`, where absent.
    #[serde(default)]
    pub classifier_dropout: Option<f64>,
}

/// Evaluation, checkpoints and when to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSettings {
    /// When the validation rows are evaluated.
    pub eval_strategy: IntervalStrategy,
    /// Every so many steps, under `steps`.
    pub eval_steps: Option<u64>,
    /// Rows an evaluation batch.
    pub per_device_eval_batch_size: usize,
    /// When a checkpoint is written.
    pub save_strategy: IntervalStrategy,
    /// Every so many steps, under `steps`.
    pub save_steps: Option<u64>,
    /// How many of the newest checkpoints are kept, the best one besides.
    pub save_total_limit: usize,
    /// The metric by which the best checkpoint is chosen.
    pub metric_for_best_model: Metric,
    /// Whether the run ends with the best checkpoint's values.
    pub load_best_model_at_end: bool,
    /// Evaluations without improvement after which the run stops.
    pub early_stopping_patience: Option<u64>,
    /// By how much the metric must improve to count.
    pub early_stopping_threshold: f64,
}

/// How much memory a run may take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemorySettings {
    /// The limit to which the batch was chosen, for the whole process.
    pub max_memory: Option<ByteSize>,
    /// The limit for what frozen layers give, kept across epochs.
    pub prefix_cache: PrefixCacheLimit,
}

/// Everything that decides a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Directory of the pretrained model, or its id.
    pub model: String,
    /// Revision of the model, for an id.
    pub revision: Option<String>,
    /// Start a new head where the checkpoint's has another number of labels.
    pub ignore_mismatched_sizes: bool,
    /// Adapter to start from; fresh adapters where absent.
    pub adapter: Option<String>,
    /// What trains.
    pub method: Method,
    /// Full training from new random weights: of the model's directory only the configuration and
    /// the tokenizer are read.
    #[serde(default)]
    pub from_scratch: bool,
    /// The rows.
    #[serde(flatten)]
    pub data: DataSettings,
    /// The adapters.
    #[serde(flatten)]
    pub lora: LoraSettings,
    /// The optimizer.
    #[serde(flatten)]
    pub optimization: OptimizationSettings,
    /// Evaluation and checkpoints.
    #[serde(flatten)]
    pub evaluation: EvaluationSettings,
    /// Memory.
    #[serde(flatten)]
    pub memory: MemorySettings,
    /// How weights and activations are stored and multiplied.
    #[serde(flatten)]
    pub numerics: NumericSettings,
    /// Directory of the run.
    pub output_dir: String,
    /// Threads; all cores where absent. The results do not depend on it.
    pub threads: Option<usize>,
}

/// Settings that may differ between a run and its continuation, because they do not change what is
/// computed.
const FREE_ON_RESUME: [&str; 9] = [
    "output_dir",
    "threads",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "gradient_checkpointing",
    "per_device_eval_batch_size",
    "max_memory",
    "prefix_cache",
];

/// One setting that has another value in the run than in the request to continue it.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The setting.
    pub field: String,
    /// Its value in the run, as JSON.
    pub in_run: String,
    /// Its value asked for now, as JSON.
    pub asked: String,
}

impl TrainConfig {
    /// The settings that change what is computed and differ between a run (`self`) and a request to
    /// continue it.
    pub fn differences(&self, asked: &TrainConfig) -> Vec<Difference> {
        let (run, asked) = (self.to_map(), asked.to_map());
        run.iter()
            .filter(|(field, value)| {
                !FREE_ON_RESUME.contains(&field.as_str()) && asked.get(*field) != Some(*value)
            })
            .map(|(field, value)| Difference {
                field: field.clone(),
                in_run: value.to_string(),
                asked: asked
                    .get(field)
                    .map_or("absent".to_owned(), |v| v.to_string()),
            })
            .collect()
    }

    /// The settings as one flat map.
    pub fn to_map(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map,
            // A struct of plain fields with string keys always serialises to an object.
            Ok(_) | Err(_) => unreachable!("a struct serialises to an object"),
        }
    }

    /// Which of `num_rows` rows go together in each step.
    pub fn batching(&self, num_rows: usize) -> Batching {
        let o = &self.optimization;
        let order = Order {
            seed: o.seed,
            shuffle: o.shuffle,
        };
        Batching::new(
            order,
            num_rows,
            o.per_device_batch_size,
            o.gradient_accumulation_steps,
        )
    }

    /// Rows that go into one optimizer step, at most.
    pub fn rows_per_step(&self) -> usize {
        self.optimization.per_device_batch_size * self.optimization.gradient_accumulation_steps
    }

    /// Optimizer steps of an epoch over `num_rows` rows.
    pub fn steps_per_epoch(&self, num_rows: usize) -> u64 {
        let o = &self.optimization;
        steps_per_epoch(
            num_rows,
            o.per_device_batch_size,
            o.gradient_accumulation_steps,
        )
    }

    /// Optimizer steps of the whole run over `num_rows` rows.
    pub fn total_steps(&self, num_rows: usize) -> u64 {
        self.optimization.max_steps.unwrap_or_else(|| {
            total_steps(
                self.optimization.num_train_epochs,
                self.steps_per_epoch(num_rows),
            )
        })
    }

    /// How often the rows are trained on, the last time perhaps in part.
    pub fn passes(&self, num_rows: usize) -> u64 {
        let per_epoch = self.steps_per_epoch(num_rows).max(1);
        self.total_steps(num_rows).div_ceil(per_epoch)
    }

    /// How often the validation rows are evaluated while training.
    pub fn evaluations(&self, num_rows: usize) -> u64 {
        let e = &self.evaluation;
        let total = self.total_steps(num_rows);
        match e.eval_strategy {
            IntervalStrategy::No => 0,
            IntervalStrategy::Steps => total.div_ceil(e.eval_steps.unwrap_or(total).max(1)),
            IntervalStrategy::Epoch => self.passes(num_rows),
        }
    }

    /// The learning-rate schedule of a run of `num_training_steps`.
    pub fn schedule(&self, num_training_steps: u64) -> Schedule {
        let o = &self.optimization;
        Schedule {
            kind: o.lr_scheduler_type,
            learning_rate: o.learning_rate,
            num_warmup_steps: o
                .warmup_steps
                .unwrap_or_else(|| warmup_steps_for_ratio(o.warmup_ratio, num_training_steps)),
            num_training_steps,
            num_cycles: o.lr_num_cycles,
            lr_end: o.lr_end,
            power: o.lr_power,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use lowrank_engine::DType;

    use super::*;

    /// A configuration that is valid, for the tests of this crate.
    pub(crate) fn example() -> TrainConfig {
        let task = Task::SingleLabel;
        let mut config = TrainConfig::of("models/tiny", "bert", task, "train.tsv");
        config.data.validation_file = Some("validation.tsv".to_owned());
        config.data.labels = vec!["negative".to_owned(), "positive".to_owned()];
        config.lora.modules_to_save = vec!["classifier".to_owned()];
        config.optimization.num_train_epochs = 2.0;
        config.evaluation = EvaluationSettings::of(task, IntervalStrategy::Epoch);
        config
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let mut config = example();
        assert_eq!(config.validate(), Ok(()));
        config.lora.r = 0;
        config.optimization.learning_rate = f64::NAN;
        config.optimization.max_steps = Some(0);
        config.evaluation.metric_for_best_model = Metric::Pearson;
        config.data.labels.push("negative".to_owned());
        let error = config.validate().unwrap_err();
        let fields: Vec<_> = error.faults.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "labels",
                "r",
                "learning_rate",
                "max_steps",
                "metric_for_best_model"
            ]
        );
        assert_eq!(
            error.to_string().lines().nth(2),
            Some("  r: expected from 1 to 1048576, found 0")
        );
    }

    #[test]
    fn survives_json_and_names_what_differs() {
        let config = example();
        let text = serde_json::to_string(&config).unwrap();
        let back: TrainConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(back, config);
        // As older versions wrote it.
        let old = text.replace(
            "\"init_lora_weights\":true",
            "\"init_lora_weights\":\"default\"",
        );
        assert!(old != text);
        assert_eq!(serde_json::from_str::<TrainConfig>(&old).unwrap(), config);
        let mut asked = config.clone();
        asked.threads = Some(1);
        asked.optimization.gradient_checkpointing = true;
        assert_eq!(config.differences(&asked), []);
        asked.optimization.learning_rate = 2e-3;
        let differences = config.differences(&asked);
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].field, "learning_rate");
    }

    #[test]
    fn settings_from_before_methods_are_read() {
        for (full, method) in [(true, Method::Full), (false, Method::Lora)] {
            let mut map = example().to_map();
            map.remove("method");
            map.insert("full".to_owned(), full.into());
            keep_old_method(&mut map);
            let config: TrainConfig = serde_json::from_value(map.into()).unwrap();
            assert_eq!(config.method, method);
        }
    }

    #[test]
    fn a_precision_from_before_three_settings_means_all_of_them() {
        for precision in [DType::F32, DType::Bf16] {
            let mut config = example();
            config.numerics = NumericSettings::of(precision);
            let mut map = config.to_map();
            for name in ["base_format", "arithmetic"] {
                assert_eq!(map.remove(name), Some(precision.name().into()));
            }
            let read: TrainConfig = serde_json::from_value(map.into()).unwrap();
            assert_eq!(read, config);
        }
    }

    #[test]
    fn the_peers_step_counts() {
        let config = example();
        assert_eq!(config.total_steps(8056), 504);
        assert_eq!(config.schedule(504).num_warmup_steps, 31);
    }
}
