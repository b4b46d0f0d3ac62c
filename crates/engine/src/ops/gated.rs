//! y = f(gate)·up: the middle of a gated feed-forward. Shapes: gate, up, y [M, F], or gate and up
//! in one row [M, 2F]. Saved: gate and up. Source: Shazeer 2020, "GLU Variants Improve
//! Transformer"; transformers `LlamaMLP`, `Phi3MLP`.

use std::sync::Arc;

use lowrank_kernels::Activation;

use crate::call::{Call, GateUp, GateUpGradients};
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward with gate and up apart. Panics if their shapes differ.
pub fn gated(tape: &mut Tape<'_>, gate: Var, up: Var, kind: Activation) -> Var {
    let y = gate.tensor().uninit_like(Purpose::Activations);
    let nodes = [gate.node(), up.node()];
    let saved = Saved::Separate(gate.shared(), up.shared());
    forward(tape, saved, nodes, kind, y)
}

/// Forward with gate and up in one row, the gate first. Panics if the number of columns is odd.
pub fn gated_halves(tape: &mut Tape<'_>, x: Var, kind: Activation) -> Var {
    assert!(
        x.cols().is_multiple_of(2),
        "gate and up are halves of a row"
    );
    let (dtype, purpose) = (x.tensor().dtype(), Purpose::Activations);
    let y = Tensor::uninit_as(dtype, tape.device(), x.rows(), x.cols() / 2, purpose);
    let nodes = [x.node(), None];
    forward(tape, Saved::Halves(x.shared()), nodes, kind, y)
}

fn forward(
    tape: &mut Tape<'_>,
    saved: Saved,
    nodes: [Option<usize>; 2],
    kind: Activation,
    mut y: Tensor,
) -> Var {
    let (device, x) = (tape.device().clone(), saved.tensors());
    let out = &mut y;
    device.run(Call::Gated { kind, x, y: out });
    let needed = nodes.iter().any(Option::is_some);
    tape.push(y, needed, || GatedBackward { saved, nodes, kind })
}

enum Saved {
    Separate(Arc<Tensor>, Arc<Tensor>),
    Halves(Arc<Tensor>),
}

impl Saved {
    fn tensors(&self) -> GateUp<'_> {
        match self {
            Saved::Separate(gate, up) => GateUp::Separate(gate, up),
            Saved::Halves(x) => GateUp::Halves(x),
        }
    }
}

struct GatedBackward {
    saved: Saved,
    nodes: [Option<usize>; 2],
    kind: Activation,
}

impl Backward for GatedBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let GatedBackward { saved, nodes, kind } = *self;
        let like = |t: &Tensor| t.uninit_like(Purpose::Activations);
        let [mut first, mut second] = match &saved {
            Saved::Separate(gate, up) => [Some(like(gate)), Some(like(up))],
            Saved::Halves(x) => [Some(like(x)), None],
        };
        let d_x = match (&mut first, &mut second) {
            (Some(d_gate), Some(d_up)) => GateUpGradients::Separate(d_gate, d_up),
            (Some(d), None) => GateUpGradients::Halves(d),
            (None, _) => unreachable!("there is a gate"),
        };
        let (x, d_y) = (saved.tensors(), &*d_y);
        cx.device.run(Call::GatedBackward { kind, x, d_y, d_x });
        drop(saved);
        for (node, d) in nodes.into_iter().zip([first, second]) {
            if let Some(d) = d {
                cx.add(node, d);
            }
        }
    }
}
