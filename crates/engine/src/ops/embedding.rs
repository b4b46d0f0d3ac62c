//! y = Σ tables[ids], one row a token. Shapes: table [V, D], ids [M], y [M, D]. Saved: the ids of trained tables.

use std::sync::Arc;

use lowrank_kernels as kernels;

use crate::meter::Purpose;
use crate::param::{Param, TrainableId};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward of the sum of several tables' rows. Panics if a table has another width or an id is out of range: callers
/// check outside input first.
pub fn embedding<'m>(tape: &mut Tape<'m>, tables: &[(&'m Param, &[u32])]) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let rows = tables[0].1.len();
    let cols = tables[0].0.shape(trainables)[1];
    let mut y = Tensor::uninit(&device, rows, cols, Purpose::Activations);
    for (i, (table, ids)) in tables.iter().enumerate() {
        assert_eq!((table.shape(trainables)[1], ids.len()), (cols, rows), "embedding: table {i} does not fit the first");
        device.exec(0, |isa| {
            kernels::embedding_gather(isa, table.data(trainables), cols, ids, y.data_mut(), i > 0);
        });
    }
    let trained = |(table, ids): &(&Param, &[u32])| table.trainable().map(|id| (id, ids.to_vec()));
    let needed = tables.iter().any(|(table, _)| table.trainable().is_some());
    tape.push(y, needed, || EmbeddingBackward { trained: tables.iter().filter_map(trained).collect() })
}

struct EmbeddingBackward {
    trained: Vec<(TrainableId, Vec<u32>)>,
}

impl Backward for EmbeddingBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        for (id, ids) in &self.trained {
            let d_table = cx.gradients.get_mut(*id);
            cx.device.exec(0, |_| kernels::embedding_scatter_add(d_y.cols(), ids, d_y.data(), d_table.data_mut()));
        }
    }
}
