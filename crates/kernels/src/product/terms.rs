//! Low-rank terms: those of a product may fall on some rows only, as where adapters share a batch.

use std::ops::Range;

use crate::matrix::MatRef;

use super::LowRankTerm;

/// The part of a low-rank term that falls on a strip.
pub(super) struct TermPart<'a> {
    /// The first of the strip's rows that it is added to.
    pub first: usize,
    /// Its rows there, at least one.
    pub h: MatRef<'a>,
    /// The panels, in words of four bytes.
    pub g: *const u32,
    pub scale: f32,
}

impl<'a> TermPart<'a> {
    /// Those of some rows.
    #[inline(always)]
    pub(super) fn of(
        terms: &'a [LowRankTerm<'a>],
        strip: &Range<usize>,
    ) -> impl Iterator<Item = Self> + use<'a> {
        let strip = strip.clone();
        terms.iter().filter_map(move |term| {
            let start = term.rows.start.max(strip.start);
            let end = term.rows.end.min(strip.end);
            (start < end).then(|| TermPart {
                first: start - strip.start,
                h: term
                    .h
                    .rows_range(start - term.rows.start..end - term.rows.start),
                g: term.g.as_ptr(),
                scale: term.scale,
            })
        })
    }
}
