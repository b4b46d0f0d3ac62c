//! `lowrank merge`: W + scaling·B·A written as a plain model directory, and the proof that it
//! predicts the same.

use std::path::Path;
use std::sync::Arc;

use lowrank_data::{Example, Label, PackedBatch, batches};
use lowrank_engine::Device;
use lowrank_formats::{Checkpoint, DType, PendingDir};
use lowrank_model::{MergeOptions, MergeReport, Model};
use lowrank_train::evaluate::model_batch;
use lowrank_train::metrics::argmax;
use serde_json::json;

use crate::args::{MergeArgs, MergeDType};
use crate::output::{self, TextTable, bytes, count};
use crate::session::{device, open_model};
use crate::{settings, targets, unused};
use lowrank_run::device::NumericChoices;
use lowrank_run::loaded::{BATCH_SIZE, LoadedModel};
use lowrank_run::result::MAX_SHARD_BYTES;
use lowrank_run::rows::{load_rows, load_spec, unlabelled};
use lowrank_run::side_files::{self, Copied};
use lowrank_run::{RunError, RunResult};

/// Logit difference above which the verification fails, unless told otherwise: well above the
/// rounding of f32 sums, or of weights stored in half precision.
const TOLERANCE: f64 = 1e-3;
const TOLERANCE_HALF: f64 = 5e-2;

/// Texts to verify on where no rows are given: short, long, odd.
const PROBES: [&str; 6] = [
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "It was not good, and yet I could not look away for a single minute of its three hours.",
    "12.5% of 3,400 = 425; see https://example.org?q=1&r=2",
    "Ünïcödé — “quotes”, 漢字 and emoji 🙂",
    "no no no no no no no no no no no no no no no no no no no no no no no no no no no no no no",
];

/// Runs the command.
pub fn run(flags: MergeArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    unused::check_merge(unused::given_args(&args), &args)?;
    if let Some(tolerance) = args.tolerance.filter(|t| !(t.is_finite() && *t >= 0.0)) {
        let fault = format!("`tolerance` is {tolerance}, expected 0 or more");
        return Err(RunError::usage(fault));
    }
    if args.adapter.adapter.is_none() {
        return Err(RunError::usage("no adapter given")
            .hint("pass --adapter with the directory of an adapter or of a run"));
    }
    let target = args.output_dir.as_deref().map(Path::new).ok_or_else(|| {
        RunError::usage("no output directory given").hint("pass --output-dir DIR")
    })?;
    let inputs = [
        ("--model", args.model.model.as_deref()),
        ("--adapter", args.adapter.adapter.as_deref()),
        ("--data-file", args.data_file.as_deref()),
        ("--config", args.common.config.as_deref()),
    ];
    targets::check_folder(target, args.overwrite, &inputs)?;
    let device = device(&args.common, NumericChoices::default().or_f32())?;
    let loaded = open_model(&args.model, &args.adapter, &args.data.settings(), &device)?;
    unused::check_merged(unused::given_args(&args), &loaded)?;
    // The base may be the one that the adapter names, or stand in the cache.
    let base = [("the base, which --model", loaded.base.dir.to_str())];
    targets::check_folder(target, args.overwrite, &base)?;
    let pending = PendingDir::create(target)?;
    let beside = side_files::copy(&loaded.base.dir, pending.path())?;
    let options = MergeOptions {
        dtype: args.dtype.map(MergeDType::to_format),
        max_shard_bytes: MAX_SHARD_BYTES,
        labels: (!loaded.head.labels.is_empty()).then(|| loaded.head.labels.clone()),
    };
    let report = loaded
        .model
        .write_merged(&loaded.base.dir, pending.path(), &options)?;
    // Verified before the final name is given: a merged model that fails is never left behind.
    let verified = match args.verify.unwrap_or(false) {
        true => Some(verify(&args, &loaded, pending.path(), &device)?),
        false => None,
    };
    if let Some(v) = &verified {
        let tolerance = args.tolerance.unwrap_or(default_tolerance(pending.path())?);
        if v.largest > tolerance || v.largest.is_nan() {
            return Err(RunError::failure(format!(
                "the merged model differs: largest logit difference {:.3e} (row {}), allowed {tolerance:.1e}; nothing was written",
                v.largest, v.row
            ))
            .hint("half precision rounds the merged weights; write them with --dtype f32, or raise --tolerance"));
        }
    }
    targets::write_manifest(pending.path())?;
    match args.overwrite {
        Some(true) => pending.commit_replacing()?,
        Some(false) | None => pending.commit()?,
    }
    let written = Written {
        report,
        beside,
        verified,
    };
    show(&args, target, &written);
    Ok(())
}

/// What was done.
struct Written {
    report: MergeReport,
    beside: Copied,
    verified: Option<Verified>,
}

