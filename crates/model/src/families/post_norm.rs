//! What follows attention in a layer of BERT and its kin: projection, residual sum and norm, feed-forward, residual sum and
//! norm. Source: transformers `BertSelfOutput`, `BertIntermediate`, `BertOutput`. D = hidden size, F = intermediate size.

use lowrank_engine::{Activation, Var};

use crate::config::Facts;
use crate::error::ModelError;
use crate::load::{Loader, Presence};
use crate::modules::{LayerNorm, Linear};
use crate::pass::Pass;

/// The second half of a layer.
#[derive(Clone, Copy)]
pub(crate) struct PostNorm {
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl PostNorm {
    /// Loads that of the layer at `path`.
    pub(crate) fn build(
        path: &str,
        facts: &Facts,
        eps: f32,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (width, inner) = (facts.hidden_size, facts.intermediate_size);
        let linear = |loader: &mut Loader<'_>, name: &str, shape| {
            loader.linear(&format!("{path}.{name}"), shape, Presence::Required)
        };
        let norm = |loader: &mut Loader<'_>, name: &str| {
            loader.layer_norm(&format!("{path}.{name}"), width, eps)
        };
        Ok(PostNorm {
            attention_output: linear(loader, "attention.output.dense", [width, width])?,
            attention_norm: norm(loader, "attention.output.LayerNorm")?,
            intermediate: linear(loader, "intermediate.dense", [width, inner])?,
            output: linear(loader, "output.dense", [inner, width])?,
            output_norm: norm(loader, "output.LayerNorm")?,
        })
    }

    /// The layer's output from what attention gave and the layer's input, both [N, D]; `p` is the dropout of each sublayer.
    pub(crate) fn forward(
        self,
        pass: &mut Pass<'_, '_>,
        [context, x]: [Var; 2],
        activation: Activation,
        p: f32,
    ) -> Var {
        let h = self.attention_output.forward(pass, context);
        let x = self.attention_norm.forward_sum(pass, [h, x], p);
        let h = (self.intermediate).forward_activation(pass, x.clone(), activation);
        let h = self.output.forward(pass, h);
        self.output_norm.forward_sum(pass, [h, x], p)
    }
}
