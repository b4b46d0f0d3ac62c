//! The engine: devices that allocate and count, tensors, the tape, and one file an op with its forward and its backward.
//! It knows nothing of models, files or rows of text.
//! Unsafe code stands in `buffer` alone.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod buffer;
pub mod device;
pub mod meter;
pub mod ops;
pub mod param;
pub mod profile;
mod site;
pub mod tape;
pub mod tensor;

pub use device::{Device, OutOfAddressSpace};
pub use lowrank_kernels::{Activation, DType, Isa};
pub use meter::{MemoryReport, Purpose};
pub use param::{Gradients, Matrix, PackedMatrix, Param, Trainable, TrainableId, Trainables};
pub use profile::{OpTime, Phase, Profile};
pub use site::Site;
pub use tape::{StepKey, Tape, Var};
pub use tensor::Tensor;
