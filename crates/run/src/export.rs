//! What was trained as a GGUF file: the adapter by itself, or the base with it in its weights, as
//! llama.cpp and what is built on it read them. Source: llama.cpp `convert_lora_to_gguf.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lowrank_formats::PendingFile;
use lowrank_formats::gguf::{
    Architecture, Gguf, GgufDraft, GgufTensor, NewTensor, Stored, is_gguf,
};
use lowrank_formats::quantised::{BlockFormat, encode};
use lowrank_model::{LowRank, Model};
use serde::{Deserialize, Serialize};

use crate::error::{RunError, RunResult};
use crate::loaded::LoadedModel;
use crate::merge::{Verified, Verify, compare};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportTo {
    /// The adapter by itself.
    #[serde(rename = "gguf-adapter")]
    GgufAdapter,
    /// The base with the adapter in its weights.
    #[serde(rename = "gguf")]
    Gguf,
}

/// How values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutType {
    /// As the base has them; what was quantised there and has changed becomes Q8_0. Of an adapter
    /// f32.
    #[default]
    Auto,
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    Bf16,
    /// Q8_0.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Q4_0.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl OutType {
    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            OutType::Auto => "auto",
            OutType::F32 => "f32",
            OutType::F16 => "f16",
            OutType::Bf16 => "bf16",
            OutType::Q8_0 => "q8_0",
            OutType::Q4_0 => "q4_0",
        }
    }

    fn format(self) -> Option<&'static BlockFormat> {
        BlockFormat::from_name(&self.name().to_uppercase())
    }

    /// `general.file_type`. Source: llama.cpp, `llama_ftype`.
    fn file_type(self) -> Option<u32> {
        match self {
            OutType::Auto => None,
            OutType::F32 => Some(0),
            OutType::F16 => Some(1),
            OutType::Q4_0 => Some(2),
            OutType::Q8_0 => Some(7),
            OutType::Bf16 => Some(32),
        }
    }

    /// Mean divergence in nats above which a written model is refused, unless told otherwise: well
    /// above what rounding to the type makes.
    fn most_divergence(self) -> f64 {
        match self {
            OutType::F32 => 1e-6,
            OutType::F16 | OutType::Bf16 => 1e-3,
            OutType::Auto | OutType::Q8_0 => 0.02,
            OutType::Q4_0 => 0.5,
        }
    }
}

/// What was done.
#[derive(Debug)]
pub struct Exported {
    /// Tensors in the file.
    pub tensors: usize,
    /// Those of them that are not the base's own.
    pub changed: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// How the written model compares with the adapted one, where that was asked for.
    pub verified: Option<Verified>,
}

/// How a written model is verified.
#[derive(Debug)]
pub struct VerifyExport {
    /// The rows.
    pub rows: Verify,
    /// Mean divergence in nats above which it is refused.
    pub max_kl: Option<f64>,
}

/// Writes the adapter by itself: A and B of each layer, their scale folded into one alpha. The file
/// is read back and compared before it gets its name.
///
/// # Errors
/// The architecture has no names in GGUF; the adapter is more than low-rank terms; the disk
/// refuses.
pub fn export_adapter(loaded: &LoadedModel, path: &Path, out: OutType) -> RunResult<Exported> {
    let format = match out {
        OutType::Auto | OutType::F32 => "F32",
        OutType::F16 => "F16",
        OutType::Bf16 => "BF16",
        OutType::Q8_0 | OutType::Q4_0 => {
            return Err(RunError::usage(format!(
                "`--outtype {}` is for models; the factors of an adapter have rows of its rank",
                out.name()
            ))
            .hint("pass f32, f16 or bf16"));
        }
    };
    let format = BlockFormat::from_name(format).expect("it is in the table");
    let terms = loaded.model.low_rank_terms();
    refuse_beside_terms(&loaded.model, &terms)?;
    let base = &loaded.base.dir;
    let gguf = is_gguf(base)?.then(|| Gguf::open(base)).transpose()?;
    let places = Places::of(loaded, gguf.as_ref())?;
    let alpha = terms.first().map_or(0.0, |t| t.scaling * t.rank as f64) as f32;
    let mut draft = GgufDraft::default();
    draft.text("general.type", "adapter");
    draft.text("general.architecture", places.architecture.name);
    draft.text("adapter.type", "lora");
    draft.float("adapter.lora.alpha", alpha);
    let mut data = Vec::new();
    for term in &terms {
        let (name, stored) = places.weight(&term.path)?;
        for (tensor, values) in factors(term, &name, stored, f64::from(alpha), format) {
            let bytes = encoded(format, &tensor.name, &values)?;
            draft.tensor(tensor.clone());
            data.push((tensor.name, bytes));
        }
    }
    let pending = draft.write(path, |at, _| Ok::<_, RunError>(data[at].1.clone()))?;
    let read = Gguf::open(pending.path())?;
    // As many were read as the header says, which was written with them.
    for (tensor, (name, bytes)) in read.tensors().iter().zip(&data) {
        if tensor.name != *name || read.bytes_of(tensor)? != *bytes {
            let message = format!("`{name}` was not read back as it was written");
            return Err(RunError::failure(message).hint("the disk may be at fault"));
        }
    }
    finish(pending, data.len(), data.len(), None)
}

