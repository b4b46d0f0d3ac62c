//! Weights. Frozen is a type: a frozen weight has no place where a gradient could be stored. Trainable values live in one
//! store, [`Trainables`], so that the optimizer, checkpoints and adapter files all see the same list.

use std::ops::Range;

use lowrank_kernels as kernels;
use lowrank_kernels::{DType, Isa, MatRef, PANEL, Values};

use crate::device::Device;
use crate::meter::Purpose;
use crate::tensor::{Tensor, with_element};

/// A frozen vector or table [rows, cols], row-major.
#[derive(Debug)]
pub struct Frozen(Tensor);

impl Frozen {
    /// Freezes values of shape [rows, cols]; on the dry device only the shape.
    pub fn new(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Self {
        if device.is_dry() {
            return Frozen(Tensor::uninit(device, rows, cols, Purpose::FrozenWeights));
        }
        Frozen(Tensor::from_slice(
            device,
            rows,
            cols,
            Purpose::FrozenWeights,
            values,
        ))
    }

    /// Freezes a table [rows, cols] in f32 that `fill` writes, block of rows by block of rows: `fill(first_row, block)`.
    /// Not called on the dry device. Errors are those of `fill`.
    pub fn from_blocks<E>(
        device: &Device,
        rows: usize,
        cols: usize,
        mut fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut tensor = Tensor::uninit(device, rows, cols, Purpose::FrozenWeights);
        if !device.is_dry() {
            fill(0, tensor.data_mut())?;
        }
        Ok(Frozen(tensor))
    }

    /// As [`Frozen::from_blocks`] in the device's precision, for a table that is looked up and not computed with.
    pub fn table_from_blocks<E>(
        device: &Device,
        rows: usize,
        cols: usize,
        mut fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let precision = device.precision();
        if precision == DType::F32 {
            return Self::from_blocks(device, rows, cols, fill);
        }
        let mut tensor = Tensor::uninit_as(precision, device, rows, cols, Purpose::FrozenWeights);
        if !device.is_dry() {
            let mut block = vec![0.0f32; BLOCK_ROWS.min(rows) * cols];
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let block = &mut block[..BLOCK_ROWS.min(rows - first) * cols];
                fill(first, block)?;
                with_element!(precision, T => {
                    let dst = &mut tensor.values_mut::<T>()[first * cols..][..block.len()];
                    kernels::convert(device.isa(), dst, block);
                });
            }
        }
        Ok(Frozen(tensor))
    }

    /// The values. Panics on the dry device, or if they are not f32.
    pub fn data(&self) -> &[f32] {
        self.0.data()
    }

    /// The values in whichever storage. Panics on the dry device.
    pub fn values(&self) -> Values<'_> {
        self.0.any_values()
    }

    /// The values, copied. Panics on the dry device.
    pub fn to_vec(&self) -> Vec<f32> {
        match self.values() {
            Values::F32(x) => x.to_vec(),
            Values::Bf16(x) => x.iter().map(|v| v.to_f32()).collect(),
        }
    }

    /// [rows, cols].
    pub fn shape(&self) -> [usize; 2] {
        [self.0.rows(), self.0.cols()]
    }
}

/// Rows of a block that is read and converted at once: large enough to read files at full speed, small beside any model.
const BLOCK_ROWS: usize = 8 * PANEL;

/// Values of the packed form of a matrix [rows, depth].
pub(crate) fn packed_len(precision: DType, rows: usize, depth: usize) -> usize {
    match precision {
        DType::F32 => kernels::packed_len(rows, depth),
        DType::Bf16 => kernels::packed_bf16_len(rows, depth),
    }
}

/// Packs a matrix into a part of a tensor, in the tensor's storage. Panics on the dry device, or if the part is not as long
/// as [`packed_len`] says.
pub(crate) fn pack_into(isa: Isa, view: MatRef<'_>, packed: &mut Tensor, part: Range<usize>) {
    match packed.dtype() {
        DType::F32 => kernels::pack(isa, view, &mut packed.data_mut()[part]),
        DType::Bf16 => kernels::pack_bf16(isa, view, &mut packed.values_mut()[part]),
    }
}

/// A frozen weight [out, in], packed once into the panels that the GEMM reads. One packing serves y = x·Wᵀ and dx = dy·W.
#[derive(Debug)]
pub struct PackedMatrix {
    out_features: usize,
    in_features: usize,
    packed: Tensor,
}

