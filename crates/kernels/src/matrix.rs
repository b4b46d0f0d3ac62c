//! Views of matrices inside slices of f32 or bf16 values: strided to read, of contiguous rows to
//! write.

use crate::parallel::SharedMut;
use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use crate::element::DType;

/// A matrix view: element (i, j) lies at `data[i * row_stride + j * col_stride]`. Bounds are
/// asserted at construction.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Copy> MatRef<'a, T> {
    /// A row-major view, rows end to end. Panics if `data` is not `rows * cols` long.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] matrix");
        Self::strided(data, rows, cols, cols, 1)
    }

    /// A view with any strides, in elements. Panics if an element would lie outside `data`.
    pub fn strided(
        data: &'a [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1)
                .checked_mul(row_stride)
                .zip((cols - 1).checked_mul(col_stride))
                .and_then(|(row, col)| row.checked_add(col));
            assert!(
                last.is_some_and(|last| last < data.len()),
                "a [{rows}, {cols}] view with strides {row_stride}, {col_stride} exceeds {} elements",
                data.len()
            );
        }
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Some of the rows. Panics if the range exceeds the rows.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        let start = (range.start * self.row_stride).min(self.data.len());
        Self {
            data: &self.data[start..],
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns. Panics if the range exceeds the columns.
    pub fn cols_range(self, range: Range<usize>) -> Self {
        self.transposed().rows_range(range).transposed()
    }

    /// Some of the rows, and of them some of the columns, of which there is one. Panics if a range
    /// exceeds them.
    #[inline]
    pub(crate) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(cols.start < cols.end && cols.end <= self.cols);
        let start = rows.start * self.row_stride + cols.start * self.col_stride;
        Self {
            // Behind the last row there may be nothing.
            data: &self.data[start.min(self.data.len())..],
            rows: rows.len(),
            cols: cols.len(),
            ..self
        }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Distance of an element to the one below it.
    pub fn row_stride(self) -> usize {
        self.row_stride
    }

    /// Distance of an element to the one right of it.
    pub fn col_stride(self) -> usize {
        self.col_stride
    }

    /// Element (i, j). Panics outside the view.
    pub fn at(self, i: usize, j: usize) -> T {
        assert!(i < self.rows && j < self.cols);
        self.data[i * self.row_stride + j * self.col_stride]
    }

    pub(crate) fn data(self) -> &'a [T] {
        self.data
    }

    pub(crate) fn as_ptr(self) -> *const T {
        self.data.as_ptr()
    }
}

/// A matrix that is written: row i starts at `i * row_stride` and is contiguous. Several may be
/// columns of one buffer.
#[derive(Debug)]
pub struct MatMut<'a, T = f32> {
    start: *mut T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a mutable borrow of its elements, which nobody else has.
unsafe impl<T: Send> Send for MatMut<'_, T> {}
// SAFETY: as above; a shared reference to it reads nothing.
unsafe impl<T: Sync> Sync for MatMut<'_, T> {}

impl<'a, T> MatMut<'a, T> {
    /// Rows end to end. Panics if `data` is not `rows * cols` long.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] matrix");
        Self {
            start: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            buffer: PhantomData,
        }
    }

    /// The columns before `at` and those from there on. Panics if there are fewer than `at`.
    pub fn split_columns(self, at: usize) -> [Self; 2] {
        assert!(at <= self.cols, "column {at} of {}", self.cols);
        let part = |first: usize, cols: usize| Self {
            start: self.start.wrapping_add(first),
            cols,
            ..self
        };
        [part(0, at), part(at, self.cols - at)]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The first element, for tasks that write disjoint parts.
    pub(crate) fn shared(&mut self) -> SharedMut<T> {
        SharedMut::of(self.start)
    }
}

/// A matrix view of either type, for callers that learn which at run time.
#[derive(Clone, Copy, Debug)]
pub enum AnyMatRef<'a> {
    /// f32.
    F32(MatRef<'a, f32>),
    /// bf16.
    Bf16(MatRef<'a, bf16>),
}

impl<'a> From<MatRef<'a, f32>> for AnyMatRef<'a> {
    fn from(x: MatRef<'a, f32>) -> Self {
        AnyMatRef::F32(x)
    }
}

impl<'a> From<MatRef<'a, bf16>> for AnyMatRef<'a> {
    fn from(x: MatRef<'a, bf16>) -> Self {
        AnyMatRef::Bf16(x)
    }
}

/// The same expression of a view of either type.
macro_rules! each_type {
    ($view:expr, $x:ident => $body:expr) => {
        match $view {
            $crate::matrix::AnyMatRef::F32($x) => $body,
            $crate::matrix::AnyMatRef::Bf16($x) => $body,
        }
    };
}
pub(crate) use each_type;

impl AnyMatRef<'_> {
    /// The type of its elements.
    pub fn dtype(self) -> DType {
        match self {
            AnyMatRef::F32(_) => DType::F32,
            AnyMatRef::Bf16(_) => DType::Bf16,
        }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        each_type!(self, x => x.transposed().into())
    }

    /// Some of the rows. Panics if the range exceeds the rows.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        each_type!(self, x => x.rows_range(range).into())
    }

    /// Some of the columns. Panics if the range exceeds the columns.
    pub fn cols_range(self, range: Range<usize>) -> Self {
        each_type!(self, x => x.cols_range(range).into())
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        each_type!(self, x => x.rows())
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        each_type!(self, x => x.cols())
    }

    /// Distance of an element to the one below it.
    pub fn row_stride(self) -> usize {
        each_type!(self, x => x.row_stride())
    }

    /// Distance of an element to the one right of it.
    pub fn col_stride(self) -> usize {
        each_type!(self, x => x.col_stride())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_name_the_elements_they_say() {
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let view = MatRef::new(&data, 3, 4);
        assert_eq!(view.at(2, 1), 9.0);
        assert_eq!(view.transposed().at(1, 2), 9.0);
        assert_eq!(view.rows_range(1..3).at(1, 1), 9.0);
        assert_eq!(view.transposed().rows_range(1..2).at(0, 2), 9.0);
        assert_eq!(view.rows_range(3..3).rows(), 0);
        assert_eq!(view.cols_range(2..4).at(1, 0), 6.0);
        assert_eq!(MatRef::strided(&data[1..], 2, 2, 5, 2).at(1, 1), 8.0);
    }

    #[test]
    #[should_panic(expected = "exceeds 12 elements")]
    fn a_view_beyond_its_data_panics() {
        MatRef::strided(&[0.0; 12], 3, 4, 5, 1);
    }

    #[test]
    #[should_panic(expected = "exceeds 1 elements")]
    fn an_overflowing_view_panics() {
        MatRef::strided(&[0.0], 3, 2, usize::MAX, 1);
    }
}
