//! What a run and an adapter stand on: the weights of their base, by a hash of its tensors, and the
//! settings of its `config.json`. Files may be another form of the same tensors (one file or
//! shards, safetensors or PyTorch's).

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use lowrank_formats::{Checkpoint, FormatError, TensorInfo, read_model_config};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::fingerprint;

/// Keys of `config.json` that do not change what the model computes: who wrote it and how its files
/// are stored, what transformers returns, and the names of labels, which a run and an adapter have
/// of their own.
const BOOKKEEPING: [&str; 16] = [
    "_name_or_path",
    "architectures",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
];

/// Values hashed at a time: small, so that reading takes no memory to speak of.
const BLOCK_VALUES: usize = 1 << 16;

/// What a run or an adapter was made on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseId {
    /// SHA-256 over the names, types, shapes and values of all tensors of numbers with a fraction;
    /// nothing where a run began with new weights.
    pub weights: Option<String>,
    /// The settings of `config.json` that may change what the model computes.
    pub config: Map<String, Value>,
}

impl BaseId {
    /// The base in a folder or a GGUF file: its weights are read on `threads` threads.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(dir: &Path, threads: usize) -> Result<Self, FormatError> {
        let checkpoint = Checkpoint::open_model(dir)?;
        Ok(Self {
            weights: Some(of_tensors(&checkpoint, threads)?),
            ..Self::without_weights(dir)?
        })
    }

    /// The same where the weights do not matter, as they are new.
    ///
    /// # Errors
    /// `config.json` cannot be read.
    pub fn without_weights(dir: &Path) -> Result<Self, FormatError> {
        let config = match read_model_config(dir)? {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        let matters = |(key, value): &(String, Value)| {
            !BOOKKEEPING.contains(&key.as_str()) && !says_nothing(value)
        };
        Ok(Self {
            weights: None,
            config: config.into_iter().filter(matters).collect(),
        })
    }

    /// One line for each thing in which the base `now` is another than this one.
    pub fn differences(&self, now: &BaseId) -> Vec<String> {
        let short = |hash: &Option<String>| match hash {
            Some(hash) => format!("SHA-256 {}", hash.get(..16).unwrap_or(hash)),
            None => "new ones".to_owned(),
        };
        let mut lines = Vec::new();
        if self.weights != now.weights {
            let (then, now) = (short(&self.weights), short(&now.weights));
            lines.push(format!("weights: {then} then, {now} now"));
        }
        let shown = |value: Option<&Value>| match value {
            None => "absent".to_owned(),
            Some(value) => {
                let text = value.to_string();
                match text.char_indices().nth(60) {
                    Some((end, _)) => format!("{}…", &text[..end]),
                    None => text,
                }
            }
        };
        let new = now.config.keys();
        let new = new.filter(|key| !self.config.contains_key(*key));
        for key in self.config.keys().chain(new) {
            let (then, now) = (self.config.get(key), now.config.get(key));
            if then != now {
                let (then, now) = (shown(then), shown(now));
                lines.push(format!("config.json, `{key}`: {then} then, {now} now"));
            }
        }
        lines
    }
}

/// Absent, off or empty are the same.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A stretch of one tensor: of its values, or of its bytes where they are packed.
struct Block<'a> {
    info: &'a TensorInfo,
    head: String,
    start: usize,
    len: usize,
}

