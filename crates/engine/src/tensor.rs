//! A dense matrix on a device, f32 or bf16, counted while it lives. A vector is a matrix of one
//! row. What it holds is read and written by copies; only a backend sees the values where they lie.

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::{DType, Plain};

use crate::backend::BlockOfRows;
use crate::call::{Call, Rows, RowsMut};
use crate::device::Device;
use crate::meter::Purpose;
use crate::storage::Storage;

/// A row-major matrix [rows, cols]. On the dry device it has a shape and no values.
pub struct Tensor {
    rows: usize,
    cols: usize,
    dtype: DType,
    storage: Storage,
}

impl Tensor {
    /// A matrix of f32 whose values are unspecified (stale or zero): every op that makes one writes
    /// all of it.
    pub fn uninit(device: &Device, rows: usize, cols: usize, purpose: Purpose) -> Self {
        Self::uninit_as(DType::F32, device, rows, cols, purpose)
    }

    /// As [`Tensor::uninit`] in a storage of choice.
    pub fn uninit_as(
        dtype: DType,
        device: &Device,
        rows: usize,
        cols: usize,
        purpose: Purpose,
    ) -> Self {
        Tensor {
            rows,
            cols,
            dtype,
            storage: Storage::new(device, rows * cols * dtype.bytes(), purpose),
        }
    }

    /// Activations, or their gradient, in the device's type of them; values unspecified.
    pub fn activations(device: &Device, rows: usize, cols: usize) -> Self {
        Self::uninit_as(
            device.numerics().activations,
            device,
            rows,
            cols,
            Purpose::Activations,
        )
    }

    /// A matrix of the same shape, storage and device, values unspecified.
    pub(crate) fn uninit_like(&self, purpose: Purpose) -> Self {
        Self::uninit_as(self.dtype, self.device(), self.rows, self.cols, purpose)
    }

    /// A matrix of f32 zeros.
    pub fn zeros(device: &Device, rows: usize, cols: usize, purpose: Purpose) -> Self {
        let mut tensor = Self::uninit(device, rows, cols, purpose);
        tensor.fill(0.0);
        tensor
    }

    /// A copy of `values` [rows, cols] in f32; on the dry device only its shape. Panics if the
    /// length does not fit.
    pub fn from_slice(
        device: &Device,
        rows: usize,
        cols: usize,
        purpose: Purpose,
        values: &[f32],
    ) -> Self {
        let mut tensor = Self::uninit(device, rows, cols, purpose);
        tensor.write(values);
        tensor
    }

    /// A copy with the same shape, storage and purpose.
    pub fn duplicate(&self) -> Self {
        let mut copy = self.uninit_like(self.storage.purpose());
        copy.copy_rows(0, self, 0..self.rows);
        copy
    }

    /// Writes some rows of `from` over the rows from `at` on. Panics if a range exceeds its rows,
    /// or if the tensors differ in width or storage.
    pub fn copy_rows(&mut self, at: usize, from: &Tensor, rows: Range<usize>) {
        let device = self.device().clone();
        let into = at..at + rows.len();
        device.run(Call::Copy {
            x: Rows::of(from, rows),
            out: RowsMut::of(self, into),
        });
    }

    /// A copy in f32 with the same shape.
    pub fn to_f32(&self, purpose: Purpose) -> Self {
        let mut copy = Self::uninit(self.device(), self.rows, self.cols, purpose);
        self.device().run(Call::Convert {
            x: self,
            out: &mut copy,
        });
        copy
    }

    /// A shared tensor to keep or overwrite: itself where nobody else holds it, else a copy.
    pub(crate) fn owned(shared: Arc<Tensor>) -> Self {
        Arc::try_unwrap(shared).unwrap_or_else(|shared| shared.duplicate())
    }

    /// The same values, row by row, as a matrix of another shape. Panics if that has another number
    /// of them.
    pub fn reshaped(self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.len(), "{self:?} as [{rows}, {cols}]");
        Tensor { rows, cols, ..self }
    }

    /// Sets every value.
    pub fn fill(&mut self, value: f32) {
        let device = self.device().clone();
        device.run(Call::Fill { out: self, value });
    }

    /// All values, row by row, as f32. Panics on the dry device.
    pub fn read(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.read_into(&mut values);
        values
    }

    /// As [`Tensor::read`] into memory that is there. Panics if the length does not fit.
    pub fn read_into(&self, values: &mut [f32]) {
        assert_eq!(values.len(), self.len(), "{self:?} is read whole");
        self.device().backend().read(self, values);
    }

    /// Sets all values, row by row, rounded to the storage; nothing on the dry device. Panics if
    /// the length does not fit.
    pub fn write(&mut self, values: &[f32]) {
        self.write_rows(0, values);
    }

    /// Sets whole rows from `first` on, rounded to the storage; nothing on the dry device. Panics
    /// if they are not whole or exceed the rows.
    pub fn write_rows(&mut self, first: usize, values: &[f32]) {
        let device = self.device().clone();
        if device.is_dry() {
            return;
        }
        let (rows, width) = (values.len() / self.cols.max(1), self.cols);
        assert!(
            values.len() == rows * width && first + rows <= self.rows,
            "{} values from row {first} of {self:?}",
            values.len()
        );
        let block = BlockOfRows { first, values };
        device.backend().write(self, block);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.storage.bytes()
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// What its memory is counted as.
    pub(crate) fn purpose(&self) -> Purpose {
        self.storage.purpose()
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The values where a backend in host memory keeps them, row by row. Panics where they have no
    /// memory. The backend answers for T.
    pub(crate) fn host<T: Plain>(&self) -> &[T] {
        &self.storage.place().slice()[..self.rows * self.cols]
    }

    /// As [`Tensor::host`], to change them.
    pub(crate) fn host_mut<T: Plain>(&mut self) -> &mut [T] {
        &mut self.storage.place_mut().slice_mut()[..self.rows * self.cols]
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tensor[{}, {}; {}]",
            self.rows,
            self.cols,
            self.dtype.name()
        )
    }
}

/// One f64 on a device: a sum that ops add to and that is read once. Counted as workspace.
#[derive(Debug)]
pub struct Scalar(Storage);

impl Scalar {
    /// Zero.
    pub fn zero(device: &Device) -> Self {
        let mut scalar = Scalar(Storage::new(device, size_of::<f64>(), Purpose::Workspace));
        device.run(Call::ClearScalar { out: &mut scalar });
        scalar
    }

    /// The value; 0 on the dry device. On a device that runs behind the host, waits for it.
    pub fn read(&self) -> f64 {
        self.0.device().backend().read_scalar(self)
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.0
    }

    pub(crate) fn host(&self) -> f64 {
        self.0.place().slice()[0]
    }

    pub(crate) fn host_mut(&mut self) -> &mut f64 {
        &mut self.0.place_mut().slice_mut()[0]
    }
}
