//! What a device has seen of the operands of products with integers: the largest magnitude of each
//! column, which tells the columns that are better kept beside.

use std::collections::HashMap;

use lowrank_kernels::product::WeightFormat;

use crate::backend::Backend;
use crate::call::{Product, Transpose};
use crate::param::PackedMatrix;

/// Largest magnitudes by the matrix and the way it was used.
#[derive(Debug, Default)]
pub struct Observed(HashMap<(usize, Transpose), Vec<f32>>);

impl Observed {
    /// Looks at the first operand of a product. A value that is not finite counts for nothing.
    pub(crate) fn look(&mut self, backend: &dyn Backend, product: &Product<'_>) {
        let (b, a) = (&product.b, product.a.tensor);
        if b.matrix.format() != WeightFormat::Int8 {
            return;
        }
        let [_, depth] = b.shape();
        let maxima = self.0.entry((b.matrix.place(), b.transpose));
        let maxima = maxima.or_insert_with(|| vec![0.0; depth]);
        backend.read_maxima(a, maxima);
    }

    /// Of each column of what was multiplied with a matrix, or with its transpose.
    pub(crate) fn maxima(&self, matrix: &PackedMatrix, transpose: Transpose) -> Option<&[f32]> {
        let maxima = self.0.get(&(matrix.place(), transpose))?;
        Some(maxima)
    }
}