/// A and B as a file has them. llama.cpp multiplies with alpha / r, so that a term of another scale
/// has the quotient in its B.
fn factors(
    term: &LowRank,
    name: &str,
    stored: Stored,
    alpha: f64,
    format: &'static BlockFormat,
) -> [(NewTensor, Vec<f32>); 2] {
    let [out, inp] = term.shape;
    let quotient = match alpha {
        0.0 => 1.0,
        alpha => term.scaling * term.rank as f64 / alpha,
    };
    let mut b = match stored {
        // Only the rows of B follow those of W: its columns are A's business.
        Stored::HalvesInTurn(_) => stored.stored(term.b.clone(), [out, term.rank]),
        Stored::Same | Stored::Transposed | Stored::OneMore => term.b.clone(),
    };
    // alpha is a rounded product: a quotient that differs from one by that alone is one.
    if (quotient - 1.0).abs() > 1e-6 {
        b.iter_mut()
            .for_each(|value| *value = (f64::from(*value) * quotient) as f32);
    }
    let tensor = |end: &str, shape: [usize; 2]| NewTensor {
        name: format!("{name}.lora_{end}"),
        shape: shape.to_vec(),
        format,
    };
    [
        (tensor("a", [term.rank, inp]), term.a.clone()),
        (tensor("b", [out, term.rank]), b),
    ]
}

/// A GGUF adapter has no place for what is trained beside low-rank terms.
fn refuse_beside_terms(model: &Model, terms: &[LowRank]) -> RunResult {
    let terms: BTreeSet<String> = (terms.iter())
        .map(|term| format!("{}.weight", term.path))
        .collect();
    let changed = model.changed();
    let names = changed.iter().map(|(_, parameter)| parameter.name.as_str());
    let mut names: Vec<&str> = names.filter(|name| !terms.contains(*name)).collect();
    if model.ends_differ() {
        names.push("the table of tokens or of the head");
    }
    if names.is_empty() {
        return match changed.is_empty() {
            true => Err(RunError::usage("the adapter changes nothing")),
            false => Ok(()),
        };
    }
    Err(RunError::failure(format!(
        "the adapter trains more than low-rank terms, and a GGUF adapter holds nothing else: {}",
        names.join(", ")
    ))
    .hint("--to gguf writes the base with the adapter in its weights"))
}

/// Where tensors stand in a GGUF file of this model.
struct Places {
    architecture: &'static Architecture,
    heads: [usize; 2],
}

impl Places {
    /// Of a base, which may be a file of the form itself.
    fn of(loaded: &LoadedModel, gguf: Option<&Gguf>) -> RunResult<Self> {
        let (base, facts) = (&loaded.base, &loaded.base.config.facts);
        let architecture = match gguf {
            Some(gguf) => Some(gguf.architecture()?),
            None => Architecture::of_model_type(&base.config.model_type),
        };
        let architecture = architecture.ok_or_else(|| {
            let model_type = &base.config.model_type;
            RunError::usage(format!("a `{model_type}` model has no names in GGUF here"))
                .hint("`lowrank merge` writes it as a plain model directory")
        })?;
        let heads = [facts.num_attention_heads, facts.num_key_value_heads];
        Ok(Places {
            architecture,
            heads,
        })
    }

