//! The model's modules with their parameters: one list in the order of PyTorch's `named_modules`,
//! under the names of the checkpoint. Networks hold ids; merging, training and listing are loops
//! over it. It knows no family and no file.

mod layers;
mod pass;
mod rope;

use std::ops::Index;

use crate::families::LM_HEAD;
use lowrank_engine::ops::embedding::Table;
use lowrank_engine::ops::linear::Adapter;
use lowrank_engine::ops::trained_rows::TrainedRows;
use lowrank_engine::param::transpose;
use lowrank_engine::{Device, Matrix, Param, TrainableId, Trainables};

pub use layers::{Bias, Convolution, Embedding, LayerNorm, Linear, RmsNorm};
pub use pass::Pass;
pub(crate) use rope::{LongFrequencies, Rope, RopeId, RopeKind};

/// What a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A linear layer whose weight is stored as [out, in].
    Linear,
    /// A linear layer whose weight is stored as [in, out]: GPT-2's `Conv1D`, PEFT's
    /// `fan_in_fan_out`.
    Conv1d,
    /// A layer norm.
    LayerNorm,
    /// An RMS norm, which has no bias.
    RmsNorm,
    /// An embedding table.
    Embedding,
    /// A convolution over tokens, weight [out, in, taps].
    Convolution,
    /// A bias that belongs to no linear layer; its path is its own name.
    Bias,
}

impl Kind {
    /// The kind, in words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Linear | Kind::Conv1d => "linear layer",
            Kind::LayerNorm => "layer norm",
            Kind::RmsNorm => "RMS norm",
            Kind::Embedding => "embedding table",
            Kind::Convolution => "convolution",
            Kind::Bias => "bias",
        }
    }
}

/// The values of one parameter.
#[derive(Debug)]
pub(crate) enum Value {
    /// A vector, or a table that is looked up only.
    Rows(Param),
    /// A factor of products, stored as [out, in]. A language model's output table may be its input
    /// table too.
    Matrix(Matrix),
    /// The same, stored as [in, out].
    Conv1d(Matrix),
}

/// One parameter of the model, frozen or trained.
#[derive(Debug)]
pub struct Parameter {
    /// Its key in the checkpoint.
    pub name: String,
    /// Its shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Whether it is in no checkpoint and was initialised here.
    pub is_new: bool,
    pub(crate) value: Value,
}

impl Parameter {
    /// Number of values.
    pub fn count(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }

    /// Whether it is a bias, such as `bias` or DeBERTa's `q_bias`.
    pub fn is_bias(&self) -> bool {
        self.shape.len() == 1 && self.name.ends_with("bias")
    }

    /// Its id among the trained parameters, if it is one.
    pub fn trainable(&self) -> Option<TrainableId> {
        match &self.value {
            Value::Rows(param) => param.trainable(),
            Value::Matrix(matrix) | Value::Conv1d(matrix) => matrix.trainable(),
        }
    }

    /// The values as the checkpoint stores them, copied. Panics on the dry device.
    pub fn to_vec(&self, trainables: &Trainables) -> Vec<f32> {
        match &self.value {
            Value::Rows(param) => param.to_vec(trainables),
            Value::Matrix(matrix) | Value::Conv1d(matrix) => {
                self.as_stored(matrix.to_rows(trainables))
            }
        }
    }

    /// A matrix [out, in] as the checkpoint stores it.
    pub(crate) fn as_stored(&self, rows: Vec<f32>) -> Vec<f32> {
        match &self.value {
            Value::Conv1d(_) => transpose(&rows, self.shape[1], self.shape[0]),
            Value::Rows(_) | Value::Matrix(_) => rows,
        }
    }

    /// Makes it a trained parameter with this name on disk, unless it is one. Returns the number of
    /// its values, if it was not.
    pub(crate) fn train(
        &mut self,
        name: String,
        device: &Device,
        trainables: &mut Trainables,
    ) -> u64 {
        if self.trainable().is_some() {
            return 0;
        }
        let values = match device.is_dry() {
            true => Vec::new(),
            false => self.to_vec(trainables),
        };
        let id = trainables.add(device, name, &self.shape, &values);
        self.value = match self.value {
            Value::Rows(_) => Value::Rows(Param::Trainable(id)),
            Value::Matrix(_) => Value::Matrix(Matrix::Trainable(id)),
            Value::Conv1d(_) => Value::Conv1d(Matrix::TrainableConv1d(id)),
        };
        self.count()
    }

    /// Puts another matrix in the place of this one.
    pub(crate) fn set_matrix(&mut self, new: Matrix) {
        match &mut self.value {
            Value::Matrix(matrix) | Value::Conv1d(matrix) => *matrix = new,
            Value::Rows(_) => unreachable!("`{}` is no matrix", self.name),
        }
    }

    /// As lookups read it.
    pub(crate) fn as_table(&self) -> Table<'_> {
        match &self.value {
            Value::Rows(param) => Table::Rows(param),
            Value::Matrix(matrix) | Value::Conv1d(matrix) => Table::Matrix(matrix),
        }
    }

    fn param(&self) -> &Param {
        match &self.value {
            Value::Rows(param) => param,
            Value::Matrix(_) | Value::Conv1d(_) => unreachable!("`{}` is a matrix", self.name),
        }
    }

    pub(crate) fn matrix(&self) -> &Matrix {
        match &self.value {
            Value::Matrix(matrix) | Value::Conv1d(matrix) => matrix,
            Value::Rows(_) => unreachable!("`{}` is no matrix", self.name),
        }
    }
}

