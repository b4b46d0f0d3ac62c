//! y = Σ `tables[ids]`, one row a token. Shapes: table [V, D], ids `[M]`, y [M, D]. Saved: the ids
//! of trained tables.

use std::sync::Arc;

use crate::call::{Call, TableRef, TableRows};
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

    /// The table as a call reads it.
    fn stored<'a>(&'a self, trainables: &'a Trainables) -> TableRef<'a> {
        match self {
            Table::Rows(param) => TableRef::Rows(param.tensor(trainables)),
            Table::Matrix(Matrix::Trainable(id)) => TableRef::Rows(&trainables.get(*id).value),
            Table::Matrix(Matrix::TrainableConv1d(_)) => {
                unreachable!("no table is stored as [D, V]")
            }
            Table::Matrix(Matrix::Frozen(packed)) => TableRef::Packed(packed),
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

/// Forward of the sum of several tables' rows. Panics if there is no table, if one has another
/// width, or if an id is out of range: callers check outside input first.
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
    let stored = tables.iter().map(|l| TableRows {
        table: l.table.stored(trainables),
        ids: l.ids,
    });
    let stored: Vec<_> = stored.collect();
    device.run(Call::Embedding {
        tables: &stored,
        y: &mut y,
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
        for trained in &self.trained {
            cx.device.run(Call::EmbeddingBackward {
                d_y: &d_y,
                ids: &trained.ids,
                padding_idx: trained.padding_idx,
                d_table: cx.gradients.get_mut(trained.id),
            });
        }
    }
}
