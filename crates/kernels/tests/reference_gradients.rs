//! The reference's gradients against finite differences in f64, along random directions with random
//! cotangents.

mod common;

use common::*;
use lowrank_kernels::reference::{self, Attention};
use lowrank_kernels::*;

/// <cotangent, f(x + e u) - f(x - e u)> / 2e against <gradient, u>, for several directions u.
fn check_gradient(
    what: &str,
    x: &[f64],
    cotangent: &[f64],
    gradient: &[f64],
    f: impl Fn(&[f64]) -> Vec<f64>,
) {
    const STEP: f64 = 1e-5;
    for direction in 0..4 {
        let u = wide(&random(x.len(), 100 + direction));
        let moved = |e: f64| -> f64 {
            let at: Vec<f64> = x.iter().zip(&u).map(|(x, u)| x + e * u).collect();
            f(&at).iter().zip(cotangent).map(|(y, c)| y * c).sum()
        };
        let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let product: f64 = gradient.iter().zip(&u).map(|(g, u)| g * u).sum();
        let close = (difference - product).abs() <= 1e-7 * product.abs().max(1.0);
        assert!(
            close,
            "{what}: {difference} by differences, {product} by formula"
        );
    }
}

fn values(n: usize, stream: u64) -> Vec<f64> {
    wide(&random(n, stream))
}

#[test]
fn products() {
    let [m, n, k] = [5, 4, 6];
    let (a, b, d_c) = (values(m * k, 1), values(n * k, 2), values(m * n, 3));
    let (d_a, d_b) = reference::gemm_backward([m, n, k], &a, &b, 0.7, &d_c);
    let zeros = vec![0.0; m * n];
    let product = |a: &[f64], b: &[f64]| reference::gemm([m, n, k], a, b, 0.7, None, &zeros);
    check_gradient("a", &a, &d_c, &d_a, |a| product(a, &b));
    check_gradient("b", &b, &d_c, &d_b, |b| product(&a, b));
}

#[test]
fn activations() {
    for kind in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ] {
        let x: Vec<f64> = values(50, 1).iter().map(|v| v * 4.0).collect();
        let d_y = values(50, 2);
        let d_x: Vec<f64> = x
            .iter()
            .zip(&d_y)
            .map(|(x, d)| reference::activation_derivative(kind, *x) * d)
            .collect();
        check_gradient(&format!("{kind:?}"), &x, &d_y, &d_x, |x| {
            x.iter().map(|x| reference::activation(kind, *x)).collect()
        });
    }
}

#[test]
fn erf_is_that_of_libm() {
    for i in -700..=700 {
        let x = f64::from(i) / 100.0;
        // Measured: 2e-15, from the rounding of e^(-x²).
        assert!((reference::erf(x) - libm::erf(x)).abs() <= 1e-14, "{x}");
    }
}

#[test]
fn layer_norm() {
    let (n, d) = (4, 9);
    let (z, weight, bias) = (values(n * d, 1), values(d, 2), values(d, 3));
    let d_y = values(n * d, 4);
    let norm = reference::layer_norm(&z, &weight, &bias, 1e-5);
    let (d_z, d_weight, d_bias) = reference::layer_norm_backward(&norm, &weight, &d_y);
    let y = |z: &[f64], w: &[f64], b: &[f64]| reference::layer_norm(z, w, b, 1e-5).y;
    check_gradient("z", &z, &d_y, &d_z, |z| y(z, &weight, &bias));
    check_gradient("weight", &weight, &d_y, &d_weight, |w| y(&z, w, &bias));
    check_gradient("bias", &bias, &d_y, &d_bias, |b| y(&z, &weight, b));
}

#[test]
fn attention() {
    for case in [
        AttentionCase::new(2, 5, &[(3, 4), (6, 6), (1, 7)]),
        AttentionCase::new(2, 5, &[(3, 4), (6, 6), (1, 7)]).with_dropout(),
        AttentionCase::new(2, 5, &[(3, 4), (6, 6), (1, 7)]).causal(None),
        AttentionCase::new(4, 5, &[(3, 4), (6, 6), (1, 7)]).grouped(2),
        AttentionCase::new(2, 5, &[(6, 6), (1, 1)]).near(2),
        AttentionCase::new(2, 5, &[(3, 4), (6, 6), (1, 7)]).capped(1.5),
        AttentionCase::new(2, 5, &[(3, 4), (6, 6), (1, 7)])
            .causal(Some(2))
            .with_dropout(),
    ] {
        let (q_size, kv_size) = case.sizes();
        let (q, k, v) = (values(q_size, 1), values(kv_size, 2), values(kv_size, 3));
        let d_out = values(q_size, 4);
        let shape = case.shape();
        let make =
            |q: &[f64], k: &[f64], v: &[f64]| reference::attention(&Attention { shape, q, k, v }).0;
        let x = Attention {
            shape,
            q: &q,
            k: &k,
            v: &v,
        };
        let (d_q, d_k, d_v) = reference::attention_backward(&x, &d_out);
        check_gradient("q", &q, &d_out, &d_q, |q| make(q, &k, &v));
        check_gradient("k", &k, &d_out, &d_k, |k| make(&q, k, &v));
        check_gradient("v", &v, &d_out, &d_v, |v| make(&q, &k, v));
    }
}

