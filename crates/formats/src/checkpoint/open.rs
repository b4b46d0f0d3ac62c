//! Which files a checkpoint is, and what is in them: safetensors, PyTorch's, GGUF's, told by their
//! content; shards by their index.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::values::{Blocks, Kept, Plain, RowOrder, Values, Walk};
use super::{Checkpoint, Entry, PackedAs, TensorInfo};
use crate::Result;
use crate::config::model_config_file;
use crate::dtype::DType;
use crate::error::{Fault, FormatError};
use crate::files;
use crate::gguf::{self, Architecture, Gguf, GgufTensor, View};
use crate::pyjson::read_json;
use crate::quantised::present;
use crate::safetensors::{Header, SafetensorsFault};
use crate::source::Source;
use crate::torch::TorchFile;

/// The files of a model folder, in transformers' order of preference; an index stands for its
/// shards.
const MODEL_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

impl Checkpoint {
    /// Opens the weights of a Hugging Face model folder: `model.safetensors`, else its index and
    /// shards, else `pytorch_model.bin`, else its index and shards. Shards may not lie outside the
    /// folder.
    pub fn open_dir(dir: &Path) -> Result<Checkpoint> {
        let found = MODEL_FILES
            .into_iter()
            .find(|name| files::is_file(&dir.join(name)));
        match found {
            Some(name) if name.ends_with(".json") => open_index(dir, &dir.join(name)),
            Some(name) => Checkpoint::open_file(&dir.join(name)),
            None if !files::is_dir(dir) => Err(match files::list(dir) {
                Err(error) => error,
                Ok(_) => FormatError::io("open", dir)(std::io::ErrorKind::NotADirectory.into()),
            }),
            None => Err(FormatError::NothingFound {
                dir: dir.to_owned(),
                expected: MODEL_FILES.map(str::to_owned).to_vec(),
            }),
        }
    }

    /// Opens the weights of a model: of a folder as [`Checkpoint::open_dir`] does, and of one GGUF
    /// file under the names that transformers has for them. Where the folder's `config.json` says
    /// that it is quantised, packed tensors are listed as what they stand for.
    ///
    /// # Errors
    /// Files that cannot be read; a GGUF file of an architecture whose tensors are not known;
    /// packed values that do not fit what the configuration says.
    pub fn open_model(path: &Path) -> Result<Checkpoint> {
        match gguf::is_gguf(path)? {
            true => {
                let gguf = Gguf::open(path)?;
                let architecture = gguf.architecture()?;
                Checkpoint::of_gguf(gguf, Some(architecture))
            }
            false => {
                let checkpoint = Checkpoint::open_dir(path)?;
                let config = model_config_file(path);
                match files::is_file(&config) {
                    true => checkpoint.unpacked(&read_json(&config)?),
                    false => Ok(checkpoint),
                }
            }
        }
    }

    /// The same with packed tensors in the place of their parts, as the object of a `config.json`
    /// says that they are packed.
    ///
    /// # Errors
    /// A way of packing that is not known; parts that are missing or do not fit each other.
    pub fn unpacked(mut self, config: &serde_json::Value) -> Result<Checkpoint> {
        let entries = std::mem::take(&mut self.entries);
        let entries = present(entries, &self.sources, &self.path, config)?;
        self.by_name.clear();
        self.list(entries);
        Ok(self)
    }

