//! `y[i]` = the rows around row i of its sequence, side by side, zeros beyond its ends: a
//! convolution's input as a product takes it. Shapes: x [M, D], y [M, D·taps], columns as a
//! `Conv1d`'s weight [out, D, taps] has them. Saved: the offsets.

use std::sync::Arc;

use crate::call::Call;
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward. Panics if the offsets do not cover the rows or the number of taps is even.
pub fn neighbours(tape: &mut Tape<'_>, x: &Var, offsets: &Arc<[usize]>, taps: usize) -> Var {
    let device = tape.device().clone();
    let (rows, cols) = (x.rows(), x.cols());
    let dtype = x.tensor().dtype();
    let mut y = Tensor::uninit_as(dtype, &device, rows, cols * taps, Purpose::Activations);
    device.run(Call::Unfold {
        x: x.tensor(),
        offsets,
        taps,
        y: &mut y,
    });
    let x_node = x.node();
    tape.push(y, x_node.is_some(), || NeighboursBackward {
        x_node,
        cols,
        offsets: offsets.clone(),
        taps,
    })
}

struct NeighboursBackward {
    x_node: Option<usize>,
    cols: usize,
    offsets: Arc<[usize]>,
    taps: usize,
}

impl Backward for NeighboursBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let dtype = d_y.dtype();
        let (rows, cols, purpose) = (d_y.rows(), self.cols, Purpose::Activations);
        let mut d_x = Tensor::uninit_as(dtype, &cx.device, rows, cols, purpose);
        cx.device.run(Call::UnfoldBackward {
            d_y: &d_y,
            offsets: &self.offsets,
            taps: self.taps,
            d_x: &mut d_x,
        });
        drop(d_y);
        cx.add(self.x_node, d_x);
    }
}
