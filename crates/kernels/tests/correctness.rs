//! Every operation on every instruction set of the machine against the f64 reference.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;

use common::products::{Packed, rounded};
use common::*;
use lowrank_kernels::product::WeightFormat;
use lowrank_kernels::*;

/// f32 sums of up to a few thousand terms, relative to the largest result.
const TOLERANCE: f64 = 2e-6;

#[test]
fn the_comparator_can_fail() {
    let want = vec![1.0, -2.0, 0.0];
    assert!(find_fault(&[1.0, -2.0, 0.0], &want, 1e-6).is_none());
    assert!(find_fault(&[1.0, -2.0, 4.1e-6], &want, 1e-6).is_some());
    assert!(find_fault(&[1.0, f32::NAN, 0.0], &want, 1e-6).is_some());
    assert!(find_fault(&[1.0, f32::INFINITY, 0.0], &want, 1e-6).is_some());
    assert!(find_fault(&[1.0, -2.0], &want, 1e-6).is_some());
    assert!(
        find_fault(&[2e-9], &[0.0], 1e-6).is_some(),
        "the floor is absolute"
    );
}

#[test]
fn repack_transposed_agrees_with_pack() {
    for isa in isas() {
        for (n, k) in [
            (1, 1),
            (32, 32),
            (33, 31),
            (64, 96),
            (70, 100),
            (0, 5),
            (5, 0),
        ] {
            let b = random(n * k, 1);
            let mut packed = vec![f32::NAN; packed_len(n, k)];
            pack(isa, MatRef::new(&b, n, k), &mut packed);
            let mut want = vec![f32::NAN; packed_len(k, n)];
            pack(isa, MatRef::new(&b, n, k).transposed(), &mut want);
            let mut got = vec![f32::NAN; packed_len(k, n)];
            repack_transposed(isa, &packed, n, k, &mut got);
            assert_eq!(bits(&got), bits(&want), "[{n}, {k}] on {}", isa.name());
        }
    }
}

#[test]
fn activations_agree() {
    const KINDS: [Activation; 5] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ];
    for isa in isas() {
        for kind in KINDS {
            for n in LENGTHS.into_iter().chain([40_000]) {
                let x: Vec<f32> = random(n, 1).iter().map(|v| v * 8.0).collect();
                let d_y = random(n, 2);
                let what = format!("{kind:?} {n} on {}", isa.name());
                let mut y = vec![f32::NAN; n];
                activation_forward(isa, kind, &x, &mut y);
                let mut in_place = x.clone();
                activation_forward_in_place(isa, kind, &mut in_place);
                assert_eq!(bits(&y), bits(&in_place), "{what}");
                let mut d_x = d_y.clone();
                activation_backward(isa, kind, &x, &mut d_x);
                for i in 0..n {
                    let wide_x = f64::from(x[i]);
                    let value = reference::activation(kind, wide_x);
                    let slope = reference::activation_derivative(kind, wide_x);
                    let bound = 3e-7 * wide_x.abs().max(1.0);
                    assert!(
                        (f64::from(y[i]) - value).abs() <= bound,
                        "{what} at {wide_x}"
                    );
                    let d = slope * f64::from(d_y[i]);
                    // The derivative's own scale is 1; x φ(x) brings a few roundings of |x| <= 8.
                    assert!((f64::from(d_x[i]) - d).abs() <= 6e-7, "{what}' at {wide_x}");
                }
            }
        }
    }
}