    /// Opens one file: safetensors, PyTorch's or GGUF's, told by its content; the last one under
    /// its own names. Of a PyTorch file the state dict is taken: the value itself or the dict at
    /// `state_dict`, `model_state_dict`, `model`, `module`, `model_state` or `net` in it, also in
    /// one another, whichever holds the most tensors; else the only dict of tensors in it.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let source = Source::open(path)?;
        match source.begins_with(gguf::MAGIC)? {
            true => Checkpoint::of_gguf(Gguf::open(path)?, None),
            false => Checkpoint::from_source(source),
        }
    }

    /// A file in memory, told by its content.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Checkpoint> {
        if bytes.starts_with(gguf::MAGIC) {
            return Checkpoint::of_gguf(Gguf::from_bytes(name, bytes)?, None);
        }
        Checkpoint::from_source(Source::from_bytes(name, bytes))
    }

    fn from_source(source: Source) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::empty(source.path());
        let file = checkpoint.add_file(source)?;
        checkpoint.list(file);
        Ok(checkpoint)
    }

    fn list(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let place = self.entries.len();
            self.by_name.insert(entry.info.name.clone(), place);
            self.entries.push(entry);
        }
    }

    /// The tensors of a GGUF file, renamed and turned as transformers has them where the
    /// architecture is given.
    fn of_gguf(gguf: Gguf, architecture: Option<&Architecture>) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::empty(gguf.path());
        let entries = gguf
            .tensors()
            .iter()
            .filter(|tensor| !architecture.is_some_and(|known| known.is_setting(&tensor.name)))
            .map(|tensor| gguf_entry(&gguf, tensor, architecture))
            .collect::<Result<Vec<_>>>()?;
        checkpoint.list(entries);
        checkpoint.files = gguf.files();
        checkpoint.sources = gguf.into_sources();
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Checkpoint {
        Checkpoint {
            path: path.to_owned(),
            sources: Vec::new(),
            files: Vec::new(),
            entries: Vec::new(),
            by_name: HashMap::new(),
            metadata: Vec::new(),
            kept: Kept::default(),
        }
    }

    /// Keeps the file and gives its tensors, which are not yet listed.
    fn add_file(&mut self, source: Source) -> Result<Vec<Entry>> {
        let path = source.path().to_owned();
        let file = self.sources.len();
        let (source, entries) = match sniff(&source)? {
            Kind::Safetensors => {
                let header = read_header(&source)?;
                self.metadata.extend(header.metadata);
                let entries = header.entries.into_iter().map(|entry| Entry {
                    values: Values::Plain(Plain {
                        offset: entry.offset,
                        walk: None,
                        plus: 0.0,
                    }),
                    info: TensorInfo {
                        name: entry.name,
                        dtype: entry.dtype,
                        packed: None,
                        shape: entry.shape,
                        file,
                    },
                });
                (source, entries.collect())
            }
            Kind::Torch => {
                let torch = TorchFile::from_source(source)?;
                let entries = torch.state_dict()?.into_iter().map(|tensor| {
                    let shape = tensor.shape.clone();
                    Entry {
                        values: Values::Plain(Plain {
                            offset: tensor.offset,
                            walk: tensor.strides.map(|strides| Walk { shape, strides }),
                            plus: 0.0,
                        }),
                        info: TensorInfo {
                            name: tensor.name,
                            dtype: tensor.dtype,
                            packed: None,
                            shape: tensor.shape,
                            file,
                        },
                    }
                });
                let entries = entries.collect();
                (torch.into_source(), entries)
            }
            Kind::Gguf => {
                return Err(FormatError::UnknownFormat {
                    path,
                    found: "`GGUF`, which is no shard".into(),
                });
            }
        };
        self.sources.push(source);
        self.files.push(path);
        Ok(entries)
    }
}

/// A tensor of a GGUF file as a checkpoint has it.
fn gguf_entry(
    gguf: &Gguf,
    tensor: &GgufTensor,
    architecture: Option<&Architecture>,
) -> Result<Entry> {
    let (name, view) = match architecture {
        Some(architecture) => architecture.name_and_view(&tensor.name),
        None => (tensor.name.clone(), View::Same),
    };
    let order = match view {
        View::Same | View::LessOne => RowOrder::Same,
        View::Transposed => RowOrder::Transposed,
        View::Heads(count) => gguf.halves_in_turn(tensor, count)?,
    };
    let mut shape = tensor.shape.clone();
    if order == RowOrder::Transposed {
        shape.reverse();
    }
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let stored = match order {
        // A bias has a value for each row.
        RowOrder::HalvesInTurn { .. } if tensor.shape.len() == 1 => [cols, 1],
        _ => [tensor.numel() / cols, cols],
    };
    let (values, dtype) = match tensor.format.plain() {
        Some(dtype) => {
            let plain = Plain {
                offset: tensor.offset,
                walk: order.walk(stored),
                plus: if view == View::LessOne { -1.0 } else { 0.0 },
            };
            (Values::Plain(plain), dtype)
        }
        None => {
            let blocks = Blocks {
                format: tensor.format,
                offset: tensor.offset,
                stored,
                order,
            };
            (Values::Blocks(blocks), DType::F32)
        }
    };
    let packed = PackedAs {
        format: tensor.format.name,
        bytes: tensor.bytes,
    };
    Ok(Entry {
        values,
        info: TensorInfo {
            name,
            dtype,
            packed: tensor.format.plain().is_none().then_some(packed),
            shape,
            file: tensor.file,
        },
    })
}

enum Kind {
    Safetensors,
    Torch,
    Gguf,
}

/// Tells the format by the first bytes; the file's name decides only where the content is damaged.
fn sniff(source: &Source) -> Result<Kind> {
    const LFS_POINTER: &[u8] = b"version https://git-lfs";
    let start = source.read_vec(0, source.len().min(LFS_POINTER.len() as u64))?;
    let path = source.path();
    let extension = path.extension().and_then(|text| text.to_str());
    let json_len = start
        .first_chunk()
        .map(|prefix| u64::from_le_bytes(*prefix));
    let looks_safe = start.get(8) == Some(&b'{') && json_len.is_some_and(|len| len <= source.len());
    // A pickle of protocol 2 or later begins with its number; the zip archives of torch hold one.
    let looks_pickled = start.starts_with(b"PK\x03\x04") || matches!(start[..], [0x80, 0..=5, ..]);
    if start.is_empty() || start == LFS_POINTER {
        let found = match start.is_empty() {
            true => "nothing: it is empty".into(),
            false => format!("`{}`", LFS_POINTER.escape_ascii()),
        };
        return Err(FormatError::UnknownFormat {
            path: path.to_owned(),
            found,
        });
    }
    match extension {
        _ if start.starts_with(gguf::MAGIC) => Ok(Kind::Gguf),
        _ if looks_safe => Ok(Kind::Safetensors),
        _ if looks_pickled => Ok(Kind::Torch),
        Some("safetensors") => Ok(Kind::Safetensors),
        _ => Err(FormatError::UnknownFormat {
            path: path.to_owned(),
            found: format!("`{}`", start[..start.len().min(8)].escape_ascii()),
        }),
    }
}

