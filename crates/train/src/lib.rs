//! The training of `lowrank`: the resolved configuration, the loop, schedules, evaluation and
//! metrics, checkpoints with exact resume, the memory plan, and the run's report.
//!
//! Nothing here prints, reads the environment or knows the command line; progress goes out through
//! callbacks.
#![forbid(unsafe_code)]

pub mod base;
pub mod best;
pub mod checkpoint;
pub mod config;
pub mod entities;
mod error;
pub mod evaluate;
pub mod fingerprint;
pub mod fit;
pub mod frozen_cache;
pub mod lora;
pub mod metrics;
pub mod metrics_log;
pub mod optimizer;
pub mod outliers;
pub mod plan;
pub mod proof;
pub mod rates;
pub mod reduce;
pub mod report;
mod run_state;
pub mod schedule;
pub mod seal;
pub mod trainer;
