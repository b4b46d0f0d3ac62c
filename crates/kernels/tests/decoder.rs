//! What decoders add, in f32 and bf16, on every instruction set: rotary positions, RMS norm, gated
//! activations.

mod common;

use common::*;
use lowrank_kernels::*;

/// Half a unit in the last place, relative to the value: what one rounding to the storage costs.
fn rounding<E: Element>() -> f64 {
    match E::DTYPE {
        DType::F32 => 2f64.powi(-24),
        DType::Bf16 => 2f64.powi(-8),
    }
}

fn narrow<E: Element>(x: &[f32]) -> Vec<E> {
    x.iter().map(|&v| E::narrow(v)).collect()
}

fn widen<E: Element>(x: &[E]) -> Vec<f32> {
    x.iter().map(|v| v.widen()).collect()
}

/// Each element within its bound, which NaN is not.
#[track_caller]
fn check_each(got: &[f32], want: impl Iterator<Item = (f64, f64)>, what: &str) {
    let mut n = 0;
    for (i, (&got, (want, bound))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= bound, "{what} at {i}: {got} instead of {want}");
        n += 1;
    }
    assert_eq!(n, got.len(), "{what}");
}

fn narrowed<E: Element>(x: &[f32]) -> Vec<u32> {
    bits(&widen(&narrow::<E>(x)))
}

/// A table of 9 positions and tokens at some of them.
struct Rotation {
    head_dim: usize,
    rotary_dim: usize,
    heads: usize,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    fn new(head_dim: usize, rotary_dim: usize, heads: usize, tokens: usize) -> Self {
        let frequencies = rope_inverse_frequencies(10_000.0, rotary_dim);
        let mut table = [vec![0.0; 9 * rotary_dim / 2], vec![0.0; 9 * rotary_dim / 2]];
        let [cos, sin] = &mut table;
        rope_table(&frequencies, 1.0, cos, sin);
        let [cos, sin] = table;
        Self {
            head_dim,
            rotary_dim,
            heads,
            positions: (0..tokens).map(|i| (i * 5 % 9) as u32).collect(),
            cos,
            sin,
        }
    }

    fn rope(&self, layout: RopeLayout) -> Rope<'_> {
        Rope {
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim,
            layout,
            cos: &self.cos,
            sin: &self.sin,
            positions: &self.positions,
        }
    }

    /// The rotation in plain f32, pair by pair.
    fn plain(&self, layout: RopeLayout, direction: f32, x: &[f32]) -> Vec<f32> {
        let (mut y, pairs) = (x.to_vec(), self.rotary_dim / 2);
        for (head, y) in y.chunks_exact_mut(self.head_dim).enumerate() {
            let position = self.positions[head / self.heads] as usize;
            for i in 0..pairs {
                let (a, b) = match layout {
                    RopeLayout::HalfSplit => (i, i + pairs),
                    RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                };
                let cos = self.cos[position * pairs + i];
                let sin = direction * self.sin[position * pairs + i];
                (y[a], y[b]) = (y[a] * cos - y[b] * sin, y[b] * cos + y[a] * sin);
            }
        }
        y
    }
}

fn rotations_agree<E: Element>() {
    let mut cases: Vec<Rotation> = [2, 4, 6, 8, 14, 16, 18, 30, 32, 34, 64, 66, 128, 130, 258]
        .map(|dim| Rotation::new(dim, dim, 3, 5))
        .into();
    cases.extend([
        Rotation::new(80, 32, 2, 7),
        Rotation::new(7, 4, 1, 3),
        Rotation::new(5, 0, 2, 2),
        Rotation::new(64, 64, 0, 3),
        Rotation::new(64, 64, 4, 0),
        // More rows than a task's.
        Rotation::new(64, 48, 8, 200),
    ]);
    for isa in isas() {
        for case in &cases {
            let len = case.positions.len() * case.heads * case.head_dim;
            for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
                let rope = case.rope(layout);
                let x = narrow::<E>(&random(len, 1));
                let wide_x = widen(&x);
                let what = format!("{rope:?} on {}", isa.name());
                let mut y = x.clone();
                rope_forward(isa, &rope, &mut y);
                let plain = case.plain(layout, 1.0, &wide_x);
                assert_eq!(bits(&widen(&y)), narrowed::<E>(&plain), "{what}");
                let want = reference::rope(&rope, &wide(&wide_x));
                // Three roundings of values up to √2.
                let bound = 3.0 * 2f64.powi(-24) * 2.0;
                check_each(&plain, want.into_iter().map(|v| (v, bound)), &what);

                let mut d_x = x.clone();
                rope_backward(isa, &rope, &mut d_x);
                let plain = case.plain(layout, -1.0, &wide_x);
                assert_eq!(bits(&widen(&d_x)), narrowed::<E>(&plain), "{what}");
                let want = reference::rope_backward(&rope, &wide(&wide_x));
                check_each(&plain, want.into_iter().map(|v| (v, bound)), &what);
            }
        }
    }
}

