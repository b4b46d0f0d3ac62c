//! The definition of every call: in f64 whatever the nominal storage, so that no rounding hides
//! anything, plain, and on one thread. What other backends are compared with.

mod attention;
mod norms;

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::product::{Arithmetic, BlockRows, Side, WeightFormat};
use lowrank_kernels::reference as definition;
use lowrank_kernels::{Activation, Rope};

use super::{Backend, BlockOfRows, Scratch, Sizes};
use crate::call::{
    Call, CrossEntropy, ElementLoss, Epilogue, GateUp, GateUpGradients, Operand, Outer, Product,
    Rotation, RotationSense, Rows, TableRef, TableRows, Transpose, Write,
};
use crate::param::{PackedMatrix, transpose};
use crate::space::Space;
use crate::tensor::{Scalar, Tensor};

/// Bytes of memory for a nominal byte: a bf16 becomes an f64.
const SCALE: usize = size_of::<f64>() / 2;

/// The f64 backend.
pub struct Reference {
    space: Space,
}

impl Reference {
    /// With address space of its own.
    ///
    /// # Errors
    /// Address space cannot be had.
    pub fn new() -> Result<Self, std::io::Error> {
        let space = Space::reserve_wide(SCALE)?;
        Ok(Reference { space })
    }
}

struct ReferenceSizes;

impl Sizes for ReferenceSizes {
    fn threads(&self) -> usize {
        1
    }

    fn packed_bytes(&self, _: WeightFormat, rows: usize, depth: usize) -> usize {
        rows * depth * size_of::<f64>() / SCALE
    }

    fn depth_multiple(&self, _: Arithmetic) -> usize {
        1
    }

    fn scratch_bytes(&self, _: &Call<'_>) -> usize {
        0
    }
}

/// Row-major.
fn values(matrix: &PackedMatrix) -> &[f64] {
    &matrix.host()[..matrix.out_features() * matrix.in_features()]
}

/// Row-major.
fn values_mut(matrix: &mut PackedMatrix) -> &mut [f64] {
    let len = matrix.out_features() * matrix.in_features();
    &mut matrix.host_mut()[..len]
}

/// Whole rows as a matrix keeps them.
fn stored(matrix: &PackedMatrix, rows: &[f32]) -> Vec<f64> {
    match matrix.format() {
        WeightFormat::Int8 => definition::int8_weight(rows, matrix.in_features()),
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::Blocks(_) => {
            rows.iter().copied().map(f64::from).collect()
        }
    }
}

fn rows_of<'a>(rows: &Rows<'a>) -> &'a [f64] {
    let cols = rows.tensor.cols();
    &rows.tensor.host()[rows.rows.start * cols..rows.rows.end * cols]
}

fn transposed(x: &[f64], rows: usize, cols: usize, transpose: Transpose) -> Vec<f64> {
    match transpose {
        Transpose::No => x.to_vec(),
        Transpose::Yes => definition::transpose(x, rows, cols),
    }
}

fn operand(b: &Operand<'_>) -> Vec<f64> {
    let (rows, cols) = (b.matrix.out_features(), b.matrix.in_features());
    transposed(values(b.matrix), rows, cols, b.transpose)
}

/// into += from.
fn add(into: &mut [f64], from: &[f64]) {
    assert_eq!(into.len(), from.len());
    into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
}

/// a and b of a product: where b is integers, those that the operands become.
fn operands(product: &Product<'_>) -> [Vec<f64>; 2] {
    let b = &product.b;
    let [_, k] = b.shape();
    let width = product.a.tensor.cols();
    let a = rows_of(&product.a).chunks_exact(width.max(1));
    let a: Vec<f64> = a.flat_map(|row| row[..k].to_vec()).collect();
    if b.matrix.format() != WeightFormat::Int8 {
        return [a, operand(b)];
    }
    let weight = definition::IntegerWeight {
        values: values(b.matrix),
        shape: [b.matrix.out_features(), b.matrix.in_features()],
        side: match b.transpose {
            Transpose::No => Side::Straight,
            Transpose::Yes => Side::Transposed,
        },
        outliers: b.outliers(),
        rounding: product.rounding,
    };
    let narrow: Vec<f32> = a.iter().map(|a| *a as f32).collect();
    definition::integer_operands(&narrow, &weight)
}

