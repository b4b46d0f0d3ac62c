//! A dense matrix on a device, f32 or bf16, counted while it lives. A vector is a matrix of one row.

use std::ops::Range;

use lowrank_kernels as kernels;
use lowrank_kernels::{DType, Element, MatRef, Values};

use crate::buffer::Buffer;
use crate::device::Device;
use crate::meter::Purpose;

/// Evaluates an expression in which the given name stands for the element type of a storage.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            lowrank_kernels::DType::F32 => {
                type $E = f32;
                $body
            }
            lowrank_kernels::DType::Bf16 => {
                type $E = lowrank_kernels::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// A row-major matrix [rows, cols]. On the dry device it has a shape and no values.
pub struct Tensor {
    rows: usize,
    cols: usize,
    dtype: DType,
    purpose: Purpose,
    block: Range<usize>,
    buffer: Option<Buffer>,
    device: Device,
}

impl Tensor {
    /// A matrix of f32 whose values are unspecified (stale or zero): every op that makes one writes all of it.
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
        let (block, buffer) = device.take(rows * cols * dtype.bytes(), purpose);
        Tensor {
            rows,
            cols,
            dtype,
            purpose,
            block,
            buffer,
            device: device.clone(),
        }
    }

    /// Activations, or their gradient, in the device's precision; values unspecified.
    pub fn activations(device: &Device, rows: usize, cols: usize) -> Self {
        Self::uninit_as(device.precision(), device, rows, cols, Purpose::Activations)
    }

    /// A matrix of f32 zeros.
    pub fn zeros(device: &Device, rows: usize, cols: usize, purpose: Purpose) -> Self {
        let mut tensor = Self::uninit(device, rows, cols, purpose);
        tensor.fill(0.0);
        tensor
    }

    /// A copy of `values` [rows, cols] in f32; on the dry device only its shape. Panics if the length does not fit.
    pub fn from_slice(
        device: &Device,
        rows: usize,
        cols: usize,
        purpose: Purpose,
        values: &[f32],
    ) -> Self {
        assert_eq!(
            values.len(),
            rows * cols,
            "a [{rows}, {cols}] tensor has {} values",
            rows * cols
        );
        let mut tensor = Self::uninit(device, rows, cols, purpose);
        if !device.is_dry() {
            tensor.data_mut().copy_from_slice(values);
        }
        tensor
    }

    /// What its memory is counted as.
    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// A copy with the same shape, storage and purpose.
    pub fn duplicate(&self) -> Self {
        self.duplicate_rows(0..self.rows, self.purpose)
    }

    /// A copy of some of the rows, in the same storage. Panics if the range exceeds the rows.
    pub fn duplicate_rows(&self, rows: Range<usize>, purpose: Purpose) -> Self {
        let mut copy = Self::uninit_as(self.dtype, &self.device, rows.len(), self.cols, purpose);
        let range = rows.start * self.cols..rows.end * self.cols;
        self.device.exec("copy", 0, |_| {
            with_element!(self.dtype, E => {
                copy.values_mut::<E>().copy_from_slice(&self.values::<E>()[range]);
            });
        });
        copy
    }

    /// Writes some rows of `from` over the rows from `at` on. Panics if a range exceeds its rows, or if the tensors differ in
    /// width or storage.
    pub fn copy_rows(&mut self, at: usize, from: &Tensor, rows: Range<usize>) {
        assert!(
            rows.end <= from.rows && at + rows.len() <= self.rows,
            "copy_rows: a row is past the end"
        );
        assert_eq!(
            (self.cols, self.dtype),
            (from.cols, from.dtype),
            "copy_rows: the tensors differ in kind"
        );
        let device = self.device.clone();
        let (cols, dtype) = (self.cols, self.dtype);
        let (into, range) = (
            at * cols..(at + rows.len()) * cols,
            rows.start * cols..rows.end * cols,
        );
        device.exec("copy", 0, |_| {
            with_element!(dtype, E => {
                self.values_mut::<E>()[into].copy_from_slice(&from.values::<E>()[range]);
            });
        });
    }

    /// A copy in f32 with the same shape.
    pub fn to_f32(&self, purpose: Purpose) -> Self {
        let mut copy = Self::uninit(&self.device, self.rows, self.cols, purpose);
        self.device.exec("copy", 0, |isa| {
            with_element!(self.dtype, E => {
                kernels::convert(isa, copy.data_mut(), self.values::<E>());
            });
        });
        copy
    }

    /// Sets every value.
    pub fn fill(&mut self, value: f32) {
        if !self.device.is_dry() {
            with_element!(self.dtype, E => self.values_mut::<E>().fill(E::narrow(value)));
        }
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

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The values, row by row. Panics on the dry device, or if they are not f32.
    pub fn data(&self) -> &[f32] {
        self.values()
    }

    /// The values, row by row. Panics on the dry device, or if they are not f32.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.values_mut()
    }

    /// The values, row by row. Panics on the dry device, or if they are stored otherwise.
    pub fn values<E: Element>(&self) -> &[E] {
        assert_eq!(E::DTYPE, self.dtype, "the tensor's storage");
        &self
            .buffer
            .as_ref()
            .expect("a dry tensor has no values")
            .as_slice()[..self.rows * self.cols]
    }

    /// The values, row by row. Panics on the dry device, or if they are stored otherwise.
    pub fn values_mut<E: Element>(&mut self) -> &mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "the tensor's storage");
        &mut self
            .buffer
            .as_mut()
            .expect("a dry tensor has no values")
            .as_mut_slice()[..self.rows * self.cols]
    }

    /// The values in whichever storage. Panics on the dry device.
    pub fn any_values(&self) -> Values<'_> {
        match self.dtype {
            DType::F32 => Values::F32(self.values()),
            DType::Bf16 => Values::Bf16(self.values()),
        }
    }

    /// A view for the kernels. Panics on the dry device, or if the values are not f32.
    pub fn view(&self) -> MatRef<'_> {
        self.view_as()
    }

    /// A view for the kernels. Panics on the dry device, or if the values are stored otherwise.
    pub fn view_as<E: Element>(&self) -> MatRef<'_, E> {
        MatRef::new(self.values(), self.rows, self.cols)
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // The buffer goes first: from then on the block may be another's.
        self.buffer = None;
        let bytes = self.len() * self.dtype.bytes();
        self.device.give(self.block.clone(), bytes, self.purpose);
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
