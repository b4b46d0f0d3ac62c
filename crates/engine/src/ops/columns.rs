//! y = x[:, first..first + cols]: one part of a fused projection. Shapes: x [M, C], y [M, cols]. Saved: nothing.

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels as kernels;

use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::{Tensor, with_element};

/// Forward of the selection. Panics if the columns are out of range.
pub fn select_columns(tape: &mut Tape<'_>, x: &Var, columns: Range<usize>) -> Var {
    let device = tape.device().clone();
    let x_cols = x.cols();
    assert!(
        columns.start < columns.end && columns.end <= x_cols,
        "select_columns: {columns:?} of {x_cols}"
    );
    let dtype = x.tensor().dtype();
    let mut y = Tensor::uninit_as(
        dtype,
        &device,
        x.rows(),
        columns.len(),
        Purpose::Activations,
    );
    device.exec("columns", 0, |_| {
        with_element!(dtype, E => {
            let rows = x.tensor().values::<E>().chunks_exact(x_cols);
            for (out, row) in y.values_mut().chunks_exact_mut(columns.len()).zip(rows) {
                out.copy_from_slice(&row[columns.clone()]);
            }
        });
    });
    let x_node = x.node();
    tape.push(y, x_node.is_some(), || ColumnsBackward {
        x_node,
        x_cols,
        columns,
    })
}

struct ColumnsBackward {
    x_node: Option<usize>,
    x_cols: usize,
    columns: Range<usize>,
}

impl Backward for ColumnsBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let ColumnsBackward {
            x_node,
            x_cols,
            columns,
        } = *self;
        cx.write(x_node, d_y.rows(), x_cols, |device, d_x, accumulate| {
            if !accumulate {
                d_x.fill(0.0);
            }
            let dtype = d_x.dtype();
            device.exec("columns", 0, |isa| {
                with_element!(dtype, E => {
                    let rows = d_y.values::<E>().chunks_exact(columns.len());
                    for (into, d) in d_x.values_mut::<E>().chunks_exact_mut(x_cols).zip(rows) {
                        kernels::add_assign(isa, &mut into[columns.clone()], d);
                    }
                });
            });
        });
    }
}
