//! y = f(x), element by element. Shapes: x, y [M, D]. Saved: x (the pre-activation).

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::Activation;

use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
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
    tape.push(y, true, || ActivationBackward {
        x: x.shared(),
        x_node: x.node(),
        kind,
    })
}

struct ActivationBackward {
    x: Arc<Tensor>,
    x_node: Option<usize>,
    kind: Activation,
}

impl Backward for ActivationBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        cx.add(self.x_node, through_activation(self.kind, &self.x, d_y));
    }
}

/// d_x = f'(x) d_y, in the place of d_y unless others hold it. x is the pre-activation.
pub(crate) fn through_activation(kind: Activation, x: &Tensor, d_y: Arc<Tensor>) -> Tensor {
    let mut d_x = Arc::try_unwrap(d_y).unwrap_or_else(|shared| shared.duplicate());
    let (device, dtype) = (d_x.device().clone(), d_x.dtype());
    device.exec("activation", 0, |isa| {
        with_element!(dtype, E => {
            kernels::activation_backward(isa, kind, x.values::<E>(), d_x.values_mut::<E>());
        });
    });
    d_x
}
