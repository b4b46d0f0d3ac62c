//! `lowrank eval`: the metrics of a model, with or without an adapter, on labelled rows, or of
//! generated texts.

mod generated;

use lowrank_run::loaded::{BATCH_SIZE, batch_size};
use lowrank_run::{RunError, RunResult};
use lowrank_train::metrics::Metric;

use crate::args::EvalArgs;
use crate::output::{self, TextTable, count};
use crate::session::{device_of, open_model, say_notes};
use crate::{presets, unused};

/// Runs the command.
pub fn run(flags: EvalArgs) -> RunResult {
    let file = flags.common.config.clone();
    let given = flags.clone();
    let args = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    unused::check_eval(unused::given(&given, file.as_deref())?, &args)?;
    if args.scoring.outputs.is_some() || args.scoring.references.is_some() {
        return generated::score_files(&args);
    }
    let path = args.data_file.as_deref().ok_or_else(|| {
        RunError::usage("no rows given").hint("pass --data-file FILE (.jsonl, .csv or .tsv)")
    })?;
    if args.scoring.generate.unwrap_or(false) {
        return generated::generate_and_score(&args, path);
    }
    let numerics = args.numerics.for_adapter(args.adapter.adapter.as_ref());
    let numerics = numerics.without_int8()?;
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let size = batch_size(args.per_device_eval_batch_size, BATCH_SIZE)?;
    let settings = args.data.settings()?;
    let loaded = open_model(&args.model, &args.adapter, &settings, &device)?;
    unused::check_rows(unused::given(&given, file.as_deref())?, &loaded)?;
    let rows = loaded.labelled_rows(path, &settings, size)?;
    if !args.common.is_quiet() {
        loaded.notes.iter().for_each(output::note);
    }
    say_notes(path, &rows, &args.common);
    let started = std::time::Instant::now();
    let evaluation = loaded.evaluate(&rows, size)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.common.is_json() {
        output::print_json(&evaluation);
        return Ok(());
    }
    let mut table = TextTable::new(&[]);
    for &metric in Metric::of_task(loaded.head.task) {
        table.row([
            metric.name().replace('_', " "),
            output::metric(metric, evaluation.value(metric)),
        ]);
    }
    table.row(["rows", &count(evaluation.rows)]);
    table.row([
        "tokens per second",
        &count((evaluation.tokens as f64 / seconds.max(1e-9)) as u64),
    ]);
    output::print(table);
    Ok(())
}