fn show(args: &MergeArgs, target: &Path, written: &Written) {
    let Written {
        report,
        beside,
        verified,
    } = written;
    if args.common.is_json() {
        output::print_json(&json!({
            "output_dir": target.display().to_string(), "merged_layers": report.merged, "tensors": report.tensors,
            "bytes": report.bytes, "copied": beside.names, "left_out": beside.left_out,
            "verify": verified.as_ref().map(|v| json!({
                "rows": v.rows, "max_logit_difference": v.largest, "row": v.row, "same_prediction": v.same,
                "predictions": v.predictions, "largest_logit": v.largest_logit,
            })),
        }));
        return;
    }
    if args.common.is_quiet() {
        return;
    }
    let mut table = TextTable::new(&[]);
    table
        .row(["merged layers", &count(report.merged as u64)])
        .row(["tensors", &count(report.tensors as u64)])
        .row([
            "size",
            &format!("{} in {}", bytes(report.bytes), target.display()),
        ])
        .row(["copied from the base", &names(&beside.names)])
        .row(["left out", &names(&beside.left_out)]);
    if let Some(v) = verified {
        table
            .row([
                "largest logit difference",
                &format!("{:.3e} over {} rows", v.largest, v.rows),
            ])
            .row([
                "same prediction",
                &format!("{} of {}", count(v.same), count(v.predictions)),
            ]);
    }
    output::print(table);
}

fn names(names: &[String]) -> String {
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}

fn default_tolerance(merged: &Path) -> RunResult<f64> {
    let half = Checkpoint::open_dir(merged)?
        .infos()
        .any(|t| t.dtype != DType::F32);
    Ok(if half { TOLERANCE_HALF } else { TOLERANCE })
}

/// How adapter and merged model compare.
struct Verified {
    rows: usize,
    /// Largest difference of two logits; NaN if any is not a number.
    largest: f64,
    /// Its row.
    row: usize,
    /// Largest logit by size, to see the difference beside.
    largest_logit: f64,
    predictions: u64,
    same: u64,
}

/// Rows to compare on: those given, else the built-in texts, else ids in turn where there is no
/// tokenizer.
fn probe_rows(
    args: &MergeArgs,
    loaded: &LoadedModel,
    device: &Device,
) -> RunResult<Arc<Vec<Example>>> {
    if let Some(path) = &args.data_file {
        let spec = load_spec(
            &loaded.base,
            &args.data.settings(),
            loaded.head.task,
            None,
            loaded.max_length,
        )?;
        return Ok(load_rows(path, &unlabelled(spec), &loaded.base, device)?.examples);
    }
    if loaded.base.tokenizer.is_ok() {
        let rows = loaded.examples_of_texts(&PROBES.map(str::to_owned), &args.data.settings())?;
        return Ok(rows.examples);
    }
    let vocabulary = loaded.base.config.facts.vocab_size as u32;
    let row = |n: u32| Example {
        input_ids: (0..n.min(loaded.max_length as u32))
            .map(|i| (7 * n + 13 * i) % vocabulary)
            .collect(),
        token_type_ids: None,
        label: Label::None,
        line: u64::from(n),
        truncated_tokens: 0,
    };
    Ok(Arc::new((1..=32).map(row).collect()))
}

fn verify(
    args: &MergeArgs,
    loaded: &LoadedModel,
    merged: &Path,
    device: &Device,
) -> RunResult<Verified> {
    let examples = probe_rows(args, loaded, device)?;
    let options = loaded.base.load_options(&loaded.head, 0);
    let (other, _) = Model::load(merged, &options, device)?;
    let mut v = Verified {
        rows: examples.len(),
        largest: 0.0,
        row: 0,
        largest_logit: 0.0,
        predictions: 0,
        same: 0,
    };
    for range in batches(examples.len(), BATCH_SIZE) {
        let first = range.start;
        let rows: Vec<u32> = range.map(|r| r as u32).collect();
        let batch = PackedBatch::from_rows(&examples, &rows);
        let adapted = loaded.model.logits(&model_batch(&batch))?;
        let plain = other.logits(&model_batch(&batch))?;
        // Of a language model the vocabulary, which is no number of labels.
        let n = loaded.model.num_labels();
        for (i, (a, b)) in adapted
            .chunks_exact(n)
            .zip(plain.chunks_exact(n))
            .enumerate()
        {
            v.predictions += 1;
            v.same += u64::from(argmax(a) == argmax(b));
            for (x, y) in a.iter().zip(b) {
                let difference = (f64::from(*x) - f64::from(*y)).abs();
                v.largest_logit = v.largest_logit.max(f64::from(x.abs()));
                if difference > v.largest || (difference.is_nan() && !v.largest.is_nan()) {
                    (v.largest, v.row) = (difference, first + i);
                }
            }
        }
    }
    Ok(v)
}
