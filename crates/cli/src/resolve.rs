//! From what was asked for to a configuration in which nothing is open: defaults, the task, the labels, the columns.

use std::collections::BTreeMap;

use lowrank_data::{LabelMap, Loaded};
use lowrank_engine::Device;
use lowrank_model::TokenTables;
use lowrank_model::families::family;
use lowrank_train::config::{
    BiasMode, DataSettings, EvaluationSettings, InitLora, IntervalStrategy, LoraSettings,
    MemorySettings, ModulePattern, OptimizationSettings, Precision, TaskKind, TrainConfig,
};
use lowrank_train::metrics::Metric;
use lowrank_train::schedule::SchedulerType;

use crate::args::common::{KeyValue, join_modules};
use crate::args::train::{EvaluationArgs, InitArg, LoraArgs, OptimizationArgs};
use crate::args::{CheckArgs, TrainArgs};
use crate::presets;
use crate::source::find_asset;
use crate::unused::Unused;
use lowrank_run::adapter::AdapterSource;
use lowrank_run::base::{Base, Head};
use lowrank_run::labels::{self, TaskChoice};
use lowrank_run::rows::{load_rows, load_spec, rows_of};
use lowrank_run::{RunError, RunResult};

/// The folder of a run whose place is not given.
pub const DEFAULT_RUN: &str = "runs/default";

/// Everything a run needs, read and checked, before the weights are.
pub struct Resolved {
    /// The configuration.
    pub config: TrainConfig,
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
    /// Why this is the task.
    pub choice: TaskChoice,
}

/// Fills in the model and data that the repository holds where none are named.
pub fn with_default_assets(mut args: TrainArgs) -> RunResult<TrainArgs> {
    if args.train_file.is_none() {
        let names_data = args.validation_file.is_some()
            || args.test_file.is_some()
            || args.model.model.is_some();
        if names_data {
            return Err(RunError::usage("no training rows given")
                .hint("pass --train-file FILE (.jsonl, .csv or .tsv)"));
        }
        let file = |name: &str| asset(&format!("sentiment/movie/{name}.tsv"));
        args.train_file = Some(file("train")?);
        args.validation_file = Some(file("validation")?);
        args.test_file = Some(file("test")?);
        args.optimization.num_train_epochs = args
            .optimization
            .num_train_epochs
            .or(Some(DEFAULT_RUN_EPOCHS));
    }
    if args.model.model.is_none() {
        args.model.model = Some(asset("minilm-l6")?);
    }
    Ok(args)
}

/// Epochs of the run without any settings: about a minute on two cores.
const DEFAULT_RUN_EPOCHS: f64 = 2.0;

/// The same for `check`.
pub fn check_with_default_assets(mut args: CheckArgs) -> RunResult<CheckArgs> {
    let no_rows =
        args.train_file.is_none() && args.validation_file.is_none() && args.test_file.is_none();
    if no_rows && args.model.model.is_none() {
        let file = |name: &str| asset(&format!("sentiment/movie/{name}.tsv"));
        args.train_file = Some(file("train")?);
        args.validation_file = Some(file("validation")?);
        args.test_file = Some(file("test")?);
    }
    if args.model.model.is_none() {
        args.model.model = Some(asset("minilm-l6")?);
    }
    Ok(args)
}

fn asset(name: &str) -> RunResult<String> {
    let path = find_asset(name).ok_or_else(|| {
        RunError::usage(format!(
            "no model and data given, and the default `assets/{name}` is not found"
        ))
        .hint("run from a checkout of the repository, or pass --model and --train-file")
    })?;
    // Relative where that is possible, so that a run does not name the folders above the checkout.
    let here = std::env::current_dir().unwrap_or_default();
    let shown = path
        .strip_prefix(&here)
        .map(std::path::Path::to_path_buf)
        .unwrap_or(path);
    Ok(shown.display().to_string())
}

/// What is asked of a training run.
pub struct Asked {
    /// Flags over the file they name, over a preset, the run that is resumed, and the repository's own model and data.
    pub args: TrainArgs,
    /// Flags over the file alone: what the user gave.
    pub given: TrainArgs,
}

