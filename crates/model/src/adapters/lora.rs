//! LoRA (Hu et al. 2021) as PEFT means it: what is attached, with which values, what is merged, and
//! the form of its parameters in files. A product's low-rank term is the engine's. Source: PEFT
//! `LoraModel`, `LoraLayer`.

mod parts;
mod tables;
mod targets;

use std::collections::{BTreeMap, BTreeSet};

use lowrank_engine::host;
use lowrank_engine::ops::blocks::Blocks;
use lowrank_engine::ops::linear::Adapter;
use lowrank_engine::param::transpose;
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
use tables::{RowsByTable, resolve_rows};
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
        let note = |(path, _): (String, _)| {
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
        let input = self.config.family.naming.tokens;
        let Resolved { targets, saved } =
            resolve(&config, &self.modules, Origin::File, &[], input)?;
        let mut trained: Vec<String> = saved.iter().map(|path| format!("`{path}`")).collect();
        let tables = self.modules.tables(input).map(|(table, _)| &table.path);
        trained.extend(
            tables
                .filter(|path| targets.contains(*path))
                .map(|path| format!("`{path}`")),
        );
        if config.trainable_token_indices.is_some() {
            trained.push("rows of the table of tokens".to_owned());
        }
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
        let input = self.config.family.naming.tokens;
        let Resolved { targets, saved } = resolve(&config, &self.modules, origin, parts, input)?;
        let rows = resolve_rows(&config, &self.modules, input, [&targets, &saved])?;
        let tables = self.modules.tables(input);
        let tables = tables
            .map(|(table, shape)| (table.path.clone(), shape))
            .collect();
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
            rows: &rows,
            tables,
            trainables: &mut self.trainables,
            report: AdapterReport {
                notes,
                ..AdapterReport::default()
            },
        };
        for module in self.modules.adaptable_mut() {
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
    rows: &'a RowsByTable,
    /// [V, D] of the tables of tokens.
    tables: BTreeMap<String, [usize; 2]>,
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
        if let Some(ids) = self.rows.get(&module.path) {
            self.train_rows(module, ids);
        }
        let adapted = self.targets.contains(&module.path);
        let table = self.tables.get(&module.path).copied();
        if let Some(shape) = table.filter(|_| adapted) {
            return match module.is_input_table() {
                true => self.adapt_table(module, shape),
                false => self.adapt(module, shape),
            };
        }
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
        debug_assert!(parts.is_some() || stored_b == [out, rank]);
        let terms = Terms {
            names: ["lora_A.weight", "lora_B.weight"],
            shapes: [[rank, inp], stored_b],
            values: [a, b],
            dropout: self.config.lora_dropout as f32,
        };
        linear.adapter = Some(Adapter {
            blocks: parts.map(|parts| parts.blocks),
            ..self.add_terms(&path, terms)?
        });
        pieces
            .into_iter()
            .for_each(|piece| self.report_piece(piece));
        Ok(())
    }

    /// Makes an A and a B trained values of the module at `path`.
    fn add_terms(&mut self, path: &str, terms: Terms) -> Result<Adapter, ModelError> {
        let scaling = self.matcher.scaling(path)? as f32;
        let [a, b] = terms.values;
        let (device, trainables) = (&self.device, &mut *self.trainables);
        let mut add = |role, which: usize, values: &[f32]| {
            let key = format!("{KEY_PREFIX}{path}.{}", terms.names[which]);
            trainables.add_as(role, device, key, &terms.shapes[which], values)
        };
        Ok(Adapter {
            a: add(Role::LoraA, 0, &a),
            b: add(Role::LoraB, 1, &b),
            blocks: None,
            scaling,
            dropout: terms.dropout,
            site: Site::named(name_hash(path)),
        })
    }

    /// Says what is adapted by itself, with its rank and alpha.
    fn report_piece(&mut self, piece: Piece) {
        let Piece {
            path,
            shape,
            rank,
            alpha,
        } = piece;
        let divisor = match self.config.use_rslora {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        self.report.modules.push(AdaptedModule {
            path,
            shape,
            rank,
            alpha,
            scaling: alpha / divisor,
            parameters: (rank * (shape[0] + shape[1])) as u64,
        });
    }
}

