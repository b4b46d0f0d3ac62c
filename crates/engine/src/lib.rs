//! The engine: devices that allocate and count, tensors, the tape, and one file an op with its
//! forward and its backward. It knows nothing of models, files or rows of text.
//! Unsafe code stands in `space` alone.
#![deny(unsafe_code)]

pub mod backend;
pub mod call;
pub mod device;
pub mod host;
pub mod kv_cache;
pub mod meter;
mod numerics;
mod observed;
pub mod ops;
pub mod param;
pub mod profile;
mod site;
mod slots;
#[allow(unsafe_code)]
mod space;
mod storage;
pub mod tape;
pub mod tensor;

pub use device::{Device, OutOfAddressSpace};
pub use host::Host;
pub use kv_cache::{KvCache, SequenceId};
pub use lowrank_kernels::product::{Arithmetic, BlockFormat, BlockRows, NF4_VALUES, WeightFormat};
pub use lowrank_kernels::{
    Activation, AdamW, CacheContent, CpuCache, DType, Dropout, Isa, Processor, processor,
};
pub use meter::{MemoryReport, Purpose};
pub use numerics::{BaseFormat, Numerics};
pub use observed::Observed;
pub use param::{
    Gradients, Matrix, Outliers, PackedMatrix, Param, Role, Trainable, TrainableId, Trainables,
};
pub use profile::{CallTasks, OpTime, Phase, Profile, TaskGroup};
pub use site::Site;
pub use slots::{Adapters, RowSlots, Segment};
pub use space::Space;
pub use tape::{StepKey, Tape, Var};
pub use tensor::{Scalar, Tensor};
