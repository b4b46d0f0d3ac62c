//! The tape: ops record themselves in forward, and backward walks them in reverse. An op is
//! recorded only if something below it is trained, so nothing is kept or differentiated under the
//! lowest adapter.

mod recompute;

use std::rc::Rc;
use std::sync::Arc;

use lowrank_kernels::product::Rounding;
use lowrank_kernels::{Activation, Dropout, DropoutKey};

use crate::call::{Call, Write};
use crate::device::Device;
use crate::param::{Gradients, Trainables};
use crate::profile::Phase;
use crate::site::Site;
use crate::slots::{Adapters, Segment};
use crate::tensor::Tensor;
use recompute::Recompute;

/// What makes the dropout masks of one micro-batch: the run's seed and the count of micro-batches
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepKey {
    /// The run's seed.
    pub seed: u64,
    /// Micro-batches done before this one.
    pub micro_step: u64,
}

/// A value on the tape. Clones share the tensor; moving a value into its last op lets that op
/// overwrite it.
#[derive(Clone)]
pub struct Var {
    value: Arc<Tensor>,
    node: Option<usize>,
}

impl Var {
    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.value
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.value.rows()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.value.cols()
    }

    /// Whether a gradient flows through it.
    pub fn requires_grad(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn node(&self) -> Option<usize> {
        self.node
    }

    pub(crate) fn shared(&self) -> Arc<Tensor> {
        self.value.clone()
    }

    /// The tensor, to be kept or overwritten: itself if nobody else holds it, else a copy.
    pub fn into_tensor(self) -> Tensor {
        self.into_owned()
    }

    pub(crate) fn into_owned(self) -> Tensor {
        Tensor::owned(self.value)
    }
}

/// The backward half of a recorded op. It owns what forward saved and frees it when done.
pub(crate) trait Backward {
    /// Takes the gradient of the op's output, adds to the gradients of its inputs and of its
    /// trainables.
    fn backward(self: Box<Self>, d_out: Arc<Tensor>, cx: &mut Backprop<'_>);
}

/// The activation in which an op's output ends. The gradient of such an output is kept as that of
/// the activation's input: the derivative is linear in what arrives, so that each op above can
/// multiply its own share by f'(pre) as it writes it.
#[derive(Clone)]
pub(crate) struct Through {
    /// f.
    pub kind: Activation,
    /// The activation's input.
    pub pre: Arc<Tensor>,
}

/// What an op saved, where its output can be recomputed from it: ops above then need not keep
/// that.
pub(crate) trait RecomputeOutput {
    /// The output, with the bits that forward gave it.
    fn recompute(&self, trainables: &Trainables) -> Arc<Tensor>;
}

/// An op's input for its backward.
pub(crate) enum SavedInput<'m> {
    /// Held since forward.
    Tensor(Arc<Tensor>),
    /// Recomputed in backward.
    Recomputed(Rc<dyn RecomputeOutput + 'm>),
}

impl SavedInput<'_> {
    /// The tensor.
    pub(crate) fn tensor(&self, trainables: &Trainables) -> Arc<Tensor> {
        match self {
            SavedInput::Tensor(tensor) => tensor.clone(),
            SavedInput::Recomputed(saved) => saved.recompute(trainables),
        }
    }
}

/// What the tape knows of an op's output.
#[derive(Default)]
pub(crate) struct Output<'m> {
    /// The activation in which it ends.
    pub through: Option<Through>,
    /// How it is recomputed.
    pub recompute: Option<Rc<dyn RecomputeOutput + 'm>>,
}

/// A recorded op.
struct Node<'m> {
    op: Box<dyn Backward + 'm>,
    output: Output<'m>,
}

/// Records the ops of one forward pass over one micro-batch.
pub struct Tape<'m> {
    device: Device,
    trainables: &'m Trainables,
    step: Option<StepKey>,
    recording: bool,
    adapters: Adapters,
    touched: bool,
    dropped: bool,
    next_site: Site,
    /// Whether the same layers are used for a second input.
    is_second_use: bool,
    nodes: Vec<Node<'m>>,
}

impl<'m> Tape<'m> {
    /// A tape that records for backward. With a `step`, dropout is on.
    pub fn training(device: &Device, trainables: &'m Trainables, step: Option<StepKey>) -> Self {
        let device = device.clone();
        Tape {
            device,
            trainables,
            step,
            recording: true,
            adapters: Adapters::Own,
            touched: false,
            dropped: false,
            next_site: Site::default(),
            is_second_use: false,
            nodes: Vec::new(),
        }
    }

