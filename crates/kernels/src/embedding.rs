//! Embedding: rows of a table by id.

use crate::elementwise::add_in_place;
use crate::gemm::PANEL;
use crate::isa::Isa;
use crate::parallel::{for_each_chunk, rows_per_task};
use crate::simd::{Simd, SimdOp, dispatch};

struct Gather<'a> {
    table: &'a [f32],
    ids: &'a [u32],
    d: usize,
    out: &'a mut [f32],
}

impl SimdOp for Gather<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, &id) in self.out.chunks_exact_mut(self.d).zip(self.ids) {
            add_in_place(s, row, &self.table[id as usize * self.d..][..self.d]);
        }
    }
}

/// out = (or += if `accumulate`) the rows of `table` named by `ids`. Shapes: table [rows, d], out [ids, d].
///
/// Panics if an id has no row.
pub fn embedding_gather(
    isa: Isa,
    table: &[f32],
    d: usize,
    ids: &[u32],
    out: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(out.len(), ids.len() * d);
    if d == 0 {
        return;
    }
    let rows = rows_per_task(d);
    for_each_chunk(out, rows * d, |start, out| {
        let ids = &ids[start / d..][..out.len() / d];
        if accumulate {
            dispatch(isa, Gather { table, ids, d, out });
        } else {
            for (row, &id) in out.chunks_exact_mut(d).zip(ids) {
                row.copy_from_slice(&table[id as usize * d..][..d]);
            }
        }
    });
}

/// As [`embedding_gather`] from a table [rows, d] that [`crate::pack`] has packed.
///
/// Panics if an id has no row.
pub fn embedding_gather_packed(
    packed: &[f32],
    d: usize,
    ids: &[u32],
    out: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(out.len(), ids.len() * d);
    if d == 0 {
        return;
    }
    for_each_chunk(out, rows_per_task(d) * d, |start, out| {
        for (row, &id) in out.chunks_exact_mut(d).zip(&ids[start / d..]) {
            let id = id as usize;
            let panel = &packed[id / PANEL * PANEL * d..][..PANEL * d];
            let column = panel[id % PANEL..].iter().step_by(PANEL);
            for (out, v) in row.iter_mut().zip(column) {
                *out = if accumulate { *out + v } else { *v };
            }
        }
    });
}

/// `d_table[id]` += the rows of `d_out`, one after the other in the order of `ids`: deterministic, single-threaded.
///
/// Shapes: d_out [ids, d], d_table [rows, d]. Panics if an id has no row.
pub fn embedding_scatter_add(d: usize, ids: &[u32], d_out: &[f32], d_table: &mut [f32]) {
    assert_eq!(d_out.len(), ids.len() * d);
    if d == 0 {
        return;
    }
    for (row, &id) in d_out.chunks_exact(d).zip(ids) {
        for (sum, x) in d_table[id as usize * d..][..d].iter_mut().zip(row) {
            *sum += x;
        }
    }
}
