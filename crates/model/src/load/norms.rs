//! Norms of a network, filled as its other modules are. It knows no family.

use lowrank_engine::Param;
use lowrank_engine::ops::norm::RmsFactor;
use lowrank_engine::param::Frozen;

use super::{Loader, Presence, Store, Wanted};
use crate::error::ModelError;
use crate::modules::{Kind, LayerNorm, Module, Parameter, RmsNorm, Value};

impl Loader<'_> {
    /// A layer norm.
    pub fn layer_norm(
        &mut self,
        path: &str,
        width: usize,
        eps: f32,
    ) -> Result<LayerNorm, ModelError> {
        self.layer_norm_of(path, width, eps, Presence::Required)
    }

    /// A layer norm, of the body or of a head.
    pub fn layer_norm_of(
        &mut self,
        path: &str,
        width: usize,
        eps: f32,
        presence: Presence,
    ) -> Result<LayerNorm, ModelError> {
        let weight = self.norm_weight(path, width, 1.0, presence)?;
        let bias = self.vector(format!("{path}.bias"), width, presence)?;
        let id = self.push(path, Kind::LayerNorm, vec![weight, bias]);
        Ok(LayerNorm {
            id,
            eps,
            no_bias: None,
        })
    }

    /// A layer norm that checkpoints hold no bias of.
    pub fn unbiased_layer_norm(
        &mut self,
        path: &str,
        width: usize,
        eps: f32,
        presence: Presence,
    ) -> Result<LayerNorm, ModelError> {
        let weight = self.norm_weight(path, width, 1.0, presence)?;
        let zeros = self.constant(format!("{path}.bias"), 0.0, width);
        let zeros = Module::new(&format!("{path}.bias"), Kind::Bias, vec![zeros]);
        let zeros = self.modules.push(Module {
            is_listed: false,
            ..zeros
        });
        Ok(LayerNorm {
            id: self.push(path, Kind::LayerNorm, vec![weight]),
            eps,
            no_bias: Some(zeros),
        })
    }

    /// A norm's weight, `mean` where it is new.
    fn norm_weight(
        &mut self,
        path: &str,
        width: usize,
        mean: f32,
        presence: Presence,
    ) -> Result<Parameter, ModelError> {
        self.parameter(Wanted {
            std: 0.0,
            mean,
            presence,
            ..self.weight(path, &[width], Store::Vector)
        })
    }

    /// A vector of one value that is in no checkpoint.
    fn constant(&self, name: String, value: f32, width: usize) -> Parameter {
        let values = Frozen::new(self.device, 1, width, &vec![value; width]);
        Parameter {
            name,
            shape: vec![width],
            value: Value::Rows(Param::Frozen(values)),
            is_new: false,
        }
    }

    /// An RMS norm.
    pub fn rms_norm(
        &mut self,
        path: &str,
        width: usize,
        factor: RmsFactor,
        eps: f32,
    ) -> Result<RmsNorm, ModelError> {
        let mean = match factor {
            RmsFactor::Weight => 1.0,
            RmsFactor::OnePlusWeight => 0.0,
        };
        let weight = self.norm_weight(path, width, mean, Presence::Required)?;
        let id = self.push(path, Kind::RmsNorm, vec![weight]);
        Ok(RmsNorm {
            id,
            width,
            factor,
            eps,
        })
    }

    /// A layer norm without parameters: weight 1, bias 0, in no checkpoint.
    pub fn plain_layer_norm(&mut self, path: &str, width: usize, eps: f32) -> LayerNorm {
        let constant = |name: &str, value| self.constant(format!("{path}.{name}"), value, width);
        let parameters = vec![constant("weight", 1.0), constant("bias", 0.0)];
        let module = Module::new(path, Kind::LayerNorm, parameters);
        let id = self.modules.push(Module {
            is_listed: false,
            ..module
        });
        LayerNorm {
            id,
            eps,
            no_bias: None,
        }
    }
}
