//! Arithmetic on slices of `f32`: packed GEMM, attention, norms, activations, losses, AdamW and
//! counter-based random numbers.
//!
//! Nothing here knows of tensors, devices or models. Every function takes the instruction set to
//! use as its first argument ([`Isa`]) and reduces in an order that shapes alone decide (tasks may
//! be cut by the number of threads), so that the result's bits depend neither on the number of
//! threads nor, for functions of rows, on the other rows of the call. [`mod@reference`] holds a
//! slow `f64` definition of every operation, forward and backward.

mod activation;
mod aligned;
mod attention;
mod dropout;
mod element;
mod elementwise;
mod embedding;
mod gated;
mod isa;
mod loss;
mod math;
mod matrix;
mod neighbours;
mod norm;
mod optimizer;
mod outer;
mod parallel;
mod philox;
mod processor;
pub mod product;
pub mod reference;
mod rms_norm;
mod rope;
mod scratch;
mod simd;
mod tasks;
mod vocabulary;

pub use activation::{
    Activation, activation_backward, activation_forward, activation_forward_in_place,
};
pub use aligned::Plain;
pub use attention::{
    Attended, AttentionElement, AttentionGradients, AttentionMask, AttentionOperands,
    AttentionShape, CachedSequence, CachedShape, QueryRole, RelativePositions, attend,
    attend_backward, attend_backward_scratch, attend_cached, attend_cached_scratch, attend_scratch,
};
pub use dropout::{Dropout, DropoutKey, dropout_apply, dropout_into};
pub use element::{DType, Element, Values, ValuesMut};
pub use elementwise::{add_assign, all_finite, column_sum, convert, scale, sum_of_squares};
pub use embedding::{Table, TableRows, embedding_gather, embedding_scatter_add};
pub use gated::{GateUp, GateUpGradients, GatedBackward, gated_backward, gated_forward};
pub use half::bf16;
pub use isa::Isa;
pub use loss::{
    CrossEntropyForm, IGNORE_INDEX, bce_with_logits, cross_entropy, cross_entropy_into, mse,
};
pub use matrix::{AnyMatRef, MatMut, MatRef};
pub use neighbours::{neighbours, neighbours_backward};
pub use norm::{
    LayerNorm, LayerNormForward, layer_norm, layer_norm_backward, layer_norm_forward,
    layer_norm_param_grads, layer_norm_recompute,
};
pub use optimizer::{AdamW, adamw_step};
pub use outer::{Outer, OuterShape, outer, outer_scratch};
pub use philox::{fill_normal, fill_uniform, philox4x32_10};
pub use processor::{CacheContent, CpuCache, Processor, processor};
pub use product::{PANEL, pack, packed_len, repack_transposed, unpack};
pub use rms_norm::{
    ResidualSum, RmsFactor, RmsNorm, rms_norm, rms_norm_backward, rms_norm_of_sum,
    rms_norm_recompute, rms_norm_weight_grad,
};
pub use rope::{
    Rope, RopeLayout, rope_backward, rope_forward, rope_inverse_frequencies, rope_table,
};
pub use scratch::{Room, Scratch, ScratchBuffer, ScratchNeed, bytes_of};
pub use tasks::{TaskGroup, record_tasks};
pub use vocabulary::{argmax, log_softmax};
