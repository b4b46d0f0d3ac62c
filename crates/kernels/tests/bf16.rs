//! The kernels on bf16 operands, on every instruction set of the machine, against the f64 reference of the very same
//! rounded operands: only the order of f32 sums and the last rounding differ.

mod common;

use common::*;
use lowrank_kernels::*;

/// f32 sums of up to a few thousand terms, relative to the largest result.
const TOLERANCE: f64 = 2e-6;
/// Half a unit in the last place of bf16, relative to the largest result: one rounding.
const ROUNDED: f64 = 1.0 / 256.0;

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&v| bf16::from_f32(v)).collect()
}

fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|v| v.to_f32()).collect()
}

/// x rounded to bf16, in f64.
fn rounded(x: &[f32]) -> Vec<f64> {
    wide(&widen(&narrow(x)))
}

fn shapes() -> Vec<[usize; 3]> {
    let mut shapes = vec![
        [13, 33, 257],
        [12, 32, 256],
        [24, 64, 96],
        [11, 97, 383],
        [193, 65, 64],
        [97, 257, 20],
        [25, 289, 770],
        [200, 8, 300],
    ];
    for length in LENGTHS {
        shapes.push([length, 33, 17]);
        shapes.push([13, length, 18]);
        shapes.push([13, 33, length]);
        shapes.push([length, length, length]);
    }
    shapes
}

#[test]
fn conversions_are_those_of_the_type_on_every_bit_pattern() {
    // Every bf16, and f32 values about every rounding edge: halves, their neighbours, infinities and NaN.
    let values: Vec<f32> = (0..=u16::MAX)
        .flat_map(|upper| {
            [0x0000u32, 0x0001, 0x7fff, 0x8000, 0x8001, 0xffff]
                .map(|lower| (u32::from(upper) << 16) | lower)
        })
        .map(f32::from_bits)
        .collect();
    for isa in isas() {
        let mut got = vec![bf16::ZERO; values.len()];
        convert(isa, &mut got, &values);
        for (&x, &y) in values.iter().zip(&got) {
            let want = bf16::from_f32(x);
            // The machine's own conversion takes numbers below the normal range for zero.
            let tiny = x.abs() < f32::MIN_POSITIVE && y.to_f32() == 0.0;
            let same = y.to_bits() == want.to_bits() || (x.is_nan() && y.is_nan()) || tiny;
            assert!(
                same,
                "{x:e} ({:08x}) becomes {y:?} on {}, expected {want:?}",
                x.to_bits(),
                isa.name()
            );
        }
        let halves: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut back = vec![0.0f32; halves.len()];
        convert(isa, &mut back, &halves);
        assert!(
            halves
                .iter()
                .zip(&back)
                .all(|(h, b)| h.to_f32().to_bits() == b.to_bits() || h.is_nan())
        );
    }
}

#[test]
fn packing_is_undone_by_unpacking() {
    for isa in isas() {
        for [_, n, k] in shapes() {
            let b = random(n * k, 2);
            let want = widen(&narrow(&b));
            let b_t: Vec<f32> = (0..n * k)
                .map(|i| b[i % n.max(1) * k + i / n.max(1)])
                .collect();
            let narrow_b = narrow(&b);
            let mut packed = vec![bf16::NAN; packed_bf16_len(n, k)];
            let mut unpacked = vec![f32::NAN; n * k];
            let mut check = |packed: &[bf16], what: &str| {
                unpack_bf16(packed, n, k, &mut unpacked);
                assert_eq!(unpacked, want, "{what} [{n}, {k}] on {}", isa.name());
            };
            pack_bf16(isa, MatRef::new(&b, n, k), &mut packed);
            check(&packed, "f32 rows");
            pack_bf16(isa, MatRef::new(&b_t, k, n).transposed(), &mut packed);
            check(&packed, "f32 columns");
            pack_bf16(isa, MatRef::new(&narrow_b, n, k), &mut packed);
            check(&packed, "bf16 rows");
        }
    }
}

/// One product in every form of its operands. Returns what a f64 sum over the rounded operands gives.
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    h: Vec<f32>,
    g: Vec<f32>,
    start: Vec<f32>,
}

const RANK: usize = 5;
const SCALE: f32 = 0.75;

impl Case {
    fn new([m, n, k]: [usize; 3]) -> Self {
        Self {
            m,
            n,
            k,
            a: widen(&narrow(&random(m * k, 1))),
            b: random(n * k, 2),
            bias: random(n, 3),
            h: random(m * RANK, 4),
            g: random(n * RANK, 5),
            start: widen(&narrow(&random(m * n, 6))),
        }
    }

