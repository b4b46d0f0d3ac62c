//! Adapters of a model: which layers a configuration means, fresh values, PEFT's files, merging.

mod attach;
mod file;
mod lora;
mod parts;

pub(crate) use lora::merged_weight;
