//! What a call reads and writes.

use super::{
    AttentionGradients, Call, Epilogue, GateUp, GateUpGradients, Norm, NormForm, NormInput,
    NormKind, NormSaved, Outer, TableRef,
};
use crate::storage::Storage;
use crate::tensor::Tensor;

impl Call<'_> {
    /// Shows everything that it reads or writes.
    #[expect(clippy::too_many_lines, reason = "one exhaustive match over `Call`")]
    pub(crate) fn for_each_storage(&self, visit: &mut dyn FnMut(&Storage)) {
        let mut tensors = |all: &[&Tensor]| all.iter().for_each(|t| visit(t.storage()));
        match self {
            Call::Fill { out, .. } => tensors(&[out]),
            Call::Copy { x, out } => tensors(&[x.tensor, out.tensor]),
            Call::Convert { x, out }
            | Call::Add { x, out }
            | Call::Scatter { x, out, .. }
            | Call::ColumnSum { x, out } => {
                tensors(&[x, out]);
            }
            Call::Scale { x, .. } => tensors(&[x]),
            Call::Pack { x, out, .. } => {
                tensors(&[x]);
                visit(out.storage());
            }
            Call::Product(product) => {
                tensors(&[product.a.tensor, product.c.tensor]);
                product.bias.iter().for_each(|bias| tensors(&[bias]));
                match &product.epilogue {
                    Epilogue::Activate { pre: Some(pre), .. } => tensors(&[pre]),
                    Epilogue::ActivateBackward { pre, .. } => tensors(&[pre]),
                    Epilogue::Write(_) | Epilogue::Activate { pre: None, .. } => {}
                }
                for term in product.low_rank {
                    visit(term.h.storage());
                    visit(term.g.matrix.storage());
                }
                visit(product.b.matrix.storage());
            }
            Call::Outer(Outer { a, b, out, .. }) => tensors(&[a, b.tensor, out]),
            Call::ExpandBlocks { stored, out, .. } => tensors(&[stored, out]),
            Call::GatherBlocks { whole, out, .. } => tensors(&[whole, out]),
            Call::Attention { inputs, out, lse } => {
                tensors(&[out, lse]);
                inputs.for_each(&mut |t| visit(t.storage()));
            }
            Call::AttentionBackward {
                inputs,
                out,
                lse,
                d_out,
                gradients,
            } => {
                let AttentionGradients { d_q, d_k, d_v, .. } = gradients;
                tensors(&[out, lse, d_out, d_q, d_k, d_v]);
                let tables = gradients.d_keys.iter().chain(&gradients.d_queries);
                tables.for_each(|d| tensors(&[d]));
                inputs.for_each(&mut |t| visit(t.storage()));
            }
            Call::CachedAttention(call) => tensors(&[call.q, call.k, call.v, call.out]),
            Call::Norm(Norm {
                input,
                form,
                y,
                mean,
                rstd,
            }) => {
                tensors(&[input.tensor(), y, rstd]);
                mean.iter().for_each(|mean| tensors(&[mean]));
                if let NormInput::Residual { residual, .. } = input {
                    residual.iter().for_each(|residual| tensors(&[residual]));
                }
                form.for_each(&mut |t| visit(t.storage()));
            }
            Call::NormRecompute { saved, form, y: of }
            | Call::NormBackward { saved, form, d: of } => {
                tensors(&[of]);
                saved.for_each(&mut |t| visit(t.storage()));
                form.for_each(&mut |t| visit(t.storage()));
            }
            Call::NormParamGrads {
                saved,
                d_y,
                d_weight,
                d_bias,
            } => {
                tensors(&[d_y, d_weight]);
                d_bias.iter().for_each(|d_bias| tensors(&[d_bias]));
                saved.for_each(&mut |t| visit(t.storage()));
            }
            Call::Rotate { rotation, x, .. } => tensors(&[rotation.cos, rotation.sin, x]),
            Call::Gated { x, y, .. } => {
                tensors(&[y]);
                x.for_each(&mut |t| visit(t.storage()));
            }
            Call::GatedBackward { x, d_y, d_x, .. } => {
                tensors(&[d_y]);
                match d_x {
                    GateUpGradients::Separate(d_gate, d_up) => tensors(&[d_gate, d_up]),
                    GateUpGradients::Halves(d) => tensors(&[d]),
                }
                x.for_each(&mut |t| visit(t.storage()));
            }
            Call::Activation { x, y, .. } | Call::Dropout { x, y, .. } => {
                x.iter().for_each(|x| tensors(&[x]));
                tensors(&[y]);
            }
            Call::ActivationBackward { pre, d, .. } => tensors(&[pre, d]),
            Call::Embedding { tables, y } => {
                tensors(&[y]);
                tables.iter().for_each(|rows| match rows.table {
                    TableRef::Rows(table) => visit(table.storage()),
                    TableRef::Packed(table) => visit(table.storage()),
                });
            }
            Call::EmbeddingBackward { d_y, d_table, .. } => tensors(&[d_y, d_table]),
            Call::Gather { x, y, .. } | Call::Slice { x, y, .. } | Call::Unfold { x, y, .. } => {
                tensors(&[x, y]);
            }
            Call::PutColumns { x, out, .. } => tensors(&[x, out]),
            Call::TakeColumns { x, out, .. } => tensors(&[x, out]),
            Call::ScatterAdd { d_y, d_x, .. }
            | Call::SliceBackward { d_y, d_x, .. }
            | Call::HeadPartBackward { d_y, d_x, .. }
            | Call::UnfoldBackward { d_y, d_x, .. } => tensors(&[d_y, d_x]),
            Call::HeadPart { x, bias, y, .. } => {
                bias.iter().for_each(|bias| tensors(&[bias]));
                tensors(&[x, y]);
            }
            Call::CrossEntropy(call) => {
                tensors(&[call.logits]);
                call.gradient.iter().for_each(|d| tensors(&[d.tensor]));
                visit(call.sum.storage());
            }
            Call::ElementLoss { logits, sum, .. } => {
                tensors(&[logits]);
                visit(sum.storage());
            }
            Call::AdamW {
                gradient,
                value,
                m,
                v,
                ..
            } => tensors(&[gradient, value, m, v]),
            Call::ClearScalar { out } => visit(out.storage()),
            Call::SumOfSquares { x, out } => {
                tensors(&[x]);
                visit(out.storage());
            }
        }
    }
}

impl NormForm<'_> {
    fn for_each(&self, visit: &mut dyn FnMut(&Tensor)) {
        visit(self.weight);
        match self.kind {
            NormKind::Layer { bias } => visit(bias),
            NormKind::Rms { .. } => {}
        }
    }
}

impl NormSaved<'_> {
    fn for_each(&self, visit: &mut dyn FnMut(&Tensor)) {
        visit(self.z);
        self.mean.into_iter().for_each(&mut *visit);
        visit(self.rstd);
    }
}

impl GateUp<'_> {
    fn for_each(&self, visit: &mut dyn FnMut(&Tensor)) {
        match self {
            GateUp::Separate(gate, up) => {
                visit(gate);
                visit(up);
            }
            GateUp::Halves(x) => visit(x),
        }
    }
}
