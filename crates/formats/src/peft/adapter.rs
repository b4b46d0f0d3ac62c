//! The tensors of an adapter: `adapter_model.safetensors` or `.bin`, and saving them together with
//! the configuration. Knows key names and that A and B go in pairs; not what a module is.

use std::path::{Path, PathBuf};

use super::any::AdapterConfig;
use super::config::ADAPTER_CONFIG;
use super::keys;
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::dtype::{DType, f32_bytes};
use crate::error::{Fault, FormatError};
use crate::files::{self, sync_dir, write_atomic};
use crate::safetensors::{OutTensor, write_safetensors};

/// The name of the tensors in an adapter's folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Their name if they are pickled.
const ADAPTER_WEIGHTS_BIN: &str = "adapter_model.bin";

/// What every key of an adapter begins with; the module's path in the base model follows.
pub const KEY_PREFIX: &str = "base_model.model.";

/// While this file exists, a save has been decided but not finished: see [`write_adapter`].
const COMMIT_MARKER: &str = ".adapter.commit";

/// What follows a table's path in the key of its trained rows.
pub const TOKEN_ROWS: &str = ".token_adapter.trainable_tokens_delta";

/// What a tensor of an adapter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// `lora_A.weight` [r, in].
    LoraA,
    /// `lora_B.weight` [out, r].
    LoraB,
    /// `lora_B.bias`, as long as the output.
    LoraBBias,
    /// `lora_embedding_A` [r, entries].
    EmbeddingA,
    /// `lora_embedding_B` [width, r].
    EmbeddingB,
    /// `lora_magnitude_vector` of DoRA, as long as the output.
    Magnitude,
    /// `trainable_tokens_delta`: rows of a table, trained in its place.
    TokenRows,
    /// A parameter of the base model, trained in full (a head, a bias).
    Full,
}

const SUFFIXES: [(&str, ParameterKind); 7] = [
    (".lora_A.weight", ParameterKind::LoraA),
    (".lora_B.weight", ParameterKind::LoraB),
    (".lora_B.bias", ParameterKind::LoraBBias),
    (".lora_embedding_A", ParameterKind::EmbeddingA),
    (".lora_embedding_B", ParameterKind::EmbeddingB),
    (".lora_magnitude_vector", ParameterKind::Magnitude),
    (TOKEN_ROWS, ParameterKind::TokenRows),
];

/// Splits a key into the module's path (for [`ParameterKind::Full`]: the parameter's) and what the
/// tensor is; none without PEFT's prefix.
pub fn parse_key(key: &str) -> Option<(&str, ParameterKind)> {
    let path = key.strip_prefix(KEY_PREFIX)?;
    let known = SUFFIXES
        .iter()
        .find_map(|(suffix, kind)| Some((path.strip_suffix(suffix)?, *kind)));
    Some(known.unwrap_or((path, ParameterKind::Full)))
}

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// How it was stored.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, widened to f32 (exact from f16 and bf16).
    pub data: Vec<f32>,
}

/// The tensors of an adapter by key, in the file's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterFile {
    path: PathBuf,
    tensors: Vec<(String, AdapterTensor)>,
    notes: Vec<String>,
    is_whole_model: bool,
}

impl AdapterFile {
    /// Reads the tensors of an adapter: from its folder (`adapter_model.safetensors`, else `.bin`),
    /// or from a file of either format. Keys of a dumped state dict, which hold the adapter's name
    /// or lack PEFT's prefix, become PEFT's own. Every A must have its B of the same rank.
    pub fn read(path: &Path) -> Result<AdapterFile> {
        let path = weights_path(path)?;
        let file = AdapterFile::from_checkpoint(&Checkpoint::open_file(&path)?)?;
        let renamed = match keys::to_peft(file.tensors) {
            Ok(renamed) => renamed,
            Err(faults) => return Err(FormatError::Adapter { path, faults }),
        };
        let file = AdapterFile {
            path: file.path,
            tensors: renamed.tensors,
            notes: renamed.notes,
            is_whole_model: renamed.is_whole_model,
        };
        let faults = file.faults();
        if faults.is_empty() {
            return Ok(file);
        }
        Err(FormatError::Adapter { path, faults })
    }

