//! Turns frozen values into trained ones: LoRA as PEFT means it, or everything. A trained value's name is its key on disk.

use std::collections::BTreeSet;

use lowrank_engine::ops::linear::Adapter;
use lowrank_engine::param::transpose;
use lowrank_engine::{Device, Matrix, Param, Trainables};
use lowrank_formats::peft::{Bias, KEY_PREFIX, LoraConfig, Matcher, TargetModules, TaskType};

use crate::config::Task;
use crate::error::ModelError;
use crate::loader::{LM_HEAD, name_hash};
use crate::lora::{HEAD_NAMES, Origin, Resolved, initial_values, resolve};
use crate::model::Model;
use crate::modules::{Convolution, Layout, Linear, ModuleMut, ModuleRef, Table};
use crate::parts::{Parts, Piece};

/// What a model trains.
#[derive(Debug, Clone)]
pub enum TrainMode {
    /// Nothing.
    Frozen,
    /// Adapters and what goes with them, under this configuration.
    Lora(Box<LoraConfig>),
    /// Every value: full fine-tuning.
    Full,
}

/// One adapted layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedModule {
    /// The layer's path.
    pub path: String,
    /// [out, in].
    pub shape: [usize; 2],
    /// r.
    pub rank: usize,
    /// alpha.
    pub alpha: f64,
    /// alpha / r, or alpha / √r.
    pub scaling: f64,
    /// Values of A and B.
    pub parameters: u64,
}

/// One module that is trained whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedModule {
    /// The module's path.
    pub path: String,
    /// Its values.
    pub parameters: u64,
}

/// What is trained, layer by layer.
#[derive(Debug, Clone, Default)]
pub struct AdapterReport {
    /// Adapted layers.
    pub modules: Vec<AdaptedModule>,
    /// Modules trained whole (`modules_to_save`, or all of them in full fine-tuning).
    pub saved: Vec<SavedModule>,
    /// Biases trained beside (`bias` all or lora_only).
    pub bias_parameters: u64,
    /// What a user should know: choices made for them.
    pub notes: Vec<String>,
}

impl AdapterReport {
    /// Values of all A and B.
    pub fn adapter_parameters(&self) -> u64 {
        self.modules.iter().map(|m| m.parameters).sum()
    }

    /// Values of modules trained whole.
    pub fn saved_parameters(&self) -> u64 {
        self.saved.iter().map(|m| m.parameters).sum()
    }
}

impl Model {
    /// Attaches fresh adapters. Each A is drawn from `seed` and its own name, so that adapting one more layer changes no
    /// other. Completes the configuration as PEFT would (default targets, the head in `modules_to_save`) and keeps it.
    /// Errors: a pattern that matches nothing, a rank above the matrix's size, an option that is not supported.
    pub fn attach_lora(
        &mut self,
        config: &LoraConfig,
        seed: u64,
    ) -> Result<&AdapterReport, ModelError> {
        let mut config = config.clone();
        let mut notes = Vec::new();
        self.complete(&mut config)?;
        let parts = Parts::take(&mut config, self.family)?;
        if config.task_type.is_none() {
            config.task_type = Some(self.task.peft_type());
        }
        if config.modules_to_save.is_none() {
            let modules = self.modules();
            let has = |name: &str| {
                modules
                    .iter()
                    .any(|m| m.path().split('.').any(|p| p == name))
            };
            for name in self.family.default_saved.iter().filter(|name| has(name)) {
                add_name(&mut config.modules_to_save, name);
                notes.push(format!("`{name}` is trained and saved too"));
            }
        }
        for path in self.new_poolers(&config) {
            // A new pooler that were neither trained nor saved would be another one at each load.
            add_name(&mut config.modules_to_save, "pooler");
            notes.push(format!(
                "`{path}` is new, so `pooler` is trained and saved too"
            ));
        }
        if self.task != Task::CausalLm {
            HEAD_NAMES
                .iter()
                .for_each(|name| add_name(&mut config.modules_to_save, name));
        }
        // As PEFT does, with a warning: the file says how the adapted weights stand in theirs.
        config.fan_in_fan_out = self.is_conv1d(&config)?;
        self.attach(config, parts, (seed, Origin::New), notes)?;
        Ok(&self.report)
    }