#[test]
fn rotations_agree_and_have_the_same_bits_everywhere() {
    rotations_agree::<f32>();
    rotations_agree::<bf16>();
}

/// Two tokens at positions 5 and 63, one head of 12 elements, 8 of them turned, theta 10000: x is
/// sin(0.37 i - 3.1), and the results are those of torch 2.15 and transformers 5.24 in f32, Phi-3's
/// partial half-split rotation and GLM's interleaved one.
#[test]
fn rotations_have_the_bits_of_transformers() {
    const X: [u32; 24] = [
        0xbd2a5096, 0xbeccd5e8, 0xbf345445, 0xbf69d576, 0xbf7fb0af, 0xbf72f0a7, 0xbf454f23,
        0xbef9f257, 0xbe0ee45b, 0x3e6972f2, 0x3f108c6b, 0x3f532bb8, 0x3f793649, 0x3f7d860f,
        0x3f5f85a1, 0x3f234488, 0x3ea1d4f3, 0xbd463305, 0xbed0074b, 0xbf359034, 0xbf6a89db,
        0xbf7fc521, 0xbf726261, 0xbf443167,
    ];
    const HALF_SPLIT: [u32; 24] = [
        0xbf7834fe, 0x3dd4bb9c, 0xbf2a3e13, 0xbf6934bf, 0xbe7949ee, 0xbf83269d, 0xbf4e1343,
        0xbefc4827, 0xbe0ee45b, 0x3e6972f2, 0x3f108c6b, 0x3f532bb8, 0x3f6827d4, 0x3f7db234,
        0x3f71e430, 0x3f2e5fee, 0x3ef2f6ac, 0xbd01f78b, 0x3e3e8fd0, 0xbf2aec8e, 0xbf6a89db,
        0xbf7fc521, 0xbf726261, 0xbf443167,
    ];
    const INTERLEAVED: [u32; 24] = [
        0xbeca75f6, 0xbd96c1c6, 0xbe389760, 0xbf91d4da, 0xbf733a8b, 0xbf7f6a66, 0xbf44ae8a,
        0xbefbeaa6, 0xbe0ee45b, 0x3e6972f2, 0x3f108c6b, 0x3f532bb8, 0x3f4b44c8, 0x3f91d3dd,
        0x3f5cbec5, 0x3f2700c0, 0x3e915c4f, 0x3e16a5aa, 0xbeb8c103, 0xbf3bc06e, 0xbf6a89db,
        0xbf7fc521, 0xbf726261, 0xbf443167,
    ];
    let mut table = [vec![0.0; 64 * 4], vec![0.0; 64 * 4]];
    let [cos, sin] = &mut table;
    rope_table(&rope_inverse_frequencies(10_000.0, 8), 1.0, cos, sin);
    for isa in isas() {
        for (layout, want) in [
            (RopeLayout::HalfSplit, HALF_SPLIT),
            (RopeLayout::Interleaved, INTERLEAVED),
        ] {
            let rope = Rope {
                head_dim: 12,
                rotary_dim: 8,
                layout,
                cos: &table[0],
                sin: &table[1],
                positions: &[5, 63],
            };
            let mut x = X.map(f32::from_bits);
            rope_forward(isa, &rope, &mut x);
            assert_eq!(bits(&x), want, "{layout:?} on {}", isa.name());
        }
    }
}

#[test]
fn a_table_holds_the_angles_of_its_positions() {
    let frequencies = rope_inverse_frequencies(500_000.0, 6);
    for (i, frequency) in frequencies.iter().enumerate() {
        let want = 500_000f64.powf(-(i as f64) / 3.0);
        // Three roundings, the first of an exponent that counts ln(500,000) times.
        assert!((f64::from(*frequency) / want - 1.0).abs() < 8e-7, "{i}");
    }
    // More entries than a task's.
    let (mut cos, mut sin) = (vec![0.0; 3 * 9000], vec![0.0; 3 * 9000]);
    rope_table(&frequencies, 0.5, &mut cos, &mut sin);
    for (at, (cos, sin)) in cos.iter().zip(&sin).enumerate() {
        let angle = f64::from((at / 3) as f32 * frequencies[at % 3]);
        assert!((f64::from(*cos) - 0.5 * angle.cos()).abs() < 4e-8, "{at}");
        assert!((f64::from(*sin) - 0.5 * angle.sin()).abs() < 4e-8, "{at}");
    }
}

