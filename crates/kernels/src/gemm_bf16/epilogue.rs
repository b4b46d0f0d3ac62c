//! What happens to a tile of sums on its way to c.

use super::Epilogue;
use super::kernel::TILE_LEN;
use crate::activation::{Activation, derivative_for, value_for};
use crate::element::Element;
use crate::gemm::PANEL;
use crate::parallel::SharedMut;
use crate::simd::{Simd, load_at};

/// An [`Epilogue`] that tasks share. All matrices are [m, n], rows end to end.
pub(super) struct Sink<'a, C> {
    c: SharedMut<C>,
    n: usize,
    bias: Option<&'a [f32]>,
    step: Step<'a, C>,
}

enum Step<'a, C> {
    Store,
    Add,
    Activate {
        kind: Activation,
        pre: Option<SharedMut<C>>,
    },
    ActivateBackward {
        kind: Activation,
        pre: &'a [C],
    },
}

/// Where a vector of a tile is, and where it goes.
#[derive(Clone, Copy)]
struct Place {
    /// In the tile.
    from: usize,
    /// In the matrices.
    to: usize,
    /// Column.
    column: usize,
    /// Lanes.
    lanes: usize,
}

impl<'a, C: Element> Sink<'a, C> {
    /// Panics if a matrix is not m x n.
    pub(super) fn new(
        epilogue: Epilogue<'a, C>,
        m: usize,
        n: usize,
        bias: Option<&'a [f32]>,
    ) -> Self {
        let (c, step) = match epilogue {
            Epilogue::Store(c) => (c, Step::Store),
            Epilogue::Add(c) => (c, Step::Add),
            Epilogue::Activate { kind, pre, c } => {
                let pre = pre.map(|pre| {
                    assert_eq!(pre.len(), m * n, "the pre-activation");
                    SharedMut::new(pre)
                });
                (c, Step::Activate { kind, pre })
            }
            Epilogue::ActivateBackward { kind, pre, c } => {
                assert_eq!(pre.len(), m * n, "the pre-activation");
                (c, Step::ActivateBackward { kind, pre })
            }
        };
        assert_eq!(c.len(), m * n, "c [{m}, {n}]");
        Self {
            c: SharedMut::new(c),
            n,
            bias,
            step,
        }
    }

    /// Asks for the lines that a tile will be written to.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize) {
        for i in row..row + rows {
            let at = i * self.n + column;
            s.prefetch(self.c.get().wrapping_add(at).cast());
            match &self.step {
                Step::Store | Step::Add | Step::Activate { pre: None, .. } => {}
                Step::Activate { pre: Some(pre), .. } => {
                    s.prefetch(pre.get().wrapping_add(at).cast())
                }
                Step::ActivateBackward { pre, .. } => {
                    s.prefetch(pre.as_ptr().wrapping_add(at).cast())
                }
            }
        }
    }

    /// Takes a tile of sums whose first element is [row, column].
    ///
    /// # Safety
    /// The rectangle lies inside [m, n], nobody else uses it meanwhile, and the epilogue's matrices live.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(
        &self,
        s: S,
        tile: &[f32; TILE_LEN],
        [row, column]: [usize; 2],
        [rows, columns]: [usize; 2],
    ) {
        for i in 0..rows {
            let mut j = 0;
            while j < columns {
                let place = Place {
                    from: i * PANEL + j,
                    to: (row + i) * self.n + column + j,
                    column: column + j,
                    lanes: (columns - j).min(S::LANES),
                };
                // SAFETY: the caller's contract; the lanes end within the rectangle.
                unsafe { self.write_vector(s, tile, place) };
                j += S::LANES;
            }
        }
    }

    /// # Safety
    /// As [`Sink::write`], for one vector.
    #[inline(always)]
    unsafe fn write_vector<S: Simd>(&self, s: S, tile: &[f32; TILE_LEN], place: Place) {
        let Place {
            from,
            to,
            column,
            lanes,
        } = place;
        let mut v = load_at(s, tile, from, lanes);
        if let Some(bias) = self.bias {
            v = s.add(v, load_at(s, bias, column, lanes));
        }
        // SAFETY: the caller's contract.
        unsafe {
            let c = self.c.get().add(to);
            match &self.step {
                Step::Store => put(s, c, v, lanes),
                Step::Add => put(s, c, s.add(get(s, c, lanes), v), lanes),
                Step::Activate { kind, pre } => {
                    // f of what is or would be stored: the backward then differentiates the very function that ran, and
                    // a pass that keeps nothing gives the same bits as one that does.
                    v = C::round(s, v);
                    if let Some(pre) = pre {
                        put(s, pre.get().add(to), v, lanes);
                    }
                    put(s, c, value_for::<C, S>(s, *kind, v), lanes);
                }
                Step::ActivateBackward { kind, pre } => {
                    let slope =
                        derivative_for::<C, S>(s, *kind, get(s, pre.as_ptr().add(to), lanes));
                    put(s, c, s.mul(v, slope), lanes);
                }
            }
        }
    }
}

/// # Safety
/// `p` is valid for reads of `n <= LANES` values.
#[inline(always)]
unsafe fn get<S: Simd, C: Element>(s: S, p: *const C, n: usize) -> S::V {
    // SAFETY: the caller's contract.
    unsafe {
        if n == S::LANES {
            C::load(s, p)
        } else {
            C::load_n(s, p, n)
        }
    }
}

/// # Safety
/// `p` is valid for writes of `n <= LANES` values.
#[inline(always)]
unsafe fn put<S: Simd, C: Element>(s: S, p: *mut C, v: S::V, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if n == S::LANES {
            C::store(s, p, v);
        } else {
            C::store_n(s, p, v, n);
        }
    }
}