    /// Attaches the modules that an existing adapter's configuration names; their values are still to be set.
    pub(crate) fn attach_existing(&mut self, config: &LoraConfig) -> Result<(), ModelError> {
        let mut config = config.clone();
        self.complete(&mut config).map_err(|error| match error {
            ModelError::AdapterConfig(faults) => ModelError::AdapterUnsupported(faults),
            other => other,
        })?;
        if matches!(
            config.task_type,
            Some(TaskType::SequenceClassification | TaskType::TokenClassification)
        ) {
            HEAD_NAMES
                .iter()
                .for_each(|name| add_name(&mut config.modules_to_save, name));
        }
        let note = |path: String| {
            format!(
                "`{path}` is neither in the checkpoint nor in the adapter: its values are new, results will differ"
            )
        };
        let notes = self.new_poolers(&config).into_iter().map(note).collect();
        self.attach(config, None, (0, Origin::File), notes)
    }

    fn attach(
        &mut self,
        mut config: LoraConfig,
        parts: Option<Parts>,
        (seed, origin): (u64, Origin),
        notes: Vec<String>,
    ) -> Result<(), ModelError> {
        if !matches!(self.mode, TrainMode::Frozen) {
            return Err(ModelError::State(
                "this model is already being trained: load it anew".to_string(),
            ));
        }
        let Resolved { targets, saved } = resolve(&config, &self.modules(), origin, parts)?;
        if matches!(config.target_modules, Some(TargetModules::AllLinear)) {
            // As PEFT does: the file names the layers, so that it means the same in any version.
            config.target_modules = Some(TargetModules::List(targets.iter().cloned().collect()));
        }
        let mut attach = Attach {
            device: self.device.clone(),
            config: &config,
            matcher: Matcher::new(&config)?,
            parts,
            seed,
            targets: &targets,
            saved: &saved,
            trainables: &mut self.trainables,
            report: AdapterReport {
                notes,
                ..AdapterReport::default()
            },
        };
        for module in self.network.modules_mut() {
            attach.module(module)?;
        }
        self.report = attach.report;
        self.mode = TrainMode::Lora(Box::new(config));
        Ok(())
    }

    /// Makes every value trainable: full fine-tuning, the baseline.
    pub fn train_all(&mut self) -> Result<&AdapterReport, ModelError> {
        if !matches!(self.mode, TrainMode::Frozen) {
            return Err(ModelError::State(
                "this model is already being trained: load it anew".to_string(),
            ));
        }
        let (device, trainables) = (self.device.clone(), &mut self.trainables);
        let mut whole = Whole {
            device: &device,
            trainables,
            prefix: "",
        };
        let mut report = AdapterReport::default();
        for module in self.network.modules_mut() {
            let path = module.as_ref().path().to_string();
            report.saved.push(SavedModule {
                path,
                parameters: whole.module(module),
            });
        }
        self.report = report;
        self.mode = TrainMode::Full;
        Ok(&self.report)
    }

    /// Refuses what is not supported and fills in the targets.
    fn complete(&self, config: &mut LoraConfig) -> Result<(), ModelError> {
        let unsupported = config.unsupported_fields();
        if !unsupported.is_empty() {
            return Err(ModelError::AdapterConfig(
                unsupported.iter().map(ToString::to_string).collect(),
            ));
        }
        if config.target_modules.is_none() {
            let names: Vec<String> = self
                .default_targets()
                .iter()
                .map(ToString::to_string)
                .collect();
            config.target_modules = Some(TargetModules::List(names));
        }
        Ok(())
    }

    /// Whether the first target's weight is stored as [in, out].
    fn is_conv1d(&self, config: &LoraConfig) -> Result<bool, ModelError> {
        let matcher = Matcher::new(config)?;
        for module in self.modules() {
            if let ModuleRef::Linear(linear) = module
                && matcher.is_target(&linear.path)?
            {
                return Ok(linear.layout == Layout::Conv1d);
            }
        }
        Ok(false)
    }

    /// Poolers that the checkpoint lacks and the configuration does not save.
    fn new_poolers(&self, config: &LoraConfig) -> Vec<String> {
        let saved = config
            .modules_to_save
            .iter()
            .flatten()
            .any(|name| name.contains("pooler"));
        let is_new = |module: &ModuleRef<'_>| match module {
            ModuleRef::Linear(linear) if linear.is_new && linear.path.contains("pooler") => {
                Some(linear.path.clone())
            }
            ModuleRef::Linear(_)
            | ModuleRef::LayerNorm(_)
            | ModuleRef::Embedding(_)
            | ModuleRef::Convolution(_)
            | ModuleRef::Bias(_) => None,
        };
        if saved {
            Vec::new()
        } else {
            self.modules().iter().filter_map(is_new).collect()
        }
    }
}

