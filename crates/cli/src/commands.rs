//! One file a command. Each has a `run` that takes its flags, laid over their file, and does the
//! work.

pub mod chat;
pub mod check;
pub mod convert;
pub mod eval;
pub mod export;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod plan;
pub mod predict;
pub mod profile;
pub mod train;
