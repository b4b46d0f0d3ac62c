//! A block of a pass that keeps its input only, and runs once more in backward.

use std::sync::Arc;

use super::{Backprop, Backward, StepKey, Tape, Var, walk};
use crate::device::Device;
use crate::param::Trainables;
use crate::site::Site;
use crate::slots::Adapters;
use crate::tensor::Tensor;

pub(super) struct Recompute<'m, F> {
    pub device: Device,
    pub trainables: &'m Trainables,
    pub step: Option<StepKey>,
    pub adapters: Adapters,
    pub first_site: Site,
    pub input: Arc<Tensor>,
    pub input_node: Option<usize>,
    pub block: F,
}

/// Stands for the block's input on the inner tape and keeps the gradient that arrives there.
struct Leaf(Arc<std::sync::Mutex<Option<Arc<Tensor>>>>);

impl Backward for Leaf {
    fn backward(self: Box<Self>, d_out: Arc<Tensor>, _: &mut Backprop<'_>) {
        *self.0.lock().expect("no panic holds this lock") = Some(d_out);
    }
}

impl<'m, F> Backward for Recompute<'m, F>
where
    F: Fn(&mut Tape<'m>, Var) -> Var + 'm,
{
    fn backward(self: Box<Self>, d_out: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let mut tape =
            Tape::training(&self.device, self.trainables, self.step).with_adapters(self.adapters);
        tape.next_site = self.first_site;
        let arrived = Arc::new(std::sync::Mutex::new(None));
        let needed = self.input_node.is_some();
        let x = tape.push_shared(self.input, needed, || Leaf(arrived.clone()));
        let out = (self.block)(&mut tape, x);
        let Some(last) = out.node else { return };
        drop(out);
        let mut inner = Backprop {
            device: self.device,
            trainables: self.trainables,
            gradients: &mut *cx.gradients,
            slots: Vec::new(),
            step: cx.step,
            roundings: cx.roundings,
        };
        walk(tape.nodes, &mut inner, last, d_out);
        cx.roundings = inner.roundings;
        let arrived = arrived.lock().expect("no panic holds this lock").take();
        if let Some(d_input) = arrived {
            cx.add_shared(self.input_node, d_input);
        }
    }
}
