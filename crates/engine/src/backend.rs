//! What runs calls. A new kind of device is one more folder here: the compiler names the calls that
//! it lacks.
//!
//! Instruction sets, threads, packed layouts and values in host memory are matters of `cpu` alone.

mod cpu;
mod dry;
mod reference;

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::product::{Arithmetic, BlockRows, WeightFormat};

use crate::call::Call;
use crate::host::Host;
use crate::param::PackedMatrix;
use crate::space::{Place, Space};
use crate::tensor::{Scalar, Tensor};

pub use cpu::{Cpu, CpuSizes};
pub use dry::Dry;
pub use reference::Reference;

/// Whole rows on the host, from a row on: `values` is [rows, cols].
#[derive(Clone, Copy, Debug)]
pub struct BlockOfRows<'a> {
    /// The first row.
    pub first: usize,
    /// The values, row by row.
    pub values: &'a [f32],
}

/// The memory that a backend asked for beside a call's tensors.
pub struct Scratch<'a>(Option<&'a mut Place>);

impl<'a> From<Option<&'a mut Place>> for Scratch<'a> {
    fn from(place: Option<&'a mut Place>) -> Self {
        Scratch(place)
    }
}

impl<'a> Scratch<'a> {
    /// The bytes, in host memory.
    fn bytes(self) -> &'a mut [u8] {
        self.0.map_or(&mut [], Place::slice_mut)
    }
}

/// What a backend's layouts take, without the backend: a plan asks it for a device that is not
/// there.
pub trait Sizes: Send + Sync {
    /// Threads that compute.
    fn threads(&self) -> usize;

    /// Nominal bytes of a matrix [rows, depth] as the second operand of products.
    fn packed_bytes(&self, format: WeightFormat, rows: usize, depth: usize) -> usize;

    /// Rows that are laid out together: where a product's depth is a count of such rows, it runs
    /// faster padded to a multiple with zeros.
    fn depth_multiple(&self, arithmetic: Arithmetic) -> usize;

    /// Nominal bytes that a call needs beside its tensors. Values do not matter.
    fn scratch_bytes(&self, call: &Call<'_>) -> usize;
}

/// A kind of device. Every method but [`Backend::run`] is about memory.
///
/// The tensors that it is given belong to one device, which has checked them.
pub trait Backend: Send + Sync {
    /// What computes, for tables and records: `avx512_bf16`, for example.
    fn name(&self) -> &'static str;

    /// Its memory, in which the device lays tensors out.
    fn space(&self) -> &Space;

    /// What its layouts take.
    fn sizes(&self) -> Arc<dyn Sizes>;

    /// Whether it computes. If not, it gets no values and no calls.
    fn computes(&self) -> bool {
        true
    }

    /// Arithmetic on host memory.
    fn host(&self) -> Host {
        Host::default()
    }

    /// Runs `work` where calls cost least.
    fn install(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Runs a call, with as much scratch as [`Sizes::scratch_bytes`] asked for.
    fn run(&self, call: Call<'_>, scratch: Scratch<'_>);

    /// All values of a tensor as f32.
    fn read(&self, tensor: &Tensor, values: &mut [f32]);

    /// Raises each number to the largest magnitude of its column of a tensor.
    fn read_maxima(&self, tensor: &Tensor, maxima: &mut [f32]) {
        let mut values = vec![0.0; tensor.len()];
        self.read(tensor, &mut values);
        for row in values.chunks_exact(maxima.len().max(1)) {
            let columns = maxima.iter_mut().zip(row);
            columns.for_each(|(max, x)| *max = max.max(x.abs()));
        }
    }

    /// Sets some rows of a tensor, rounded to its storage.
    fn write(&self, tensor: &mut Tensor, block: BlockOfRows<'_>);

    /// The value of a scalar.
    fn read_scalar(&self, scalar: &Scalar) -> f64;

    /// Sets some rows of a packed matrix, rounded to its format. Blocks come in order; each but the
    /// last has a multiple of [`PackedMatrix::BLOCK_ROWS`].
    fn write_packed(&self, matrix: &mut PackedMatrix, block: BlockOfRows<'_>);

    /// Sets some rows of a matrix in blocks from their parts, as [`Backend::write_packed`] sets
    /// values.
    fn write_packed_blocks(&self, matrix: &mut PackedMatrix, rows: Range<usize>, parts: &BlockRows);

    /// Sets a packed matrix [rows, depth] from its transpose [depth, rows].
    fn write_packed_transposed(&self, matrix: &mut PackedMatrix, values: &[f32]);

    /// All values of a packed matrix, row by row, as f32.
    fn read_packed(&self, matrix: &PackedMatrix, values: &mut [f32]);
}
