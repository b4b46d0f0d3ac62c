//! PEFT's adapters: `adapter_config.json` and its tensors, as Python's `peft` reads and writes
//! them, and the paper's own loralib checkpoints. Knows names, shapes and files; what an adapter
//! computes is the model's business.
//!
//! ```no_run
//! use lowrank_formats::peft::{AdapterFile, LoraConfig, Matcher};
//! # fn main() -> lowrank_formats::Result<()> {
//! let config = LoraConfig::read("adapter".as_ref())?;
//! let matcher = Matcher::new(&config)?;
//! println!("scaling {}", matcher.scaling("roberta.encoder.layer.0.attention.self.query")?);
//! for (key, tensor) in AdapterFile::read("adapter".as_ref())? {
//!     println!("{key} {:?}", tensor.shape);
//! }
//! # Ok(())
//! # }
//! ```

mod adapter;
mod any;
mod config;
mod fields;
mod keys;
mod loralib;
mod schema;
mod targets;

pub use adapter::{
    ADAPTER_WEIGHTS, AdapterFile, AdapterTensor, KEY_PREFIX, ParameterKind, TOKEN_ROWS, parse_key,
    write_adapter,
};
pub use any::{AdapterConfig, BitFitConfig};
pub use config::{
    ADAPTER_CONFIG, Bias, InitLoraWeights, Kept, LayersToTransform, LoraConfig, NamePattern,
    TargetModules, TaskType, TokenIndices,
};
pub use loralib::{Loralib, LoralibModule};
pub use schema::{PEFT_VERSION, PeftCompat};
pub use targets::{Matcher, Unmatched, is_named, minimal_target_modules};
