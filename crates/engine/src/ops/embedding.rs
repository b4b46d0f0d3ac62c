//! y = Σ `tables[ids]`, one row a token. Shapes: table [V, D], ids `[M]`, y [M, D]. Saved: the ids of trained tables.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::TableRows;

use crate::param::{Matrix, Param, TrainableId, Trainables};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::{Tensor, with_element};

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

    /// The table as the kernel reads it. Panics on the dry device.
    fn stored<'a>(&'a self, trainables: &'a Trainables) -> kernels::Table<'a> {
        match self {
            Table::Rows(param) => kernels::Table::Rows(param.values(trainables)),
            Table::Matrix(Matrix::Trainable(id)) => {
                kernels::Table::Rows(trainables.get(*id).value.any_values())
            }
            Table::Matrix(Matrix::TrainableConv1d(_)) => {
                unreachable!("no table is stored as [D, V]")
            }
            Table::Matrix(Matrix::Frozen(packed)) => kernels::Table::Packed(packed.packed()),
        }
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
    let mut y = Tensor::activations(&device, rows, cols);
    for (i, Lookup { table, ids, .. }) in tables.iter().enumerate() {
        assert_eq!(
            (table.width(trainables), ids.len()),
            (cols, rows),
            "embedding: table {i} does not fit the first"
        );
    }
    let dtype = y.dtype();
    device.exec("embedding", 0, |isa| {
        let stored = tables.iter().map(|l| TableRows {
            table: l.table.stored(trainables),
            ids: l.ids,
        });
        let stored: Vec<_> = stored.collect();
        with_element!(dtype, E => {
            kernels::embedding_gather(isa, &stored, cols, y.values_mut::<E>());
        });
    });
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
            cx.device.exec("embedding", 0, |_| {
                let d_table = d_table.data_mut();
                // Runs of real tokens: a padding token inside a row is rare, one at its end does not exist here.
                let mut start = 0;
                for run in ids.split(|id| Some(*id) == *padding_idx) {
                    let range = start * cols..(start + run.len()) * cols;
                    with_element!(d_y.dtype(), E => {
                        let d = &d_y.values::<E>()[range];
                        kernels::embedding_scatter_add(cols, run, d, d_table);
                    });
                    start += run.len() + 1;
                }
            });
        }
    }
}
