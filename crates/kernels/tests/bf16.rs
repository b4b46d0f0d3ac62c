//! The kernels on bf16 operands, on every instruction set of the machine, against the f64 reference
//! of the very same rounded operands: only the order of f32 sums and the last rounding differ.

mod common;

use common::products::narrow;
use common::*;
use lowrank_kernels::*;

fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|v| v.to_f32()).collect()
}

#[test]
fn conversions_are_those_of_the_type_on_every_bit_pattern() {
    // Every bf16, and f32 values about every rounding edge: halves, their neighbours, infinities
    // and NaN.
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

/// Probabilities and gradients of scores are rounded to bf16 before they meet the other operand,
/// and results are: a few units of 2^-9 of the largest value (measured: at most 1.1%).
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
        AttentionCase::new(2, 32, &[(70, 70), (300, 300), (1, 1), (49, 49)]).near(64),
        AttentionCase::new(4, 24, &[(500, 500), (3, 3)])
            .grouped(2)
            .near(1)
            .with_dropout(),
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
            // The f32 kernels, which are tested against the reference, on the same rounded
            // operands.
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
