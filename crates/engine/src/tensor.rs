//! A dense f32 matrix on a device, counted while it lives. A vector is a matrix of one row.

use std::ops::Range;

use lowrank_kernels::MatRef;

use crate::buffer::Buffer;
use crate::device::Device;
use crate::meter::Purpose;

/// A row-major matrix [rows, cols]. On the dry device it has a shape and no values.
pub struct Tensor {
    rows: usize,
    cols: usize,
    purpose: Purpose,
    block: Range<usize>,
    buffer: Option<Buffer>,
    device: Device,
}

impl Tensor {
    /// A matrix whose values are unspecified (stale or zero): every op that makes one writes all of it.
    pub fn uninit(device: &Device, rows: usize, cols: usize, purpose: Purpose) -> Self {
        let (block, buffer) = device.take(rows * cols, purpose);
        Tensor {
            rows,
            cols,
            purpose,
            block,
            buffer,
            device: device.clone(),
        }
    }

    /// A matrix of zeros.
    pub fn zeros(device: &Device, rows: usize, cols: usize, purpose: Purpose) -> Self {
        let mut tensor = Self::uninit(device, rows, cols, purpose);
        tensor.fill(0.0);
        tensor
    }

    /// A copy of `values` [rows, cols]; on the dry device only its shape. Panics if the length does not fit.
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

    /// A copy with the same shape and purpose.
    pub fn duplicate(&self) -> Self {
        let mut copy = Self::uninit(&self.device, self.rows, self.cols, self.purpose);
        self.device
            .exec(0, |_| copy.data_mut().copy_from_slice(self.data()));
        copy
    }

    /// Sets every value.
    pub fn fill(&mut self, value: f32) {
        if !self.device.is_dry() {
            self.data_mut().fill(value);
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

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The values, row by row. Panics on the dry device.
    pub fn data(&self) -> &[f32] {
        &self
            .buffer
            .as_ref()
            .expect("a dry tensor has no values")
            .as_slice()[..self.rows * self.cols]
    }

    /// The values, row by row. Panics on the dry device.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self
            .buffer
            .as_mut()
            .expect("a dry tensor has no values")
            .as_mut_slice()[..self.rows * self.cols]
    }

    /// A view for the kernels. Panics on the dry device.
    pub fn view(&self) -> MatRef<'_> {
        MatRef::new(self.data(), self.rows, self.cols)
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // The buffer goes first: from then on the block may be another's.
        self.buffer = None;
        self.device
            .give(self.block.clone(), self.rows * self.cols, self.purpose);
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor[{}, {}]", self.rows, self.cols)
    }
}
