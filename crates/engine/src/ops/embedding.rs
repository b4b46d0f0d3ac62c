//! y = Σ `tables[ids]`, one row a token. Shapes: table [V, D], ids `[M]`, y [M, D]. Saved: the ids of trained tables.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::Isa;

use crate::meter::Purpose;
use crate::param::{Matrix, Param, TrainableId, Trainables};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// A table [V, D] as a lookup reads it.
#[derive(Debug, Clone, Copy)]
pub enum Table<'m> {
    /// Rows one after the other.
    Rows(&'m Param),
    /// A matrix that a head multiplies with too.
    Matrix(&'m Matrix),
}

impl Table<'_> {
    /// The trainable's id, if the table is trained.
    pub fn trainable(&self) -> Option<TrainableId> {
        match self {
            Table::Rows(param) => param.trainable(),
            Table::Matrix(matrix) => matrix.trainable(),
        }
    }

    fn width(&self, trainables: &Trainables) -> usize {
        match self {
            Table::Rows(param) => param.shape(trainables)[1],
            Table::Matrix(matrix) => matrix.shape(trainables)[1],
        }
    }

    /// out = (or += if `accumulate`) the rows `ids`.
    fn gather(
        &self,
        isa: Isa,
        trainables: &Trainables,
        ids: &[u32],
        out: &mut Tensor,
        accumulate: bool,
    ) {
        let cols = out.cols();
        let rows = match self {
            Table::Rows(param) => param.data(trainables),
            Table::Matrix(Matrix::Trainable(id)) => trainables.get(*id).value.data(),
            Table::Matrix(Matrix::TrainableConv1d(_)) => {
                unreachable!("no table is stored as [D, V]")
            }
            Table::Matrix(Matrix::Frozen(packed)) => {
                let packed = packed.packed();
                kernels::embedding_gather_packed(packed, cols, ids, out.data_mut(), accumulate);
                return;
            }
        };
        kernels::embedding_gather(isa, rows, cols, ids, out.data_mut(), accumulate);
    }
}

/// One table and the rows to read from it.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'m, 'i> {
    /// The table [V, D].
    pub table: Table<'m>,
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
    let cols = tables[0].table.width(trainables);
    let mut y = Tensor::uninit(&device, rows, cols, Purpose::Activations);
    for (i, lookup) in tables.iter().enumerate() {
        let Lookup { table, ids, .. } = *lookup;
        assert_eq!(
            (table.width(trainables), ids.len()),
            (cols, rows),
            "embedding: table {i} does not fit the first"
        );
        device.exec(0, |isa| {
            table.gather(isa, trainables, ids, &mut y, i > 0);
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
