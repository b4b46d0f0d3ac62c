//! LoRA (Hu et al. 2021) as PEFT means it: what is attached, with which values, what is merged, and
//! the form of its parameters in files. A product's low-rank term is the engine's. Source: PEFT
//! `LoraModel`, `LoraLayer`.

mod parts;
mod targets;

use std::collections::{BTreeMap, BTreeSet};

use lowrank_engine::host;
use lowrank_engine::ops::blocks::Blocks;
use lowrank_engine::ops::linear::Adapter;
use lowrank_engine::{Device, Role, Site, TrainableId, Trainables};
use lowrank_formats::peft::{
    Bias, InitLoraWeights, KEY_PREFIX, LoraConfig, Matcher, TargetModules, TaskType,
};

use crate::adapters::{HEAD_NAMES, add_name, check_shared, train_whole};
use crate::error::ModelError;
use crate::model::Model;
use crate::modules::{Kind, Module, Modules, name_hash};
use crate::trained::{AdaptedModule, AdapterReport, TrainMode};
use parts::{Parts, Piece};
use targets::{Origin, Resolved, resolve};

impl Model {
    /// Attaches fresh adapters. Each A is drawn from `seed` and its own name, so that adapting one
    /// more layer changes no other. Completes the configuration as PEFT would (default targets, the
    /// head in `modules_to_save`) and keeps it. Errors: a pattern that matches nothing, a rank
    /// above the matrix's size, an option that is not supported.
    pub fn attach_lora(
        &mut self,
        config: &LoraConfig,
        seed: u64,
    ) -> Result<&AdapterReport, ModelError> {
        let mut config = config.clone();
        self.complete(&mut config)?;
        let parts = Parts::take(&mut config, self.config.family, &self.config.facts)?;
        if config.task_type.is_none() {
            config.task_type = Some(self.task.peft_type());
        }
        let notes = self.complete_saved(&mut config.modules_to_save);
        // As PEFT does, with a warning: the file says how the adapted weights stand in theirs.
        config.fan_in_fan_out = self.is_conv1d(&config)?;
        self.attach(config, &parts, Origin::New { seed }, notes)?;
        Ok(&self.report)
    }

    /// Attaches the modules that an existing adapter's configuration names; their values are still
    /// to be set.
    pub(super) fn attach_existing(&mut self, config: &LoraConfig) -> Result<(), ModelError> {
        let config = self.complete_existing(config)?;
        let note = |path: String| {
            format!(
                "`{path}` is neither in the checkpoint nor in the adapter: its values are new, results will differ"
            )
        };
        let poolers = self.new_poolers(config.modules_to_save.as_deref());
        let notes = poolers.into_iter().map(note).collect();
        self.attach(config, &[], Origin::File, notes)
    }

    /// What an existing adapter trains beside low-rank terms.
    pub(super) fn trained_beside_terms(
        &self,
        config: &LoraConfig,
    ) -> Result<Vec<String>, ModelError> {
        let config = self.complete_existing(config)?;
        let saved = resolve(&config, &self.modules, Origin::File, &[])?.saved;
        let mut trained: Vec<String> = saved.iter().map(|path| format!("`{path}`")).collect();
        if config.bias != Bias::None {
            trained.push("biases".to_owned());
        }
        Ok(trained)
    }

    /// The configuration of an existing adapter with its targets, and the head where its task has
    /// one.
    fn complete_existing(&self, config: &LoraConfig) -> Result<LoraConfig, ModelError> {
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
        Ok(config)
    }

    fn attach(
        &mut self,
        mut config: LoraConfig,
        parts: &[Parts],
        origin: Origin,
        notes: Vec<String>,
    ) -> Result<(), ModelError> {
        self.check_frozen()?;
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
            seed: match origin {
                Origin::New { seed } => seed,
                Origin::File => 0,
            },
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
        self.mode = TrainMode::Adapter(config.into());
        Ok(())
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
}

/// Attaches one configuration, module by module.
struct Attach<'a> {
    device: Device,
    config: &'a LoraConfig,
    matcher: Matcher,
    parts: &'a [Parts],
    /// Of fresh values; a file's are set afterwards.
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
            let saved = train_whole(module, KEY_PREFIX, &self.device, self.trainables);
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
                bias.train(key, &self.device, self.trainables);
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
        let parts = Parts::of(self.parts, &path);
        let pieces = match parts {
            None => vec![Piece {
                path: path.clone(),
                shape,
                rank,
                alpha,
            }],
            Some(parts) => parts.pieces(&path, inp, rank, alpha),
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
            a: trainables.add_as(Role::LoraA, device, key("A"), &[rank, inp], &a),
            b: trainables.add_as(Role::LoraB, device, key("B"), &stored_b, &b),
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

/// Initial A [r, in] and B [out, r] of one layer, from its own name and the seed.
fn initial_values(
    init: &InitLoraWeights,
    seed: u64,
    path: &str,
    [out_features, in_features]: [usize; 2],
    rank: usize,
) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
    let mut a = vec![0.0; rank * in_features];
    let mut b = vec![0.0; out_features * rank];
    let stream = name_hash(path);
    // Kaiming uniform with a = √5, PyTorch's default for a linear layer: U(-1/√fan_in, 1/√fan_in).
    let uniform = |values: &mut [f32], fan_in: usize, stream: u64| {
        let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
        host::fill_uniform(seed, stream, -bound, bound, values);
    };
    match init {
        InitLoraWeights::Default => uniform(&mut a, in_features, stream),
        InitLoraWeights::Gaussian => {
            host::fill_normal(seed, stream, 0.0, (1.0 / rank as f64) as f32, &mut a)
        }
        InitLoraWeights::Random => {
            uniform(&mut a, in_features, stream);
            uniform(&mut b, rank, name_hash(&format!("{path}.lora_B")));
        }
        InitLoraWeights::Other(name) => {
            let message = format!(
                "init_lora_weights: `{name}` is not supported; use true, false or `gaussian`"
            );
            return Err(ModelError::AdapterConfig(vec![message]));
        }
    }
    Ok((a, b))
}

/// W + scaling·B·A [out, in] of a linear layer with an adapter, the product summed in f64.
pub(crate) fn merged_weight(linear: &Module, trainables: &Trainables) -> Vec<f32> {
    let mut weight = linear.parameters[0].matrix().to_rows(trainables);
    let Some(adapter) = linear.adapter else {
        return weight;
    };
    let (a, b) = (
        &trainables.get(adapter.a).value,
        &trainables.get(adapter.b).value,
    );
    let b = match adapter.blocks {
        None => b.read(),
        Some(blocks) => blocks.expand(&b.read(), b.cols()),
    };
    let (rank, width, a) = (a.rows(), a.cols(), a.read());
    let mut delta = vec![0.0f64; width];
    for (row, b_row) in weight.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
        delta.fill(0.0);
        for (&b, a_row) in b_row.iter().zip(a.chunks_exact(width)) {
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

/// Each stored B of parts of a fused layer: files hold PEFT's form, with the zeros between the
/// blocks.
pub(super) fn stored_blocks(modules: &Modules) -> BTreeMap<TrainableId, Blocks> {
    let adapters = modules.iter().filter_map(|module| module.adapter);
    adapters.filter_map(|a| Some((a.b, a.blocks?))).collect()
}
