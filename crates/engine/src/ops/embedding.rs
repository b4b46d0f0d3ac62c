//! y = Σ `tables[ids]`, one row a token. Shapes: table [V, D], ids `[M]`, y [M, D]. Saved: the ids of trained tables.

use std::sync::Arc;

use lowrank_kernels as kernels;

use crate::meter::Purpose;
use crate::param::{Param, TrainableId};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// One table and the rows to read from it.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'m, 'i> {
    /// The table [V, D].
    pub table: &'m Param,
    /// Row numbers `[M]`.
    pub ids: &'i [u32],
    /// A row that gets no gradient. Source: PyTorch's `padding_idx`.
    pub padding_idx: Option<u32>,
}

/// Forward of the sum of several tables' rows. Panics if there is no table, if one has another width, or if an id is out
/// of range: callers check outside input first.
pub fn embedding<'m>(tape: &mut Tape<'m>, tables: &[Lookup<'m, '_>]) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let rows = tables[0].ids.len();
    let cols = tables[0].table.shape(trainables)[1];
    let mut y = Tensor::uninit(&device, rows, cols, Purpose::Activations);
    for (i, lookup) in tables.iter().enumerate() {
        let Lookup { table, ids, .. } = *lookup;
        assert_eq!(
            (table.shape(trainables)[1], ids.len()),
            (cols, rows),
            "embedding: table {i} does not fit the first"
        );
        device.exec(0, |isa| {
            kernels::embedding_gather(isa, table.data(trainables), cols, ids, y.data_mut(), i > 0);
        });
    }
    let trained = |l: &Lookup<'_, '_>| {
        l.table.trainable().map(|id| Trained {
            id,
            ids: l.ids.to_vec(),
            padding_idx: l.padding_idx,
        })
    };
    let needed = tables.iter().any(|l| l.table.trainable().is_some());
    tape.push(y, needed, || EmbeddingBackward {
        trained: tables.iter().filter_map(trained).collect(),
    })
}

struct Trained {
    id: TrainableId,
    ids: Vec<u32>,
    padding_idx: Option<u32>,
}

struct EmbeddingBackward {
    trained: Vec<Trained>,
}

impl Backward for EmbeddingBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let cols = d_y.cols();
        for Trained {
            id,
            ids,
            padding_idx,
        } in &self.trained
        {
            let d_table = cx.gradients.get_mut(*id);
            cx.device.exec(0, |_| {
                let d_table = d_table.data_mut();
                // Runs of real tokens: a padding token inside a row is rare, one at its end does not exist here.
                let mut start = 0;
                for run in ids.split(|id| Some(*id) == *padding_idx) {
                    let d = &d_y.data()[start * cols..][..run.len() * cols];
                    kernels::embedding_scatter_add(cols, run, d, d_table);
                    start += run.len() + 1;
                }
            });
        }
    }
}
