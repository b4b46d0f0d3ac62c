//! A tiny model, rows for it, and whole runs on them.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank_data::{Example, Label};
use lowrank_engine::{Device, Isa, MemoryReport};
use lowrank_formats::peft::BitFitConfig;
use lowrank_model::{LoadOptions, Model};
use lowrank_testkit::Golden;
use lowrank_train::base::BaseId;
use lowrank_train::config::{
    DataSettings, EvaluationSettings, IntervalStrategy, LoraSettings, Method, OptimizationSettings,
    Task, TrainConfig,
};
use lowrank_train::metrics::Metric;
use lowrank_train::metrics_log::{MetricsLog, MetricsRow};
use lowrank_train::reduce::Solo;
use lowrank_train::schedule::SchedulerType;
use lowrank_train::trainer::{
    Event, OtherBase, Outcome, RunSetup, Summary, TrainData, TrainError, Trainer, Watch,
};

/// Settings under which everything that has state has some.
pub fn config() -> TrainConfig {
    let task = Task::SingleLabel;
    TrainConfig {
        data: DataSettings {
            validation_file: Some("validation".to_owned()),
            labels: vec!["a".to_owned(), "b".to_owned()],
            max_length: 32,
            ..DataSettings::of(task, "train")
        },
        lora: LoraSettings {
            r: 4,
            lora_alpha: 8.0,
            lora_dropout: 0.1,
            ..LoraSettings::of("bert")
        },
        optimization: OptimizationSettings {
            learning_rate: 0.02,
            lr_scheduler_type: SchedulerType::Cosine,
            warmup_steps: Some(2),
            max_grad_norm: 0.5,
            per_device_batch_size: 3,
            gradient_accumulation_steps: 2,
            max_steps: Some(12),
            seed: 3,
            ..OptimizationSettings::default()
        },
        evaluation: EvaluationSettings {
            eval_steps: Some(2),
            per_device_eval_batch_size: 4,
            save_strategy: IntervalStrategy::Steps,
            save_steps: Some(5),
            metric_for_best_model: Metric::Loss,
            ..EvaluationSettings::of(task, IntervalStrategy::Steps)
        },
        ..TrainConfig::of("tiny", "bert", task, "train")
    }
}

/// Rows of 2 to 12 tokens.
pub fn rows(n: u32, seed: u32) -> Vec<Example> {
    let ids =
        |row: u32| (0..2 + (7 * row + seed) % 11).map(move |i| 5 + (31 * row + 17 * i + seed) % 90);
    let example = |row: u32| Example {
        input_ids: ids(row).collect(),
        token_type_ids: None,
        label: Label::Class((row + seed) % 2),
        line: u64::from(row),
        truncated_tokens: 0,
    };
    (0..n).map(example).collect()
}

/// What a run is made on.
#[derive(Clone, Copy)]
pub struct Place {
    /// The golden case whose model is trained.
    pub golden: &'static str,
    /// Threads.
    pub threads: usize,
    /// Bytes for what frozen layers give.
    pub prefix_cache_bytes: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            golden: "bert-single-label",
            threads: 1,
            prefix_cache_bytes: 0,
        }
    }
}

impl Place {
    /// The model with what trains on it, on a device.
    pub fn model(&self, config: &TrainConfig, device: &Device) -> Model {
        let golden = Golden::open(self.golden).expect("a golden case opens");
        let options = LoadOptions {
            task: config.data.task,
            num_labels: 2,
            seed: 1,
            ignore_mismatched_sizes: true,
        };
        let (mut model, _) =
            Model::load(&golden.model_dir(), &options, device).expect("the model loads");
        let attached = match config.method {
            Method::Lora => model.attach_lora(&config.lora.to_peft("tiny", None), 1),
            Method::Full => model.train_all(),
            Method::BitFit => model.train_biases(&BitFitConfig::default()),
        };
        attached.expect("it attaches");
        model
    }
}