/// Reads and checks the header of a safetensors file.
fn read_header(source: &Source) -> Result<Header> {
    let fault = |fault| FormatError::Safetensors {
        path: source.path().to_owned(),
        fault,
    };
    if source.len() < 8 {
        return Err(fault(SafetensorsFault::TooShort {
            found: source.len(),
        }));
    }
    let mut prefix = [0; 8];
    source.read_exact_at(&mut prefix, 0)?;
    let json_len = Header::json_len(prefix, source.len()).map_err(fault)?;
    let json = source.read_vec(8, json_len)?;
    Header::parse(&json, source.len()).map_err(fault)
}

/// Opens the shards that an index lists.
fn open_index(dir: &Path, index: &Path) -> Result<Checkpoint> {
    let weight_map = read_weight_map(index)?;
    let shards: BTreeMap<&str, ()> = weight_map
        .iter()
        .map(|(_, shard)| (shard.as_str(), ()))
        .collect();
    let mut checkpoint = Checkpoint::empty(dir);
    let mut faults = Vec::new();
    let mut found: Vec<(usize, Vec<Entry>)> = Vec::new();
    let mut file_of: HashMap<&str, usize> = HashMap::new();
    for shard in shards.into_keys() {
        let path = dir.join(shard);
        if !files::exists(&path) {
            faults.push(Fault {
                place: shard.to_owned(),
                message: "the shard is missing".into(),
            });
            continue;
        }
        let file = checkpoint.sources.len();
        let entries = checkpoint.add_file(Source::open(&path)?)?;
        file_of.insert(shard, file);
        found.push((file, entries));
    }
    let listed: HashMap<&str, &str> = weight_map
        .iter()
        .map(|(name, shard)| (name.as_str(), shard.as_str()))
        .collect();
    for (file, entries) in found {
        for entry in entries {
            // A tensor that another shard is listed for is that one's; one that is not listed is
            // still a tensor.
            let owner = listed
                .get(entry.info.name.as_str())
                .and_then(|shard| file_of.get(shard));
            if owner.is_some_and(|&owner| owner != file) {
                continue;
            }
            let at = checkpoint.entries.len();
            if checkpoint
                .by_name
                .insert(entry.info.name.clone(), at)
                .is_some()
            {
                faults.push(Fault {
                    place: entry.info.name.clone(),
                    message: "two shards hold it and the index lists neither".into(),
                });
            }
            checkpoint.entries.push(entry);
        }
    }
    for (name, shard) in &weight_map {
        if file_of.contains_key(shard.as_str()) && !checkpoint.by_name.contains_key(name) {
            faults.push(Fault {
                place: name.clone(),
                message: format!("expected in `{shard}`, but it is not there"),
            });
        }
    }
    if faults.is_empty() {
        return Ok(checkpoint);
    }
    Err(FormatError::Index {
        path: index.to_owned(),
        faults,
    })
}

/// The index's map of tensor to shard, every shard a plain file name.
fn read_weight_map(index: &Path) -> Result<Vec<(String, String)>> {
    let json = read_json(index)?;
    let mut faults = Vec::new();
    let mut weight_map = Vec::new();
    match json.get("weight_map").and_then(|map| map.as_object()) {
        None => faults.push(Fault {
            place: "weight_map".into(),
            message: "missing, expected an object of tensor names and file names".into(),
        }),
        Some(map) => {
            for (name, shard) in map {
                match shard.as_str().filter(|shard| is_plain_name(shard)) {
                    Some(shard) => weight_map.push((name.clone(), shard.to_owned())),
                    None => faults.push(Fault {
                        place: name.clone(),
                        message: format!(
                            "expected the name of a file beside the index, found `{}`",
                            crate::config::shown(shard)
                        ),
                    }),
                }
            }
        }
    }
    if faults.is_empty() {
        return Ok(weight_map);
    }
    Err(FormatError::Index {
        path: index.to_owned(),
        faults,
    })
}

/// One normal component and nothing else: no folder, no `..`, no root, no drive.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first = components.next();
    matches!(first, Some(std::path::Component::Normal(only)) if only == name)
        && components.next().is_none()
        && !name.contains(['/', '\\', ':'])
}
