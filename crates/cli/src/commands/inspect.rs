//! `lowrank inspect`: what is in a model, an adapter, a tensor file or a run, and what this machine
//! is.

mod machine;

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_engine::Device;
use lowrank_formats::gguf::is_gguf;
use lowrank_formats::peft::{AdapterConfig, BitFitConfig, LoraConfig, TokenIndices, parse_key};
use lowrank_formats::{Checkpoint, RunDir, files, read_json};
use lowrank_model::{LoadOptions, Model, ModelConfig, ModelError};
use lowrank_train::checkpoint::{Checkpoints, Newest};
use lowrank_train::metrics_log::MetricsLog;
use serde_json::{Value, json};

use crate::args::{InspectArgs, ModelArgs};
use crate::output::{self, TextTable, bytes, count};
use crate::settings;
use lowrank_run::head::BaseHead;
use lowrank_run::hub::find_model;
use lowrank_run::{RunError, RunResult};

/// Runs the command.
pub fn run(flags: InspectArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    let found = match (&args.path, args.machine) {
        (None, Some(true)) => machine::show(&args)?,
        (Some(name), None | Some(false)) => named(&args, name)?,
        (Some(_), Some(true)) => {
            return Err(RunError::usage(
                "--machine inspects this machine, and a path is given too",
            )
            .hint("leave out one of them"));
        }
        (None, None | Some(false)) => {
            return Err(RunError::usage("nothing to inspect")
                .hint("pass a model directory, an adapter, a tensor file or a run"));
        }
    };
    if args.common.is_json() {
        output::print_json(&found.json);
    } else {
        output::print(found.text);
    }
    Ok(())
}

/// What a name stands for.
fn named(args: &InspectArgs, name: &str) -> RunResult<Found> {
    let path = Path::new(name);
    if files::is_file(path) {
        return tensor_file(args, path);
    } else if RunDir::is_run(path) {
        return run_dir(path);
    } else if files::is_named(&path.join("adapter_config.json")) {
        return adapter(args, path);
    } else if files::is_dir(path) && !files::is_file(&path.join("config.json")) {
        return tensors_of(args, &Checkpoint::open_dir(path)?);
    }
    let model = ModelArgs {
        model: Some(name.to_owned()),
        ..ModelArgs::default()
    };
    let dir = find_model(&model.settings()).map_err(|error| {
        error.hint("pass a directory or a file that is there, or an id in the local cache")
    })?;
    match ModelConfig::open(&dir) {
        Err(error @ ModelError::UnknownFamily { .. }) => {
            stranger(args, &Checkpoint::open_model(&dir)?, &error)
        }
        Ok(_) | Err(_) => model_dir(args, &dir),
    }
}

/// The same, for people and for programs.
struct Found {
    text: String,
    json: Value,
}

fn tensor_file(args: &InspectArgs, path: &Path) -> RunResult<Found> {
    if path.extension().is_some_and(|e| e == "json") {
        return model_config(path);
    }
    if is_gguf(path)? {
        return match ModelConfig::open(path) {
            Ok(_) => model_dir(args, path),
            Err(error) => stranger(args, &Checkpoint::open_file(path)?, &error),
        };
    }
    tensors_of(args, &Checkpoint::open_file(path)?)
}

/// What no family here computes is still a file or folder of tensors.
fn stranger(args: &InspectArgs, checkpoint: &Checkpoint, error: &ModelError) -> RunResult<Found> {
    let mut found = tensors_of(args, checkpoint)?;
    let note = format!("not a model that can be run here: {error}\n");
    found.text.push_str(&note);
    Ok(found)
}

fn model_config(path: &Path) -> RunResult<Found> {
    let config = ModelConfig::read(path).map_err(|e| RunError::from(e).about(path))?;
    let (table, json) = describe_config(&config, &BaseHead::default());
    Ok(Found {
        text: table.to_string(),
        json,
    })
}

