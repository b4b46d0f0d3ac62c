//! What the tests of this crate share: inputs, the comparator, the shape table.
#![allow(dead_code)]

pub mod disentangled;

use lowrank_kernels::*;

/// Lengths about the edges of every lane count and of the panel: 0, 1, lane - 1, lane, lane + 1 of 4, 8, 16 and 32.
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
    let bound = tolerance * largest;
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

/// Forward and backward of a case: (out, lse, d_q, d_k, d_v). Outputs start as NaN: all must be overwritten.
pub fn run_attention(isa: Isa, case: &AttentionCase) -> [Vec<f32>; 5] {
    let (q, k, v) = attention_inputs(case);
    let d_out = random(case.sizes().0, 4);
    run_attention_on(isa, case, [q, k, v], &d_out)
}

/// The same on other operands.
pub fn run_attention_on(
    isa: Isa,
    case: &AttentionCase,
    [q, k, v]: [Vec<f32>; 3],
    d_out: &[f32],
) -> [Vec<f32>; 5] {
    let (q_size, kv_size) = case.sizes();
    let shape = case.shape();
    let nan = |n: usize| vec![f32::NAN; n];
    let (mut out, mut lse) = (nan(q_size), nan(q_size / case.head_dim));
    attention_forward(isa, &shape, &q, &k, &v, &mut out, &mut lse);
    let (mut d_q, mut d_k, mut d_v) = (nan(q_size), nan(kv_size), nan(kv_size));
    let saved = AttentionSaved {
        q: &q,
        k: &k,
        v: &v,
        out: &out,
        lse: &lse,
    };
    attention_backward(isa, &shape, &saved, d_out, &mut d_q, &mut d_k, &mut d_v);
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
