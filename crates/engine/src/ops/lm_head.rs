//! The head of a language model: logits = h·Wᵀ over the vocabulary, and their cross entropy, a chunk of rows at a time, so
//! that [tokens, V] never stands in memory. Shapes: h, d_h [N, D], W [V, D], labels `[N]`, logits of a chunk [C, V].
//! The end of the tape: nothing is saved, the gradient is made in the same walk.

use lowrank_kernels as kernels;
use lowrank_kernels::CrossEntropyForm;

use crate::meter::Purpose;
use crate::ops::product::{Packed, Product, add_outer};
use crate::param::{Gradients, Matrix, Trainables};
use crate::tape::Var;
use crate::tensor::{Tensor, with_element};

/// Rows of a chunk: enough for the products to run at full speed.
const CHUNK_ROWS: usize = 256;

/// What the hidden states are held against.
#[derive(Debug, Clone, Copy)]
pub struct LmTargets<'a> {
    /// W [V, D].
    pub table: &'a Matrix,
    /// The next token of each row `[N]`.
    pub labels: &'a [i64],
    /// ε of label smoothing, from 0 to below 1.
    pub smoothing: f32,
}

/// The logits [N, V] of a few rows, as generation needs them.
pub fn lm_logits(h: &Tensor, table: &Matrix, trainables: &Trainables) -> Tensor {
    let vocab = table.shape(trainables)[0];
    let mut logits = Tensor::uninit(h.device(), h.rows(), vocab, Purpose::Workspace);
    Product::new(h, &Packed::weight(trainables, table)).store(&mut logits);
    logits
}

/// The loss's sum over all rows; 0 on the dry device. Panics if the numbers disagree or a label is outside the vocabulary.
pub fn lm_loss(h: &Var, targets: LmTargets<'_>, trainables: &Trainables) -> f64 {
    let mut sum = 0.0;
    let packed = Packed::weight(trainables, targets.table);
    for_each_chunk(h.tensor(), |first, h| {
        let vocab = targets.table.shape(trainables)[0];
        let mut logits = Tensor::uninit(h.device(), h.rows(), vocab, Purpose::Workspace);
        Product::new(&h, &packed).store(&mut logits);
        sum += cross_entropy(&mut logits, &targets, first, 0.0);
    });
    sum
}

/// As [`lm_loss`], and d(sum · grad_scale) / dh [N, D]; the gradient of a trained table is added to `gradients`.
pub fn lm_loss_backward(
    h: &Var,
    targets: LmTargets<'_>,
    grad_scale: f32,
    trainables: &Trainables,
    gradients: &mut Gradients,
) -> (f64, Tensor) {
    let tensor = h.tensor();
    let (device, cols) = (tensor.device(), tensor.cols());
    let vocab = targets.table.shape(trainables)[0];
    let mut d_h = Tensor::activations(device, tensor.rows(), cols);
    let packed = Packed::weight(trainables, targets.table);
    let transposed = h
        .requires_grad()
        .then(|| Packed::weight_transposed(trainables, targets.table));
    let mut sum = 0.0;
    for_each_chunk(tensor, |first, h| {
        let mut logits = Tensor::uninit(device, h.rows(), vocab, Purpose::Workspace);
        Product::new(&h, &packed).store(&mut logits);
        sum += cross_entropy(&mut logits, &targets, first, grad_scale);
        if let Some(id) = targets.table.trainable() {
            add_outer(&logits, &h, 1.0, gradients.get_mut(id));
        }
        let Some(transposed) = &transposed else {
            return;
        };
        let mut d = Tensor::uninit_as(d_h.dtype(), device, h.rows(), cols, Purpose::Workspace);
        Product::new(&logits, transposed).store(&mut d);
        let dtype = d.dtype();
        device.exec("copy", 0, |_| {
            with_element!(dtype, E => {
                d_h.values_mut::<E>()[first * cols..][..d.len()].copy_from_slice(d.values());
            });
        });
    });
    (sum, d_h)
}

/// Calls `work` with the number of the first row and a copy of the rows of each chunk.
fn for_each_chunk(h: &Tensor, mut work: impl FnMut(usize, Tensor)) {
    for first in (0..h.rows()).step_by(CHUNK_ROWS) {
        let rows = first..(first + CHUNK_ROWS).min(h.rows());
        work(first, h.duplicate_rows(rows, Purpose::Workspace));
    }
}

/// The loss's sum of one chunk; its logits become their gradient.
fn cross_entropy(
    logits: &mut Tensor,
    targets: &LmTargets<'_>,
    first: usize,
    grad_scale: f32,
) -> f64 {
    let (device, rows, vocab) = (logits.device().clone(), logits.rows(), logits.cols());
    let labels = &targets.labels[first..first + rows];
    let mut losses = Tensor::uninit(&device, 1, rows, Purpose::Workspace);
    let mut sum = 0.0;
    device.exec("cross_entropy", 0, |isa| {
        let form = CrossEntropyForm {
            grad_scale,
            smoothing: targets.smoothing,
        };
        let d = logits.data_mut();
        kernels::cross_entropy(isa, d, vocab, labels, form, losses.data_mut());
        sum = losses.data().iter().map(|&l| f64::from(l)).sum();
    });
    sum
}
