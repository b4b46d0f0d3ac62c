//! y = Σ `tables[ids]`, one row a token. Shapes: table [V, D], ids `[M]`, y [M, D]. Saved: the ids
//! of trained tables.

use std::sync::Arc;

use crate::call::{Call, Epilogue, Operand, Outer, Product, TableRef, TableRows, Transpose, Write};
use crate::device::Device;
use crate::meter::Purpose;
use crate::ops::linear::Adapter;
use crate::ops::trained_rows::{Hits, TrainedRows};
use crate::param::{Matrix, PackedMatrix, Param, TrainableId, Trainables};
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
    /// Rows that are trained in the table's place; of the first table alone.
    pub rows: Option<&'m TrainedRows>,
    /// A low-rank term of the rows, scaling·`A[ids]`·Bᵀ with A [V, r] and B [D, r], without
    /// dropout; of the first table alone.
    pub adapter: Option<&'m Adapter>,
}

impl Lookup<'_, '_> {
    /// Whether more than the table is read.
    fn is_plain(&self) -> bool {
        self.rows.is_none() && self.adapter.is_none()
    }
}

/// The rows `ids` of a table as they are stored, in f32. Empty on the dry device.
pub fn table_rows(
    device: &Device,
    table: Table<'_>,
    ids: &[u32],
    trainables: &Trainables,
) -> Vec<f32> {
    let cols = table.width(trainables);
    let mut y = Tensor::uninit(device, ids.len(), cols, Purpose::Workspace);
    let table = table.stored(trainables);
    device.run(Call::Embedding {
        tables: &[TableRows { table, ids }],
        y: &mut y,
    });
    match device.is_dry() {
        true => Vec::new(),
        false => y.read(),
    }
}

/// Forward of the sum of several tables' rows. Panics if there is no table, if one has another
/// width, or if an id is out of range: callers check outside input first.
pub fn embedding<'m>(tape: &mut Tape<'m>, tables: &[Lookup<'m, '_>]) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let rows = tables[0].ids.len();
    let cols = tables[0].table.width(trainables);
    let mut y = Tensor::activations(&device, rows, cols);
    let only_first = tables[1..].iter().all(Lookup::is_plain);
    assert!(only_first, "embedding: more of another table");
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
    let first = &tables[0];
    let own = |rows: &TrainedRows| rows.look_up(first, &stored, trainables, &mut y);
    let hits = first.rows.map(own);
    let term = |of: &Adapter| Term::look_up(of, first, trainables, &mut y);
    let term = first.adapter.map(term);
    let trained = |l: &Lookup<'_, '_>| {
        l.table.trainable().map(|id| Trained {
            id,
            ids: l.ids.to_vec(),
            padding_idx: l.padding_idx,
        })
    };
    let needed = !first.is_plain() || tables.iter().any(|l| l.table.trainable().is_some());
    tape.push(y, needed, || EmbeddingBackward {
        hits,
        term,
        trained: tables.iter().filter_map(trained).collect(),
    })
}

struct Trained {
    id: TrainableId,
    ids: Vec<u32>,
    padding_idx: Option<u32>,
}

/// The low-rank term of one lookup.
struct Term {
    adapter: Adapter,
    ids: Vec<u32>,
    padding_idx: Option<u32>,
    /// `A[ids]` [M, r].
    inner: Tensor,
}

impl Term {
    /// Adds it to y.
    fn look_up(
        adapter: &Adapter,
        lookup: &Lookup<'_, '_>,
        trainables: &Trainables,
        y: &mut Tensor,
    ) -> Self {
        let device = y.device().clone();
        let (table, ids) = (&trainables.get(adapter.a).value, lookup.ids);
        let mut inner = Tensor::uninit(&device, ids.len(), table.cols(), Purpose::Activations);
        device.run(Call::Embedding {
            tables: &[TableRows {
                table: TableRef::Rows(table),
                ids,
            }],
            y: &mut inner,
        });
        let b = &trainables.get(adapter.b).value;
        let b = PackedMatrix::trained(&device, b, Transpose::No);
        device.run(Call::Product(Product {
            alpha: adapter.scaling,
            epilogue: Epilogue::Write(Write::Add),
            ..Product::new(&inner, Operand::straight(&b), y)
        }));
        Term {
            adapter: *adapter,
            ids: ids.to_vec(),
            padding_idx: lookup.padding_idx,
            inner,
        }
    }

    fn backward(self, d_y: &Tensor, cx: &mut Backprop<'_>) {
        let (device, alpha) = (cx.device.clone(), self.adapter.scaling);
        let b = &cx.trainables.get(self.adapter.b).value;
        let b = PackedMatrix::trained(&device, b, Transpose::Yes);
        device.run(Call::Outer(Outer {
            alpha,
            ..Outer::new(d_y, &self.inner, cx.gradients.get_mut(self.adapter.b))
        }));
        let mut d_inner = self.inner;
        device.run(Call::Product(Product {
            alpha,
            ..Product::new(d_y, Operand::straight(&b), &mut d_inner)
        }));
        device.run(Call::EmbeddingBackward {
            d_y: &d_inner,
            ids: &self.ids,
            padding_idx: self.padding_idx,
            d_table: cx.gradients.get_mut(self.adapter.a),
        });
    }
}

struct EmbeddingBackward {
    hits: Option<Hits>,
    term: Option<Term>,
    trained: Vec<Trained>,
}

impl Backward for EmbeddingBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let EmbeddingBackward {
            hits,
            term,
            trained,
        } = *self;
        if let Some(hits) = &hits {
            hits.backward(&d_y, cx);
        }
        if let Some(term) = term {
            term.backward(&d_y, cx);
        }
        for trained in &trained {
            cx.device.run(Call::EmbeddingBackward {
                d_y: &d_y,
                ids: &trained.ids,
                padding_idx: trained.padding_idx,
                d_table: cx.gradients.get_mut(trained.id),
            });
        }
    }
}