    /// Reads parameters of a model that stand under their own names, such as trained biases, from a
    /// folder or a file; here they get PEFT's keys.
    pub(super) fn read_parameters(path: &Path) -> Result<AdapterFile> {
        let path = weights_path(path)?;
        let file = AdapterFile::from_checkpoint(&Checkpoint::open_file(&path)?)?;
        Ok(file.map_keys(|name| format!("{KEY_PREFIX}{name}")))
    }

    /// What was done to the keys, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the file is the state dict of a whole model, with the base's tensors.
    pub fn is_whole_model(&self) -> bool {
        self.is_whole_model
    }

    /// All tensors but that of a key.
    pub fn without(mut self, key: &str) -> Self {
        self.tensors.retain(|(name, _)| name != key);
        self
    }

    /// The same tensors under other keys.
    pub fn map_keys(mut self, rename: impl Fn(&str) -> String) -> Self {
        for (key, _) in &mut self.tensors {
            *key = rename(key);
        }
        self
    }

    /// Every tensor of a checkpoint, nothing checked.
    pub(super) fn from_checkpoint(checkpoint: &Checkpoint) -> Result<AdapterFile> {
        let mut tensors = Vec::with_capacity(checkpoint.infos().len());
        for info in checkpoint.infos() {
            let tensor = AdapterTensor {
                dtype: info.dtype,
                shape: info.shape.clone(),
                data: checkpoint.read_f32_vec(&info.name)?,
            };
            tensors.push((info.name.clone(), tensor));
        }
        Ok(AdapterFile {
            path: checkpoint.path().to_owned(),
            tensors,
            notes: Vec::new(),
            is_whole_model: false,
        })
    }

    pub(super) fn new(path: &Path, tensors: Vec<(String, AdapterTensor)>) -> AdapterFile {
        AdapterFile {
            path: path.to_owned(),
            tensors,
            notes: Vec::new(),
            is_whole_model: false,
        }
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor of a key.
    pub fn get(&self, key: &str) -> Option<&AdapterTensor> {
        self.iter()
            .find(|(name, _)| *name == key)
            .map(|(_, tensor)| tensor)
    }

    /// Keys and tensors in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &AdapterTensor)> {
        self.tensors
            .iter()
            .map(|(key, tensor)| (key.as_str(), tensor))
    }

    /// Writes the tensors as safetensors in the types they were stored in, as PEFT would.
    pub fn write(&self, path: &Path) -> Result<()> {
        let out: Vec<OutTensor<'_>> = self
            .tensors
            .iter()
            .map(|(key, tensor)| OutTensor {
                name: key,
                dtype: tensor.dtype,
                shape: &tensor.shape,
                bytes: encode(tensor),
            })
            .collect();
        write_safetensors(path, &out, &pt_metadata())
    }

    /// What is wrong with the keys and shapes.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| {
            faults.push(Fault {
                place: key.to_owned(),
                message,
            });
        };
        if self.is_empty() {
            fault("(whole file)", "it holds no tensors".into());
        }
        let by_key: std::collections::HashMap<&str, &AdapterTensor> = self.iter().collect();
        for (key, tensor) in self.iter() {
            let Some((module, kind)) = parse_key(key) else {
                fault(
                    key,
                    format!("expected a key that begins with `{KEY_PREFIX}`"),
                );
                continue;
            };
            let partner = match kind {
                ParameterKind::LoraA => ".lora_B.weight",
                ParameterKind::LoraB => ".lora_A.weight",
                ParameterKind::EmbeddingA => ".lora_embedding_B",
                ParameterKind::EmbeddingB => ".lora_embedding_A",
                ParameterKind::LoraBBias
                | ParameterKind::Magnitude
                | ParameterKind::TokenRows
                | ParameterKind::Full => continue,
            };
            let Some(other) = by_key.get(format!("{KEY_PREFIX}{module}{partner}").as_str()) else {
                fault(key, format!("its partner `{module}{partner}` is missing"));
                continue;
            };
            let is_a = matches!(kind, ParameterKind::LoraA | ParameterKind::EmbeddingA);
            let both_flat = tensor.shape.len() == 2 && other.shape.len() == 2;
            if is_a && both_flat && tensor.shape[0] != other.shape[1] {
                fault(
                    key,
                    format!(
                        "its shape is {:?} and its partner's {:?}: the ranks differ",
                        tensor.shape, other.shape
                    ),
                );
            }
        }
        faults
    }
}