#[test]
#[should_panic]
fn a_position_beyond_the_table_panics() {
    let mut case = Rotation::new(8, 8, 1, 2);
    case.positions[1] = 9;
    rope_forward(
        Isa::Scalar,
        &case.rope(RopeLayout::HalfSplit),
        &mut [0.0f32; 16],
    );
}

fn rms_norms_agree<E: Element>() {
    let shapes = LENGTHS.map(|d| (5, d)).into_iter();
    for isa in isas() {
        for (n, d) in shapes.clone().chain([(50, 768), (300, 128), (0, 8)]) {
            for factor in [RmsFactor::Weight, RmsFactor::OnePlusWeight] {
                rms_norm_agrees::<E>(isa, n, d, factor);
            }
        }
    }
}

fn rms_norm_agrees<E: Element>(isa: Isa, n: usize, d: usize, factor: RmsFactor) {
    let what = format!("{factor:?} {n} x {d} on {}", isa.name());
    let weight = random(d, 3);
    let norm = RmsNorm {
        weight: &weight,
        factor,
        eps: 1e-5,
    };
    let factors: Vec<f64> = match factor {
        RmsFactor::Weight => wide(&weight),
        RmsFactor::OnePlusWeight => weight.iter().map(|w| 1.0 + f64::from(*w)).collect(),
    };
    let z = narrow::<E>(&random(n * d, 1));
    let wide_z = wide(&widen(&z));
    let (mut y, mut rstd) = (narrow::<E>(&vec![f32::NAN; n * d]), vec![f32::NAN; n]);
    rms_norm(isa, &norm, &z, &mut y, &mut rstd);
    if d == 0 {
        return;
    }
    let eps = f64::from(1e-5f32);
    let (want, want_rstd) = reference::rms_norm(&wide_z, &factors, eps);
    // A sum of up to 768 squares, its root and quotient.
    let sums = 1e-6;
    let bounded = |v: &f64| (*v, v.abs() * (sums + rounding::<E>()));
    check_each(&rstd, want_rstd.iter().map(|v| (*v, v * sums)), &what);
    check_each(&widen(&y), want.iter().map(bounded), &what);
    let mut again = narrow::<E>(&vec![f32::NAN; n * d]);
    rms_norm_recompute(isa, &norm, &z, &rstd, &mut again);
    assert_eq!(bits(&widen(&again)), bits(&widen(&y)), "{what}, again");

    let d_y = narrow::<E>(&random(n * d, 5));
    let (want, want_weight) =
        reference::rms_norm_backward(&wide_z, &factors, &want_rstd, &wide(&widen(&d_y)));
    let mut d_weight = vec![0.0; d];
    rms_norm_weight_grad(isa, &z, &rstd, &d_y, &mut d_weight);
    check_close(&d_weight, &want_weight, 2e-6, &what);
    let mut d_z = d_y;
    rms_norm_backward(isa, &norm, &z, &rstd, &mut d_z);
    // d_z is a difference: its error is relative to the row's largest terms, which √d rstd bounds.
    let rows = want.iter().enumerate().map(|(i, v)| {
        let term = want_rstd[i / d] * (1.0 + factors[i % d].abs()) * (d as f64).sqrt();
        (*v, v.abs() * rounding::<E>() + term * 2e-6)
    });
    check_each(&widen(&d_z), rows, &what);
}

#[test]
fn rms_norms_agree_in_either_storage() {
    rms_norms_agree::<f32>();
    rms_norms_agree::<bf16>();
}

fn norms_of_sums_agree<E: Element>() {
    for isa in isas() {
        for (n, d) in [(3, 33), (5, 1), (70, 768), (0, 8)] {
            for dropout in [None, Some(DROPOUT), Some(Dropout { p: 0.0, ..DROPOUT })] {
                let (x, residual) = (random(n * d, 1), random(n * d, 2));
                let (x, residual) = (narrow::<E>(&x), narrow::<E>(&residual));
                let weight = random(d, 3);
                let norm = RmsNorm {
                    weight: &weight,
                    factor: RmsFactor::Weight,
                    eps: 1e-6,
                };
                let mut z = x.clone();
                if let Some(dropout) = dropout {
                    dropout_apply(isa, dropout, &mut z);
                }
                add_assign(isa, &mut z, &residual);
                let nan = || narrow::<E>(&vec![f32::NAN; n * d]);
                let (mut want, mut want_rstd) = (nan(), vec![f32::NAN; n]);
                rms_norm(isa, &norm, &z, &mut want, &mut want_rstd);

                let (mut sum, mut y, mut rstd) = (x, nan(), vec![f32::NAN; n]);
                let of_sum = ResidualSum {
                    x: &mut sum,
                    residual: Some(&residual),
                    dropout,
                };
                rms_norm_of_sum(isa, &norm, of_sum, &mut y, &mut rstd);
                let what = format!("{n} x {d} with {dropout:?} on {}", isa.name());
                for (got, want) in [(&sum, &z), (&y, &want)] {
                    assert_eq!(bits(&widen(got)), bits(&widen(want)), "{what}");
                }
                assert_eq!(bits(&rstd), bits(&want_rstd), "{what}");
            }
        }
    }
}