    /// A tape that records nothing and drops nothing out.
    pub fn inference(device: &Device, trainables: &'m Trainables) -> Self {
        Tape {
            recording: false,
            ..Self::training(device, trainables, None)
        }
    }

    /// The same tape with other adapters than each layer's own. Panics where slots are to be
    /// recorded: a backward knows one adapter a layer.
    pub fn with_adapters(mut self, adapters: Adapters) -> Self {
        let is_by_slot = matches!(adapters, Adapters::BySlot(_));
        assert!(!(is_by_slot && self.recording), "slots are for inference");
        self.adapters = adapters;
        self
    }

    /// Whether adapters are switched on.
    pub fn has_adapters(&self) -> bool {
        !matches!(self.adapters, Adapters::Off)
    }

    /// The segments of tensors of so many rows, where rows name slots.
    pub(crate) fn segments(&self, rows: usize) -> Option<Arc<[Segment]>> {
        match &self.adapters {
            Adapters::BySlot(slots) => Some(slots.segments(rows).clone()),
            Adapters::Own | Adapters::Off => None,
        }
    }

    /// Says that the pass runs some of the batch's rows only.
    pub fn narrow_rows(&mut self, run: &[usize]) {
        if let Adapters::BySlot(slots) = &mut self.adapters {
            slots.narrow(run);
        }
    }

    /// Says that some of `rows` rows go on.
    pub(crate) fn choose_rows(&mut self, rows: usize, chosen: &[usize]) {
        if let Adapters::BySlot(slots) = &mut self.adapters {
            slots.choose(rows, chosen);
        }
    }

