//! The checkpoints of the paper's own code (loralib): a flat state dict with `….lora_A` and `….lora_B`, beside the head.
//! Mapped to PEFT's keys. The scaling is not in the file: alpha must be known from elsewhere.

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
    /// The rank of each adapted module, by path, in the file's order.
    pub ranks: Vec<(String, usize)>,
    /// The last parts of the adapted modules' paths, sorted.
    pub target_modules: Vec<String>,
    /// The first parts of the paths of the other tensors' modules, where no adapter is (`classifier`), sorted.
    pub modules_to_save: Vec<String>,
}

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
        let mut ranks = Vec::new();
        let mut faults = Vec::new();
        for info in checkpoint.infos() {
            match check_pair(&info.name, &shapes) {
                Ok(Some(rank)) => ranks.push(rank),
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
        let adapted_roots: BTreeSet<&str> =
            ranks.iter().map(|(path, _)| first_part(path)).collect();
        let modules_to_save: BTreeSet<&str> = checkpoint
            .infos()
            .filter(|info| split_lora(&info.name).is_none())
            .map(|info| first_part(&info.name))
            .filter(|root| !adapted_roots.contains(root))
            .collect();
        let target_modules: BTreeSet<&str> =
            ranks.iter().map(|(path, _)| last_part(path)).collect();
        Ok(Loralib {
            tensors: rename(path, AdapterFile::from_checkpoint(&checkpoint)?),
            target_modules: target_modules.into_iter().map(str::to_owned).collect(),
            modules_to_save: modules_to_save.into_iter().map(str::to_owned).collect(),
            ranks,
        })
    }

    /// A configuration for it with the alpha that it was trained with. Modules whose rank is not the most common one get an
    /// entry in `rank_pattern`.
    pub fn config(&self, lora_alpha: f64) -> LoraConfig {
        let mut counts: HashMap<usize, usize> = HashMap::new();
        for (_, rank) in &self.ranks {
            *counts.entry(*rank).or_default() += 1;
        }
        let common = counts
            .into_iter()
            .max_by_key(|&(rank, count)| (count, rank))
            .map_or(8, |(rank, _)| rank);
        let others = self.ranks.iter().filter(|(_, rank)| *rank != common);
        LoraConfig {
            r: common,
            lora_alpha,
            target_modules: Some(TargetModules::List(self.target_modules.clone())),
            rank_pattern: others
                .map(|(path, rank)| (path.replace('.', r"\."), *rank))
                .collect(),
            modules_to_save: (!self.modules_to_save.is_empty())
                .then(|| self.modules_to_save.clone()),
            ..LoraConfig::default()
        }
    }
}

fn rename(path: &Path, file: AdapterFile) -> AdapterFile {
    let tensors: Vec<(String, AdapterTensor)> = file
        .into_iter()
        .map(|(name, tensor)| {
            let key = match split_lora(&name) {
                Some(_) => format!("{KEY_PREFIX}{name}.weight"),
                None => format!("{KEY_PREFIX}{name}"),
            };
            (key, tensor)
        })
        .collect();
    AdapterFile::new(path, tensors)
}

/// The module's path, and whether the tensor is its A.
fn split_lora(name: &str) -> Option<(&str, bool)> {
    match name.strip_suffix(".lora_A") {
        Some(path) => Some((path, true)),
        None => name.strip_suffix(".lora_B").map(|path| (path, false)),
    }
}

/// For an A with a fitting B: the module and its rank. Nothing for other tensors; an error for a pair that does not fit.
fn check_pair(
    name: &str,
    shapes: &HashMap<&str, &[usize]>,
) -> std::result::Result<Option<(String, usize)>, String> {
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
    match (shapes[name], *other) {
        (&[rank, _], &[_, inner]) if rank == inner => Ok(Some((path.to_owned(), rank))),
        (&[rows, _], &[_, rank]) if rank > 0 && rows % rank == 0 => Err(format!(
            "A has {rows} rows and B takes {rank}: a fused layer (loralib's `MergedLinear`) of {} parts is not supported",
            rows / rank
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