#[test]
fn the_norm_of_a_sum_has_the_bits_of_one_after_the_other() {
    norms_of_sums_agree::<f32>();
    norms_of_sums_agree::<bf16>();
}

/// gate, up and d_y [n, width].
fn gated_inputs<E: Element>(n: usize, width: usize) -> [Vec<E>; 3] {
    let gate: Vec<f32> = random(n * width, 1).iter().map(|v| v * 8.0).collect();
    [gate, random(n * width, 2), random(n * width, 3)].map(|x| narrow(&x))
}

/// Rows of `left` and `right` side by side.
fn side_by_side<E: Element>(left: &[E], right: &[E], width: usize) -> Vec<E> {
    let rows = left.chunks(width.max(1)).zip(right.chunks(width.max(1)));
    rows.flat_map(|(left, right)| [left, right].concat())
        .collect()
}

fn gates_agree<E: Element>() {
    // Errors of f and f' in f32, and those of bf16's shorter polynomials.
    let (value_error, slope_error) = match E::DTYPE {
        DType::F32 => (3e-7, 6e-7),
        DType::Bf16 => (1.4e-5, 2e-4),
    };
    let products = 2f64.powi(-23);
    let shapes = LENGTHS.map(|width| (3, width)).into_iter();
    for isa in isas() {
        for kind in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::Silu,
            Activation::Tanh,
        ] {
            for (n, width) in shapes.clone().chain([(90, 500), (0, 8)]) {
                let what = format!("{kind:?} {n} x {width} on {}", isa.name());
                let [gate, up, d_y] = gated_inputs::<E>(n, width);
                let nan = |times: usize| narrow::<E>(&vec![f32::NAN; times * n * width]);
                let separate = GateUp::Separate {
                    gate: &gate,
                    up: &up,
                };
                let mut y = nan(1);
                gated_forward(isa, kind, separate, width, &mut y);
                let at = |i: usize| [&gate, &up, &d_y].map(|x| f64::from(x[i].widen()));
                let want = (0..n * width).map(|i| {
                    let [gate, up, _] = at(i);
                    let want = reference::gated(kind, gate, up);
                    let error = value_error * gate.abs().max(1.0) * up.abs();
                    (want, error + want.abs() * (products + rounding::<E>()))
                });
                check_each(&widen(&y), want, &what);

                let args = |x| GatedBackward {
                    kind,
                    x,
                    width,
                    d_y: &d_y,
                };
                let (mut d_gate, mut d_up) = (nan(1), nan(1));
                let d_x = GateUpGradients::Separate {
                    d_gate: &mut d_gate,
                    d_up: &mut d_up,
                };
                gated_backward(isa, &args(separate), d_x);
                let each = |i: usize| {
                    let [gate, up, d_y] = at(i);
                    let (d_gate, d_up) = reference::gated_backward(kind, gate, up, d_y);
                    let slope = slope_error * (up * d_y).abs();
                    let value = value_error * gate.abs().max(1.0) * d_y.abs();
                    let last = |v: f64| v.abs() * (products + rounding::<E>());
                    let bound = |v: f64, error: f64| (v, error + last(v));
                    [bound(d_gate, slope), bound(d_up, value)]
                };
                check_each(&widen(&d_gate), (0..n * width).map(|i| each(i)[0]), &what);
                check_each(&widen(&d_up), (0..n * width).map(|i| each(i)[1]), &what);

                let both = side_by_side(&gate, &up, width);
                let mut same = nan(1);
                gated_forward(isa, kind, GateUp::Halves(&both), width, &mut same);
                assert_eq!(bits(&widen(&same)), bits(&widen(&y)), "{what}, halves");
                let mut d_both = nan(2);
                let d_x = GateUpGradients::Halves(&mut d_both);
                gated_backward(isa, &args(GateUp::Halves(&both)), d_x);
                let want = side_by_side(&d_gate, &d_up, width);
                assert_eq!(bits(&widen(&d_both)), bits(&widen(&want)), "{what}, halves");
            }
        }
    }
}

#[test]
fn gated_activations_agree_in_either_form() {
    gates_agree::<f32>();
    gates_agree::<bf16>();
}