#[test]
fn layer_norm_agrees() {
    for isa in isas() {
        for (n, d) in LENGTHS
            .map(|d| (5, d))
            .into_iter()
            .chain([(50, 768), (0, 8)])
        {
            if d == 0 {
                continue;
            }
            for (residual, dropout) in [(None, None), (Some(random(n * d, 2)), Some(DROPOUT))] {
                let x = random(n * d, 1);
                let (weight, bias) = (random(d, 3), random(d, 4));
                let d_y = random(n * d, 5);
                let mut z = x.clone();
                let (mut y, mut mean, mut rstd) =
                    (vec![f32::NAN; n * d], vec![0.0; n], vec![0.0; n]);
                layer_norm_forward(
                    isa,
                    LayerNormForward {
                        x: &mut z,
                        residual: residual.as_deref(),
                        dropout,
                        weight: &weight,
                        bias: &bias,
                        eps: 1e-5,
                        y: &mut y,
                        mean: &mut mean,
                        rstd: &mut rstd,
                    },
                );
                let want_z: Vec<f64> = (0..n * d)
                    .map(|i| {
                        let factor =
                            dropout.map_or(1.0, |p| reference::dropout_factor(p, i as u64));
                        f64::from(x[i]) * factor
                            + residual.as_ref().map_or(0.0, |r| f64::from(r[i]))
                    })
                    .collect();
                let eps = f64::from(1e-5f32);
                let want = reference::layer_norm(&want_z, &wide(&weight), &wide(&bias), eps);
                let what = format!("norm {n} x {d} on {}", isa.name());
                check_close(&z, &want.z, TOLERANCE, &what);
                check_close(&y, &want.y, 1e-5, &what);
                check_close(&mean, &want.mean, TOLERANCE, &what);
                check_close(&rstd, &want.rstd, 1e-5, &what);
                let mut same = [vec![f32::NAN; n * d], vec![f32::NAN; n], vec![f32::NAN; n]];
                let [same_y, same_mean, same_rstd] = &mut same;
                layer_norm(
                    isa,
                    LayerNorm {
                        z: &z,
                        weight: &weight,
                        bias: &bias,
                        eps: 1e-5,
                        y: same_y,
                        mean: same_mean,
                        rstd: same_rstd,
                    },
                );
                for (same, first) in same.iter().zip([&y, &mean, &rstd]) {
                    assert_eq!(bits(same), bits(first), "{what}");
                }
                let mut again = vec![f32::NAN; n * d];
                let (stats, params) = ([&mean[..], &rstd], [&weight[..], &bias]);
                layer_norm_recompute(isa, &z, stats, params, &mut again);
                assert_eq!(bits(&again), bits(&y), "{what}, again");
                let (d_z, d_weight, d_bias) =
                    reference::layer_norm_backward(&want, &wide(&weight), &wide(&d_y));
                let mut got = d_y.clone();
                layer_norm_backward(isa, &z, &mean, &rstd, &weight, &mut got);
                // Rows of one or two elements divide by a variance near 0: there the bound is the
                // norm's own error.
                if d > 2 {
                    check_close(&got, &d_z, 2e-5, &what);
                }
                let (mut got_weight, mut got_bias) = (vec![0.0; d], vec![0.0; d]);
                layer_norm_param_grads(
                    isa,
                    &z,
                    &mean,
                    &rstd,
                    &d_y,
                    [&mut got_weight, &mut got_bias],
                );
                check_close(&got_weight, &d_weight, 1e-5, &what);
                check_close(&got_bias, &d_bias, TOLERANCE, &what);
            }
        }
    }
}

