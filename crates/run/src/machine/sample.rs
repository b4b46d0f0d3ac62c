//! A product of random matrices on a device: what rates are measured with.

use std::convert::Infallible;
use std::time::Instant;

use lowrank_engine::call::{Call, Operand, Product};
use lowrank_engine::host::fill_uniform;
use lowrank_engine::{Device, PackedMatrix, Tensor};

/// c = a·bᵀ for a [m, k] and b [n, k], with values from -1 to 1 as the device stores them.
pub(crate) struct SampleProduct {
    shape: [usize; 3],
    device: Device,
    a: Tensor,
    b: PackedMatrix,
    c: Tensor,
}

fn uniform(stream: u64, values: &mut [f32]) {
    fill_uniform(1, stream, -1.0, 1.0, values);
}

impl SampleProduct {
    /// One of the shape [m, n, k].
    pub(crate) fn new(device: &Device, shape: [usize; 3]) -> Self {
        let [m, n, k] = shape;
        let mut values = vec![0.0; m * k];
        uniform(0, &mut values);
        let mut a = Tensor::activations(device, m, k);
        a.write(&values);
        let filled = PackedMatrix::from_blocks(device, n, k, |first, values| {
            uniform(1 + first as u64, values);
            Ok::<(), Infallible>(())
        });
        Self {
            shape,
            device: device.clone(),
            a,
            b: filled.unwrap_or_else(|never| match never {}),
            c: Tensor::activations(device, m, n),
        }
    }

    /// Computes c once; returns the operations a second.
    pub(crate) fn flops_per_second(&mut self) -> f64 {
        let [m, n, k] = self.shape;
        let started = Instant::now();
        self.device.run(Call::Product(Product::new(
            &self.a,
            Operand::straight(&self.b),
            &mut self.c,
        )));
        let seconds = started.elapsed().as_secs_f64().max(1e-9);
        2.0 * (m * n * k) as f64 / seconds
    }

    /// Every `step`-th row of c.
    pub(crate) fn rows(&self, step: usize) -> Vec<f32> {
        let [m, n, _] = self.shape;
        let c = self.c.read();
        let rows = (0..m).step_by(step).flat_map(|i| &c[i * n..][..n]);
        rows.copied().collect()
    }

    /// The same by definition, of values that nothing rounded.
    pub(crate) fn rows_by_definition([m, n, k]: [usize; 3], step: usize) -> Vec<f64> {
        let (mut a, mut b) = (vec![0.0; m * k], vec![0.0; n * k]);
        uniform(0, &mut a);
        for (i, block) in b.chunks_mut(PackedMatrix::BLOCK_ROWS * k).enumerate() {
            uniform(1 + (i * PackedMatrix::BLOCK_ROWS) as u64, block);
        }
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            let products = x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y));
            products.sum()
        };
        let rows = (0..m).step_by(step).map(|i| &a[i * k..][..k]);
        rows.flat_map(|row| b.chunks_exact(k).map(move |column| dot(row, column)))
            .collect()
    }
}
