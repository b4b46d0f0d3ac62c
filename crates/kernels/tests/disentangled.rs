//! Disentangled attention: the reference against finite differences, every instruction set against
//! the reference, the same bits whatever the threads and, for a sequence, whatever its batch.

mod common;

use common::disentangled::*;
use common::*;
use lowrank_kernels::reference::{self, Disentangled};
use lowrank_kernels::*;

/// (out, lse, d_q, d_k, d_v, d_keys, d_queries).
fn run(isa: Isa, case: &Case) -> [Vec<f32>; 7] {
    let x = Operands::of(case);
    x.run::<f32>(isa, &case.attention.shape(), &case.rows().0, [true; 2])
}

fn cases() -> Vec<Case> {
    let all = [Tables::Keys, Tables::Queries, Tables::Both, Tables::None];
    let mut cases = Vec::new();
    for tables in all {
        cases.push(Case::new(3, 32, &[(24, 24), (7, 7), (40, 40)], tables));
        cases.push(Case::new(2, 64, &[(1, 33), (1, 5), (1, 128)], tables));
        cases.push(Case::new(2, 8, &[(0, 4), (3, 0), (17, 31)], tables));
        cases.push(Case::new(2, 16, &[(40, 40), (33, 33)], tables).with_dropout());
    }
    for length in LENGTHS.into_iter().chain([127, 128, 129, 160]) {
        cases.push(Case::new(1, 16, &[(length, length)], Tables::Both).sharing_beyond(20));
    }
    // Several tiles of keys and of queries, buckets, more groups than sequences.
    let long = [(300, 300), (5, 5), (150, 450)];
    cases.push(Case::new(1, 24, &long, Tables::Both).sharing_beyond(64));
    cases.push(
        Case::new(1, 16, &[(140, 900)], Tables::Both)
            .sharing_beyond(64)
            .with_dropout(),
    );
    cases.push(Case::new(1, 5, &[(65, 13)], Tables::Both));
    cases.push(Case::new(2, 80, &[(33, 33)], Tables::Both));
    cases
}

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    // Measured: 2.8e-6 in the outputs and 3.5e-6 in the gradients.
    const TOLERANCE: f64 = 4e-6;
    for isa in isas() {
        for case in cases() {
            let [out, lse, d_q, d_k, d_v, d_keys, d_queries] = run(isa, &case);
            let [
                want_out,
                want_lse,
                want_q,
                want_k,
                want_v,
                want_keys,
                want_queries,
            ] = Operands::of(&case).reference(&case, &case.rows().0);
            let what = case.name(isa);
            let finite: Vec<f32> = lse.into_iter().filter(|x| x.is_finite()).collect();
            let want_lse: Vec<f64> = want_lse.into_iter().filter(|x| x.is_finite()).collect();
            check_close(&out, &want_out, TOLERANCE, &what);
            check_close(&finite, &want_lse, TOLERANCE, &what);
            check_score_gradient(&d_q, &want_q, 5e-6, &format!("d_q of {what}"));
            check_score_gradient(&d_k, &want_k, 5e-6, &format!("d_k of {what}"));
            check_close(&d_v, &want_v, 5e-6, &format!("d_v of {what}"));
            check_score_gradient(&d_keys, &want_keys, 5e-6, &format!("d_keys of {what}"));
            check_score_gradient(
                &d_queries,
                &want_queries,
                1e-5,
                &format!("d_queries of {what}"),
            );
        }
    }
}

#[test]
fn without_tables_it_is_plain_attention() {
    let case = Case::new(2, 16, &[(40, 40), (130, 130)], Tables::None).with_dropout();
    let [out, lse, d_q, d_k, d_v, ..] = run(Isa::best(), &case);
    let plain = run_attention::<f32>(Isa::best(), &case.attention);
    for (got, want) in [out, lse, d_q, d_k, d_v].iter().zip(&plain) {
        check_close(got, &wide(want), 2e-6, "plain attention");
    }
}

#[test]
fn threads_change_nothing() {
    for isa in isas() {
        let lengths = [(24, 24), (130, 130), (3, 3), (60, 60), (24, 24)];
        let case = Case::new(3, 32, &lengths, Tables::Both)
            .sharing_beyond(40)
            .with_dropout();
        check_threads(&case.name(isa), || run(isa, &case));
    }
}