fn add_name(names: &mut Option<Vec<String>>, name: &str) {
    let names = names.get_or_insert_default();
    if !names.iter().any(|n| n == name) {
        names.push(name.to_string());
    }
}

/// Makes values trainable whole.
struct Whole<'a> {
    device: &'a Device,
    trainables: &'a mut Trainables,
    prefix: &'static str,
}

impl Whole<'_> {
    /// Returns the number of values.
    fn module(&mut self, module: ModuleMut<'_>) -> u64 {
        let before = self.trainables.count();
        match module {
            ModuleMut::Linear(linear) => {
                let path = linear.path.clone();
                self.weight(&mut linear.weight, &format!("{path}.weight"), linear.layout);
                if let Some(bias) = &mut linear.bias {
                    self.param(bias, &format!("{path}.bias"), false);
                }
            }
            ModuleMut::LayerNorm(norm) => {
                self.param(&mut norm.weight, &format!("{}.weight", norm.path), false);
                self.param(&mut norm.bias, &format!("{}.bias", norm.path), false);
            }
            ModuleMut::Embedding(embedding) => {
                let name = format!("{}.weight", embedding.path);
                match &mut embedding.table {
                    Table::Rows(param) => self.param(param, &name, true),
                    Table::Head(matrix) => self.weight(matrix, &name, Layout::Linear),
                }
            }
            ModuleMut::Convolution(conv) => {
                let path = conv.path.clone();
                self.convolution(conv, &format!("{path}.weight"));
                self.param(&mut conv.bias, &format!("{path}.bias"), false);
            }
            ModuleMut::Bias(bias) => {
                let name = bias.path.clone();
                self.param(&mut bias.value, &name, false);
            }
        }
        self.trainables.count() - before
    }

    fn convolution(&mut self, conv: &mut Convolution, name: &str) {
        let Matrix::Frozen(packed) = &conv.weight else {
            return;
        };
        let values = if self.device.is_dry() {
            Vec::new()
        } else {
            packed.to_rows()
        };
        let name = format!("{}{name}", self.prefix);
        let shape = [conv.channels, conv.channels, conv.taps];
        conv.weight = Matrix::Trainable(self.trainables.add(self.device, name, &shape, &values));
    }

    fn weight(&mut self, weight: &mut Matrix, name: &str, layout: Layout) {
        let Matrix::Frozen(packed) = &*weight else {
            return;
        };
        let (out, inp) = (packed.out_features(), packed.in_features());
        let mut values = if self.device.is_dry() {
            Vec::new()
        } else {
            packed.to_rows()
        };
        let name = format!("{}{name}", self.prefix);
        *weight = match layout {
            Layout::Linear => {
                Matrix::Trainable(self.trainables.add(self.device, name, &[out, inp], &values))
            }
            Layout::Conv1d => {
                if !self.device.is_dry() {
                    values = transpose(&values, out, inp);
                }
                let id = self.trainables.add(self.device, name, &[inp, out], &values);
                Matrix::TrainableConv1d(id)
            }
        };
    }

    fn param(&mut self, param: &mut Param, name: &str, table: bool) {
        let Param::Frozen(frozen) = &*param else {
            return;
        };
        let [rows, cols] = frozen.shape();
        let shape = if table { vec![rows, cols] } else { vec![cols] };
        let values = if self.device.is_dry() {
            Vec::new()
        } else {
            frozen.to_vec()
        };
        let id = self.trainables.add(
            self.device,
            format!("{}{name}", self.prefix),
            &shape,
            &values,
        );
        *param = Param::Trainable(id);
    }
}

/// Attaches one configuration, module by module.
struct Attach<'a> {
    device: Device,
    config: &'a LoraConfig,
    matcher: Matcher,
    parts: Option<Parts>,
    seed: u64,
    targets: &'a BTreeSet<String>,
    saved: &'a BTreeSet<String>,
    trainables: &'a mut Trainables,
    report: AdapterReport,
}

