//! Times the kernels and prints GFLOP/s with the share of the machine's measured FMA peak.
//!
//! `cargo run --release -p lowrank-kernels --example bench_kernels [-- products | attention |
//! disentangled | elementwise | decoder] [threads]`

use lowrank_kernels::product::*;
use lowrank_kernels::*;
use std::time::Instant;

/// Seconds of one call: the quickest of nine rounds of at least 2 ms, since other programs may
/// share the machine.
fn seconds(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    f();
    let once = start.elapsed().as_secs_f64().max(1e-9);
    let repeat = ((0.002 / once) as usize).clamp(1, 100_000);
    let rounds = (0..9).map(|_| {
        let start = Instant::now();
        for _ in 0..repeat {
            f();
        }
        start.elapsed().as_secs_f64() / repeat as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    fill_uniform(1, stream, -1.0, 1.0, &mut x);
    x
}

/// The highest FMA rate of one thread, in GFLOP/s: independent chains in registers.
fn fma_peak(isa: Isa) -> f64 {
    const STEPS: usize = 1000;
    let (lanes, run): (usize, fn()) = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `main` asked for an instruction set that the machine has.
        Isa::Avx512 => (16, || unsafe { x86::chains_512(STEPS) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => (8, || unsafe { x86::chains_256(STEPS) }),
        // Elsewhere the smallest honest stand-in is a product of ours in the L1 cache.
        _ => return product_peak(isa),
    };
    (2 * 12 * lanes * STEPS) as f64 / seconds(run) / 1e9
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    macro_rules! chains {
        ($name:ident, $features:literal, $splat:ident, $fma:ident) => {
            #[target_feature(enable = $features)]
            pub fn $name(steps: usize) {
                let x = $splat(black_box(0.5));
                let mut sums = [$splat(black_box(1.0)); 12];
                for _ in 0..steps {
                    for sum in &mut sums {
                        *sum = $fma(*sum, x, x);
                    }
                }
                black_box(sums);
            }
        };
    }

    chains!(chains_512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
    chains!(chains_256, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
}

/// A product in f32 of a [m, k] and packed weights, timed by `time`.
fn time_product(
    isa: Isa,
    format: WeightFormat,
    [m, n, k]: [usize; 3],
    time: impl FnOnce(&mut dyn FnMut()) -> f64,
) -> f64 {
    let (a, b) = (random(m * k, 1), random(n * k, 2));
    let narrow_a: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut packed = vec![0; packed_bytes(format, n, k)];
    pack_weights(isa, format, MatRef::new(&b, n, k), &mut packed);
    let b = PackedWeights::new(format, [n, k], &packed).panels(Side::Straight);
    let (arithmetic, a) = match format {
        WeightFormat::F32 => (Arithmetic::F32, MatRef::new(&a, m, k).into()),
        WeightFormat::Bf16 | WeightFormat::Int8 | WeightFormat::Blocks(_) => {
            (Arithmetic::Bf16, MatRef::new(&narrow_a, m, k).into())
        }
    };
    time_call(isa, &Product::new(arithmetic, a, &b), time)
}

fn time_call(isa: Isa, call: &Product, time: impl FnOnce(&mut dyn FnMut()) -> f64) -> f64 {
    let [n, _] = call.b.shape();
    let mut c = vec![0.0; call.a.rows() * n];
    let threads = rayon::current_num_threads();
    let bytes = product_scratch(&call.shape(DType::F32), threads).bytes(threads);
    let mut scratch = ScratchBuffer::new(bytes, threads);
    time(&mut || {
        let c = Output {
            values: ValuesMut::F32(&mut c),
            row_stride: n,
        };
        product(isa, call, Epilogue::Store, c, &mut scratch.scratch());
    })
}

fn product_peak(isa: Isa) -> f64 {
    let shape @ [m, n, k] = [48, 32, 192];
    (2 * m * n * k) as f64 / time_product(isa, WeightFormat::F32, shape, |f| seconds(f)) / 1e9
}

fn bench_products(isa: Isa, peak: f64) {
    for shape @ [m, n, k] in [
        [512, 768, 768],
        [2048, 768, 768],
        [512, 3072, 768],
        [512, 768, 3072],
        [64, 768, 768],
        [1, 768, 768],
        [2048, 8, 768],
        [2048, 768, 8],
    ] {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let name = format!("{m:5} x {n:5} x {k:5} {:4}", format.name());
            time_product(isa, format, shape, |f| {
                report(&name, 2 * m * n * k, peak, f);
                0.0
            });
        }
        for format in BlockFormat::ALL
            .iter()
            .filter(|format| k % format.block() == 0)
        {
            bench_blocks(isa, *format, shape, peak);
        }
        let name = format!("{m:5} x {n:5} x {k:5} bf16 weights in f32");
        let (a, b) = (random(m * k, 1), random(n * k, 2));
        let mut packed = vec![0; packed_bytes(WeightFormat::Bf16, n, k)];
        pack_weights(isa, WeightFormat::Bf16, MatRef::new(&b, n, k), &mut packed);
        for side in [Side::Straight, Side::Transposed] {
            let shape = match side {
                Side::Straight => [n, k],
                Side::Transposed if n % 32 == 0 && k % 32 == 0 => [k, n],
                Side::Transposed => continue,
            };
            let b = PackedWeights::new(WeightFormat::Bf16, shape, &packed).panels(side);
            let call = Product::new(Arithmetic::F32, MatRef::new(&a, m, k).into(), &b);
            time_call(isa, &call, |f| {
                report(&format!("{name} {side:?}"), 2 * m * n * k, peak, f);
                0.0
            });
        }
    }
}

/// Products in f32 with weights that are decoded from blocks, each way.
fn bench_blocks(isa: Isa, format: BlockFormat, [m, n, k]: [usize; 3], peak: f64) {
    let stored = WeightFormat::Blocks(format);
    let mut packed = vec![0; packed_bytes(stored, n, k)];
    let mut blocks = BlockRows::zeros(format, n * k);
    let codes = blocks.codes.iter_mut().enumerate();
    codes.for_each(|(i, code)| *code = (i * 7 % 16) as u8);
    pack_blocks(format, &blocks, [n, k], &mut packed);
    for side in [Side::Straight, Side::Transposed] {
        let depth = if side == Side::Straight { k } else { n };
        let a = random(m * depth, 1);
        let b = PackedWeights::new(stored, [n, k], &packed).panels(side);
        let call = Product::new(Arithmetic::F32, MatRef::new(&a, m, depth).into(), &b);
        let name = format!("{m:5} x {n:5} x {k:5} {} in f32 {side:?}", format.name());
        time_call(isa, &call, |f| {
            report(&name, 2 * m * n * k, peak, f);
            0.0
        });
    }
}

fn bench_outer(isa: Isa, peak: f64) {
    println!("outer products: [k,m]T x [k,n]");
    for (m, n, k) in [
        (8, 768, 2048),
        (768, 8, 2048),
        (16, 384, 800),
        (8, 3072, 2048),
    ] {
        let (a, x) = (random(k * m, 1), random(k * n, 2));
        let call = Outer {
            arithmetic: Arithmetic::F32,
            a: MatRef::new(&a, k, m).into(),
            x: MatRef::new(&x, k, n).into(),
            alpha: 1.0,
        };
        let mut c = vec![0.0; m * n];
        let threads = rayon::current_num_threads();
        let bytes = outer_scratch(&call.shape(), threads).bytes(threads);
        let mut scratch = ScratchBuffer::new(bytes, threads);
        report(
            &format!("{m:5} x {n:5} x {k:5}"),
            2 * m * n * k,
            peak,
            || {
                outer(isa, &call, &mut c, &mut scratch.scratch());
            },
        );
    }
}

fn bench_packing(isa: Isa) {
    let (n, k) = (768, 3072);
    let b = random(n * k, 2);
    let mut packed = vec![0.0; packed_len(n, k)];
    let mut transposed = vec![0.0; packed_len(k, n)];
    bandwidth("pack 768 x 3072", n * k, || {
        pack(isa, MatRef::new(&b, n, k), &mut packed)
    });
    bandwidth("repack_transposed 768 x 3072", n * k, || {
        repack_transposed(isa, &packed, n, k, &mut transposed)
    });
}

fn report(name: &str, flops: usize, peak: f64, f: impl FnMut()) {
    let t = seconds(f);
    let rate = flops as f64 / t / 1e9;
    println!(
        "  {name}  {:9.1} us  {rate:7.1} GFLOP/s  {:5.1}% of peak",
        t * 1e6,
        100.0 * rate / peak
    );
}

fn bandwidth(name: &str, elements: usize, f: impl FnMut()) {
    let t = seconds(f);
    println!(
        "  {name:32}  {:9.1} us  {:6.2} G elements/s",
        t * 1e6,
        elements as f64 / t / 1e9
    );
}

fn bench_attention(isa: Isa, peak: f64) {
    println!("attention: sequences x length x heads x head_dim");
    let dropout = Dropout {
        p: 0.1,
        key: DropoutKey {
            seed: 1,
            step: 2,
            site: 3,
        },
    };
    for (count, len, num_heads, head_dim) in [
        (16, 128, 12, 64),
        (4, 512, 12, 64),
        (32, 24, 12, 32),
        (8, 200, 12, 32),
        (64, 8, 12, 64),
        (1, 4096, 2, 64),
    ] {
        let offsets: Vec<usize> = (0..=count).map(|i| i * len).collect();
        let causal = AttentionMask::Causal { window: None };
        for (mask, dropout) in [
            (AttentionMask::Full, None),
            (AttentionMask::Full, Some(dropout)),
            (causal, None),
            (causal, Some(dropout)),
        ] {
            let shape = AttentionShape {
                num_heads,
                num_key_value_heads: num_heads,
                head_dim,
                q_offsets: &offsets,
                kv_offsets: &offsets,
                scale: 1.0 / (head_dim as f32).sqrt(),
                soft_cap: None,
                mask,
                dropout,
            };
            let pairs = match mask {
                AttentionMask::Full => len * len,
                AttentionMask::Causal { .. } => len * (len + 1) / 2,
                AttentionMask::Near { reach } => len * (2 * reach + 1).min(len),
            };
            let flops = 2 * count * num_heads * pairs * head_dim;
            let kind = if mask == causal { "causal" } else { "full" };
            let p = dropout.map_or(0.0, |d| d.p);
            let name = format!("{kind} {count:3} x {len:4} x {num_heads} x {head_dim} p {p}");
            time_attention::<f32>(isa, peak, &shape, &name, [2 * flops, 5 * flops], None);
            time_attention::<bf16>(isa, peak, &shape, &name, [2 * flops, 5 * flops], None);
        }
    }
}

fn bench_disentangled(isa: Isa, peak: f64) {
    println!("disentangled attention, both tables: sequences x length x heads x head_dim");
    let (num_heads, head_dim) = (12, 64);
    for (count, len) in [(16, 128), (4, 512), (32, 40), (64, 30)] {
        let offsets: Vec<usize> = (0..=count).map(|i| i * len).collect();
        let shape = AttentionShape {
            num_heads,
            num_key_value_heads: num_heads,
            soft_cap: None,
            head_dim,
            q_offsets: &offsets,
            kv_offsets: &offsets,
            scale: 1.0 / (3.0 * head_dim as f32).sqrt(),
            mask: AttentionMask::Full,
            dropout: None,
        };
        let (rows, name) = (
            offsets[count],
            format!("{count} x {len} x {num_heads} x {head_dim}"),
        );
        let flops = 2 * rows * len * num_heads * head_dim;
        time_attention::<f32>(isa, peak, &shape, &name, [4 * flops, 11 * flops], Some(2));
        time_attention::<bf16>(isa, peak, &shape, &name, [4 * flops, 11 * flops], Some(2));
    }
}

/// Times both passes in one storage, with `tables` of relative positions or without.
fn time_attention<E: AttentionElement>(
    isa: Isa,
    peak: f64,
    shape: &AttentionShape,
    name: &str,
    flops: [usize; 2],
    tables: Option<usize>,
) {
    let width = shape.num_heads * shape.head_dim;
    let rows = shape.q_offsets[shape.q_offsets.len() - 1];
    let narrow = |x: Vec<f32>| x.into_iter().map(E::narrow).collect::<Vec<_>>();
    let [q, k, v, d_out] = [1, 2, 3, 4].map(|stream| narrow(random(rows * width, stream)));
    let places: Vec<u32> = (0..2 * shape.q_offsets[1] as u32 - 1).collect();
    let table = narrow(random(places.len() * width, 5));
    let view = |x| MatRef::new(x, rows, width);
    let operands = AttentionOperands {
        q: view(&q),
        k: view(&k),
        v: view(&v),
        positions: tables.map(|_| RelativePositions {
            rows: &places,
            keys: Some(&table),
            queries: Some(&table),
        }),
    };
    let trained = tables.unwrap_or(0);
    let need = attend_backward_scratch::<E>(shape, tables, trained, places.len());
    let need = need.max(attend_scratch::<E>(shape, tables));
    let threads = rayon::current_num_threads();
    let mut scratch = ScratchBuffer::new(need.bytes(threads), threads);
    let [mut out, mut d_q, mut d_k, mut d_v] = [(); 4].map(|()| q.clone());
    let mut lse = vec![0.0; rows * shape.num_heads];
    let mut d_tables = [(); 2].map(|()| tables.map(|_| table.clone()));
    let storage = E::DTYPE.name();
    report(
        &format!("forward  {storage} {name}"),
        flops[0],
        peak,
        || {
            let out = MatMut::new(&mut out, rows, width);
            attend(isa, shape, &operands, out, &mut lse, &mut scratch.scratch());
        },
    );
    let saved = Attended {
        operands,
        out: view(&out),
        lse: &lse,
    };
    report(
        &format!("backward {storage} {name}"),
        flops[1],
        peak,
        || {
            let [d_keys, d_queries] = d_tables.each_mut().map(Option::as_deref_mut);
            let gradients = AttentionGradients {
                d_q: MatMut::new(&mut d_q, rows, width),
                d_k: MatMut::new(&mut d_k, rows, width),
                d_v: MatMut::new(&mut d_v, rows, width),
                d_keys,
                d_queries,
            };
            attend_backward(
                isa,
                shape,
                &saved,
                view(&d_out),
                gradients,
                &mut scratch.scratch(),
            );
        },
    );
}

fn bench_elementwise(isa: Isa) {
    println!("elementwise, 2048 x 768");
    let (n, d) = (2048, 768);
    let x = random(n * d, 1);
    let mut y = random(n * d, 2);
    for kind in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
    ] {
        bandwidth(&format!("{kind:?} forward"), n * d, || {
            activation_forward(isa, kind, &x, &mut y)
        });
        bandwidth(&format!("{kind:?} backward"), n * d, || {
            activation_backward(isa, kind, &x, &mut y)
        });
    }
    let key = DropoutKey {
        seed: 1,
        step: 2,
        site: 3,
    };
    let dropout = Dropout { p: 0.1, key };
    y.fill(1e-3);
    bandwidth("dropout", n * d, || dropout_apply(isa, dropout, &mut y));
    let (weight, bias) = (random(d, 3), random(d, 4));
    let (mut mean, mut rstd) = (vec![0.0; n], vec![0.0; n]);
    let mut z = x.clone();
    for dropout in [None, Some(dropout)] {
        bandwidth(
            &format!("norm forward, dropout {}", dropout.is_some()),
            n * d,
            || {
                layer_norm_forward(
                    isa,
                    LayerNormForward {
                        x: &mut z,
                        residual: Some(&x),
                        dropout,
                        weight: &weight,
                        bias: &bias,
                        eps: 1e-5,
                        y: &mut y,
                        mean: &mut mean,
                        rstd: &mut rstd,
                    },
                )
            },
        );
    }
    let z = random(n * d, 5);
    bandwidth("norm backward", n * d, || {
        layer_norm_backward(isa, &z, &mean, &rstd, &weight, &mut y)
    });
    bandwidth("add_assign", n * d, || add_assign(isa, &mut y, &x));
    let mut sum = vec![0.0; d];
    bandwidth("column_sum", n * d, || column_sum(isa, &x, d, &mut sum));
}

/// What decoders add, at the shapes of a model of 2048 columns, 64 a head, and 8192 columns of a
/// gate.
fn bench_decoder<E: Element>(isa: Isa) {
    println!("decoder, 512 tokens, {}", E::DTYPE.name());
    let (n, d, width) = (512, 2048, 8192);
    let values = |len: usize, stream: u64| -> Vec<E> {
        let x = random(len, stream);
        x.iter().map(|&v| E::narrow(v)).collect()
    };
    let (x, mut y) = (values(n * d, 1), values(n * d, 2));
    let positions: Vec<u32> = (0..n as u32).collect();
    let (mut cos, mut sin) = (vec![0.0; n * 32], vec![0.0; n * 32]);
    rope_table(&rope_inverse_frequencies(1e4, 64), 1.0, &mut cos, &mut sin);
    for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
        let rope = Rope {
            head_dim: 64,
            rotary_dim: 64,
            layout,
            cos: &cos,
            sin: &sin,
            positions: &positions,
        };
        bandwidth(&format!("rope {layout:?}"), n * d, || {
            rope_forward(isa, &rope, &mut y)
        });
    }
    let weight = random(d, 3);
    let norm = RmsNorm {
        weight: &weight,
        factor: RmsFactor::Weight,
        eps: 1e-6,
    };
    let mut rstd = vec![0.0; n];
    bandwidth("RMS norm", n * d, || {
        rms_norm(isa, &norm, &x, &mut y, &mut rstd)
    });
    let mut z = values(n * d, 4);
    bandwidth("RMS norm of a sum", n * d, || {
        let (x, residual, dropout) = (&mut z, &x[..], None);
        let sum = ResidualSum {
            x,
            residual: Some(residual),
            dropout,
        };
        rms_norm_of_sum(isa, &norm, sum, &mut y, &mut rstd)
    });
    bandwidth("RMS norm backward", n * d, || {
        rms_norm_backward(isa, &norm, &x, &rstd, &mut y)
    });
    let mut d_weight = vec![0.0; d];
    bandwidth("RMS norm weight", n * d, || {
        rms_norm_weight_grad(isa, &x, &rstd, &y, &mut d_weight)
    });
    let (both, mut d_x) = (values(2 * n * width, 5), values(2 * n * width, 6));
    let (x, d_y) = (GateUp::Halves(&both), values(n * width, 7));
    let mut y = d_y.clone();
    for kind in [Activation::Silu, Activation::GeluTanh] {
        bandwidth(&format!("gated {kind:?} forward"), n * width, || {
            gated_forward(isa, kind, x, width, &mut y)
        });
        let args = GatedBackward {
            kind,
            x,
            width,
            d_y: &d_y,
        };
        bandwidth(&format!("gated {kind:?} backward"), n * width, || {
            gated_backward(isa, &args, GateUpGradients::Halves(&mut d_x))
        });
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| {
        const PARTS: [&str; 5] = [
            "products",
            "attention",
            "disentangled",
            "elementwise",
            "decoder",
        ];
        let named = |a: &String| PARTS.contains(&a.as_str());
        !arguments.iter().any(named) || arguments.iter().any(|a| a == name)
    };
    let threads: Option<usize> = arguments.iter().find_map(|a| a.parse().ok());
    let isa = arguments
        .iter()
        .find_map(|a| Isa::from_name(a))
        .unwrap_or_else(Isa::best);
    assert!(isa.is_available(), "no `{}` here", isa.name());
    for threads in threads.map_or(vec![1, 2], |t| vec![t]) {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a thread pool");
        pool.install(|| {
            let one = fma_peak(isa);
            let peak = one * threads as f64;
            println!(
                "{} threads {threads}, FMA peak {one:.1} GFLOP/s a thread, a product in the L1 cache {:.1}",
                isa.name(),
                product_peak(isa)
            );
            if wanted("products") {
                bench_products(isa, peak);
                bench_outer(isa, peak);
                bench_packing(isa);
            }
            if wanted("attention") {
                bench_attention(isa, peak);
            }
            if wanted("disentangled") {
                bench_disentangled(isa, peak);
            }
            if wanted("elementwise") {
                bench_elementwise(isa);
            }
            if wanted("decoder") {
                bench_decoder::<f32>(isa);
                bench_decoder::<bf16>(isa);
            }
        });
    }
}