/// One module: its parameters and what is adapted of it.
#[derive(Debug)]
pub struct Module {
    /// Its path, as PyTorch names it in the full model.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Its parameters: the weight, then the bias if it has one.
    pub parameters: Vec<Parameter>,
    /// The adapter, if one is attached to this linear layer.
    pub adapter: Option<Adapter>,
    /// Rows of this table that are trained in its place.
    pub rows: Option<TrainedRows>,
    /// What loaded adapters have for it, in the order of [`crate::Model`]'s.
    pub(crate) slots: Vec<Option<Adapter>>,
    /// Whether checkpoints hold it; a norm without parameters of its own has constants in their
    /// place.
    pub(crate) is_listed: bool,
}

impl Module {
    /// A module without an adapter that stands in the checkpoint.
    pub(crate) fn new(path: &str, kind: Kind, parameters: Vec<Parameter>) -> Self {
        Module {
            path: path.to_owned(),
            kind,
            parameters,
            adapter: None,
            rows: None,
            slots: Vec::new(),
            is_listed: true,
        }
    }

    /// Number of its values without adapters.
    pub fn count(&self) -> u64 {
        self.parameters.iter().map(Parameter::count).sum()
    }

    /// The shape of its first parameter, a matrix as [out, in].
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.parameters[0].shape.clone();
        if self.kind == Kind::Conv1d {
            shape.reverse();
        }
        shape
    }

    /// Whether a part of its path, between dots, has this name.
    pub(crate) fn has_part(&self, name: &str) -> bool {
        self.path.split('.').any(|part| part == name)
    }

    /// [out, in] of a linear layer, which alone can be adapted.
    pub(crate) fn features(&self) -> Option<[usize; 2]> {
        match (self.kind, &*self.parameters.first()?.shape) {
            (Kind::Linear, &[out, inp]) | (Kind::Conv1d, &[inp, out]) => Some([out, inp]),
            _ => None,
        }
    }

    /// Whether it is a table that is looked up, whose A adapters keep as rows of it.
    pub(crate) fn is_input_table(&self) -> bool {
        self.kind == Kind::Embedding && self.path != LM_HEAD
    }

    /// Whether it is the output's end of a table that another module holds: it has nothing but what
    /// adapters add.
    pub(crate) fn is_other_end(&self) -> bool {
        self.parameters.is_empty()
    }

    /// Whether it is a table of which products are made too: both ends of a language model that
    /// ties them.
    pub(crate) fn is_table_of_head(&self) -> bool {
        self.kind == Kind::Embedding && matches!(self.parameters[0].value, Value::Matrix(_))
    }
}

/// Names one module in its [`Modules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleId(usize);

/// Every module of a model, in order, and the rotations that its layers share.
#[derive(Debug, Default)]
pub struct Modules {
    list: Vec<Module>,
    ropes: Vec<Rope>,
}

impl Modules {
    /// Appends a module.
    pub(crate) fn push(&mut self, module: Module) -> ModuleId {
        self.list.push(module);
        ModuleId(self.list.len() - 1)
    }

    /// Appends a rotation.
    pub(crate) fn push_rope(&mut self, rope: Rope) -> RopeId {
        self.ropes.push(rope);
        RopeId(self.ropes.len() - 1)
    }

    pub(crate) fn rope(&self, id: RopeId) -> &Rope {
        &self.ropes[id.0]
    }

    /// The length beyond which a sequence's tokens, all of them, are rotated otherwise.
    pub(crate) fn rotation_switch(&self) -> Option<usize> {
        self.ropes.iter().filter_map(Rope::beyond).min()
    }

    /// The modules that checkpoints hold, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.list.iter().filter(|module| module.is_listed)
    }

    /// The same, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Module> {
        self.list.iter_mut().filter(|module| module.is_listed)
    }

    /// The modules that adapters may add to: those that checkpoints hold, and the output's end of a
    /// table that is both.
    pub(crate) fn adaptable_mut(&mut self) -> impl Iterator<Item = &mut Module> {
        let may_be = |module: &&mut Module| module.is_listed || module.is_other_end();
        self.list.iter_mut().filter(may_be)
    }

    /// The table of tokens at `input` and the output's, with [V, D].
    pub(crate) fn tables(&self, input: &str) -> impl Iterator<Item = (&Module, [usize; 2])> {
        let is_table = move |path: &str| path == input || path == LM_HEAD;
        let tables = self
            .list
            .iter()
            .filter(move |module| module.kind == Kind::Embedding && is_table(&module.path));
        tables.filter_map(move |module| {
            let own = module.parameters.first();
            let held = || {
                self.iter()
                    .find(|other| other.path == input)?
                    .parameters
                    .first()
            };
            match &*own.or_else(held)?.shape {
                &[rows, width] => Some((module, [rows, width])),
                _ => None,
            }
        })
    }

    /// The output's end of a table that is both, where something is added to one of its ends.
    pub(crate) fn parted_head(&self, input: &str) -> Option<&Module> {
        let head = self.list.iter().find(|module| module.is_other_end())?;
        let has_term = |module: &Module| module.adapter.is_some();
        let input = self.iter().find(|module| module.path == input);
        (has_term(head) || input.is_some_and(has_term)).then_some(head)
    }

    /// The linear layers with [out, in], in order.
    pub(crate) fn linears(&self) -> impl Iterator<Item = (&Module, [usize; 2])> {
        self.iter()
            .filter_map(|module| Some((module, module.features()?)))
    }

    /// Every parameter that checkpoints hold, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.iter().flat_map(|module| &module.parameters)
    }
}

impl Index<ModuleId> for Modules {
    type Output = Module;

    fn index(&self, id: ModuleId) -> &Module {
        &self.list[id.0]
    }
}

/// A fixed 64-bit hash of a name (FNV-1a): seeds and dropout sites hang on it, so it never changes.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
