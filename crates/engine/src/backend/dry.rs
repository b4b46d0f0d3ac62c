//! The backend that plans: it has the sizes of another one and no memory.

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::product::BlockRows;

use super::{Backend, BlockOfRows, Scratch, Sizes};
use crate::call::Call;
use crate::param::PackedMatrix;
use crate::space::Space;
use crate::tensor::{Scalar, Tensor};

/// A device that is planned for.
pub struct Dry {
    space: Space,
    sizes: Arc<dyn Sizes>,
}

impl Dry {
    /// With the sizes of another backend.
    pub fn new(sizes: Arc<dyn Sizes>) -> Self {
        let space = Space::unbacked();
        Dry { space, sizes }
    }
}

const NO_VALUES: &str = "what is only planned has no values";

impl Backend for Dry {
    fn name(&self) -> &'static str {
        "dry"
    }

    fn space(&self) -> &Space {
        &self.space
    }

    fn sizes(&self) -> Arc<dyn Sizes> {
        self.sizes.clone()
    }

    fn computes(&self) -> bool {
        false
    }

    fn run(&self, _: Call<'_>, _: Scratch<'_>) {}

    fn read(&self, _: &Tensor, _: &mut [f32]) {
        panic!("{NO_VALUES}");
    }

    fn write(&self, _: &mut Tensor, _: BlockOfRows<'_>) {}

    fn read_scalar(&self, _: &Scalar) -> f64 {
        0.0
    }

    fn write_packed(&self, _: &mut PackedMatrix, _: BlockOfRows<'_>) {}

    fn write_packed_blocks(&self, _: &mut PackedMatrix, _: Range<usize>, _: &BlockRows) {}

    fn write_packed_transposed(&self, _: &mut PackedMatrix, _: &[f32]) {}

    fn read_packed(&self, _: &PackedMatrix, _: &mut [f32]) {
        panic!("{NO_VALUES}");
    }
}