    fn want(&self, low_rank: bool) -> Vec<f64> {
        let (m, n, k) = (self.m, self.n, self.k);
        let bias = wide(&self.bias);
        let b = rounded(&self.b);
        let base = reference::gemm(
            [m, n, k],
            &wide(&self.a),
            &b,
            1.0,
            Some(&bias),
            &vec![0.0; m * n],
        );
        if !low_rank {
            return base;
        }
        let scaled: Vec<f32> = self.h.iter().map(|h| h * SCALE).collect();
        reference::gemm(
            [m, n, RANK],
            &rounded(&scaled),
            &rounded(&self.g),
            1.0,
            None,
            &base,
        )
    }

    fn packed(&self, isa: Isa, transposed: bool) -> Vec<bf16> {
        let view = MatRef::new(&self.b, self.n, self.k);
        let (view, len) = if transposed {
            (view.transposed(), packed_bf16_len(self.k, self.n))
        } else {
            (view, packed_bf16_len(self.n, self.k))
        };
        let mut packed = vec![bf16::NAN; len];
        pack_bf16(isa, view, &mut packed);
        packed
    }

    fn run<A: Element, C: Element>(
        &self,
        isa: Isa,
        a: &[A],
        [transposed, low_rank]: [bool; 2],
        epilogue: Epilogue<C>,
    ) {
        let packed = self.packed(isa, transposed);
        let mut g_packed = vec![bf16::NAN; packed_bf16_len(self.n, RANK)];
        pack_bf16(isa, MatRef::new(&self.g, self.n, RANK), &mut g_packed);
        let product = GemmBf16 {
            a: MatRef::new(a, self.m, self.k),
            alpha: 1.0,
            b: if transposed {
                PackedBf16::Transposed(&packed)
            } else {
                PackedBf16::Rows(&packed)
            },
            n: self.n,
            low_rank: low_rank.then_some(LowRank {
                h: MatRef::new(&self.h, self.m, RANK),
                g_packed: &g_packed,
                scale: SCALE,
            }),
            bias: Some(&self.bias),
        };
        gemm_bf16(isa, &product, epilogue);
    }
}

/// Deeper than the transposed form makes panels of at once, by more than a whole block: many rows, and many columns.
const DEEP: [[usize; 3]; 2] = [[515, 3, 6147], [7, 200, 7168]];

#[test]
fn products_agree() {
    for isa in isas() {
        for shape in shapes().into_iter().chain(DEEP) {
            let case = Case::new(shape);
            let what = format!("{shape:?} on {}", isa.name());
            let narrow_a = narrow(&case.a);
            let len = case.m * case.n;
            // Rounding errors of one chain of sums grow with it. Measured worst 2.8e-6 at a depth of 7168, of the largest.
            let tolerance = TOLERANCE * (case.k as f64 / 2048.0).max(1.0);
            for form in [[false, false], [true, false], [false, true], [true, true]] {
                let want = case.want(form[1]);
                let mut c = vec![f32::NAN; len];
                case.run(isa, &narrow_a, form, Epilogue::Store(&mut c));
                check_close(&c, &want, tolerance, &what);
                let mut from_f32 = vec![f32::NAN; len];
                case.run(isa, &case.a, form, Epilogue::Store(&mut from_f32));
                assert_eq!(
                    bits(&c),
                    bits(&from_f32),
                    "{what}: a read in place or converted"
                );
                let mut stored = vec![bf16::NAN; len];
                case.run(isa, &narrow_a, form, Epilogue::Store(&mut stored));
                assert_eq!(stored, narrow(&c), "{what}: one rounding");
            }
            let mut sum = narrow(&case.start);
            case.run(isa, &narrow_a, [true, true], Epilogue::Add(&mut sum));
            let want: Vec<f64> = case
                .want(true)
                .iter()
                .zip(&case.start)
                .map(|(v, s)| v + f64::from(*s))
                .collect();
            check_close(&widen(&sum), &want, ROUNDED, &what);
        }
    }
}

