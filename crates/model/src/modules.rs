//! The building blocks of every family: modules that know their path in the checkpoint. It knows no family.

use std::sync::Arc;

use lowrank_engine::ops::embedding::{self, Lookup};
use lowrank_engine::ops::layer_norm::{LayerNormParams, layer_norm};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear, linear_activation, linear_f32};
use lowrank_engine::ops::neighbours::neighbours;
use lowrank_engine::ops::rows::select_rows;
use lowrank_engine::{Activation, Matrix, Param, Tape, Trainables, Var};

/// How a linear layer's weight stands in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// [out, in], as PyTorch's `Linear` has it.
    Linear,
    /// [in, out], as GPT-2's `Conv1D` has it; PEFT's `fan_in_fan_out`.
    Conv1d,
}

/// A linear layer, adapted or not. Its weight is stored under `path.weight`, its bias under `path.bias`.
#[derive(Debug)]
pub struct Linear {
    /// The module's path, as PyTorch names it in the full model.
    pub path: String,
    /// in.
    pub in_features: usize,
    /// out.
    pub out_features: usize,
    /// W [out, in].
    pub weight: Matrix,
    /// bias `[out]`.
    pub bias: Option<Param>,
    /// How the weight is stored.
    pub layout: Layout,
    /// The adapter, if one is attached.
    pub adapter: Option<Adapter>,
    /// Whether its values are new: in no checkpoint, initialised here.
    pub is_new: bool,
}

impl Linear {
    /// y = x·Wᵀ + bias, plus the adapter's branch where adapters are switched on.
    pub fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: Var) -> Var {
        let params = self.params(tape);
        linear(tape, x, params)
    }

    /// As [`Linear::forward`] in f32 whatever the precision: the logits.
    pub fn logits<'m>(&'m self, tape: &mut Tape<'m>, x: Var) -> Var {
        let params = self.params(tape);
        linear_f32(tape, x, params)
    }

    /// f(y).
    pub fn forward_activation<'m>(&'m self, tape: &mut Tape<'m>, x: Var, kind: Activation) -> Var {
        let params = self.params(tape);
        linear_activation(tape, x, params, kind)
    }

    fn params<'m>(&'m self, tape: &Tape<'m>) -> LinearParams<'m> {
        LinearParams {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            adapter: self.adapter.as_ref().filter(|_| tape.adapters()),
        }
    }
}

/// A layer norm; weight and bias are stored under `path.weight` and `path.bias`.
#[derive(Debug)]
pub struct LayerNorm {
    /// The module's path.
    pub path: String,
    /// weight `[D]`.
    pub weight: Param,
    /// bias `[D]`.
    pub bias: Param,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm {
    /// Layer norm of dropout(x) + residual; see [`lowrank_engine::ops::layer_norm`].
    pub fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        x: Var,
        residual: Option<Var>,
        dropout: f32,
    ) -> Var {
        let params = LayerNormParams {
            weight: &self.weight,
            bias: &self.bias,
            eps: self.eps,
        };
        layer_norm(tape, x, residual, params, dropout)
    }
}

/// The values of an embedding table.
#[derive(Debug)]
pub enum Table {
    /// Read by lookups only.
    Rows(Param),
    /// The output table of a language model, which may be its input table too.
    Head(Matrix),
}

impl Table {
    /// The values, row by row, copied. Panics on the dry device.
    pub fn to_rows(&self, trainables: &Trainables) -> Vec<f32> {
        match self {
            Table::Rows(param) => param.to_vec(trainables),
            Table::Head(matrix) => matrix.to_rows(trainables),
        }
    }
}

/// An embedding table, stored under `path.weight`.
#[derive(Debug)]
pub struct Embedding {
    /// The module's path.
    pub path: String,
    /// Rows of the table.
    pub num_embeddings: usize,
    /// Columns of the table.
    pub embedding_dim: usize,
    /// The table [num_embeddings, embedding_dim].
    pub table: Table,
    /// A row that full training leaves alone.
    pub padding_idx: Option<u32>,
}

impl Embedding {
    /// The rows `ids` of this table.
    pub fn lookup<'m, 'i>(&'m self, ids: &'i [u32]) -> Lookup<'m, 'i> {
        let table = match &self.table {
            Table::Rows(param) => embedding::Table::Rows(param),
            Table::Head(matrix) => embedding::Table::Matrix(matrix),
        };
        Lookup {
            table,
            ids,
            padding_idx: self.padding_idx,
        }
    }
}

