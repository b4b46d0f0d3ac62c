//! What training a model would need, by its configuration and the shape of a batch alone, from the
//! code that would run it on a device that only counts. The plan of a run, which has rows, is in
//! [`crate::plan`].

mod choices;

use std::path::{Path, PathBuf};

use lowrank_engine::{Device, MemoryReport, Numerics};
use lowrank_formats::gguf::is_gguf;
use lowrank_formats::peft::LoraConfig;
use lowrank_formats::{Checkpoint, files, model_config_file};
use lowrank_model::modules::Module;
use lowrank_model::{LoadOptions, Model, ModelConfig, Passes, Recompute};
use lowrank_model::{builtin_config, builtin_names};
use lowrank_train::config::{
    ByteSize, DEFAULT_MAX_LENGTH, LARGEST_BATCH, LoraSettings, Method, OptimizationSettings, Task,
};
use lowrank_train::fit::BatchShape;
use lowrank_train::frozen_cache::token_bytes;
use lowrank_train::plan::{DryRun, Needs};
use serde_json::json;

use crate::base::load_error;
use crate::device::NumericChoices;
use crate::error::{RunError, RunResult};
use crate::head::BaseHead;
use crate::hub::find_model;
use crate::machine::Machine;
use crate::settings::{ModelSettings, Settings, laid_over};
pub use choices::Choices;

/// What is planned: a configuration, and the directory of its weights, if it has some.
pub struct Subject {
    /// The configuration.
    pub config: ModelConfig,
    dir: Option<PathBuf>,
    head: BaseHead,
}

impl Subject {
    /// That of a built-in name, a file, a directory or an id.
    ///
    /// # Errors
    /// There is none of that name, or it cannot be read.
    pub fn find(model: &ModelSettings) -> RunResult<Self> {
        let Some(name) = model.model.as_deref() else {
            return Err(RunError::usage("no model given").hint(format!(
                "pass a config.json, the directory of a model, or one of {}",
                builtin_names().collect::<Vec<_>>().join(", ")
            )));
        };
        let path = Path::new(name);
        if !files::exists(path)
            && let Some(config) = builtin_config(name)
        {
            let config = ModelConfig::from_value(path, config)?;
            return Self::new(config, None);
        }
        // A config.json by itself is a model without weights, unless they stand beside it.
        let (file, dir) = if files::is_file(path) && !is_gguf(path)? {
            (path.to_owned(), path.parent().map(Path::to_path_buf))
        } else {
            let found = find_model(model)?;
            (model_config_file(&found), Some(found))
        };
        let config = match &dir {
            Some(model) if model_config_file(model) == file => ModelConfig::open(model),
            Some(_) | None => ModelConfig::read(&file),
        };
        let config = config.map_err(|e| RunError::from(e).about(&file))?;
        Self::new(
            config,
            dir.filter(|dir| Checkpoint::open_model(dir).is_ok()),
        )
    }

    fn new(config: ModelConfig, dir: Option<PathBuf>) -> RunResult<Self> {
        let head = match &dir {
            Some(dir) => BaseHead::read(dir, &config)?,
            None => BaseHead::default(),
        };
        Ok(Self { config, dir, head })
    }

    /// What it predicts unless told otherwise.
    pub fn task(&self) -> Task {
        self.head.task(&self.config)
    }

    /// Outputs of its head for a task.
    ///
    /// # Errors
    /// More are asked for than a head may have.
    fn num_labels(&self, task: Task, asked: Option<usize>) -> RunResult<usize> {
        let of_config = self.head.width(&self.config).filter(|n| *n > 0);
        let of_config = of_config.filter(|_| task != Task::Regression);
        let num_labels = asked.or(of_config).unwrap_or(match task {
            Task::Regression | Task::CausalLm => 1,
            Task::SingleLabel | Task::MultiLabel | Task::TokenClassification => 2,
        });
        if !(1..=LARGEST_HEAD).contains(&num_labels) {
            return Err(RunError::usage(format!(
                "`num_labels` is {num_labels}, expected from 1 to {LARGEST_HEAD}"
            )));
        }
        Ok(num_labels)
    }
}

