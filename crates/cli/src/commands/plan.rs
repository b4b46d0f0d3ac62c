//! `lowrank plan`: what a run would need, from the code that would run it, on a device that only
//! counts.

mod choices;

use std::path::{Path, PathBuf};

use lowrank_engine::{MemoryReport, Numerics, Purpose};
use lowrank_formats::gguf::is_gguf;
use lowrank_formats::{Checkpoint, files, model_config_file, to_python_json, write_atomic};
use lowrank_model::modules::Module;
use lowrank_model::{LoadOptions, Model, ModelConfig, builtin_config, builtin_names};
use lowrank_run::base::load_error;
use lowrank_run::head::BaseHead;
use lowrank_run::hub::find_model;
use lowrank_run::memory::by_purpose;
use lowrank_run::settings::laid_over;
use lowrank_run::{RunError, RunResult};
use lowrank_train::config::{
    DEFAULT_MAX_LENGTH, LARGEST_BATCH, LoraSettings, Method, OptimizationSettings, Task,
};
use lowrank_train::fit::BatchShape;
use lowrank_train::plan::{DryRun, Needs};
use lowrank_train::prefix_cache::token_bytes;
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::output::{self, TextTable, bytes, count, percent};
use crate::unused::check_plan;
use crate::{presets, session, settings, targets, unused};
use choices::Choices;
use lowrank_run::unused::Unused;

/// Runs the command.
pub fn run(flags: PlanArgs) -> RunResult {
    let file = flags.common.config.clone();
    let unused = unused::given(&flags, file.as_deref())?;
    let args = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    if let Some(dir) = &args.write_config {
        write_config(&args, dir)?;
    }
    let plan = Plan::make(&args, unused)?;
    if args.common.is_json() {
        output::print_json(&plan.to_json());
    } else {
        output::print(plan.to_text());
    }
    Ok(())
}

/// What is planned: a configuration, and the directory of its weights, if it has some.
struct Subject {
    config: ModelConfig,
    dir: Option<PathBuf>,
}

/// The configuration of a built-in name, a file, a directory or an id.
fn find_config(args: &PlanArgs) -> RunResult<Subject> {
    let mut model = args.model.settings();
    model.model = args.path.clone().or(model.model);
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
        return Ok(Subject { config, dir: None });
    }
    // A config.json by itself is a model without weights, unless they stand beside it.
    let (file, dir) = if files::is_file(path) && !is_gguf(path)? {
        (path.to_owned(), path.parent().map(Path::to_path_buf))
    } else {
        let found = find_model(&model)?;
        (model_config_file(&found), Some(found))
    };
    let config = match &dir {
        Some(model) if model_config_file(model) == file => ModelConfig::open(model),
        Some(_) | None => ModelConfig::read(&file),
    };
    Ok(Subject {
        config: config.map_err(|e| RunError::from(e).about(&file))?,
        dir: dir.filter(|dir| Checkpoint::open_model(dir).is_ok()),
    })
}

/// Writes a built-in configuration, so that a model can be trained from it.
fn write_config(args: &PlanArgs, dir: &str) -> RunResult {
    let name = args.path.as_deref().or(args.model.model.as_deref());
    let config = name.and_then(builtin_config).ok_or_else(|| {
        RunError::usage("`write_config` needs the name of a built-in configuration").hint(format!(
            "one of {}",
            builtin_names().collect::<Vec<_>>().join(", ")
        ))
    })?;
    let dir = Path::new(dir);
    let text = format!("{}\n", to_python_json(&config));
    targets::check_config_folder(dir, text.as_bytes())?;
    files::create_dir_all(dir)?;
    Ok(write_atomic(&dir.join("config.json"), text.as_bytes())?)
}

/// One way of training.
struct Way {
    numerics: Numerics,
    trainable: u64,
    adapter: u64,
    head: u64,
    fixed: MemoryReport,
    needs: Needs,
    /// Layers below the lowest adapter, and what is needed where they are kept; nothing if dropout
    /// is on in them.
    frozen: (usize, Option<Needs>),
}

struct Plan {
    config: ModelConfig,
    rows: usize,
    length: usize,
    base_parameters: u64,
    encoder_parameters: u64,
    encoder_biases: u64,
    lora: Way,
    full: Way,
    forward_flops: f64,
    adapter_file: u64,
    /// Bytes of what the frozen layers give for a token.
    kept_bytes: u64,
    lora_settings: LoraSettings,
    preset: Option<String>,
    recompute: bool,
    choices: Option<Choices>,
}