#[test]
fn transposed_operands_give_the_bits_of_their_copies() {
    let mut all = shapes();
    // The gradient of a weight: more rows than a task's, and more panels than one.
    all.extend([[205, 70, 50], [23, 33, 301], [24, 32, 64]]);
    for isa in isas() {
        for shape in all.clone() {
            let case = Case::new(shape);
            let what = format!("{shape:?} on {}", isa.name());
            let turned: Vec<f32> = (0..case.k * case.m)
                .map(|i| case.a[i % case.m * case.k + i / case.m])
                .collect();
            let narrow_turned = narrow(&turned);
            let packed = case.packed(isa, false);
            let mut c = case.start.clone();
            let mut want = case.start.clone();
            fn product<'a, A: Element>(
                a: MatRef<'a, A>,
                packed: &'a [bf16],
                n: usize,
            ) -> GemmBf16<'a, A> {
                GemmBf16 {
                    a,
                    alpha: 0.5,
                    b: PackedBf16::Rows(packed),
                    n,
                    low_rank: None,
                    bias: None,
                }
            }
            let rows = MatRef::new(&case.a, case.m, case.k);
            gemm_bf16(
                isa,
                &product(rows, &packed, case.n),
                Epilogue::Add(&mut want),
            );
            let view = MatRef::new(&narrow_turned, case.k, case.m).transposed();
            gemm_bf16(isa, &product(view, &packed, case.n), Epilogue::Add(&mut c));
            assert_eq!(bits(&c), bits(&want), "{what}");
            let mut c = case.start.clone();
            let view = MatRef::new(&turned, case.k, case.m).transposed();
            gemm_bf16(isa, &product(view, &packed, case.n), Epilogue::Add(&mut c));
            assert_eq!(bits(&c), bits(&want), "{what}: from f32");
            let (a, b) = (wide(&case.a), rounded(&case.b));
            let sums = reference::gemm(shape, &a, &b, 0.5, None, &wide(&case.start));
            check_close(&c, &sums, TOLERANCE, &what);
        }
    }
}

#[test]
fn epilogues_agree() {
    for isa in isas() {
        for shape in [[25, 67, 34], [12, 32, 64], [3, 16, 7]] {
            let case = Case::new(shape);
            let (len, narrow_a) = (case.m * case.n, narrow(&case.a));
            for kind in [
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::Relu,
                Activation::Silu,
                Activation::Tanh,
            ] {
                let what = format!("{kind:?} {shape:?} on {}", isa.name());
                let (mut pre, mut c) = (vec![bf16::NAN; len], vec![bf16::NAN; len]);
                let epilogue = Epilogue::Activate {
                    kind,
                    pre: Some(&mut pre),
                    c: &mut c,
                };
                case.run(isa, &narrow_a, [false, true], epilogue);
                check_close(&widen(&pre), &case.want(true), ROUNDED, &what);
                let want: Vec<f64> = pre
                    .iter()
                    .map(|v| reference::activation(kind, f64::from(v.to_f32())))
                    .collect();
                check_close(&widen(&c), &want, ROUNDED, &what);

                let mut d = vec![f32::NAN; len];
                let start = &case.start;
                let epilogue = Epilogue::ActivateBackward {
                    kind,
                    pre: start,
                    c: &mut d,
                };
                case.run(isa, &narrow_a, [true, false], epilogue);
                let want: Vec<f64> = case
                    .want(false)
                    .iter()
                    .zip(start)
                    .map(|(v, &x)| v * reference::activation_derivative(kind, f64::from(x)))
                    .collect();
                check_close(&d, &want, TOLERANCE, &what);
            }
        }
    }
}

#[test]
fn gradients_of_factors_agree() {
    for isa in isas() {
        for [m, n, r] in [
            [40, 96, 8],
            [33, 49, 8],
            [7, 47, 3],
            [20, 130, 16],
            [5, 9, 13],
            [0, 4, 2],
            [64, 768, 4],
            [20, 96, 2],
            [9, 100, 11],
        ] {
            let (a, x, start) = (random(m * r, 1), random(m * n, 2), random(r * n, 3));
            let narrow_x = narrow(&x);
            let a_t = reference::transpose(&wide(&a), m, r);
            let x_t = reference::transpose(&rounded(&x), m, n);
            let want = reference::gemm([r, n, m], &a_t, &x_t, 0.5, None, &wide(&start));
            let what = format!("{m} x {n} x {r} on {}", isa.name());
            let mut c = start.clone();
            outer_add(
                isa,
                MatRef::new(&a, m, r),
                MatRef::new(&narrow_x, m, n),
                0.5,
                &mut c,
                OuterLayout::Rows,
            );
            check_close(&c, &want, TOLERANCE, &what);
            let mut c: Vec<f32> = (0..r * n).map(|i| start[i % r * n + i / r]).collect();
            let wide_x = widen(&narrow_x);
            outer_add(
                isa,
                MatRef::new(&a, m, r),
                MatRef::new(&wide_x, m, n),
                0.5,
                &mut c,
                OuterLayout::Transposed,
            );
            check_close(&c, &reference::transpose(&want, r, n), TOLERANCE, &what);
        }
    }
}