/// An A and a B to come.
struct Terms {
    /// What follows the module's path in their keys.
    names: [&'static str; 2],
    /// As they are kept.
    shapes: [[usize; 2]; 2],
    /// Nothing on the dry device.
    values: [Vec<f32>; 2],
    dropout: f32,
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
    let a = &trainables.get(adapter.a).value;
    let b = whole_b(&adapter, trainables);
    add_product(&mut weight, &b, &a.read(), a.cols(), adapter.scaling);
    weight
}

/// B [out, r], of parts of a fused layer with the zeros between the blocks, as PEFT has it.
pub(crate) fn whole_b(adapter: &Adapter, trainables: &Trainables) -> Vec<f32> {
    let b = &trainables.get(adapter.b).value;
    match adapter.blocks {
        None => b.read(),
        Some(blocks) => blocks.expand(&b.read(), b.cols()),
    }
}

/// How files hold a trained value that is kept otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) enum FileForm {
    /// The B of parts of a fused layer: with the zeros between the blocks.
    Blocks(Blocks),
    /// The A of a table that is looked up, kept as [V, r]: [r, V].
    Transposed,
}

impl FileForm {
    /// The shape in files of a value [rows, cols].
    pub(super) fn shape(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            FileForm::Blocks(blocks) => blocks.whole_shape(cols),
            FileForm::Transposed => [cols, rows],
        }
    }

    /// A value as it is kept, from that [rows, cols] in files.
    pub(super) fn kept(self, in_file: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
        match self {
            FileForm::Blocks(_) => unreachable!("an adapter in a file is one of whole layers"),
            FileForm::Transposed => transpose(in_file, rows, cols),
        }
    }

    /// The values in files.
    pub(super) fn values(self, kept: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
        match self {
            FileForm::Blocks(blocks) => blocks.expand(kept, cols),
            FileForm::Transposed => transpose(kept, rows, cols),
        }
    }
}

/// The values that files hold otherwise.
pub(super) fn file_forms(modules: &Modules) -> BTreeMap<TrainableId, FileForm> {
    let form = |module: &Module| {
        let adapter = module.adapter?;
        match adapter.blocks {
            Some(blocks) => Some((adapter.b, FileForm::Blocks(blocks))),
            None if module.is_input_table() => Some((adapter.a, FileForm::Transposed)),
            None => None,
        }
    };
    modules.iter().filter_map(form).collect()
}

/// The rows of a table [V, D] with those that are trained and its low-rank term, and with that of
/// `end` in its place where the output's end of the table is meant.
pub(crate) fn merged_table(table: &Module, end: &Module, trainables: &Trainables) -> Vec<f32> {
    let weight = &table.parameters[0];
    let (mut values, width) = (weight.to_vec(trainables), weight.shape[1]);
    if let Some(rows) = &table.rows {
        let own = trainables.get(rows.values()).value.read();
        for (own, &row) in own.chunks_exact(width).zip(rows.rows()) {
            values[row as usize * width..][..width].copy_from_slice(own);
        }
    }
    let Some(adapter) = end.adapter else {
        return values;
    };
    let [a, b] = [adapter.a, adapter.b].map(|id| &trainables.get(id).value);
    // Both as [V, r] and [r, D].
    let (outer, inner) = match end.is_input_table() {
        true => (a.read(), transpose(&b.read(), b.rows(), b.cols())),
        false => (b.read(), a.read()),
    };
    add_product(&mut values, &outer, &inner, width, adapter.scaling);
    values
}

/// w [out, in] += scaling · b·a, summed in f64.
fn add_product(w: &mut [f32], b: &[f32], a: &[f32], width: usize, scaling: f32) {
    let rank = a.len() / width;
    let mut delta = vec![0.0f64; width];
    for (row, b_row) in w.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
        delta.fill(0.0);
        for (&b, a_row) in b_row.iter().zip(a.chunks_exact(width)) {
            delta
                .iter_mut()
                .zip(a_row)
                .for_each(|(d, &a)| *d += f64::from(b) * f64::from(a));
        }
        let scaling = f64::from(scaling);
        row.iter_mut()
            .zip(&delta)
            .for_each(|(w, d)| *w = (f64::from(*w) + scaling * d) as f32);
    }
}
