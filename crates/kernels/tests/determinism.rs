//! The same bits whatever the threads, and for a row whatever its batch.

mod common;

use common::products::*;
use common::*;
use lowrank_kernels::product::*;
use lowrank_kernels::*;

/// What multiplies, and what the second operand is stored in.
const FORMS: [(Arithmetic, WeightFormat); 4] = [
    (Arithmetic::F32, WeightFormat::F32),
    (Arithmetic::F32, WeightFormat::Bf16),
    (Arithmetic::Bf16, WeightFormat::Bf16),
    (Arithmetic::Bf16, WeightFormat::Int8),
];

/// Runs `f` on 1 to 16 threads, however many cores there are, and demands the same bits.
fn check_threads(what: &str, f: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        bits(&pool.install(&f))
    };
    let one = run(1);
    for threads in [2, 4, 5, 8, 16] {
        assert_eq!(one, run(threads), "{what} on {threads} threads");
    }
}

#[test]
fn threads_change_nothing() {
    for isa in isas() {
        for (m, n, k) in [(430, 300, 600), (8, 300, 700), (300, 8, 300)] {
            let (a, b) = (random(m * k, 1), random(n * k, 2));
            let a = MatRef::new(&a, m, k);
            for (arithmetic, format) in FORMS {
                let b = Packed::of(isa, format, MatRef::new(&b, n, k));
                let b = b.panels(Side::Straight);
                check_threads("a product", || {
                    product_of(isa, &Product::new(arithmetic, a.into(), &b))
                });
                check_threads("an outer product", || {
                    let (a, x, alpha) = (a.into(), a.into(), 1.0);
                    let call = Outer {
                        arithmetic,
                        a,
                        x,
                        alpha,
                    };
                    let mut c = vec![0.5; k * k];
                    run_outer(isa, &call, &mut c);
                    c
                });
            }
        }
        for case in [
            AttentionCase::new(4, 32, &[(24, 24), (130, 130), (3, 3)]).with_dropout(),
            AttentionCase::new(2, 8, &[(1, 600), (200, 40)]),
            AttentionCase::new(2, 8, &[(1, 600), (140, 200)]).causal(Some(100)),
        ] {
            check_threads("attention", || run_attention::<f32>(isa, &case).concat());
        }
        let (n, d) = (100, 768);
        let (x, y, weight) = (random(n * d, 1), random(n * d, 2), random(d, 3));
        check_threads("norm", || {
            let (mut z, mut out) = (x.clone(), vec![0.0; n * d]);
            let (mut mean, mut rstd) = (vec![0.0; n], vec![0.0; n]);
            layer_norm_forward(
                isa,
                LayerNormForward {
                    x: &mut z,
                    residual: Some(&y),
                    dropout: Some(DROPOUT),
                    weight: &weight,
                    bias: &weight,
                    eps: 1e-5,
                    y: &mut out,
                    mean: &mut mean,
                    rstd: &mut rstd,
                },
            );
            let (mut d_weight, mut d_bias) = (vec![0.0; d], vec![0.0; d]);
            layer_norm_param_grads(isa, &z, &mean, &rstd, &y, [&mut d_weight, &mut d_bias]);
            layer_norm_backward(isa, &z, &mean, &rstd, &weight, &mut out);
            [z, out, mean, rstd, d_weight, d_bias].concat()
        });
        check_threads("column sum and norm of squares", || {
            let mut sums = vec![0.0; d];
            column_sum(isa, &x, d, &mut sums);
            let square = sum_of_squares(isa, &x);
            sums.extend([square as f32, (square - f64::from(square as f32)) as f32]);
            sums
        });
        check_threads("elementwise", || {
            let mut z = x.clone();
            activation_forward_in_place(isa, Activation::Gelu, &mut z);
            activation_backward(isa, Activation::Gelu, &x, &mut z);
            dropout_apply(isa, DROPOUT, &mut z);
            z
        });
    }
}

