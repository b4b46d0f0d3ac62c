//! What the machine's own product reaches: the measure of a step's share.

use std::time::Instant;

use lowrank_engine::call::{Call, Operand, Product};
use lowrank_engine::host::fill_uniform;
use lowrank_engine::{Device, PackedMatrix, Tensor};

/// The best of a few square-ish products on this device, in FLOP/s: what a step's share is measured
/// against.
pub fn product_flops_per_second(device: &Device) -> f64 {
    const M: usize = 1024;
    const N: usize = 768;
    const K: usize = 768;
    let uniform = |stream: u64, values: &mut [f32]| fill_uniform(1, stream, -1.0, 1.0, values);
    let (mut a_values, mut block) = (vec![0.0f32; M * K], 2);
    uniform(1, &mut a_values);
    let mut a = Tensor::activations(device, M, K);
    let mut c = Tensor::activations(device, M, N);
    a.write(&a_values);
    let filled = PackedMatrix::from_blocks(device, N, K, |_, values| {
        uniform(block, values);
        block += 1;
        Ok::<(), std::convert::Infallible>(())
    });
    let b = filled.unwrap_or_else(|never| match never {});
    let mut run = || {
        device.run(Call::Product(Product::new(
            &a,
            Operand::straight(&b),
            &mut c,
        )))
    };
    device.install(move || {
        let mut best = f64::INFINITY;
        for _ in 0..24 {
            let started = Instant::now();
            run();
            best = best.min(started.elapsed().as_secs_f64());
        }
        2.0 * (M * N * K) as f64 / best
    })
}