#[test]
fn attention_agrees() {
    let mut cases = vec![
        AttentionCase::new(3, 32, &[(24, 24), (7, 7), (40, 40)]),
        AttentionCase::new(2, 64, &[(1, 33), (1, 5), (1, 128)]),
        AttentionCase::new(2, 8, &[(0, 4), (3, 0), (17, 31)]),
        AttentionCase::new(1, 24, &[(97, 97), (15, 16)]),
        AttentionCase::new(2, 80, &[(33, 33)]),
        AttentionCase::new(1, 5, &[(13, 65)]),
        AttentionCase::new(1, 64, &[(100, 513), (20, 512)]),
        AttentionCase::new(1, 16, &[(200, 1100)]),
    ];
    for length in LENGTHS {
        cases.push(AttentionCase::new(1, 16, &[(length, length)]));
        cases.push(AttentionCase::new(1, 16, &[(length, length)]).causal(None));
        cases.push(AttentionCase::new(1, 16, &[(length, length)]).causal(Some(3)));
    }
    // Causal: whole sequences, last queries only, windows shorter and longer than a tile, keys that
    // no query sees.
    cases.extend([
        AttentionCase::new(3, 32, &[(24, 24), (7, 7), (0, 0), (140, 140)]).causal(None),
        AttentionCase::new(2, 64, &[(1, 33), (3, 5), (50, 1128), (0, 4)]).causal(None),
        AttentionCase::new(1, 24, &[(1100, 1100)]).causal(None),
        AttentionCase::new(1, 24, &[(700, 700), (1, 300), (49, 800)]).causal(Some(256)),
        AttentionCase::new(1, 8, &[(100, 100)]).causal(Some(2)),
        AttentionCase::new(1, 8, &[(1200, 1300)]).causal(Some(577)),
        AttentionCase::new(1, 8, &[(97, 600)])
            .causal(None)
            .with_dropout(),
        AttentionCase::new(2, 8, &[(300, 300), (70, 70)])
            .causal(Some(90))
            .with_dropout(),
    ]);
    // Heads that share keys: of a few and of all, with every mask; capped scores, near the cap and
    // far below it.
    cases.extend([
        AttentionCase::new(6, 16, &[(24, 24), (7, 9), (0, 3), (3, 0), (130, 130)]).grouped(2),
        AttentionCase::new(4, 24, &[(140, 140), (1, 33)])
            .grouped(1)
            .causal(None),
        AttentionCase::new(6, 8, &[(300, 300), (49, 600)])
            .grouped(3)
            .causal(Some(90))
            .with_dropout(),
        AttentionCase::new(2, 32, &[(70, 70), (300, 300), (1, 1), (49, 49)]).near(64),
        AttentionCase::new(4, 24, &[(500, 500), (3, 3)])
            .grouped(2)
            .near(1)
            .with_dropout(),
        AttentionCase::new(2, 32, &[(70, 70), (5, 1100)]).capped(1.5),
        AttentionCase::new(4, 16, &[(100, 100)])
            .grouped(2)
            .capped(50.0)
            .causal(Some(40))
            .with_dropout(),
    ]);
    let with_dropout: Vec<AttentionCase> = [
        AttentionCase::new(2, 32, &[(24, 24), (70, 70)]),
        AttentionCase::new(1, 8, &[(97, 600)]),
    ]
    .into_iter()
    .map(AttentionCase::with_dropout)
    .collect();
    cases.extend(with_dropout);
    for isa in isas() {
        for case in &cases {
            let [out, lse, d_q, d_k, d_v] = run_attention::<f32>(isa, case);
            let (q, k, v) = attention_inputs(case);
            let (wide_q, wide_k, wide_v) = (wide(&q), wide(&k), wide(&v));
            let x = reference::Attention {
                shape: case.shape(),
                q: &wide_q,
                k: &wide_k,
                v: &wide_v,
            };
            let d_out = wide(&random(q.len(), 4));
            let (want_out, want_lse) = reference::attention(&x);
            let (want_d_q, want_d_k, want_d_v) = reference::attention_backward(&x, &d_out);
            let what = format!(
                "attention {} over {} x {} {:?} {:?} on {}",
                case.num_heads,
                case.num_key_value_heads,
                case.head_dim,
                case.q_offsets,
                case.mask,
                isa.name()
            );
            check_close(&out, &want_out, TOLERANCE, &what);
            let finite = |x: &f64| x.is_finite();
            let lse: Vec<f32> = lse.into_iter().filter(|x| x.is_finite()).collect();
            let want_lse: Vec<f64> = want_lse.into_iter().filter(finite).collect();
            check_close(&lse, &want_lse, TOLERANCE, &what);
            check_score_gradient(&d_q, &want_d_q, 5e-6, &format!("d_q of {what}"));
            check_score_gradient(&d_k, &want_d_k, 5e-6, &format!("d_k of {what}"));
            check_close(&d_v, &want_d_v, 5e-6, &format!("d_v of {what}"));
        }
    }
}