/// A convolution over the tokens of each sequence, zeros beyond its ends. Weight [out, in, taps] and bias are stored under
/// `path.weight` and `path.bias`.
#[derive(Debug)]
pub struct Convolution {
    /// The module's path.
    pub path: String,
    /// in and out.
    pub channels: usize,
    /// Width of the window in tokens, odd.
    pub taps: usize,
    /// The weight as a matrix [out, in·taps].
    pub weight: Matrix,
    /// bias `[out]`.
    pub bias: Param,
}

impl Convolution {
    /// The convolution of x [M, in], for all rows or for those that are named.
    pub fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        x: &Var,
        offsets: &Arc<[usize]>,
        rows: Option<&[usize]>,
    ) -> Var {
        let mut around = neighbours(tape, x, offsets, self.taps);
        if let Some(rows) = rows {
            around = select_rows(tape, &around, rows);
        }
        let params = LinearParams {
            weight: &self.weight,
            bias: Some(&self.bias),
            adapter: None,
        };
        linear(tape, around, params)
    }
}

/// A bias that belongs to no linear layer; its path is its own name.
#[derive(Debug)]
pub struct Bias {
    /// The parameter's name.
    pub path: String,
    /// The values.
    pub value: Param,
}

/// One module, to read.
#[derive(Debug, Clone, Copy)]
pub enum ModuleRef<'a> {
    /// A linear layer.
    Linear(&'a Linear),
    /// A layer norm.
    LayerNorm(&'a LayerNorm),
    /// An embedding table.
    Embedding(&'a Embedding),
    /// A convolution.
    Convolution(&'a Convolution),
    /// A bias by itself.
    Bias(&'a Bias),
}

impl<'a> ModuleRef<'a> {
    /// The module's path.
    pub fn path(self) -> &'a str {
        match self {
            ModuleRef::Linear(m) => &m.path,
            ModuleRef::LayerNorm(m) => &m.path,
            ModuleRef::Embedding(m) => &m.path,
            ModuleRef::Convolution(m) => &m.path,
            ModuleRef::Bias(m) => &m.path,
        }
    }

    /// Number of its values without adapters; `trainables` holds those that train.
    pub fn parameters(self, trainables: &Trainables) -> u64 {
        let n = match self {
            ModuleRef::Linear(m) => {
                m.out_features * (m.in_features + usize::from(m.bias.is_some()))
            }
            ModuleRef::LayerNorm(m) => 2 * m.weight.shape(trainables)[1],
            ModuleRef::Embedding(m) => m.num_embeddings * m.embedding_dim,
            ModuleRef::Convolution(m) => m.channels * (m.channels * m.taps + 1),
            ModuleRef::Bias(m) => m.value.shape(trainables)[1],
        };
        n as u64
    }

    /// Number of its biases.
    pub fn biases(self, trainables: &Trainables) -> u64 {
        let n = match self {
            ModuleRef::Linear(m) if m.bias.is_some() => m.out_features,
            ModuleRef::LayerNorm(m) => m.bias.shape(trainables)[1],
            ModuleRef::Convolution(m) => m.channels,
            ModuleRef::Bias(m) => m.value.shape(trainables)[1],
            ModuleRef::Linear(_) | ModuleRef::Embedding(_) => 0,
        };
        n as u64
    }

    /// The kind, in words.
    pub fn kind(self) -> &'static str {
        match self {
            ModuleRef::Linear(_) => "linear layer",
            ModuleRef::LayerNorm(_) => "layer norm",
            ModuleRef::Embedding(_) => "embedding table",
            ModuleRef::Convolution(_) => "convolution",
            ModuleRef::Bias(_) => "bias",
        }
    }
}

/// One module, to change.
#[derive(Debug)]
pub enum ModuleMut<'a> {
    /// A linear layer.
    Linear(&'a mut Linear),
    /// A layer norm.
    LayerNorm(&'a mut LayerNorm),
    /// An embedding table.
    Embedding(&'a mut Embedding),
    /// A convolution.
    Convolution(&'a mut Convolution),
    /// A bias by itself.
    Bias(&'a mut Bias),
}

impl ModuleMut<'_> {
    /// The same module, to read.
    pub fn as_ref(&self) -> ModuleRef<'_> {
        match self {
            ModuleMut::Linear(m) => ModuleRef::Linear(m),
            ModuleMut::LayerNorm(m) => ModuleRef::LayerNorm(m),
            ModuleMut::Embedding(m) => ModuleRef::Embedding(m),
            ModuleMut::Convolution(m) => ModuleRef::Convolution(m),
            ModuleMut::Bias(m) => ModuleRef::Bias(m),
        }
    }
}
