//! What a call reads and writes.

use super::{AttentionGradients, Call, Epilogue, LayerNorm, NormInput, TableRef};
use crate::storage::Storage;
use crate::tensor::Tensor;

impl Call<'_> {
    /// Shows everything that it reads or writes.
    pub(crate) fn for_each_storage(&self, visit: &mut dyn FnMut(&Storage)) {
        let mut tensors = |all: &[&Tensor]| all.iter().for_each(|t| visit(t.storage()));
        match self {
            Call::Fill { out, .. } => tensors(&[out]),
            Call::Copy { x, out } => tensors(&[x.tensor, out.tensor]),
            Call::Convert { x, out } | Call::Add { x, out } | Call::ColumnSum { x, out } => {
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
                if let Some(term) = &product.low_rank {
                    tensors(&[term.h]);
                    visit(term.g.matrix.storage());
                }
                visit(product.b.matrix.storage());
            }
            Call::Outer { a, b, out, .. } => tensors(&[a, b.tensor, out]),
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
            Call::LayerNorm(norm) => {
                let (z, LayerNorm { y, mean, rstd, .. }) = (norm.input.tensor(), norm);
                tensors(&[z, norm.weight, norm.bias, y, mean, rstd]);
                if let NormInput::Residual { residual, .. } = &norm.input {
                    residual.iter().for_each(|residual| tensors(&[residual]));
                }
            }
            Call::LayerNormAgain {
                saved,
                weight,
                bias,
                y,
            } => tensors(&[saved.z, saved.mean, saved.rstd, weight, bias, y]),
            Call::LayerNormBackward { saved, weight, d } => {
                tensors(&[saved.z, saved.mean, saved.rstd, weight, d]);
            }
            Call::LayerNormParamGrads {
                saved,
                d_y,
                d_weight,
                d_bias,
            } => tensors(&[saved.z, saved.mean, saved.rstd, d_y, d_weight, d_bias]),
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