/// How it would be trained.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// What is predicted.
    pub task: Task,
    /// Outputs of the head; those of the model where absent.
    pub num_labels: Option<usize>,
    /// Rows a batch, or a step where `max_memory` chooses the batch; 32 where absent.
    pub rows: Option<usize>,
    /// Tokens a row, all rows full.
    pub max_length: Option<usize>,
    /// Whether activations are recomputed; where absent `max_memory` chooses, else they are not.
    pub gradient_checkpointing: Option<bool>,
    /// A limit for the whole process.
    pub max_memory: Option<ByteSize>,
    /// What is adapted, by name.
    pub lora: Settings,
    /// How values are stored and multiplied.
    pub numerics: NumericChoices,
    /// The processor that would compute.
    pub machine: Machine,
    /// On so many threads; all cores where absent.
    pub threads: Option<usize>,
}

/// One way of training.
pub struct Way {
    /// How values are stored and multiplied.
    pub numerics: Numerics,
    /// Values that train.
    pub trainable: u64,
    /// Those of them in adapters.
    pub adapter: u64,
    /// Those of them in the head.
    pub head: u64,
    /// What is held whatever the batch.
    pub fixed: MemoryReport,
    /// What a step needs.
    pub needs: Needs,
    /// Layers below the lowest adapter.
    pub frozen_layers: usize,
    /// What is needed where their states are kept; nothing if dropout is on in them.
    pub with_frozen_kept: Option<Needs>,
}

/// What training would need.
pub struct ModelPlan {
    /// Rows a batch.
    pub rows: usize,
    /// Tokens a row.
    pub length: usize,
    /// Values of the model.
    pub base_parameters: u64,
    /// Those of them in the encoder.
    pub encoder_parameters: u64,
    /// Those of them that are biases there.
    pub encoder_biases: u64,
    /// With adapters.
    pub lora: Way,
    /// Of all weights.
    pub full: Way,
    /// Floating-point operations a token of a forward pass.
    pub forward_flops: f64,
    /// Bytes of the file that holds the adapter.
    pub adapter_file: u64,
    /// Bytes of what the frozen layers give for a token.
    pub kept_bytes: u64,
    /// What is adapted.
    pub lora_settings: LoraSettings,
    /// Whether activations are recomputed.
    pub recompute: Recompute,
    /// The batches that a limit of memory leaves to choose from.
    pub choices: Option<Choices>,
    layers: u64,
    width: u64,
}

/// Models of shapes.
struct Planner<'a> {
    subject: &'a Subject,
    options: LoadOptions,
    peft: LoraConfig,
    settings: &'a PlanSettings,
}

impl Planner<'_> {
    /// The model as a method trains it. With weights beside the config, what they lack is known (a
    /// new pooler is trained too); else nothing is new.
    fn model(&self, method: Method) -> RunResult<Model> {
        let PlanSettings {
            machine, threads, ..
        } = self.settings;
        let dir = self.subject.dir.as_deref().and_then(Path::to_str);
        let numerics = self.settings.numerics.for_training(method, dir)?;
        let numerics = numerics.on(machine)?;
        let dry = Device::dry_cpu(numerics, machine.isa(), threads.unwrap_or(0));
        Ok(match &self.subject.dir {
            Some(dir) => {
                let loaded = Model::load(dir, &self.options, &dry);
                loaded.map_err(|e| load_error(e, dir))?.0
            }
            None => Model::from_config(self.subject.config.clone(), &self.options, &dry)?,
        })
    }

    fn lora(&self, accumulation: usize) -> RunResult<DryRun> {
        let mut adapted = self.model(Method::Lora)?;
        adapted.attach_lora(&self.peft, 0)?;
        Ok(DryRun::of_model(adapted, &optimizer(accumulation)))
    }

    fn full(&self, accumulation: usize) -> RunResult<DryRun> {
        let mut whole = self.model(Method::Full)?;
        whole.train_all()?;
        Ok(DryRun::of_model(whole, &optimizer(accumulation)))
    }
}

