//! Embedding: sums of rows of tables, by id.

use crate::element::{Element, Values};
use crate::elementwise::{add_in_place, convert_in};
use crate::isa::Isa;
use crate::parallel::{for_each_chunk, rows_per_task};
use crate::product::PackedWeights;
use crate::simd::{Simd, SimdOp, dispatch};

/// How a table [rows, d] is stored.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Rows end to end.
    Rows(Values<'a>),
    /// Packed weights: a head multiplies with them too.
    Packed(PackedWeights<'a>),
}

/// A table and the rows to read from it.
#[derive(Clone, Copy, Debug)]
pub struct TableRows<'a> {
    /// The table.
    pub table: Table<'a>,
    /// Row numbers, one for each row of the result.
    pub ids: &'a [u32],
}

/// Rows `first ..` of the result.
struct Gather<'a, 't, E> {
    tables: &'a [TableRows<'t>],
    first: usize,
    d: usize,
    out: &'a mut [E],
}

impl<E: Element> SimdOp for Gather<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // The sum is rounded to the storage once, at its end.
        let mut sum = vec![0.0f32; self.d];
        for (i, row) in self.out.chunks_exact_mut(self.d).enumerate() {
            sum.fill(0.0);
            for rows in self.tables {
                let id = rows.ids[self.first + i] as usize;
                let row = id * self.d..(id + 1) * self.d;
                match rows.table {
                    Table::Rows(Values::F32(table)) => add_in_place(s, &mut sum, &table[row]),
                    Table::Rows(Values::Bf16(table)) => add_in_place(s, &mut sum, &table[row]),
                    Table::Packed(table) => table.add_row(id, &mut sum),
                }
            }
            convert_in(s, row, &sum);
        }
    }
}

/// out = Σ over the tables of their rows named by their ids, summed in f32 in the order of the
/// tables. Shape: out [ids, d].
///
/// Panics if an id has no row or the numbers of ids disagree.
pub fn embedding_gather<E: Element>(isa: Isa, tables: &[TableRows], d: usize, out: &mut [E]) {
    for rows in tables {
        assert_eq!(out.len(), rows.ids.len() * d);
    }
    if d == 0 {
        return;
    }
    for_each_chunk(out, rows_per_task(d) * d, |start, out| {
        let op = Gather {
            tables,
            first: start / d,
            d,
            out,
        };
        dispatch(isa, op);
    });
}

/// `d_table[id]` += the rows of `d_out`, one after the other in the order of `ids`: deterministic,
/// single-threaded.
///
/// Shapes: d_out [ids, d], d_table [rows, d]. Panics if an id has no row.
pub fn embedding_scatter_add<E: Element>(d: usize, ids: &[u32], d_out: &[E], d_table: &mut [f32]) {
    assert_eq!(d_out.len(), ids.len() * d);
    if d == 0 {
        return;
    }
    for (row, &id) in d_out.chunks_exact(d).zip(ids) {
        for (sum, x) in d_table[id as usize * d..][..d].iter_mut().zip(row) {
            *sum += x.widen();
        }
    }
}
