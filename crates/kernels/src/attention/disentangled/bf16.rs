//! Disentangled attention on bf16: its entries, the tables laid out by distance as pairs, and the sum of their gradients.

use super::super::pairs::padded;
use super::super::{SCRATCH, make_mask, run_tasks};
use super::skewed::{HeadTable, HeadTables};
use super::{
    AttentionShape, DisentangledGradients, DisentangledInputs, DisentangledSaved,
    RelativePositions, Side, backward_bf16, check, forward_bf16, groups, split_partial,
};
use crate::elementwise::{add_in_place, convert_in};
use crate::gemm::PANEL;
use crate::gemm_bf16::{pack_columns, pack_rows_of, pairs_of};
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::{SharedMut, for_each_task};
use crate::simd::{Simd, SimdOp, dispatch};
use half::bf16;

/// Workspace of the backward, of the lengths that [`disentangled_backward_workspace_bf16`] gives.
#[derive(Debug)]
pub struct PairWorkspace<'a> {
    /// The tables by distance.
    pub tables: &'a mut [bf16],
    /// Their gradients, one for each group of sequences.
    pub partial: &'a mut [f32],
}

/// bf16 values of workspace that the forward needs with `n_tables` tables.
pub fn disentangled_forward_workspace_bf16(shape: &AttentionShape, n_tables: usize) -> usize {
    n_tables * shape.num_heads * by_rows_len(shape)
}

/// bf16 and f32 values of workspace that the backward needs with `n_tables` tables, the gradient of `n_trained` of which is
/// wanted.
pub fn disentangled_backward_workspace_bf16(
    shape: &AttentionShape,
    n_tables: usize,
    n_trained: usize,
) -> [usize; 2] {
    let heads = shape.num_heads;
    let tables = n_tables * heads * (by_rows_len(shape) + by_columns_len(shape));
    [
        tables,
        n_trained * groups(shape) * heads * by_columns_len(shape),
    ]
}

/// As [`super::disentangled_attention_forward`] for bf16: products of bf16 pairs summed in f32, softmax in f32, probabilities
/// rounded to bf16 before they meet the values. Workspace `[disentangled_forward_workspace_bf16]`. Panics if a length
/// disagrees, a sequence is longer than the reach, or a row is past the end of a table.
pub fn disentangled_attention_forward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    inputs: &DisentangledInputs<bf16>,
    workspace: &mut [bf16],
    out: &mut [bf16],
    lse: &mut [f32],
) {
    let DisentangledInputs { q, k, v, .. } = *inputs;
    shape.check_lengths(&[q, out], &[k, v], lse);
    check(shape, &inputs.positions);
    let tables = PairTables::prepare(isa, shape, &inputs.positions, (workspace, 0));
    let mask = make_mask(shape);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    run_tasks(shape, |head, scratch| {
        let op = forward_bf16::Forward {
            head,
            mask,
            tables: tables.head(head.head),
            inputs: [q, k, v],
            out,
            lse,
            scratch,
        };
        dispatch(isa, op);
    });
}

/// As [`super::disentangled_attention_backward`] for bf16; the tables' gradients are summed in f32 and rounded once. Panics
/// if a length disagrees.
pub fn disentangled_attention_backward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    saved: &DisentangledSaved<bf16>,
    d_out: &[bf16],
    workspace: PairWorkspace,
    gradients: DisentangledGradients<bf16>,
) {
    let (DisentangledInputs { q, k, v, .. }, positions) = (saved.inputs, &saved.inputs.positions);
    let DisentangledGradients {
        d_q,
        d_k,
        d_v,
        d_keys,
        d_queries,
    } = gradients;
    shape.check_lengths(&[q, saved.out, d_out, d_q], &[k, v, d_k, d_v], saved.lse);
    check(shape, positions);
    let by_columns = by_columns_len(shape);
    let tables = PairTables::prepare(isa, shape, positions, (workspace.tables, by_columns));
    let part = groups(shape) * shape.num_heads * by_columns;
    let [mut of_keys, mut of_queries] =
        split_partial(workspace.partial, part, [&d_keys, &d_queries], positions);
    if shape.width() > 0 {
        let task = backward_bf16::Groups {
            isa,
            shape,
            saved,
            d_out,
            tables,
            gradients: [d_q, d_k, d_v].map(SharedMut::new),
            of_tables: [&mut of_keys, &mut of_queries]
                .map(|x| x.as_deref_mut().map(SharedMut::new)),
        };
        task.run();
    }
    for (d, partial, side) in [
        (d_keys, of_keys, Side::Keys),
        (d_queries, of_queries, Side::Queries),
    ] {
        if let Some((d, partial)) = d.zip(partial) {
            sum_groups(isa, (shape, positions), partial, d, side);
        }
    }
}

