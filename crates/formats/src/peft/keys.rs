//! The keys of an adapter's tensors as people have them: PEFT's own, and those of a dumped state
//! dict, which hold the adapter's name and what wrappers put before and between. Knows names alone.

use std::collections::{BTreeSet, HashSet};

use super::adapter::{AdapterTensor, KEY_PREFIX};
use crate::error::Fault;

/// Parts that wrappers put anywhere in a path and that no module is called: `torch.compile`, FSDP,
/// its checkpointing.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// Parts that PEFT puts after a module's path, each with what may follow it.
const LORA_PARTS: [(&str, &[&str]); 6] = [
    ("lora_A", &["weight"]),
    ("lora_B", &["weight", "bias"]),
    ("lora_embedding_A", &[]),
    ("lora_embedding_B", &[]),
    ("lora_magnitude_vector", &["weight"]),
    ("trainable_tokens_delta", &[]),
];

type Tensors = Vec<(String, AdapterTensor)>;

/// Tensors under PEFT's keys.
pub(super) struct Renamed {
    pub(super) tensors: Tensors,
    /// What was done, one sentence each.
    pub(super) notes: Vec<String>,
    /// The file is the state dict of a whole model: it holds the base's tensors too.
    pub(super) is_whole_model: bool,
}

/// Puts every tensor under the key that PEFT would give it.
pub(super) fn to_peft(tensors: Tensors) -> Result<Renamed, Vec<Fault>> {
    let is_lora = |key: &str| key.split('.').any(|part| lora_part(part).is_some());
    if !tensors.iter().any(|(key, _)| is_lora(key)) {
        return Ok(Renamed {
            tensors,
            notes: Vec::new(),
            is_whole_model: false,
        });
    }
    let names: BTreeSet<&str> = tensors
        .iter()
        .filter_map(|(k, _)| adapter_name(k))
        .collect();
    if names.len() > 1 {
        let list: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        return Err(vec![Fault {
            place: "(whole file)".into(),
            message: format!(
                "its keys hold the names of {} adapters ({}), expected one; save each by itself with PEFT's `save_pretrained`",
                names.len(),
                list.join(", ")
            ),
        }]);
    }
    let name = names.first().map(|name| (*name).to_owned());
    let mut renaming = Renaming {
        name: name.as_deref(),
        said: BTreeSet::new(),
    };
    let mut is_whole_model = false;
    let (mut renamed, mut seen, mut faults) = (Vec::new(), HashSet::new(), Vec::new());
    for (key, tensor) in tensors {
        is_whole_model |= key.ends_with(".base_layer.weight");
        let Some(new) = renaming.key(&key) else {
            continue;
        };
        if !seen.insert(new.clone()) {
            faults.push(Fault {
                place: key.clone(),
                message: format!("another tensor of the file is `{new}` too"),
            });
        }
        renamed.push((new, tensor));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Renamed {
        tensors: renamed,
        notes: renaming.said.into_iter().collect(),
        is_whole_model,
    })
}

/// What may follow a part of PEFT's, if it is one.
fn lora_part(part: &str) -> Option<&'static [&'static str]> {
    let known = LORA_PARTS.iter().find(|(name, _)| *name == part);
    known.map(|(_, after)| *after)
}

/// The adapter's name in a key such as `….lora_A.default.weight`.
fn adapter_name(key: &str) -> Option<&str> {
    let parts: Vec<&str> = key.split('.').collect();
    let at = parts.iter().position(|part| lora_part(part).is_some())?;
    let after = lora_part(parts[at])?;
    match parts[at + 1..] {
        [name] if !after.contains(&name) => Some(name),
        [name, last] if after.contains(&last) => Some(name),
        _ => None,
    }
}

struct Renaming<'a> {
    /// The adapter's name, where the keys hold it.
    name: Option<&'a str>,
    said: BTreeSet<String>,
}

impl Renaming<'_> {
    /// The key that PEFT would write; none for what it would not.
    fn key(&mut self, key: &str) -> Option<String> {
        let mut parts: Vec<&str> = key.split('.').collect();
        for wrapper in WRAPPERS {
            if parts.contains(&wrapper) {
                parts.retain(|part| *part != wrapper);
                self.say_left_out(wrapper);
            }
        }
        match parts
            .windows(2)
            .position(|pair| pair == ["base_model", "model"])
        {
            None => self.say(format!("keys of the adapter lacked `{KEY_PREFIX}`")),
            Some(at) => {
                if at > 0 {
                    self.say_left_out(&parts[..at].join("."));
                }
                parts.drain(..at + 2);
            }
        }
        if parts.first() == Some(&"module") {
            parts.remove(0);
            self.say_left_out("module");
        }
        if let Some(name) = self.name {
            if parts.contains(&"original_module") {
                return None;
            }
            let mark = |part: &&str| lora_part(part).is_some() || *part == "modules_to_save";
            if let Some(at) = parts.iter().position(mark)
                && parts.get(at + 1) == Some(&name)
            {
                parts.remove(at + 1);
                if parts[at] == "modules_to_save" {
                    parts.remove(at);
                }
                self.say(format!("left out of the adapter's keys: its name `{name}`"));
            }
        }
        Some(format!("{KEY_PREFIX}{}", parts.join(".")))
    }

    fn say_left_out(&mut self, what: &str) {
        self.say(format!("left out of the adapter's keys: `{what}.`"));
    }

    fn say(&mut self, note: String) {
        self.said.insert(note);
    }
}