#[test]
fn threads_change_nothing_in_products_over_tokens_and_vocabularies() {
    for isa in isas() {
        // The gradient of a weight.
        for [rows, m, n] in [[777, 430, 300], [64, 31, 70], [2, 700, 33]] {
            let (d_y, x) = (narrow(&random(rows * m, 1)), random(rows * n, 2));
            check_threads("a product over tokens", || {
                let call = Outer {
                    arithmetic: Arithmetic::Bf16,
                    a: MatRef::new(&d_y, rows, m).into(),
                    x: MatRef::new(&x, rows, n).into(),
                    alpha: 1.0,
                };
                let mut c = vec![0.5; m * n];
                run_outer(isa, &call, &mut c);
                c
            });
        }
        // A depth that goes by blocks of the transposed form.
        let (m, n, k) = (530, 230, 6500);
        let (a, w) = (random(m * k, 1), random(k * n, 2));
        for (arithmetic, format) in FORMS {
            let b = Packed::of(isa, format, MatRef::new(&w, k, n));
            let b = b.panels(Side::Transposed);
            check_threads("a product over a vocabulary", || {
                product_of(
                    isa,
                    &Product::new(arithmetic, MatRef::new(&a, m, k).into(), &b),
                )
            });
        }
    }
}

#[test]
fn a_row_of_a_product_does_not_know_its_batch() {
    for isa in isas() {
        let (m, n, k) = (400, 70, 600);
        let (a, b, bias) = (random(m * k, 1), random(n * k, 2), random(n, 3));
        for (arithmetic, format) in FORMS {
            let b = Packed::of(isa, format, MatRef::new(&b, n, k));
            let b = b.panels(Side::Straight);
            let product = |a: MatRef| {
                let call = Product {
                    bias: Some(&bias),
                    alpha: 0.7,
                    ..Product::new(arithmetic, a.into(), &b)
                };
                bits(&product_of(isa, &call))
            };
            let a = MatRef::new(&a, m, k);
            let all = product(a);
            for (start, end) in [(0, 1), (1, 14), (5, 197), (17, 29), (399, 400), (200, 400)] {
                let some = product(a.rows_range(start..end));
                assert!(
                    all[start * n..end * n] == some[..],
                    "{start}..{end} in {arithmetic:?} from {format:?} on {}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn a_sequence_does_not_know_its_batch() {
    for isa in isas() {
        // The first sequence alone, and before others: the same rows, since indices count from the
        // first row.
        let alone = AttentionCase::new(3, 32, &[(40, 40)]).with_dropout();
        let among = AttentionCase::new(3, 32, &[(40, 40), (90, 90), (2, 2)]).with_dropout();
        for (alone, among) in run_attention::<f32>(isa, &alone)
            .iter()
            .zip(&run_attention::<f32>(isa, &among))
        {
            assert_eq!(bits(alone), bits(&among[..alone.len()]));
        }
    }
}

#[test]
fn threads_change_nothing_in_what_decoders_add() {
    let (n, width) = (300, 512);
    let (x, up, d_y) = (
        random(n * width, 1),
        random(n * width, 2),
        random(n * width, 3),
    );
    let (cos, sin) = (random(n * 16, 4), random(n * 16, 5));
    let positions: Vec<u32> = (0..n as u32).collect();
    for isa in isas() {
        for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
            let rope = Rope {
                head_dim: 64,
                rotary_dim: 32,
                layout,
                cos: &cos,
                sin: &sin,
                positions: &positions,
            };
            check_threads("rope", || {
                let mut y = x.clone();
                rope_forward(isa, &rope, &mut y);
                y
            });
        }
        let norm = RmsNorm {
            weight: &up[..width],
            factor: RmsFactor::OnePlusWeight,
            eps: 1e-6,
        };
        check_threads("RMS norm", || {
            let (mut z, mut y, mut rstd) = (x.clone(), vec![0.0; n * width], vec![0.0; n]);
            let sum = ResidualSum {
                x: &mut z,
                residual: Some(&up),
                dropout: Some(DROPOUT),
            };
            rms_norm_of_sum(isa, &norm, sum, &mut y, &mut rstd);
            let (mut d_weight, mut d_z) = (vec![0.0; width], d_y.clone());
            rms_norm_weight_grad(isa, &z, &rstd, &d_y, &mut d_weight);
            rms_norm_backward(isa, &norm, &z, &rstd, &mut d_z);
            [z, y, rstd, d_weight, d_z].concat()
        });
        check_threads("gated activations", || {
            let gates = GateUp::Separate { gate: &x, up: &up };
            let mut y = vec![0.0; n * width];
            gated_forward(isa, Activation::Silu, gates, width, &mut y);
            let args = GatedBackward {
                kind: Activation::Silu,
                x: gates,
                width,
                d_y: &d_y,
            };
            let mut d_x = vec![0.0; 2 * n * width];
            gated_backward(isa, &args, GateUpGradients::Halves(&mut d_x));
            [y, d_x].concat()
        });
    }
}