/// Counts by type, and every tensor where asked for.
fn tensors_of(args: &InspectArgs, checkpoint: &Checkpoint) -> RunResult<Found> {
    let mut by_type: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for info in checkpoint.infos() {
        let entry = by_type.entry(info.stored_as()).or_default();
        entry.0 += 1;
        entry.1 += info.numel() as u64;
        entry.2 += info.stored_bytes();
    }
    let mut summary = TextTable::new(&["type", "tensors", "values", "size"]);
    for (dtype, (n, values, size)) in &by_type {
        summary.row([(*dtype).to_owned(), count(*n), count(*values), bytes(*size)]);
    }
    let mut text = format!(
        "{}: {} tensors\n{summary}",
        checkpoint.path().display(),
        count(checkpoint.infos().len() as u64)
    );
    let bits = bits_a_parameter(checkpoint);
    if let Some(bits) = bits {
        text.push_str(&format!("{bits:.2} bits a parameter\n"));
    }
    let scan = args.values.unwrap_or(false);
    let list = args.tensors.unwrap_or(false);
    let mut table = TextTable::new(if scan {
        &["tensor", "type", "shape", "norm", "not finite"]
    } else {
        &["tensor", "type", "shape"]
    });
    let mut tensors = Vec::new();
    for info in checkpoint.infos() {
        let mut cells = vec![
            info.name.clone(),
            info.stored_as().to_owned(),
            format!("{:?}", info.shape),
        ];
        let mut json = json!({ "name": info.name, "dtype": info.stored_as(), "shape": info.shape });
        if scan && info.dtype.is_float() {
            let values = checkpoint.read_f32_vec(&info.name)?;
            let odd = values.iter().filter(|v| !v.is_finite()).count();
            let norm = values
                .iter()
                .map(|&v| f64::from(v).powi(2))
                .sum::<f64>()
                .sqrt();
            cells.extend([format!("{norm:.6e}"), count(odd as u64)]);
            json["norm"] = json!(norm.is_finite().then_some(norm));
            json["not_finite"] = json!(odd);
        }
        table.row(cells);
        tensors.push(json);
    }
    if list || scan {
        text.push_str(&format!("\n{table}"));
    }
    let types: serde_json::Map<_, _> = by_type
        .iter()
        .map(|(dtype, (n, values, size))| {
            (
                (*dtype).to_owned(),
                json!({ "tensors": n, "values": values, "bytes": size }),
            )
        })
        .collect();
    let mut json =
        json!({ "kind": "tensors", "path": checkpoint.path(), "types": types, "tensors": tensors });
    if let Some(bits) = bits {
        json["bits_per_parameter"] = json!(bits);
    }
    Ok(Found { text, json })
}

/// Bits that a value takes on average, scales included, where some are packed.
fn bits_a_parameter(checkpoint: &Checkpoint) -> Option<f64> {
    let is_packed = checkpoint.infos().any(|info| info.packed.is_some());
    let floats = checkpoint.infos().filter(|info| info.dtype.is_float());
    let (values, bytes) = floats.fold((0, 0), |(values, bytes), info| {
        (values + info.numel() as u64, bytes + info.stored_bytes())
    });
    (is_packed && values > 0).then(|| 8.0 * bytes as f64 / values as f64)
}

fn describe_config(config: &ModelConfig, head: &BaseHead) -> (TextTable, Value) {
    let width = head.width(config).or(config.labels.count());
    let labels = width.map(|width| config.labels.names(width).names);
    let mut table = TextTable::new(&[]);
    table
        .row(["model type", &config.model_type])
        .row(["architectures", &config.architectures.join(", ")])
        .row(["layers", &config.facts.num_hidden_layers.to_string()])
        .row(["width", &config.facts.hidden_size.to_string()])
        .row([
            "attention heads",
            &config.facts.num_attention_heads.to_string(),
        ])
        .row([
            "feed-forward width",
            &config.facts.intermediate_size.to_string(),
        ])
        .row(["vocabulary", &count(config.facts.vocab_size as u64)])
        .row(["positions", &config.facts.max_positions.to_string()]);
    if let Some(labels) = &labels {
        table.row(["labels", &labels.join(", ")]);
    }
    let json = json!({
        "model_type": config.model_type, "architectures": config.architectures,
        "num_hidden_layers": config.facts.num_hidden_layers, "hidden_size": config.facts.hidden_size,
        "num_attention_heads": config.facts.num_attention_heads, "intermediate_size": config.facts.intermediate_size,
        "vocab_size": config.facts.vocab_size, "max_positions": config.facts.max_positions,
        "id2label": labels,
    });
    (table, json)
}

