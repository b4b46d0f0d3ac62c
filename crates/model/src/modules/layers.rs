//! What networks hold: ids of modules, with the forward code of each kind. A layer is copied
//! freely; its parameters stay in the list.

use std::sync::Arc;

use lowrank_engine::ops::embedding::Lookup;
use lowrank_engine::ops::gather::gather;
use lowrank_engine::ops::linear::{LinearParams, linear, linear_activation, linear_f32};
use lowrank_engine::ops::lm_head::LmHead;
use lowrank_engine::ops::neighbours::neighbours;
use lowrank_engine::ops::norm::{LayerNormParams, RmsFactor, RmsNormParams, layer_norm, rms_norm};
use lowrank_engine::ops::reshape::reshape;
use lowrank_engine::{Activation, Param, Var};

use crate::modules::{ModuleId, Modules, Parameter, Pass};

/// A linear layer, adapted or not.
#[derive(Debug, Clone, Copy)]
pub struct Linear(pub(crate) ModuleId);

impl Linear {
    /// y = x·Wᵀ + bias, plus the adapter's branch where adapters are switched on.
    pub fn forward(self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let params = self.params(pass);
        linear(pass, x, params)
    }

    /// As [`Linear::forward`] in f32 whatever activations are: the logits.
    pub fn logits(self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let params = self.params(pass);
        linear_f32(pass, x, params)
    }

    /// f(y).
    pub fn forward_activation(self, pass: &mut Pass<'_, '_>, x: Var, kind: Activation) -> Var {
        let params = self.params(pass);
        linear_activation(pass, x, params, kind)
    }

    fn params<'m>(self, pass: &Pass<'_, 'm>) -> LinearParams<'m> {
        let module = &pass.modules[self.0];
        LinearParams {
            weight: module.parameters[0].matrix(),
            bias: module.parameters.get(1).map(Parameter::param),
            adapter: (module.adapter.as_ref()).filter(|_| pass.has_adapters()),
            slots: &module.slots,
        }
    }
}

/// A layer norm.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    pub(crate) id: ModuleId,
    /// Added to the variance.
    pub(crate) eps: f32,
    /// Zeros in the place of a bias that the norm lacks.
    pub(crate) no_bias: Option<ModuleId>,
}

impl LayerNorm {
    /// Layer norm of x.
    pub fn forward(self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let params = self.params(pass.modules);
        layer_norm(pass, x, None, params, 0.0)
    }

    /// Layer norm of dropout(x) + residual.
    pub fn forward_sum(
        self,
        pass: &mut Pass<'_, '_>,
        [x, residual]: [Var; 2],
        dropout: f32,
    ) -> Var {
        let params = self.params(pass.modules);
        layer_norm(pass, x, Some(residual), params, dropout)
    }

    fn params(self, modules: &Modules) -> LayerNormParams<'_> {
        let module = &modules[self.id];
        LayerNormParams {
            weight: module.parameters[0].param(),
            bias: match self.no_bias {
                None => module.parameters[1].param(),
                Some(zeros) => modules[zeros].parameters[0].param(),
            },
            eps: self.eps,
        }
    }
}

/// An RMS norm.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    pub(crate) id: ModuleId,
    /// Width of what is normed: of x, or of a head of it.
    pub(crate) width: usize,
    /// What the weight means.
    pub(crate) factor: RmsFactor,
    /// Added to the mean square.
    pub(crate) eps: f32,
}

impl RmsNorm {
    /// RMS norm of x, or of each of its heads where those are what the norm is wide.
    pub fn forward(self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let params = RmsNormParams {
            weight: pass.modules[self.id].parameters[0].param(),
            factor: self.factor,
            eps: self.eps,
        };
        let cols = x.cols();
        if cols == self.width {
            return rms_norm(pass, x, None, params, 0.0);
        }
        let x = reshape(pass, x, self.width);
        let x = rms_norm(pass, x, None, params, 0.0);
        reshape(pass, x, cols)
    }
}

/// An embedding table [V, D].
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    pub(crate) id: ModuleId,
    /// V.
    pub(crate) rows: usize,
    /// A row that full training leaves alone.
    pub(crate) padding_idx: Option<u32>,
}

impl Embedding {
    /// The rows `ids` of this table.
    pub fn lookup<'m, 'i>(self, pass: &Pass<'_, 'm>, ids: &'i [u32]) -> Lookup<'m, 'i> {
        let module = &pass.modules[self.id];
        Lookup {
            table: module.parameters[0].as_table(),
            ids,
            padding_idx: self.padding_idx,
            rows: module.rows.as_ref().filter(|_| pass.has_adapters()),
            adapter: (module.adapter.as_ref()).filter(|_| pass.has_adapters()),
        }
    }

    /// A language model's head from this table, which must have been loaded as one; what is added
    /// to the logits is `end`'s.
    pub(crate) fn as_head<'m>(self, pass: &Pass<'_, 'm>, end: ModuleId) -> LmHead<'m> {
        let (table, end) = (&pass.modules[self.id], &pass.modules[end]);
        LmHead {
            table: table.parameters[0].matrix(),
            rows: table.rows.as_ref().filter(|_| pass.has_adapters()),
            adapter: (end.adapter.as_ref()).filter(|_| pass.has_adapters()),
            soft_cap: None,
        }
    }
}

/// A convolution over the tokens of each sequence, zeros beyond its ends.
#[derive(Debug, Clone, Copy)]
pub struct Convolution {
    pub(crate) id: ModuleId,
    /// Width of the window in tokens, odd.
    pub(crate) taps: usize,
}

impl Convolution {
    /// The convolution of x [M, in], for all rows or for those that are named.
    pub fn forward(
        self,
        pass: &mut Pass<'_, '_>,
        x: &Var,
        offsets: &Arc<[usize]>,
        rows: Option<&[usize]>,
    ) -> Var {
        let mut around = neighbours(pass, x, offsets, self.taps);
        if let Some(rows) = rows {
            around = gather(pass, &around, rows);
        }
        let params = Linear(self.id).params(pass);
        linear(pass, around, params)
    }
}

/// A bias that belongs to no linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Bias(pub(crate) ModuleId);

impl Bias {
    /// The values.
    pub fn value(self, modules: &Modules) -> &Param {
        modules[self.0].parameters[0].param()
    }
}