impl Plan {
    fn make(args: &PlanArgs, unused: Unused) -> RunResult<Self> {
        let Subject { config, dir } = find_config(args)?;
        presets::check_family(&args.preset, &config.model_type)?;
        let head = match &dir {
            Some(dir) => BaseHead::read(dir, &config)?,
            None => BaseHead::default(),
        };
        let task = args.task.unwrap_or_else(|| head.task(&config));
        let of_config = head.width(&config).filter(|n| *n > 0);
        let num_labels = args
            .num_labels
            .or(of_config.filter(|_| task != Task::Regression))
            .unwrap_or(match task {
                Task::Regression | Task::CausalLm => 1,
                Task::SingleLabel | Task::MultiLabel | Task::TokenClassification => 2,
            });
        check_plan(unused, args, task)?;
        if !(1..=LARGEST_HEAD).contains(&num_labels) {
            return Err(RunError::usage(format!(
                "`num_labels` is {num_labels}, expected from 1 to {LARGEST_HEAD}"
            )));
        }
        let options = LoadOptions {
            task,
            num_labels,
            seed: 0,
            ignore_mismatched_sizes: true,
        };
        let mut rows = args.per_device_batch_size.unwrap_or(32);
        let most = config.facts.max_positions;
        let length = args.max_length.unwrap_or(DEFAULT_MAX_LENGTH.min(most));
        check_batch(&config, rows, length)?;
        let mut recompute = args.gradient_checkpointing.unwrap_or(false);
        let fresh = LoraSettings::of(&config.model_type);
        let lora_settings = laid_over(&fresh, &settings::to_map(&args.lora))?;
        lora_settings.validate()?;
        let peft = lora_settings.to_peft("base", None);
        // With weights beside the config, what they lack is known (a new pooler is trained too);
        // else nothing is new.
        let model = |method: Method| -> RunResult<Model> {
            let numerics = args.numerics.choices().for_method(method);
            let dry = session::dry_device(&args.common, numerics)?;
            Ok(match &dir {
                Some(dir) => {
                    let loaded = Model::load(dir, &options, &dry);
                    loaded.map_err(|e| load_error(e, dir))?.0
                }
                None => Model::from_config(config.clone(), &options, &dry)?,
            })
        };
        let optimizer = |accumulation: usize| OptimizationSettings {
            gradient_accumulation_steps: accumulation,
            ..OptimizationSettings::default()
        };
        let adapted = |accumulation: usize| -> RunResult<DryRun> {
            let mut adapted = model(Method::Lora)?;
            adapted.attach_lora(&peft, 0)?;
            Ok(DryRun::of_model(adapted, &optimizer(accumulation)))
        };
        let choices = (args.memory.max_memory)
            .map(|limit| {
                let asked = args.gradient_checkpointing;
                let dry = |shape: BatchShape| adapted(shape.accumulation);
                Choices::make(limit, rows, length, asked, &dry)
            })
            .transpose()?;
        let mut accumulation = 1;
        if let Some(choices) = &choices {
            let shape = choices.taken()?;
            (rows, recompute) = (shape.batch_size, shape.recompute);
            accumulation = shape.accumulation;
        }
        let batch = vec![vec![length; rows]];
        let mut whole = model(Method::Full)?;
        whole.train_all()?;
        let mut lora = adapted(accumulation)?;
        let mut full = DryRun::of_model(whole, &optimizer(accumulation));
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
            config,
            lora_settings,
            preset: presets::describe(&args.preset)?,
            recompute,
            choices,
        })
    }

    fn to_json(&self) -> Value {
        let way = |way: &Way| {
            json!({
                "precision": way.numerics.activations,
                "base_format": way.numerics.weights,
                "arithmetic": way.numerics.arithmetic,
                "trainable_parameters": way.trainable,
                "adapter_parameters": way.adapter,
                "head_parameters": way.head,
                "peak_bytes": way.needs.peak.total(),
                "bytes": by_purpose(&way.needs.peak),
                "fixed_bytes": by_purpose(&way.fixed),
                "flops_per_token": way.needs.flops_per_token(),
                "frozen_layers": way.frozen.0,
                "flops_per_token_with_them_kept": way.frozen.1.as_ref().map(Needs::flops_per_token),
            })
        };
        json!({
            "preset": self.preset,
            "model_type": self.config.model_type,
            "rows": self.rows,
            "tokens_per_row": self.length,
            "total_parameters": self.base_parameters,
            "encoder_parameters": self.encoder_parameters,
            "prefix_cache_bytes_per_token": self.kept_bytes,
            "choices": self.choices.as_ref().map(Choices::to_json),
            "gradient_checkpointing": self.recompute,
            "lora": way(&self.lora),
            "full": way(&self.full),
            "forward_flops_per_token": self.forward_flops,
            "adapter_file_bytes": self.adapter_file,
            "adapter_bytes_in_16_bits": 2 * self.lora.trainable,
            "trainable_parameters_full_over_lora": self.reduction(),
            "other_methods": self.other_methods().into_iter().map(|(k, v)| (k, json!(v))).collect::<serde_json::Map<_, _>>(),
        })
    }

    /// What the paper's other baselines would train in this encoder, besides a head.
    fn other_methods(&self) -> Vec<(String, u64)> {
        let (layers, width) = (
            self.config.facts.num_hidden_layers as u64,
            self.config.facts.hidden_size as u64,
        );
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
    fn reduction(&self) -> f64 {
        self.full.trainable as f64 / self.lora.trainable.max(1) as f64
    }

    fn to_text(&self) -> String {
        let c = &self.config;
        let mut text = format!(
            "{}: {} layers, width {}, {} heads; {} parameters with its head, {} in the encoder\n\
             a batch of {} rows of {} tokens; LoRA rank {}, alpha {}\n\n",
            c.model_type,
            c.facts.num_hidden_layers,
            c.facts.hidden_size,
            c.facts.num_attention_heads,
            count(self.base_parameters),
            count(self.encoder_parameters),
            count(self.rows as u64),
            self.length,
            self.lora_settings.r,
            self.lora_settings.lora_alpha,
        );
        if let Some(preset) = &self.preset {
            text = format!("{preset}\n\n{text}");
        }
        let (lora, full) = (&self.lora, &self.full);
        let total = self.base_parameters + lora.adapter;
        let mut table = TextTable::new(&[
            "",
            &format!("LoRA, {}", lora.numerics),
            &format!("full fine-tuning, {}", full.numerics),
        ]);
        table
            .row([
                "trained parameters",
                &count(lora.trainable),
                &count(full.trainable),
            ])
            .row(["  of them in adapters", &count(lora.adapter), "-"])
            .row([
                "  of them in the head",
                &count(lora.head),
                &count(full.head),
            ])
            .row([
                "share of all",
                &percent(lora.trainable, total),
                &percent(full.trainable, self.base_parameters),
            ]);
        for purpose in Purpose::of_training() {
            table.row([
                purpose.name().replace('_', " "),
                bytes(lora.needs.peak.of(purpose)),
                bytes(full.needs.peak.of(purpose)),
            ]);
        }
        let flops = |needs: &Needs| format!("{:.1} MFLOP", needs.flops_per_token() / 1e6);
        table
            .row([
                "peak of all tensors",
                &bytes(lora.needs.peak.total()),
                &bytes(full.needs.peak.total()),
            ])
            .row([
                "training, a token",
                &flops(&lora.needs),
                &flops(&full.needs),
            ]);
        if let (layers @ 1.., kept) = &lora.frozen {
            let shown = match kept {
                None => "computed anew: their dropout is on".to_owned(),
                Some(_) => format!("{} a token if kept", bytes(self.kept_bytes)),
            };
            let name = format!("frozen layers below: {layers}");
            table.row([name, shown, "-".to_owned()]);
            if let Some(needs) = kept {
                let name = "  training with them kept, a token";
                table.row([name, &flops(needs), "-"]);
            }
        }
        table
            .row([
                "file of the result",
                &bytes(self.adapter_file),
                &bytes(4 * full.trainable),
            ])
            .row([
                "the same in 16 bits",
                &bytes(2 * lora.trainable),
                &bytes(2 * full.trainable),
            ])
            .row([
                "fewer trained parameters".to_owned(),
                format!("{} times", count(self.reduction() as u64)),
                "-".to_owned(),
            ]);
        text.push_str(&table.to_string());
        text.push_str(&format!(
            "\nforward alone: {:.1} MFLOP a token\n",
            self.forward_flops / 1e6
        ));
        text.push_str(&self.others_text());
        if let Some(choices) = &self.choices {
            text.push_str(&format!("\n{}", choices.to_text()));
        }
        text
    }

    fn others_text(&self) -> String {
        let mut others = TextTable::new(&["other methods, besides a head", "trained"]);
        others.row([
            "full fine-tuning of the encoder".to_owned(),
            count(self.encoder_parameters),
        ]);
        for (name, n) in self.other_methods() {
            others.row([name.replace('_', " "), count(n)]);
        }
        format!("\n{others}")
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

fn way(dry: &mut DryRun, batch: Vec<Vec<usize>>, recompute: bool) -> RunResult<Way> {
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
        frozen: (
            dry.model().frozen_prefix(false).layers,
            dry.train_kept(&batch[0], recompute)?,
        ),
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
