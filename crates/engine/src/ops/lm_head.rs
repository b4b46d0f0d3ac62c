//! The head of a language model: logits = h·Wᵀ over the vocabulary, and their cross entropy, some
//! rows at a time, so that [tokens, V] never stands in memory. Shapes: h, d_h [N, D], W [V, D],
//! labels `[N]`, logits of some rows [C, V]. The end of the tape: nothing is saved, the gradient is
//! made in the same walk and takes the place of h.

mod term;

use std::ops::Range;

use lowrank_kernels::{Activation, CrossEntropyForm, DType, Dropout};

use crate::call::{Call, CrossEntropy, Operand, Outer, Product, Rows, RowsMut, Transpose};
use crate::device::Device;
use crate::meter::Purpose;
use crate::ops::linear::Adapter;
use crate::ops::trained_rows::{HeadRows, TrainedRows};
use crate::param::{Gradients, Matrix, Trainables, WeightOperand};
use crate::tape::{Tape, Var};
use crate::tensor::{Scalar, Tensor};
use term::Term;

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

/// Bytes of logits and their gradient that stand in memory at once: a larger vocabulary has fewer
/// rows there.
const MOST_BYTES: usize = 100_000_000;

/// Rows of logits that are read back at once.
const COMPARED_ROWS: usize = 8;

/// Rows are taken in multiples of so many, where the bytes allow more.
const ROW_STEP: usize = 8;

/// What a profile calls the products with the vocabulary.
const LABEL: &str = "product with the vocabulary";

/// What makes logits of hidden states.
#[derive(Debug, Clone, Copy)]
pub struct LmHead<'a> {
    /// W [V, D].
    pub table: &'a Matrix,
    /// Rows of it that are trained in its place.
    pub rows: Option<&'a TrainedRows>,
    /// A low-rank term of the logits.
    pub adapter: Option<&'a Adapter>,
    /// c of c·tanh(logit/c).
    pub soft_cap: Option<f32>,
}

impl LmHead<'_> {
    /// V.
    pub fn vocab(&self, trainables: &Trainables) -> usize {
        self.table.shape(trainables)[0]
    }
}

/// What the hidden states are held against.
#[derive(Debug, Clone, Copy)]
pub struct LmTargets<'a> {
    /// What makes the logits.
    pub head: LmHead<'a>,
    /// The next token of each row `[N]`.
    pub labels: &'a [i64],
    /// ε of label smoothing, from 0 to below 1.
    pub smoothing: f32,
}

/// The logits [N, V] of a few rows, as generation needs them.
pub fn lm_logits(h: &Tensor, head: LmHead<'_>, trainables: &Trainables) -> Tensor {
    let targets = LmTargets {
        head,
        labels: &[],
        smoothing: 0.0,
    };
    Head::new(h, targets, Pass::Forward, trainables).capped_logits(h, 0..h.rows())
}

/// x / c.
fn over_cap(logits: &mut Tensor, cap: f32) {
    let device = logits.device().clone();
    let factor = 1.0 / cap;
    device.run(Call::Scale { x: logits, factor });
}

/// c·tanh(x) of x / c.
fn cap_in_place(x: &mut Tensor, cap: f32) {
    let device = x.device().clone();
    device.run(Call::Activation {
        kind: Activation::Tanh,
        x: None,
        y: x,
    });
    device.run(Call::Scale { x, factor: cap });
}

/// c = a·bᵀ, where b or its transpose is the vocabulary's table.
fn product<'a>(a: Rows<'a>, b: Operand<'a>, c: impl Into<RowsMut<'a>>) {
    let device = a.tensor.device().clone();
    device.run(Call::Product(Product {
        label: LABEL,
        ..Product::new(a, b, c)
    }));
}

/// What a language model says of the next tokens of all rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LmLoss {
    /// The loss's sum.
    pub sum: f64,
    /// Rows whose largest logit is that of the label.
    pub hits: usize,
}

/// The loss's sum over all rows, and how many labels are the most probable tokens; both 0 on the
/// dry device. Panics if the numbers disagree or a label is outside the vocabulary.
pub fn lm_loss(h: &Var, targets: LmTargets<'_>, trainables: &Trainables) -> LmLoss {
    let device = h.tensor().device();
    let head = Head::new(h.tensor(), targets, Pass::Forward, trainables);
    let (mut sum, mut hits) = (Scalar::zero(device), 0);
    let step = fitting(LOGIT_ROWS, |rows| 4 * (rows + COMPARED_ROWS) * head.vocab);
    for rows in parts(0..h.tensor().rows(), step) {
        let mut logits = head.capped_logits(h.tensor(), rows.clone());
        hits += head.hits(&logits, rows.clone());
        head.loss(&mut logits, rows, None, &mut sum);
    }
    LmLoss {
        sum: sum.read(),
        hits,
    }
}

