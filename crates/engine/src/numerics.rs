//! How a device stores and multiplies values: three settings, of which none says what another is.

use std::fmt;

use lowrank_kernels::DType;
use lowrank_kernels::product::{Arithmetic, WeightFormat};

/// The types of a device. Sums, norms, softmax, losses and everything trained are f32 in all of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numerics {
    /// How activations are stored.
    pub activations: DType,
    /// How frozen matrices and tables are stored.
    pub weights: WeightFormat,
    /// What multiplies. Operands in other types are widened or rounded on their way.
    pub arithmetic: Arithmetic,
}

impl From<DType> for Numerics {
    /// One type for all three.
    fn from(activations: DType) -> Self {
        let (weights, arithmetic) = match activations {
            DType::F32 => (WeightFormat::F32, Arithmetic::F32),
            DType::Bf16 => (WeightFormat::Bf16, Arithmetic::Bf16),
        };
        Numerics {
            activations,
            weights,
            arithmetic,
        }
    }
}

impl fmt::Display for Numerics {
    /// One name where it says all three.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            activations,
            weights,
            arithmetic,
        } = *self;
        f.write_str(activations.name())?;
        if self == &Self::from(activations) {
            return Ok(());
        }
        let (weights, arithmetic) = (weights.name(), arithmetic.name());
        write!(f, " with {weights} weights, multiplied in {arithmetic}")
    }
}
