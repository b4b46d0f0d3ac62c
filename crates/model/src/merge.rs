//! Merging: W + scaling·B·A written back as an ordinary Hugging Face directory, so that serving
//! pays nothing for the adapter (LoRA paper, section 4.1). Also how a fully trained model is saved.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_engine::Matrix;
use lowrank_engine::param::PackedMatrix;
use lowrank_formats::{
    Checkpoint, DType, TensorSpec, encode_f32, fits, read_model_config, to_python_json,
    write_atomic, write_model,
};
use serde_json::{Value, json};

use crate::adapters::{merged_table, merged_weight, whole_b};
use crate::config::Task;
use crate::error::ModelError;
use crate::model::{Model, ModelConfig};
use crate::modules::{Kind, Module, Parameter};

/// How a merged model is written.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// The type of every tensor; by default each keeps the type that it has in the base, and new
    /// ones are f32.
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

/// ΔW = scaling·B·A of one layer.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// The layer's path.
    pub path: String,
    /// [out, in].
    pub shape: [usize; 2],
    /// r.
    pub rank: usize,
    /// alpha / r, or alpha / √r.
    pub scaling: f64,
    /// A [r, in].
    pub a: Vec<f32>,
    /// B [out, r].
    pub b: Vec<f32>,
}

impl Model {
    /// Writes the model with adapters merged into `dir`, which must exist: weights and
    /// `config.json`. `base` is the directory or GGUF file it was loaded from: its config is
    /// carried through and, unless a type is given, its tensor types are kept. Tokenizer files are
    /// the caller's to copy.
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
        self.refuse_int8("a merged model")?;
        let stored = match options.dtype {
            Some(_) => BTreeMap::new(),
            None => self.stored_types(&Checkpoint::open_model(base)?)?,
        };
        let spec = |parameter: &Parameter| TensorSpec {
            name: parameter.name.clone(),
            dtype: (options.dtype.or(stored.get(&parameter.name).copied())).unwrap_or(DType::F32),
            shape: parameter.shape.clone(),
        };
        let mut specs: Vec<TensorSpec> = self.modules.parameters().map(spec).collect();
        let input = format!("{}.weight", self.config.family.naming.tokens);
        if let Some(head) = self.parted_head() {
            // One table was both ends; now they differ.
            let table = specs.iter().find(|spec| spec.name == input);
            specs.extend(table.cloned().map(|table| TensorSpec {
                name: format!("{}.weight", head.path),
                ..table
            }));
        }
        write_model(dir, &specs, options.max_shard_bytes, &mut |spec, out| {
            let values = self.merged_values(&spec.name);
            if let Some(value) = values.iter().find(|v| !fits(**v, spec.dtype)) {
                let message = misfit(&spec.name, *value, spec.dtype);
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    message,
                ));
            }
            out.write_all(&encode_f32(&values, spec.dtype))
        })?;
        let config = self.merged_config(read_model_config(base)?, options);
        write_atomic(
            &dir.join("config.json"),
            format!("{}\n", to_python_json(&config)).as_bytes(),
        )?;
        let bytes = specs.iter().filter_map(TensorSpec::byte_len).sum();
        Ok(MergeReport {
            merged: (self.modules.iter().chain(self.parted_head()))
                .filter(|module| module.adapter.is_some())
                .count(),
            tensors: specs.len(),
            bytes,
        })
    }

    /// Folds every adapter into its weight in memory, so that each token costs what it costs
    /// without one. For running the model: the adapters' values stay among the trained ones, but
    /// nothing reads them any more. Returns the number of layers. Errors on the dry device.
    pub fn merge_adapters(&mut self) -> Result<usize, ModelError> {
        if self.device.is_dry() {
            return Err(ModelError::State(
                "a dry model has no values to merge".to_string(),
            ));
        }
        self.refuse_int8("merging")?;
        let mut count = 0;
        for module in self.modules.iter_mut() {
            let Some([out, inp]) = module.features().filter(|_| module.adapter.is_some()) else {
                continue;
            };
            let rows = merged_weight(module, &self.trainables);
            let packed = PackedMatrix::new(&self.device, out, inp, &rows);
            module.adapter = None;
            module.parameters[0].set_matrix(Matrix::Frozen(packed));
            count += 1;
        }
        Ok(count)
    }

    /// The low-rank terms of the attached adapter on linear layers, in PEFT's form, in the order of
    /// the layers. Panics on the dry device.
    pub fn low_rank_terms(&self) -> Vec<LowRank> {
        let adapted = self.modules.iter().filter_map(|module| {
            let (adapter, shape) = (module.adapter?, module.features()?);
            let a = &self.trainables.get(adapter.a).value;
            Some(LowRank {
                path: module.path.clone(),
                shape,
                rank: a.rows(),
                scaling: f64::from(adapter.scaling),
                a: a.read(),
                b: whole_b(&adapter, &self.trainables),
            })
        });
        adapted.collect()
    }

    /// The parameters that are not as the base has them, by module: trained ones, and weights with
    /// an adapter. What is written for them is [`Model::changed_values`]. Of a table that is both
    /// ends of a language model it is the input's end; see [`Model::ends_differ`].
    pub fn changed(&self) -> Vec<(&Module, &Parameter)> {
        let is_changed = |module: &Module, parameter: &Parameter| {
            let has_terms = module.adapter.is_some() || module.rows.is_some();
            (has_terms && parameter.name == module.parameters[0].name)
                || parameter.trainable().is_some()
        };
        let all = self.modules.iter().flat_map(|module| {
            let parameters = module.parameters.iter();
            parameters.map(move |parameter| (module, parameter))
        });
        all.filter(|(module, parameter)| is_changed(module, parameter))
            .collect()
    }

    /// Whether a table that is both ends of a language model has become two by what is trained.
    pub fn ends_differ(&self) -> bool {
        self.parted_head().is_some()
    }

    /// The values of a parameter as a checkpoint has them, with the adapter in them. Panics if the
    /// model has no such parameter, and on the dry device.
    pub fn changed_values(&self, name: &str) -> Vec<f32> {
        self.merged_values(name)
    }

    /// The types in which a checkpoint stores this model's tensors, where they can be written
    /// again.
    fn stored_types(&self, checkpoint: &Checkpoint) -> Result<BTreeMap<String, DType>, ModelError> {
        let names = self.config.family.names_in(checkpoint)?;
        let stored = self.modules.parameters().filter_map(|parameter| {
            let dtype = checkpoint.info(names.get(&parameter.name)?)?.dtype;
            let is_kept = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
            is_kept.then(|| (parameter.name.clone(), dtype))
        });
        Ok(stored.collect())
    }

    /// The values of a parameter as they are written.
    fn merged_values(&self, name: &str) -> Vec<f32> {
        let input = self.config.family.naming.tokens;
        if let Some(head) = self.parted_head()
            && name.strip_suffix(".weight") == Some(&head.path)
        {
            let mut tables = self.modules.iter();
            let table = tables.find(|module| module.path == input);
            let table = table.expect("the head is an end of it");
            return merged_table(table, head, &self.trainables);
        }
        let has_it = |module: &&Module| module.parameters.iter().any(|p| p.name == name);
        let module = self.modules.iter().find(has_it);
        let module = module.expect("every spec is a parameter's");
        let weight = &module.parameters[0];
        if module.kind == Kind::Embedding && (module.rows.is_some() || module.adapter.is_some()) {
            return merged_table(module, module, &self.trainables);
        }
        if module.adapter.is_some() && weight.name == name {
            return weight.as_stored(merged_weight(module, &self.trainables));
        }
        let parameter = module.parameters.iter().find(|p| p.name == name);
        let parameter = parameter.expect("the module has it");
        parameter.to_vec(&self.trainables)
    }

    /// The output's end of a table that is both, where they differ.
    fn parted_head(&self) -> Option<&Module> {
        self.modules.parted_head(self.config.family.naming.tokens)
    }

    fn merged_config(&self, mut config: Value, options: &MergeOptions) -> Value {
        // An adapter's table of tokens may have more rows than the base's.
        let rows = self.config.facts.vocab_size;
        let of_base = ModelConfig::from_value(Path::new("config.json"), config.clone());
        let is_other = of_base.is_ok_and(|base| base.facts.vocab_size != rows);
        let Some(object) = config.as_object_mut() else {
            return config;
        };
        // What is written is decoded.
        object.remove("quantization_config");
        if is_other {
            object.insert("vocab_size".to_string(), json!(rows));
        }
        if self.parted_head().is_some() {
            object.insert("tie_word_embeddings".to_string(), json!(false));
        }
        object.insert("architectures".to_string(), json!([self.architecture()]));
        match self.task {
            Task::CausalLm => {
                set_dtype(object, options.dtype);
                return config;
            }
            Task::TokenClassification => object.remove("problem_type"),
            task => object.insert("problem_type".to_string(), json!(task.problem_type())),
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
