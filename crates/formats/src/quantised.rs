//! Values stored in fewer bits than a float has, decoded to f32: blocks of GGUF, and the packed
//! tensors of Hugging Face directories. Knows no tensor's meaning.

mod bitsandbytes;
pub mod blocks;
mod columns;
pub mod encode;
mod k_blocks;
mod microscaled;
pub(crate) mod packed;
mod parts;
mod present;
mod scaled;
mod small_blocks;

pub use blocks::{BLOCK_FORMATS, BlockFormat};
pub(crate) use packed::Packed;
pub use parts::BlockParts;
pub(crate) use present::present;