    /// The device of this pass.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The trained values.
    pub fn trainables(&self) -> &'m Trainables {
        self.trainables
    }

    /// A value that no gradient flows into.
    pub fn constant(&self, value: Tensor) -> Var {
        Var {
            value: Arc::new(value),
            node: None,
        }
    }

    /// Whether any op so far depends on a trained value.
    pub fn met_trained(&self) -> bool {
        self.touched
    }

    /// Whether any op so far dropped something out.
    pub fn dropped(&self) -> bool {
        self.dropped
    }

    /// The next dropout site.
    pub fn next_site(&self) -> Site {
        self.next_site
    }

    /// Goes on as if the sites before `site` had been passed: for a pass that starts above layers
    /// that are known already.
    pub fn enter_at(&mut self, site: Site) {
        self.next_site = site;
    }

    /// Whether an op whose inputs or weights need a gradient has to save what its backward needs.
    pub(crate) fn recording(&self) -> bool {
        self.recording
    }

    /// The dropout of the next site in the model, or none in inference or at p = 0. Sites are
    /// numbered in the order of the model's code, whether or not they drop.
    pub(crate) fn dropout(&mut self, p: f32) -> Option<Dropout> {
        let site = self.next_site;
        self.next_site = site.next();
        self.dropout_at(p, site)
    }

    /// The dropout of a given site.
    pub(crate) fn dropout_at(&mut self, p: f32, site: Site) -> Option<Dropout> {
        let StepKey { seed, micro_step } = self.step.filter(|_| p > 0.0)?;
        self.dropped = true;
        let site = match self.is_second_use {
            true => site.of_second_use(),
            false => site,
        };
        Some(Dropout {
            p,
            key: DropoutKey {
                seed,
                step: micro_step,
                site: site.bits(),
            },
        })
    }

    /// Runs `block` with dropout masks of its own: for a layer that a pass uses for a second input.
    pub fn second_use<T>(&mut self, block: impl FnOnce(&mut Self) -> T) -> T {
        self.is_second_use = true;
        let out = block(self);
        self.is_second_use = false;
        out
    }

    /// Puts an op's result on the tape. `make` is called only when recording and `needed`.
    pub(crate) fn push<B: Backward + 'm>(
        &mut self,
        value: Tensor,
        needed: bool,
        make: impl FnOnce() -> B,
    ) -> Var {
        self.push_shared(Arc::new(value), needed, make)
    }

    /// As [`Tape::push`], for an output that the op itself keeps too.
    pub(crate) fn push_shared<B: Backward + 'm>(
        &mut self,
        value: Arc<Tensor>,
        needed: bool,
        make: impl FnOnce() -> B,
    ) -> Var {
        self.push_node(value, needed, || (make(), Output::default()))
    }

    /// As [`Tape::push`], for an output of which there is more to know. Where it ends in an
    /// activation, the op's backward gets the gradient of the activation's input.
    pub(crate) fn push_output<B: Backward + 'm>(
        &mut self,
        value: Tensor,
        needed: bool,
        make: impl FnOnce() -> (B, Output<'m>),
    ) -> Var {
        self.push_node(Arc::new(value), needed, make)
    }

    fn push_node<B: Backward + 'm>(
        &mut self,
        value: Arc<Tensor>,
        needed: bool,
        make: impl FnOnce() -> (B, Output<'m>),
    ) -> Var {
        self.touched |= needed;
        if !(needed && self.recording) {
            return Var { value, node: None };
        }
        let (op, output) = make();
        let op = Box::new(op);
        self.nodes.push(Node { op, output });
        Var {
            value,
            node: Some(self.nodes.len() - 1),
        }
    }

    /// `x` for the backward of an op that reads it: not held where the op below can make it again.
    pub(crate) fn keep(&self, x: &Var) -> SavedInput<'m> {
        let recompute = x
            .node
            .and_then(|node| self.nodes[node].output.recompute.clone());
        recompute.map_or_else(|| SavedInput::Tensor(x.shared()), SavedInput::Recomputed)
    }

    /// Runs `block` on `x` without keeping anything but `x`; backward runs it once more, with the
    /// same dropout masks.
    /// Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    pub fn recompute<F>(&mut self, x: Var, block: F) -> Var
    where
        F: Fn(&mut Tape<'m>, Var) -> Var + 'm,
    {
        if !self.recording {
            return block(self, x);
        }
        let first_site = self.next_site;
        let (input, input_node) = (x.shared(), x.node());
        let touched_before = std::mem::replace(&mut self.touched, false);
        self.recording = false;
        let out = block(
            self,
            Var {
                value: x.value,
                node: None,
            },
        );
        self.recording = true;
        let needed = self.touched || input_node.is_some();
        self.touched |= touched_before;
        let (device, trainables, step, adapters) = (
            self.device.clone(),
            self.trainables,
            self.step,
            self.adapters.clone(),
        );
        self.push_shared(out.value, needed, || Recompute {
            device,
            trainables,
            step,
            adapters,
            first_site,
            input,
            input_node,
            block,
        })
    }

    /// Walks the tape backward from `output`, whose gradient is `d_output`, and adds to
    /// `gradients`.
    pub fn backward(self, output: &Var, d_output: Tensor, gradients: &mut Gradients) {
        self.backward_from(output.node, d_output, gradients);
    }

    /// As [`Tape::backward`], from an output that may be gone.
    pub(crate) fn backward_from(
        self,
        node: Option<usize>,
        d_output: Tensor,
        gradients: &mut Gradients,
    ) {
        let Some(last) = node else { return };
        let mut cx = Backprop {
            device: self.device,
            trainables: self.trainables,
            gradients,
            slots: Vec::new(),
            step: self.step,
            roundings: 0,
        };
        cx.device.enter(Phase::Backward);
        walk(self.nodes, &mut cx, last, Arc::new(d_output));
        cx.device.enter(Phase::Forward);
    }
}

/// Runs the nodes from `last` down, which gets `d_last`.
fn walk<'m>(nodes: Vec<Node<'m>>, cx: &mut Backprop<'_>, last: usize, d_last: Arc<Tensor>) {
    let mut ops = Vec::with_capacity(nodes.len());
    for Node { op, output } in nodes {
        ops.push(op);
        let (gradient, through) = (None, output.through);
        cx.slots.push(Slot { gradient, through });
    }
    cx.add_shared(Some(last), d_last);
    for (i, op) in ops.into_iter().enumerate().rev() {
        let Slot { gradient, through } = std::mem::take(&mut cx.slots[i]);
        drop(through);
        if let Some(d_out) = gradient {
            op.backward(d_out, cx);
        }
    }
}

/// The gradient of an op's output, or of the input of the activation that it ends in.
#[derive(Default)]
struct Slot {
    gradient: Option<Arc<Tensor>>,
    through: Option<Through>,
}

