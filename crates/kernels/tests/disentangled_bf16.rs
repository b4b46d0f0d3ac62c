//! Disentangled attention on bf16 pairs: every instruction set against the f64 reference of the
//! very same rounded operands, the same bits whatever the threads and, for a sequence, whatever its
//! batch.

mod common;

use common::disentangled::*;
use common::*;
use lowrank_kernels::*;

/// Relative to the largest result: rounding of probabilities, of gradients of scores and of the
/// result. Measured: 8.3e-3.
const TOLERANCE: f64 = 1.2e-2;
/// Root mean square of the error, relative to that of the result. Measured: 5.8e-3.
const TOLERANCE_RMS: f64 = 8e-3;

const NAMES: [&str; 7] = ["out", "lse", "d_q", "d_k", "d_v", "d_keys", "d_queries"];

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&v| bf16::from_f32(v)).collect()
}

fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|v| v.to_f32()).collect()
}

/// The operands of a case as bf16 holds them.
fn operands(case: &Case) -> Operands {
    let x = Operands::of(case);
    let round = |x: Vec<f32>| widen(&narrow(&x));
    Operands {
        q: round(x.q),
        k: round(x.k),
        v: round(x.v),
        keys: x.keys.map(round),
        queries: x.queries.map(round),
        d_out: round(x.d_out),
    }
}

/// Which tables' gradients are wanted: of the keys, of the queries.
type Trained = [bool; 2];

/// (out, lse, d_q, d_k, d_v, d_keys, d_queries).
fn run(isa: Isa, case: &Case, x: &Operands, trained: Trained) -> [Vec<f32>; 7] {
    x.run::<bf16>(isa, &case.attention.shape(), &case.rows().0, trained)
}

fn cases() -> Vec<Case> {
    let odd: Vec<(usize, usize)> = (1..=200).step_by(2).map(|n| (n, n)).collect();
    let some: Vec<(usize, usize)> = [1, 2, 15, 16, 17, 30, 33, 97].map(|n| (n, n)).to_vec();
    let mut cases = vec![
        Case::new(1, 64, &odd, Tables::Both).sharing_beyond(64),
        Case::new(2, 32, &some, Tables::Both).with_dropout(),
        Case::new(2, 7, &some, Tables::Both),
        Case::new(1, 33, &some, Tables::Both).sharing_beyond(9),
        Case::new(1, 80, &some[..6], Tables::Both).with_dropout(),
        // First tokens only, sequences without queries or keys, more queries than keys.
        Case::new(2, 64, &[(1, 33), (1, 5), (1, 128)], Tables::Both),
        Case::new(2, 8, &[(0, 4), (3, 0), (17, 31), (65, 13)], Tables::Both),
        // Several tiles of keys and of queries.
        Case::new(1, 24, &[(300, 300), (5, 5), (131, 450)], Tables::Both).sharing_beyond(64),
        Case::new(1, 16, &[(140, 700)], Tables::Both).with_dropout(),
    ];
    for tables in [Tables::Keys, Tables::Queries, Tables::None] {
        cases.push(Case::new(3, 32, &[(24, 24), (7, 7), (201, 201)], tables));
        cases.push(Case::new(1, 13, &[(40, 40), (33, 70), (1, 9)], tables).with_dropout());
    }
    cases
}

