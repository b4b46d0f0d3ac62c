//! How a run stores and multiplies values: the type of activations, the format of frozen weights,
//! the arithmetic of products.

use lowrank_engine::{Arithmetic, BaseFormat, DType, Numerics};
use serde::{Deserialize, Serialize};

/// The three settings. What trains is f32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct NumericSettings {
    /// How activations are stored.
    pub precision: DType,
    /// How frozen weights are stored.
    pub base_format: BaseFormat,
    /// What multiplies.
    pub arithmetic: Arithmetic,
}

impl NumericSettings {
    /// One type for all.
    pub fn of(precision: DType) -> Self {
        Self::new(precision, None, None)
    }

    /// What is absent follows: the weights the activations, and products are bf16 where both of
    /// them are. Beside int8 weights and blocks they follow the activations.
    pub fn new(
        precision: DType,
        base_format: Option<BaseFormat>,
        arithmetic: Option<Arithmetic>,
    ) -> Self {
        let of_one = Numerics::from(precision);
        let base_format = base_format.unwrap_or(of_one.weights);
        let implied = match base_format {
            BaseFormat::F32 | BaseFormat::Bf16 if base_format != of_one.weights => Arithmetic::F32,
            _ => of_one.arithmetic,
        };
        Self {
            precision,
            base_format,
            arithmetic: arithmetic.unwrap_or(implied),
        }
    }
}

impl From<NumericSettings> for Numerics {
    fn from(settings: NumericSettings) -> Self {
        Numerics {
            activations: settings.precision,
            weights: settings.base_format,
            arithmetic: settings.arithmetic,
        }
    }
}

/// What a file holds: a run of older versions has the precision alone, which meant all three.
#[derive(Deserialize)]
struct Written {
    precision: DType,
    base_format: Option<BaseFormat>,
    arithmetic: Option<Arithmetic>,
}

impl From<Written> for NumericSettings {
    fn from(written: Written) -> Self {
        Self::new(written.precision, written.base_format, written.arithmetic)
    }
}
