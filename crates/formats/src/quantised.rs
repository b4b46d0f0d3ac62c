//! Values stored in fewer bits than a float has, decoded to f32: blocks of GGUF. Knows no file and no tensor's meaning.

pub mod blocks;
mod k_blocks;
mod small_blocks;

pub use blocks::{BLOCK_FORMATS, BlockFormat};
