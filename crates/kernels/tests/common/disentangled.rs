//! Cases of disentangled attention and their f64 reference: what the tests of both precisions
//! share.

use super::*;
use lowrank_kernels::reference::{self, Disentangled};

/// Which tables a case has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tables {
    Keys,
    Queries,
    Both,
    None,
}

pub struct Case {
    pub attention: AttentionCase,
    pub tables: Tables,
    /// Distances below this have a row of their own, larger ones share rows in pairs.
    pub exact: usize,
}

impl Case {
    pub fn new(heads: usize, dim: usize, lengths: &[(usize, usize)], tables: Tables) -> Self {
        Case {
            attention: AttentionCase::new(heads, dim, lengths),
            tables,
            exact: usize::MAX,
        }
    }

    pub fn sharing_beyond(self, exact: usize) -> Self {
        Case { exact, ..self }
    }

    pub fn with_dropout(self) -> Self {
        let attention = self.attention.with_dropout();
        Case { attention, ..self }
    }

    /// Rows of the distances, and the number of rows.
    pub fn rows(&self) -> (Vec<u32>, usize) {
        let longest =
            |offsets: &[usize]| offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let shape = self.attention.shape();
        let reach = 3 + longest(shape.q_offsets).max(longest(shape.kv_offsets)) as isize;
        let bucket = |d: isize| {
            let far = d.unsigned_abs().saturating_sub(self.exact);
            d.signum() * (d.unsigned_abs().min(self.exact) + far.div_ceil(2)) as isize
        };
        let middle = bucket(reach - 1);
        let rows = (1 - reach..reach).map(|d| (bucket(d) + middle + 1) as u32);
        // Row 0 and the last belong to no distance: their gradient must be zero.
        (rows.collect(), 2 * middle as usize + 3)
    }

    pub fn table(&self, stream: u64) -> Vec<f32> {
        let (_, rows) = self.rows();
        let width = self.attention.num_heads * self.attention.head_dim;
        random(rows * width, stream)
            .iter()
            .map(|x| x * 2.0)
            .collect()
    }

    pub fn tables(&self) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        let keys = matches!(self.tables, Tables::Keys | Tables::Both);
        let queries = matches!(self.tables, Tables::Queries | Tables::Both);
        (keys.then(|| self.table(5)), queries.then(|| self.table(6)))
    }

    pub fn name(&self, isa: Isa) -> String {
        let a = &self.attention;
        let (q, kv) = (&a.q_offsets, &a.kv_offsets);
        let (h, d, tables) = (a.num_heads, a.head_dim, self.tables);
        format!("{h} x {d} {q:?} {kv:?} {tables:?} on {}", isa.name())
    }
}

/// Operands of a case and the gradient of its result.
pub struct Operands {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub keys: Option<Vec<f32>>,
    pub queries: Option<Vec<f32>>,
    pub d_out: Vec<f32>,
}

impl Operands {
    pub fn of(case: &Case) -> Self {
        let (q, k, v) = attention_inputs(&case.attention);
        let (keys, queries) = case.tables();
        let d_out = random(q.len(), 4);
        Operands {
            q,
            k,
            v,
            keys,
            queries,
            d_out,
        }
    }

    /// (out, lse, d_q, d_k, d_v, d_keys, d_queries) by the kernels.
    pub fn run<E: AttentionElement>(
        &self,
        isa: Isa,
        shape: &AttentionShape,
        rows: &[u32],
        trained: [bool; 2],
    ) -> [Vec<f32>; 7] {
        let given = Given {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            d_out: &self.d_out,
            rows: Some(rows),
            keys: self.keys.as_deref(),
            queries: self.queries.as_deref(),
            trained,
        };
        attend_both::<E>(isa, shape, &given)
    }

    /// (out, lse, d_q, d_k, d_v, d_keys, d_queries) by the reference.
    pub fn reference(&self, case: &Case, rows: &[u32]) -> [Vec<f64>; 7] {
        let (keys, queries) = (
            self.keys.as_deref().map(wide),
            self.queries.as_deref().map(wide),
        );
        let x = Disentangled {
            shape: case.attention.shape(),
            rows,
            q: &wide(&self.q),
            k: &wide(&self.k),
            v: &wide(&self.v),
            keys: keys.as_deref(),
            queries: queries.as_deref(),
        };
        let (out, lse) = reference::disentangled_attention(&x);
        let d = reference::disentangled_attention_backward(&x, &wide(&self.d_out));
        [out, lse, d.d_q, d.d_k, d.d_v, d.d_keys, d.d_queries]
    }
}

/// Panics unless all results have the same bits on one thread, on two and on five.
pub fn check_threads(what: &str, run: impl Fn() -> [Vec<f32>; 7] + Sync) {
    let run_on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let all = pool.expect("a pool").install(&run);
        all.map(|x| bits(&x))
    };
    let one = run_on(1);
    for threads in [2, 5] {
        assert!(one == run_on(threads), "{what} on {threads} threads");
    }
}