/// Values of one head's table as panels of columns, whole pairs along Dh.
fn by_rows_len(shape: &AttentionShape) -> usize {
    shape.columns() * 2 * pairs_of(shape.head_dim)
}

/// Values of one head's table as panels of Dh, and of its gradient.
fn by_columns_len(shape: &AttentionShape) -> usize {
    shape.columns() * padded(shape.head_dim)
}

/// The tables by distance, head by head.
#[derive(Clone, Copy)]
pub(super) struct PairTables<'a> {
    keys: Option<PairTable<'a>>,
    queries: Option<PairTable<'a>>,
    columns: usize,
}

#[derive(Clone, Copy)]
struct PairTable<'a> {
    by_rows: &'a [bf16],
    /// Empty in the forward.
    by_columns: &'a [bf16],
    /// Values of one head in each.
    head_len: [usize; 2],
}

impl<'a> PairTables<'a> {
    /// Lays the tables out in the workspace, by columns only if a head's form of that kind has a length.
    fn prepare(
        isa: Isa,
        shape: &AttentionShape,
        positions: &RelativePositions<bf16>,
        (workspace, by_columns_len): (&'a mut [bf16], usize),
    ) -> Self {
        let head_len = [by_rows_len(shape), by_columns_len];
        let [rows_len, columns_len] = head_len.map(|len| shape.num_heads * len);
        assert_eq!(
            workspace.len(),
            positions.count() * (rows_len + columns_len)
        );
        let mut rest = workspace;
        let mut make = |from: Option<&[bf16]>, side| {
            let from = from?;
            let (by_rows, others) = std::mem::take(&mut rest).split_at_mut(rows_len);
            let (by_columns, others) = others.split_at_mut(columns_len);
            rest = others;
            lay_out(
                isa,
                (shape, positions),
                (from, side),
                [by_rows, by_columns],
                head_len,
            );
            Some(PairTable {
                by_rows,
                by_columns,
                head_len,
            })
        };
        PairTables {
            keys: make(positions.keys, Side::Keys),
            queries: make(positions.queries, Side::Queries),
            columns: shape.columns(),
        }
    }

    pub(super) fn head(&self, h: usize) -> HeadTables<'a> {
        let part = |table: PairTable<'a>| {
            let [by_rows, by_columns] = table.head_len;
            HeadTable {
                by_rows: &table.by_rows[h * by_rows..][..by_rows],
                by_columns: &table.by_columns[h * by_columns..][..by_columns],
            }
        };
        HeadTables {
            keys: self.keys.map(part),
            queries: self.queries.map(part),
            columns: self.columns,
        }
    }
}

/// Packs one table by distance, head by head.
fn lay_out(
    isa: Isa,
    (shape, positions): (&AttentionShape, &RelativePositions<bf16>),
    (from, side): (&[bf16], Side),
    forms: [&mut [bf16]; 2],
    head_len: [usize; 2],
) {
    if by_rows_len(shape) == 0 {
        return;
    }
    let forms = forms.map(SharedMut::new);
    for_each_task(shape.num_heads, |head| {
        // SAFETY: each form has a part for every head, and each task takes its own.
        let part = |which: usize| unsafe {
            let start = forms[which].get().add(head * head_len[which]);
            std::slice::from_raw_parts_mut(start, head_len[which])
        };
        let op = LayOut {
            shape,
            positions,
            from,
            side,
            head,
            by_rows: part(0),
            by_columns: part(1),
        };
        dispatch(isa, op);
    });
}

