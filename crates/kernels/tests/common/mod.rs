//! What the tests of this crate share: inputs, the comparator, the shape table.
#![allow(dead_code)]

pub mod disentangled;
pub mod products;

use lowrank_kernels::*;

/// Lengths about the edges of every lane count and of the panel: 0, 1, lane - 1, lane, lane + 1 of
/// 4, 8, 16 and 32.
pub const LENGTHS: [usize; 14] = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 70];

/// The instruction sets of this machine; says which.
pub fn isas() -> Vec<Isa> {
    let isas = Isa::available();
    let names: Vec<_> = isas.iter().map(|isa| isa.name()).collect();
    println!("instruction sets covered: {}", names.join(", "));
    isas
}

/// Uniform values in [-1, 1), another stream for each use.
pub fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    fill_uniform(20_26, stream, -1.0, 1.0, &mut x);
    x
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// The worst error beyond `tolerance` times max(1e-3, the largest wanted value), if there is one.
pub fn find_fault(got: &[f32], want: &[f64], tolerance: f64) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("length {} instead of {}", got.len(), want.len()));
    }
    let largest = want.iter().fold(1e-3f64, |max, v| max.max(v.abs()));
    find_beyond(got, want, tolerance * largest)
}

fn find_beyond(got: &[f32], want: &[f64], bound: f64) -> Option<String> {
    let faults: Vec<usize> = (0..got.len())
        .filter(|&i| {
            let same_infinity = f64::from(got[i]) == want[i];
            let close = (f64::from(got[i]) - want[i]).abs() <= bound;
            !(same_infinity || close)
        })
        .collect();
    let error = |i: usize| {
        let e = (f64::from(got[i]) - want[i]).abs();
        if e.is_nan() { f64::INFINITY } else { e }
    };
    let worst = faults
        .iter()
        .copied()
        .max_by(|&a, &b| error(a).total_cmp(&error(b)))?;
    Some(format!(
        "{} of {} beyond {bound:.1e}, worst at {worst}: {} instead of {}",
        faults.len(),
        got.len(),
        got[worst],
        want[worst]
    ))
}

#[track_caller]
pub fn check_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    if let Some(fault) = find_fault(got, want, tolerance) {
        panic!("{what}: {fault}");
    }
}

/// The same for a gradient of scores, which is the difference of two sums of about 1, and 0 where a
/// row has one key: the sums may run in different orders. Measured on NEON: 1.3e-7 in place of 0.
#[track_caller]
pub fn check_score_gradient(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    let least = 2.5e-7 / tolerance;
    let largest = want.iter().fold(least, |max, v| max.max(v.abs()));
    assert_eq!(got.len(), want.len(), "{what}");
    if let Some(fault) = find_beyond(got, want, tolerance * largest) {
        panic!("{what}: {fault}");
    }
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

pub const DROPOUT: Dropout = Dropout {
    p: 0.25,
    key: DropoutKey {
        seed: 0x1234_5678_9abc_def0,
        step: 1 << 33,
        site: 7,
    },
};

/// Attention over some sequences, for every test that wants one.
pub struct AttentionCase {
    pub num_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub soft_cap: Option<f32>,
    pub q_offsets: Vec<usize>,
    pub kv_offsets: Vec<usize>,
    pub mask: AttentionMask,
    pub dropout: Option<Dropout>,
}

impl AttentionCase {
    pub fn new(num_heads: usize, head_dim: usize, lengths: &[(usize, usize)]) -> Self {
        let offsets = |length: fn(&(usize, usize)) -> usize| {
            let mut sum = 0;
            let rest = lengths.iter().map(|pair| {
                sum += length(pair);
                sum
            });
            std::iter::once(0).chain(rest.collect::<Vec<_>>()).collect()
        };
        Self {
            num_heads,
            num_key_value_heads: num_heads,
            head_dim,
            soft_cap: None,
            q_offsets: offsets(|pair| pair.0),
            kv_offsets: offsets(|pair| pair.1),
            mask: AttentionMask::Full,
            dropout: None,
        }
    }

    /// With fewer heads of keys and values.
    pub fn grouped(self, num_key_value_heads: usize) -> Self {
        Self {
            num_key_value_heads,
            ..self
        }
    }

    pub fn capped(self, cap: f32) -> Self {
        Self {
            soft_cap: Some(cap),
            ..self
        }
    }

    pub fn causal(self, window: Option<usize>) -> Self {
        let mask = AttentionMask::Causal { window };
        Self { mask, ..self }
    }

    pub fn near(self, reach: usize) -> Self {
        let mask = AttentionMask::Near { reach };
        Self { mask, ..self }
    }

    pub fn with_dropout(self) -> Self {
        Self {
            dropout: Some(DROPOUT),
            ..self
        }
    }

    pub fn shape(&self) -> AttentionShape<'_> {
        AttentionShape {
            num_heads: self.num_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            soft_cap: self.soft_cap,
            q_offsets: &self.q_offsets,
            kv_offsets: &self.kv_offsets,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            mask: self.mask,
            dropout: self.dropout,
        }
    }

    /// Elements of q and of k.
    pub fn sizes(&self) -> (usize, usize) {
        let last = |offsets: &[usize], heads| offsets[offsets.len() - 1] * heads * self.head_dim;
        let of_q = last(&self.q_offsets, self.num_heads);
        (of_q, last(&self.kv_offsets, self.num_key_value_heads))
    }
}

