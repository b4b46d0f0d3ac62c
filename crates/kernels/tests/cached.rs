//! Attention over cached keys: chunks of a prompt have the bits of the whole, a query those that it
//! has alone, new tokens agree with the reference. And operands that are columns of one buffer have
//! the bits of their copies.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;

use common::*;
use lowrank_kernels::*;

const HEAD_DIM: usize = 20;

/// A sequence's pools, in which the rows stand apart and backwards, or end to end, after one that
/// nobody reads.
struct Pools<E> {
    k: Vec<E>,
    v: Vec<E>,
    rows: Vec<u32>,
}

/// Pools of some keys and values.
fn pools<E: AttentionElement>(k: &[E], v: &[E], width: usize, is_apart: bool) -> Pools<E> {
    let keys = k.len() / width;
    let step = if is_apart { 2 } else { 1 };
    let place = |j: usize| 1 + step * if is_apart { keys - 1 - j } else { j };
    let pool = |x: &[E]| {
        let mut pool = vec![E::narrow(f32::NAN); (1 + step * keys) * width];
        for (j, row) in x.chunks_exact(width).enumerate() {
            pool[place(j) * width..][..width].copy_from_slice(row);
        }
        pool
    };
    Pools {
        k: pool(k),
        v: pool(v),
        rows: (0..keys).map(|j| place(j) as u32).collect(),
    }
}

fn rows<E: Copy>(x: &[E], width: usize) -> MatRef<'_, E> {
    MatRef::new(x, x.len() / width, width)
}

fn shape<'a>(heads: [usize; 2], window: Option<usize>, x: &'a [CachedSequence]) -> CachedShape<'a> {
    CachedShape {
        num_heads: heads[0],
        num_key_value_heads: heads[1],
        head_dim: HEAD_DIM,
        scale: 0.25,
        soft_cap: None,
        window,
        sequences: x,
    }
}

/// The result of a call, which starts as NaN.
fn run<E: AttentionElement>(isa: Isa, shape: &CachedShape, q: &[E], [k, v]: [&[E]; 2]) -> Vec<f32> {
    let [width, kv_width] = [shape.num_heads, shape.num_key_value_heads].map(|n| n * HEAD_DIM);
    let mut out = vec![E::narrow(f32::NAN); q.len()];
    let x = AttentionOperands {
        q: rows(q, width),
        k: rows(k, kv_width),
        v: rows(v, kv_width),
        positions: None,
    };
    let n = q.len() / width;
    with_scratch(attend_cached_scratch::<E>(shape), |scratch| {
        attend_cached(isa, shape, &x, MatMut::new(&mut out, n, width), scratch);
    });
    out.iter().map(|v| v.widen()).collect()
}

/// The same of a whole prompt by the attention of training.
fn attend_whole<E: AttentionElement>(
    isa: Isa,
    shape: &CachedShape,
    [q, k, v]: [&[E]; 3],
) -> Vec<f32> {
    let [width, kv_width] = [shape.num_heads, shape.num_key_value_heads].map(|n| n * HEAD_DIM);
    let n = q.len() / width;
    let offsets = [0, n];
    let of_training = AttentionShape {
        num_heads: shape.num_heads,
        num_key_value_heads: shape.num_key_value_heads,
        head_dim: HEAD_DIM,
        q_offsets: &offsets,
        kv_offsets: &offsets,
        scale: shape.scale,
        soft_cap: shape.soft_cap,
        mask: AttentionMask::Causal {
            window: shape.window,
        },
        dropout: None,
    };
    let x = AttentionOperands {
        q: rows(q, width),
        k: rows(k, kv_width),
        v: rows(v, kv_width),
        positions: None,
    };
    let (mut out, mut lse) = (
        vec![E::narrow(f32::NAN); q.len()],
        vec![0.0; n * shape.num_heads],
    );
    with_scratch(attend_scratch::<E>(&of_training, None), |scratch| {
        let out = MatMut::new(&mut out, n, width);
        attend(isa, &of_training, &x, out, &mut lse, scratch);
    });
    out.iter().map(|v| v.widen()).collect()
}

