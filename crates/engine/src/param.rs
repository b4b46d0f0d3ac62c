//! Weights. Frozen is a type: a frozen weight has no place where a gradient could be stored.
//! Trainable values live in one store, [`Trainables`], so that the optimizer, checkpoints and
//! adapter files all see the same list.

mod packed;

use crate::call::{Call, Operand, Transpose};
use crate::device::Device;
use crate::meter::Purpose;
use crate::tensor::Tensor;
use packed::for_each_block;
pub use packed::{Outliers, PackedMatrix};

/// A frozen vector or table [rows, cols], row-major.
#[derive(Debug)]
pub struct Frozen(Tensor);

impl Frozen {
    /// Freezes values of shape [rows, cols]; on the dry device only the shape.
    pub fn new(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Self {
        let mut tensor = Tensor::uninit(device, rows, cols, Purpose::FrozenWeights);
        if !device.is_dry() {
            tensor.write(values);
        }
        Frozen(tensor)
    }

    /// Freezes a table [rows, cols] in f32 that `fill` writes, block of rows by block of rows:
    /// `fill(first_row, block)`. Not called on the dry device. Errors are those of `fill`.
    pub fn from_blocks<E>(
        device: &Device,
        rows: usize,
        cols: usize,
        fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::filled(
            Tensor::uninit(device, rows, cols, Purpose::FrozenWeights),
            fill,
        )
    }

    /// As [`Frozen::from_blocks`] in the device's format of weights, for a table that is looked up
    /// and not computed with.
    pub fn table_from_blocks<E>(
        device: &Device,
        rows: usize,
        cols: usize,
        fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let (dtype, purpose) = (
            device.numerics().plain_weights().of_rows(),
            Purpose::FrozenWeights,
        );
        Self::filled(Tensor::uninit_as(dtype, device, rows, cols, purpose), fill)
    }

    fn filled<E>(
        mut tensor: Tensor,
        fill: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let shape = [tensor.rows(), tensor.cols()];
        if !tensor.device().is_dry() {
            for_each_block(shape, fill, |block| {
                tensor.write_rows(block.first, block.values);
            })?;
        }
        Ok(Frozen(tensor))
    }

    /// The values where they lie.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The values, copied. Panics on the dry device.
    pub fn to_vec(&self) -> Vec<f32> {
        self.0.read()
    }

    /// [rows, cols].
    pub fn shape(&self) -> [usize; 2] {
        [self.0.rows(), self.0.cols()]
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

    /// The name of the same value behind so many others; see [`Trainables::append`].
    pub fn behind(self, others: usize) -> Self {
        TrainableId(self.0 + others)
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
        self.tensor(trainables).read()
    }

    /// The values where they lie.
    pub fn tensor<'a>(&'a self, trainables: &'a Trainables) -> &'a Tensor {
        match self {
            Param::Frozen(frozen) => frozen.tensor(),
            Param::Trainable(id) => &trainables.get(*id).value,
        }
    }

    /// [rows, cols].
    pub fn shape(&self, trainables: &Trainables) -> [usize; 2] {
        let tensor = self.tensor(trainables);
        [tensor.rows(), tensor.cols()]
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
            Matrix::Trainable(id) => trainables.get(*id).value.read(),
            Matrix::TrainableConv1d(id) => {
                let value = &trainables.get(*id).value;
                transpose(&value.read(), value.rows(), value.cols())
            }
        }
    }

    /// W [out, in] as the second operand of a product, or its transpose, which d_y·W needs.
    pub(crate) fn operand(
        &self,
        device: &Device,
        trainables: &Trainables,
        transpose: Transpose,
    ) -> WeightOperand<'_> {
        let trained = |id: TrainableId, transpose| {
            let value = &trainables.get(id).value;
            WeightOperand::Scratch(PackedMatrix::trained(device, value, transpose))
        };
        match self {
            Matrix::Frozen(matrix) => WeightOperand::Stored(Operand { matrix, transpose }),
            Matrix::Trainable(id) => trained(*id, transpose),
            Matrix::TrainableConv1d(id) => trained(*id, transpose.flipped()),
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

/// A layer's weight as the second operand of a product.
pub(crate) enum WeightOperand<'a> {
    Stored(Operand<'a>),
    Scratch(PackedMatrix),
}

impl WeightOperand<'_> {
    pub(crate) fn get(&self) -> Operand<'_> {
        match self {
            WeightOperand::Stored(operand) => *operand,
            WeightOperand::Scratch(matrix) => Operand::straight(matrix),
        }
    }

    /// Its transpose: d·b, where d is the gradient of a product with b. Panics for what is a
    /// transpose already.
    pub(crate) fn transposed(&self) -> Operand<'_> {
        let Operand { matrix, transpose } = self.get();
        assert_eq!(transpose, Transpose::No, "an operand transposed twice");
        Operand::transposed(matrix)
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

/// What a trained value is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The A of a low-rank adapter.
    LoraA,
    /// The B of a low-rank adapter.
    LoraB,
    /// A parameter of the model itself.
    Parameter,
}

/// One trained value and its name.
#[derive(Debug)]
pub struct Trainable {
    /// The name on disk, unique in the store.
    pub name: String,
    /// The shape on disk; the product of its dimensions is the number of values.
    pub shape: Vec<usize>,
    /// What it is; optimizers may treat roles apart.
    pub role: Role,
    /// The values, [rows, cols] (a vector is one row).
    pub value: Tensor,
}

/// Every value that training changes, in a fixed order.
#[derive(Debug, Default)]
pub struct Trainables(Vec<Trainable>);

impl Trainables {
    /// Adds a parameter of the model itself; see [`Trainables::add_as`].
    pub fn add(
        &mut self,
        device: &Device,
        name: String,
        shape: &[usize],
        values: &[f32],
    ) -> TrainableId {
        self.add_as(Role::Parameter, device, name, shape, values)
    }

    /// Adds a value. `shape` has one to three dimensions; the last two are a matrix's columns. On
    /// the dry device `values` may be empty. Panics if the name is taken or the length does not
    /// fit.
    pub fn add_as(
        &mut self,
        role: Role,
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
        let value = Tensor::from_slice(device, rows, cols, purpose, values);
        self.0.push(Trainable {
            name,
            shape: shape.to_vec(),
            role,
            value,
        });
        TrainableId(self.0.len() - 1)
    }

    /// Takes in the values of another store, under names that begin with `prefix`, and returns how
    /// many stand before them. Panics if a name is taken.
    pub fn append(&mut self, prefix: &str, other: Trainables) -> usize {
        let before = self.0.len();
        for mut value in other.0 {
            value.name = format!("{prefix}{}", value.name);
            let is_taken = self.find(&value.name).is_some();
            assert!(!is_taken, "`{}` is there twice", value.name);
            self.0.push(value);
        }
        before
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

/// One gradient for each trainable, allocated once and summed into until cleared. One pass over a
/// micro-batch starts from zeros where its bits must not depend on what was computed before.
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

    /// Adds the gradients of the same trainables. Panics if they are others'.
    pub fn add(&mut self, other: &Gradients) {
        assert_eq!(self.0.len(), other.0.len(), "gradients of other trainables");
        let Some(device) = self.0.first().map(|g| g.device().clone()) else {
            return;
        };
        device.install(|| {
            for (out, x) in self.0.iter_mut().zip(&other.0) {
                device.run(Call::Add { x, out });
            }
        });
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
