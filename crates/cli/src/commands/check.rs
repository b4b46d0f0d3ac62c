//! `lowrank check`: data and targets before training. What the model will see, what is odd, what
//! would be adapted.

use lowrank_data::check::{CheckFile, CheckOptions, CheckReport, check};
use lowrank_data::{Example, LabelMap, Loaded, Table, Task};
use lowrank_engine::{BaseFormat, Device};
use lowrank_model::{Int8Error, Model};
use lowrank_run::base::{Base, Head};
use lowrank_run::device::NumericChoices;
use lowrank_run::labels::{self, TaskChoice};
use lowrank_run::loaded::batch_size;
use lowrank_run::rows::{KnownLabels, capacity_note, load_spec, max_length, rows_of};
use lowrank_run::settings::laid_over;
use lowrank_run::{RunError, RunResult};
use lowrank_train::config::LoraSettings;
use serde_json::{Value, json};

use crate::args::CheckArgs;
use crate::assets::check_with_default_assets;
use crate::output::{self, count};
use crate::presets::{check_family, with_preset};
use crate::session::{device, machine};
use crate::settings;
use crate::tables::adapter_table;

/// Runs the command.
pub fn run(flags: CheckArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args =
        check_with_default_assets(with_preset(flags, file.as_deref(), |args| &args.preset)?)?;
    let device = device(&args.common, NumericChoices::default().or_f32())?;
    let base =
        Base::open(&args.model.settings())?.with_new_head(args.new_head.ignore_mismatched_sizes);
    check_family(&args.preset, &base.config.model_type)?;
    let (read, labels, choice) = read_files(&args, &base, &device)?;
    let task = choice.task;
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
        samples: args.samples.unwrap_or(match task {
            Task::CausalLm => 5,
            _ => 3,
        }),
    };
    let mut report = check(&files, base.tokenizer.as_ref().ok(), &options);
    let head = Head {
        task,
        num_labels: labels.names.len().max(1),
        labels: labels.names,
    };
    let model = dry_model(&args, &base, &head)?;
    let rows = read.first().map(|(_, _, loaded)| &loaded.examples[..]);
    let rows = rows.unwrap_or_default();
    if task == Task::CausalLm {
        let trained = model.trainables().count();
        report.warnings.extend(capacity_note(trained, rows));
    }
    let error = int8_error(&args, &base, &head, rows)?;
    if args.common.is_json() {
        let mut json = to_json(&report, &head, &choice, &model);
        if let Some(error) = &error {
            json["int8"] = json!({
                "logits": error.logits, "layers": error.layers, "beside": error.beside,
            });
        }
        output::print_json(&json);
    } else {
        if let Some(line) = choice.line() {
            output::println(line);
        }
        output::println_painted(report.render_with(output::learned()));
        let layers = model.adapter_report().modules.len();
        let trained = count(model.trainables().count());
        output::println(format!(
            "targets: {layers} layers adapted, {trained} parameters trained"
        ));
        output::print(adapter_table(&model));
        if let Some(error) = &error {
            output::println(int8_line(error));
        }
    }
    if args.strict.unwrap_or(false) && !report.warnings.is_empty() {
        return Err(RunError::failure(format!(
            "{} findings deserve a look",
            report.warnings.len()
        )));
    }
    Ok(())
}

type ReadFile = (&'static str, Table, Loaded);

/// The files' rows, and the task and label names, which come from flags, the model, or the first
/// file.
fn read_files(
    args: &CheckArgs,
    base: &Base,
    device: &Device,
) -> RunResult<(Vec<ReadFile>, KnownLabels, TaskChoice)> {
    let settings = args.data.settings()?;
    let files = [
        ("train", &args.train_file),
        ("validation", &args.validation_file),
        ("test", &args.test_file),
    ];
    let mut tables = Vec::new();
    for (name, path) in files {
        let Some(path) = path else { continue };
        tables.push((name, labels::table_of(base, &settings, None, path, device)?));
    }
    let Some((_, first)) = tables.first() else {
        return Err(RunError::usage("no rows given")
            .hint("pass --train-file, --validation-file or --test-file"));
    };
    let choice = TaskChoice::new(base, &settings, None, first)?;
    let task = choice.task;
    let max_length = max_length(base, &settings, task, first, None)?;
    let known = labels::known_labels(base, &settings, None);
    let spec = load_spec(base, &settings, task, known.as_ref(), max_length)?;
    let loaded = rows_of(first, &spec, base, device)?;
    // The first file's names hold for the others too, as in training.
    let labels = labels::choose_labels(base, task, known, loaded.label_map.as_ref());
    let spec = load_spec(base, &settings, task, Some(&labels), max_length)?;
    let is_same = |map: &LabelMap| map.names() == labels.names;
    let mut learned = Some(loaded).filter(|l| l.label_map.as_ref().is_none_or(is_same));
    let mut read = Vec::new();
    for (name, table) in tables {
        let loaded = match learned.take() {
            Some(loaded) => loaded,
            None => rows_of(&table, &spec, base, device)?,
        };
        read.push((name, table, loaded));
    }
    Ok((read, labels, choice))
}

fn to_json(report: &CheckReport, head: &Head, choice: &TaskChoice, model: &Model) -> Value {
    let targets = model.adapter_report();
    json!({
        "task": choice.task,
        "task_reason": choice.reason,
        "data": report,
        "labels": head.labels,
        "targets": targets.modules.iter().map(|m| json!({
            "path": m.path, "shape": m.shape, "rank": m.rank, "alpha": m.alpha, "scaling": m.scaling, "parameters": m.parameters,
        })).collect::<Vec<_>>(),
        "trainable_rows": targets.rows.iter().map(|m| json!({
            "path": m.path, "rows": m.rows, "parameters": m.parameters,
        })).collect::<Vec<_>>(),
        "modules_to_save": targets.saved.iter().map(|m| &m.path).collect::<Vec<_>>(),
        "trainable_parameters": model.trainables().count(),
        "total_parameters": model.base_parameters(),
    })
}

/// What int8 weights do on the first rows, if that is asked for.
fn int8_error(
    args: &CheckArgs,
    base: &Base,
    head: &Head,
    rows: &[Example],
) -> RunResult<Option<Int8Error>> {
    match args.base_format {
        None => Ok(None),
        Some(BaseFormat::Int8) => {
            let rows = &rows[..rows.len().min(batch_size(args.per_device_batch_size, 32)?)];
            let (isa, threads) = (machine()?.isa(), args.common.threads);
            lowrank_run::int8::int8_error(base, head, rows, isa, threads).map(Some)
        }
        Some(format) => Err(RunError::usage(format!(
            "`--base-format {}` has no error to tell; check measures int8",
            format.name()
        ))),
    }
}

fn int8_line(error: &Int8Error) -> String {
    let worst = error.worst().map_or(String::new(), |(layer, error)| {
        format!(", most in layer {layer} ({:.2}%)", 100.0 * error)
    });
    format!(
        "int8: the logits of the first rows are off by {:.2}%{worst}; {:.1}% of the columns are kept beside",
        100.0 * error.logits,
        100.0 * error.beside
    )
}

/// The model as shapes, with the adapters that would be trained: every pattern that matches nothing
/// is an error here.
fn dry_model(args: &CheckArgs, base: &Base, head: &Head) -> RunResult<Model> {
    let fresh = LoraSettings::of(&base.config.model_type);
    let lora = laid_over(&fresh, &settings::to_map(&args.lora))?;
    lora.validate()?;
    let mut model = base.shape(head)?;
    model.attach_lora(&lora.to_peft(&base.name, None), 0)?;
    Ok(model)
}