/// Probabilities and gradients of scores are rounded to bf16 before they meet the other operand, and results are: a few
/// units of 2^-9 of the largest value (measured: at most 1.1%).
const ATTENTION: f64 = 1.5e-2;
/// The same, root of the mean square over that of the wanted values (measured: at most 0.56%).
const ATTENTION_RMS: f64 = 1e-2;

fn rms_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = got
        .iter()
        .zip(want)
        .map(|(&g, &w)| square(f64::from(g) - f64::from(w)))
        .sum();
    let size: f64 = want.iter().map(|&w| square(f64::from(w))).sum();
    (error / size.max(1e-12)).sqrt()
}

fn attention_cases() -> Vec<AttentionCase> {
    let lengths: Vec<(usize, usize)> = [1, 2, 3, 15, 16, 17, 33, 64, 96, 97, 130]
        .map(|n| (n, n))
        .to_vec();
    let mut cases = vec![
        AttentionCase::new(3, 64, &lengths),
        AttentionCase::new(2, 7, &lengths),
        AttentionCase::new(2, 48, &[(1, 33), (0, 5), (4, 0), (1, 300)]),
        AttentionCase::new(1, 32, &[(300, 300), (110, 520)]),
        AttentionCase::new(2, 16, &lengths).causal(None),
        AttentionCase::new(2, 20, &[(150, 150), (3, 290), (1, 7)]).causal(Some(70)),
    ];
    cases.extend([
        AttentionCase::new(6, 16, &lengths).grouped(2),
        AttentionCase::new(4, 20, &[(150, 150), (3, 290), (0, 5)])
            .grouped(1)
            .causal(Some(70)),
        AttentionCase::new(2, 32, &lengths).capped(1.5),
        AttentionCase::new(4, 16, &[(100, 100)])
            .grouped(2)
            .capped(50.0)
            .causal(None)
            .with_dropout(),
        AttentionCase::new(2, 32, &lengths).with_dropout(),
        AttentionCase::new(1, 8, &[(130, 130)])
            .causal(Some(9))
            .with_dropout(),
    ]);
    cases
}

#[test]
fn attention_agrees_with_that_of_f32() {
    for isa in isas() {
        for case in attention_cases() {
            // The f32 kernels, which are tested against the reference, on the same rounded operands.
            let (q, k, v) = attention_inputs(&case);
            let d_out = random(case.sizes().0, 4);
            let [q, k, v, d_out] = [q, k, v, d_out].map(|x| widen(&narrow(&x)));
            let x = Given {
                q: &q,
                k: &k,
                v: &v,
                d_out: &d_out,
                ..Given::default()
            };
            let want = attend_both::<f32>(isa, &case.shape(), &x);
            let got = run_attention::<bf16>(isa, &case);
            for (what, (got, want)) in ["out", "lse", "d_q", "d_k", "d_v"]
                .iter()
                .zip(got.iter().zip(&want))
            {
                let what = format!(
                    "{what} of {}x{} {:?} on {}",
                    case.num_heads,
                    case.head_dim,
                    case.q_offsets,
                    isa.name()
                );
                check_close(got, &wide(want), ATTENTION, &what);
                let finite = want.iter().all(|w| w.is_finite());
                let rms = if finite { rms_error(got, want) } else { 0.0 };
                assert!(rms <= ATTENTION_RMS, "{what}: {rms}");
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_for_any_threads() {
    let case = AttentionCase::new(3, 24, &[(100, 100), (3, 3), (270, 270)]).with_dropout();
    for isa in isas() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            pool.install(|| run_attention::<bf16>(isa, &case).map(|x| bits(&x)))
        };
        assert_eq!(run(1), run(3), "{}", isa.name());
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_other_rows() {
    let case = Case::new([150, 330, 98]);
    let narrow_a = narrow(&case.a);
    for isa in isas() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            let mut c = vec![0.0f32; case.m * case.n];
            pool.install(|| case.run(isa, &narrow_a, [true, true], Epilogue::Store(&mut c)));
            bits(&c)
        };
        let one = run(1);
        assert_eq!(one, run(2), "{}", isa.name());
        assert_eq!(one, run(5), "{}", isa.name());
        let few = Case {
            m: 7,
            a: case.a[..7 * case.k].to_vec(),
            h: case.h[..7 * RANK].to_vec(),
            start: Vec::new(),
            b: case.b.clone(),
            bias: case.bias.clone(),
            g: case.g.clone(),
            ..case
        };
        let mut c = vec![0.0f32; 7 * case.n];
        few.run(
            isa,
            &narrow_a[..7 * case.k],
            [true, true],
            Epilogue::Store(&mut c),
        );
        assert_eq!(bits(&c), one[..7 * case.n], "{}", isa.name());
    }
}