fn model_dir(args: &InspectArgs, dir: &Path) -> RunResult<Found> {
    let config = ModelConfig::open(dir).map_err(|e| RunError::from(e).about(dir))?;
    // What cannot be told of the head is no reason to show nothing.
    let head = BaseHead::read(dir, &config).unwrap_or_default();
    let (table, mut json) = describe_config(&config, &head);
    let mut text = format!("{}\n{table}", dir.display());
    for note in &head.notes {
        text.push_str(&format!("{note}\n"));
    }
    let options = LoadOptions {
        task: head.task(&config),
        num_labels: head.width(&config).unwrap_or(2).max(1),
        seed: 0,
        ignore_mismatched_sizes: true,
    };
    let model = Model::from_config(config, &options, &Device::dry())?;
    text.push_str(&format!(
        "\n{} parameters with the head\n",
        count(model.base_parameters())
    ));
    let mut modules = TextTable::new(&["module", "kind", "shape"]);
    let mut list = Vec::new();
    for module in model.modules().iter() {
        let sizes: Vec<String> = module.shape().iter().map(usize::to_string).collect();
        let (kind, shape) = (module.kind.name(), sizes.join("x"));
        modules.row([&module.path, kind, &shape]);
        list.push(json!({ "path": module.path, "kind": kind, "shape": shape }));
    }
    text.push_str(&format!("\n{modules}"));
    json["kind"] = json!("model");
    json["parameters"] = json!(model.base_parameters());
    json["modules"] = json!(list);
    // Weights may be absent: a config alone is worth a look too.
    match Checkpoint::open_model(dir) {
        Ok(checkpoint) => {
            let tensors = tensors_of(args, &checkpoint)?;
            text.push_str(&format!("\n{}", tensors.text));
            json["weights"] = tensors.json;
        }
        Err(error) => text.push_str(&format!("\nno weights: {error}\n")),
    }
    Ok(Found { text, json })
}

fn adapter(args: &InspectArgs, dir: &Path) -> RunResult<Found> {
    let config = AdapterConfig::read(dir)?;
    let file = config.read_tensors(dir)?;
    let (table, mut json) = match &config {
        AdapterConfig::Lora(config) => lora_settings(config, dir),
        AdapterConfig::BitFit(config) => bitfit_settings(config, dir),
    };
    let mut layers: BTreeMap<&str, (Vec<String>, u64)> = BTreeMap::new();
    for (key, tensor) in file.iter() {
        let module = parse_key(key).map_or(key, |(module, _)| module);
        let entry = layers.entry(module).or_default();
        entry.0.push(format!("{:?}", tensor.shape));
        entry.1 += tensor.data.len() as u64;
    }
    let total: u64 = layers.values().map(|l| l.1).sum();
    let mut modules = TextTable::new(&["module", "tensors", "values"]);
    for (module, (shapes, n)) in &layers {
        modules.row([(*module).to_owned(), shapes.join(" "), count(*n)]);
    }
    let unsupported = config.lora().map(LoraConfig::unsupported_fields);
    let warnings: Vec<String> = unsupported
        .iter()
        .flatten()
        .map(|f| f.to_string())
        .collect();
    let mut text = format!(
        "{} adapter {}\n{table}\n{} values\n{modules}",
        config.method().title(),
        dir.display(),
        count(total)
    );
    for warning in &warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if args.tensors.unwrap_or(false) || args.values.unwrap_or(false) {
        let names = ["adapter_model.safetensors", "adapter_model.bin"];
        if let Some(path) = names
            .iter()
            .map(|n| dir.join(n))
            .find(|p| files::is_file(p))
        {
            text.push_str(&format!(
                "\n{}",
                tensors_of(args, &Checkpoint::open_file(&path)?)?.text
            ));
        }
    }
    let module = |(path, (shapes, n)): (&&str, &(Vec<String>, u64))| json!({ "path": path, "shapes": shapes, "values": n });
    json["values"] = json!(total);
    json["warnings"] = json!(warnings);
    json["modules"] = layers.iter().map(module).collect();
    Ok(Found { text, json })
}

fn bitfit_settings(config: &BitFitConfig, dir: &Path) -> (TextTable, Value) {
    let (base, saved) = (&config.base_model_name_or_path, &config.modules_to_save);
    let mut table = TextTable::new(&[]);
    table
        .row(["base model", base.as_deref().unwrap_or("-")])
        .row(["modules to save", &saved.join(", ")]);
    let json = json!({
        "kind": "adapter", "path": dir, "method": "bitfit", "base_model": base, "modules_to_save": saved,
    });
    (table, json)
}