    fn weight(&self, module: &str) -> RunResult<(String, Stored)> {
        let found = self.architecture.weight_of(module, self.heads);
        found.ok_or_else(|| {
            RunError::failure(format!(
                "`{module}` has no name in GGUF files of the architecture `{}`",
                self.architecture.name
            ))
        })
    }

    /// That of any parameter of a module.
    fn parameter(&self, module: &str, name: &str) -> RunResult<(String, Stored)> {
        let (weight, stored) = self.weight(module)?;
        if name.ends_with(".weight") {
            return Ok((weight, stored));
        }
        // Vectors have no columns to be turned; rows of queries and keys have a bias each.
        let end = name.rsplit('.').next().unwrap_or("bias");
        let stored = match stored {
            Stored::HalvesInTurn(_) => stored,
            Stored::Same | Stored::Transposed | Stored::OneMore => Stored::Same,
        };
        Ok((weight.replace("weight", end), stored))
    }
}

/// Writes the base with the adapter in its weights: the keys of its file, and its tensors, of which
/// one is in memory at a time. Verified before it gets its name.
///
/// # Errors
/// The base is no GGUF file, or lacks what was trained; a type cannot be read or written; the
/// written model differs by more than is allowed: then nothing is left under the name.
pub fn export_merged(
    loaded: &LoadedModel,
    path: &Path,
    out: OutType,
    verify: Option<&VerifyExport>,
) -> RunResult<Exported> {
    let base = &loaded.base.dir;
    if !is_gguf(base)? {
        return Err(RunError::usage(format!(
            "`--to gguf` starts from a GGUF file, and the base is `{}`",
            base.display()
        ))
        .hint("`lowrank merge` writes a plain model directory, which llama.cpp's convert_hf_to_gguf.py takes; --to gguf-adapter writes the adapter by itself"));
    }
    if loaded.model.ends_differ() {
        return Err(RunError::failure(
            "the base has one table for both ends, which differ in what was trained",
        )
        .hint("`lowrank merge` writes a plain model directory with both"));
    }
    let gguf = Gguf::open(base)?;
    let changed = changed_tensors(loaded, &gguf)?;
    let mut draft = GgufDraft::with_keys_of(&gguf, &replaced_keys(out))?;
    if let Some(file_type) = out.file_type() {
        draft.unsigned("general.file_type", file_type);
    }
    let formats: Vec<_> = (gguf.tensors().iter())
        .map(|tensor| written_as(tensor, changed.get(&tensor.name), out))
        .collect();
    let is_quantised = |format: &&BlockFormat| format.plain().is_none();
    let has_version = gguf.unsigned("general.quantization_version")?.is_some();
    if formats.iter().any(is_quantised) && !has_version {
        draft.unsigned("general.quantization_version", 2);
    }
    for (tensor, format) in gguf.tensors().iter().zip(&formats) {
        draft.tensor(NewTensor {
            format,
            ..NewTensor::of(tensor)
        });
    }
    let pending = draft.write(path, |at, new| {
        let tensor = &gguf.tensors()[at];
        let values = match changed.get(&tensor.name) {
            Some(parameter) => parameter.values(&loaded.model, tensor),
            None if new.format.id == tensor.format.id => return Ok(gguf.bytes_of(tensor)?),
            None => decoded(&gguf, tensor)?,
        };
        encoded(new.format, &tensor.name, &values)
    })?;
    let verified = match verify {
        None => None,
        Some(asked) => Some(verified(loaded, &pending, asked, out)?),
    };
    finish(pending, gguf.tensors().len(), changed.len(), verified)
}

/// Values in a type that is written here.
fn encoded(format: &BlockFormat, name: &str, values: &[f32]) -> RunResult<Vec<u8>> {
    encode::bytes(format, values).ok_or_else(|| {
        let format = format.name;
        RunError::failure(format!(
            "`{name}` cannot be written as {format}: a value or scale is out of its range"
        ))
        .hint("pass --outtype f32")
    })
}

