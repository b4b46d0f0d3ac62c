//! The checkpoints of the paper's own code (loralib): a flat state dict with `….lora_A` and
//! `….lora_B`, beside the head. Mapped to PEFT's keys. The scaling is not in the file: alpha must
//! be known from elsewhere.
//!
//! A `MergedLinear` adapts some of the parts of a fused layer, each at rank r, as the paper does
//! with GPT-2's queries and values. One low-rank pair says the same at a rank of r for each adapted
//! part: A stands as it is, and each part's B fills its own rows and columns of a B that is zero
//! elsewhere. The scaling alpha / r stays if alpha grows as the rank does.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::adapter::{AdapterFile, AdapterTensor, KEY_PREFIX};
use super::config::{LoraConfig, TargetModules};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::error::{Fault, FormatError};

/// A loralib checkpoint under PEFT's names.
#[derive(Debug, Clone)]
pub struct Loralib {
    /// Its tensors under PEFT's keys, in the file's order.
    pub tensors: AdapterFile,
    /// Each adapted module, in the file's order.
    pub modules: Vec<LoralibModule>,
    /// The last parts of the adapted modules' paths, sorted.
    pub target_modules: Vec<String>,
    /// The first parts of the paths of the other tensors' modules, where no adapter is
    /// (`classifier`), sorted.
    pub modules_to_save: Vec<String>,
}

/// One adapted module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoralibModule {
    /// Its path.
    pub path: String,
    /// The rank of its pair of A and B under PEFT's names.
    pub rank: usize,
    /// How many parts of a fused layer are adapted, each at `rank / parts`; 1 for an ordinary
    /// layer.
    pub parts: usize,
}

/// Parts of a fused layer: queries, keys and values.
const FUSED: usize = 3;

impl Loralib {
    /// Whether a checkpoint has loralib's names.
    pub fn is_loralib(checkpoint: &Checkpoint) -> bool {
        checkpoint
            .infos()
            .any(|info| info.name.ends_with(".lora_A"))
    }

    /// Reads a checkpoint (a `.bin`, or the same as safetensors).
    pub fn read(path: &Path) -> Result<Loralib> {
        let checkpoint = Checkpoint::open_file(path)?;
        let refuse = |faults| FormatError::Adapter {
            path: path.to_owned(),
            faults,
        };
        if !Loralib::is_loralib(&checkpoint) {
            return Err(refuse(vec![Fault {
                place: "(whole file)".into(),
                message: "expected tensors named `….lora_A` and `….lora_B`".into(),
            }]));
        }
        let shapes: HashMap<&str, &[usize]> = checkpoint
            .infos()
            .map(|info| (info.name.as_str(), info.shape.as_slice()))
            .collect();
        let mut modules: Vec<LoralibModule> = Vec::new();
        let mut faults = Vec::new();
        for info in checkpoint.infos() {
            match check_pair(&info.name, &shapes) {
                Ok(Some(module)) => modules.push(module),
                Ok(None) => {}
                Err(message) => faults.push(Fault {
                    place: info.name.clone(),
                    message,
                }),
            }
        }
        if !faults.is_empty() {
            return Err(refuse(faults));
        }
        let adapted_roots: BTreeSet<&str> = modules.iter().map(|m| first_part(&m.path)).collect();
        let modules_to_save: BTreeSet<&str> = checkpoint
            .infos()
            .filter(|info| split_lora(&info.name).is_none())
            .map(|info| first_part(&info.name))
            .filter(|root| !adapted_roots.contains(root))
            .collect();
        let target_modules: BTreeSet<&str> = modules.iter().map(|m| last_part(&m.path)).collect();
        Ok(Loralib {
            tensors: rename(path, AdapterFile::from_checkpoint(&checkpoint)?, &modules),
            target_modules: target_modules.into_iter().map(str::to_owned).collect(),
            modules_to_save: modules_to_save.into_iter().map(str::to_owned).collect(),
            modules,
        })
    }