/// As [`lm_loss`], and the backward of the tape that gave h: d(sum · grad_scale) is added to
/// `gradients`, also that of a trained table. The gradient of h takes h's place where nobody else
/// holds it.
pub fn lm_loss_backward(
    mut tape: Tape<'_>,
    h: Var,
    targets: LmTargets<'_>,
    grad_scale: f32,
    gradients: &mut Gradients,
) -> f64 {
    let device = tape.device().clone();
    let adapter = targets.head.adapter;
    let dropout = adapter.and_then(|of| tape.dropout_at(of.dropout, of.site));
    let pass = Pass::Backward {
        grad_scale,
        dropout,
    };
    let mut head = Head::new(h.tensor(), targets, pass, tape.trainables());
    let (node, trained) = (h.node(), targets.head.table.trainable());
    let mut h = h.into_owned();
    let mut sum = Scalar::zero(&device);
    let chunk = head.chunk(&device);
    for rows in parts(0..h.rows(), chunk.gradient) {
        let mut d = head.gradient(&h, rows.clone(), chunk, &mut sum);
        if let Some(id) = trained {
            let h = Rows::of(&h, rows.clone());
            device.run(Call::Outer(Outer::new(&d, h, gradients.get_mut(id))));
        }
        let own = head.rows.as_ref().map(|own| {
            let h = Rows::of(&h, rows.clone());
            own.take(&mut d, h, gradients)
        });
        let d_t = (head.term.as_ref()).map(|term| term.backward(&d, &h, rows.clone(), gradients));
        if node.is_none() {
            continue;
        }
        let d_h = RowsMut::of(&mut h, rows.clone());
        product((&d).into(), head.table.transposed(), d_h);
        if let Some((own, d)) = head.rows.as_ref().zip(own) {
            own.add_to_input(&d, RowsMut::of(&mut h, rows.clone()));
        }
        if let Some((term, d_t)) = head.term.as_mut().zip(d_t) {
            term.add_to_input(&d_t, &mut h, rows);
        }
    }
    if let Some(term) = head.term.take() {
        term.finish(&mut h);
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

/// `most`, or the largest number of rows below that keeps within [`MOST_BYTES`].
fn fitting(most: usize, bytes: impl Fn(usize) -> usize) -> usize {
    let fits = |rows: &usize| bytes(*rows) <= MOST_BYTES;
    let fewer = (1..=most / ROW_STEP).rev().map(|n| n * ROW_STEP);
    Some(most).into_iter().chain(fewer).find(fits).unwrap_or(1)
}

/// Rows that stand in memory at once.
#[derive(Clone, Copy)]
struct Chunk {
    /// Of the gradient.
    gradient: usize,
    /// Of the logits that it is made of, in f32.
    logits: usize,
}

/// What logits are computed for.
#[derive(Clone, Copy)]
enum Pass {
    /// Themselves, or their loss.
    Forward,
    /// Their gradient, times a factor; the adapter's input may be dropped out.
    Backward {
        grad_scale: f32,
        dropout: Option<Dropout>,
    },
}

/// The table as the products want it, and what the loss asks of the logits.
struct Head<'a> {
    table: WeightOperand<'a>,
    rows: Option<HeadRows<'a>>,
    term: Option<Term<'a>>,
    vocab: usize,
    soft_cap: Option<f32>,
    labels: &'a [i64],
    form: CrossEntropyForm,
}

impl<'a> Head<'a> {
    fn new(h: &Tensor, targets: LmTargets<'a>, pass: Pass, trainables: &Trainables) -> Self {
        let (device, head) = (h.device(), targets.head);
        let (grad_scale, dropout) = match pass {
            Pass::Forward => (0.0, None),
            Pass::Backward {
                grad_scale,
                dropout,
            } => (grad_scale, dropout),
        };
        let term = |adapter| Term::new(adapter, h, dropout, trainables);
        Head {
            table: head.table.operand(device, trainables, Transpose::No),
            rows: (head.rows).map(|rows| HeadRows::new(device, rows, trainables)),
            term: head.adapter.map(term),
            vocab: head.vocab(trainables),
            soft_cap: head.soft_cap,
            labels: targets.labels,
            form: CrossEntropyForm {
                grad_scale,
                smoothing: targets.smoothing,
            },
        }
    }

    /// Columns of the gradient: with zeros behind, where those make the product with the table
    /// fast. A capped logit's gradient is made in the logits' place.
    fn width(&self, device: &Device) -> usize {
        match self.soft_cap {
            Some(_) => self.vocab,
            None => device.padded_depth(self.vocab),
        }
    }

    /// Whether the gradient takes the logits' place.
    fn is_in_place(&self, device: &Device) -> bool {
        device.numerics().activations == DType::F32 && self.width(device) == self.vocab
    }

    /// How many rows a pass with gradients takes at once.
    fn chunk(&self, device: &Device) -> Chunk {
        let dtype = device.numerics().activations;
        let (most, vocab) = (gradient_rows(dtype), self.vocab);
        // The slope of a cap is made of the values before it.
        let copies = 1 + usize::from(self.soft_cap.is_some());
        if self.is_in_place(device) {
            let gradient = fitting(most, |rows| 4 * rows * vocab * copies);
            return Chunk {
                gradient,
                logits: gradient,
            };
        }
        let of_logits = |gradient: usize| (gradient * LOGIT_ROWS / most).max(1);
        let width = self.width(device);
        let gradient = fitting(most, |rows| {
            rows * width * dtype.bytes() + 4 * of_logits(rows) * vocab * copies
        });
        Chunk {
            gradient,
            logits: of_logits(gradient),
        }
    }

    /// Adds the loss's sum of some rows; their logits' gradient [C, V] as activations are stored.
    fn gradient(&self, h: &Tensor, rows: Range<usize>, chunk: Chunk, sum: &mut Scalar) -> Tensor {
        let (device, purpose) = (h.device(), Purpose::Workspace);
        if self.is_in_place(device) {
            return self.gradient_in_place(h, rows, sum);
        }
        let (dtype, width) = (device.numerics().activations, self.width(device));
        let mut d = Tensor::uninit_as(dtype, device, rows.len(), width, purpose);
        for part in parts(rows.clone(), chunk.logits) {
            let into = part.start - rows.start..part.end - rows.start;
            if self.soft_cap.is_some() {
                let gradient = self.gradient_in_place(h, part, sum);
                let mut narrow = Tensor::uninit_as(dtype, device, gradient.rows(), width, purpose);
                device.run(Call::Convert {
                    x: &gradient,
                    out: &mut narrow,
                });
                device.run(Call::Copy {
                    x: (&narrow).into(),
                    out: RowsMut::of(&mut d, into),
                });
                continue;
            }
            let mut logits = self.logits(h, part.clone());
            self.loss(&mut logits, part, Some(RowsMut::of(&mut d, into)), sum);
        }
        d
    }

    /// The gradient of some rows in f32, in their logits' place.
    fn gradient_in_place(&self, h: &Tensor, rows: Range<usize>, sum: &mut Scalar) -> Tensor {
        let mut logits = self.logits(h, rows.clone());
        let Some(cap) = self.soft_cap else {
            self.loss(&mut logits, rows, None, sum);
            return logits;
        };
        let device = h.device();
        over_cap(&mut logits, cap);
        let mut pre = logits.uninit_like(Purpose::Workspace);
        device.run(Call::Copy {
            x: (&logits).into(),
            out: (&mut pre).into(),
        });
        cap_in_place(&mut logits, cap);
        self.loss(&mut logits, rows, None, sum);
        device.run(Call::ActivationBackward {
            kind: Activation::Tanh,
            pre: &pre,
            d: &mut logits,
        });
        logits
    }

    /// The logits [C, V] of some rows.
    fn logits(&self, h: &Tensor, rows: Range<usize>) -> Tensor {
        let device = h.device();
        let mut logits = Tensor::uninit(device, rows.len(), self.vocab, Purpose::Workspace);
        let inner = (self.term.as_ref()).map(|term| (term, term.inner(h, rows.clone())));
        let low_rank = inner.as_ref().map(|(term, t)| term.of(t));
        device.run(Call::Product(Product {
            label: LABEL,
            low_rank: low_rank.as_slice(),
            ..Product::new(Rows::of(h, rows.clone()), self.table.get(), &mut logits)
        }));
        if let Some(own) = &self.rows {
            own.put(Rows::of(h, rows), &mut logits);
        }
        logits
    }

    /// The same, capped where they are.
    fn capped_logits(&self, h: &Tensor, rows: Range<usize>) -> Tensor {
        let mut logits = self.logits(h, rows);
        if let Some(cap) = self.soft_cap {
            over_cap(&mut logits, cap);
            cap_in_place(&mut logits, cap);
        }
        logits
    }

    /// How many rows of logits [C, V] have their largest value at the label of these rows.
    fn hits(&self, logits: &Tensor, rows: Range<usize>) -> usize {
        let device = logits.device();
        let (labels, mut hits) = (&self.labels[rows.clone()], 0);
        for part in parts(0..rows.len(), COMPARED_ROWS) {
            let purpose = Purpose::Workspace;
            let mut few = Tensor::uninit(device, part.len(), self.vocab, purpose);
            device.run(Call::Copy {
                x: Rows::of(logits, part.clone()),
                out: (&mut few).into(),
            });
            if device.is_dry() {
                continue;
            }
            let values = few.read();
            let rows = values.chunks_exact(self.vocab).zip(&labels[part]);
            let is_hit = |(row, label): &(&[f32], &i64)| {
                i64::try_from(device.host().argmax(row)).is_ok_and(|best| best == **label)
            };
            hits += rows.filter(is_hit).count();
        }
        hits
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
