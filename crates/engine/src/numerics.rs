//! How a device stores and multiplies values: three settings, of which none says what another is.

use std::fmt;

use lowrank_kernels::DType;
use lowrank_kernels::product::{Arithmetic, WeightFormat};
use serde::{Deserialize, Serialize};

/// How frozen matrices and tables are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFormat {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// Integers of eight bits with a scale for each row, multiplied as such.
    Int8,
    /// The matrices of layers in blocks of NF4; tables are left alone, as bitsandbytes does.
    Nf4,
    /// The matrices of layers in blocks of Q4_0, tables of tokens in Q8_0.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// The matrices of layers and the tables of tokens in blocks of Q8_0.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Each matrix in the blocks in which a GGUF file has it, tables of tokens too.
    Stored,
}

impl BaseFormat {
    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            BaseFormat::F32 => "f32",
            BaseFormat::Bf16 => "bf16",
            BaseFormat::Int8 => "int8",
            BaseFormat::Nf4 => "nf4",
            BaseFormat::Q4_0 => "q4_0",
            BaseFormat::Q8_0 => "q8_0",
            BaseFormat::Stored => "stored",
        }
    }
}

impl From<DType> for BaseFormat {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => BaseFormat::F32,
            DType::Bf16 => BaseFormat::Bf16,
        }
    }
}

/// The types of a device. Sums, norms, softmax, losses and everything trained are f32 in all of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numerics {
    /// How activations are stored.
    pub activations: DType,
    /// How frozen matrices and tables are stored.
    pub weights: BaseFormat,
    /// What multiplies. Operands in other types are widened or rounded on their way.
    pub arithmetic: Arithmetic,
}

impl Numerics {
    /// The format of matrices that are in no blocks.
    pub(crate) fn plain_weights(&self) -> WeightFormat {
        match (self.weights, self.activations) {
            (BaseFormat::F32, _) => WeightFormat::F32,
            (BaseFormat::Bf16, _) => WeightFormat::Bf16,
            (BaseFormat::Int8, _) => WeightFormat::Int8,
            (_, DType::F32) => WeightFormat::F32,
            (_, DType::Bf16) => WeightFormat::Bf16,
        }
    }
}

impl From<DType> for Numerics {
    /// One type for all three.
    fn from(activations: DType) -> Self {
        Numerics {
            activations,
            weights: activations.into(),
            arithmetic: match activations {
                DType::F32 => Arithmetic::F32,
                DType::Bf16 => Arithmetic::Bf16,
            },
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