fn replaced_keys(out: OutType) -> Vec<&'static str> {
    match out {
        OutType::Auto => Vec::new(),
        _ => vec!["general.file_type"],
    }
}

/// A parameter with the adapter in it, and how the file has it.
struct Changed {
    name: String,
    stored: Stored,
}

impl Changed {
    fn values(&self, model: &Model, tensor: &GgufTensor) -> Vec<f32> {
        let values = model.changed_values(&self.name);
        let cols = tensor.shape.last().copied().unwrap_or(1).max(1);
        let [rows, cols] = match (self.stored, tensor.shape.len()) {
            (_, 0 | 1) => [values.len(), 1],
            // Of the model's own order, which is the other.
            (Stored::Transposed, _) => [cols, values.len() / cols],
            _ => [values.len() / cols, cols],
        };
        self.stored.stored(values, [rows, cols])
    }
}

/// The tensors of the file that are no longer the base's, by name.
fn changed_tensors(loaded: &LoadedModel, gguf: &Gguf) -> RunResult<BTreeMap<String, Changed>> {
    let places = Places::of(loaded, Some(gguf))?;
    let mut changed = BTreeMap::new();
    for (module, parameter) in loaded.model.changed() {
        let (tensor, stored) = places.parameter(&module.path, &parameter.name)?;
        if !gguf.tensors().iter().any(|found| found.name == tensor) {
            return Err(RunError::failure(format!(
                "`{}` was trained, and the base has no tensor `{tensor}` to hold it",
                parameter.name
            ))
            .hint("`lowrank merge` writes a plain model directory, which holds it"));
        }
        let name = parameter.name.clone();
        changed.insert(tensor, Changed { name, stored });
    }
    Ok(changed)
}

/// The type that a tensor is written in. Vectors keep theirs, as llama.cpp wants them.
fn written_as(
    tensor: &GgufTensor,
    changed: Option<&Changed>,
    out: OutType,
) -> &'static BlockFormat {
    let named = |name: &str| BlockFormat::from_name(name).expect("it is in the table");
    if tensor.shape.len() < 2 {
        return tensor.format;
    }
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let wanted = match out.format() {
        Some(format) => format,
        None if changed.is_none() || tensor.format.plain().is_some() => return tensor.format,
        None => named("Q8_0"),
    };
    match cols.is_multiple_of(wanted.values) {
        true => wanted,
        false => named("F16"),
    }
}

fn decoded(gguf: &Gguf, tensor: &GgufTensor) -> RunResult<Vec<f32>> {
    if !tensor.format.is_read() {
        return Err(RunError::failure(format!(
            "`{}` is stored as {}, which is not decoded",
            tensor.name, tensor.format.name
        ))
        .hint("--outtype auto copies it as it is"));
    }
    let mut values = vec![0.0; tensor.numel()];
    tensor.format.decode(&gguf.bytes_of(tensor)?, &mut values);
    Ok(values)
}

fn verified(
    loaded: &LoadedModel,
    pending: &PendingFile,
    asked: &VerifyExport,
    out: OutType,
) -> RunResult<Verified> {
    let found = compare(loaded, pending.path(), &asked.rows)?;
    let most = asked.max_kl.unwrap_or(out.most_divergence());
    // Not the other way round: a divergence that is no number is refused.
    if found.kl <= most {
        return Ok(found);
    }
    Err(RunError::failure(format!(
        "the written model differs: mean divergence {:.3e} nats, allowed {most:.1e}; largest logit difference {:.3e} (row {}), same prediction {} of {}; nothing was written",
        found.kl, found.largest, found.row, found.same, found.predictions
    ))
    .hint("write it with another --outtype, or raise --max-kl"))
}

fn finish(
    pending: PendingFile,
    tensors: usize,
    changed: usize,
    verified: Option<Verified>,
) -> RunResult<Exported> {
    let bytes = lowrank_formats::files::size(pending.path())?;
    pending.commit()?;
    Ok(Exported {
        tensors,
        changed,
        bytes,
        verified,
    })
}
