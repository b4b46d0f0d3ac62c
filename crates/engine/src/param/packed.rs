//! Matrices that are laid out for products, and the columns that integers keep beside. What trains
//! stands elsewhere.

use std::ops::Range;

use lowrank_kernels::Plain;
use lowrank_kernels::product::{BlockFormat, BlockRows, WeightFormat};

use crate::backend::BlockOfRows;
use crate::call::{Call, Transpose};
use crate::device::Device;
use crate::meter::Purpose;
use crate::observed::Observed;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Calls `fill` for each block of rows of a matrix [rows, cols] and hands it on.
pub(super) fn for_each_block<E>(
    [rows, cols]: [usize; 2],
    mut fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    mut take: impl FnMut(BlockOfRows<'_>),
) -> Result<(), E> {
    let mut values = vec![0.0f32; PackedMatrix::BLOCK_ROWS.min(rows) * cols];
    for first in (0..rows).step_by(PackedMatrix::BLOCK_ROWS) {
        let block = PackedMatrix::BLOCK_ROWS.min(rows - first);
        let values = &mut values[..block * cols];
        fill(first, values)?;
        take(BlockOfRows { first, values });
    }
    Ok(())
}

/// A matrix [out, in] as the second operand of products, laid out once as the backend wants it. One
/// layout serves y = x·Wᵀ and dx = dy·W.
#[derive(Debug)]
pub struct PackedMatrix {
    out_features: usize,
    in_features: usize,
    format: WeightFormat,
    outliers: Outliers,
    storage: Storage,
}

/// The columns of the other operand that a product with integers keeps beside, in its own type:
/// always as many, so that a plan knows what they take. Which they are is found on the first rows
/// of a run; until then they are the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outliers {
    /// Of x in x·Wᵀ.
    pub inputs: Vec<u32>,
    /// Of d_y in d_y·W.
    pub gradients: Vec<u32>,
}

impl Outliers {
    /// Columns to one that is kept beside: 8 of 768, 32 of 3,072.
    const ONE_IN: usize = 96;

    /// How many of so many columns are kept beside.
    pub fn count(columns: usize) -> usize {
        (columns / Self::ONE_IN)
            .next_multiple_of(2)
            .max(2)
            .min(columns)
    }

    fn first([out, inp]: [usize; 2]) -> Self {
        let first = |columns: usize| (0..Self::count(columns) as u32).collect();
        Outliers {
            inputs: first(inp),
            gradients: first(out),
        }
    }

    /// The columns of the largest magnitudes, of each column's, in the order of the columns.
    fn largest(maxima: &[f32]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..maxima.len() as u32).collect();
        order.sort_by(|&a, &b| {
            maxima[b as usize]
                .total_cmp(&maxima[a as usize])
                .then(a.cmp(&b))
        });
        order.truncate(Self::count(maxima.len()));
        order.sort_unstable();
        order
    }

    /// Whether they are as many as a matrix [out, in] wants, its columns, and each but once.
    fn fit(&self, [out, inp]: [usize; 2]) -> bool {
        let fit = |list: &[u32], columns: usize| {
            let ordered = list.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = list.last().is_none_or(|&last| (last as usize) < columns);
            list.len() == Self::count(columns) && ordered && inside
        };
        fit(&self.inputs, inp) && fit(&self.gradients, out)
    }
}

impl PackedMatrix {
    /// Rows of a block that is read and laid out at once: large enough to read files at full speed,
    /// small beside any model, and whole panels of every backend.
    pub const BLOCK_ROWS: usize = 256;

    /// A frozen matrix in the device's format, values unspecified.
    fn frozen(device: &Device, shape: [usize; 2]) -> Self {
        let format = device.numerics().plain_weights();
        let outliers = match format {
            WeightFormat::Int8 => Outliers::first(shape),
            WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::Blocks(_) => Outliers::default(),
        };
        Self {
            outliers,
            ..Self::uninit(device, format, shape, Purpose::FrozenWeights)
        }
    }

    /// Values unspecified.
    fn uninit(
        device: &Device,
        format: WeightFormat,
        [out, inp]: [usize; 2],
        purpose: Purpose,
    ) -> Self {
        let bytes = device.backend().sizes().packed_bytes(format, out, inp);
        PackedMatrix {
            out_features: out,
            in_features: inp,
            format,
            outliers: Outliers::default(),
            storage: Storage::new(device, bytes, purpose),
        }
    }

    /// Packs a weight [out, in] that `fill` writes, block of rows by block of rows:
    /// `fill(first_row, block)`, so that the matrix never stands in memory twice. Not called on the
    /// dry device. Errors are those of `fill`.
    pub fn from_blocks<E>(
        device: &Device,
        out_features: usize,
        in_features: usize,
        fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::frozen(device, [out_features, in_features]).filled(fill)
    }

