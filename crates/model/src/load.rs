//! Fills the list of modules from a checkpoint, block by block, or with new values; says what was
//! new, missing and unused. A network's order of calls is the order of the list.
//! It knows no family.

mod blocks;
mod names;
mod norms;

use std::collections::{BTreeMap, BTreeSet};

use lowrank_engine::host;
use lowrank_engine::param::{Frozen, PackedMatrix};
use lowrank_engine::{Device, Matrix, Param};
use lowrank_formats::peft::AdapterTensor;
use lowrank_formats::{Checkpoint, FormatError};

use crate::config::Task;
use crate::error::ModelError;
use crate::modules::{
    Bias, Convolution, Embedding, Kind, Linear, Module, ModuleId, Modules, Parameter, Rope, RopeId,
    Value, name_hash,
};
pub(crate) use names::Names;
pub use names::Naming;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Which head.
    pub task: Task,
    /// Outputs of the head.
    pub num_labels: usize,
    /// Seeds the values of what is in no checkpoint; each tensor by its own name.
    pub seed: u64,
    /// Start a new head where the checkpoint's has another shape, instead of failing. Source:
    /// transformers' option.
    pub ignore_mismatched_sizes: bool,
}

impl LoadOptions {
    /// For a task and so many outputs; the seed is 1, another shape of the head an error.
    pub const fn new(task: Task, num_labels: usize) -> Self {
        Self {
            task,
            num_labels,
            seed: 1,
            ignore_mismatched_sizes: false,
        }
    }
}

/// What loading found.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Tensors that the checkpoint lacks, initialised as transformers would.
    pub new: Vec<String>,
    /// Tensors of the checkpoint that this model has no place for.
    pub unused: Vec<String>,
    /// Tensors of the head that had another shape and were started anew.
    pub mismatched: Vec<String>,
    /// What was left out of the names in the checkpoint: `module.`, `_orig_mod.`.
    pub left_out: Vec<String>,
    /// Tensors read.
    pub loaded: usize,
}

/// Whether a tensor may be absent from the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The body: absence is an error.
    Required,
    /// Heads and poolers: new values if absent.
    NewIfAbsent,
}

/// How a linear layer's weight stands in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// [out, in], as PyTorch's `Linear` has it.
    Linear,
    /// [in, out], as GPT-2's `Conv1D` has it; PEFT's `fan_in_fan_out`.
    Conv1d,
}

/// A linear layer to load.
#[derive(Debug, Clone, Copy)]
pub struct LinearSpec<'n> {
    /// The module's path.
    pub path: &'n str,
    /// [in, out].
    pub shape: [usize; 2],
    /// Whether it may be absent.
    pub presence: Presence,
    /// Whether it has a bias.
    pub has_bias: bool,
    /// How its weight is stored.
    pub layout: Layout,
    /// Standard deviation of new weights.
    pub std: f32,
}

impl LinearSpec<'_> {
    /// The same without a bias.
    pub fn unbiased(self) -> Self {
        LinearSpec {
            has_bias: false,
            ..self
        }
    }
}

/// Where values come from.
pub(crate) struct Source<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) names: Names,
    /// Ends of names of tensors that hold nothing: buffers.
    pub(crate) ignored: &'static [&'static str],
    /// Tensors that stand for the checkpoint's own, by the model's names: what an adapter brings.
    pub(crate) tables: Option<&'a BTreeMap<String, AdapterTensor>>,
}

/// Fills one model's modules.
pub struct Loader<'a> {
    device: &'a Device,
    source: Option<Source<'a>>,
    used: BTreeSet<String>,
    options: &'a LoadOptions,
    initializer_range: f32,
    modules: Modules,
    report: LoadReport,
    /// A matrix as a file holds it.
    stored: Vec<f32>,
    faults: Vec<String>,
    body_faults: usize,
}

impl Source<'_> {
    fn table(&self, name: &str) -> Option<&AdapterTensor> {
        self.tables?.get(name)
    }
}

/// A tensor's place in the model.
struct Wanted {
    name: String,
    shape: Vec<usize>,
    store: Store,
    presence: Presence,
    /// Standard deviation of new values around `mean`.
    std: f32,
    mean: f32,
}

