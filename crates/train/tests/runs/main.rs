//! Whole runs on a tiny model.

mod fit;
mod frozen_cache;
mod int8;
mod planned;
mod properties;
mod stops;
mod tiny;
