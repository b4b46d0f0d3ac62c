//! `lowrank check`: data and targets before training. What the model will see, what is odd, what would be adapted.

use std::path::Path;

use lowrank_data::check::{CheckFile, CheckOptions, CheckReport, check};
use lowrank_data::{Loaded, Table, examples_from_table, read_table};
use lowrank_engine::Device;
use lowrank_model::Model;
use lowrank_train::config::TaskKind;
use serde_json::{Value, json};

use super::eval::batch_size;
use super::train::adapter_table;
use crate::args::{CheckArgs, PrecisionArg};
use crate::errors::{CliError, CliResult};
use crate::output::{self, count};
use crate::presets::{check_family, with_preset};
use crate::resolve::{
    check_with_default_assets, choose_labels, default_lora, known_labels, resolve_lora,
};
use crate::session::{Base, Head, device, load_spec};

/// Runs the command.
pub fn run(flags: CheckArgs) -> CliResult {
    let file = flags.common.config.clone();
    let args =
        check_with_default_assets(with_preset(flags, file.as_deref(), |args| &args.preset)?)?;
    let device = device(&args.common, PrecisionArg::F32)?;
    let base = Base::open(&args.model)?.with_new_head(&args.new_head);
    check_family(&args.preset, &base.config.model_type)?;
    let task = args.data.task.unwrap_or_else(|| base.task());
    let (read, labels) = read_files(&args, &base, task, &device)?;
    let files: Vec<_> = read
        .iter()
        .map(|(name, table, loaded)| CheckFile {
            name,
            table,
            loaded,
        })
        .collect();
    let options = CheckOptions {
        batch_size: batch_size(args.per_device_batch_size, 32)?,
        samples: args.samples.unwrap_or(3),
    };
    let report = check(&files, base.tokenizer.as_ref().ok(), &options);
    let labels = choose_labels(&base, task, labels, None);
    let head = Head {
        task,
        num_labels: labels.len().max(1),
        labels,
    };
    let model = dry_model(&args, &base, &head)?;
    if args.common.is_json() {
        output::print_json(&to_json(&report, &head, &model));
    } else {
        output::println(report.render());
        let layers = model.adapter_report().modules.len();
        let trained = count(model.trainables().count());
        output::println(format!(
            "targets: {layers} layers adapted, {trained} parameters trained"
        ));
        output::print(adapter_table(&model));
    }
    if args.strict.unwrap_or(false) && !report.warnings.is_empty() {
        return Err(CliError::failure(format!(
            "{} findings deserve a look",
            report.warnings.len()
        )));
    }
    Ok(())
}

type ReadFile = (&'static str, Table, Loaded);

/// The files' rows and the label names, which come from flags, the model, or the first file.
fn read_files(
    args: &CheckArgs,
    base: &Base,
    task: TaskKind,
    device: &Device,
) -> CliResult<(Vec<ReadFile>, Option<Vec<String>>)> {
    let max_length = base.max_length(args.data.max_length)?;
    let files = [
        ("train", &args.train_file),
        ("validation", &args.validation_file),
        ("test", &args.test_file),
    ];
    let mut labels = known_labels(base, &args.data, None);
    let mut read = Vec::new();
    for (name, path) in files {
        let Some(path) = path else { continue };
        let spec = load_spec(base, &args.data, task, labels.clone(), max_length)?;
        let table = read_table(Path::new(path), &spec)?;
        let loaded =
            device.install(|| examples_from_table(&table, &spec, base.tokenizer.as_ref().ok()));
        let loaded = loaded.map_err(|error| base.data_error(error))?;
        // The first file's names hold for the others too, as in training.
        labels = labels.or_else(|| loaded.label_map.as_ref().map(|m| m.names().to_vec()));
        read.push((name, table, loaded));
    }
    if read.is_empty() {
        return Err(CliError::usage("no rows given")
            .hint("pass --train-file, --validation-file or --test-file"));
    }
    Ok((read, labels))
}

fn to_json(report: &CheckReport, head: &Head, model: &Model) -> Value {
    let targets = model.adapter_report();
    json!({
        "data": report,
        "labels": head.labels,
        "targets": targets.modules.iter().map(|m| json!({
            "path": m.path, "shape": m.shape, "rank": m.rank, "alpha": m.alpha, "scaling": m.scaling, "parameters": m.parameters,
        })).collect::<Vec<_>>(),
        "modules_to_save": targets.saved.iter().map(|m| &m.path).collect::<Vec<_>>(),
        "trainable_parameters": model.trainables().count(),
        "total_parameters": model.base_parameters(),
    })
}

/// The model as shapes, with the adapters that would be trained: every pattern that matches nothing is an error here.
fn dry_model(args: &CheckArgs, base: &Base, head: &Head) -> CliResult<Model> {
    let lora = resolve_lora(&args.lora, default_lora(&base.config.model_type))?;
    lora.validate()?;
    let mut model = base.shape(head)?;
    model.attach_lora(&lora.to_peft(&base.name, None), 0)?;
    Ok(model)
}