/// Resolves a training run; `device` lends its threads and says the precision.
///
/// # Errors
/// A file cannot be read, rows or labels do not fit, or a setting cannot be.
pub fn resolve_train(asked: &Asked, device: &Device) -> RunResult<Resolved> {
    let Asked { args, given } = asked;
    let rows = args.data.settings();
    let mut base =
        Base::open(&args.model.settings())?.with_new_head(args.new_head.ignore_mismatched_sizes);
    presets::check_family(&args.preset, &base.config.model_type)?;
    let adapter = args
        .adapter
        .as_deref()
        .map(|path| AdapterSource::open(path, args.lora.lora_alpha))
        .transpose()?;
    if let Some(adapter) = &adapter {
        base.check_adapter(adapter, device)?;
        refuse_token_tables(&base, adapter)?;
    }
    let notes = adapter.as_ref().and_then(|a| a.notes.as_ref());
    let train_file = args.train_file.as_deref().unwrap_or_default();
    let noted = notes.map(|n| n.task);
    let table = labels::table_of(&base, &rows, noted, train_file, device)?;
    let choice = TaskChoice::new(&base, &rows, adapter.as_ref(), &table)?;
    let task = choice.task;
    let max_length = base.max_length(args.data.max_length.or(notes.map(|n| n.max_length)))?;
    let known = labels::known_labels(&base, &rows, adapter.as_ref());
    let lora = resolve_lora_from(&args.lora, &base, adapter.as_ref())?;
    let precision = device.precision().into();
    let mut config = configuration(args, &base, task, max_length, (lora, precision));
    config.validate()?;
    base.set_dropouts(&config.optimization)?;
    if args.resume != Some(true) {
        // A run that goes on keeps the settings that it was started with.
        Unused::of_args(given).check_train(&config)?;
    }

    let spec = load_spec(&base, &rows, task, known.as_ref(), max_length)?;
    let mut train = rows_of(&table, &spec, &base, device)?;
    let labels = labels::choose_labels(&base, task, known, train.label_map.as_ref());
    let spec = load_spec(&base, &rows, task, Some(&labels), max_length)?;
    // Where the names learned from the rows gave way to the checkpoint's own, the rows are read by those.
    let is_other = |map: &LabelMap| map.names() != labels.names;
    if train.label_map.as_ref().is_some_and(is_other) {
        train = rows_of(&table, &spec, &base, device)?;
    }
    drop(table);
    labels::refuse_single_class(task, &labels, &train.report)?;
    let labels = labels.names;
    let read = |file: &Option<String>| {
        file.as_deref()
            .map(|f| load_rows(f, &spec, &base, device))
            .transpose()
    };
    let (validation, test) = (read(&args.validation_file)?, read(&args.test_file)?);
    config.data.labels = labels.clone();
    config.validate()?;
    config.validate_for(train.examples.len())?;
    let num_labels = if task == TaskKind::Regression {
        1
    } else {
        labels.len()
    };
    let head = Head {
        task,
        num_labels,
        labels,
    };
    Ok(Resolved {
        config,
        base,
        adapter,
        head,
        train,
        validation,
        test,
        choice,
    })
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

/// The settings with their defaults; the labels are filled in when the rows are read.
fn configuration(
    args: &TrainArgs,
    base: &Base,
    task: TaskKind,
    max_length: usize,
    (lora, precision): (LoraSettings, Precision),
) -> TrainConfig {
    let full = args.full.unwrap_or(false);
    TrainConfig {
        model: base.name.clone(),
        revision: args.model.revision.clone(),
        ignore_mismatched_sizes: args.new_head.ignore_mismatched_sizes.unwrap_or(false),
        adapter: args.adapter.clone(),
        full,
        from_scratch: args.from_scratch.unwrap_or(false),
        data: DataSettings {
            train_file: args.train_file.clone().unwrap_or_default(),
            validation_file: args.validation_file.clone(),
            test_file: args.test_file.clone(),
            task,
            labels: Vec::new(),
            text_column: args.data.text_column.clone(),
            text_pair_column: args.data.text_pair_column.clone(),
            label_column: args.data.label_column.clone(),
            label_columns: args.data.label_columns.clone(),
            unlabelled: args.data.unlabelled.unwrap_or_default(),
            context_column: args.data.context_column.clone(),
            no_header: args.data.no_header,
            max_length,
            long_rows: args.data.long_rows,
            bad_rows: args.data.bad_rows,
            max_bad_rows: args.data.max_bad_rows,
            data_format: args.data.data_format,
            template: args.data.template.clone(),
        },
        lora,
        optimization: resolve_optimization(&args.optimization, full),
        evaluation: resolve_evaluation(&args.evaluation, task, args.validation_file.is_some()),
        memory: MemorySettings {
            max_memory: args.memory.max_memory,
            prefix_cache: args.memory.prefix_cache.unwrap_or_default(),
        },
        output_dir: args
            .output_dir
            .clone()
            .unwrap_or_else(|| DEFAULT_RUN.to_owned()),
        precision,
        threads: args.common.threads,
    }
}

/// The adapter settings: an existing adapter's own, or fresh ones with defaults.
pub fn resolve_lora_from(
    args: &LoraArgs,
    base: &Base,
    adapter: Option<&AdapterSource>,
) -> RunResult<LoraSettings> {
    let Some(adapter) = adapter else {
        return resolve_lora(args, default_lora(&base.config.model_type));
    };
    let own = LoraSettings::from_peft(&adapter.config);
    let asked = resolve_lora(args, own.clone())?;
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

/// Fresh adapters where nothing is asked for: rank 8 on queries and values, the paper's choice.
pub fn default_lora(model_type: &str) -> LoraSettings {
    let targets = family(model_type).map_or(&["query", "value"][..], |f| f.default_targets);
    let names = targets.iter().map(|&name| name.to_owned()).collect();
    LoraSettings {
        r: 8,
        lora_alpha: 16.0,
        lora_dropout: 0.0,
        target_modules: ModulePattern::Names(names),
        exclude_modules: None,
        layers_to_transform: None,
        layers_pattern: None,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        bias: BiasMode::None,
        use_rslora: false,
        init_lora_weights: InitLora::Default,
        modules_to_save: Vec::new(),
    }
}

/// Settings asked for, laid over `base`.
pub fn resolve_lora(args: &LoraArgs, base: LoraSettings) -> RunResult<LoraSettings> {
    let init = match &args.init_lora_weights {
        None => base.init_lora_weights,
        Some(InitArg::Switch(true)) => InitLora::Default,
        Some(InitArg::Switch(false)) => InitLora::Random,
        Some(InitArg::Named(name)) => match name.as_str() {
            "gaussian" => InitLora::Gaussian,
            "default" => InitLora::Default,
            "random" => InitLora::Random,
            other => {
                return Err(RunError::usage(format!(
                    "`init_lora_weights` is `{other}`, expected true, false or gaussian"
                )));
            }
        },
    };
    Ok(LoraSettings {
        r: args.r.unwrap_or(base.r),
        lora_alpha: args.lora_alpha.unwrap_or(base.lora_alpha),
        lora_dropout: args.lora_dropout.unwrap_or(base.lora_dropout),
        target_modules: join_modules(&args.target_modules).unwrap_or(base.target_modules),
        exclude_modules: join_modules(&args.exclude_modules).or(base.exclude_modules),
        layers_to_transform: args
            .layers_to_transform
            .clone()
            .or(base.layers_to_transform),
        layers_pattern: args.layers_pattern.clone().or(base.layers_pattern),
        rank_pattern: map_of(&args.rank_pattern).unwrap_or(base.rank_pattern),
        alpha_pattern: map_of(&args.alpha_pattern).unwrap_or(base.alpha_pattern),
        bias: args.bias.unwrap_or(base.bias),
        use_rslora: args.use_rslora.unwrap_or(base.use_rslora),
        init_lora_weights: init,
        modules_to_save: args.modules_to_save.clone().unwrap_or(base.modules_to_save),
    })
}

fn map_of<T: Clone>(pairs: &Option<Vec<KeyValue<T>>>) -> Option<BTreeMap<String, T>> {
    pairs.as_ref().map(|pairs| {
        pairs
            .iter()
            .map(|KeyValue(k, v)| (k.clone(), v.clone()))
            .collect()
    })
}

/// The optimizer's settings with their defaults.
pub fn resolve_optimization(args: &OptimizationArgs, full: bool) -> OptimizationSettings {
    let shuffle = if args.no_shuffle {
        Some(false)
    } else {
        args.shuffle
    };
    OptimizationSettings {
        learning_rate: args.learning_rate.unwrap_or(if full { 5e-5 } else { 1e-3 }),
        weight_decay: args.weight_decay.unwrap_or(0.01),
        adam_beta1: args.adam_beta1.unwrap_or(0.9),
        adam_beta2: args.adam_beta2.unwrap_or(0.999),
        adam_epsilon: args.adam_epsilon.unwrap_or(1e-8),
        lr_scheduler_type: args.lr_scheduler_type.unwrap_or(SchedulerType::Linear),
        warmup_steps: args.warmup_steps,
        warmup_ratio: args.warmup_ratio.unwrap_or(0.06),
        lr_num_cycles: args.lr_num_cycles.unwrap_or(0.5),
        lr_end: args.lr_end.unwrap_or(1e-7),
        lr_power: args.lr_power.unwrap_or(1.0),
        max_grad_norm: args.max_grad_norm.unwrap_or(1.0),
        per_device_batch_size: args.per_device_batch_size.unwrap_or(32),
        gradient_accumulation_steps: args.gradient_accumulation_steps.unwrap_or(1),
        num_train_epochs: args.num_train_epochs.unwrap_or(3.0),
        max_steps: args.max_steps,
        seed: args.seed.unwrap_or(1),
        shuffle: shuffle.unwrap_or(true),
        gradient_checkpointing: args.gradient_checkpointing.unwrap_or(false),
        label_smoothing_factor: args.label_smoothing_factor.unwrap_or(0.0),
        dropout: args.dropout,
        classifier_dropout: args.classifier_dropout,
    }
}

fn resolve_evaluation(
    args: &EvaluationArgs,
    task: TaskKind,
    has_validation: bool,
) -> EvaluationSettings {
    let implied = |steps: Option<u64>, otherwise| {
        if steps.is_some() {
            IntervalStrategy::Steps
        } else {
            otherwise
        }
    };
    let default_eval = if has_validation {
        IntervalStrategy::Epoch
    } else {
        IntervalStrategy::No
    };
    let eval_strategy = args
        .eval_strategy
        .unwrap_or_else(|| implied(args.eval_steps, default_eval));
    EvaluationSettings {
        eval_strategy,
        eval_steps: args.eval_steps,
        per_device_eval_batch_size: args.per_device_eval_batch_size.unwrap_or(64),
        save_strategy: args
            .save_strategy
            .unwrap_or_else(|| implied(args.save_steps, IntervalStrategy::Epoch)),
        save_steps: args.save_steps,
        save_total_limit: args.save_total_limit.unwrap_or(2),
        metric_for_best_model: args
            .metric_for_best_model
            .unwrap_or(Metric::of_task(task)[0]),
        load_best_model_at_end: args
            .load_best_model_at_end
            .unwrap_or(eval_strategy != IntervalStrategy::No),
        early_stopping_patience: args.early_stopping_patience,
        early_stopping_threshold: args.early_stopping_threshold.unwrap_or(0.0),
    }
}

/// The configuration as the settings that read back as it: flags' names, flags' values.
pub fn to_settings(config: &TrainConfig) -> serde_json::Map<String, serde_json::Value> {
    let mut map = config.to_map();
    let init = match config.lora.init_lora_weights {
        InitLora::Default => serde_json::json!(true),
        InitLora::Gaussian => serde_json::json!("gaussian"),
        InitLora::Random => serde_json::json!(false),
    };
    map.insert("init_lora_weights".to_owned(), init);
    for empty in ["labels", "modules_to_save", "rank_pattern", "alpha_pattern"] {
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

#[cfg(test)]
mod tests {
    use lowrank_train::config::{ByteSize, PrefixCacheLimit};

    use super::*;
    use crate::settings;
    use crate::yaml;

    #[test]
    fn a_printed_configuration_reads_back_equal() {
        let mut args = TrainArgs::default();
        args.optimization.learning_rate = Some(3e-4);
        args.lora.rank_pattern = Some(vec![KeyValue("layer.0".to_owned(), 4)]);
        args.lora.init_lora_weights = Some(InitArg::Switch(false));
        let config = TrainConfig {
            model: "some/model".to_owned(),
            revision: None,
            ignore_mismatched_sizes: false,
            adapter: None,
            full: false,
            from_scratch: false,
            data: DataSettings {
                train_file: "train.tsv".to_owned(),
                validation_file: None,
                test_file: None,
                task: TaskKind::SingleLabel,
                labels: vec!["no".to_owned(), "yes".to_owned(), "0".to_owned()],
                text_column: Some("a b".to_owned()),
                text_pair_column: None,
                label_column: None,
                label_columns: None,
                unlabelled: Default::default(),
                context_column: None,
                no_header: None,
                long_rows: None,
                bad_rows: None,
                max_bad_rows: None,
                max_length: 128,
                data_format: None,
                template: None,
            },
            lora: resolve_lora(&args.lora, default_lora("bert")).unwrap(),
            optimization: resolve_optimization(&args.optimization, false),
            evaluation: resolve_evaluation(&args.evaluation, TaskKind::SingleLabel, false),
            memory: MemorySettings {
                max_memory: Some(ByteSize(2_000_000_000)),
                prefix_cache: PrefixCacheLimit::Off,
            },
            output_dir: "runs/a".to_owned(),
            precision: Precision::Bf16,
            threads: None,
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, yaml::to_yaml(&to_settings(&config))).unwrap();
        let map = settings::read_file::<TrainArgs>(&file).unwrap();
        let back = settings::overlay(map, &TrainArgs::default()).unwrap();
        assert_eq!(back.model.model.as_deref(), Some("some/model"));
        assert_eq!(back.data.labels.as_ref(), Some(&config.data.labels));
        assert_eq!(
            resolve_lora(&back.lora, default_lora("bert")).unwrap(),
            config.lora
        );
        assert_eq!(
            resolve_optimization(&back.optimization, false),
            config.optimization
        );
        assert_eq!(
            resolve_evaluation(&back.evaluation, TaskKind::SingleLabel, false),
            config.evaluation
        );
        assert_eq!(back.memory.max_memory, config.memory.max_memory);
        assert_eq!(back.memory.prefix_cache, Some(config.memory.prefix_cache));
    }
}
