//! The head of a language model: logits = h·Wᵀ over the vocabulary, and their cross entropy, some
//! rows at a time, so that [tokens, V] never stands in memory. Shapes: h, d_h [N, D], W [V, D],
//! labels `[N]`, logits of some rows [C, V]. The end of the tape: nothing is saved, the gradient is
//! made in the same walk and takes the place of h.

use std::ops::Range;

use lowrank_kernels::{CrossEntropyForm, DType};

use crate::call::{Call, CrossEntropy, Operand, Outer, Product, Rows, RowsMut, Transpose};
use crate::device::Device;
use crate::meter::Purpose;
use crate::param::{Gradients, Matrix, Trainables, WeightOperand};
use crate::tape::{Tape, Var};
use crate::tensor::{Scalar, Tensor};

/// Rows whose logits stand in memory at once, in f32: few, for the cache, and enough for the
/// product to run at full speed.
const LOGIT_ROWS: usize = 128;

/// Rows whose gradient stands in memory at once, and which share one turning of the table. In f32,
/// where the gradient takes the logits' place, 128 rows would save 14 MB of GPT-2 small and take 1%
/// longer.
fn gradient_rows(activations: DType) -> usize {
    match activations {
        DType::Bf16 => 512,
        DType::F32 => 192,
    }
}

/// What a profile calls the products with the vocabulary.
const LABEL: &str = "product with the vocabulary";

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
    let table = table.operand(h.device(), trainables, Transpose::No);
    product(h.into(), table.get(), &mut logits);
    logits
}

/// c = a·bᵀ, where b or its transpose is the vocabulary's table.
fn product<'a>(a: Rows<'a>, b: Operand<'a>, c: impl Into<RowsMut<'a>>) {
    let device = a.tensor.device().clone();
    device.run(Call::Product(Product {
        label: LABEL,
        ..Product::new(a, b, c)
    }));
}

/// The loss's sum over all rows; 0 on the dry device. Panics if the numbers disagree or a label is
/// outside the vocabulary.
pub fn lm_loss(h: &Var, targets: LmTargets<'_>, trainables: &Trainables) -> f64 {
    let device = h.tensor().device();
    let head = Head::new(device, targets, 0.0, trainables);
    let mut sum = Scalar::zero(device);
    for rows in parts(0..h.tensor().rows(), LOGIT_ROWS) {
        let mut logits = head.logits(h.tensor(), rows.clone());
        head.loss(&mut logits, rows, None, &mut sum);
    }
    sum.read()
}

/// As [`lm_loss`], and the backward of the tape that gave h: d(sum · grad_scale) is added to
/// `gradients`, also that of a trained table. The gradient of h takes h's place where nobody else
/// holds it.
pub fn lm_loss_backward(
    tape: Tape<'_>,
    h: Var,
    targets: LmTargets<'_>,
    grad_scale: f32,
    gradients: &mut Gradients,
) -> f64 {
    let device = tape.device().clone();
    let head = Head::new(&device, targets, grad_scale, tape.trainables());
    let (node, trained) = (h.node(), targets.table.trainable());
    let mut h = h.into_owned();
    let mut sum = Scalar::zero(&device);
    for rows in parts(0..h.rows(), gradient_rows(device.numerics().activations)) {
        let d = head.gradient(&h, rows.clone(), &mut sum);
        if let Some(id) = trained {
            let h = Rows::of(&h, rows.clone());
            device.run(Call::Outer(Outer::new(&d, h, gradients.get_mut(id))));
        }
        if node.is_some() {
            let d_h = RowsMut::of(&mut h, rows);
            product((&d).into(), head.table.transposed(), d_h);
        }
    }
    drop(head);
    tape.backward_from(node, h, gradients);
    sum.read()
}

/// `rows` in parts of `len` at most.
fn parts(rows: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(len)
        .map(move |first| first..(first + len).min(end))
}

/// The table as the products want it, and what the loss asks of the logits.
struct Head<'a> {
    table: WeightOperand<'a>,
    vocab: usize,
    labels: &'a [i64],
    form: CrossEntropyForm,
}

impl<'a> Head<'a> {
    fn new(
        device: &Device,
        targets: LmTargets<'a>,
        grad_scale: f32,
        trainables: &Trainables,
    ) -> Self {
        Head {
            table: targets.table.operand(device, trainables, Transpose::No),
            vocab: targets.table.shape(trainables)[0],
            labels: targets.labels,
            form: CrossEntropyForm {
                grad_scale,
                smoothing: targets.smoothing,
            },
        }
    }

    /// Adds the loss's sum of some rows; their logits' gradient [C, V] as activations are stored,
    /// with as many columns of zeros behind as make the product with the table fast.
    fn gradient(&self, h: &Tensor, rows: Range<usize>, sum: &mut Scalar) -> Tensor {
        let (device, purpose) = (h.device(), Purpose::Workspace);
        let width = device.padded_depth(self.vocab);
        let dtype = device.numerics().activations;
        if dtype == DType::F32 && width == self.vocab {
            let mut logits = self.logits(h, rows.clone());
            self.loss(&mut logits, rows, None, sum);
            return logits;
        }
        let mut d = Tensor::uninit_as(dtype, device, rows.len(), width, purpose);
        for part in parts(rows.clone(), LOGIT_ROWS) {
            let into = part.start - rows.start..part.end - rows.start;
            let mut logits = self.logits(h, part.clone());
            self.loss(&mut logits, part, Some(RowsMut::of(&mut d, into)), sum);
        }
        d
    }

    /// The logits [C, V] of some rows.
    fn logits(&self, h: &Tensor, rows: Range<usize>) -> Tensor {
        let mut logits = Tensor::uninit(h.device(), rows.len(), self.vocab, Purpose::Workspace);
        product(Rows::of(h, rows), self.table.get(), &mut logits);
        logits
    }

    /// Adds the loss's sum of some rows. Their logits' gradient takes the logits' place, or goes to
    /// a place of its own.
    fn loss(
        &self,
        logits: &mut Tensor,
        rows: Range<usize>,
        gradient: Option<RowsMut<'_>>,
        sum: &mut Scalar,
    ) {
        let device = logits.device().clone();
        device.run(Call::CrossEntropy(CrossEntropy {
            logits,
            labels: &self.labels[rows],
            form: self.form,
            gradient,
            sum,
        }));
    }
}