fn product(product: Product<'_>) {
    let [n, k] = product.b.shape();
    let m = product.a.rows.len();
    let [a, b] = operands(&product);
    let bias = product.bias.map(|bias| bias.host());
    let alpha = f64::from(product.alpha);
    let zeros = vec![0.0; m * n];
    let mut v = definition::gemm([m, n, k], &a, &b, alpha, bias, &zeros);
    for term in product.low_rank {
        let (h, scale) = (term.h.host(), f64::from(term.scale));
        let shape = [term.rows.len(), n, term.h.cols()];
        let v = &mut v[term.rows.start * n..term.rows.end * n];
        let with_term = definition::gemm(shape, h, &operand(&term.g), scale, None, v);
        v.copy_from_slice(&with_term);
    }
    let c = &mut product.c.tensor.host_mut::<f64>()[product.c.rows.start * n..][..m * n];
    match product.epilogue {
        Epilogue::Write(Write::Store) => c.copy_from_slice(&v),
        Epilogue::Write(Write::Add) => add(c, &v),
        Epilogue::Activate { kind, pre } => {
            for (c, v) in c.iter_mut().zip(&v) {
                *c = definition::activation(kind, *v);
            }
            if let Some(pre) = pre {
                pre.host_mut().copy_from_slice(&v);
            }
        }
        Epilogue::ActivateBackward { kind, pre } => {
            for ((c, v), pre) in c.iter_mut().zip(v).zip(pre.host::<f64>()) {
                *c = v * definition::activation_derivative(kind, *pre);
            }
        }
    }
}

fn outer(call: Outer<'_>) {
    let Outer { a, b, out, .. } = call;
    let (m, n) = (a.cols(), b.tensor.cols());
    let (a_values, b, alpha) = (a.host::<f64>(), rows_of(&b), f64::from(call.alpha));
    let out_rows = out.rows();
    let out = out.host_mut::<f64>();
    for row in 0..a.rows() {
        for i in 0..out_rows {
            for j in 0..n {
                out[i * n + j] += alpha * a_values[row * m + i] * b[row * n + j];
            }
        }
    }
}

fn dropout(dropout: lowrank_kernels::Dropout, y: &mut [f64]) {
    for (i, y) in y.iter_mut().enumerate() {
        *y *= definition::dropout_factor(dropout, i as u64);
    }
}

