//! Whole runs on a tiny model.

mod properties;
mod stops;
mod tiny;
