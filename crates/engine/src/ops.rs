//! The ops of the tape: each file holds one op's forward and backward, with the shapes in its first
//! lines.

pub mod activation;
pub mod add;
pub mod attention;
pub mod blocks;
pub mod cached_attention;
pub mod dropout;
pub mod embedding;
pub mod gated;
pub mod gather;
pub mod head_part;
pub mod linear;
pub mod lm_head;
pub mod loss;
pub mod neighbours;
pub mod norm;
pub mod reshape;
pub mod rope;
pub mod scale;
pub mod slice;
pub mod trained_rows;
