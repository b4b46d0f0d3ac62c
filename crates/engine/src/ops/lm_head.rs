//! The head of a language model: logits = h·Wᵀ over the vocabulary, and their cross entropy, some rows at a time, so that
//! [tokens, V] never stands in memory. Shapes: h, d_h [N, D], W [V, D], labels `[N]`, logits of some rows [C, V].
//! The end of the tape: nothing is saved, the gradient is made in the same walk and takes the place of h.

use std::ops::Range;

use lowrank_kernels as kernels;
use lowrank_kernels::{CrossEntropyForm, DType, PANEL, bf16};

use crate::meter::Purpose;
use crate::ops::product::{Packed, Product, add_outer};
use crate::param::{Gradients, Matrix, Trainables};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Rows whose logits stand in memory at once, in f32: few, for the cache, and enough for the product to run at full speed.
const LOGIT_ROWS: usize = 128;

/// Rows whose gradient stands in memory at once, and which share one turning of the table. In f32, where the gradient takes the
/// logits' place, 128 rows would save 14 MB of GPT-2 small and take 1% longer.
fn gradient_rows(precision: DType) -> usize {
    match precision {
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
    let table = Packed::weight(trainables, table);
    Product {
        label: LABEL,
        ..Product::new(h, &table)
    }
    .store(&mut logits);
    logits
}

/// The loss's sum over all rows; 0 on the dry device. Panics if the numbers disagree or a label is outside the vocabulary.
pub fn lm_loss(h: &Var, targets: LmTargets<'_>, trainables: &Trainables) -> f64 {
    let head = Head::new(targets, 0.0, trainables);
    let mut sum = 0.0;
    for rows in parts(0..h.tensor().rows(), LOGIT_ROWS) {
        sum += head.loss(&mut head.logits(h.tensor(), rows.clone()), rows, None);
    }
    sum
}

/// As [`lm_loss`], and the backward of the tape that gave h: d(sum · grad_scale) is added to `gradients`, also that of a
/// trained table. The gradient of h takes h's place where nobody else holds it.
pub fn lm_loss_backward(
    tape: Tape<'_>,
    h: Var,
    targets: LmTargets<'_>,
    grad_scale: f32,
    gradients: &mut Gradients,
) -> f64 {
    let head = Head::new(targets, grad_scale, tape.trainables());
    let (node, trained) = (h.node(), targets.table.trainable());
    let table = node.map(|_| head.table.turned());
    let mut h = h.into_owned();
    let (device, cols) = (h.device().clone(), h.cols());
    let mut sum = 0.0;
    for rows in parts(0..h.rows(), gradient_rows(device.precision())) {
        let (part_sum, d) = head.gradient(&h, rows.clone());
        sum += part_sum;
        if let Some(id) = trained {
            let h = h.duplicate_rows(rows.clone(), Purpose::Workspace);
            add_outer(&d, &h, 1.0, gradients.get_mut(id));
        }
        if let Some(table) = &table {
            let purpose = Purpose::Workspace;
            let mut d_h = Tensor::uninit_as(h.dtype(), &device, rows.len(), cols, purpose);
            Product {
                label: LABEL,
                ..Product::new(&d, table)
            }
            .store(&mut d_h);
            h.copy_rows(rows.start, &d_h, 0..rows.len());
        }
    }
    drop(table);
    drop(head);
    tape.backward_from(node, h, gradients);
    sum
}

/// `rows` in parts of `len` at most.
fn parts(rows: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(len)
        .map(move |first| first..(first + len).min(end))
}

/// The table as the products want it, and what the loss asks of the logits.
struct Head<'a> {
    table: Packed<'a>,
    vocab: usize,
    labels: &'a [i64],
    form: CrossEntropyForm,
}

impl<'a> Head<'a> {
    fn new(targets: LmTargets<'a>, grad_scale: f32, trainables: &Trainables) -> Self {
        Head {
            table: Packed::weight(trainables, targets.table),
            vocab: targets.table.shape(trainables)[0],
            labels: targets.labels,
            form: CrossEntropyForm {
                grad_scale,
                smoothing: targets.smoothing,
            },
        }
    }

    /// The loss's sum of some rows, and their logits' gradient [C, V] in the device's precision: in bf16 zeros fill its columns
    /// up to the panels of the table that it is multiplied by.
    fn gradient(&self, h: &Tensor, rows: Range<usize>) -> (f64, Tensor) {
        let device = h.device();
        match device.precision() {
            DType::F32 => {
                let mut logits = self.logits(h, rows.clone());
                let sum = self.loss(&mut logits, rows, None);
                (sum, logits)
            }
            DType::Bf16 => {
                let width = self.vocab.next_multiple_of(PANEL);
                let purpose = Purpose::Workspace;
                let mut d = Tensor::uninit_as(DType::Bf16, device, rows.len(), width, purpose);
                let mut sum = 0.0;
                for part in parts(rows.clone(), LOGIT_ROWS) {
                    let at = part.start - rows.start;
                    let mut logits = self.logits(h, part.clone());
                    sum += self.loss(&mut logits, part, Some((&mut d, at)));
                }
                (sum, d)
            }
        }
    }

    /// The logits [C, V] of some rows.
    fn logits(&self, h: &Tensor, rows: Range<usize>) -> Tensor {
        let h = h.duplicate_rows(rows, Purpose::Workspace);
        let mut logits = Tensor::uninit(h.device(), h.rows(), self.vocab, Purpose::Workspace);
        Product {
            label: LABEL,
            ..Product::new(&h, &self.table)
        }
        .store(&mut logits);
        logits
    }

    /// The loss's sum of some rows. Their logits' gradient takes the logits' place, or is written to the rows of a bf16 tensor
    /// that begin at a number.
    fn loss(
        &self,
        logits: &mut Tensor,
        rows: Range<usize>,
        gradient: Option<(&mut Tensor, usize)>,
    ) -> f64 {
        let (device, labels) = (logits.device().clone(), &self.labels[rows.clone()]);
        let mut losses = Tensor::uninit(&device, 1, rows.len(), Purpose::Workspace);
        let (mut sum, form, vocab) = (0.0, self.form, self.vocab);
        device.exec("cross_entropy", 0, |isa| {
            let logits = logits.data_mut();
            let losses: &mut [f32] = losses.data_mut();
            match gradient {
                None => kernels::cross_entropy(isa, logits, vocab, labels, form, losses),
                Some((d, at)) => {
                    let width = d.cols();
                    let d = &mut d.values_mut::<bf16>()[at * width..][..rows.len() * width];
                    kernels::cross_entropy_into(isa, (logits, vocab), labels, form, losses, d);
                }
            }
            sum = losses.iter().map(|&l| f64::from(l)).sum();
        });
        sum
    }
}