impl PackedMatrix {
    /// Packs a weight [out, in] that `fill` writes, block of rows by block of rows: `fill(first_row, block)`, so that the
    /// matrix never stands in memory twice. Not called on the dry device. Errors are those of `fill`.
    pub fn from_blocks<E>(
        device: &Device,
        out_features: usize,
        in_features: usize,
        mut fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let precision = device.precision();
        let len = |rows: usize| packed_len(precision, rows, in_features);
        let purpose = Purpose::FrozenWeights;
        let mut packed = Tensor::uninit_as(precision, device, 1, len(out_features), purpose);
        if !device.is_dry() {
            let mut block = vec![0.0f32; BLOCK_ROWS.min(out_features) * in_features];
            for first in (0..out_features).step_by(BLOCK_ROWS) {
                let rows = BLOCK_ROWS.min(out_features - first);
                let block = &mut block[..rows * in_features];
                fill(first, block)?;
                // Blocks are whole panels, so that the packed form of the rows before ends where this one begins.
                let range = len(first)..len(first) + len(rows);
                let view = MatRef::new(block, rows, in_features);
                pack_into(device.isa(), view, &mut packed, range);
            }
        }
        Ok(PackedMatrix {
            out_features,
            in_features,
            packed,
        })
    }

    /// Packs a weight whose transpose [in, out] is given, as GPT-2's `Conv1D` stores it; panels are made straight from it. On
    /// the dry device only the shape counts. Panics elsewhere if the length does not fit.
    pub fn from_transposed(
        device: &Device,
        out_features: usize,
        in_features: usize,
        stored: &[f32],
    ) -> Self {
        let precision = device.precision();
        let len = packed_len(precision, out_features, in_features);
        let purpose = Purpose::FrozenWeights;
        let mut packed = Tensor::uninit_as(precision, device, 1, len, purpose);
        if !device.is_dry() {
            let view = MatRef::new(stored, in_features, out_features).transposed();
            pack_into(device.isa(), view, &mut packed, 0..len);
        }
        PackedMatrix {
            out_features,
            in_features,
            packed,
        }
    }

    /// Rows of W.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of W.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.packed
    }

    /// The panels. Panics on the dry device.
    pub fn packed(&self) -> Values<'_> {
        self.packed.any_values()
    }

    /// W [out, in], row-major. Panics on the dry device.
    pub fn to_rows(&self) -> Vec<f32> {
        let (n, k) = (self.out_features, self.in_features);
        let mut rows = vec![0.0; n * k];
        match self.packed() {
            Values::F32(packed) => kernels::unpack(packed, n, k, &mut rows),
            Values::Bf16(packed) => kernels::unpack_bf16(packed, n, k, &mut rows),
        }
        rows
    }
}

/// Names one trainable value in its [`Trainables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrainableId(usize);

impl TrainableId {
    /// Position in the store.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A vector or table: frozen, or trained.
#[derive(Debug)]
pub enum Param {
    /// Never changes.
    Frozen(Frozen),
    /// Lives in the store of trainables.
    Trainable(TrainableId),
}

impl Param {
    /// The values, copied. Panics on the dry device.
    pub fn to_vec(&self, trainables: &Trainables) -> Vec<f32> {
        match self {
            Param::Frozen(frozen) => frozen.to_vec(),
            Param::Trainable(id) => trainables.get(*id).value.data().to_vec(),
        }
    }

    /// The values. Panics on the dry device, or if they are not f32, as only a frozen table is.
    pub fn data<'a>(&'a self, trainables: &'a Trainables) -> &'a [f32] {
        match self {
            Param::Frozen(frozen) => frozen.data(),
            Param::Trainable(id) => trainables.get(*id).value.data(),
        }
    }

    /// The values in whichever storage. Panics on the dry device.
    pub fn values<'a>(&'a self, trainables: &'a Trainables) -> Values<'a> {
        match self {
            Param::Frozen(frozen) => frozen.values(),
            Param::Trainable(id) => trainables.get(*id).value.any_values(),
        }
    }

    /// [rows, cols].
    pub fn shape(&self, trainables: &Trainables) -> [usize; 2] {
        match self {
            Param::Frozen(frozen) => frozen.shape(),
            Param::Trainable(id) => {
                let value = &trainables.get(*id).value;
                [value.rows(), value.cols()]
            }
        }
    }

    /// The trainable's id, if it is one.
    pub fn trainable(&self) -> Option<TrainableId> {
        match self {
            Param::Frozen(_) => None,
            Param::Trainable(id) => Some(*id),
        }
    }
}

/// The weight of a linear layer: frozen and packed, or trained.
#[derive(Debug)]
pub enum Matrix {
    /// Never changes.
    Frozen(PackedMatrix),
    /// Lives in the store of trainables as [out, in], row-major.
    Trainable(TrainableId),
    /// Lives in the store of trainables as [in, out], as GPT-2's `Conv1D` has it.
    TrainableConv1d(TrainableId),
}

impl Matrix {
    /// [out, in].
    pub fn shape(&self, trainables: &Trainables) -> [usize; 2] {
        match self {
            Matrix::Frozen(packed) => [packed.out_features(), packed.in_features()],
            Matrix::Trainable(id) => {
                let value = &trainables.get(*id).value;
                [value.rows(), value.cols()]
            }
            Matrix::TrainableConv1d(id) => {
                let value = &trainables.get(*id).value;
                [value.cols(), value.rows()]
            }
        }
    }

