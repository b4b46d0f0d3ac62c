//! Gated activations: an activation of one half of a layer's outputs, the gate, times the other,
//! forward and backward.

use crate::activation::{Activation, derivative_for, for_each_kind, value_for};
use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::rows_per_task;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use crate::tasks::each_task;
use rayon::prelude::*;

/// The gate and what it is multiplied with, each of F columns.
#[derive(Clone, Copy, Debug)]
pub enum GateUp<'a, E> {
    /// Two tensors [M, F].
    Separate {
        /// The gate.
        gate: &'a [E],
        /// What it is multiplied with.
        up: &'a [E],
    },
    /// Rows [M, 2F] whose first half is the gate, as a fused `gate_up_proj` gives them.
    Halves(&'a [E]),
}

/// Where the gradients of [`GateUp`] go.
#[derive(Debug)]
pub enum GateUpGradients<'a, E> {
    /// Two tensors [M, F].
    Separate {
        /// Of the gate.
        d_gate: &'a mut [E],
        /// Of what it is multiplied with.
        d_up: &'a mut [E],
    },
    /// Rows [M, 2F] whose first half is that of the gate.
    Halves(&'a mut [E]),
}

impl<'a, E> GateUp<'a, E> {
    fn check(&self, len: usize) {
        match self {
            GateUp::Separate { gate, up } => {
                assert_eq!((gate.len(), up.len()), (len, len), "gate and up");
            }
            GateUp::Halves(x) => assert_eq!(x.len(), 2 * len, "gate and up in one row"),
        }
    }

    /// A row's gate and up.
    #[inline(always)]
    fn row(&self, row: usize, width: usize) -> (&'a [E], &'a [E]) {
        match self {
            GateUp::Separate { gate, up } => {
                (&gate[row * width..][..width], &up[row * width..][..width])
            }
            GateUp::Halves(x) => x[row * 2 * width..][..2 * width].split_at(width),
        }
    }
}

/// y = f(gate) up. Shape: y [M, width]. Errors are those of f ([`Activation`]), times up.
///
/// A stored bf16 is widened before and y rounded once; transformers in bf16 rounds f(gate) too.
/// Panics if a length disagrees. Source: Shazeer 2020; transformers 5.24, `LlamaMLP`
/// and `Phi3MLP`.
pub fn gated_forward<E: Element>(
    isa: Isa,
    kind: Activation,
    x: GateUp<E>,
    width: usize,
    y: &mut [E],
) {
    x.check(y.len());
    if width == 0 {
        return;
    }
    assert_eq!(y.len() % width, 0, "whole rows of {width}");
    let rows = rows_per_task(width);
    y.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(each_task(|(task, y)| {
            let op = Forward {
                kind,
                x,
                first: task * rows,
                width,
                y,
            };
            dispatch(isa, op);
        }));
}

struct Forward<'a, E> {
    kind: Activation,
    x: GateUp<'a, E>,
    first: usize,
    width: usize,
    y: &'a mut [E],
}

impl<E: Element> SimdOp for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for_each_kind!(self.kind, self.map(s));
    }
}

impl<E: Element> Forward<'_, E> {
    #[inline(always)]
    fn map<S: Simd>(self, s: S, kind: Activation) {
        for (row, y) in self.y.chunks_exact_mut(self.width).enumerate() {
            let (gate, up) = self.x.row(self.first + row, self.width);
            let mut at = 0;
            while at < self.width {
                let n = lanes_at::<S>(at, self.width);
                let value = value_for::<E, S>(s, kind, load_at(s, gate, at, n));
                store_at(s, y, at, s.mul(value, load_at(s, up, at, n)), n);
                at += S::LANES;
            }
        }
    }
}

/// Arguments of [`gated_backward`].
pub struct GatedBackward<'a, E> {
    /// f.
    pub kind: Activation,
    /// The forward's input.
    pub x: GateUp<'a, E>,
    /// Columns of y.
    pub width: usize,
    /// The gradient of y [M, width].
    pub d_y: &'a [E],
}

/// d_gate = f'(gate) up d_y and d_up = f(gate) d_y, overwritten. Panics if a length disagrees.
pub fn gated_backward<E: Element>(isa: Isa, args: &GatedBackward<E>, d_x: GateUpGradients<E>) {
    let (width, len) = (args.width, args.d_y.len());
    args.x.check(len);
    if width == 0 {
        return;
    }
    assert_eq!(len % width, 0, "whole rows of {width}");
    let rows = rows_per_task(width);
    let task = |task: usize, d_x: GateUpGradients<E>| {
        let first = task * rows;
        dispatch(isa, Backward { args, first, d_x });
    };
    match d_x {
        GateUpGradients::Separate { d_gate, d_up } => {
            assert_eq!((d_gate.len(), d_up.len()), (len, len), "d_gate and d_up");
            (d_gate.par_chunks_mut(rows * width))
                .zip(d_up.par_chunks_mut(rows * width))
                .enumerate()
                .for_each(each_task(|(i, (d_gate, d_up))| {
                    task(i, GateUpGradients::Separate { d_gate, d_up });
                }));
        }
        GateUpGradients::Halves(d_x) => {
            assert_eq!(d_x.len(), 2 * len, "d_gate and d_up in one row");
            (d_x.par_chunks_mut(rows * 2 * width))
                .enumerate()
                .for_each(each_task(|(i, d_x)| task(i, GateUpGradients::Halves(d_x))));
        }
    }
}

struct Backward<'a, 'x, E> {
    args: &'a GatedBackward<'x, E>,
    first: usize,
    d_x: GateUpGradients<'a, E>,
}

impl<E: Element> SimdOp for Backward<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for_each_kind!(self.args.kind, self.map(s));
    }
}

impl<E: Element> Backward<'_, '_, E> {
    #[inline(always)]
    fn map<S: Simd>(self, s: S, kind: Activation) {
        let (args, width) = (self.args, self.args.width);
        match self.d_x {
            GateUpGradients::Separate { d_gate, d_up } => {
                let rows = d_gate.chunks_exact_mut(width);
                for (row, (d_gate, d_up)) in rows.zip(d_up.chunks_exact_mut(width)).enumerate() {
                    backward_row(s, kind, args, self.first + row, [d_gate, d_up]);
                }
            }
            GateUpGradients::Halves(d_x) => {
                for (row, d_x) in d_x.chunks_exact_mut(2 * width).enumerate() {
                    let (d_gate, d_up) = d_x.split_at_mut(width);
                    backward_row(s, kind, args, self.first + row, [d_gate, d_up]);
                }
            }
        }
    }
}

#[inline(always)]
fn backward_row<S: Simd, E: Element>(
    s: S,
    kind: Activation,
    args: &GatedBackward<E>,
    row: usize,
    [d_gate, d_up]: [&mut [E]; 2],
) {
    let width = args.width;
    let (gate, up) = args.x.row(row, width);
    let d_y = &args.d_y[row * width..][..width];
    let mut at = 0;
    while at < width {
        let n = lanes_at::<S>(at, width);
        let (x, d) = (load_at(s, gate, at, n), load_at(s, d_y, at, n));
        let slope = s.mul(derivative_for::<E, S>(s, kind, x), load_at(s, up, at, n));
        store_at(s, d_gate, at, s.mul(slope, d), n);
        let value = value_for::<E, S>(s, kind, x);
        store_at(s, d_up, at, s.mul(value, d), n);
        at += S::LANES;
    }
}
