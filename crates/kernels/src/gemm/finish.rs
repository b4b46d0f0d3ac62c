//! What becomes of a tile of c once its sum is complete, while it is still in the cache.

use crate::activation::{Activation, derivative, value};
use crate::gemm::PANEL;
use crate::parallel::SharedMut;
use crate::simd::Simd;

/// What becomes of c when its sum over the whole depth is complete. `pre` is [m, n] with the rows of c.
pub enum Finish<'a> {
    /// Nothing: c is the product.
    Nothing,
    /// c = f(c), and pre = c as it was if its backward will need it.
    Activate {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: Option<&'a mut [f32]>,
    },
    /// c = c f'(pre): the backward of an activation between two layers.
    ActivateBackward {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: &'a [f32],
    },
}

/// A [`Finish`] that tasks share.
pub(super) enum Finisher<'a> {
    Nothing,
    Activate {
        kind: Activation,
        pre: Option<SharedMut>,
    },
    ActivateBackward {
        kind: Activation,
        pre: &'a [f32],
    },
}

/// A rectangle of c.
#[derive(Clone, Copy)]
pub(super) struct Rectangle {
    /// Place of its first element in c.
    pub start: usize,
    pub rows: usize,
    /// At most [`PANEL`].
    pub columns: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a> Finisher<'a> {
    /// Panics if `pre` is not as long as c.
    pub(super) fn new(finish: Finish<'a>, c_len: usize) -> Self {
        let check = |len: usize| assert_eq!(len, c_len, "the pre-activation");
        match finish {
            Finish::Nothing => Self::Nothing,
            Finish::Activate { kind, pre } => Self::Activate {
                kind,
                pre: pre.map(|pre| {
                    check(pre.len());
                    SharedMut::new(pre)
                }),
            },
            Finish::ActivateBackward { kind, pre } => {
                check(pre.len());
                Self::ActivateBackward { kind, pre }
            }
        }
    }

    /// Asks for what [`Finisher::apply`] will read.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, s: S, at: Rectangle) {
        let Self::ActivateBackward { pre, .. } = self else {
            return;
        };
        for row in 0..at.rows {
            for column in (0..PANEL).step_by(16) {
                s.prefetch(
                    pre.as_ptr()
                        .wrapping_add(at.start + row * at.stride + column),
                );
            }
        }
    }

    /// Finishes a rectangle of c.
    ///
    /// # Safety
    /// The rectangle lies inside c, whose length `pre` was checked against, and nobody else uses it in either meanwhile.
    #[inline(always)]
    pub(super) unsafe fn apply<S: Simd>(&self, s: S, c: SharedMut, at: Rectangle) {
        if matches!(self, Self::Nothing) {
            return;
        }
        for row in 0..at.rows {
            for column in (0..at.columns).step_by(S::LANES) {
                let n = (at.columns - column).min(S::LANES);
                // SAFETY: the caller's contract; the lanes end within the rectangle.
                unsafe { self.vector(s, c, at.start + row * at.stride + column, n) };
            }
        }
    }

    /// # Safety
    /// As [`Finisher::apply`], for `n` lanes from `at`.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, s: S, c: SharedMut, at: usize, n: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let c = c.get().add(at);
            let v = s.load_n(c, n);
            match self {
                Self::Nothing => {}
                Self::Activate { kind, pre } => {
                    if let Some(pre) = pre {
                        s.store_n(pre.get().add(at), v, n);
                    }
                    s.store_n(c, value(s, *kind, v), n);
                }
                Self::ActivateBackward { kind, pre } => {
                    let slope = derivative(s, *kind, s.load_n(pre.as_ptr().add(at), n));
                    s.store_n(c, s.mul(v, slope), n);
                }
            }
        }
    }
}
