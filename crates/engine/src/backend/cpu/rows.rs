//! Rows and columns moved about: copies, gathers, slices, parts of heads, tables.

use lowrank_kernels::{self as kernels, Element, Isa};

use super::{products, with_element};
use crate::call::{Rows, RowsMut, TableRef, TableRows};
use crate::ops::head_part::HeadPart;
use crate::tensor::Tensor;

pub(super) fn copy(x: Rows<'_>, out: RowsMut<'_>) {
    let cols = x.tensor.cols();
    let (from, into) = (
        x.rows.start * cols..x.rows.end * cols,
        out.rows.start * cols..out.rows.end * cols,
    );
    with_element!(x.tensor.dtype(), E => {
        out.tensor.host_mut::<E>()[into].copy_from_slice(&x.tensor.host::<E>()[from]);
    });
}

pub(super) fn gather(x: &Tensor, rows: &[usize], y: &mut Tensor) {
    let cols = x.cols();
    with_element!(x.dtype(), E => {
        let x = x.host::<E>();
        for (out, &row) in y.host_mut().chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&x[row * cols..][..cols]);
        }
    });
}

pub(super) fn scatter(x: &Tensor, rows: &[u32], out: &mut Tensor) {
    let cols = x.cols();
    with_element!(x.dtype(), E => {
        let out = out.host_mut::<E>();
        for (x, &row) in x.host::<E>().chunks_exact(cols).zip(rows) {
            out[row as usize * cols..][..cols].copy_from_slice(x);
        }
    });
}

pub(super) fn scatter_add(isa: Isa, d_y: &Tensor, rows: &[usize], d_x: &mut Tensor) {
    let cols = d_y.cols();
    with_element!(d_x.dtype(), E => {
        for (d, &row) in d_y.host::<E>().chunks_exact(cols).zip(rows) {
            let into = &mut d_x.host_mut::<E>()[row * cols..][..cols];
            kernels::add_assign(isa, into, d);
        }
    });
}

pub(super) fn slice(x: &Tensor, first: usize, y: &mut Tensor) {
    let cols = y.cols();
    with_element!(x.dtype(), E => {
        let rows = x.host::<E>().chunks_exact(x.cols());
        for (out, row) in y.host_mut().chunks_exact_mut(cols).zip(rows) {
            out.copy_from_slice(&row[first..first + cols]);
        }
    });
}

pub(super) fn slice_backward(isa: Isa, d_y: &Tensor, first: usize, d_x: &mut Tensor) {
    let (cols, x_cols) = (d_y.cols(), d_x.cols());
    with_element!(d_x.dtype(), E => {
        let rows = d_y.host::<E>().chunks_exact(cols);
        for (into, d) in d_x.host_mut::<E>().chunks_exact_mut(x_cols).zip(rows) {
            kernels::add_assign(isa, &mut into[first..first + cols], d);
        }
    });
}

pub(super) fn put_columns(x: &Tensor, columns: &[u32], out: &mut Tensor) {
    let (few, many) = (x.cols(), out.cols());
    with_element!(x.dtype(), E => {
        let rows = x.host::<E>().chunks_exact(few);
        for (to, from) in out.host_mut::<E>().chunks_exact_mut(many).zip(rows) {
            for (&column, from) in columns.iter().zip(from) {
                to[column as usize] = *from;
            }
        }
    });
}

pub(super) fn take_columns(x: &mut Tensor, columns: &[u32], out: &mut Tensor) {
    let (few, many) = (out.cols(), x.cols());
    with_element!(x.dtype(), E => {
        let rows = x.host_mut::<E>().chunks_exact_mut(many);
        for (to, from) in out.host_mut::<E>().chunks_exact_mut(few).zip(rows) {
            for (to, &column) in to.iter_mut().zip(columns) {
                *to = std::mem::replace(&mut from[column as usize], E::narrow(0.0));
            }
        }
    });
}

/// The part's columns in a row, head by head.
fn part_of<'a, E>(form: &HeadPart, x: &'a [E]) -> impl Iterator<Item = &'a [E]> {
    let heads = x.chunks_exact(form.head_dim);
    heads.skip(form.part).step_by(form.parts)
}

pub(super) fn head_part(x: &Tensor, form: HeadPart, bias: Option<&Tensor>, y: &mut Tensor) {
    let (cols, bias) = (y.cols(), bias.map(Tensor::host::<f32>));
    with_element!(x.dtype(), E => {
        let rows = x.host::<E>().chunks_exact(x.cols());
        for (to, from) in y.host_mut::<E>().chunks_exact_mut(cols).zip(rows) {
            let heads = to.chunks_exact_mut(form.head_dim).zip(part_of(&form, from));
            heads.for_each(|(to, from)| to.copy_from_slice(from));
            for (to, bias) in to.iter_mut().zip(bias.into_iter().flatten()) {
                *to = E::narrow(to.widen() + bias);
            }
        }
    });
}

pub(super) fn head_part_backward(d_y: &Tensor, form: HeadPart, d_x: &mut Tensor) {
    let (cols, x_cols) = (d_y.cols(), d_x.cols());
    with_element!(d_y.dtype(), E => {
        let rows = d_y.host::<E>().chunks_exact(cols);
        for (to, from) in d_x.host_mut::<E>().chunks_exact_mut(x_cols).zip(rows) {
            let heads = to.chunks_exact_mut(form.head_dim);
            let heads = heads.skip(form.part).step_by(form.parts);
            for (to, from) in heads.zip(from.chunks_exact(form.head_dim)) {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = E::narrow(to.widen() + from.widen());
                }
            }
        }
    });
}

pub(super) fn embedding(isa: Isa, tables: &[TableRows<'_>], y: &mut Tensor) {
    let tables: Vec<_> = (tables.iter())
        .map(|TableRows { table, ids }| kernels::TableRows {
            table: match table {
                TableRef::Rows(table) => kernels::Table::Rows(products::values(table)),
                TableRef::Packed(matrix) => kernels::Table::Packed(products::weights(matrix)),
            },
            ids,
        })
        .collect();
    let cols = y.cols();
    with_element!(y.dtype(), E => {
        kernels::embedding_gather(isa, &tables, cols, y.host_mut::<E>());
    });
}

pub(super) fn embedding_backward(
    d_y: &Tensor,
    ids: &[u32],
    padding_idx: Option<u32>,
    d_table: &mut Tensor,
) {
    let (cols, d_table) = (d_y.cols(), d_table.host_mut());
    // Runs of real tokens: a padding token inside a row is rare, one at its end does not exist
    // here.
    let mut start = 0;
    for run in ids.split(|id| Some(*id) == padding_idx) {
        let range = start * cols..(start + run.len()) * cols;
        with_element!(d_y.dtype(), E => {
            kernels::embedding_scatter_add(cols, run, &d_y.host::<E>()[range], d_table);
        });
        start += run.len() + 1;
    }
}
