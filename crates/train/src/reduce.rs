//! The gradient of an optimizer step, and the seam between its micro-batches and its update, where
//! several machines would put their gradients together. It knows no model.

use lowrank_engine::{Device, Gradients, Trainables};

use crate::error::TrainError;

/// The gradient of a step: the sum over its micro-batches, in their order. Each micro-batch's own
/// is summed from zero, so that it depends on that micro-batch alone: another machine gives it the
/// same bits.
#[derive(Debug)]
pub struct StepGradients {
    sum: Gradients,
    /// The place of a micro-batch's own, until it is added; none where a step has one micro-batch
    /// only. The first one's place is the sum's.
    own: Option<Gradients>,
}

impl StepGradients {
    /// Zeros for all of `trainables`, for steps of so many micro-batches at most.
    pub fn zeros(device: &Device, trainables: &Trainables, micro_batches: usize) -> Self {
        let zeros = || Gradients::zeros(device, trainables);
        StepGradients {
            sum: zeros(),
            own: (micro_batches > 1).then(zeros),
        }
    }

    /// Adds the gradient of the micro-batch of this number in its step, which `compute` adds to
    /// zeros; the first one's takes the place of the step before.
    ///
    /// # Errors
    /// Those of `compute`. Panics behind the first micro-batch of steps that have only one.
    pub fn add<T, E>(
        &mut self,
        index: usize,
        compute: impl FnOnce(&mut Gradients) -> Result<T, E>,
    ) -> Result<T, E> {
        if index == 0 {
            self.sum.clear();
            return compute(&mut self.sum);
        }
        let own = self.own.as_mut().expect("a step of one micro-batch");
        own.clear();
        let result = compute(own)?;
        self.sum.add(own);
        Ok(result)
    }

    /// The sum so far.
    pub fn sum(&self) -> &Gradients {
        &self.sum
    }

    /// The sum so far, to scale it.
    pub fn sum_mut(&mut self) -> &mut Gradients {
        &mut self.sum
    }
}

/// Adds the gradient of one micro-batch of a step, by its number there, to zeros; returns the sum
/// of its losses.
pub type ComputeMicroBatch<'a> = dyn FnMut(usize, &mut Gradients) -> Result<f64, TrainError> + 'a;

/// Puts together what the micro-batches of one step give, wherever they are computed.
pub trait Reducer: Send {
    /// Leaves in `gradients` the sum over the step's micro-batches, in their order, and returns
    /// that of their losses. `compute` computes one of them here.
    ///
    /// # Errors
    /// Those of `compute`; another process cannot be reached, or is in another step.
    fn reduce(
        &mut self,
        micro_batches: usize,
        gradients: &mut StepGradients,
        compute: &mut ComputeMicroBatch<'_>,
    ) -> Result<f64, TrainError>;
}

/// One process computes every micro-batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Reducer for Solo {
    fn reduce(
        &mut self,
        micro_batches: usize,
        gradients: &mut StepGradients,
        compute: &mut ComputeMicroBatch<'_>,
    ) -> Result<f64, TrainError> {
        let mut loss_sum = 0.0;
        for index in 0..micro_batches {
            loss_sum += gradients.add(index, |own| compute(index, own))?;
        }
        Ok(loss_sum)
    }
}
