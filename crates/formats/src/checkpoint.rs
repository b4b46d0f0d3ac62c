//! Tensors by name, from whatever files hold them: one safetensors or PyTorch file, or the shards of a Hugging Face folder.
//! Knows no model: what a name means, and whether one is missing, is the reader's business.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::Result;
use crate::dtype::{DType, decode_f32, decode_i64};
use crate::error::{Fault, FormatError};
use crate::files;
use crate::pyjson::read_json;
use crate::safetensors::{Header, SafetensorsFault};
use crate::source::Source;
use crate::suggest::nearest;
use crate::torch::TorchFile;

/// The files of a model folder, in transformers' order of preference; an index stands for its shards.
const MODEL_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::files`] holds it.
    pub file: usize,
}

impl TensorInfo {
    /// The number of values. The shape was checked when the file was opened, so it can be counted.
    pub fn numel(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        self.shape.iter().product()
    }
}

/// A tensor and where its values lie.
#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    /// Of the first value, in bytes from the start of its file.
    offset: u64,
    /// In elements; none if the values lie row-major without gaps.
    strides: Option<Vec<usize>>,
}

/// An open checkpoint. Reading takes `&self`, and several threads may read at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    sources: Vec<Source>,
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
    gathered: Mutex<Option<Gathered>>,
}

/// The name of a strided tensor, and its values in row-major order.
type Gathered = (String, Arc<[u8]>);

impl Checkpoint {
    /// Opens the weights of a Hugging Face model folder: `model.safetensors`, else its index and shards, else
    /// `pytorch_model.bin`, else its index and shards. Shards may not lie outside the folder.
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

    /// Opens one file: safetensors or PyTorch's, told by its content. Of a PyTorch file the state dict is taken: the value
    /// itself or the dict at `state_dict`, `model_state_dict`, `model`, `module`, `model_state` or `net` in it, also in one another,
    /// whichever holds the most tensors; else the only dict of tensors in it.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_source(Source::open(path)?)
    }

    /// A file in memory, told by its content.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Checkpoint> {
        Checkpoint::from_source(Source::from_bytes(name, bytes))
    }

    fn from_source(source: Source) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::empty(source.path());
        let file = checkpoint.add_file(source)?;
        for entry in file {
            checkpoint
                .by_name
                .insert(entry.info.name.clone(), checkpoint.entries.len());
            checkpoint.entries.push(entry);
        }
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
            gathered: Mutex::new(None),
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
                    offset: entry.offset,
                    strides: None,
                    info: TensorInfo {
                        name: entry.name,
                        dtype: entry.dtype,
                        shape: entry.shape,
                        file,
                    },
                });
                (source, entries.collect())
            }
            Kind::Torch => {
                let torch = TorchFile::from_source(source)?;
                let entries = torch.state_dict()?.into_iter().map(|tensor| Entry {
                    offset: tensor.offset,
                    strides: tensor.strides,
                    info: TensorInfo {
                        name: tensor.name,
                        dtype: tensor.dtype,
                        shape: tensor.shape,
                        file,
                    },
                });
                let entries = entries.collect();
                (torch.into_source(), entries)
            }
        };
        self.sources.push(source);
        self.files.push(path);
        Ok(entries)
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The text that safetensors files carry about themselves.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Every tensor, in the order of the files.
    pub fn infos(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.entries.iter().map(|entry| &entry.info)
    }

    /// What is known of one tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.entries[at].info)
    }

    /// Reads all values of a float tensor as f32 (exact from f16, bf16 and f32). `out` has the tensor's length.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let found = entry.info.numel();
        if out.len() != found {
            return Err(self.out_of_range(entry, 0, out.len()));
        }
        self.read_f32_range(name, 0, out)
    }

    /// Reads `out.len()` values of a float tensor as f32, from the value `start` in row-major order.
    pub fn read_f32_range(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let dtype = entry.info.dtype;
        if !dtype.is_float() {
            return Err(self.wrong_dtype(entry, "F32, F16, BF16 or F64"));
        }
        self.check_range(entry, start, out.len())?;
        if dtype == DType::F32 && entry.strides.is_none() && cfg!(target_endian = "little") {
            let offset = entry.offset + (start * 4) as u64;
            return self.sources[entry.info.file]
                .read_exact_at(bytemuck::cast_slice_mut(out), offset);
        }
        const BLOCK_VALUES: usize = 1 << 16;
        let mut at = start;
        for block in out.chunks_mut(BLOCK_VALUES) {
            let bytes = self.read_range(entry, at, block.len())?;
            decode_f32(dtype, &bytes, block);
            at += block.len();
        }
        Ok(())
    }

    /// Reads all values of a float tensor as f32.
    pub fn read_f32_vec(&self, name: &str) -> Result<Vec<f32>> {
        // The length is that of values that lie in the file (or of a small expanded tensor): see `TorchFile`.
        let mut values = vec![0.0; self.entry(name)?.info.numel()];
        self.read_f32(name, &mut values)?;
        Ok(values)
    }

    /// Reads all values of an integer or bool tensor.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let entry = self.entry(name)?;
        if !entry.info.dtype.is_integer() {
            return Err(self.wrong_dtype(entry, "an integer type"));
        }
        let bytes = self.read_range(entry, 0, entry.info.numel())?;
        Ok(decode_i64(entry.info.dtype, &bytes))
    }

    /// Reads all values of a tensor as the little-endian, row-major bytes they are stored as.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        self.read_range(entry, 0, entry.info.numel())
    }

    /// Reads `len` values of a tensor, from the value `start` in row-major order, as the little-endian bytes that they are
    /// stored as.
    pub fn read_bytes_range(&self, name: &str, start: usize, len: usize) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        self.check_range(entry, start, len)?;
        self.read_range(entry, start, len)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        match self.by_name.get(name) {
            Some(&at) => Ok(&self.entries[at]),
            None => Err(FormatError::MissingTensor {
                path: self.path.clone(),
                name: name.to_owned(),
                nearest: nearest(name, self.by_name.keys().map(String::as_str)).map(str::to_owned),
            }),
        }
    }

    fn wrong_dtype(&self, entry: &Entry, expected: &'static str) -> FormatError {
        FormatError::WrongDType {
            path: self.files[entry.info.file].clone(),
            name: entry.info.name.clone(),
            found: entry.info.dtype,
            expected,
        }
    }

    fn out_of_range(&self, entry: &Entry, start: usize, len: usize) -> FormatError {
        FormatError::OutOfRange {
            path: self.files[entry.info.file].clone(),
            name: entry.info.name.clone(),
            found: entry.info.numel(),
            start,
            end: start.saturating_add(len),
        }
    }

    fn check_range(&self, entry: &Entry, start: usize, len: usize) -> Result<()> {
        match start.checked_add(len) {
            Some(end) if end <= entry.info.numel() => Ok(()),
            _ => Err(self.out_of_range(entry, start, len)),
        }
    }

    /// The bytes of values `start..start + len` in row-major order; the range is inside the tensor.
    fn read_range(&self, entry: &Entry, start: usize, len: usize) -> Result<Vec<u8>> {
        let source = &self.sources[entry.info.file];
        let size = entry.info.dtype.size_bytes();
        let Some(strides) = &entry.strides else {
            let offset = entry.offset + (start * size) as u64;
            return source.read_vec(offset, (len * size) as u64);
        };
        if len == 0 {
            return Ok(Vec::new());
        }
        let values = self.row_major(entry, strides)?;
        let part = values[start * size..(start + len) * size].to_vec();
        if start + len == entry.info.numel() {
            // Readers go from front to back: nobody will want it again.
            *lock(&self.gathered) = None;
        }
        Ok(part)
    }

    /// All values of a strided tensor, put in row-major order. The last one is kept: a block of a transposed matrix spans
    /// nearly all of it, so that gathering block by block would read the whole of it for each.
    fn row_major(&self, entry: &Entry, strides: &[usize]) -> Result<Arc<[u8]>> {
        if let Some((name, values)) = &*lock(&self.gathered)
            && *name == entry.info.name
        {
            return Ok(values.clone());
        }
        let size = entry.info.dtype.size_bytes();
        let shape = &entry.info.shape;
        // No shape with a zero comes here; that every value lies inside the file was checked when it was opened.
        let last: usize = shape
            .iter()
            .zip(strides)
            .map(|(dimension, stride)| (dimension - 1) * stride)
            .sum();
        let bytes =
            self.sources[entry.info.file].read_vec(entry.offset, ((last + 1) * size) as u64)?;
        let count = entry.info.numel();
        let mut values = Vec::with_capacity(count * size);
        for position in Positions::new(shape, strides).take(count) {
            values.extend_from_slice(&bytes[position * size..][..size]);
        }
        let values: Arc<[u8]> = values.into();
        *lock(&self.gathered) = Some((entry.info.name.clone(), values.clone()));
        Ok(values)
    }
}

/// The kept tensor is replaced as a whole, so that a panic elsewhere cannot have left it half-made.
fn lock(gathered: &Mutex<Option<Gathered>>) -> std::sync::MutexGuard<'_, Option<Gathered>> {
    gathered
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Where the values of a strided tensor lie, in row-major order, in elements from its first value.
struct Positions<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    /// Of the next value; counted like the digits of a clock.
    index: Vec<usize>,
}

impl<'a> Positions<'a> {
    fn new(shape: &'a [usize], strides: &'a [usize]) -> Positions<'a> {
        Positions {
            shape,
            strides,
            index: vec![0; shape.len()],
        }
    }
}

impl Iterator for Positions<'_> {
    type Item = usize;

    /// Never ends: the caller takes as many as there are.
    fn next(&mut self) -> Option<usize> {
        let position = self
            .index
            .iter()
            .zip(self.strides)
            .map(|(i, stride)| i * stride)
            .sum();
        for (digit, &dimension) in self.index.iter_mut().zip(self.shape).rev() {
            *digit += 1;
            if *digit < dimension {
                break;
            }
            *digit = 0;
        }
        Some(position)
    }
}

enum Kind {
    Safetensors,
    Torch,
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
            // A tensor that another shard is listed for is that one's; one that is not listed is still a tensor.
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
