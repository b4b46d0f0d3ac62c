//! Whether a call's shapes fit together. What a user brings is checked before any call: what fails
//! here is a fault of ours.

use std::ops::Range;

use super::{Call, NormInput, TableRows};
use crate::tensor::Tensor;

pub(super) fn check_range(rows: &Range<usize>, tensor: &Tensor) {
    assert!(
        rows.start <= rows.end && rows.end <= tensor.rows(),
        "rows {rows:?} of {tensor:?}"
    );
}

fn check_same(a: &Tensor, b: &Tensor) {
    let kind = |t: &Tensor| (t.rows(), t.cols(), t.dtype());
    assert_eq!(kind(a), kind(b), "the tensors are of one kind");
}

fn check_shape(a: &Tensor, b: &Tensor) {
    let shape = |t: &Tensor| [t.rows(), t.cols()];
    assert_eq!(shape(a), shape(b), "the tensors are of one shape");
}

fn check_columns(few: &Tensor, columns: &[u32], many: &Tensor) {
    let fits = few.cols() == columns.len() && few.rows() == many.rows();
    let is_inside = |&column: &u32| (column as usize) < many.cols();
    assert!(
        fits && columns.iter().all(is_inside) && few.dtype() == many.dtype(),
        "columns of {many:?} and {few:?}"
    );
}

impl Call<'_> {
    /// Panics where the shapes do not fit together. How a model's shapes come about is checked
    /// before.
    #[expect(clippy::too_many_lines, reason = "one exhaustive match over `Call`")]
    pub(crate) fn check(&self) {
        match self {
            Call::Copy { x, out } => {
                check_range(&x.rows, x.tensor);
                check_range(&out.rows, out.tensor);
                let kind = |t: &Tensor, rows: &Range<usize>| (rows.len(), t.cols(), t.dtype());
                let (from, to) = (kind(x.tensor, &x.rows), kind(out.tensor, &out.rows));
                assert_eq!(from, to, "copied rows are of one kind");
            }
            Call::Convert { x, out } => check_shape(x, out),
            Call::Add { x, out } => check_same(x, out),
            Call::Product(product) => product.check(),
            Call::Outer(outer) => outer.check(),
            Call::Attention { inputs, .. } => inputs.check(),
            Call::AttentionBackward { inputs, d_out, .. } => {
                inputs.check();
                check_same(inputs.q, d_out);
            }
            Call::Norm(norm) => {
                check_same(norm.input.tensor(), norm.y);
                if let NormInput::Residual {
                    x,
                    residual: Some(residual),
                    ..
                } = &norm.input
                {
                    check_same(x, residual);
                }
            }
            Call::Activation { x: Some(x), y, .. } | Call::Dropout { x: Some(x), y, .. } => {
                check_same(x, y);
            }
            Call::ActivationBackward { pre, d, .. } => check_same(pre, d),
            Call::Embedding { tables, y } => {
                let fits = |t: &TableRows<'_>| t.ids.len() == y.rows();
                assert!(tables.iter().all(fits), "embedding: an id a row");
            }
            Call::Gather { x, rows, .. } => {
                let is_inside = |&row: &usize| row < x.rows();
                assert!(rows.iter().all(is_inside), "a gathered row is past the end");
            }
            Call::Scatter { x, rows, out } => {
                assert_eq!(
                    (x.rows(), x.cols()),
                    (rows.len(), out.cols()),
                    "scattered rows"
                );
                let is_inside = |&row: &u32| (row as usize) < out.rows();
                assert!(
                    rows.iter().all(is_inside),
                    "a scattered row is past the end"
                );
            }
            Call::Slice { x, first, y } => {
                assert!(
                    y.cols() > 0 && first + y.cols() <= x.cols(),
                    "a slice of columns"
                );
            }
            Call::PutColumns {
                x: few,
                columns,
                out: many,
            } => check_columns(few, columns, many),
            Call::TakeColumns {
                x: many,
                columns,
                out: few,
            } => check_columns(few, columns, many),
            Call::HeadPart { x, form, .. } => {
                assert!(
                    x.cols().is_multiple_of(form.head_dim * form.parts) && form.part < form.parts,
                    "head_part: {form:?} of {x:?}"
                );
            }
            Call::Unfold { x, offsets, .. } => {
                assert_eq!(
                    offsets.last(),
                    Some(&x.rows()),
                    "the offsets cover the rows"
                );
            }
            Call::Rotate { rotation, x, .. } => {
                let (form, rows) = (rotation.form, rotation.positions.len());
                assert_eq!(x.rows(), rows, "a position a token");
                assert!(
                    x.cols().is_multiple_of(form.head_dim),
                    "whole heads of {x:?}"
                );
            }
            Call::CrossEntropy(call) => {
                assert_eq!(call.logits.rows(), call.labels.len(), "a label a row");
            }
            Call::ElementLoss {
                logits, targets, ..
            } => assert_eq!(logits.len(), targets.len(), "a target a logit"),
            Call::AdamW {
                gradient,
                value,
                m,
                v,
                ..
            } => [gradient, &**m, &**v]
                .iter()
                .for_each(|t| check_same(t, value)),
            Call::Fill { .. }
            | Call::Scale { .. }
            | Call::Pack { .. }
            | Call::ExpandBlocks { .. }
            | Call::GatherBlocks { .. }
            | Call::CachedAttention(_)
            | Call::NormRecompute { .. }
            | Call::NormBackward { .. }
            | Call::NormParamGrads { .. }
            | Call::Gated { .. }
            | Call::GatedBackward { .. }
            | Call::Activation { x: None, .. }
            | Call::Dropout { x: None, .. }
            | Call::ColumnSum { .. }
            | Call::EmbeddingBackward { .. }
            | Call::ScatterAdd { .. }
            | Call::SliceBackward { .. }
            | Call::HeadPartBackward { .. }
            | Call::UnfoldBackward { .. }
            | Call::ClearScalar { .. }
            | Call::SumOfSquares { .. } => {}
        }
    }
}
