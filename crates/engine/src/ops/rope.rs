//! Rotary positions: pairs of each head's elements are rotated by angles that grow with the token's
//! position.
//! Shapes: x [M, H·Dh], cos, sin [positions, rotary_dim / 2], positions `[M]`. Saved: the
//! positions; a gradient is rotated back.
//! Source: Su et al. 2021, equation 34; transformers `apply_rotary_pos_emb`.

use std::sync::Arc;

pub use lowrank_kernels::RopeLayout;

use crate::call::{Call, Rotation, RotationSense};
use crate::device::Device;
use crate::param::Frozen;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Which elements are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeForm {
    /// Dh.
    pub head_dim: usize,
    /// Elements of a head that are rotated, from its start on: even, at most Dh.
    pub rotary_dim: usize,
    /// The pairs.
    pub layout: RopeLayout,
}

/// Cosines and sines of every position, f32; of several sets of frequencies, one behind the other.
#[derive(Debug)]
pub struct RopeTable {
    cos: Frozen,
    sin: Frozen,
    sets: usize,
}

impl RopeTable {
    /// The angles of the positions from 0 on: position · frequency, their cosines and sines times
    /// `attention_scaling`. Panics if sets of frequencies are of different lengths.
    pub fn new(
        device: &Device,
        positions: usize,
        frequencies: &[&[f32]],
        attention_scaling: f32,
    ) -> Self {
        let pairs = frequencies[0].len();
        let one = positions * pairs;
        let sets = frequencies.len();
        let (mut cos, mut sin) = (vec![0.0; sets * one], vec![0.0; sets * one]);
        for (set, frequencies) in frequencies.iter().enumerate() {
            assert_eq!(frequencies.len(), pairs, "frequencies of set {set}");
            let (cos, sin) = (&mut cos[set * one..][..one], &mut sin[set * one..][..one]);
            lowrank_kernels::rope_table(frequencies, attention_scaling, cos, sin);
        }
        let rows = sets * positions;
        let [cos, sin] = [cos, sin].map(|table| Frozen::new(device, rows, pairs, &table));
        RopeTable { cos, sin, sets }
    }

    /// How many positions it has, the rows of each set.
    pub fn positions(&self) -> usize {
        self.cos.shape()[0] / self.sets
    }

    /// Sets of frequencies.
    pub fn sets(&self) -> usize {
        self.sets
    }
}

/// Forward of the rotation. Positions are rows of the table: of its second set, those behind the
/// first. Panics where one has no row there, or x is no whole number of heads wide.
pub fn rope(
    tape: &mut Tape<'_>,
    x: Var,
    table: &Arc<RopeTable>,
    form: RopeForm,
    positions: Arc<[u32]>,
) -> Var {
    let x_node = x.node();
    let mut y = x.into_owned();
    let op = RopeBackward {
        x_node,
        table: table.clone(),
        form,
        positions,
    };
    op.rotate(RotationSense::Forward, &mut y);
    tape.push(y, x_node.is_some(), || op)
}

struct RopeBackward {
    x_node: Option<usize>,
    table: Arc<RopeTable>,
    form: RopeForm,
    positions: Arc<[u32]>,
}

impl RopeBackward {
    fn rotate(&self, sense: RotationSense, x: &mut Tensor) {
        let device = x.device().clone();
        let rotation = Rotation {
            form: self.form,
            cos: self.table.cos.tensor(),
            sin: self.table.sin.tensor(),
            positions: &self.positions,
        };
        device.run(Call::Rotate { rotation, sense, x });
    }
}

impl Backward for RopeBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let mut d_x = Tensor::owned(d_y);
        self.rotate(RotationSense::Backward, &mut d_x);
        cx.add(self.x_node, d_x);
    }
}
