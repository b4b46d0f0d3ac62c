//! Sums, scalings and reductions over plain slices.

use std::ops::Range;

use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::{CHUNK, chunk_range, for_each_chunk, map_tasks, rows_per_task};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

struct AddAssign<'a, D, E> {
    dst: &'a mut [D],
    src: &'a [E],
}

impl<D: Element, E: Element> SimdOp for AddAssign<'_, D, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        add_in_place(s, self.dst, self.src);
    }
}

/// dst += src.
#[inline(always)]
pub(crate) fn add_in_place<S: Simd, D: Element, E: Element>(s: S, dst: &mut [D], src: &[E]) {
    assert_eq!(dst.len(), src.len());
    let mut at = 0;
    while at < dst.len() {
        let n = lanes_at::<S>(at, dst.len());
        let sum = s.add(load_at(s, dst, at, n), load_at(s, src, at, n));
        store_at(s, dst, at, sum, n);
        at += S::LANES;
    }
}

/// dst += src. Panics if the lengths differ.
pub fn add_assign<D: Element, E: Element>(isa: Isa, dst: &mut [D], src: &[E]) {
    assert_eq!(dst.len(), src.len());
    for_each_chunk(dst, CHUNK, |start, dst| {
        let src = &src[start..start + dst.len()];
        dispatch(isa, AddAssign { dst, src });
    });
}

struct Scale<'a, E> {
    x: &'a mut [E],
    factor: f32,
}

impl<E: Element> SimdOp for Scale<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        scale_in_place(s, self.x, self.factor);
    }
}

/// x *= factor.
#[inline(always)]
pub(crate) fn scale_in_place<S: Simd, E: Element>(s: S, x: &mut [E], factor: f32) {
    let factor = s.splat(factor);
    let mut at = 0;
    while at < x.len() {
        let n = lanes_at::<S>(at, x.len());
        let product = s.mul(load_at(s, x, at, n), factor);
        store_at(s, x, at, product, n);
        at += S::LANES;
    }
}

/// x *= factor, rounded once to the storage.
pub fn scale<E: Element>(isa: Isa, x: &mut [E], factor: f32) {
    for_each_chunk(x, CHUNK, |_, x| dispatch(isa, Scale { x, factor }));
}

struct SumOfSquares<'a>(&'a [f32]);

impl SimdOp for SumOfSquares<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.0f64;
        // Runs of 256 in f32, their sums in f64: the error stays near one rounding.
        for run in self.0.chunks(256) {
            let mut sum = s.splat(0.0);
            let mut at = 0;
            while at < run.len() {
                let v = load_at(s, run, at, lanes_at::<S>(at, run.len()));
                sum = s.mul_add(v, v, sum);
                at += S::LANES;
            }
            total += f64::from(s.reduce_add(sum));
        }
        total
    }
}

/// The sum of the squares, summed in f64 over fixed runs. Squares beyond f32's range give infinity.
pub fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
    let partials = map_tasks(x.len().div_ceil(CHUNK), |task| {
        dispatch(isa, SumOfSquares(&x[chunk_range(task, CHUNK, x.len())]))
    });
    partials.iter().sum()
}

struct AllFinite<'a>(&'a [f32]);

impl SimdOp for AllFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let zero = s.splat(0.0);
        // x * 0 is zero for every finite x and NaN for the others.
        let mut sum = zero;
        let mut at = 0;
        while at < self.0.len() {
            let v = load_at(s, self.0, at, lanes_at::<S>(at, self.0.len()));
            sum = s.mul_add(v, zero, sum);
            at += S::LANES;
        }
        s.reduce_add(sum) == 0.0
    }
}

/// Whether every value is finite.
pub fn all_finite(isa: Isa, x: &[f32]) -> bool {
    let partials = map_tasks(x.len().div_ceil(CHUNK), |task| {
        dispatch(isa, AllFinite(&x[chunk_range(task, CHUNK, x.len())]))
    });
    partials.into_iter().all(|finite| finite)
}

struct ColumnSum<'a, E> {
    x: &'a [E],
    out: &'a mut [f32],
}

impl<E: Element> SimdOp for ColumnSum<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact(self.out.len()) {
            add_in_place(s, self.out, row);
        }
    }
}

/// out += the sums of the columns. Shapes: x [n, cols], out `[cols]`. Rows are summed in fixed
/// chunks, in order.
pub fn column_sum<E: Element>(isa: Isa, x: &[E], cols: usize, out: &mut [f32]) {
    assert_eq!(out.len(), cols);
    if cols == 0 {
        return;
    }
    assert_eq!(x.len() % cols, 0, "whole rows of {cols}");
    add_row_sums(isa, x.len() / cols, [out], |rows, [out]| {
        let x = &x[rows.start * cols..rows.end * cols];
        dispatch(isa, ColumnSum { x, out });
    });
}

/// Adds to N lists what `add` adds to zeros for each part of `n` rows. Parts are fixed by the
/// lists' length, and their sums are added in order.
pub(crate) fn add_row_sums<const N: usize>(
    isa: Isa,
    n: usize,
    mut lists: [&mut [f32]; N],
    add: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync + Send,
) {
    let lens = lists.each_ref().map(|list| list.len());
    let rows = rows_per_task(lens[0]).max(16);
    let partials = map_tasks(n.div_ceil(rows), |task| {
        let mut sums = lens.map(|len| vec![0.0; len]);
        add(
            chunk_range(task, rows, n),
            sums.each_mut().map(Vec::as_mut_slice),
        );
        sums
    });
    for sums in &partials {
        for (list, sums) in lists.iter_mut().zip(sums) {
            add_assign(isa, list, sums);
        }
    }
}

struct Convert<'a, D, E> {
    dst: &'a mut [D],
    src: &'a [E],
}

impl<D: Element, E: Element> SimdOp for Convert<'_, D, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        convert_in(s, self.dst, self.src);
    }
}

/// dst = src in dst's storage.
#[inline(always)]
pub(crate) fn convert_in<S: Simd, D: Element, E: Element>(s: S, dst: &mut [D], src: &[E]) {
    assert_eq!(dst.len(), src.len());
    let mut at = 0;
    while at < dst.len() {
        let n = lanes_at::<S>(at, dst.len());
        store_at(s, dst, at, load_at(s, src, at, n), n);
        at += S::LANES;
    }
}

/// dst = src in dst's storage. Panics if the lengths differ.
pub fn convert<D: Element, E: Element>(isa: Isa, dst: &mut [D], src: &[E]) {
    assert_eq!(dst.len(), src.len());
    for_each_chunk(dst, CHUNK, |start, dst| {
        let src = &src[start..start + dst.len()];
        dispatch(isa, Convert { dst, src });
    });
}