#[test]
fn the_choice_among_a_vocabulary_agrees() {
    for isa in isas() {
        for n in [2, 7, 15, 16, 17, 31, 33, 1000, 50257] {
            let what = format!("{n} values on {}", isa.name());
            let mut x: Vec<f32> = random(n, 3).iter().map(|v| v * 30.0).collect();
            let best = (0..n).fold(0, |best, i| if x[i] > x[best] { i } else { best });
            assert_eq!(argmax(isa, &x), best, "{what}");
            x[n - 1] = x[best];
            x[n / 2] = x[best];
            assert_eq!(argmax(isa, &x), best.min(n / 2), "{what}, several of them");
            x[0] = f32::NEG_INFINITY;
            let sum: f64 = wide(&x).iter().map(|v| v.exp()).sum();
            let want: Vec<f64> = wide(&x).iter().map(|v| v - sum.ln()).collect();
            log_softmax(isa, &mut x);
            assert_eq!(x[0], f32::NEG_INFINITY, "{what}");
            check_close(&x[1..], &want[1..], TOLERANCE, &what);
        }
    }
}

#[test]
fn cross_entropy_agrees() {
    for isa in isas() {
        for (c, smoothing) in [
            (1, 0.0),
            (2, 0.1),
            (3, 0.0),
            (15, 0.25),
            (16, 0.1),
            (17, 0.0),
            (33, 0.1),
            (1000, 0.0),
            (1000, 0.1),
        ] {
            let n = 7;
            let form = CrossEntropyForm {
                grad_scale: 0.125,
                smoothing,
            };
            let logits: Vec<f32> = random(n * c, 1).iter().map(|v| v * 20.0).collect();
            let mut labels: Vec<i64> = (0..n as i64).map(|i| i * 5 % c as i64).collect();
            labels[2] = -100;
            let mut d = logits.clone();
            let mut losses = vec![f32::NAN; n];
            cross_entropy(isa, &mut d, c, &labels, form, &mut losses);
            let smoothing = f64::from(smoothing);
            let (want, want_d) =
                reference::cross_entropy(&wide(&logits), c, &labels, 0.125, smoothing);
            let what = format!(
                "cross entropy of {c}, smoothing {smoothing}, on {}",
                isa.name()
            );
            check_close(&losses, &want, TOLERANCE, &what);
            check_close(&d, &want_d, TOLERANCE, &what);
            assert!(d[2 * c..3 * c].iter().all(|v| *v == 0.0), "{what}");

            // Elsewhere, narrower and in wider rows: the same but for one rounding, zeros behind.
            let width = c + 5;
            let mut elsewhere = vec![bf16::NAN; n * width];
            let (mut scratch, mut same) = (logits.clone(), vec![f32::NAN; n]);
            let out = &mut elsewhere;
            cross_entropy_into(isa, &mut scratch, &labels, form, &mut same, out);
            assert_eq!(same, losses, "{what}");
            for (row, d) in elsewhere.chunks(width).zip(d.chunks(c)) {
                let rounded: Vec<bf16> = d.iter().map(|&v| bf16::narrow(v)).collect();
                assert_eq!(row[..c], rounded, "{what}");
                assert!(row[c..].iter().all(|v| *v == bf16::ZERO), "{what}");
            }
        }
    }
}

#[test]
fn the_many_small_logits_of_a_large_vocabulary_count_in_the_loss() {
    let c = 262_144;
    let mut logits: Vec<f32> = random(c, 3).to_vec();
    logits[5] = 16.0;
    let form = CrossEntropyForm {
        grad_scale: 1.0,
        smoothing: 0.0,
    };
    let (want, want_d) = reference::cross_entropy(&wide(&logits), c, &[5], 1.0, 0.0);
    for isa in isas() {
        let (mut d, mut loss) = (logits.clone(), [f32::NAN]);
        cross_entropy(isa, &mut d, c, &[5], form, &mut loss);
        // Measured: 5e-8 to 5e-7 on vectors, 3e-6 on scalars; in one sum of f32 3e-4 there.
        let error = (f64::from(loss[0]) - want[0]).abs();
        assert!(error < 1e-5, "{error:e} on {}", isa.name());
        let error = (f64::from(d[5]) - want_d[5]).abs();
        assert!(error < 1e-5, "{error:e} on {}", isa.name());
    }
}

