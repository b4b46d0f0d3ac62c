//! Arithmetic on host memory: what is drawn, and what is done with values that were read back. Its
//! bits do not depend on where the values came from.

use lowrank_kernels::{self as kernels, Isa};

pub use lowrank_kernels::{fill_normal, fill_uniform};

/// Functions of rows of values, with the instructions of a device's choice.
#[derive(Clone, Copy, Debug)]
pub struct Host(Isa);

impl Host {
    pub(crate) fn new(isa: Isa) -> Self {
        Host(isa)
    }

    /// The place of the first of the largest values. Panics if there are none; NaNs make it
    /// unspecified.
    pub fn argmax(self, x: &[f32]) -> usize {
        kernels::argmax(self.0, x)
    }

    /// x = ln softmax(x). Sums are f32; x is finite or -∞, not all of it -∞.
    pub fn log_softmax(self, x: &mut [f32]) {
        kernels::log_softmax(self.0, x);
    }

    /// Whether every value is finite.
    pub fn all_finite(self, x: &[f32]) -> bool {
        kernels::all_finite(self.0, x)
    }
}

impl Default for Host {
    /// The widest instructions that this machine has.
    fn default() -> Self {
        Host(Isa::best())
    }
}
