//! Merging: W + scaling·B·A written back as an ordinary Hugging Face directory, so that serving pays nothing for the
//! adapter (LoRA paper, section 4.1). Also how a fully trained model is saved.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use lowrank_engine::param::{PackedMatrix, transpose};
use lowrank_engine::{Matrix, Param};
use lowrank_formats::{
    Checkpoint, DType, TensorSpec, read_json, to_python_json, write_atomic, write_model,
};
use serde_json::{Value, json};

use crate::config::{ModelConfig, Task};
use crate::error::ModelError;
use crate::model::Model;
use crate::modules::{Layout, Linear, ModuleMut, ModuleRef, Table};
use crate::names::Names;

/// How a merged model is written.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// The type of every tensor; by default each keeps the type that it has in the base, and new ones are f32.
    pub dtype: Option<DType>,
    /// Bytes after which another file is begun.
    pub max_shard_bytes: u64,
    /// Label names by id, written to the config.
    pub labels: Option<Vec<String>>,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct MergeReport {
    /// Layers into which an adapter was merged.
    pub merged: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of the weights.
    pub bytes: u64,
}

/// One tensor of the merged model and where its values are.
struct Piece<'a> {
    spec: TensorSpec,
    source: Source<'a>,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Weight(&'a Linear),
    Vector(&'a Param),
    Table(&'a Table),
    Matrix(&'a Matrix),
}

impl Model {
    /// Writes the model with adapters merged into `dir`, which must exist: weights and `config.json`. `base` is the
    /// directory it was loaded from: its config is carried through and, unless a type is given, its tensor types are kept.
    /// Tokenizer files are the caller's to copy.
    pub fn write_merged(
        &self,
        base: &Path,
        dir: &Path,
        options: &MergeOptions,
    ) -> Result<MergeReport, ModelError> {
        if self.device.is_dry() {
            return Err(ModelError::State(
                "a dry model has no values to merge".to_string(),
            ));
        }
        let stored = match options.dtype {
            Some(_) => BTreeMap::new(),
            None => self.stored_types(&Checkpoint::open_dir(base)?)?,
        };
        let pieces = self.pieces(&stored, options);
        let specs: Vec<TensorSpec> = pieces.iter().map(|p| p.spec.clone()).collect();
        write_model(dir, &specs, options.max_shard_bytes, &mut |spec, out| {
            let piece = pieces
                .iter()
                .find(|p| p.spec.name == spec.name)
                .expect("every spec is a piece's");
            let values = self.merged_values(piece.source);
            if let Some(value) = values.iter().find(|v| !fits(**v, spec.dtype)) {
                let message = misfit(&spec.name, *value, spec.dtype);
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    message,
                ));
            }
            out.write_all(&encode(&values, spec.dtype))
        })?;
        let config = self.merged_config(read_json(&base.join("config.json"))?, options);
        write_atomic(
            &dir.join("config.json"),
            format!("{}\n", to_python_json(&config)).as_bytes(),
        )?;
        let merged = pieces
            .iter()
            .filter(|p| matches!(p.source, Source::Weight(l) if l.adapter.is_some()))
            .count();
        let bytes = specs.iter().filter_map(TensorSpec::byte_len).sum();
        Ok(MergeReport {
            merged,
            tensors: specs.len(),
            bytes,
        })
    }

    /// Folds every adapter into its weight in memory, so that each token costs what it costs without one. For running the
    /// model: the adapters' values stay among the trained ones, but nothing reads them any more. Returns the number of
    /// layers. Errors on the dry device.
    pub fn merge_adapters(&mut self) -> Result<usize, ModelError> {
        if self.device.is_dry() {
            return Err(ModelError::State(
                "a dry model has no values to merge".to_string(),
            ));
        }
        let mut merged = Vec::new();
        for module in self.modules() {
            if let ModuleRef::Linear(linear) = module
                && linear.adapter.is_some()
            {
                let rows = self.merged_weight(linear);
                let width = linear.in_features;
                let fill = |first: usize, block: &mut [f32]| {
                    block.copy_from_slice(&rows[first * width..][..block.len()]);
                    Ok::<(), ModelError>(())
                };
                let packed =
                    PackedMatrix::from_blocks(&self.device, linear.out_features, width, fill)?;
                merged.push(packed);
            }
        }
        let count = merged.len();
        let mut merged = merged.into_iter();
        for module in self.network.modules_mut() {
            if let ModuleMut::Linear(linear) = module
                && linear.adapter.take().is_some()
            {
                linear.weight = Matrix::Frozen(merged.next().expect("one for each adapter"));
            }
        }
        Ok(count)
    }

    /// The types in which a checkpoint stores this model's tensors, where they can be written again.
    fn stored_types(&self, checkpoint: &Checkpoint) -> Result<BTreeMap<String, DType>, ModelError> {
        let names = Names::read(checkpoint, self.family)?;
        let pieces = self.pieces(&BTreeMap::new(), &MergeOptions::default());
        let stored = pieces.into_iter().filter_map(|piece| {
            let dtype = checkpoint.info(names.get(&piece.spec.name)?)?.dtype;
            let is_kept = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
            is_kept.then_some((piece.spec.name, dtype))
        });
        Ok(stored.collect())
    }

    fn pieces(&self, stored: &BTreeMap<String, DType>, options: &MergeOptions) -> Vec<Piece<'_>> {
        let dtype_of = |name: &str| {
            let dtype = options.dtype.or(stored.get(name).copied());
            dtype.unwrap_or(DType::F32)
        };
        let mut pieces = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, source| {
            let dtype = dtype_of(&name);
            pieces.push(Piece {
                spec: TensorSpec { name, dtype, shape },
                source,
            });
        };
        for module in self.modules() {
            let path = module.path();
            match module {
                ModuleRef::Linear(m) => {
                    let shape = match m.layout {
                        Layout::Linear => vec![m.out_features, m.in_features],
                        Layout::Conv1d => vec![m.in_features, m.out_features],
                    };
                    add(format!("{path}.weight"), shape, Source::Weight(m));
                    if let Some(bias) = &m.bias {
                        add(
                            format!("{path}.bias"),
                            vec![m.out_features],
                            Source::Vector(bias),
                        );
                    }
                }
                ModuleRef::LayerNorm(m) => {
                    let width = m.weight.shape(&self.trainables)[1];
                    add(
                        format!("{path}.weight"),
                        vec![width],
                        Source::Vector(&m.weight),
                    );
                    add(format!("{path}.bias"), vec![width], Source::Vector(&m.bias));
                }
                ModuleRef::Embedding(m) => {
                    let shape = vec![m.num_embeddings, m.embedding_dim];
                    add(format!("{path}.weight"), shape, Source::Table(&m.table));
                }
                ModuleRef::Convolution(m) => {
                    let shape = vec![m.channels, m.channels, m.taps];
                    add(format!("{path}.weight"), shape, Source::Matrix(&m.weight));
                    let bias = Source::Vector(&m.bias);
                    add(format!("{path}.bias"), vec![m.channels], bias);
                }
                ModuleRef::Bias(m) => {
                    let width = m.value.shape(&self.trainables)[1];
                    add(path.to_string(), vec![width], Source::Vector(&m.value));
                }
            }
        }
        pieces
    }

    fn merged_values(&self, source: Source<'_>) -> Vec<f32> {
        match source {
            Source::Vector(param) => param.to_vec(&self.trainables),
            Source::Table(table) => table.to_rows(&self.trainables),
            Source::Matrix(matrix) => matrix.to_rows(&self.trainables),
            Source::Weight(linear) => {
                let weight = self.merged_weight(linear);
                match linear.layout {
                    Layout::Linear => weight,
                    Layout::Conv1d => transpose(&weight, linear.out_features, linear.in_features),
                }
            }
        }
    }

    /// W + scaling·B·A [out, in], the product summed in f64.
    fn merged_weight(&self, linear: &Linear) -> Vec<f32> {
        let mut weight = linear.weight.to_rows(&self.trainables);
        let Some(adapter) = linear.adapter else {
            return weight;
        };
        let (a, b) = (
            &self.trainables.get(adapter.a).value,
            &self.trainables.get(adapter.b).value,
        );
        let b = match adapter.blocks {
            None => Cow::Borrowed(b.data()),
            Some(blocks) => Cow::Owned(blocks.expand(b.data(), b.cols())),
        };
        let (rank, width) = (a.rows(), linear.in_features);
        let mut delta = vec![0.0f64; width];
        for (row, b_row) in weight.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
            delta.fill(0.0);
            for (&b, a_row) in b_row.iter().zip(a.data().chunks_exact(width)) {
                delta
                    .iter_mut()
                    .zip(a_row)
                    .for_each(|(d, &a)| *d += f64::from(b) * f64::from(a));
            }
            let scaling = f64::from(adapter.scaling);
            row.iter_mut()
                .zip(&delta)
                .for_each(|(w, d)| *w = (f64::from(*w) + scaling * d) as f32);
        }
        weight
    }

    fn merged_config(&self, mut config: Value, options: &MergeOptions) -> Value {
        // An adapter's table of tokens may have more rows than the base's.
        let rows = self.config.facts.vocab_size;
        let of_base = ModelConfig::from_value(Path::new("config.json"), config.clone());
        let is_other = of_base.is_ok_and(|base| base.facts.vocab_size != rows);
        let Some(object) = config.as_object_mut() else {
            return config;
        };
        if is_other {
            object.insert("vocab_size".to_string(), json!(rows));
        }
        object.insert("architectures".to_string(), json!([self.architecture()]));
        match self.task {
            Task::CausalLm => {
                set_dtype(object, options.dtype);
                return config;
            }
            Task::TokenClassification => object.remove("problem_type"),
            task => object.insert("problem_type".to_string(), json!(task.name())),
        };
        let labels = options
            .labels
            .clone()
            .unwrap_or_else(|| (0..self.num_labels).map(|i| format!("LABEL_{i}")).collect());
        let id2label: serde_json::Map<String, Value> = labels
            .iter()
            .enumerate()
            .map(|(i, l)| (i.to_string(), json!(l)))
            .collect();
        let label2id: serde_json::Map<String, Value> = labels
            .iter()
            .enumerate()
            .map(|(i, l)| (l.clone(), json!(i)))
            .collect();
        object.insert("id2label".to_string(), Value::Object(id2label));
        object.insert("label2id".to_string(), Value::Object(label2id));
        set_dtype(object, options.dtype);
        config
    }
}

/// Writes the type of the tensors into a config, under the key that it already has.
fn set_dtype(object: &mut serde_json::Map<String, Value>, dtype: Option<DType>) {
    let Some(dtype) = dtype else { return };
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    let key = if object.contains_key("dtype") {
        "dtype"
    } else {
        "torch_dtype"
    };
    object.insert(key.to_string(), json!(name));
}

/// What is wrong with a merged value that is not finite in `dtype`, and what helps.
fn misfit(name: &str, value: f32, dtype: DType) -> String {
    if value.is_finite() {
        let dtype = dtype.name();
        format!("`{name}` holds {value:e}, which {dtype} cannot; write --dtype f32 instead")
    } else {
        format!(
            "`{name}` would hold {value}: the adapter's values or its lora_alpha are too large for this base"
        )
    }
}

/// Whether a value stays finite in `dtype`.
fn fits(value: f32, dtype: DType) -> bool {
    match dtype {
        DType::F16 => f16::from_f32(value).is_finite(),
        DType::BF16 => bf16::from_f32(value).is_finite(),
        _ => value.is_finite(),
    }
}

/// Little-endian bytes of `values` in `dtype` (f32, f16 or bf16), rounded to nearest even.
fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