#[test]
fn other_losses_agree() {
    let n = 40;
    let x: Vec<f32> = random(n, 1).iter().map(|v| v * 30.0).collect();
    let targets = random(n, 2);
    for (kernel, define) in [
        (
            mse as fn(&mut [f32], &[f32], f32, &mut [f32]),
            reference::mse as fn(f64, f64, f64) -> (f64, f64),
        ),
        (bce_with_logits, reference::bce_with_logits),
    ] {
        let (mut d, mut losses) = (x.clone(), vec![f32::NAN; n]);
        kernel(&mut d, &targets, 0.5, &mut losses);
        let want: Vec<(f64, f64)> = (x.iter().zip(&targets))
            .map(|(&x, &t)| define(f64::from(x), f64::from(t), 0.5))
            .collect();
        let (want_losses, want_d): (Vec<f64>, Vec<f64>) = want.into_iter().unzip();
        check_close(&losses, &want_losses, TOLERANCE, "loss");
        check_close(&d, &want_d, TOLERANCE, "gradient");
    }
}

#[test]
fn adamw_agrees_over_steps() {
    for isa in isas() {
        for n in LENGTHS {
            let mut param = random(n, 1);
            let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
            let mut want: Vec<(f64, f64, f64)> =
                param.iter().map(|&p| (f64::from(p), 0.0, 0.0)).collect();
            for step in 1..=10 {
                let adamw = AdamW {
                    lr: 1e-2,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: 0.01,
                    step,
                };
                let grad = random(n, 10 + step);
                adamw_step(isa, &adamw, &mut param, &grad, &mut m, &mut v);
                for (state, &g) in want.iter_mut().zip(&grad) {
                    *state = reference::adamw(&adamw, state.0, f64::from(g), state.1, state.2);
                }
            }
            let what = format!("adamw {n} on {}", isa.name());
            let column = |f: fn(&(f64, f64, f64)) -> f64| want.iter().map(f).collect::<Vec<_>>();
            check_close(&param, &column(|s| s.0), TOLERANCE, &what);
            check_close(&m, &column(|s| s.1), TOLERANCE, &what);
            check_close(&v, &column(|s| s.2), TOLERANCE, &what);
        }
    }
}

#[test]
fn dropout_follows_its_definition() {
    for isa in isas() {
        for n in LENGTHS.into_iter().chain([40_001]) {
            let mut x = vec![1.0; n];
            dropout_apply(isa, DROPOUT, &mut x);
            let want: Vec<f64> = (0..n)
                .map(|i| reference::dropout_factor(DROPOUT, i as u64))
                .collect();
            check_close(&x, &want, 0.0, &format!("dropout {n} on {}", isa.name()));
            let mut y = vec![7.0; n];
            dropout_into(isa, DROPOUT, &vec![1.0; n], &mut y);
            assert_eq!(y, x, "into another slice");
        }
        let mut x = vec![1.0; 100_000];
        dropout_apply(isa, DROPOUT, &mut x);
        let kept = x.iter().filter(|v| **v != 0.0).count() as f64 / x.len() as f64;
        assert!((kept - 0.75).abs() < 0.006, "{kept}");
        for p in [0.0, 1.0] {
            let mut x = vec![1.0; 70_000];
            dropout_apply(isa, Dropout { p, ..DROPOUT }, &mut x);
            assert!(x.iter().all(|&v| v == 1.0 - p), "p = {p}");
        }
    }
}

