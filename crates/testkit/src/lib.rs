//! What the tests of every crate share: comparators that can fail, gradient checks, and the golden
//! cases. It knows none of our crates, so that nothing it says depends on the code under test.

mod compare;
mod golden;
mod gradient;
mod manifest;
mod random;
mod real;

pub use compare::{
    Mismatch, Real, Tolerance, check_bits, check_close, check_norm, compare_bits, compare_close,
    compare_norm, relative_error,
};
pub use golden::{
    Decoding, Golden, GoldenError, Hyper, Labels, LoadLists, PeerError, Row, Step, Tensor,
    golden_root, read_golden_json, read_safetensors,
};
pub use gradient::{GradientCheck, check_gradient, check_vjp, directional_derivative};
pub use manifest::{Manifest, verify_manifest};
pub use random::Random;
pub use real::{real_model, shared_data};
