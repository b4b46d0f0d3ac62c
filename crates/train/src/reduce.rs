//! The seam between the micro-batches of a step and its update, where several machines would put their gradients together.

use lowrank_engine::Gradients;

use crate::error::TrainError;

/// Puts together what the micro-batches of one step gave, wherever they were computed.
pub trait Reducer: Send {
    /// `gradients` and `loss_sum` are the sums over this process's micro-batches. After it they are those over all of the
    /// step's, in the order of the micro-batches; the sum of the losses is returned.
    ///
    /// # Errors
    /// Another process cannot be reached, or is in another step.
    fn reduce(&mut self, gradients: &mut Gradients, loss_sum: f64) -> Result<f64, TrainError>;
}

/// One process computes every micro-batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Reducer for Solo {
    fn reduce(&mut self, _: &mut Gradients, loss_sum: f64) -> Result<f64, TrainError> {
        Ok(loss_sum)
    }
}
