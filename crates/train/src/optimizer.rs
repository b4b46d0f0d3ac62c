//! AdamW with PyTorch's semantics over the trained values, and clipping by the global norm.

use lowrank_engine::call::Call;
use lowrank_engine::{
    AdamW, Device, Gradients, Purpose, Role, Scalar, Tensor, Trainable, Trainables,
};

use crate::config::OptimizationSettings;

/// The optimizer: its two moments for every trained value.
#[derive(Debug)]
pub struct Optimizer {
    device: Device,
    settings: AdamW,
    loraplus_lr_ratio: f64,
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
            loraplus_lr_ratio: settings.loraplus_lr_ratio.unwrap_or(1.0),
            moments: moments.collect(),
        }
    }

    /// One update of every value; `step` counts from 1.
    pub fn step(&mut self, trainables: &mut Trainables, gradients: &Gradients, lr: f64, step: u64) {
        let device = self.device.clone();
        let ids: Vec<_> = trainables.iter().map(|(id, _)| id).collect();
        let (settings, loraplus) = (self.settings, self.loraplus_lr_ratio);
        let moments = &mut self.moments;
        device.install(|| {
            for (id, Moments { m, v }) in ids.into_iter().zip(moments) {
                let trainable = trainables.get_mut(id);
                let settings = AdamW {
                    lr: lr * lr_ratio(trainable, loraplus),
                    step,
                    ..settings
                };
                device.run(Call::AdamW {
                    settings,
                    gradient: gradients.get(id),
                    value: &mut trainable.value,
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

/// The learning rate of a trained value's group, as a multiple of the base rate. Source: Hayou et
/// al. 2024, "LoRA+"; PEFT `create_loraplus_optimizer`, whose second group holds every B and every
/// vector.
fn lr_ratio(trainable: &Trainable, loraplus: f64) -> f64 {
    match trainable.role {
        Role::LoraB => loraplus,
        Role::Parameter if trainable.shape.len() == 1 => loraplus,
        Role::LoraA | Role::Parameter => 1.0,
    }
}

/// Scales gradients so that their global norm is at most `max_norm`, and returns the norm before; 0
/// turns clipping off.
///
/// Source: `torch.nn.utils.clip_grad_norm_`: the factor is `max_norm / (norm + 1e-6)`, at most 1.
/// The norm is summed in f64.
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

#[cfg(test)]
mod tests {
    use lowrank_engine::Isa;

    use super::*;

    #[test]
    fn loraplus_moves_each_b_and_each_vector_by_the_ratio_of_what_moves_an_a() {
        let device = Device::cpu(Isa::best(), 1).expect("threads start");
        let mut trainables = Trainables::default();
        let shapes: [(Role, &[usize]); 4] = [
            (Role::LoraA, &[1, 2]),
            (Role::LoraB, &[2, 1]),
            (Role::Parameter, &[2]),
            (Role::Parameter, &[2, 1]),
        ];
        let ids = shapes.map(|(role, shape)| {
            trainables.add_as(
                role,
                &device,
                format!("{role:?} {shape:?}"),
                shape,
                &[0.0; 2],
            )
        });
        let mut gradients = Gradients::zeros(&device, &trainables);
        gradients.iter_mut().for_each(|gradient| gradient.fill(1.0));
        for ratio in [None, Some(16.0)] {
            let settings = OptimizationSettings {
                loraplus_lr_ratio: ratio,
                weight_decay: 0.0,
                ..OptimizationSettings::default()
            };
            for id in ids {
                trainables.get_mut(id).value.fill(0.0);
            }
            let mut optimizer = Optimizer::new(&device, &trainables, &settings);
            optimizer.step(&mut trainables, &gradients, 1e-3, 1);
            let ratio = ratio.unwrap_or(1.0);
            for (id, times) in ids.into_iter().zip([1.0, ratio, ratio, 1.0]) {
                let trainable = trainables.get(id);
                // The first step of AdamW is the learning rate against the gradient's sign.
                let want = (-1e-3 * times) as f32;
                for value in trainable.value.read() {
                    let message = format!("{}: {value}, expected {want}", trainable.name);
                    assert!((value - want).abs() <= 1e-6, "{message}");
                }
            }
        }
    }
}
