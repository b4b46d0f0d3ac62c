//! What a run of `lowrank` is: from settings by name to a model that is opened, adapted, planned,
//! trained, evaluated, asked or merged.
//!
//! The command line, a server or another program says what is wanted and shows what comes of it.
//! Nothing here prints, reads the environment or knows how a setting was given; settings bear the
//! names of the command line's flags, so that the hint of an error names the same thing for all.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod base;
pub mod build;
pub mod chat;
pub mod convert;
pub mod device;
mod error;
pub mod export;
pub mod fits;
pub mod folder;
pub mod generation;
pub mod head;
pub mod hub;
pub mod int8;
pub mod labels;
pub mod loaded;
pub mod machine;
pub mod memory;
pub mod merge;
mod misfit;
pub mod model_plan;
pub mod notes;
mod places;
pub mod plan;
pub mod predict;
pub mod presets;
pub mod probe;
pub mod profile;
pub mod rates;
pub mod result;
pub mod rows;
pub mod scoring;
pub mod settings;
pub mod side_files;
pub mod spec;
pub mod targets;
pub mod text;
pub mod train;
pub mod unused;
pub mod writer;
pub mod yaml;

pub use error::{Kind, RunError, RunResult};