/// SHA-256 over the digests of all blocks, in the order of names. Tensors of whole numbers are left
/// out: they count positions, and some versions of transformers store them.
fn of_tensors(checkpoint: &Checkpoint, threads: usize) -> Result<String, FormatError> {
    let mut infos: Vec<_> = checkpoint.infos().filter(|t| t.dtype.is_float()).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    let mut blocks = Vec::new();
    for info in infos {
        let head = format!("{} {} {:?}\0", info.name, info.stored_as(), info.shape);
        // Packed values count as they are stored: the same file is the same base, whatever decodes
        // it.
        let count = match info.packed {
            Some(packed) => packed.bytes as usize,
            None => info.numel(),
        };
        let block = |start: usize| Block {
            info,
            head: head.clone(),
            start,
            len: BLOCK_VALUES.min(count - start),
        };
        blocks.extend((0..count.max(1)).step_by(BLOCK_VALUES).map(block));
    }
    let (next, digests) = (
        AtomicUsize::new(0),
        Mutex::new(vec![[0u8; 32]; blocks.len()]),
    );
    let work = || -> Result<(), FormatError> {
        while let Some((at, block)) = take(&next, &blocks) {
            let (name, start) = (&block.info.name, block.start);
            let values = match block.info.packed {
                Some(_) => checkpoint.read_packed(name, start as u64, block.len)?,
                None => checkpoint.read_bytes_range(name, start, block.len)?,
            };
            let mut hash = Sha256::new();
            hash.update(block.head.as_bytes());
            hash.update((block.start as u64).to_le_bytes());
            hash.update(&values);
            let digest = hash.finalize().into();
            digests.lock().expect("no panic holds this lock")[at] = digest;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = others.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        own.and(joined.collect::<Result<(), FormatError>>())
    })?;
    let digests = digests.into_inner().expect("no panic held this lock");
    Ok(fingerprint::of_bytes(digests.as_flattened()))
}

fn take<'a, T>(next: &AtomicUsize, list: &'a [T]) -> Option<(usize, &'a T)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, list.get(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowrank_formats::{OutTensor, write_safetensors};
    use serde_json::json;

    fn folder(values: &[f32], config: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let shape = [values.len()];
        let tensors = [
            OutTensor::f32("b.weight", &shape, values),
            OutTensor::f32("a.weight", &[1], &values[..1]),
        ];
        write_safetensors(&dir.path().join("model.safetensors"), &tensors, &[]).unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        dir
    }

    #[test]
    fn any_bit_of_any_weight_counts_and_threads_do_not() {
        let mut values = vec![0.5; 2 * BLOCK_VALUES + 7];
        let config = json!({ "hidden_size": 8 });
        let first = BaseId::of(folder(&values, &config).path(), 1).unwrap();
        assert_eq!(
            first,
            BaseId::of(folder(&values, &config).path(), 3).unwrap()
        );
        for at in [0, BLOCK_VALUES, values.len() - 1] {
            values[at] = f32::from_bits(values[at].to_bits() ^ 1);
            let other = BaseId::of(folder(&values, &config).path(), 2).unwrap();
            let lines = first.differences(&other);
            assert!(
                lines.len() == 1 && lines[0].starts_with("weights: SHA-256 "),
                "{lines:?}"
            );
            values[at] = 0.5;
        }
    }

    #[test]
    fn the_same_tensors_in_other_files_are_the_same_base() {
        let config = json!({ "hidden_size": 8 });
        let one = folder(&[0.5, 2.0], &config);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let shape = [2];
        for (file, tensor) in [
            ("one", OutTensor::f32("a.weight", &[1], &[0.5])),
            ("two", OutTensor::f32("b.weight", &shape, &[0.5, 2.0])),
        ] {
            let path = dir.path().join(format!("{file}.safetensors"));
            write_safetensors(&path, &[tensor], &[("format".to_owned(), "pt".to_owned())]).unwrap();
        }
        let index = json!({ "metadata": {}, "weight_map": {
            "a.weight": "one.safetensors", "b.weight": "two.safetensors"
        }});
        let path = dir.path().join("model.safetensors.index.json");
        std::fs::write(path, index.to_string()).unwrap();
        assert_eq!(
            BaseId::of(one.path(), 2).unwrap(),
            BaseId::of(dir.path(), 2).unwrap()
        );
    }

    #[test]
    fn settings_of_the_config_are_named_and_bookkeeping_is_not() {
        let id = |config: Value| BaseId::without_weights(folder(&[1.0], &config).path()).unwrap();
        let run = id(json!({ "layer_norm_eps": 1e-12, "transformers_version": "4", "pad": null }));
        let same = id(json!({ "transformers_version": "5", "layer_norm_eps": 1e-12, "x": false }));
        assert_eq!(run.differences(&same), [] as [String; 0]);
        let other = id(json!({ "layer_norm_eps": 1e-5, "hidden_act": "relu" }));
        assert_eq!(
            run.differences(&other),
            [
                "config.json, `layer_norm_eps`: 1e-12 then, 0.00001 now".to_owned(),
                "config.json, `hidden_act`: absent then, \"relu\" now".to_owned()
            ]
        );
    }
}
