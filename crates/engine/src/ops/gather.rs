//! `y = x[rows]`: the rows that a head reads. Shapes: x [M, D], rows `[N]`, y [N, D]. Saved: the
//! row numbers.

use std::sync::Arc;

use crate::call::Call;
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward of the selection. Panics if a row is out of range.
pub fn gather(tape: &mut Tape<'_>, x: &Var, rows: &[usize]) -> Var {
    let device = tape.device().clone();
    let (dtype, purpose) = (x.tensor().dtype(), Purpose::Activations);
    let mut y = Tensor::uninit_as(dtype, &device, rows.len(), x.cols(), purpose);
    device.run(Call::Gather {
        x: x.tensor(),
        rows,
        y: &mut y,
    });
    let (x_node, x_rows) = (x.node(), x.rows());
    tape.choose_rows(x_rows, rows);
    tape.push(y, x_node.is_some(), || SelectBackward {
        x_node,
        x_rows,
        rows: rows.to_vec(),
    })
}

struct SelectBackward {
    x_node: Option<usize>,
    x_rows: usize,
    rows: Vec<usize>,
}

impl Backward for SelectBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let (d_y, rows) = (&*d_y, &*self.rows);
        cx.accumulate(self.x_node, self.x_rows, d_y.cols(), |device, d_x| {
            device.run(Call::ScatterAdd { d_y, rows, d_x });
        });
    }
}
