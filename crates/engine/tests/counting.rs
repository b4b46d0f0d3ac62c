//! A backend from outside: it counts calls and hands everything on to the reference.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lowrank_engine::backend::{Backend, BlockOfRows, Reference, Scratch, Sizes};
use lowrank_engine::call::Call;
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear_activation};
use lowrank_engine::ops::loss::{Targets, loss};
use lowrank_engine::{
    Activation, BlockRows, DType, Device, Gradients, Matrix, PackedMatrix, Purpose, Scalar, Site,
    Space, Tape, Tensor, Trainables,
};
use lowrank_testkit::Random;

type Counts = Arc<Mutex<BTreeMap<&'static str, usize>>>;

struct Counting {
    inner: Reference,
    calls: Counts,
}

impl Backend for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn space(&self) -> &Space {
        self.inner.space()
    }

    fn sizes(&self) -> Arc<dyn Sizes> {
        self.inner.sizes()
    }

    fn run(&self, call: Call<'_>, scratch: Scratch<'_>) {
        let mut calls = self.calls.lock().expect("no panic holds this lock");
        *calls.entry(call.name()).or_default() += 1;
        self.inner.run(call, scratch);
    }

    fn read(&self, tensor: &Tensor, values: &mut [f32]) {
        self.inner.read(tensor, values);
    }

    fn write(&self, tensor: &mut Tensor, block: BlockOfRows<'_>) {
        self.inner.write(tensor, block);
    }

    fn read_scalar(&self, scalar: &Scalar) -> f64 {
        self.inner.read_scalar(scalar)
    }

    fn write_packed(&self, matrix: &mut PackedMatrix, block: BlockOfRows<'_>) {
        self.inner.write_packed(matrix, block);
    }

    fn write_packed_blocks(&self, matrix: &mut PackedMatrix, rows: Range<usize>, of: &BlockRows) {
        self.inner.write_packed_blocks(matrix, rows, of);
    }

    fn write_packed_transposed(&self, matrix: &mut PackedMatrix, values: &[f32]) {
        self.inner.write_packed_transposed(matrix, values);
    }

    fn read_packed(&self, matrix: &PackedMatrix, values: &mut [f32]) {
        self.inner.read_packed(matrix, values);
    }
}

/// The loss of an adapted layer and the gradient of its factors.
fn pass(device: &Device) -> (f64, Vec<f32>) {
    let mut random = Random::new(5);
    let mut trainables = Trainables::default();
    let [a, b] = [[2, 8], [4, 2]].map(|[rows, cols]| {
        let values = random.normals_f32(rows * cols);
        trainables.add(device, format!("{rows}"), &[rows, cols], &values)
    });
    let weight = random.normals_f32(4 * 8);
    let weight = Matrix::Frozen(PackedMatrix::new(device, 4, 8, &weight));
    let adapter = Adapter {
        a,
        b,
        blocks: None,
        scaling: 0.5,
        dropout: 0.0,
        site: Site::named(1 << 32),
    };
    let params = LinearParams {
        weight: &weight,
        bias: None,
        adapter: Some(&adapter),
        slots: &[],
    };
    let mut tape = Tape::training(device, &trainables, None);
    let mut x = Tensor::uninit(device, 3, 8, Purpose::Activations);
    x.write(&random.normals_f32(3 * 8));
    let x = tape.constant(x);
    let y = linear_activation(&mut tape, x, params, Activation::Silu);
    let out = loss(&y, Targets::Class(&[3, 0, 1]), 1.0);
    let mut gradients = Gradients::zeros(device, &trainables);
    tape.backward(&y, out.d_logits, &mut gradients);
    let gradients = gradients.iter().flat_map(Tensor::read).collect();
    (out.sum, gradients)
}

#[test]
fn a_backend_from_outside_runs_every_call_and_changes_nothing() {
    let calls = Counts::default();
    let counting = Counting {
        inner: Reference::new().expect("address space"),
        calls: calls.clone(),
    };
    let found = pass(&Device::new(counting, DType::F32));
    let wanted = pass(&Device::reference().expect("address space"));
    assert_eq!(found, wanted);
    let calls = calls.lock().expect("no panic holds this lock");
    // h, y and d_h; A, B and Bᵀ laid out; the gradients of A and B.
    let count = |name: &str| calls.get(name).copied().unwrap_or_default();
    assert_eq!(count("product with a factor"), 3);
    assert_eq!([count("pack"), count("outer product")], [3, 2]);
    assert_eq!([count("cross_entropy"), count("activation")], [1, 1]);
}
