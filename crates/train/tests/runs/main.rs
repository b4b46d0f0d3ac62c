//! Whole runs on a tiny model.

mod fit;
mod planned;
mod prefix;
mod properties;
mod stops;
mod tiny;