impl IntoIterator for AdapterFile {
    type Item = (String, AdapterTensor);
    type IntoIter = std::vec::IntoIter<(String, AdapterTensor)>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

/// Saves an adapter into `dir`, which is made if it is missing: all of it or nothing, and what was
/// there before stays until the new is complete. Tensors are (PEFT's key, shape, values) and are
/// written as f32.
///
/// Two files cannot be renamed at once, so the order is: both are written and flushed under the
/// names `.<name>.next`; then the marker `.adapter.commit` is made, which decides the save; then
/// the tensors are renamed, then the configuration; then the marker goes. A process killed before
/// the marker leaves the old adapter whole; one killed after it leaves the new: while the marker
/// stands, [`AdapterFile::read`] and [`AdapterConfig::read`] take a `.next` file where there is
/// one, and the next save finishes the renames first.
pub fn write_adapter(
    dir: &Path,
    config: &AdapterConfig,
    tensors: &[(&str, &[usize], &[f32])],
) -> Result<()> {
    files::create_dir_all(dir)?;
    finish_save(dir)?;
    let out: Vec<OutTensor<'_>> = tensors
        .iter()
        .map(|(key, shape, values)| OutTensor::f32(config.name_in_file(key), shape, values))
        .collect();
    let weights = next_path(dir, ADAPTER_WEIGHTS);
    let written = write_safetensors(&weights, &out, &pt_metadata())
        .and_then(|()| write_atomic(&next_path(dir, ADAPTER_CONFIG), &config.to_bytes()))
        .and_then(|()| write_atomic(&dir.join(COMMIT_MARKER), b""));
    if let Err(error) = written {
        // The old adapter stands; the half-made new one is of no use. Best effort: the first error
        // is the one to report.
        for name in [ADAPTER_WEIGHTS, ADAPTER_CONFIG] {
            let _ = files::remove_file(&next_path(dir, name));
        }
        return Err(error);
    }
    finish_save(dir)
}

/// Carries out the renames of a save that was decided. Does nothing where there is none.
fn finish_save(dir: &Path) -> Result<()> {
    let marker = dir.join(COMMIT_MARKER);
    if !files::exists(&marker) {
        return Ok(());
    }
    for name in [ADAPTER_WEIGHTS, ADAPTER_CONFIG] {
        let (next, target) = (next_path(dir, name), dir.join(name));
        if files::exists(&next) {
            files::rename(&next, &target)?;
        }
    }
    sync_dir(dir);
    files::remove_file(&marker)?;
    sync_dir(dir);
    Ok(())
}

fn next_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.next"))
}

/// The file that counts as `dir/name`: the new one if a save was decided and killed before its
/// rename.
pub(super) fn committed_path(dir: &Path, name: &str) -> PathBuf {
    let next = next_path(dir, name);
    if files::exists(&dir.join(COMMIT_MARKER)) && files::exists(&next) {
        return next;
    }
    dir.join(name)
}

/// The tensor file of a folder, or the file itself.
fn weights_path(path: &Path) -> Result<PathBuf> {
    if !files::is_dir(path) {
        return Ok(path.to_owned());
    }
    let names = [ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_BIN];
    let found = names
        .iter()
        .map(|name| committed_path(path, name))
        .find(|file| files::exists(file));
    found.ok_or_else(|| FormatError::NothingFound {
        dir: path.to_owned(),
        expected: names.map(str::to_owned).to_vec(),
    })
}

fn pt_metadata() -> [(String, String); 1] {
    [("format".to_owned(), "pt".to_owned())]
}

/// The values in the type they were stored in; exact, as they came from it.
fn encode(tensor: &AdapterTensor) -> std::borrow::Cow<'_, [u8]> {
    let data = &tensor.data;
    match tensor.dtype {
        DType::F16 => data
            .iter()
            .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
            .collect(),
        DType::BF16 => data
            .iter()
            .flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())
            .collect(),
        DType::F64 => data
            .iter()
            .flat_map(|&value| f64::from(value).to_le_bytes())
            .collect(),
        _ => f32_bytes(data),
    }
}
