//! The residual stream of a layer: what stands around attention. A projection and a feed-forward
//! layer, each summed into the stream, with norms before them or after the sums. Source:
//! transformers `GPT2Block`, `OPTDecoderLayer`, `BertSelfOutput`, `BertIntermediate`, `BertOutput`.
//! N = rows, D = hidden size, F = intermediate size.

use lowrank_engine::ops::add::add;
use lowrank_engine::{Activation, Var};

use crate::config::Facts;
use crate::error::ModelError;
use crate::load::{Loader, Presence};
use crate::modules::{LayerNorm, Linear};
use crate::pass::Pass;

/// Where a layer's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Before each sublayer.
    First,
    /// After each residual sum.
    Last,
}

/// What a layer has beside its attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Residual {
    pub(crate) norms: Norms,
    pub(crate) attention_norm: LayerNorm,
    /// [D, D].
    pub(crate) attention_output: Linear,
    pub(crate) mlp_norm: LayerNorm,
    /// From D to F.
    pub(crate) mlp_input: Linear,
    /// From F to D.
    pub(crate) mlp_output: Linear,
    pub(crate) activation: Activation,
    /// Dropout of a sublayer's output.
    pub(crate) dropout: f32,
}

impl Residual {
    /// Loads that of the layer at `path` under BERT's names.
    pub(crate) fn of_bert(
        path: &str,
        facts: &Facts,
        eps: f32,
        activation: Activation,
        dropout: f32,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (width, inner) = (facts.hidden_size, facts.intermediate_size);
        let linear = |loader: &mut Loader<'_>, name: &str, shape| {
            loader.linear(&format!("{path}.{name}"), shape, Presence::Required)
        };
        let norm = |loader: &mut Loader<'_>, name: &str| {
            loader.layer_norm(&format!("{path}.{name}"), width, eps)
        };
        Ok(Residual {
            norms: Norms::Last,
            attention_output: linear(loader, "attention.output.dense", [width, width])?,
            attention_norm: norm(loader, "attention.output.LayerNorm")?,
            mlp_input: linear(loader, "intermediate.dense", [width, inner])?,
            mlp_output: linear(loader, "output.dense", [inner, width])?,
            mlp_norm: norm(loader, "output.LayerNorm")?,
            activation,
            dropout,
        })
    }

    /// What attention reads of the stream x [N, D].
    pub(crate) fn before_attention(&self, pass: &mut Pass<'_, '_>, x: &Var) -> Var {
        match self.norms {
            Norms::First => self.attention_norm.forward(pass, x.clone()),
            Norms::Last => x.clone(),
        }
    }

    /// The layer's output from what attention gave and the stream x, both [N, D].
    pub(crate) fn after_attention(&self, pass: &mut Pass<'_, '_>, context: Var, x: Var) -> Var {
        let p = self.dropout;
        let h = self.attention_output.forward(pass, context);
        let (x, y) = match self.norms {
            Norms::First => {
                let x = add(pass, h, x, p);
                let y = self.mlp_norm.forward(pass, x.clone());
                (x, y)
            }
            Norms::Last => {
                let x = self.attention_norm.forward_sum(pass, [h, x], p);
                (x.clone(), x)
            }
        };
        let h = (self.mlp_input).forward_activation(pass, y, self.activation);
        let h = self.mlp_output.forward(pass, h);
        match self.norms {
            Norms::First => add(pass, h, x, p),
            Norms::Last => self.mlp_norm.forward_sum(pass, [h, x], p),
        }
    }
}
