//! Reads the golden cases below `tests/golden`: a tiny model, an adapter, rows, and what
//! transformers + peft computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::compare::{Mismatch, compare_norm};

/// Why a golden case could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// A file is missing or unreadable.
    #[error("cannot read `{path}`: {source} (golden files are made by `cargo xtask golden`)")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// case.json is not what the loader expects.
    #[error("`{path}`: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A tensor file cannot be parsed.
    #[error("`{path}`: {message}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
}

/// One tensor, converted to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f32>,
}

/// One row of a case.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Token ids with the special tokens.
    pub input_ids: Vec<u32>,
    /// Segment of each token; absent means 0.
    pub token_type_ids: Option<Vec<u32>>,
}

/// The targets of a case, by task.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Labels {
    /// One class a row.
    Classes(Vec<i64>),
    /// One value a row.
    Values(Vec<f32>),
    /// One class a token; -100 is not counted.
    Tokens(Vec<Vec<i64>>),
    /// A 0 or 1 for each label of a row.
    Multi(Vec<Vec<f32>>),
}

/// What transformers said when it loaded the base model.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LoadLists {
    /// Parameters that the file lacks.
    pub new: Vec<String>,
    /// Tensors of the file that the model lacks (old names already turned into new ones).
    pub unused: Vec<String>,
}

/// Hyper-parameters of a trajectory.
#[derive(Clone, Debug, Deserialize)]
pub struct Hyper {
    /// Optimizer steps.
    pub num_steps: usize,
    /// Rows of each micro-batch of a step.
    pub micro_batch_sizes: Vec<usize>,
    /// Base learning rate.
    pub lr: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// AdamW's eps.
    pub eps: f64,
    /// AdamW's decoupled decay, on every trainable value.
    pub weight_decay: f64,
    /// Schedule, by transformers' name.
    pub schedule: String,
    /// Warm-up steps.
    pub warmup_steps: usize,
    /// Clipping norm.
    pub max_norm: f64,
    /// LoRA+: how many times the rate of A that of B and of vectors is.
    #[serde(default)]
    pub loraplus_lr_ratio: Option<f64>,
}

/// One optimizer step of a trajectory.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// Row numbers of each micro-batch, in order.
    pub micro_batches: Vec<Vec<usize>>,
    /// Sum of the rows' losses by their number, before the update.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
}

/// How far the same computation in f32 by PyTorch is from the f64 numbers of the case.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeerError {
    /// Relative error of the logits.
    pub logits: Option<f64>,
    /// Largest relative error of a gradient.
    pub worst_grad: Option<f64>,
    /// Largest absolute error of a step's loss (trajectories).
    pub worst_loss: Option<f64>,
    /// Largest relative error of a final tensor (trajectories).
    pub worst_final: Option<f64>,
}

/// One way of decoding and what it gave.
#[derive(Clone, Debug, Deserialize)]
pub struct Decoding {
    /// The arguments of transformers' `generate`.
    pub options: Map<String, Value>,
    /// The prompt is so many tokens from each row's beginning, or all of a shorter row.
    pub prompt_tokens: usize,
    /// The new tokens of each row, the end token included.
    pub new_tokens: Vec<Vec<u32>>,
}

/// A golden case: case.json, and the tensors of expected.safetensors.
#[derive(Clone, Debug, Deserialize)]
pub struct Golden {
    /// Folder name.
    pub name: String,
    /// What is special here.
    pub note: String,
    /// `model_type`.
    pub family: String,
    /// `single_label`, `multi_label`, `regression` or `token_classification`.
    pub task: String,
    /// Outputs of the head.
    pub num_labels: usize,
    /// How the checkpoint lies on disk.
    pub checkpoint: String,
    /// Folder of the adapter, if there is one.
    adapter: Option<String>,
    /// Folder of the trained adapter (trajectories).
    adapter_final: Option<String>,
    /// The arguments of LoraConfig as they were given.
    pub peft: Option<Map<String, Value>>,
    /// What was new and unused in the base checkpoint.
    #[serde(default)]
    pub load: LoadLists,
    /// Rows of unequal length.
    pub rows: Vec<Row>,
    /// Their targets.
    pub labels: Labels,
    /// Loss of all rows as one batch (trajectories: 0).
    #[serde(default)]
    pub loss: f64,
    /// Keys that have a gradient.
    #[serde(default)]
    pub trainable: Vec<String>,
    /// Of these, the keys whose gradient is zero in truth (a key's bias): compare them against a
    /// floor.
    #[serde(default)]
    pub zero_gradient: Vec<String>,
    /// Keys that peft trained but left out of the adapter file; their values are tensors
    /// `value.<key>`.
    #[serde(default)]
    pub trained_but_not_saved_by_peft: Vec<String>,
    /// Keys that peft wrote though nothing under that name is trained: a reader ignores them.
    #[serde(default)]
    pub saved_by_peft_but_not_trained: Vec<String>,
    /// Hyper-parameters (trajectories).
    pub hyper: Option<Hyper>,
    /// Optimizer steps (trajectories).
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What `generate` gave with the adapter, by the name of the decoding (language models).
    #[serde(default)]
    pub generated: BTreeMap<String, Decoding>,
    /// The peer's own rounding error.
    pub peer_f32_error: PeerError,
    /// Tensors of expected.safetensors.
    #[serde(skip)]
    tensors: BTreeMap<String, Tensor>,
    #[serde(skip)]
    dir: PathBuf,
}