fn check_chunks<E: AttentionElement>() {
    let narrow = |x: Vec<f32>| {
        x.into_iter()
            .map(|v| E::narrow(3.0 * v))
            .collect::<Vec<E>>()
    };
    for isa in isas() {
        for (heads, window, len) in [
            ([2, 2], None, 130),
            ([4, 2], Some(7), 131),
            ([1, 1], Some(70), 700),
            ([1, 1], Some(300), 620),
        ] {
            let [width, kv_width] = heads.map(|n| n * HEAD_DIM);
            let q = narrow(random(len * width, 1));
            let [k, v] = [2, 3].map(|stream| narrow(random(len * kv_width, stream)));
            let whole = attend_whole(isa, &shape(heads, window, &[]), [&q, &k, &v]);
            for is_apart in [false, true] {
                let pools = pools(&k, &v, kv_width, is_apart);
                for chunk in [len, 1, 5, 48, 100] {
                    let starts = (0..len).step_by(chunk);
                    // Single queries of a prompt: some are enough.
                    for start in starts.step_by(if chunk == 1 { 37 } else { 1 }) {
                        let end = (start + chunk).min(len);
                        let sequence = CachedSequence {
                            queries: end - start,
                            rows: &pools.rows[..end],
                            role: QueryRole::Prompt,
                        };
                        let q = &q[start * width..end * width];
                        let of_chunk = shape(heads, window, std::slice::from_ref(&sequence));
                        let got = run(isa, &of_chunk, q, [&pools.k, &pools.v]);
                        let want = &whole[start * width..end * width];
                        let what = format!("{start}..{end} of {len}, {window:?} on {}", isa.name());
                        assert!(bits(&got) == bits(want), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_of_a_prompt_have_the_bits_of_the_whole() {
    check_chunks::<f32>();
    check_chunks::<bf16>();
}

fn check_mix<E: AttentionElement>() {
    let narrow = |x: Vec<f32>| x.into_iter().map(E::narrow).collect::<Vec<E>>();
    let heads = [4, 2];
    let [width, kv_width] = heads.map(|n| n * HEAD_DIM);
    let keys = 90;
    let [k, v] = [2, 3].map(|stream| narrow(random(keys * kv_width, stream)));
    let pools = pools(&k, &v, kv_width, true);
    let of = |queries, rows: std::ops::Range<usize>, role| CachedSequence {
        queries,
        rows: &pools.rows[rows],
        role,
    };
    // Sequences share rows; some bring no query.
    let sequences = [
        of(1, 0..60, QueryRole::NewToken),
        of(30, 0..90, QueryRole::Prompt),
        of(0, 0..20, QueryRole::Prompt),
        of(3, 5..40, QueryRole::NewToken),
        of(0, 0..0, QueryRole::NewToken),
        of(7, 50..57, QueryRole::Prompt),
    ];
    let q = narrow(random(41 * width, 1));
    for isa in isas() {
        for window in [None, Some(25)] {
            let all = run(
                isa,
                &shape(heads, window, &sequences),
                &q,
                [&pools.k, &pools.v],
            );
            let mut first = 0;
            for sequence in sequences {
                let range = first * width..(first + sequence.queries) * width;
                first += sequence.queries;
                let alone = shape(heads, window, std::slice::from_ref(&sequence));
                let alone = run(isa, &alone, &q[range.clone()], [&pools.k, &pools.v]);
                assert!(
                    bits(&all[range]) == bits(&alone),
                    "{sequence:?} on {}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn a_query_does_not_know_what_else_is_in_the_call() {
    check_mix::<f32>();
    check_mix::<bf16>();
}

/// New tokens of some heads of keys, against the reference on operands as the storage holds them.
fn check_tokens<E: AttentionElement>(case: &AttentionCase, isa: Isa, tolerance: f64) {
    let (q, k, v) = attention_inputs(case);
    let [q, k, v] = [q, k, v].map(|x| x.into_iter().map(E::narrow).collect::<Vec<E>>());
    let kv_width = case.num_key_value_heads * HEAD_DIM;
    let pools = pools(&k, &v, kv_width, true);
    let sequences: Vec<_> = (case.q_offsets.windows(2).zip(case.kv_offsets.windows(2)))
        .map(|(q, kv)| CachedSequence {
            queries: q[1] - q[0],
            rows: &pools.rows[kv[0]..kv[1]],
            role: QueryRole::NewToken,
        })
        .collect();
    let AttentionMask::Causal { window } = case.mask else {
        panic!("new tokens are causal")
    };
    let heads = [case.num_heads, case.num_key_value_heads];
    let of_tokens = CachedShape {
        scale: case.shape().scale,
        soft_cap: case.soft_cap,
        ..shape(heads, window, &sequences)
    };
    let got = run(isa, &of_tokens, &q, [&pools.k, &pools.v]);
    let [q, k, v] = [q, k, v].map(|x| x.iter().map(|v| f64::from(v.widen())).collect::<Vec<_>>());
    let (want, _) = reference::attention(&reference::Attention {
        shape: case.shape(),
        q: &q,
        k: &k,
        v: &v,
    });
    let what = format!("{heads:?} heads, {window:?} on {}", isa.name());
    check_close(&got, &want, tolerance, &what);
}

#[test]
fn new_tokens_agree_with_the_reference() {
    let some = [(1, 33), (3, 70), (1, 1), (1, 600)];
    let many = [3, 4, 9, 8, 1, 2, 5, 6, 7].map(|n| (1, n));
    for isa in isas() {
        for (kv_heads, window, soft_cap, lengths) in [
            (6, None, None, &some[..]),
            (6, None, None, &many),
            (2, Some(33), None, &some),
            (1, None, Some(2.0), &many),
            (3, Some(5), Some(30.0), &some),
        ] {
            let case = AttentionCase::new(6, HEAD_DIM, lengths);
            let mut case = case.grouped(kv_heads).causal(window);
            case.soft_cap = soft_cap;
            check_tokens::<f32>(&case, isa, 2e-6);
            // Only the result is rounded, by 2^-8 of it at most.
            check_tokens::<bf16>(&case, isa, 4e-3);
        }
    }
}

#[test]
#[should_panic(expected = "a row outside the pool")]
fn a_row_outside_the_pool_is_refused() {
    let sequence = CachedSequence {
        queries: 1,
        rows: &[0, 3],
        role: QueryRole::NewToken,
    };
    let x = [0.0; 3 * HEAD_DIM];
    let of_token = shape([1, 1], None, std::slice::from_ref(&sequence));
    run(Isa::Scalar, &of_token, &x[..HEAD_DIM], [&x, &x]);
}

/// Forward and backward on operands and gradients that are columns of one buffer, or of buffers of
/// their own.
fn run_columns<E: AttentionElement>(
    isa: Isa,
    case: &AttentionCase,
    is_fused: bool,
) -> Vec<Vec<u32>> {
    let (q, k, v) = attention_inputs(case);
    let [q, k, v, d_out] = [q, k, v, random(case.sizes().0, 4)]
        .map(|x| x.into_iter().map(E::narrow).collect::<Vec<E>>());
    let [width, kv_width] = [case.num_heads, case.num_key_value_heads].map(|n| n * case.head_dim);
    let (n, all) = (q.len() / width, width + 2 * kv_width);
    let parts = [(&q, width), (&k, kv_width), (&v, kv_width)];
    let mut fused = Vec::new();
    for i in 0..n {
        for (x, width) in parts {
            fused.extend_from_slice(&x[i * width..(i + 1) * width]);
        }
    }
    let column = |start: usize, width| MatRef::strided(&fused[start..], n, width, all, 1);
    let [q, k, v] = match is_fused {
        true => [
            column(0, width),
            column(width, kv_width),
            column(width + kv_width, kv_width),
        ],
        false => parts.map(|(x, width)| rows(x, width)),
    };
    let operands = AttentionOperands {
        q,
        k,
        v,
        positions: None,
    };
    let shape = case.shape();
    let threads = rayon::current_num_threads();
    let need =
        attend_scratch::<E>(&shape, None).max(attend_backward_scratch::<E>(&shape, None, 0, 0));
    let mut scratch = ScratchBuffer::new(need.bytes(threads), threads);
    let (mut out, mut lse) = (
        vec![E::narrow(f32::NAN); n * width],
        vec![f32::NAN; n * case.num_heads],
    );
    let to = MatMut::new(&mut out, n, width);
    attend(isa, &shape, &operands, to, &mut lse, &mut scratch.scratch());
    let saved = Attended {
        operands,
        out: rows(&out, width),
        lse: &lse,
    };
    let mut d = vec![E::narrow(f32::NAN); n * all];
    let [d_q, d_k, d_v] = if is_fused {
        let [d_q, rest] = MatMut::new(&mut d, n, all).split_columns(width);
        let [d_k, d_v] = rest.split_columns(kv_width);
        [d_q, d_k, d_v]
    } else {
        let (d_q, rest) = d.split_at_mut(n * width);
        let (d_k, d_v) = rest.split_at_mut(n * kv_width);
        [(d_q, width), (d_k, kv_width), (d_v, kv_width)].map(|(d, width)| MatMut::new(d, n, width))
    };
    let gradients = AttentionGradients {
        d_q,
        d_k,
        d_v,
        d_keys: None,
        d_queries: None,
    };
    attend_backward(
        isa,
        &shape,
        &saved,
        rows(&d_out, width),
        gradients,
        &mut scratch.scratch(),
    );
    let mut by_part = vec![out, Vec::new(), Vec::new(), Vec::new()];
    let mut start = 0;
    for (part, (_, width)) in parts.into_iter().enumerate() {
        for i in 0..n {
            let at = if is_fused {
                i * all + start
            } else {
                n * start + i * width
            };
            by_part[part + 1].extend_from_slice(&d[at..at + width]);
        }
        start += width;
    }
    let wide = |x: Vec<E>| bits(&x.iter().map(|v| v.widen()).collect::<Vec<_>>());
    by_part.into_iter().map(wide).chain([bits(&lse)]).collect()
}

#[test]
fn columns_of_one_buffer_have_the_bits_of_their_copies() {
    let lengths = [(24, 24), (1, 1), (0, 0), (130, 130)];
    for isa in isas() {
        for case in [
            AttentionCase::new(4, 16, &lengths).grouped(2),
            AttentionCase::new(2, 7, &lengths)
                .causal(Some(30))
                .with_dropout(),
        ] {
            let what = isa.name();
            assert!(
                run_columns::<f32>(isa, &case, true) == run_columns::<f32>(isa, &case, false),
                "{what}"
            );
            assert!(
                run_columns::<bf16>(isa, &case, true) == run_columns::<bf16>(isa, &case, false),
                "{what}"
            );
        }
    }
}
