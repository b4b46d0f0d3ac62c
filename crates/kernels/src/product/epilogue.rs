//! What becomes of a tile of c once its sums are complete, while it is still in the cache.

use half::bf16;

use crate::activation::{Activation, derivative_for, value_for};
use crate::element::{Element, ValuesMut};
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp, load_at};

use super::plan::Base;
use super::{Epilogue, Output, PANEL, ProductShape};

/// A rectangle of c, at most [`PANEL`] columns wide.
#[derive(Clone, Copy)]
pub(super) struct Rectangle {
    pub row: usize,
    pub column: usize,
    pub rows: usize,
    pub columns: usize,
}

/// Where the sums of a tile are.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub start: *mut f32,
    /// Distance between rows.
    pub stride: usize,
}

/// An [`Epilogue`] and its c, which tasks share.
pub(super) enum Sink<'a> {
    F32(SinkOf<'a, f32>),
    Bf16(SinkOf<'a, bf16>),
}

/// A [`Sink`] of one type. All matrices have rows `stride` apart.
pub(super) struct SinkOf<'a, C> {
    c: SharedMut<C>,
    stride: usize,
    /// Absent where the sums start with it.
    bias: Option<&'a [f32]>,
    step: Step<'a, C>,
    /// Whether sums are made in c itself, as a plain [`Epilogue::Store`] or [`Epilogue::Add`] wants
    /// them.
    in_c: bool,
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

impl<'a> Sink<'a> {
    /// Panics if a matrix is shorter than the shape, or of another type than c.
    pub(super) fn new(
        shape: &ProductShape,
        epilogue: Epilogue<'a>,
        c: Output<'a>,
        bias: Option<&'a [f32]>,
    ) -> Self {
        let stride = c.row_stride;
        match c.values {
            ValuesMut::F32(c) => Sink::F32(SinkOf::new(shape, epilogue, c, stride, bias)),
            ValuesMut::Bf16(c) => Sink::Bf16(SinkOf::new(shape, epilogue, c, stride, bias)),
        }
    }

    /// Where the sums of a rectangle are made, if that is c itself.
    #[inline(always)]
    pub(super) fn sums(&self, at: Rectangle) -> Option<Sums> {
        match self {
            Sink::F32(sink) if sink.in_c => Some(Sums {
                start: sink.c.get().wrapping_add(at.row * sink.stride + at.column),
                stride: sink.stride,
            }),
            Sink::F32(_) | Sink::Bf16(_) => None,
        }
    }

    /// Whether sums are made in c, on top of what it holds.
    #[inline(always)]
    pub(super) fn adds_in_c(&self) -> bool {
        match self {
            Sink::F32(sink) => sink.in_c && matches!(sink.step, Step::Add),
            Sink::Bf16(_) => false,
        }
    }

    /// Asks for what [`Sink::write`] will use.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, s: S, at: Rectangle) {
        match self {
            Sink::F32(sink) => sink.prefetch(s, at),
            Sink::Bf16(sink) => sink.prefetch(s, at),
        }
    }

    /// Takes the sums of a rectangle.
    ///
    /// # Safety
    /// The rectangle lies inside [m, n], nobody else uses it meanwhile, the sums are readable by
    /// whole vectors where they are not c itself, and the epilogue's matrices live.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, s: S, sums: Sums, at: Rectangle) {
        match self {
            Sink::F32(sink) if sink.is_done() => {}
            Sink::F32(sink) => Write { sink, sums, at }.run(s),
            Sink::Bf16(sink) => Write { sink, sums, at }.run(s),
        }
    }
}