    /// W [out, in], row-major, copied. Panics on the dry device.
    pub fn to_rows(&self, trainables: &Trainables) -> Vec<f32> {
        match self {
            Matrix::Frozen(packed) => packed.to_rows(),
            Matrix::Trainable(id) => trainables.get(*id).value.data().to_vec(),
            Matrix::TrainableConv1d(id) => {
                let value = &trainables.get(*id).value;
                transpose(value.data(), value.rows(), value.cols())
            }
        }
    }

    /// The trainable's id, if it is one.
    pub fn trainable(&self) -> Option<TrainableId> {
        match self {
            Matrix::Frozen(_) => None,
            Matrix::Trainable(id) | Matrix::TrainableConv1d(id) => Some(*id),
        }
    }
}

/// xᵀ [cols, rows] of x [rows, cols], row-major. Panics if the length disagrees.
pub fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    // Square blocks: neither side is walked with a stride that leaves the cache.
    const BLOCK: usize = 32;
    assert_eq!(x.len(), rows * cols, "a [{rows}, {cols}] matrix");
    let mut out = vec![0.0; x.len()];
    for first in (0..rows).step_by(BLOCK) {
        for left in (0..cols).step_by(BLOCK) {
            for i in first..(first + BLOCK).min(rows) {
                for j in left..(left + BLOCK).min(cols) {
                    out[j * rows + i] = x[i * cols + j];
                }
            }
        }
    }
    out
}

/// One trained value and its name.
#[derive(Debug)]
pub struct Trainable {
    /// The name on disk, unique in the store.
    pub name: String,
    /// The shape on disk; the product of its dimensions is the number of values.
    pub shape: Vec<usize>,
    /// The values, [rows, cols] (a vector is one row).
    pub value: Tensor,
}

/// Every value that training changes, in a fixed order.
#[derive(Debug, Default)]
pub struct Trainables(Vec<Trainable>);

impl Trainables {
    /// Adds a value. `shape` has one to three dimensions; the last two are a matrix's columns. On the dry device `values` may be empty.
    /// Panics if the name is taken or the length does not fit.
    pub fn add(
        &mut self,
        device: &Device,
        name: String,
        shape: &[usize],
        values: &[f32],
    ) -> TrainableId {
        assert!(
            self.0.iter().all(|t| t.name != name),
            "`{name}` is trained twice"
        );
        let [rows, cols] = match *shape {
            [cols] => [1, cols],
            [rows, cols] => [rows, cols],
            [rows, inner, taps] => [rows, inner * taps],
            _ => panic!("`{name}` has {} dimensions", shape.len()),
        };
        let purpose = Purpose::TrainableWeights;
        let value = if device.is_dry() {
            Tensor::uninit(device, rows, cols, purpose)
        } else {
            Tensor::from_slice(device, rows, cols, purpose, values)
        };
        self.0.push(Trainable {
            name,
            shape: shape.to_vec(),
            value,
        });
        TrainableId(self.0.len() - 1)
    }

    /// The value that `id` names.
    pub fn get(&self, id: TrainableId) -> &Trainable {
        &self.0[id.0]
    }

    /// The value that `id` names, to change it.
    pub fn get_mut(&mut self, id: TrainableId) -> &mut Trainable {
        &mut self.0[id.0]
    }

    /// All values in order.
    pub fn iter(&self) -> impl Iterator<Item = (TrainableId, &Trainable)> {
        self.0.iter().enumerate().map(|(i, t)| (TrainableId(i), t))
    }

    /// Looks a value up by name.
    pub fn find(&self, name: &str) -> Option<TrainableId> {
        self.0.iter().position(|t| t.name == name).map(TrainableId)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of values in all tensors.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|t| t.value.len() as u64).sum()
    }
}

/// One gradient for each trainable, allocated once and summed into until cleared.
#[derive(Debug)]
pub struct Gradients(Vec<Tensor>);

impl Gradients {
    /// Zero gradients for all of `trainables`.
    pub fn zeros(device: &Device, trainables: &Trainables) -> Self {
        let slot = |t: &Trainable| {
            Tensor::zeros(device, t.value.rows(), t.value.cols(), Purpose::Gradients)
        };
        Gradients(trainables.0.iter().map(slot).collect())
    }

    /// Sets all gradients to zero.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(|g| g.fill(0.0));
    }

    /// The gradient of one trainable.
    pub fn get(&self, id: TrainableId) -> &Tensor {
        &self.0[id.0]
    }

    /// The gradient of one trainable, to add to it.
    pub fn get_mut(&mut self, id: TrainableId) -> &mut Tensor {
        &mut self.0[id.0]
    }

    /// All gradients, in the order of the trainables.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.0.iter_mut()
    }

    /// All gradients, in the order of the trainables.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter()
    }
}