fn embedding(tables: &[TableRows<'_>], y: &mut Tensor) {
    let cols = y.cols();
    let y = y.host_mut::<f64>();
    y.fill(0.0);
    for TableRows { table, ids } in tables {
        let table = match table {
            TableRef::Rows(table) => table.host(),
            TableRef::Packed(matrix) => values(matrix),
        };
        add(y, &definition::embedding(table, cols, ids));
    }
}

fn embedding_backward(d_y: &Tensor, ids: &[u32], padding_idx: Option<u32>, d_table: &mut Tensor) {
    let d_y = d_y.host::<f64>();
    let (cols, into) = (d_table.cols(), d_table.host_mut::<f64>());
    for (row, &id) in ids.iter().enumerate() {
        if Some(id) != padding_idx {
            let d = &d_y[row * cols..][..cols];
            add(&mut into[id as usize * cols..][..cols], d);
        }
    }
}

fn rotate(rotation: &Rotation<'_>, sense: RotationSense, x: &mut Tensor) {
    let [cos, sin] = [rotation.cos, rotation.sin].map(Tensor::read);
    let rope = Rope {
        head_dim: rotation.form.head_dim,
        rotary_dim: rotation.form.rotary_dim,
        layout: rotation.form.layout,
        cos: &cos,
        sin: &sin,
        positions: rotation.positions,
    };
    let x = x.host_mut();
    let turned = match sense {
        RotationSense::Forward => definition::rope(&rope, x),
        RotationSense::Backward => definition::rope_backward(&rope, x),
    };
    x.copy_from_slice(&turned);
}

/// gate and up of element i of y [M, width].
fn gate_up(x: &GateUp<'_>, width: usize, i: usize) -> [f64; 2] {
    match x {
        GateUp::Separate(gate, up) => [gate.host()[i], up.host()[i]],
        GateUp::Halves(x) => {
            let at = i + i / width * width;
            [x.host()[at], x.host()[at + width]]
        }
    }
}

fn gated_backward(kind: Activation, x: &GateUp<'_>, d_y: &Tensor, mut d_x: GateUpGradients<'_>) {
    let width = d_y.cols();
    for (i, d) in d_y.host::<f64>().iter().enumerate() {
        let [gate, up] = gate_up(x, width, i);
        let (d_gate, d_up) = definition::gated_backward(kind, gate, up, *d);
        match &mut d_x {
            GateUpGradients::Separate(into_gate, into_up) => {
                into_gate.host_mut()[i] = d_gate;
                into_up.host_mut()[i] = d_up;
            }
            GateUpGradients::Halves(into) => {
                let at = i + i / width * width;
                into.host_mut()[at] = d_gate;
                into.host_mut()[at + width] = d_up;
            }
        }
    }
}

/// For each row of two tensors with as many rows.
fn for_each_row(x: &Tensor, y: &mut Tensor, mut each: impl FnMut(usize, &[f64], &mut [f64])) {
    let (x_cols, y_cols) = (x.cols(), y.cols());
    let rows = x.host::<f64>().chunks_exact(x_cols.max(1));
    let rows = rows.zip(y.host_mut().chunks_exact_mut(y_cols.max(1)));
    rows.enumerate().for_each(|(i, (x, y))| each(i, x, y));
}

/// Calls `each(row, column of the unfolded row, row of the neighbour)` for each tap inside a
/// sequence.
fn for_each_tap(offsets: &[usize], taps: usize, mut each: impl FnMut(usize, usize, usize)) {
    for range in offsets.windows(2) {
        for row in range[0]..range[1] {
            for tap in 0..taps {
                let neighbour = (row + tap).checked_sub(taps / 2);
                if let Some(neighbour) = neighbour.filter(|n| (range[0]..range[1]).contains(n)) {
                    each(row, tap, neighbour);
                }
            }
        }
    }
}

fn cross_entropy(call: CrossEntropy<'_>) {
    let CrossEntropy {
        logits,
        labels,
        form,
        gradient,
        sum,
    } = call;
    let classes = logits.cols();
    let (scale, smoothing) = (f64::from(form.grad_scale), f64::from(form.smoothing));
    let logits = logits.host_mut::<f64>();
    let (losses, d) = definition::cross_entropy(logits, classes, labels, scale, smoothing);
    *sum.host_mut() += losses.iter().sum::<f64>();
    let Some(into) = gradient else {
        logits.copy_from_slice(&d);
        return;
    };
    let width = into.tensor.cols();
    let rows = into.tensor.host_mut::<f64>()[into.rows.start * width..].chunks_exact_mut(width);
    for (row, d) in rows.zip(d.chunks_exact(classes)) {
        row[..classes].copy_from_slice(d);
        row[classes..].fill(0.0);
    }
}

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn space(&self) -> &Space {
        &self.space
    }

    fn sizes(&self) -> Arc<dyn Sizes> {
        Arc::new(ReferenceSizes)
    }

    #[expect(clippy::too_many_lines, reason = "one exhaustive match over `Call`")]
    fn run(&self, call: Call<'_>, _: Scratch<'_>) {
        match call {
            Call::Fill { out, value } => out.host_mut().fill(f64::from(value)),
            Call::Copy { x, out } => {
                let start = out.rows.start * out.tensor.cols();
                let from = rows_of(&x);
                out.tensor.host_mut()[start..start + from.len()].copy_from_slice(from);
            }
            Call::Convert { x, out } => out.host_mut().copy_from_slice(x.host::<f64>()),
            Call::Add { x, out } => add(out.host_mut(), x.host()),
            Call::Scale { x, factor } => {
                (x.host_mut::<f64>().iter_mut()).for_each(|x| *x *= f64::from(factor));
            }
            Call::Pack { x, transpose, out } => {
                let x = transposed(x.host(), x.rows(), x.cols(), transpose);
                values_mut(out).copy_from_slice(&x);
            }
            Call::Product(call) => product(call),
            Call::Outer(call) => outer(call),
            Call::ExpandBlocks {
                blocks,
                stored,
                out,
            } => blocks.write(stored.host::<f64>(), stored.cols(), out.host_mut()),
            Call::GatherBlocks { blocks, whole, out } => {
                let rank = out.cols();
                blocks.gather(whole.host::<f64>(), rank, out.host_mut());
            }
            Call::Attention { inputs, out, lse } => attention::forward(&inputs, out, lse),
            Call::AttentionBackward {
                inputs,
                d_out,
                gradients,
                ..
            } => attention::backward(&inputs, d_out, gradients),
            Call::CachedAttention(call) => attention::cached(call),
            Call::Norm(call) => norms::norm(call),
            Call::NormRecompute { saved, form, y } => norms::recompute(&saved, &form, y.host_mut()),
            Call::NormBackward { saved, form, d } => norms::backward(&saved, &form, d.host_mut()),
            Call::NormParamGrads {
                saved,
                d_y,
                d_weight,
                d_bias,
            } => norms::param_grads(&saved, d_y.host(), d_weight, d_bias),
            Call::Rotate { rotation, sense, x } => rotate(&rotation, sense, x),
            Call::Gated { kind, x, y } => {
                let (width, y) = (y.cols(), y.host_mut::<f64>());
                for (i, y) in y.iter_mut().enumerate() {
                    let [gate, up] = gate_up(&x, width, i);
                    *y = definition::gated(kind, gate, up);
                }
            }
            Call::GatedBackward { kind, x, d_y, d_x } => gated_backward(kind, &x, d_y, d_x),
            Call::Activation { kind, x, y } => {
                let y = y.host_mut::<f64>();
                x.into_iter().for_each(|x| y.copy_from_slice(x.host()));
                y.iter_mut()
                    .for_each(|y| *y = definition::activation(kind, *y));
            }
            Call::ActivationBackward { kind, pre, d } => {
                for (d, pre) in d.host_mut::<f64>().iter_mut().zip(pre.host()) {
                    *d *= definition::activation_derivative(kind, *pre);
                }
            }
            Call::Dropout {
                dropout: mask,
                x,
                y,
            } => {
                let y = y.host_mut();
                x.into_iter().for_each(|x| y.copy_from_slice(x.host()));
                dropout(mask, y);
            }
            Call::ColumnSum { x, out } => {
                add(out.host_mut(), &definition::column_sum(x.host(), x.cols()));
            }
            Call::Embedding { tables, y } => embedding(tables, y),
            Call::EmbeddingBackward {
                d_y,
                ids,
                padding_idx,
                d_table,
            } => embedding_backward(d_y, ids, padding_idx, d_table),
            Call::Gather { x, rows, y } => {
                let (cols, x) = (x.cols(), x.host::<f64>());
                let rows = rows.iter().map(|row| &x[row * cols..][..cols]);
                (y.host_mut().chunks_exact_mut(cols).zip(rows))
                    .for_each(|(y, x)| y.copy_from_slice(x));
            }
            Call::Scatter { x, rows, out } => {
                let (cols, out) = (x.cols(), out.host_mut::<f64>());
                for (x, &row) in x.host::<f64>().chunks_exact(cols).zip(rows) {
                    out[row as usize * cols..][..cols].copy_from_slice(x);
                }
            }
            Call::ScatterAdd { d_y, rows, d_x } => {
                let (cols, d_x) = (d_y.cols(), d_x.host_mut());
                for (d, row) in d_y.host().chunks_exact(cols).zip(rows) {
                    add(&mut d_x[row * cols..][..cols], d);
                }
            }
            Call::Slice { x, first, y } => for_each_row(x, y, |_, x, y| {
                y.copy_from_slice(&x[first..first + y.len()]);
            }),
            Call::SliceBackward { d_y, first, d_x } => for_each_row(d_y, d_x, |_, d_y, d_x| {
                add(&mut d_x[first..first + d_y.len()], d_y);
            }),
            Call::PutColumns { x, columns, out } => for_each_row(x, out, |_, x, out| {
                let columns = columns.iter().map(|&column| column as usize);
                columns.zip(x).for_each(|(column, x)| out[column] = *x);
            }),
            Call::TakeColumns { x, columns, out } => {
                let (few, many) = (out.cols(), x.cols());
                let rows = x.host_mut::<f64>().chunks_exact_mut(many);
                for (out, x) in out.host_mut::<f64>().chunks_exact_mut(few).zip(rows) {
                    for (out, &column) in out.iter_mut().zip(columns) {
                        *out = std::mem::take(&mut x[column as usize]);
                    }
                }
            }
            Call::HeadPart { x, form, bias, y } => {
                let bias = bias.map(Tensor::host::<f64>);
                for_each_row(x, y, |_, x, y| {
                    for (i, y) in y.iter_mut().enumerate() {
                        *y = x[form.column(i)] + bias.map_or(0.0, |bias| bias[i]);
                    }
                });
            }
            Call::HeadPartBackward { d_y, form, d_x } => for_each_row(d_y, d_x, |_, d_y, d_x| {
                d_y.iter()
                    .enumerate()
                    .for_each(|(i, d)| d_x[form.column(i)] += d);
            }),
            Call::Unfold {
                x,
                offsets,
                taps,
                y,
            } => {
                let (cols, x) = (x.cols(), x.host::<f64>());
                let y = y.host_mut::<f64>();
                y.fill(0.0);
                for_each_tap(offsets, taps, |row, tap, neighbour| {
                    for c in 0..cols {
                        y[(row * cols + c) * taps + tap] = x[neighbour * cols + c];
                    }
                });
            }
            Call::UnfoldBackward {
                d_y,
                offsets,
                taps,
                d_x,
            } => {
                let (cols, d_y) = (d_x.cols(), d_y.host::<f64>());
                let d_x = d_x.host_mut::<f64>();
                d_x.fill(0.0);
                for_each_tap(offsets, taps, |row, tap, neighbour| {
                    for c in 0..cols {
                        d_x[neighbour * cols + c] += d_y[(row * cols + c) * taps + tap];
                    }
                });
            }
            Call::CrossEntropy(call) => cross_entropy(call),
            Call::ElementLoss {
                kind,
                logits,
                targets,
                grad_scale,
                sum,
            } => {
                let (mut all, scale) = (0.0, f64::from(grad_scale));
                for (x, &target) in logits.host_mut::<f64>().iter_mut().zip(targets) {
                    let (loss, d) = match kind {
                        ElementLoss::Mse => definition::mse(*x, f64::from(target), scale),
                        ElementLoss::BceWithLogits => {
                            definition::bce_with_logits(*x, f64::from(target), scale)
                        }
                    };
                    all += loss;
                    *x = d;
                }
                *sum.host_mut() += all;
            }
            Call::AdamW {
                settings,
                gradient,
                value,
                m,
                v,
            } => {
                let (gradient, value) = (gradient.host::<f64>(), value.host_mut::<f64>());
                let (m, v) = (m.host_mut::<f64>(), v.host_mut::<f64>());
                for (i, g) in gradient.iter().enumerate() {
                    let (new, new_m, new_v) =
                        definition::adamw(&settings, value[i], *g, m[i], v[i]);
                    (value[i], m[i], v[i]) = (new, new_m, new_v);
                }
            }
            Call::ClearScalar { out } => *out.host_mut() = 0.0,
            Call::SumOfSquares { x, out } => {
                *out.host_mut() += x.host::<f64>().iter().map(|x| x * x).sum::<f64>();
            }
        }
    }

    fn read(&self, tensor: &Tensor, values: &mut [f32]) {
        let from = tensor.host::<f64>();
        values
            .iter_mut()
            .zip(from)
            .for_each(|(to, from)| *to = *from as f32);
    }

    fn write(&self, tensor: &mut Tensor, BlockOfRows { first, values }: BlockOfRows<'_>) {
        let start = first * tensor.cols();
        let into = tensor.host_mut::<f64>()[start..].iter_mut();
        into.zip(values)
            .for_each(|(to, from)| *to = f64::from(*from));
    }

    fn read_scalar(&self, scalar: &Scalar) -> f64 {
        scalar.host()
    }

    fn write_packed(&self, matrix: &mut PackedMatrix, block: BlockOfRows<'_>) {
        let start = block.first * matrix.in_features();
        let values = stored(matrix, block.values);
        values_mut(matrix)[start..][..values.len()].copy_from_slice(&values);
    }

    fn write_packed_blocks(
        &self,
        matrix: &mut PackedMatrix,
        rows: Range<usize>,
        parts: &BlockRows,
    ) {
        let WeightFormat::Blocks(format) = matrix.format() else {
            panic!("{} weights have no blocks", matrix.format().name());
        };
        let mut values = vec![0.0; rows.len() * matrix.in_features()];
        parts.values(format, &mut values);
        let (first, values) = (rows.start, &values[..]);
        self.write_packed(matrix, BlockOfRows { first, values });
    }

    fn write_packed_transposed(&self, matrix: &mut PackedMatrix, values: &[f32]) {
        let (inp, out) = (matrix.in_features(), matrix.out_features());
        let values = stored(matrix, &transpose(values, inp, out));
        values_mut(matrix).copy_from_slice(&values);
    }

    fn read_packed(&self, matrix: &PackedMatrix, into: &mut [f32]) {
        let from = values(matrix);
        into.iter_mut()
            .zip(from)
            .for_each(|(to, from)| *to = *from as f32);
    }
}