impl Attach<'_> {
    fn module(&mut self, module: ModuleMut<'_>) -> Result<(), ModelError> {
        let path = module.as_ref().path().to_string();
        if self.saved.contains(&path) {
            self.check_shared(&module)?;
            let mut whole = Whole {
                device: &self.device,
                trainables: self.trainables,
                prefix: KEY_PREFIX,
            };
            let parameters = whole.module(module);
            self.report.saved.push(SavedModule { path, parameters });
            return Ok(());
        }
        let all = self.config.bias == Bias::All;
        match module {
            ModuleMut::Linear(linear) => {
                let adapted = self.targets.contains(&path);
                if adapted {
                    self.adapt(linear)?;
                }
                if all || (adapted && self.config.bias == Bias::LoraOnly) {
                    let layer = if adapted { ".base_layer" } else { "" };
                    if let Some(bias) = &mut linear.bias {
                        self.bias(bias, &format!("{path}{layer}.bias"));
                    }
                }
            }
            ModuleMut::LayerNorm(norm) if all => self.bias(&mut norm.bias, &format!("{path}.bias")),
            ModuleMut::Convolution(conv) if all => {
                self.bias(&mut conv.bias, &format!("{path}.bias"));
            }
            // PEFT trains what is named `bias`; DeBERTa's `q_bias` and `v_bias` are not.
            ModuleMut::LayerNorm(_)
            | ModuleMut::Embedding(_)
            | ModuleMut::Convolution(_)
            | ModuleMut::Bias(_) => {}
        }
        Ok(())
    }

    /// A table that is input and output at once cannot be trained beside adapters: PEFT would train one of two copies.
    fn check_shared(&self, module: &ModuleMut<'_>) -> Result<(), ModelError> {
        let tied = match module.as_ref() {
            ModuleRef::Embedding(table) => {
                matches!(table.table, Table::Head(_)) && table.path != LM_HEAD
            }
            ModuleRef::Linear(_)
            | ModuleRef::LayerNorm(_)
            | ModuleRef::Convolution(_)
            | ModuleRef::Bias(_) => false,
        };
        if !tied {
            return Ok(());
        }
        let path = module.as_ref().path();
        Err(ModelError::Pattern {
            field: "modules_to_save",
            faults: vec![format!(
                "`{path}` is the output head too (`tie_word_embeddings`); only full fine-tuning trains it"
            )],
        })
    }

    fn bias(&mut self, bias: &mut Param, name: &str) {
        let before = self.trainables.count();
        Whole {
            device: &self.device,
            trainables: self.trainables,
            prefix: KEY_PREFIX,
        }
        .param(bias, name, false);
        self.report.bias_parameters += self.trainables.count() - before;
    }

    fn adapt(&mut self, linear: &mut Linear) -> Result<(), ModelError> {
        let path = linear.path.clone();
        let shape @ [out, inp] = [linear.out_features, linear.in_features];
        let (rank, alpha) = (self.matcher.rank(&path)?, self.matcher.alpha(&path)?);
        let scaling = self.matcher.scaling(&path)?;
        let parts = self.parts.filter(|parts| parts.are_of(&path));
        let pieces = match parts {
            None => vec![Piece {
                path: path.clone(),
                shape,
                rank,
                alpha,
            }],
            Some(parts) => parts.pieces(&path, shape, rank, alpha),
        };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        if !self.device.is_dry() {
            for piece in &pieces {
                let init = &self.config.init_lora_weights;
                let (its_a, its_b) =
                    initial_values(init, self.seed, &piece.path, piece.shape, piece.rank)?;
                a.extend(its_a);
                b.extend(its_b);
            }
        }
        let stored_b = [pieces.iter().map(|p| p.shape[0]).sum(), pieces[0].rank];
        let key = |which: &str| format!("{KEY_PREFIX}{path}.lora_{which}.weight");
        let (device, trainables) = (&self.device, &mut *self.trainables);
        linear.adapter = Some(Adapter {
            a: trainables.add(device, key("A"), &[rank, inp], &a),
            b: trainables.add(device, key("B"), &stored_b, &b),
            blocks: parts.map(|parts| parts.blocks),
            scaling: scaling as f32,
            dropout: self.config.lora_dropout as f32,
            site: (name_hash(&path) >> 32) as u32 | 0x8000_0000,
        });
        debug_assert!(parts.is_some() || stored_b == [out, rank]);
        for Piece {
            path,
            shape,
            rank,
            alpha,
        } in pieces
        {
            self.report.modules.push(AdaptedModule {
                path,
                shape,
                rank,
                alpha,
                scaling,
                parameters: (rank * (shape[0] + shape[1])) as u64,
            });
        }
        Ok(())
    }
}
