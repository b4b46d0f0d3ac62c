//! The low-rank term of a language model's head: scaling · dropout(h)·Aᵀ·Bᵀ, added to the logits.
//! Shapes: h [N, D], A [r, D], B [V, r], t = dropout(h)·Aᵀ of some rows [C, r].

use std::ops::Range;

use lowrank_kernels::Dropout;

use crate::call::{
    Call, Epilogue, LowRankTerm, Operand, Outer, Product, Rows, RowsMut, Transpose, Write,
};
use crate::device::Device;
use crate::meter::Purpose;
use crate::ops::dropout::{drop_out, dropped_out};
use crate::ops::linear::Adapter;
use crate::param::{Gradients, PackedMatrix, Trainables};
use crate::tensor::Tensor;

/// An adapter on the head of one pass.
pub(super) struct Term<'a> {
    adapter: &'a Adapter,
    a: PackedMatrix,
    b: PackedMatrix,
    dropout: Option<Dropout>,
    /// dropout(h) of all rows, where there is dropout.
    dropped: Option<Tensor>,
    /// The gradient of dropout(h), where it is not h.
    d_dropped: Option<Tensor>,
}

impl<'a> Term<'a> {
    pub(super) fn new(
        adapter: &'a Adapter,
        h: &Tensor,
        dropout: Option<Dropout>,
        trainables: &Trainables,
    ) -> Self {
        let device = h.device();
        let pack = |id| PackedMatrix::trained(device, &trainables.get(id).value, Transpose::No);
        Term {
            adapter,
            a: pack(adapter.a),
            b: pack(adapter.b),
            dropout,
            dropped: dropout.map(|dropout| dropped_out(h, dropout)),
            d_dropped: None,
        }
    }

    fn input<'t>(&'t self, h: &'t Tensor, rows: Range<usize>) -> Rows<'t> {
        Rows::of(self.dropped.as_ref().unwrap_or(h), rows)
    }

    /// t of some rows.
    pub(super) fn inner(&self, h: &Tensor, rows: Range<usize>) -> Tensor {
        let (device, rank) = (h.device(), self.a.out_features());
        let mut t = Tensor::uninit(device, rows.len(), rank, Purpose::Workspace);
        let a = Operand::straight(&self.a);
        device.run(Call::Product(Product::new(self.input(h, rows), a, &mut t)));
        t
    }

    /// What is added to the logits.
    pub(super) fn of<'t>(&'t self, t: &'t Tensor) -> LowRankTerm<'t> {
        LowRankTerm {
            rows: 0..t.rows(),
            h: t,
            g: Operand::straight(&self.b),
            scale: self.adapter.scaling,
        }
    }

    /// Adds the gradients of A and B from d, that of some rows' logits; gives that of t.
    pub(super) fn backward(
        &self,
        d: &Tensor,
        h: &Tensor,
        rows: Range<usize>,
        gradients: &mut Gradients,
    ) -> Tensor {
        let (device, alpha) = (h.device(), self.adapter.scaling);
        let t = self.inner(h, rows.clone());
        device.run(Call::Outer(Outer {
            alpha,
            ..Outer::new(d, &t, gradients.get_mut(self.adapter.b))
        }));
        let mut d_t = t;
        device.run(Call::Product(Product {
            alpha,
            ..Product::new(d, Operand::transposed(&self.b), &mut d_t)
        }));
        let out = gradients.get_mut(self.adapter.a);
        device.run(Call::Outer(Outer::new(&d_t, self.input(h, rows), out)));
        d_t
    }

    /// Adds d_t·A to the gradient of some rows of h, or keeps it for [`Term::finish`].
    pub(super) fn add_to_input(&mut self, d_t: &Tensor, h: &mut Tensor, rows: Range<usize>) {
        let device: Device = h.device().clone();
        let (shape, dtype) = ([h.rows(), h.cols()], h.dtype());
        let (into, write) = match self.dropout {
            None => (h, Write::Add),
            Some(_) => {
                let [rows, cols] = shape;
                let new = || Tensor::uninit_as(dtype, &device, rows, cols, Purpose::Workspace);
                (self.d_dropped.get_or_insert_with(new), Write::Store)
            }
        };
        device.run(Call::Product(Product {
            epilogue: Epilogue::Write(write),
            ..Product::new(d_t, Operand::transposed(&self.a), RowsMut::of(into, rows))
        }));
    }

    /// Adds to the gradient of h what goes through dropout.
    pub(super) fn finish(self, h: &mut Tensor) {
        let Some((mut d, dropout)) = self.d_dropped.zip(self.dropout) else {
            return;
        };
        drop_out(&mut d, dropout);
        let device = h.device().clone();
        device.run(Call::Add { x: &d, out: h });
    }
}