#[test]
fn losses() {
    let (n, c) = (6, 5);
    let labels = [0, 4, -100, 2, 1, 3];
    let logits = values(n * c, 1);
    for smoothing in [0.0, 0.1] {
        let (_, d) = reference::cross_entropy(&logits, c, &labels, 1.0, smoothing);
        check_gradient("cross entropy", &logits, &[1.0; 6], &d, |x| {
            reference::cross_entropy(x, c, &labels, 1.0, smoothing).0
        });
    }
    let targets = values(30, 2);
    for define in [
        reference::mse as fn(f64, f64, f64) -> (f64, f64),
        reference::bce_with_logits,
    ] {
        let each = |x: &[f64]| -> Vec<(f64, f64)> {
            x.iter()
                .zip(&targets)
                .map(|(x, t)| define(*x, *t, 1.0))
                .collect()
        };
        let d: Vec<f64> = each(&logits).iter().map(|pair| pair.1).collect();
        check_gradient("elementwise loss", &logits, &[1.0; 30], &d, |x| {
            each(x).iter().map(|pair| pair.0).collect()
        });
    }
}

#[test]
fn embedding() {
    let (rows, d, ids) = (5, 3, [1u32, 4, 1, 0]);
    let (table, d_out) = (values(rows * d, 1), values(ids.len() * d, 2));
    let d_table = reference::embedding_backward(rows, d, &ids, &d_out);
    check_gradient("table", &table, &d_out, &d_table, |table| {
        reference::embedding(table, d, &ids)
    });
}

#[test]
fn rotations() {
    let (head_dim, rotary_dim, positions) = (7, 4, [3u32, 0, 5]);
    let (mut cos, mut sin) = ([0.0; 12], [0.0; 12]);
    let frequencies = rope_inverse_frequencies(10.0, rotary_dim);
    rope_table(&frequencies, 1.25, &mut cos, &mut sin);
    for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
        let rope = Rope {
            head_dim,
            rotary_dim,
            layout,
            cos: &cos,
            sin: &sin,
            positions: &positions,
        };
        let (x, d_y) = (values(3 * 2 * head_dim, 1), values(3 * 2 * head_dim, 2));
        let d_x = reference::rope_backward(&rope, &d_y);
        let what = format!("{layout:?}");
        check_gradient(&what, &x, &d_y, &d_x, |x| reference::rope(&rope, x));
    }
}

#[test]
fn rms_norm() {
    let (n, d) = (4, 9);
    let (z, factor, d_y) = (values(n * d, 1), values(d, 2), values(n * d, 3));
    let (_, rstd) = reference::rms_norm(&z, &factor, 1e-5);
    let (d_z, d_factor) = reference::rms_norm_backward(&z, &factor, &rstd, &d_y);
    let y = |z: &[f64], factor: &[f64]| reference::rms_norm(z, factor, 1e-5).0;
    check_gradient("z", &z, &d_y, &d_z, |z| y(z, &factor));
    check_gradient("factor", &factor, &d_y, &d_factor, |f| y(&z, f));
}

#[test]
fn gated_activations() {
    for kind in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ] {
        let gate: Vec<f64> = values(50, 1).iter().map(|v| v * 4.0).collect();
        let (up, d_y) = (values(50, 2), values(50, 3));
        let (d_gate, d_up): (Vec<f64>, Vec<f64>) = (0..50)
            .map(|i| reference::gated_backward(kind, gate[i], up[i], d_y[i]))
            .unzip();
        let y = |gate: &[f64], up: &[f64]| -> Vec<f64> {
            let pairs = gate.iter().zip(up);
            pairs.map(|(g, u)| reference::gated(kind, *g, *u)).collect()
        };
        check_gradient(&format!("gate of {kind:?}"), &gate, &d_y, &d_gate, |g| {
            y(g, &up)
        });
        check_gradient(&format!("up of {kind:?}"), &up, &d_y, &d_up, |u| {
            y(&gate, u)
        });
    }
}
