//! What the machine's own product reaches: the measure of a step's share.

use std::time::Instant;

use lowrank_engine::{DType, Device};
use lowrank_kernels::{
    Epilogue, Gemm, GemmBf16, MatRef, PackedBf16, PackedF32, bf16, fill_uniform, gemm, gemm_bf16,
    pack, pack_bf16, packed_bf16_len, packed_len,
};

/// The best of a few square-ish GEMMs on this device, in FLOP/s: what a step's share is measured against.
pub fn product_flops_per_second(device: &Device) -> f64 {
    const M: usize = 1024;
    const N: usize = 768;
    const K: usize = 768;
    let mut a = vec![0.0f32; M * K];
    let mut b = vec![0.0f32; N * K];
    fill_uniform(1, 1, -1.0, 1.0, &mut a);
    fill_uniform(1, 2, -1.0, 1.0, &mut b);
    let (a_view, b_view) = (MatRef::new(&a, M, K), MatRef::new(&b, N, K));
    let isa = device.isa();
    let mut run: Box<dyn FnMut() + Send> = match device.precision() {
        DType::F32 => {
            let mut packed = vec![0.0f32; packed_len(N, K)];
            pack(isa, b_view, &mut packed);
            let mut c = vec![0.0f32; M * N];
            Box::new(move || {
                let product = Gemm {
                    a: a_view,
                    b: PackedF32::Rows(&packed),
                    n: N,
                    bias: None,
                    alpha: 1.0,
                    accumulate: false,
                };
                gemm(isa, &product, &mut c, N);
            })
        }
        DType::Bf16 => {
            let mut packed = vec![bf16::ZERO; packed_bf16_len(N, K)];
            pack_bf16(isa, b_view, &mut packed);
            let narrow: Vec<bf16> = a.iter().map(|&v| bf16::from_f32(v)).collect();
            let mut c = vec![bf16::ZERO; M * N];
            Box::new(move || {
                let product = GemmBf16 {
                    a: MatRef::new(&narrow, M, K),
                    alpha: 1.0,
                    b: PackedBf16::Rows(&packed),
                    n: N,
                    low_rank: None,
                    bias: None,
                };
                gemm_bf16(isa, &product, Epilogue::Store(&mut c));
            })
        }
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