/// What a run leaves behind.
pub struct Left {
    /// Bits of the trained values.
    pub values: Vec<u32>,
    /// Its log, without the clock.
    pub log: Vec<MetricsRow>,
    /// How it ended.
    pub summary: Summary,
    /// How often it was started.
    pub starts: usize,
    /// The adapter's file.
    pub adapter: Vec<u8>,
    /// What the device counted in the last start.
    pub peak: MemoryReport,
}

/// Runs to the end; each start is told to stop at its event number `stop_at`, except where that
/// is 0.
pub fn run(config: &TrainConfig, dir: &Path, stop_at: usize) -> Result<Left, TrainError> {
    run_at(Place::default(), config, dir, stop_at)
}

/// The rows to train on and to evaluate on, labelled for the task.
pub fn rows_of(task: Task) -> [Vec<Example>; 2] {
    [rows(20, 1), rows(9, 2)].map(|mut rows| {
        for (i, row) in rows.iter_mut().enumerate() {
            let label = |(at, &id): (usize, &u32)| {
                // Some rows count late tokens only, one counts none.
                let counts = at > 0 && i != 3 && (i % 2 == 0 || at > 2);
                if counts { i64::from(id) } else { -100 }
            };
            if task == Task::CausalLm {
                row.label = Label::Tokens(row.input_ids.iter().enumerate().map(label).collect());
            }
        }
        rows
    })
}

/// A run over a model, before its first step.
pub fn trainer(
    place: Place,
    config: &TrainConfig,
    dir: &Path,
    model: Model,
) -> Result<Trainer, TrainError> {
    let [train, validation] = rows_of(config.data.task).map(Arc::new);
    let setup = RunSetup {
        config: config.clone(),
        data: TrainData {
            train,
            validation: Some(validation),
        },
        run: dir.to_owned(),
        base: BaseId::default(),
        other_base: OtherBase::Refuse,
        prefix_cache_bytes: place.prefix_cache_bytes,
        reducer: Box::new(Solo),
    };
    Trainer::new(model, setup)
}

/// Bits of the trained values.
pub fn bits(model: &Model) -> Vec<u32> {
    let values = model.trainables().iter();
    let values = values.flat_map(|(_, t)| t.value.read());
    values.map(f32::to_bits).collect()
}

/// As [`run`] on a model of choice.
pub fn run_at(
    place: Place,
    config: &TrainConfig,
    dir: &Path,
    stop_at: usize,
) -> Result<Left, TrainError> {
    std::fs::create_dir_all(dir).expect("a folder");
    for starts in 1..200 {
        let device =
            Device::cpu_in(config.numerics, Isa::best(), place.threads).expect("threads start");
        let model = place.model(config, &device);
        let stop = AtomicBool::new(false);
        let events = Cell::new(0);
        let on_event = |event: Event<'_>| {
            // The first event of a later start says that it was resumed.
            events.set(events.get() + usize::from(!matches!(event, Event::Resumed { .. })));
            // Every other start gets further: one that always stopped in its first evaluation would
            // never move.
            if stop_at > 0 && events.get() == stop_at + 4 * (starts % 2) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let watch = Watch {
            stop: &stop,
            on_event: &on_event,
        };
        let mut trainer = trainer(place, config, dir, model)?;
        trainer.resume(watch)?;
        if let Outcome::Finished(summary) = trainer.run(watch)? {
            let model = trainer.into_model();
            let values = bits(&model);
            let mut log = MetricsLog::read(&dir.join("metrics.jsonl"))?;
            // The clock is not part of the result.
            log.iter_mut().for_each(|row| {
                (row.tokens_per_s, row.elapsed_s, row.peak_bytes) = (None, None, None)
            });
            let peak = device.peak_memory();
            model.save_adapter(dir, None)?;
            let file = dir.join("adapter_model.safetensors");
            return Ok(Left {
                adapter: std::fs::read(file).expect("a file"),
                peak,
                values,
                log,
                summary: *summary,
                starts,
            });
        }
    }
    panic!("the run never ends");
}