#[test]
fn a_sequence_does_not_know_its_batch() {
    for isa in isas() {
        let alone = Case::new(3, 32, &[(40, 40)], Tables::Both).with_dropout();
        let among = Case::new(3, 32, &[(40, 40), (90, 90), (2, 2)], Tables::Both).with_dropout();
        // The tables are those of the longer batch; the shorter sequence reads the same distances
        // of it.
        let (alone, among) = (with_the_rows_of(isa, &alone, &among), run(isa, &among));
        for (alone, among) in alone.iter().zip(&among) {
            assert_eq!(bits(alone), bits(&among[..alone.len()]));
        }
    }
}

/// The per-sequence results of `case` with the tables of `other`.
fn with_the_rows_of(isa: Isa, case: &Case, other: &Case) -> Vec<Vec<f32>> {
    let (q_size, _) = case.attention.sizes();
    let mut x = Operands::of(other);
    for of_sequence in [&mut x.q, &mut x.k, &mut x.v, &mut x.d_out] {
        of_sequence.truncate(q_size);
    }
    let all = x.run::<f32>(isa, &case.attention.shape(), &other.rows().0, [true; 2]);
    all.into_iter().take(5).collect()
}

#[test]
fn the_reference_agrees_with_finite_differences() {
    for case in [
        Case::new(2, 5, &[(3, 4), (6, 6), (1, 7)], Tables::Both).sharing_beyond(2),
        Case::new(2, 5, &[(6, 6), (1, 7)], Tables::Keys).with_dropout(),
        Case::new(2, 5, &[(6, 6), (2, 2)], Tables::Queries),
    ] {
        let (q_size, kv_size) = case.attention.sizes();
        let (rows, _) = case.rows();
        let (keys, queries) = case.tables();
        let values = |n: usize, stream: u64| wide(&random(n, stream));
        let all = [
            values(q_size, 1),
            values(kv_size, 2),
            values(kv_size, 3),
            wide(&keys.clone().unwrap_or_default()),
            wide(&queries.clone().unwrap_or_default()),
        ];
        let d_out = values(q_size, 4);
        let make = |x: &[Vec<f64>; 5]| {
            let x = Disentangled {
                shape: case.attention.shape(),
                rows: &rows,
                q: &x[0],
                k: &x[1],
                v: &x[2],
                keys: keys.as_ref().map(|_| &x[3][..]),
                queries: queries.as_ref().map(|_| &x[4][..]),
            };
            let out = reference::disentangled_attention(&x).0;
            (out, reference::disentangled_attention_backward(&x, &d_out))
        };
        let d = make(&all).1;
        let gradients = [d.d_q, d.d_k, d.d_v, d.d_keys, d.d_queries];
        for (operand, gradient) in gradients.iter().enumerate() {
            for direction in 0..4 {
                const STEP: f64 = 1e-5;
                let u = values(all[operand].len(), 100 + direction);
                let moved = |e: f64| -> f64 {
                    let mut x = all.clone();
                    x[operand].iter_mut().zip(&u).for_each(|(x, u)| *x += e * u);
                    make(&x).0.iter().zip(&d_out).map(|(y, c)| y * c).sum()
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let product: f64 = gradient.iter().zip(&u).map(|(g, u)| g * u).sum();
                assert!(
                    (difference - product).abs() <= 1e-7 * product.abs().max(1.0),
                    "operand {operand}: {difference} by differences, {product} by formula"
                );
            }
        }
    }
}

#[test]
fn a_table_without_a_gradient_changes_no_other() {
    let case = Case::new(2, 32, &[(40, 40), (9, 9)], Tables::Both);
    let all = run(Isa::best(), &case);
    let (x, shape) = (Operands::of(&case), case.attention.shape());
    let some = x.run::<f32>(Isa::best(), &shape, &case.rows().0, [true, false]);
    for which in 0..6 {
        assert_eq!(bits(&some[which]), bits(&all[which]));
    }
}

#[test]
#[should_panic(expected = "the reach is")]
fn a_sequence_beyond_the_reach_is_refused() {
    let case = Case::new(1, 4, &[(5, 5)], Tables::Keys);
    let x = Operands::of(&case);
    let rows = [1, 2, 3, 4, 5, 6, 7];
    x.run::<f32>(Isa::best(), &case.attention.shape(), &rows, [true; 2]);
}
