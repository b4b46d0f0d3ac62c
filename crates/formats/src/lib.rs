//! Files in and out: safetensors, PyTorch's pickled checkpoints, Hugging Face directories,
//! `config.json`, PEFT and loralib adapters, and directories that are written as a whole or not at
//! all.
//!
//! Everything read here was written by a stranger. So lengths are checked against the file before
//! anything is allocated, no code inside a pickle is ever executed, nothing is mapped into memory
//! (a file that shrinks is an error, never a crash), and every fault is a [`FormatError`] that says
//! what, where and what was expected. This crate knows no model and no tensor arithmetic; it must
//! not print or read the environment.

mod checkpoint;
mod convert;
mod dtype;
mod error;
mod method;
mod pyjson;
mod source;
mod suggest;
mod task;

pub mod config;
pub mod files;
pub mod gguf;
pub mod peft;
pub mod pickle;
pub mod quantised;
pub mod run_dir;
pub mod safetensors;
pub mod torch;

pub use checkpoint::{Checkpoint, PackedAs, Parted, TensorInfo};
pub use config::{ConfigReader, model_config_file, read_model_config};
pub use convert::{Converted, convert};
pub use dtype::{DType, encode_f32, f32_bytes, fits};
pub use error::{Fault, FormatError};
pub use files::{PendingDir, PendingFile, write_atomic};
pub use method::Method;
pub use pyjson::{NonAscii, python_float_repr, read_json, to_python_json, write_python_string};
pub use run_dir::RunDir;
pub use safetensors::{
    OutTensor, SafetensorsFault, TensorSpec, write_model, write_safetensors,
    write_safetensors_streaming,
};
pub use suggest::nearest;
pub use task::Task;
pub use torch::TorchFault;

/// What every function of this crate returns.
pub type Result<T> = std::result::Result<T, FormatError>;