fn optimizer(accumulation: usize) -> OptimizationSettings {
    OptimizationSettings {
        gradient_accumulation_steps: accumulation,
        ..OptimizationSettings::default()
    }
}

impl ModelPlan {
    /// Runs the model dry.
    ///
    /// # Errors
    /// A number is out of range, adapter and model do not fit together, or not even one row fits
    /// into the limit of memory.
    pub fn make(subject: &Subject, settings: &PlanSettings) -> RunResult<Self> {
        let facts = &subject.config.facts;
        let num_labels = subject.num_labels(settings.task, settings.num_labels)?;
        let rows = settings.rows.unwrap_or(32);
        let length = settings.max_length;
        let length = length.unwrap_or(DEFAULT_MAX_LENGTH.min(facts.max_positions));
        check_batch(&subject.config, rows, length)?;
        let fresh = LoraSettings::of(&subject.config.model_type);
        let lora_settings = laid_over(&fresh, &settings.lora)?;
        lora_settings.validate()?;
        let planner = Planner {
            subject,
            options: LoadOptions {
                task: settings.task,
                num_labels,
                seed: 0,
                ignore_mismatched_sizes: true,
            },
            peft: lora_settings.to_peft("base", None),
            settings,
        };
        let asked = settings.gradient_checkpointing.map(Recompute::from);
        let dry = |shape: BatchShape| planner.lora(shape.accumulation);
        let choices = settings.max_memory;
        let choices = choices.map(|limit| Choices::make(limit, rows, length, asked, &dry));
        let choices = choices.transpose()?;
        let shape = match &choices {
            Some(choices) => choices.taken()?,
            None => BatchShape {
                batch_size: rows,
                accumulation: 1,
                recompute: asked.unwrap_or_default(),
            },
        };
        let (rows, recompute) = (shape.batch_size, shape.recompute);
        let batch = vec![vec![length; rows]];
        let mut full = planner.full(shape.accumulation)?;
        let mut lora = planner.lora(shape.accumulation)?;
        let model = lora.model();
        let (base_parameters, encoder) = (model.base_parameters(), Encoder::count(model));
        let adapter_file = adapter_file_bytes(model);
        let kept_bytes = token_bytes(model);
        let forward = lora.evaluate(batch.clone())?;
        Ok(Self {
            rows,
            length,
            base_parameters,
            encoder_parameters: encoder.parameters,
            encoder_biases: encoder.biases,
            forward_flops: forward.flops_per_token(),
            adapter_file,
            kept_bytes,
            lora: way(&mut lora, batch.clone(), recompute)?,
            full: way(&mut full, batch, recompute)?,
            lora_settings,
            recompute,
            choices,
            layers: facts.num_hidden_layers as u64,
            width: facts.hidden_size as u64,
        })
    }

    /// What the paper's other baselines would train in this encoder, besides a head.
    pub fn other_methods(&self) -> Vec<(String, u64)> {
        let (layers, width) = (self.layers, self.width);
        let adapter = |r: u64| 2 * width * r + r + width;
        let mut list = vec![("bitfit".to_owned(), self.encoder_biases)];
        for r in [8, 16, 48, 64] {
            list.push((format!("adapter_houlsby_r{r}"), 2 * layers * adapter(r)));
            list.push((format!("adapter_pfeiffer_r{r}"), layers * adapter(r)));
        }
        // AdapterDrop without the adapters of the lower layers: the paper's 0.3M row has them in 4
        // layers of 12.
        list.push(("adapter_drop_r48".to_owned(), layers / 3 * adapter(48)));
        list
    }

    /// How many times fewer parameters LoRA trains.
    pub fn reduction(&self) -> f64 {
        self.full.trainable as f64 / self.lora.trainable.max(1) as f64
    }
}

