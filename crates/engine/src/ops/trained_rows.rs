//! Some rows of a table [V, D] that are trained in its place, the rest frozen: PEFT's trainable
//! tokens. A lookup reads them and a head multiplies with them. Shapes: values [K, D], logits
//! [C, V], their columns at these rows [C, K].
//! Source: PEFT 0.21.2, `TrainableTokensLayer`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::call::Operand;
use crate::call::{
    Call, Epilogue, Outer, Product, Rows, RowsMut, TableRef, TableRows, Transpose, Write,
};
use crate::device::Device;
use crate::meter::Purpose;
use crate::ops::embedding::Lookup;
use crate::param::{Gradients, PackedMatrix, TrainableId, Trainables};
use crate::tape::Backprop;
use crate::tensor::Tensor;

/// Which rows of a table are trained, and their values.
#[derive(Debug, Clone)]
pub struct TrainedRows {
    rows: Arc<[u32]>,
    /// The place of each row among the values.
    places: Arc<BTreeMap<u32, u32>>,
    values: TrainableId,
}

impl TrainedRows {
    /// The table's rows `rows`, whose values [K, D] are in the same order. Panics if one is there
    /// twice.
    pub fn new(rows: &[u32], values: TrainableId) -> Self {
        let places: BTreeMap<u32, u32> = rows.iter().copied().zip(0..).collect();
        assert_eq!(places.len(), rows.len(), "each row once");
        TrainedRows {
            rows: rows.into(),
            places: places.into(),
            values,
        }
    }

    /// The table's rows.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Their values [K, D].
    pub fn values(&self) -> TrainableId {
        self.values
    }

    /// Puts the rows of y [M, D] whose ids of the first table are trained in the place of the
    /// table's own: the sum over `tables`, of which the first is this one's.
    pub(crate) fn look_up(
        &self,
        lookup: &Lookup<'_, '_>,
        tables: &[TableRows<'_>],
        trainables: &Trainables,
        y: &mut Tensor,
    ) -> Hits {
        let found = lookup.ids.iter().zip(0usize..);
        let found = found.filter_map(|(id, at)| Some((at, *self.places.get(id)?)));
        let (at, rows): (Vec<usize>, Vec<u32>) = found.unzip();
        let hits = Hits {
            at,
            rows,
            padding: lookup
                .padding_idx
                .and_then(|id| self.places.get(&id).copied()),
            values: self.values,
        };
        if !hits.at.is_empty() {
            hits.put(&tables[1..], trainables, y);
        }
        hits
    }
}

/// The trained rows of one lookup.
pub(crate) struct Hits {
    /// Rows of y.
    at: Vec<usize>,
    /// Their places among the values.
    rows: Vec<u32>,
    /// The place that gets no gradient.
    padding: Option<u32>,
    values: TrainableId,
}

impl Hits {
    /// Puts the sum of these rows and of the other tables' into y.
    fn put(&self, others: &[TableRows<'_>], trainables: &Trainables, y: &mut Tensor) {
        let device = y.device().clone();
        let mut own = Tensor::activations(&device, self.at.len(), y.cols());
        let pick = |table: &TableRows<'_>| self.at.iter().map(|&at| table.ids[at]).collect();
        let ids: Vec<Vec<u32>> = others.iter().map(pick).collect();
        let mut tables = vec![TableRows {
            table: TableRef::Rows(&trainables.get(self.values).value),
            ids: &self.rows,
        }];
        let others = others.iter().zip(&ids);
        tables.extend(others.map(|(other, ids)| TableRows {
            table: other.table,
            ids,
        }));
        device.run(Call::Embedding {
            tables: &tables,
            y: &mut own,
        });
        let rows: Vec<u32> = self.at.iter().map(|&at| at as u32).collect();
        device.run(Call::Scatter {
            x: &own,
            rows: &rows,
            out: y,
        });
    }

    /// Adds what d_y gives to the values.
    pub(crate) fn backward(&self, d_y: &Tensor, cx: &mut Backprop<'_>) {
        if self.at.is_empty() {
            return;
        }
        let (device, rows, cols) = (d_y.device(), self.at.len(), d_y.cols());
        let mut own = Tensor::uninit_as(d_y.dtype(), device, rows, cols, Purpose::Workspace);
        device.run(Call::Gather {
            x: d_y,
            rows: &self.at,
            y: &mut own,
        });
        device.run(Call::EmbeddingBackward {
            d_y: &own,
            ids: &self.rows,
            padding_idx: self.padding,
            d_table: cx.gradients.get_mut(self.values),
        });
    }
}

/// Trained rows of a head's table, as products take them.
pub(crate) struct HeadRows<'a> {
    of: &'a TrainedRows,
    packed: PackedMatrix,
}

impl<'a> HeadRows<'a> {
    pub(crate) fn new(device: &Device, of: &'a TrainedRows, trainables: &Trainables) -> Self {
        let values = &trainables.get(of.values).value;
        let packed = PackedMatrix::trained(device, values, Transpose::No);
        HeadRows { of, packed }
    }

    /// The logits of these rows take the place of the table's.
    pub(crate) fn put(&self, h: Rows<'_>, logits: &mut Tensor) {
        let (device, columns) = (logits.device().clone(), &*self.of.rows);
        let (rows, purpose) = (h.rows.len(), Purpose::Workspace);
        let mut own = Tensor::uninit(&device, rows, columns.len(), purpose);
        device.run(Call::Product(Product::new(
            h,
            Operand::straight(&self.packed),
            &mut own,
        )));
        device.run(Call::PutColumns {
            x: &own,
            columns,
            out: logits,
        });
    }

    /// Takes the gradient of these rows' logits out of d, leaving zeros, and adds what it and h
    /// give to the values.
    pub(crate) fn take(&self, d: &mut Tensor, h: Rows<'_>, gradients: &mut Gradients) -> Tensor {
        let (device, columns) = (d.device().clone(), &*self.of.rows);
        let (rows, purpose) = (d.rows(), Purpose::Workspace);
        let mut own = Tensor::uninit_as(d.dtype(), &device, rows, columns.len(), purpose);
        device.run(Call::TakeColumns {
            x: d,
            columns,
            out: &mut own,
        });
        let out = gradients.get_mut(self.of.values);
        device.run(Call::Outer(Outer::new(&own, h, out)));
        own
    }

    /// d_h += d·values, of what was taken.
    pub(crate) fn add_to_input(&self, d: &Tensor, d_h: RowsMut<'_>) {
        let device = d.device().clone();
        device.run(Call::Product(Product {
            epilogue: Epilogue::Write(Write::Add),
            ..Product::new(d, Operand::transposed(&self.packed), d_h)
        }));
    }
}
