//! AdamW with PyTorch's semantics over the trained values, and clipping by the global norm.

use lowrank_engine::call::Call;
use lowrank_engine::{AdamW, Device, Gradients, Purpose, Scalar, Tensor, Trainables};

use crate::config::OptimizationSettings;

/// The optimizer: its two moments for every trained value.
#[derive(Debug)]
pub struct Optimizer {
    device: Device,
    settings: AdamW,
    moments: Vec<Moments>,
}

/// First and second moment of one trained value, of its shape.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of the gradient.
    pub m: Tensor,
    /// Running mean of the gradient's square.
    pub v: Tensor,
}

impl Optimizer {
    /// An optimizer that has made no step.
    pub fn new(device: &Device, trainables: &Trainables, settings: &OptimizationSettings) -> Self {
        let zeros = |rows, cols| Tensor::zeros(device, rows, cols, Purpose::OptimizerState);
        let moments = trainables.iter().map(|(_, t)| {
            let (rows, cols) = (t.value.rows(), t.value.cols());
            Moments {
                m: zeros(rows, cols),
                v: zeros(rows, cols),
            }
        });
        Self {
            device: device.clone(),
            settings: AdamW {
                lr: settings.learning_rate,
                beta1: settings.adam_beta1,
                beta2: settings.adam_beta2,
                eps: settings.adam_epsilon,
                weight_decay: settings.weight_decay,
                step: 0,
            },
            moments: moments.collect(),
        }
    }

    /// One update of every value; `step` counts from 1.
    pub fn step(&mut self, trainables: &mut Trainables, gradients: &Gradients, lr: f64, step: u64) {
        let settings = AdamW {
            lr,
            step,
            ..self.settings
        };
        let device = self.device.clone();
        let ids: Vec<_> = trainables.iter().map(|(id, _)| id).collect();
        let moments = &mut self.moments;
        device.install(|| {
            for (id, Moments { m, v }) in ids.into_iter().zip(moments) {
                device.run(Call::AdamW {
                    settings,
                    gradient: gradients.get(id),
                    value: &mut trainables.get_mut(id).value,
                    m,
                    v,
                });
            }
        });
    }

    /// The moments, in the order of the trained values.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// The moments, to restore them.
    pub fn moments_mut(&mut self) -> &mut [Moments] {
        &mut self.moments
    }
}

/// Scales gradients so that their global norm is at most `max_norm`, and returns the norm before; 0 turns clipping off.
///
/// Source: `torch.nn.utils.clip_grad_norm_`: the factor is `max_norm / (norm + 1e-6)`, at most 1. The norm is summed in f64.
pub fn clip_grad_norm(device: &Device, gradients: &mut Gradients, max_norm: f64) -> f64 {
    device.install(|| {
        let mut squares = Scalar::zero(device);
        for x in gradients.iter() {
            let out = &mut squares;
            device.run(Call::SumOfSquares { x, out });
        }
        let norm = squares.read().sqrt();
        let factor = max_norm / (norm + 1e-6);
        if max_norm > 0.0 && factor < 1.0 {
            for x in gradients.iter_mut() {
                let factor = factor as f32;
                device.run(Call::Scale { x, factor });
            }
        }
        norm
    })
}