/// Root mean square of the error over that of `want`; 0 for nothing.
fn rms_error(got: &[f32], want: &[f64]) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i) * f(i)).sum::<f64>();
    let of_want = sum(&|i| want[i]);
    if of_want == 0.0 {
        return 0.0;
    }
    (sum(&|i| f64::from(got[i]) - want[i]) / of_want).sqrt()
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    let (mut largest, mut largest_rms) = (0.0f64, 0.0f64);
    for case in cases() {
        let x = operands(&case);
        let want = x.reference(&case, &case.rows().0);
        for isa in isas() {
            let got = run(isa, &case, &x, [true; 2]);
            for (name, (got, want)) in NAMES.iter().zip(got.iter().zip(&want)) {
                let what = format!("{name} of {}", case.name(isa));
                check_close(got, want, TOLERANCE, &what);
                let scale =
                    want.iter().fold(
                        1e-3f64,
                        |m, w| if w.is_finite() { m.max(w.abs()) } else { m },
                    );
                let pairs = got.iter().zip(want).filter(|(_, w)| w.is_finite());
                let error = pairs
                    .map(|(g, w)| (f64::from(*g) - w).abs())
                    .fold(0.0, f64::max);
                largest = largest.max(error / scale);
                if want.iter().all(|w| w.is_finite()) {
                    let rms = rms_error(got, want);
                    largest_rms = largest_rms.max(rms);
                    assert!(rms <= TOLERANCE_RMS, "{what}: {rms}");
                }
            }
        }
    }
    println!("largest error {largest:.1e}, root mean square {largest_rms:.1e}");
}

#[test]
fn a_distance_beside_the_right_one_is_seen() {
    let case = Case::new(1, 32, &[(40, 40)], Tables::Both);
    let x = operands(&case);
    let shifted: Vec<u32> = case.rows().0.iter().map(|row| row + 1).collect();
    let want = x.reference(&case, &shifted);
    let got = run(Isa::best(), &case, &x, [true; 2]);
    for (got, want) in got.iter().zip(&want) {
        assert!(find_fault(got, want, TOLERANCE).is_some());
    }
}

#[test]
fn threads_change_nothing() {
    let lengths = [(24, 24), (230, 230), (3, 3), (60, 60), (24, 24)];
    let case = Case::new(3, 32, &lengths, Tables::Both)
        .sharing_beyond(40)
        .with_dropout();
    let x = operands(&case);
    for isa in isas() {
        check_threads(&case.name(isa), || run(isa, &case, &x, [true; 2]));
    }
}

#[test]
fn a_sequence_does_not_know_its_batch() {
    // The same distances have the same rows in both: no row is shared, and both tables have the
    // reach of their own.
    for isa in isas() {
        let among = Case::new(3, 32, &[(40, 40), (90, 90), (2, 2)], Tables::Both).with_dropout();
        let of_all = operands(&among);
        let among_all = run(isa, &among, &of_all, [true; 2]);
        let alone = Case::new(3, 32, &[(40, 40)], Tables::Both).with_dropout();
        let len = alone.attention.sizes().0;
        // Rows of the longer reach that the shorter one names, one unused row at each end.
        let (longer, shorter) = (among.rows().1, alone.rows().1);
        let skipped = (longer - shorter) / 2 * 3 * 32;
        let part = |table: &Option<Vec<f32>>| {
            table
                .as_ref()
                .map(|t| t[skipped..t.len() - skipped].to_vec())
        };
        let x = Operands {
            q: of_all.q[..len].to_vec(),
            k: of_all.k[..len].to_vec(),
            v: of_all.v[..len].to_vec(),
            keys: part(&of_all.keys),
            queries: part(&of_all.queries),
            d_out: of_all.d_out[..len].to_vec(),
        };
        let alone = run(isa, &alone, &x, [true; 2]);
        for which in 0..5 {
            let among = &among_all[which][..alone[which].len()];
            assert_eq!(
                bits(&alone[which]),
                bits(among),
                "{} on {}",
                NAMES[which],
                isa.name()
            );
        }
    }
}

#[test]
fn a_table_without_a_gradient_changes_no_other() {
    let case = Case::new(2, 32, &[(40, 40), (9, 9)], Tables::Both);
    let x = operands(&case);
    let all = run(Isa::best(), &case, &x, [true; 2]);
    for trained in [[true, false], [false, true], [false, false]] {
        let some = run(Isa::best(), &case, &x, trained);
        for (which, (some, all)) in some.iter().zip(&all).enumerate() {
            let untrained = which >= 5 && !trained[which - 5];
            let want = if untrained { &[][..] } else { &all[..] };
            assert_eq!(bits(some), bits(want), "{}", NAMES[which]);
        }
    }
}
