//! Models: parameters with their Hugging Face names, linear layers with adapters, one file a family, heads, adapters on
//! disk, merging. It knows nothing of rows of text, optimizers or the command line.
#![forbid(unsafe_code)]

mod adapt;
mod adapter_file;
mod causal;
pub mod config;
mod error;
pub mod families;
pub mod generate;
mod label_fields;
mod loader;
mod lora;
mod merge;
mod model;
pub mod modules;
mod names;
mod parts;
mod prefix;
mod sizes;
mod stored_head;
mod stretch;
mod token_tables;

pub use adapt::{AdaptedModule, AdapterReport, SavedModule, TrainMode};
pub use config::{Facts, ModelConfig, Task};
pub use error::ModelError;
pub use generate::config::{GenerationConfig, GenerationFile};
pub use generate::{
    BeamSearch, EarlyStopping, Generate, Generated, Sampling, Search, SettingFault,
};
pub use label_fields::{HeadNames, LabelFields};
pub use loader::{LoadOptions, LoadReport};
pub use lowrank_engine::ops::loss::{IGNORE_INDEX, Targets};
pub use merge::{MergeOptions, MergeReport};
pub use model::{Batch, Model, PassOptions};
pub use prefix::{Entry, Prefix};
pub use sizes::{builtin_config, builtin_names};
pub use stored_head::{HeadKind, HeadTensors, StoredHead};
pub use stretch::Stretch;
pub use token_tables::TokenTables;