/// The layout of one head of one table.
struct LayOut<'a> {
    shape: &'a AttentionShape<'a>,
    positions: &'a RelativePositions<'a, bf16>,
    from: &'a [bf16],
    side: Side,
    head: usize,
    by_rows: &'a mut [bf16],
    by_columns: &'a mut [bf16],
}

impl SimdOp for LayOut<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (d, columns) = (self.shape.head_dim, self.shape.columns());
        let stride = 2 * pairs_of(d);
        let mut gathered = SCRATCH.with_borrow_mut(|x| std::mem::take(&mut x.skewed.gathered));
        gathered.at_least(PANEL * stride);
        for (p, panel) in self.by_rows.chunks_exact_mut(PANEL * stride).enumerate() {
            for (i, row) in gathered.chunks_exact_mut(stride).take(PANEL).enumerate() {
                let of_table = self.positions.row(self.side, p * PANEL + i, columns);
                let start = of_table * self.shape.width() + self.head * d;
                row[..d].copy_from_slice(&self.from[start..start + d]);
            }
            let rows = MatRef::strided(&gathered, PANEL, d, stride, 1);
            pack_rows_of(s, rows, panel);
            for (q, panel) in self
                .by_columns
                .chunks_exact_mut(columns * PANEL)
                .enumerate()
            {
                let columns = rows
                    .transposed()
                    .rows_range(q * PANEL..((q + 1) * PANEL).min(d));
                pack_columns(s, columns, &mut panel[p * PANEL * PANEL..][..PANEL * PANEL]);
            }
        }
        SCRATCH.with_borrow_mut(|x| x.skewed.gathered = gathered);
    }
}

/// d = the sum over groups and columns of what belongs to each row of a table; zeros for rows that no distance names.
fn sum_groups(
    isa: Isa,
    (shape, positions): (&AttentionShape, &RelativePositions<bf16>),
    partial: &[f32],
    d: &mut [bf16],
    side: Side,
) {
    if by_columns_len(shape) == 0 {
        d.fill(bf16::ZERO);
        return;
    }
    let rows = d.len() / shape.width();
    let d = SharedMut::new(d);
    for_each_task(shape.num_heads, |head| {
        let op = SumGroups {
            shape,
            positions,
            partial,
            side,
            head,
            rows,
            d,
        };
        dispatch(isa, op);
    });
}

/// The sum of one head.
struct SumGroups<'a> {
    shape: &'a AttentionShape<'a>,
    positions: &'a RelativePositions<'a, bf16>,
    partial: &'a [f32],
    side: Side,
    head: usize,
    rows: usize,
    d: SharedMut<bf16>,
}

impl SimdOp for SumGroups<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (columns, d) = (self.shape.columns(), self.shape.head_dim);
        let len = by_columns_len(self.shape);
        let mut scratch = SCRATCH.with_borrow_mut(|x| std::mem::take(&mut x.values));
        let sums = scratch.at_least(self.rows * d);
        sums.fill(0.0);
        for group in self.partial.chunks_exact(self.shape.num_heads * len) {
            let of_head = group[self.head * len..][..len].chunks_exact(padded(d));
            for (c, from) in of_head.enumerate() {
                let row = self.positions.row(self.side, c, columns);
                add_in_place(s, &mut sums[row * d..][..d], &from[..d]);
            }
        }
        for (row, sums) in sums.chunks_exact(d).enumerate() {
            let at = row * self.shape.width() + self.head * d;
            // SAFETY: row `row` lies inside d, and no other task writes this head's columns.
            let to = unsafe { std::slice::from_raw_parts_mut(self.d.get().add(at), d) };
            convert_in(s, to, sums);
        }
        SCRATCH.with_borrow_mut(|x| x.values = scratch);
    }
}