/// The gradients on their way down.
pub(crate) struct Backprop<'a> {
    pub(crate) device: Device,
    pub(crate) trainables: &'a Trainables,
    pub(crate) gradients: &'a mut Gradients,
    slots: Vec<Slot>,
    step: Option<StepKey>,
    /// Gradients that were rounded so far.
    roundings: u32,
}

impl Backprop<'_> {
    /// How the next gradient becomes integers: at random where masks are drawn too, from numbers of
    /// its own. Backward walks the same ops in the same order whatever forward kept, so that their
    /// count tells them apart.
    pub(crate) fn rounding(&mut self) -> Rounding {
        let site = self.roundings;
        self.roundings += 1;
        match self.step {
            None => Rounding::Nearest,
            Some(StepKey { seed, micro_step }) => Rounding::Stochastic(DropoutKey {
                seed,
                step: micro_step,
                site,
            }),
        }
    }

    /// Adds to the gradient of a value [rows, cols] what `add` adds to a matrix.
    pub(crate) fn accumulate(
        &mut self,
        node: Option<usize>,
        rows: usize,
        cols: usize,
        add: impl FnOnce(&Device, &mut Tensor),
    ) {
        self.write(node, rows, cols, |device, d, write| {
            if write == Write::Store {
                d.fill(0.0);
            }
            add(device, d);
        });
    }

    /// Adds `d` to the gradient of a value.
    pub(crate) fn add(&mut self, node: Option<usize>, d: Tensor) {
        self.add_shared(node, Arc::new(d));
    }

    /// Adds `d`, which others may hold too, to the gradient of a value.
    pub(crate) fn add_shared(&mut self, node: Option<usize>, d: Arc<Tensor>) {
        let Some(node) = node else { return };
        let d = match &self.slots[node].through {
            None => d,
            Some(through) => Arc::new(through.backward(d)),
        };
        self.add_below(node, d);
    }

    /// The activation in which a value ends, for an op that multiplies by its derivative as it
    /// writes the gradient and hands it to [`Backprop::add_below`].
    pub(crate) fn through(&self, node: Option<usize>) -> Option<(usize, Through)> {
        let node = node?;
        Some((node, self.slots[node].through.clone()?))
    }

    /// Adds `d` to the gradient of a value, or of the input of the activation that it ends in.
    pub(crate) fn add_below(&mut self, node: usize, d: Arc<Tensor>) {
        let slot = &mut self.slots[node].gradient;
        let Some(old) = slot.take() else {
            *slot = Some(d);
            return;
        };
        let (mut sum, other) = match Arc::try_unwrap(old) {
            Ok(old) => (old, d),
            Err(old) => match Arc::try_unwrap(d) {
                Ok(d) => (d, old),
                Err(d) => (old.duplicate(), d),
            },
        };
        let (x, out) = (&*other, &mut sum);
        self.device.run(Call::Add { x, out });
        *slot = Some(Arc::new(sum));
    }

    /// Lets a call write the gradient of a value directly: `write` gets a matrix [rows, cols] and
    /// is told whether to add to what it holds or to overwrite it.
    pub(crate) fn write(
        &mut self,
        node: Option<usize>,
        rows: usize,
        cols: usize,
        write: impl FnOnce(&Device, &mut Tensor, Write),
    ) {
        let Some(node) = node else { return };
        let slot = &mut self.slots[node];
        if slot.through.is_none()
            && let Some(old) = slot.gradient.take()
        {
            match Arc::try_unwrap(old) {
                Ok(mut d) => {
                    write(&self.device, &mut d, Write::Add);
                    slot.gradient = Some(Arc::new(d));
                    return;
                }
                Err(shared) => slot.gradient = Some(shared),
            }
        }
        let mut d = Tensor::activations(&self.device, rows, cols);
        write(&self.device, &mut d, Write::Store);
        self.add(Some(node), d);
    }
}

impl Through {
    /// f'(pre) d_y, in the place of d_y unless others hold it.
    fn backward(&self, d_y: Arc<Tensor>) -> Tensor {
        let mut d_x = Tensor::owned(d_y);
        let device = d_x.device().clone();
        device.run(Call::ActivationBackward {
            kind: self.kind,
            pre: &self.pre,
            d: &mut d_x,
        });
        d_x
    }
}
