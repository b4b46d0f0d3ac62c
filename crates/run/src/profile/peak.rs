//! What the machine's own product reaches: the measure of a step's share.

use lowrank_engine::Device;

use crate::machine::SampleProduct;

/// The best of a few square-ish products on this device, in FLOP/s: what a step's share is measured
/// against.
pub fn product_flops_per_second(device: &Device) -> f64 {
    let mut product = SampleProduct::new(device, [1024, 768, 768]);
    device.install(move || {
        let rates = (0..24).map(|_| product.flops_per_second());
        rates.fold(0.0, f64::max)
    })
}
