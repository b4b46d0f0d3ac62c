//! Models: parameters with their Hugging Face names, linear layers with adapters, one file a
//! family, heads, adapters on disk, merging. It knows nothing of rows of text, optimizers or the
//! command line. Rooms from the ground up, each knowing only those before it: `config`, `modules`,
//! `pass`, `load`, `families`, `model`; on top `adapters`, `merge` and `generate`, which add to
//! [`Model`].
#![forbid(unsafe_code)]

mod adapters;
pub mod config;
mod error;
pub mod families;
pub mod generate;
mod load;
mod merge;
mod model;
pub mod modules;
mod pass;
mod trained;

pub use adapters::AdapterSlot;
pub use config::{Dropouts, Facts, HeadNames, LabelFields, Task, builtin_config, builtin_names};
pub use error::ModelError;
pub use families::{HeadKind, HeadTensors, StoredHead};
pub use generate::config::{GenerationConfig, GenerationFile};
pub use generate::session::{Event, PrefixId, Request, RequestId, Session};
pub use generate::{
    BeamSearch, EarlyStopping, Generate, Generated, Generation, Next, Sampling, Search,
    SettingFault,
};
pub use load::{LoadOptions, LoadReport};
pub use lowrank_engine::ops::loss::{IGNORE_INDEX, Targets};
pub use merge::{LowRank, MergeOptions, MergeReport};
pub use model::{Evaluated, Int8Error, Model, ModelConfig, PassOptions, Passes, TokenTables};
pub use pass::{Batch, Entry, FrozenLayers, LayerRange, Recompute};
pub use trained::{AdaptedModule, AdapterReport, SavedModule, TrainMode};
