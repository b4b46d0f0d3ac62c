//! y = f(x), element by element. Shapes: x, y [M, D]. Saved: x (the pre-activation).

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::Activation;

use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Output, Tape, Through, Var};
use crate::tensor::{Tensor, with_element};

/// Forward of an activation; overwrites x where nothing needs it any more.
pub fn activation(tape: &mut Tape<'_>, x: Var, kind: Activation) -> Var {
    let (device, dtype) = (tape.device().clone(), x.tensor().dtype());
    if !(tape.recording() && x.requires_grad()) {
        let mut y = x.into_owned();
        device.exec("activation", 0, |isa| {
            with_element!(dtype, E => {
                kernels::activation_forward_in_place(isa, kind, y.values_mut::<E>());
            });
        });
        return tape.constant(y);
    }
    let mut y = Tensor::uninit_as(dtype, &device, x.rows(), x.cols(), Purpose::Activations);
    device.exec("activation", 0, |isa| {
        with_element!(dtype, E => {
            kernels::activation_forward(isa, kind, x.tensor().values::<E>(), y.values_mut::<E>());
        });
    });
    let x_node = x.node();
    tape.push_output(y, true, || {
        let pre = x.shared();
        let output = Output {
            through: Some(Through { kind, pre }),
            ..Output::default()
        };
        (ActivationBackward { x_node }, output)
    })
}

struct ActivationBackward {
    x_node: Option<usize>,
}

impl Backward for ActivationBackward {
    fn backward(self: Box<Self>, d_x: Arc<Tensor>, cx: &mut Backprop<'_>) {
        // The tape has multiplied by f'(x) already.
        cx.add_shared(self.x_node, d_x);
    }
}