/// Refuses a batch that no machine computes, before anything is laid out for it: the counts of
/// operations stay exact.
fn check_batch(config: &ModelConfig, rows: usize, length: usize) -> RunResult {
    let facts = &config.facts;
    if !(1..=LARGEST_BATCH).contains(&rows) {
        return Err(RunError::usage(format!(
            "`per_device_batch_size` is {rows}, expected from 1 to {LARGEST_BATCH}"
        )));
    }
    if !(1..=facts.max_positions).contains(&length) {
        let most = facts.max_positions;
        return Err(RunError::usage(format!(
            "`max_length` is {length}, but the model has {most} positions"
        ))
        .hint(format!("pass --max-length from 1 to {most}")));
    }
    let tokens = rows as f64 * length as f64;
    let (width, layers) = (facts.hidden_size as f64, facts.num_hidden_layers as f64);
    let weights = (facts.vocab_size as f64 + facts.max_positions as f64) * width
        + layers * width * (4.0 * width + 2.0 * facts.intermediate_size as f64);
    let work = tokens * (weights + layers * width * length as f64);
    if rows * length > LARGEST_TOKENS || work > LARGEST_WORK {
        return Err(RunError::usage(format!(
            "a batch of {rows} rows of {length} tokens in a model of about {weights:.1e} weights is beyond any machine"
        ))
        .hint("lower --per-device-batch-size or --max-length; or mend the sizes in config.json"));
    }
    Ok(())
}

/// Outputs of a head at most.
const LARGEST_HEAD: usize = 1 << 20;

/// Tokens of a batch at most: the plan holds each of them.
const LARGEST_TOKENS: usize = 1 << 24;

/// Multiply-adds of a forward pass at most, so that counts of a whole step fit into 64 bits.
const LARGEST_WORK: f64 = (1u64 << 58) as f64;

fn way(dry: &mut DryRun, batch: Vec<Vec<usize>>, recompute: Recompute) -> RunResult<Way> {
    let fixed = dry.fixed();
    let model = dry.model();
    let (trainable, adapter) = (
        model.trainables().count(),
        model.adapter_report().adapter_parameters(),
    );
    let head = model
        .modules()
        .iter()
        .filter(|m| is_head(&m.path))
        .map(Module::count)
        .sum();
    Ok(Way {
        numerics: model.device().numerics(),
        trainable,
        adapter,
        head,
        fixed,
        frozen_layers: dry.model().frozen_layers(Passes::Inference).count,
        with_frozen_kept: dry.train_cached(&batch[0], recompute)?,
        needs: dry.train(batch, recompute)?,
    })
}

/// The encoder without pooler and head.
#[derive(Default)]
struct Encoder {
    parameters: u64,
    biases: u64,
}

impl Encoder {
    fn count(model: &Model) -> Self {
        let mut encoder = Self::default();
        let is_of_body = |m: &&Module| !is_head(&m.path) && !m.path.contains("pooler");
        let modules = model.modules().iter().filter(is_of_body);
        for parameter in modules.flat_map(|module| &module.parameters) {
            encoder.parameters += parameter.count();
            if parameter.is_bias() {
                encoder.biases += parameter.count();
            }
        }
        encoder
    }
}

fn is_head(path: &str) -> bool {
    path.starts_with("classifier") || path.starts_with("score")
}

/// Bytes of the safetensors file that holds the adapter: its header is as long as its names make
/// it.
fn adapter_file_bytes(model: &Model) -> u64 {
    let mut offset = 0u64;
    let mut header = json!({ "__metadata__": { "format": "pt" } }).to_string();
    header.pop();
    let mut sorted = model.saved_shapes();
    sorted.sort();
    for (name, shape) in sorted {
        let end = offset + 4 * shape.iter().product::<usize>() as u64;
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
        header.push_str(&format!(",{}:{entry}", json!(name)));
        offset = end;
    }
    header.push('}');
    8 + (header.len() as u64).div_ceil(8) * 8 + offset
}
