//! y = x[:, first..first + cols]: one part of a fused projection. Shapes: x [M, C], y [M, cols].
//! Saved: nothing.

use std::ops::Range;
use std::sync::Arc;

use crate::call::Call;
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward of the selection. Panics if the columns are out of range.
pub fn slice(tape: &mut Tape<'_>, x: &Var, columns: Range<usize>) -> Var {
    let device = tape.device().clone();
    let (dtype, first, purpose) = (x.tensor().dtype(), columns.start, Purpose::Activations);
    let mut y = Tensor::uninit_as(dtype, &device, x.rows(), columns.len(), purpose);
    device.run(Call::Slice {
        x: x.tensor(),
        first,
        y: &mut y,
    });
    let (x_node, x_cols) = (x.node(), x.cols());
    tape.push(y, x_node.is_some(), || ColumnsBackward {
        x_node,
        x_cols,
        first,
    })
}

struct ColumnsBackward {
    x_node: Option<usize>,
    x_cols: usize,
    first: usize,
}

impl Backward for ColumnsBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let (d_y, first) = (&*d_y, self.first);
        cx.accumulate(self.x_node, d_y.rows(), self.x_cols, |device, d_x| {
            device.run(Call::SliceBackward { d_y, first, d_x });
        });
    }
}