/// A mask's elements come from halves of the words of one block: they must be as independent as any
/// others.
#[test]
fn dropped_elements_do_not_follow_one_another() {
    const N: usize = 1 << 20;
    for p in [0.1, 0.5, 0.9] {
        let mut x = vec![1.0; N];
        dropout_apply(isas()[0], Dropout { p, ..DROPOUT }, &mut x);
        let rate = 1.0 - f64::from(p);
        let kept: Vec<f64> = x
            .iter()
            .map(|&v| f64::from(u8::from(v != 0.0)) - rate)
            .collect();
        let variance = rate * (1.0 - rate);
        // The sum of N products of independent elements has this deviation; 5 of them are seen once
        // in two million.
        let deviation = variance * (N as f64).sqrt();
        for distance in [1, 2, 15, 16, 17, 32, 48, 64, 96, 112, 127, 128, 256] {
            let sum: f64 = kept.iter().zip(&kept[distance..]).map(|(a, b)| a * b).sum();
            assert!(
                sum.abs() < 5.0 * deviation,
                "{p} at {distance}: {}",
                sum / deviation
            );
        }
        // Kept elements make up for the dropped ones.
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / N as f64;
        let of_mean = (variance / N as f64).sqrt() / rate;
        assert!((mean - 1.0).abs() < 5.0 * of_mean, "{p}: mean {mean}");
    }
}

#[test]
fn sums_and_embedding_agree() {
    for isa in isas() {
        for n in LENGTHS.into_iter().chain([100_003]) {
            let (x, y) = (random(n, 1), random(n, 2));
            let what = format!("{n} on {}", isa.name());
            let mut sum = x.clone();
            add_assign(isa, &mut sum, &y);
            let want: Vec<f64> = x.iter().zip(&y).map(|(a, b)| f64::from(a + b)).collect();
            check_close(&sum, &want, 0.0, &what);
            let mut scaled = x.clone();
            scale(isa, &mut scaled, 0.3);
            let want: Vec<f64> = x.iter().map(|a| f64::from(a * 0.3)).collect();
            check_close(&scaled, &want, 0.0, &what);
            let want: f64 = wide(&x).iter().map(|v| v * v).sum();
            assert!(
                (sum_of_squares(isa, &x) - want).abs() <= 1e-6 * want,
                "{what}"
            );
            assert!(all_finite(isa, &x));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                if let Some(last) = n.checked_sub(1) {
                    let mut x = x.clone();
                    x[last] = bad;
                    assert!(!all_finite(isa, &x), "{what}");
                }
            }
            if n > 0 {
                let x = random(37 * n.min(100), 3);
                let cols = n.min(100);
                let mut sums = vec![0.0; cols];
                column_sum(isa, &x, cols, &mut sums);
                check_close(
                    &sums,
                    &reference::column_sum(&wide(&x), cols),
                    TOLERANCE,
                    &what,
                );
            }
        }
        let (rows, d) = (9, 19);
        let table = random(rows * d, 4);
        let ids = [3u32, 8, 3, 0];
        let mut out = vec![f32::NAN; ids.len() * d];
        let rows_of = TableRows {
            table: Table::Rows(Values::F32(&table)),
            ids: &ids,
        };
        embedding_gather(isa, &[rows_of], d, &mut out);
        let want = reference::embedding(&wide(&table), d, &ids);
        check_close(&out, &want, 0.0, "gather");
        let mut other = vec![f32::NAN; out.len()];
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let packed = Packed::of(isa, format, MatRef::new(&table, rows, d));
            let of_packed = TableRows {
                table: Table::Packed(packed.weights()),
                ids: &ids,
            };
            embedding_gather(isa, &[of_packed], d, &mut other);
            match format {
                WeightFormat::F32 => assert_eq!(bits(&other), bits(&out)),
                WeightFormat::Bf16 => assert_eq!(other, rounded(&out)),
                WeightFormat::Blocks(_) => unreachable!("rows of blocks have a test of their own"),
                WeightFormat::Int8 => {
                    let int8 = reference::int8_weight(&table, d);
                    let want = reference::embedding(&int8, d, &ids);
                    check_close(&other, &want, TOLERANCE, "gather of int8");
                }
            }
        }
        embedding_gather(isa, &[rows_of, rows_of], d, &mut out);
        let want: Vec<f64> = want.iter().map(|v| v * 2.0).collect();
        check_close(&out, &want, 0.0, "gather of two tables");
        let mut d_table = vec![0.0; rows * d];
        embedding_scatter_add(d, &ids, &out, &mut d_table);
        let want = reference::embedding_backward(rows, d, &ids, &want);
        check_close(&d_table, &want, TOLERANCE, "scatter");
    }
}
