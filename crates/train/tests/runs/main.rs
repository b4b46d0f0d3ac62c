//! Whole runs on a tiny model.

mod fit;
mod frozen_cache;
mod planned;
mod properties;
mod stops;
mod tiny;