    /// A configuration for it with the alpha that it was trained with. Modules whose rank or number
    /// of parts is not the most common one get entries in `rank_pattern` and `alpha_pattern`.
    pub fn config(&self, lora_alpha: f64) -> LoraConfig {
        let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
        for module in &self.modules {
            *counts.entry((module.rank, module.parts)).or_default() += 1;
        }
        let common = counts
            .into_iter()
            .max_by_key(|&(form, count)| (count, form))
            .map_or((8, 1), |(form, _)| form);
        let key = |m: &LoralibModule| m.path.replace('.', r"\.");
        let others = || self.modules.iter().filter(|m| (m.rank, m.parts) != common);
        LoraConfig {
            r: common.0,
            lora_alpha: lora_alpha * common.1 as f64,
            target_modules: Some(TargetModules::List(self.target_modules.clone())),
            rank_pattern: others().map(|m| (key(m), m.rank)).collect(),
            alpha_pattern: others()
                .filter(|m| m.parts != common.1)
                .map(|m| (key(m), lora_alpha * m.parts as f64))
                .collect(),
            // Fused layers are GPT-2's, whose weights stand as [in, out].
            fan_in_fan_out: self.modules.iter().any(|m| m.parts > 1),
            modules_to_save: (!self.modules_to_save.is_empty())
                .then(|| self.modules_to_save.clone()),
            ..LoraConfig::default()
        }
    }
}

fn rename(path: &Path, file: AdapterFile, modules: &[LoralibModule]) -> AdapterFile {
    let fused: HashMap<&str, &LoralibModule> = modules
        .iter()
        .filter(|m| m.parts > 1)
        .map(|m| (m.path.as_str(), m))
        .collect();
    let tensors: Vec<(String, AdapterTensor)> = file
        .into_iter()
        .map(|(name, tensor)| match split_lora(&name) {
            None => (format!("{KEY_PREFIX}{name}"), tensor),
            Some((module, is_a)) => {
                let tensor = match fused.get(module) {
                    Some(module) if !is_a => block_form(&tensor, module),
                    Some(_) | None => tensor,
                };
                (format!("{KEY_PREFIX}{name}.weight"), tensor)
            }
        })
        .collect();
    AdapterFile::new(path, tensors)
}

/// The B [out, rank] of a fused layer from the parts' own, which lie one under the other [out ·
/// parts / 3, rank / parts].
fn block_form(stacked: &AdapterTensor, module: &LoralibModule) -> AdapterTensor {
    let (rank, r) = (module.rank, module.rank / module.parts);
    let part_rows = stacked.shape[0] / module.parts;
    let rows = part_rows * FUSED;
    let mut data = vec![0.0; rows * rank];
    for (i, row) in stacked.data.chunks_exact(r).enumerate() {
        let part = i / part_rows;
        // Two adapted parts are queries and values: the keys between them stay as they are.
        let place = if module.parts == 2 { 2 * part } else { part };
        let to = (place * part_rows + i % part_rows) * rank + part * r;
        data[to..to + r].copy_from_slice(row);
    }
    AdapterTensor {
        shape: vec![rows, rank],
        data,
        ..stacked.clone()
    }
}

/// The module's path, and whether the tensor is its A.
fn split_lora(name: &str) -> Option<(&str, bool)> {
    match name.strip_suffix(".lora_A") {
        Some(path) => Some((path, true)),
        None => name.strip_suffix(".lora_B").map(|path| (path, false)),
    }
}

/// For an A with a fitting B: the module. Nothing for other tensors; an error for a pair that does
/// not fit.
fn check_pair(
    name: &str,
    shapes: &HashMap<&str, &[usize]>,
) -> std::result::Result<Option<LoralibModule>, String> {
    let Some((path, is_a)) = split_lora(name) else {
        return Ok(None);
    };
    let partner = format!("{path}.{}", if is_a { "lora_B" } else { "lora_A" });
    let Some(other) = shapes.get(partner.as_str()) else {
        return Err(format!("its partner `{partner}` is missing"));
    };
    if !is_a {
        return Ok(None);
    }
    let module = |rank, parts| {
        Ok(Some(LoralibModule {
            path: path.to_owned(),
            rank,
            parts,
        }))
    };
    match (shapes[name], *other) {
        (&[rank, _], &[_, inner]) if rank == inner => module(rank, 1),
        // As in loralib's own example, two parts of a fused layer are queries and values.
        (&[rows, _], &[out, r]) if r > 0 && (rows == 2 * r || rows == FUSED * r) => {
            let parts = rows / r;
            if out.is_multiple_of(parts) {
                module(rows, parts)
            } else {
                Err(format!("B has {out} rows, expected a multiple of {parts}"))
            }
        }
        (&[rows, _], &[_, r]) if r > 0 && rows % r == 0 => Err(format!(
            "A has {rows} rows and B takes {r}: a fused layer (loralib's `MergedLinear`) of {} parts is not supported",
            rows / r
        )),
        (a, b) => Err(format!(
            "expected A [r, in] and B [out, r], found {a:?} and {b:?}"
        )),
    }
}

fn first_part(path: &str) -> &str {
    path.split_once('.').map_or(path, |(first, _)| first)
}

fn last_part(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, last)| last)
}