/// The rows of tables that an adapter trains, in words.
fn trained_rows(config: &LoraConfig) -> Option<String> {
    let list = |ids: &[u32]| {
        let shown: Vec<String> = ids.iter().take(8).map(u32::to_string).collect();
        match ids.len() {
            0..=8 => shown.join(", "),
            all => format!("{}, … ({all})", shown.join(", ")),
        }
    };
    Some(match config.trainable_token_indices.as_ref()? {
        TokenIndices::Input(ids) => list(ids),
        TokenIndices::ByModule(tables) => {
            let of = tables
                .iter()
                .map(|(name, ids)| format!("{name}: {}", list(ids)));
            of.collect::<Vec<_>>().join("; ")
        }
    })
}

fn lora_settings(config: &LoraConfig, dir: &Path) -> (TextTable, Value) {
    let mut table = TextTable::new(&[]);
    table
        .row([
            "base model",
            config.base_model_name_or_path.as_deref().unwrap_or("-"),
        ])
        .row(["rank", &config.r.to_string()])
        .row(["alpha", &config.lora_alpha.to_string()])
        .row([
            "scaling",
            if config.use_rslora {
                "alpha / sqrt(r)"
            } else {
                "alpha / r"
            },
        ])
        .row(["dropout", &config.lora_dropout.to_string()])
        .row([
            "modules to save",
            &config
                .modules_to_save
                .as_deref()
                .unwrap_or_default()
                .join(", "),
        ]);
    let rows = trained_rows(config);
    if let Some(rows) = &rows {
        table.row(["trained rows", rows]);
    }
    table.row([
        "PEFT version",
        config.peft_version.as_deref().unwrap_or("-"),
    ]);
    let json = json!({
        "kind": "adapter", "path": dir, "base_model": config.base_model_name_or_path, "r": config.r,
        "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout, "use_rslora": config.use_rslora,
        "modules_to_save": config.modules_to_save, "trained_rows": rows,
    });
    (table, json)
}

fn run_dir(dir: &Path) -> RunResult<Found> {
    let checkpoints = Checkpoints::new(dir, 1);
    let Newest {
        found: newest,
        passed_over: broken,
        lost_best,
    } = checkpoints.newest(&|_| Ok(()));
    let mut broken: Vec<String> = (broken.iter().chain(&lost_best))
        .map(ToString::to_string)
        .collect();
    let mut or_broken = |error: &dyn std::error::Error| broken.push(error.to_string());
    let log = dir.join("metrics.jsonl");
    let rows = match files::is_named(&log) || newest.is_some() {
        true => MetricsLog::read(&log)
            .map_err(|error| or_broken(&error))
            .unwrap_or_default(),
        false => Vec::new(),
    };
    let file = dir.join("summary.json");
    let finished = files::is_named(&file);
    let summary: Option<Value> = finished
        .then(|| read_json(&file).map_err(|error| or_broken(&error)).ok())
        .flatten();
    let mut table = TextTable::new(&[]);
    table.row(["state", if finished { "finished" } else { "not finished" }]);
    if let Some(found) = &newest {
        let c = &found.state.config;
        let best = found
            .state
            .best
            .best_step
            .map_or("-".to_owned(), |s| s.to_string());
        table
            .row(["model", &c.model])
            .row(["training rows", &c.data.train_file])
            .row(["newest checkpoint", &format!("step {}", found.state.step)])
            .row(["best step", &best]);
    }
    let all_steps = checkpoints.steps()?;
    let steps: Vec<String> = all_steps.iter().map(u64::to_string).collect();
    table.row(["checkpoints", &steps.join(", ")]);
    if let Some(loss) = rows.last().and_then(|row| row.loss) {
        table.row(["last loss", &format!("{loss:.4}")]);
    }
    let mut text = format!("run {}\n{table}", dir.display());
    for error in &broken {
        text.push_str(&format!("warning: {error}\n"));
    }
    let json = json!({
        "kind": "run", "path": dir, "finished": finished, "checkpoints": all_steps,
        "newest": newest.as_ref().map(|f| &f.state), "broken": broken,
        "rows": rows.len(), "summary": summary,
    });
    Ok(Found { text, json })
}