impl Wanted {
    /// Rows and values of each.
    fn sizes(&self) -> [usize; 2] {
        [self.shape[0], self.shape[1..].iter().product()]
    }
}

/// What a parameter is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    /// A vector.
    Vector,
    /// Lookups.
    Table,
    /// Products near the loss, from [out, in].
    Matrix,
    /// Products near the loss of what may be looked up too.
    Vocabulary,
    /// Products of the body's layers, from [out, in].
    Layer,
    /// The same, from [in, out].
    Conv1d,
}

impl<'a> Loader<'a> {
    /// A loader from files; without them, every value is new (on the dry device: only shapes).
    pub(crate) fn new(
        device: &'a Device,
        source: Option<Source<'a>>,
        options: &'a LoadOptions,
        initializer_range: f32,
    ) -> Self {
        let left_out = source.as_ref().map(|source| source.names.left_out());
        Loader {
            device,
            source,
            modules: Modules::default(),
            report: LoadReport {
                left_out: left_out.unwrap_or_default(),
                ..LoadReport::default()
            },
            used: BTreeSet::new(),
            options,
            initializer_range,
            stored: Vec::new(),
            faults: Vec::new(),
            body_faults: 0,
        }
    }

    /// The head's task.
    pub fn task(&self) -> Task {
        self.options.task
    }

    /// Outputs of the head.
    pub fn num_labels(&self) -> usize {
        self.options.num_labels
    }