impl Golden {
    /// Reads `tests/golden/<name>`.
    pub fn open(name: &str) -> Result<Self, GoldenError> {
        let dir = golden_root().join(name);
        let path = dir.join("case.json");
        let mut golden: Self = serde_json::from_slice(&read(&path)?)
            .map_err(|source| GoldenError::Json { path, source })?;
        let expected = dir.join("expected.safetensors");
        if expected.exists() {
            golden.tensors = read_safetensors(&expected)?;
        }
        golden.dir = dir;
        Ok(golden)
    }

    /// Names of all cases with a model, in order; those of trajectories end with `-trajectory`.
    pub fn names() -> Result<Vec<String>, GoldenError> {
        let root = golden_root();
        let entries = std::fs::read_dir(&root).map_err(|source| GoldenError::Io {
            path: root.clone(),
            source,
        })?;
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().join("case.json").exists())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// The case's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The base model: a Hugging Face directory.
    pub fn model_dir(&self) -> PathBuf {
        self.dir.join("model")
    }

    /// The adapter as peft wrote it; `None` for full fine-tuning.
    pub fn adapter_dir(&self) -> Option<PathBuf> {
        self.adapter.as_ref().map(|name| self.dir.join(name))
    }

    /// The adapter after the last step of a trajectory.
    pub fn adapter_final_dir(&self) -> Option<PathBuf> {
        self.adapter_final.as_ref().map(|name| self.dir.join(name))
    }

    /// A tensor of expected.safetensors: `logits`, `logits_base`, `loss`, `grad.<key>`,
    /// `value.<key>`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The logits with the adapter. Shape: [rows, num_labels]; token classification: [all tokens,
    /// num_labels]. Panics for a trajectory, which has none.
    pub fn logits(&self) -> &Tensor {
        self.tensor("logits")
            .expect("a case has logits, a trajectory has steps")
    }

    /// The logits of the base model; `None` where its head is not in the file.
    pub fn logits_base(&self) -> Option<&Tensor> {
        self.tensor("logits_base")
    }

    /// Every gradient by its key: PEFT's key with an adapter, the checkpoint's for full
    /// fine-tuning.
    pub fn grads(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("grad.")?, t)))
    }

    /// Compares one gradient: its relative error by norm may be `allowed`. A gradient that is zero
    /// in truth is measured by the largest gradient's norm.
    pub fn compare_grad(&self, key: &str, found: &[f32], allowed: f64) -> Result<(), Mismatch> {
        let expected = self.tensor(&format!("grad.{key}")).map_or_else(
            || panic!("{}: no golden gradient `{key}`", self.name),
            |t| &t.data,
        );
        let largest = self.grads().map(|(_, t)| norm(&t.data)).fold(0.0, f64::max);
        let zero = self.zero_gradient.iter().any(|name| name == key);
        compare_norm(found, expected, allowed, if zero { largest } else { 0.0 })
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// The folder of the golden files: `tests/golden` of this repository, or what `LOWRANK_GOLDEN_DIR`
/// names, so that the same tests can be run on cases of another seed or width (see
/// tools/golden/make_golden.py).
pub fn golden_root() -> PathBuf {
    match std::env::var_os("LOWRANK_GOLDEN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
    }
}

/// Reads a JSON file of the golden folder: `schedules.json`, `metrics.json`, `adamw.json`.
pub fn read_golden_json(name: &str) -> Result<Value, GoldenError> {
    let path = golden_root().join(name);
    serde_json::from_slice(&read(&path)?).map_err(|source| GoldenError::Json { path, source })
}

/// Reads every float tensor of a safetensors file as f32; tensors of other types are left out.
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>, GoldenError> {
    let bytes = read(path)?;
    let fault = |message: String| GoldenError::Tensors {
        path: path.to_owned(),
        message,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fault(e.to_string()))?;
    let mut out = BTreeMap::new();
    for (name, view) in file.iter() {
        if let Some(data) = to_f32(view.dtype(), view.data()) {
            out.insert(
                name.to_owned(),
                Tensor {
                    shape: view.shape().to_vec(),
                    data,
                },
            );
        }
    }
    Ok(out)
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let words = || {
        bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    match dtype {
        Dtype::F32 => Some(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        Dtype::BF16 => Some(
            words()
                .map(|w| f32::from_bits(u32::from(w) << 16))
                .collect(),
        ),
        Dtype::F16 => Some(words().map(f16_to_f32).collect()),
        _ => None,
    }
}

/// IEEE half to single, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from((bits >> 10) & 0x1f), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * mantissa * 2.0_f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + mantissa / 1024.0) * 2.0_f32.powi(exponent - 15),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, GoldenError> {
    std::fs::read(path).map_err(|source| GoldenError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2.0_f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x3555, 0.33325195),
        ] {
            assert_eq!(f16_to_f32(bits), value);
        }
        assert!(f16_to_f32(0x7e00).is_nan());
        assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
    }

    #[test]
    fn a_case_that_is_not_there_says_how_to_make_it() {
        let message = Golden::open("no-such-case").unwrap_err().to_string();
        assert!(message.contains("no-such-case") && message.contains("cargo xtask golden"));
    }
}
