//! Adapters on disk, of any method: what is saved is exactly what is trained, checked by reading it
//! back.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_engine::{Trainable, TrainableId};
use lowrank_formats::files;
use lowrank_formats::peft::{
    ADAPTER_WEIGHTS, AdapterConfig, AdapterFile, AdapterTensor, KEY_PREFIX, ParameterKind,
    parse_key, write_adapter,
};

use crate::adapters::HEAD_NAMES;
use crate::adapters::lora::file_forms;
use crate::error::ModelError;
use crate::model::Model;
use crate::trained::{AdapterReport, TrainMode};

/// A trained value as it stands in an adapter's file.
struct SavedTensor<'a> {
    name: &'a str,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Model {
    /// Attaches the adapter in `dir`: `adapter_config.json` beside `adapter_model.safetensors` or
    /// `.bin`. Errors: a configuration that does not fit this model, tensors that are missing,
    /// unexpected, of another shape or not finite (all of them listed).
    pub fn load_adapter(&mut self, dir: &Path) -> Result<&AdapterReport, ModelError> {
        let config = AdapterConfig::read(dir)?;
        let file = config.read_tensors(dir)?;
        self.attach_tensors(&config, file)
    }

    /// Attaches an adapter that is in memory, such as one read from a loralib checkpoint.
    pub fn attach_tensors(
        &mut self,
        config: &AdapterConfig,
        file: AdapterFile,
    ) -> Result<&AdapterReport, ModelError> {
        match config {
            AdapterConfig::Lora(config) => self.attach_existing(config)?,
            AdapterConfig::BitFit(config) => self.attach_biases(config.clone(), Vec::new())?,
        }
        let base = config.base_model().map(str::to_owned);
        self.report.notes.extend_from_slice(file.notes());
        let file = self.with_own_paths(file);
        self.set_adapter_values(file, base)?;
        Ok(&self.report)
    }

    /// The adapter under the paths of this model's modules, where all of its keys have something
    /// before them (`model.`), or lack the family's prefix, as those of an adapter of the bare body
    /// do.
    fn with_own_paths(&mut self, file: AdapterFile) -> AdapterFile {
        let adapted = file.iter().find_map(|(key, _)| match parse_key(key)? {
            (path, ParameterKind::LoraA) => Some(path.to_owned()),
            _ => None,
        });
        let Some(adapted) = adapted else { return file };
        let is_path = |path: &String| self.modules.iter().any(|module| module.path == *path);
        if is_path(&adapted) {
            return file;
        }
        let bare = format!("{}{adapted}", self.config.family.naming.prefix);
        if is_path(&bare) {
            let prefix = self.config.family.naming.prefix;
            let is_head = |path: &str| {
                let first = path.split('.').next().unwrap_or(path);
                HEAD_NAMES.contains(&first)
            };
            let note = format!("keys of the adapter lacked `{prefix}`: it is one of the bare body");
            self.report.notes.push(note);
            return file.map_keys(|key| match key.strip_prefix(KEY_PREFIX) {
                Some(path) if !is_head(path) => format!("{KEY_PREFIX}{prefix}{path}"),
                Some(_) | None => key.to_owned(),
            });
        }
        let before = self.modules.iter().find_map(|module| {
            let before = adapted.strip_suffix(module.path.as_str())?;
            before.ends_with('.').then(|| before.to_owned())
        });
        let Some(before) = before else { return file };
        let note = format!("left out of the adapter's keys: `{before}`");
        self.report.notes.push(note);
        file.map_keys(|key| match key.strip_prefix(KEY_PREFIX) {
            Some(path) => format!("{KEY_PREFIX}{}", path.strip_prefix(&before).unwrap_or(path)),
            None => key.to_owned(),
        })
    }

    fn set_adapter_values(
        &mut self,
        file: AdapterFile,
        base: Option<String>,
    ) -> Result<(), ModelError> {
        let is_whole_model = file.is_whole_model();
        let mut tensors: BTreeMap<String, AdapterTensor> = file.into_iter().collect();
        // With `bias` all, PEFT writes its wrappers' copies of the head's bias too; nothing reads
        // them.
        tensors.retain(|key, _| {
            !key.contains(".original_module.") && !key.contains(".modules_to_save.")
        });
        let mut faults = Vec::new();
        let forms = file_forms(&self.modules);
        let ids: Vec<_> = self.trainables.iter().map(|(id, _)| id).collect();
        for id in ids {
            let trainable = self.trainables.get_mut(id);
            let (name, kept) = (&trainable.name, &trainable.shape);
            let form = forms.get(&id);
            let shape = form.map_or_else(|| kept.clone(), |f| f.shape([kept[0], kept[1]]).to_vec());
            let Some(tensor) = tensors.remove(name) else {
                faults.push(format!("{name}: expected {shape:?}, not in the adapter"));
                continue;
            };
            if tensor.shape != shape {
                faults.push(format!(
                    "{name}: expected {shape:?}, found {:?}",
                    tensor.shape
                ));
            } else if let Some(at) = tensor.data.iter().position(|v| !v.is_finite()) {
                faults.push(format!(
                    "{name}: value {at} is {}, expected a finite number",
                    tensor.data[at]
                ));
            } else {
                let kept = form.map(|form| form.kept(&tensor.data, [shape[0], shape[1]]));
                trainable
                    .value
                    .write(kept.as_deref().unwrap_or(&tensor.data));
            }
        }
        let unexpected = |(key, tensor): (&String, &AdapterTensor)| {
            format!("{key}: found {:?}, which nothing here takes", tensor.shape)
        };
        if is_whole_model && faults.is_empty() {
            // An A or a B is never one of the base's.
            let before = tensors.len();
            tensors
                .retain(|key, _| !matches!(parse_key(key), None | Some((_, ParameterKind::Full))));
            let left_out = before - tensors.len();
            if left_out > 0 {
                let note = format!(
                    "in the adapter's file, not used: {left_out} tensors of its base model"
                );
                self.report.notes.push(note);
            }
        }
        faults.extend(tensors.iter().map(unexpected));
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ModelError::AdapterFit { faults, base })
        }
    }

    /// Writes the adapter into `dir` in the form of its method, LoRA's in PEFT's, reads it back and
    /// compares. `base` is what the file names as its base model. Returns the bytes of the tensor
    /// file. Errors if nothing is adapted, or if writing fails.
    pub fn save_adapter(&self, dir: &Path, base: Option<&str>) -> Result<u64, ModelError> {
        let TrainMode::Adapter(config) = &self.mode else {
            return Err(ModelError::State("there is no adapter to save".to_string()));
        };
        let mut config = config.clone();
        if let Some(base) = base {
            config.set_base_model(base);
        }
        let saved = self.saved_tensors();
        let tensors: Vec<(&str, &[usize], &[f32])> = saved
            .iter()
            .map(|t| (t.name, t.shape.as_slice(), t.values.as_ref()))
            .collect();
        write_adapter(dir, &config, &tensors)?;
        self.check_saved(&config.read_tensors(dir)?, dir, &saved)?;
        Ok(files::size(&dir.join(ADAPTER_WEIGHTS))?)
    }

    /// The names and shapes of an adapter's tensors in its file, in the order of the trained
    /// values. They are the trained values' own, but that of parts of a fused layer: PEFT's form
    /// has the zeros between the blocks too.
    pub fn saved_shapes(&self) -> Vec<(&str, Vec<usize>)> {
        let forms = file_forms(&self.modules);
        let shape = |id: &TrainableId, t: &Trainable| match forms.get(id) {
            None => t.shape.clone(),
            Some(form) => form.shape([t.shape[0], t.shape[1]]).to_vec(),
        };
        let trained = self.trainables.iter();
        trained
            .map(|(id, t)| (t.name.as_str(), shape(&id, t)))
            .collect()
    }

    /// Numbers of a trained value, itself or its gradient, as a file of it holds them.
    pub fn as_saved(&self, id: TrainableId, kept: Vec<f32>) -> Vec<f32> {
        let value = &self.trainables.get(id).value;
        match file_forms(&self.modules).get(&id) {
            None => kept,
            Some(form) => form.values(&kept, [value.rows(), value.cols()]),
        }
    }

    fn saved_tensors(&self) -> Vec<SavedTensor<'_>> {
        let forms = file_forms(&self.modules);
        let shapes = self.saved_shapes().into_iter();
        let all = shapes.zip(self.trainables.iter());
        all.map(|((name, shape), (id, t))| SavedTensor {
            name,
            shape,
            values: match forms.get(&id) {
                None => t.value.read(),
                Some(form) => form.values(&t.value.read(), [t.value.rows(), t.value.cols()]),
            },
        })
        .collect()
    }

    /// set(saved) = set(trained), value by value.
    fn check_saved(
        &self,
        file: &AdapterFile,
        dir: &Path,
        saved: &[SavedTensor<'_>],
    ) -> Result<(), ModelError> {
        let same = |a: &[f32], b: &[f32]| {
            a.iter()
                .map(|v| v.to_bits())
                .eq(b.iter().map(|v| v.to_bits()))
        };
        let trained = |(key, tensor): &(&str, &AdapterTensor)| {
            let found = saved.iter().find(|t| t.name == *key);
            found.is_some_and(|t| t.shape == tensor.shape && same(&t.values, &tensor.data))
        };
        let equal = file.iter().filter(trained).count();
        if equal == self.trainables.len() && equal == file.len() {
            return Ok(());
        }
        Err(ModelError::State(format!(
            "`{}`: read back {equal} of {} trained tensors as they were written; the disk may be at fault",
            dir.display(),
            self.trainables.len()
        )))
    }
}