    /// A linear layer of the body with a bias, from a weight stored as [out, in]; `shape` is [in,
    /// out].
    pub fn spec<'n>(&self, path: &'n str, shape: [usize; 2]) -> LinearSpec<'n> {
        LinearSpec {
            path,
            shape,
            presence: Presence::Required,
            has_bias: true,
            layout: Layout::Linear,
            std: self.initializer_range,
        }
    }

    /// A linear layer with a bias; `shape` is [in, out].
    pub fn linear(
        &mut self,
        path: &str,
        shape: [usize; 2],
        presence: Presence,
    ) -> Result<Linear, ModelError> {
        let spec = self.spec(path, shape);
        self.linear_of(LinearSpec { presence, ..spec })
    }

    /// Any linear layer.
    pub fn linear_of(&mut self, spec: LinearSpec<'_>) -> Result<Linear, ModelError> {
        let (path, [inp, out]) = (spec.path, spec.shape);
        // What may be new is a head.
        let (kind, store, shape) = match (spec.layout, spec.presence) {
            (Layout::Linear, Presence::Required) => (Kind::Linear, Store::Layer, [out, inp]),
            (Layout::Linear, Presence::NewIfAbsent) => (Kind::Linear, Store::Matrix, [out, inp]),
            (Layout::Conv1d, _) => (Kind::Conv1d, Store::Conv1d, [inp, out]),
        };
        let weight = self.parameter(Wanted {
            presence: spec.presence,
            std: spec.std,
            ..self.weight(path, &shape, store)
        })?;
        let mut parameters = vec![weight];
        if spec.has_bias {
            parameters.push(self.vector(format!("{path}.bias"), out, spec.presence)?);
        }
        Ok(Linear(self.push(path, kind, parameters)))
    }

    /// The output table of a language model, which may be its input table too.
    pub fn head_table(&mut self, path: &str, shape: [usize; 2]) -> Result<Embedding, ModelError> {
        self.table(path, shape, Store::Vocabulary)
    }

    /// The output's end of a table that the input has too: no values of its own.
    pub(crate) fn other_end(&mut self, path: &str) -> ModuleId {
        let module = Module::new(path, Kind::Embedding, Vec::new());
        self.modules.push(Module {
            is_listed: false,
            ..module
        })
    }

    /// An embedding table [V, D]; full training leaves the row `padding_idx` alone.
    pub fn embedding(
        &mut self,
        path: &str,
        shape: [usize; 2],
        padding_idx: Option<u32>,
    ) -> Result<Embedding, ModelError> {
        Ok(Embedding {
            padding_idx,
            ..self.table(path, shape, Store::Table)?
        })
    }

    fn table(
        &mut self,
        path: &str,
        shape: [usize; 2],
        store: Store,
    ) -> Result<Embedding, ModelError> {
        let table = self.parameter(self.weight(path, &shape, store))?;
        Ok(Embedding {
            id: self.push(path, Kind::Embedding, vec![table]),
            rows: shape[0],
            padding_idx: None,
        })
    }

    /// A convolution over tokens.
    pub fn convolution(
        &mut self,
        path: &str,
        channels: usize,
        taps: usize,
    ) -> Result<Convolution, ModelError> {
        let shape = [channels, channels, taps];
        let weight = self.parameter(self.weight(path, &shape, Store::Matrix))?;
        let bias = self.vector(format!("{path}.bias"), channels, Presence::Required)?;
        let id = self.push(path, Kind::Convolution, vec![weight, bias]);
        Ok(Convolution { id, taps })
    }

    /// A bias by itself.
    pub fn bias(&mut self, path: &str, width: usize) -> Result<Bias, ModelError> {
        let value = self.vector(path.to_owned(), width, Presence::Required)?;
        Ok(Bias(self.push(path, Kind::Bias, vec![value])))
    }

    /// A rotation that layers share.
    pub(crate) fn rope(&mut self, rope: Rope) -> RopeId {
        self.modules.push_rope(rope)
    }

    fn push(&mut self, path: &str, kind: Kind, parameters: Vec<Parameter>) -> ModuleId {
        self.modules.push(Module::new(path, kind, parameters))
    }

    /// A module's weight, in the body.
    fn weight(&self, path: &str, shape: &[usize], store: Store) -> Wanted {
        Wanted {
            name: format!("{path}.weight"),
            shape: shape.to_vec(),
            store,
            presence: Presence::Required,
            std: self.initializer_range,
            mean: 0.0,
        }
    }

    /// A vector that is zero where it is new.
    fn vector(
        &mut self,
        name: String,
        len: usize,
        presence: Presence,
    ) -> Result<Parameter, ModelError> {
        self.parameter(Wanted {
            name,
            shape: vec![len],
            store: Store::Vector,
            presence,
            std: 0.0,
            mean: 0.0,
        })
    }

    fn parameter(&mut self, wanted: Wanted) -> Result<Parameter, ModelError> {
        let source = self.locate(&wanted);
        let value = match self.in_blocks(&wanted, source.as_deref())? {
            Some(value) => value,
            None => self.plain(&wanted, source.as_deref())?,
        };
        Ok(Parameter {
            is_new: source.is_none() && self.source.is_some(),
            name: wanted.name,
            shape: wanted.shape,
            value,
        })
    }

    /// The value of single elements.
    fn plain(&mut self, wanted: &Wanted, file_name: Option<&str>) -> Result<Value, ModelError> {
        let device = self.device;
        let [rows, cols] = wanted.sizes();
        let fill =
            |first: usize, block: &mut [f32]| self.fill(wanted, file_name, first * cols, block);
        Ok(match wanted.store {
            Store::Vector => {
                Value::Rows(Param::Frozen(Frozen::from_blocks(device, 1, rows, fill)?))
            }
            Store::Table => {
                let table = Frozen::table_from_blocks(device, rows, cols, fill)?;
                Value::Rows(Param::Frozen(table))
            }
            Store::Matrix | Store::Vocabulary => {
                let packed = PackedMatrix::table_from_blocks(device, rows, cols, fill)?;
                Value::Matrix(Matrix::Frozen(packed))
            }
            Store::Layer => {
                let packed = PackedMatrix::from_blocks(device, rows, cols, fill)?;
                Value::Matrix(Matrix::Frozen(packed))
            }
            Store::Conv1d => {
                let stored = self.whole(wanted, file_name)?;
                let packed = PackedMatrix::from_transposed(device, cols, rows, &stored);
                self.stored = stored;
                Value::Conv1d(Matrix::Frozen(packed))
            }
        })
    }

    /// A whole matrix as a file holds it; nothing on the dry device. In one buffer for all, to
    /// which it is given back: fresh pages for each matrix cost as much as its values.
    fn whole(&mut self, wanted: &Wanted, file_name: Option<&str>) -> Result<Vec<f32>, FormatError> {
        let mut stored = std::mem::take(&mut self.stored);
        if !self.device.is_dry() {
            let [rows, cols] = wanted.sizes();
            stored.resize(rows * cols, 0.0);
            self.fill(wanted, file_name, 0, &mut stored)?;
        }
        Ok(stored)
    }

    /// The modules and the report, or every fault at once.
    pub fn finish(mut self) -> Result<(Modules, LoadReport), ModelError> {
        if !self.faults.is_empty() {
            return Err(ModelError::Weights {
                faults: self.faults,
                head_only: self.body_faults == 0,
            });
        }
        if let Some(Source { names, ignored, .. }) = &self.source {
            let unused = names.in_file().filter(|n| !self.used.contains(*n));
            let unused = unused.filter(|n| !ignored.iter().any(|end| n.ends_with(end)));
            self.report.unused = unused.map(str::to_owned).collect();
        }
        Ok((self.modules, self.report))
    }

    /// The file's name of a wanted tensor whose shape fits; else notes what that means.
    fn locate(&mut self, wanted: &Wanted) -> Option<String> {
        let source = self.source.as_ref()?;
        let found = source.names.get(&wanted.name);
        if let Some(table) = source.table(&wanted.name) {
            self.used.extend(found.map(str::to_owned));
            if table.shape != wanted.shape {
                self.body_faults += 1;
                self.faults.push(format!(
                    "{}: expected {:?}, found {:?} in the adapter",
                    wanted.name, wanted.shape, table.shape
                ));
                return None;
            }
            self.report.loaded += 1;
            return Some(wanted.name.clone());
        }
        let found = found.and_then(|n| Some((n.to_owned(), source.checkpoint.info(n)?)));
        let Some((file_name, info)) = found else {
            match wanted.presence {
                Presence::Required => {
                    self.body_faults += 1;
                    self.faults.push(format!(
                        "{}: expected {:?}, not in the checkpoint",
                        wanted.name, wanted.shape
                    ));
                }
                Presence::NewIfAbsent => self.report.new.push(wanted.name.clone()),
            }
            return None;
        };
        self.used.insert(file_name.clone());
        if info.shape != wanted.shape {
            if wanted.presence == Presence::NewIfAbsent && self.options.ignore_mismatched_sizes {
                self.report.mismatched.push(wanted.name.clone());
                self.report.new.push(wanted.name.clone());
                return None;
            }
            self.body_faults += usize::from(wanted.presence == Presence::Required);
            self.faults.push(format!(
                "{}: expected {:?}, found {:?}",
                wanted.name, wanted.shape, info.shape
            ));
            return None;
        }
        self.report.loaded += 1;
        Some(file_name)
    }

    /// Writes the values of `wanted` from element `start` on.
    fn fill(
        &mut self,
        wanted: &Wanted,
        file_name: Option<&str>,
        start: usize,
        block: &mut [f32],
    ) -> Result<(), FormatError> {
        let Some((source, file_name)) = self.source.as_ref().zip(file_name) else {
            new_values(self.options.seed, wanted, start, block);
            return Ok(());
        };
        if let Some(table) = source.table(&wanted.name) {
            block.copy_from_slice(&table.data[start..start + block.len()]);
            return Ok(());
        }
        (source.checkpoint).read_f32_range(file_name, start, block)?;
        if !self.device.host().all_finite(block) {
            let at = block.iter().position(|v| !v.is_finite()).unwrap_or(0);
            let line = format!(
                "{}: value {} is {}, expected a finite number",
                wanted.name,
                start + at,
                block[at]
            );
            self.body_faults += 1;
            self.faults.push(line);
        }
        Ok(())
    }
}

fn new_values(seed: u64, wanted: &Wanted, start: usize, block: &mut [f32]) {
    if wanted.std == 0.0 {
        block.fill(wanted.mean);
        return;
    }
    // Each block is a stream of its own, so that a tensor's values do not depend on how it is read.
    let stream = name_hash(&wanted.name) ^ (start as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    host::fill_normal(seed, stream, wanted.mean, wanted.std, block);
}
