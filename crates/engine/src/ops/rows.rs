//! `y = x[rows]`: the rows that a head reads. Shapes: x [M, D], rows `[N]`, y [N, D]. Saved: the row numbers.

use std::sync::Arc;

use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward of the selection. Panics if a row is out of range.
pub fn select_rows(tape: &mut Tape<'_>, x: &Var, rows: &[usize]) -> Var {
    let device = tape.device().clone();
    let cols = x.cols();
    let mut y = Tensor::uninit(&device, rows.len(), cols, Purpose::Activations);
    assert!(
        rows.iter().all(|&row| row < x.rows()),
        "select_rows: a row is past the end"
    );
    device.exec(0, |_| {
        let x = x.tensor().data();
        for (out, &row) in y.data_mut().chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&x[row * cols..][..cols]);
        }
    });
    let (x_node, x_rows) = (x.node(), x.rows());
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
        let cols = d_y.cols();
        cx.write(self.x_node, self.x_rows, cols, |device, d_x, accumulate| {
            if !accumulate {
                d_x.fill(0.0);
            }
            device.exec(0, |_| {
                for (d, &row) in d_y.data().chunks_exact(cols).zip(&self.rows) {
                    let into = &mut d_x.data_mut()[row * cols..][..cols];
                    into.iter_mut().zip(d).for_each(|(x, d)| *x += d);
                }
            });
        });
    }
}
