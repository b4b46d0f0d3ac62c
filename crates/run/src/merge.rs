//! W + scaling·B·A written as a plain model directory, and the proof that it predicts the same.

use std::path::Path;
use std::sync::Arc;

use lowrank_data::{Example, Label, PackedBatch, batches};
use lowrank_engine::{Device, Isa, Numerics};
use lowrank_formats::{Checkpoint, DType};
use lowrank_model::{MergeOptions, MergeReport, Model};
use lowrank_train::evaluate::model_batch;
use lowrank_train::metrics::argmax;

use crate::error::{RunError, RunResult};
use crate::loaded::{BATCH_SIZE, LoadedModel};
use crate::notes::quantised;
use crate::result::MAX_SHARD_BYTES;
use crate::rows::{load_rows, load_spec, unlabelled};
use crate::settings::RowSettings;
use crate::side_files::Copied;
use crate::targets::Target;

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

/// How the merged model is compared with the adapted one.
#[derive(Clone, Debug, Default)]
pub struct Verify {
    /// Logit difference above which it fails; by the type of the weights where absent.
    tolerance: Option<f64>,
    data_file: Option<String>,
    data: RowSettings,
}

impl Verify {
    /// On the rows of a file, or on a few built-in texts.
    ///
    /// # Errors
    /// The tolerance is no number from 0.
    pub fn new(
        tolerance: Option<f64>,
        data_file: Option<String>,
        data: RowSettings,
    ) -> RunResult<Self> {
        if let Some(tolerance) = tolerance.filter(|t| !(t.is_finite() && *t >= 0.0)) {
            let fault = format!("`tolerance` is {tolerance}, expected 0 or more");
            return Err(RunError::usage(fault));
        }
        Ok(Self {
            tolerance,
            data_file,
            data,
        })
    }
}

/// What was done.
#[derive(Debug)]
pub struct Merged {
    /// What was written.
    pub report: MergeReport,
    /// What was copied beside it.
    pub beside: Copied,
    /// How it compares with the adapted model, where that was asked for.
    pub verified: Option<Verified>,
}

/// Writes the base with the adapter in its weights, in `dtype` or that of the base.
///
/// # Errors
/// The target may not be written to, or the merged model predicts otherwise: then nothing is left
/// of it.
pub fn merge(
    loaded: &LoadedModel,
    target: &Target<'_>,
    dtype: Option<DType>,
    verify: Option<&Verify>,
) -> RunResult<Merged> {
    // The base may be the one that the adapter names, or stand in the cache.
    target.check(&[("the base, which --model", loaded.base.dir.to_str())])?;
    let (pending, beside) = target.begin(&loaded.base.dir)?;
    let options = MergeOptions {
        dtype,
        max_shard_bytes: MAX_SHARD_BYTES,
        labels: (!loaded.head.labels.is_empty()).then(|| loaded.head.labels.clone()),
    };
    let report = (loaded.model).write_merged(&loaded.base.dir, pending.path(), &options)?;
    // Verified before the final name is given: a merged model that fails is never left behind.
    let verified = match verify {
        Some(asked) => {
            let found = compare(loaded, pending.path(), asked)?;
            let tolerance = asked.tolerance;
            found.refuse_above(tolerance.unwrap_or(default_tolerance(pending.path())?))?;
            Some(found)
        }
        None => None,
    };
    target.finish(pending)?;
    Ok(Merged {
        report,
        beside,
        verified,
    })
}

fn default_tolerance(merged: &Path) -> RunResult<f64> {
    let half = Checkpoint::open_dir(merged)?
        .infos()
        .any(|t| t.dtype != DType::F32);
    Ok(if half { TOLERANCE_HALF } else { TOLERANCE })
}

/// How adapter and merged model compare.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// Rows compared.
    pub rows: usize,
    /// Largest difference of two logits; NaN if any is not a number.
    pub largest: f64,
    /// Its row.
    pub row: usize,
    /// Largest logit by size, to see the difference beside.
    pub largest_logit: f64,
    /// Predictions: of a language model one a token.
    pub predictions: u64,
    /// Those of them that are the same.
    pub same: u64,
    /// Mean of the divergences, in nats: KL(adapted, written), of the softmax of each prediction's
    /// logits.
    pub kl: f64,
}

impl Verified {
    fn refuse_above(&self, tolerance: f64) -> RunResult {
        if self.largest <= tolerance {
            return Ok(());
        }
        Err(RunError::failure(format!(
            "the merged model differs: largest logit difference {:.3e} (row {}), allowed {tolerance:.1e}; nothing was written",
            self.largest, self.row
        ))
        .hint("half precision rounds the merged weights; write them with --dtype f32, or raise --tolerance"))
    }
}

/// Rows to compare on: those given, else the built-in texts, else ids in turn where there is no
/// tokenizer.
fn probe_rows(loaded: &LoadedModel, asked: &Verify) -> RunResult<Arc<Vec<Example>>> {
    let (base, task) = (&loaded.base, loaded.head.task);
    if let Some(path) = &asked.data_file {
        let spec = load_spec(base, &asked.data, task, None, loaded.max_length)?;
        return Ok(load_rows(path, &unlabelled(spec), base, loaded.model.device())?.examples);
    }
    if base.tokenizer.is_ok() {
        let rows = loaded.examples_of_texts(&PROBES.map(str::to_owned), &asked.data)?;
        return Ok(rows.examples);
    }
    let vocabulary = base.config.facts.vocab_size as u32;
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

/// Compares the adapted model with the one in a folder or file.
pub(crate) fn compare(loaded: &LoadedModel, merged: &Path, asked: &Verify) -> RunResult<Verified> {
    let examples = probe_rows(loaded, asked)?;
    let options = loaded.base.load_options(&loaded.head, 0);
    let (other, _) = Model::load(merged, &options, &unquantised(loaded.model.device())?)?;
    let mut v = Verified {
        rows: examples.len(),
        largest: 0.0,
        row: 0,
        largest_logit: 0.0,
        predictions: 0,
        same: 0,
        kl: 0.0,
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
            v.kl += divergence(a, b);
            for (x, y) in a.iter().zip(b) {
                let difference = (f64::from(*x) - f64::from(*y)).abs();
                v.largest_logit = v.largest_logit.max(f64::from(x.abs()));
                if difference > v.largest || (difference.is_nan() && !v.largest.is_nan()) {
                    (v.largest, v.row) = (difference, first + i);
                }
            }
        }
    }
    v.kl /= v.predictions.max(1) as f64;
    Ok(v)
}

/// The device, or where it puts the weights that it reads into blocks one like it that does not:
/// what was written is compared as it is.
fn unquantised(device: &Device) -> RunResult<Device> {
    let numerics = device.numerics();
    if quantised(numerics.weights).is_none() {
        return Ok(device.clone());
    }
    let isa = Isa::from_name(device.name()).unwrap_or_else(Isa::best);
    let numerics = Numerics {
        weights: numerics.activations.into(),
        ..numerics
    };
    let device = Device::cpu_in(numerics, isa, device.threads());
    device.map_err(|error| RunError::failure("cannot start threads").caused_by(Some(&error)))
}

/// KL of the softmax of logits `p` and `q`, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let largest = x.iter().fold(f32::NEG_INFINITY, |max, v| max.max(*v));
        let sum: f64 = x.iter().map(|v| f64::from(v - largest).exp()).sum();
        f64::from(largest) + sum.ln()
    };
    let (of_p, of_q) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - of_p, f64::from(*q) - of_q);
        p.exp() * (p - q)
    });
    terms.sum()
}
