//! `y = x[rows]`: the rows that a head reads. Shapes: x [M, D], rows `[N]`, y [N, D]. Saved: the row numbers.

use std::sync::Arc;

use lowrank_kernels as kernels;

use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::{Tensor, with_element};

/// Forward of the selection. Panics if a row is out of range.
pub fn select_rows(tape: &mut Tape<'_>, x: &Var, rows: &[usize]) -> Var {
    let device = tape.device().clone();
    let cols = x.cols();
    let dtype = x.tensor().dtype();
    let mut y = Tensor::uninit_as(dtype, &device, rows.len(), cols, Purpose::Activations);
    assert!(
        rows.iter().all(|&row| row < x.rows()),
        "select_rows: a row is past the end"
    );
    device.exec("rows", 0, |_| {
        with_element!(dtype, E => {
            let x = x.tensor().values::<E>();
            for (out, &row) in y.values_mut().chunks_exact_mut(cols).zip(rows) {
                out.copy_from_slice(&x[row * cols..][..cols]);
            }
        });
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
            let dtype = d_x.dtype();
            device.exec("rows", 0, |isa| {
                with_element!(dtype, E => {
                    for (d, &row) in d_y.values::<E>().chunks_exact(cols).zip(&self.rows) {
                        let into = &mut d_x.values_mut::<E>()[row * cols..][..cols];
                        kernels::add_assign(isa, into, d);
                    }
                });
            });
        });
    }
}