    /// Packs a weight or table [rows, cols] in blocks whose parts `fill` gives, some rows at a
    /// time: `fill(rows)`. Not called on the dry device. Errors are those of `fill`. Panics if the
    /// columns are not whole blocks.
    pub fn from_block_rows<E>(
        device: &Device,
        format: BlockFormat,
        shape @ [rows, cols]: [usize; 2],
        mut fill: impl FnMut(Range<usize>) -> Result<BlockRows, E>,
    ) -> Result<Self, E> {
        assert_eq!(cols % format.block(), 0, "{shape:?} in {}", format.name());
        let format = WeightFormat::Blocks(format);
        let mut matrix = Self::uninit(device, format, shape, Purpose::FrozenWeights);
        if !device.is_dry() {
            for first in (0..rows).step_by(Self::BLOCK_ROWS) {
                let part = first..(first + Self::BLOCK_ROWS).min(rows);
                let parts = fill(part.clone())?;
                device
                    .backend()
                    .write_packed_blocks(&mut matrix, part, &parts);
            }
        }
        Ok(matrix)
    }

    /// Packs a weight [out, in] whose values are at hand. On the dry device only the shape counts.
    /// Panics elsewhere if there are too few.
    pub fn new(device: &Device, out_features: usize, in_features: usize, values: &[f32]) -> Self {
        let fill = |first: usize, block: &mut [f32]| {
            block.copy_from_slice(&values[first * in_features..][..block.len()]);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(packed) = Self::from_blocks(device, out_features, in_features, fill);
        packed
    }

    /// As [`PackedMatrix::from_blocks`] in the device's format of tables: for what is looked up
    /// too, or is near the loss.
    pub fn table_from_blocks<E>(
        device: &Device,
        rows: usize,
        cols: usize,
        fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let format = device.numerics().plain_weights().of_tables();
        Self::uninit(device, format, [rows, cols], Purpose::FrozenWeights).filled(fill)
    }

    fn filled<E>(
        mut self,
        fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let device = self.storage.device().clone();
        if !device.is_dry() {
            for_each_block([self.out_features, self.in_features], fill, |block| {
                device.backend().write_packed(&mut self, block);
            })?;
        }
        Ok(self)
    }

    /// Packs a weight whose transpose [in, out] is given, as GPT-2's `Conv1D` stores it. On the dry
    /// device only the shape counts. Panics elsewhere if the length does not fit.
    pub fn from_transposed(
        device: &Device,
        out_features: usize,
        in_features: usize,
        stored: &[f32],
    ) -> Self {
        let shape = [out_features, in_features];
        let mut matrix = Self::frozen(device, shape);
        if !device.is_dry() {
            assert_eq!(stored.len(), out_features * in_features, "{shape:?}");
            device
                .backend()
                .write_packed_transposed(&mut matrix, stored);
        }
        matrix
    }

    /// A trained value, or its transpose, in scratch and in the format of the device's arithmetic:
    /// what is used once is laid out as it is read.
    pub(crate) fn trained(device: &Device, x: &Tensor, transpose: Transpose) -> Self {
        let shape = match transpose {
            Transpose::No => [x.rows(), x.cols()],
            Transpose::Yes => [x.cols(), x.rows()],
        };
        let format = device.numerics().arithmetic.format();
        let mut out = Self::uninit(device, format, shape, Purpose::Workspace);
        device.run(Call::Pack {
            x,
            transpose,
            out: &mut out,
        });
        out
    }

    /// Rows of W.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of W.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// How values are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The columns that are kept beside in products; none where values are no integers.
    pub fn outliers(&self) -> &Outliers {
        &self.outliers
    }

    /// Sets the columns that are kept beside. Says whether they are as many as there have to be,
    /// and columns of this matrix; else nothing changes.
    pub fn set_outliers(&mut self, outliers: Outliers) -> bool {
        let fit = self.format == WeightFormat::Int8
            && outliers.fit([self.out_features, self.in_features]);
        if fit {
            self.outliers = outliers;
        }
        fit
    }

    /// Takes what a device has observed of the operands of this matrix's products; see
    /// [`Device::start_observing`].
    pub fn take_observed(&mut self, observed: &Observed) {
        if let Some(maxima) = observed.maxima(self, Transpose::No) {
            self.outliers.inputs = Outliers::largest(maxima);
        }
        if let Some(maxima) = observed.maxima(self, Transpose::Yes) {
            self.outliers.gradients = Outliers::largest(maxima);
        }
    }

    /// Where it lives.
    pub(crate) fn device(&self) -> &Device {
        self.storage.device()
    }

    /// Where it lies: what tells it from all others of its device.
    pub(crate) fn place(&self) -> usize {
        self.storage.place().start()
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The layout where a backend in host memory keeps it. The backend answers for T.
    pub(crate) fn host<T: Plain>(&self) -> &[T] {
        self.storage.place().slice()
    }

    /// As [`PackedMatrix::host`], to change it.
    pub(crate) fn host_mut<T: Plain>(&mut self) -> &mut [T] {
        self.storage.place_mut().slice_mut()
    }

    /// W [out, in], row-major. Panics on the dry device.
    pub fn to_rows(&self) -> Vec<f32> {
        let mut rows = vec![0.0; self.out_features * self.in_features];
        let device = self.storage.device();
        device.backend().read_packed(self, &mut rows);
        rows
    }
}