impl<'a, C: Element> SinkOf<'a, C> {
    fn new(
        shape: &ProductShape,
        epilogue: Epilogue<'a>,
        c: &'a mut [C],
        stride: usize,
        bias: Option<&'a [f32]>,
    ) -> Self {
        let (m, n, len) = (shape.m, shape.n, c.len());
        assert!(n <= stride || m <= 1, "rows of c overlap");
        let needed = if m == 0 || n == 0 {
            0
        } else {
            (m - 1) * stride + n
        };
        assert!(len >= needed, "c holds {len} of {needed}");
        let step = match epilogue {
            Epilogue::Store => Step::Store,
            Epilogue::Add => Step::Add,
            Epilogue::Activate { kind, pre } => {
                let pre = pre.map(|pre| {
                    let pre = C::of_mut(pre).expect("the pre-activation is of the type of c");
                    assert!(pre.len() >= needed, "the pre-activation");
                    SharedMut::new(pre)
                });
                Step::Activate { kind, pre }
            }
            Epilogue::ActivateBackward { kind, pre } => {
                let pre = C::of(pre).expect("the pre-activation is of the type of c");
                assert!(pre.len() >= needed, "the pre-activation");
                Step::ActivateBackward { kind, pre }
            }
        };
        Self {
            c: SharedMut::new(c),
            stride,
            // Sums in f32 start with the bias.
            bias: bias.filter(|_| shape.base() != Base::F32),
            step,
            in_c: shape.sums_in_c(),
        }
    }

    /// Whether sums are all that c wants.
    #[inline(always)]
    fn is_done(&self) -> bool {
        self.in_c && matches!(self.step, Step::Store | Step::Add)
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, at: Rectangle) {
        if self.is_done() {
            return;
        }
        let line = 64 / size_of::<C>();
        for row in at.row..at.row + at.rows {
            for column in (0..PANEL).step_by(line) {
                let at = row * self.stride + at.column + column;
                if !self.in_c {
                    s.prefetch(self.c.get().wrapping_add(at).cast());
                }
                match &self.step {
                    Step::Store | Step::Add | Step::Activate { pre: None, .. } => {}
                    Step::Activate { pre: Some(pre), .. } => {
                        s.prefetch(pre.get().wrapping_add(at).cast());
                    }
                    Step::ActivateBackward { pre, .. } => {
                        s.prefetch(pre.as_ptr().wrapping_add(at).cast());
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Sink::write`], for one vector of sums at `from`.
    #[inline(always)]
    unsafe fn write_vector<S: Simd>(&self, s: S, from: *const f32, place: Place) {
        let Place { to, column, lanes } = place;
        // SAFETY: the caller's contract.
        unsafe {
            let mut v = get(s, from, lanes);
            if let Some(bias) = self.bias {
                v = s.add(v, load_at(s, bias, column, lanes));
            }
            let c = self.c.get().add(to);
            match &self.step {
                Step::Store => put(s, c, v, lanes),
                Step::Add => put(s, c, s.add(get(s, c, lanes), v), lanes),
                Step::Activate { kind, pre } => {
                    // f of what is or would be stored: the backward then differentiates the very
                    // function that ran, and a pass that keeps nothing gives the same bits as one
                    // that does.
                    v = C::round(s, v);
                    if let Some(pre) = pre {
                        put(s, pre.get().add(to), v, lanes);
                    }
                    put(s, c, value_for::<C, S>(s, *kind, v), lanes);
                }
                Step::ActivateBackward { kind, pre } => {
                    let pre = get(s, pre.as_ptr().add(to), lanes);
                    let slope = derivative_for::<C, S>(s, *kind, pre);
                    put(s, c, s.mul(v, slope), lanes);
                }
            }
        }
    }
}

/// Where a vector goes.
#[derive(Clone, Copy)]
struct Place {
    /// In the matrices.
    to: usize,
    column: usize,
    lanes: usize,
}

/// [`Sink::write`], constructed only there, under its contract.
struct Write<'s, 'a, C> {
    sink: &'s SinkOf<'a, C>,
    sums: Sums,
    at: Rectangle,
}

impl<C: Element> SimdOp for Write<'_, '_, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Write { sink, sums, at } = self;
        for i in 0..at.rows {
            for j in (0..at.columns).step_by(S::LANES) {
                let from = sums.start.wrapping_add(i * sums.stride + j);
                let place = Place {
                    to: (at.row + i) * sink.stride + at.column + j,
                    column: at.column + j,
                    lanes: (at.columns - j).min(S::LANES),
                };
                // SAFETY: the contract of `Sink::write`; the lanes end within the rectangle.
                unsafe { sink.write_vector(s, from, place) };
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