/// Scratch whose bytes make NaNs of any storage: what is read before it is written shows.
pub fn with_scratch<R>(need: ScratchNeed, run: impl FnOnce(&mut Scratch) -> R) -> R {
    let threads = rayon::current_num_threads();
    let mut bytes = vec![0xff; need.bytes(threads) + 64];
    let start = bytes.as_ptr().align_offset(64);
    run(&mut Scratch::new(&mut bytes[start..], threads))
}

/// What attention and its backward are given; each storage rounds it. Positions only with `rows`.
#[derive(Clone, Copy, Default)]
pub struct Given<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub d_out: &'a [f32],
    pub rows: Option<&'a [u32]>,
    pub keys: Option<&'a [f32]>,
    pub queries: Option<&'a [f32]>,
    /// Whether the gradients of keys and of queries are wanted, where there are such.
    pub trained: [bool; 2],
}

/// (out, lse, d_q, d_k, d_v, d_keys, d_queries). Outputs start as NaN: all must be overwritten.
pub fn attend_both<E: AttentionElement>(
    isa: Isa,
    shape: &AttentionShape,
    x: &Given,
) -> [Vec<f32>; 7] {
    let narrow = |x: &[f32]| x.iter().map(|&v| E::narrow(v)).collect::<Vec<E>>();
    let nan = |n: usize| vec![E::narrow(f32::NAN); n];
    let [q, k, v, d_out] = [x.q, x.k, x.v, x.d_out].map(narrow);
    let [keys, queries] = [x.keys, x.queries].map(|table| table.map(narrow));
    let (q_rows, kv_rows) = (shape.q_offsets.last(), shape.kv_offsets.last());
    let [q_rows, kv_rows] = [q_rows, kv_rows].map(|rows| rows.copied().unwrap_or(0));
    let [width, kv_width] =
        [shape.num_heads, shape.num_key_value_heads].map(|n| n * shape.head_dim);
    let operands = AttentionOperands {
        q: MatRef::new(&q, q_rows, width),
        k: MatRef::new(&k, kv_rows, kv_width),
        v: MatRef::new(&v, kv_rows, kv_width),
        positions: x.rows.map(|rows| RelativePositions {
            rows,
            keys: keys.as_deref(),
            queries: queries.as_deref(),
        }),
    };
    let tables = x.rows.map(|_| keys.iter().chain(&queries).count());
    let (mut out, mut lse) = (nan(q.len()), vec![f32::NAN; q_rows * shape.num_heads]);
    with_scratch(attend_scratch::<E>(shape, tables), |scratch| {
        let out = MatMut::new(&mut out, q_rows, width);
        attend(isa, shape, &operands, out, &mut lse, scratch);
    });
    let wanted = |table: &Option<Vec<E>>, trained| {
        let table = table.as_ref().filter(|_| trained);
        table.map(|table| nan(table.len()))
    };
    let (mut d_keys, mut d_queries) = (wanted(&keys, x.trained[0]), wanted(&queries, x.trained[1]));
    let [mut d_q, mut d_k, mut d_v] = [&q, &k, &v].map(|x| nan(x.len()));
    let saved = Attended {
        operands,
        out: MatRef::new(&out, q_rows, width),
        lse: &lse,
    };
    let trained = d_keys.iter().chain(&d_queries);
    let rows = trained.clone().map(|d| d.len() / width).max().unwrap_or(0);
    let need = attend_backward_scratch::<E>(shape, tables, trained.count(), rows);
    with_scratch(need, |scratch| {
        let gradients = AttentionGradients {
            d_q: MatMut::new(&mut d_q, q_rows, width),
            d_k: MatMut::new(&mut d_k, kv_rows, kv_width),
            d_v: MatMut::new(&mut d_v, kv_rows, kv_width),
            d_keys: d_keys.as_deref_mut(),
            d_queries: d_queries.as_deref_mut(),
        };
        let d_out = MatRef::new(&d_out, q_rows, width);
        attend_backward(isa, shape, &saved, d_out, gradients, scratch);
    });
    let widen = |x: Vec<E>| x.iter().map(|v| v.widen()).collect::<Vec<f32>>();
    let [d_keys, d_queries] = [d_keys, d_queries].map(Option::unwrap_or_default);
    let [out, d_q, d_k, d_v, d_keys, d_queries] =
        [out, d_q, d_k, d_v, d_keys, d_queries].map(widen);
    [out, lse, d_q, d_k, d_v, d_keys, d_queries]
}

/// Forward and backward of a case: (out, lse, d_q, d_k, d_v).
pub fn run_attention<E: AttentionElement>(isa: Isa, case: &AttentionCase) -> [Vec<f32>; 5] {
    let (q, k, v) = attention_inputs(case);
    let d_out = random(case.sizes().0, 4);
    let x = Given {
        q: &q,
        k: &k,
        v: &v,
        d_out: &d_out,
        ..Given::default()
    };
    let [out, lse, d_q, d_k, d_v, ..] = attend_both::<E>(isa, &case.shape(), &x);
    [out, lse, d_q, d_k, d_v]
}

pub fn attention_inputs(case: &AttentionCase) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (q_size, kv_size) = case.sizes();
    let stretch = |x: Vec<f32>| x.iter().map(|v| v * 3.0).collect();
    (
        stretch(random(q_size, 1)),
        stretch(random(kv_size, 2)),
        random(kv_size, 3),
    )
}
