//! Turns frozen values into trained ones: LoRA as PEFT means it, or everything. A trained value's name is its key on disk.

use std::collections::BTreeSet;

use lowrank_engine::ops::linear::Adapter;
use lowrank_engine::{Device, Site, Trainables};
use lowrank_formats::peft::{Bias, KEY_PREFIX, LoraConfig, Matcher, TargetModules, TaskType};

use crate::adapters::lora::{HEAD_NAMES, Origin, Resolved, initial_values, resolve};
use crate::adapters::parts::{Parts, Piece};
use crate::config::Task;
use crate::error::ModelError;
use crate::families::LM_HEAD;
use crate::model::Model;
use crate::modules::{Kind, Module, Parameter, name_hash};
use crate::trained::{AdaptedModule, AdapterReport, SavedModule, TrainMode};

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
        let parts = Parts::take(&mut config, self.config.family)?;
        if config.task_type.is_none() {
            config.task_type = Some(self.task.peft_type());
        }
        if config.modules_to_save.is_none() {
            let paths = || self.modules.iter().map(|module| &module.path);
            let has = |name: &str| paths().any(|path| path.split('.').any(|part| part == name));
            for name in self
                .config
                .family
                .default_saved
                .iter()
                .filter(|name| has(name))
            {
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
        let Resolved { targets, saved } = resolve(&config, &self.modules, origin, parts)?;
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
        for module in self.modules.iter_mut() {
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
        let mut report = AdapterReport::default();
        for module in self.modules.iter_mut() {
            let saved = module.train("", &self.device, &mut self.trainables);
            report.saved.push(saved);
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
        for (linear, _) in self.modules.linears() {
            if matcher.is_target(&linear.path)? {
                return Ok(linear.kind == Kind::Conv1d);
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
        if saved {
            return Vec::new();
        }
        let is_pooler = |module: &&Module| module.is_new && module.path.contains("pooler");
        let poolers = self.modules.iter().filter(is_pooler);
        poolers.map(|module| module.path.clone()).collect()
    }
}

fn add_name(names: &mut Option<Vec<String>>, name: &str) {
    let names = names.get_or_insert_default();
    if !names.iter().any(|n| n == name) {
        names.push(name.to_string());
    }
}

impl Module {
    /// Trains all of its parameters under their names behind `prefix`.
    fn train(&mut self, prefix: &str, device: &Device, trainables: &mut Trainables) -> SavedModule {
        let train = |parameter: &mut Parameter| {
            let name = format!("{prefix}{}", parameter.name);
            parameter.train(name, device, trainables)
        };
        SavedModule {
            parameters: self.parameters.iter_mut().map(train).sum(),
            path: self.path.clone(),
        }
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
    fn module(&mut self, module: &mut Module) -> Result<(), ModelError> {
        if self.saved.contains(&module.path) {
            check_shared(module)?;
            let saved = module.train(KEY_PREFIX, &self.device, self.trainables);
            self.report.saved.push(saved);
            return Ok(());
        }
        let adapted = self.targets.contains(&module.path);
        if let Some(shape) = module.features().filter(|_| adapted) {
            self.adapt(module, shape)?;
        }
        let trains_biases = match self.config.bias {
            Bias::None => false,
            Bias::LoraOnly => adapted,
            Bias::All => true,
        };
        if trains_biases {
            let layer = if adapted { ".base_layer" } else { "" };
            let own = format!("{}.bias", module.path);
            let key = format!("{KEY_PREFIX}{}{layer}.bias", module.path);
            // PEFT trains what is named `bias`; DeBERTa's `q_bias` and `v_bias` are not.
            if let Some(bias) = module.parameters.iter_mut().find(|p| p.name == own) {
                self.report.bias_parameters += bias.train(key, &self.device, self.trainables);
            }
        }
        Ok(())
    }

    fn adapt(
        &mut self,
        linear: &mut Module,
        shape @ [out, inp]: [usize; 2],
    ) -> Result<(), ModelError> {
        let path = linear.path.clone();
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
            site: Site::named(name_hash(&path)),
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

/// A table that is input and output at once cannot be trained beside adapters: PEFT would train one of two copies.
fn check_shared(module: &Module) -> Result<(), ModelError> {
    let path = &module.path;
    if !module.is_table_of_head() || path == LM_HEAD {
        return Ok(());
    }
    Err(ModelError::Pattern {
        field: "modules_to_save",
        faults: vec![format!(
            "`{path}` is the output head too (`tie_word_embeddings`); only full fine-tuning trains it"
        )],
    })
}
