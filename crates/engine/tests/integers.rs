//! Layers with a frozen weight of eight bits: every instruction set against the definition, which
//! columns are kept beside, and the same bits whether a layer is recomputed or not.

use lowrank_engine::ops::embedding::{Lookup, Table, embedding};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear};
use lowrank_engine::{
    Arithmetic, BaseFormat, DType, Device, Gradients, Isa, Matrix, Numerics, Outliers,
    PackedMatrix, Param, Purpose, Site, StepKey, Tape, Tensor, Trainables,
};
use lowrank_testkit::{Random, Tolerance, check_close};

const ROWS: usize = 70;
const IN: usize = 200;
const OUT: usize = 100;
const RANK: usize = 3;

/// Large columns of x and of the gradient of y.
const LARGE: [usize; 2] = [17, 150];
const LARGE_GRADIENT: [usize; 2] = [3, 99];

const INT8: Numerics = Numerics {
    activations: DType::F32,
    weights: BaseFormat::Int8,
    arithmetic: Arithmetic::F32,
};

struct Layer {
    device: Device,
    weight: Matrix,
    adapter: Adapter,
    x: Param,
    trainables: Trainables,
}

#[derive(Clone, Copy, PartialEq)]
enum Recompute {
    Yes,
    No,
}

impl Layer {
    fn new(device: Device) -> Self {
        let mut random = Random::new(5);
        let values = random.normals_f32(OUT * IN);
        let packed = PackedMatrix::new(&device, OUT, IN, &values);
        let mut trainables = Trainables::default();
        let mut add = |name: &str, shape: [usize; 2], values: Vec<f32>| {
            trainables.add(&device, name.to_owned(), &shape, &values)
        };
        let (a, b) = (
            add("a", [RANK, IN], random.normals_f32(RANK * IN)),
            add("b", [OUT, RANK], random.normals_f32(OUT * RANK)),
        );
        let mut x = random.normals_f32(ROWS * IN);
        for row in x.chunks_exact_mut(IN) {
            LARGE.iter().for_each(|&column| row[column] *= 60.0);
        }
        let x = Param::Trainable(add("x", [ROWS, IN], x));
        let adapter = Adapter {
            a,
            b,
            blocks: None,
            scaling: 0.5,
            dropout: 0.3,
            site: Site::named(1),
        };
        Layer {
            weight: Matrix::Frozen(packed),
            adapter,
            x,
            trainables,
            device,
        }
    }

    fn packed(&mut self) -> &mut PackedMatrix {
        match &mut self.weight {
            Matrix::Frozen(packed) => packed,
            _ => panic!("the weight is frozen"),
        }
    }

    /// y, and the gradients of the trained values.
    fn pass(&self, step: Option<StepKey>, recompute: Recompute) -> Vec<Vec<f32>> {
        let mut tape = Tape::training(&self.device, &self.trainables, step);
        let ids: Vec<u32> = (0..ROWS as u32).collect();
        let table = Table::Rows(&self.x);
        let lookup = Lookup {
            table,
            ids: &ids,
            padding_idx: None,
            rows: None,
            adapter: None,
        };
        let x = embedding(&mut tape, &[lookup]);
        let y = match recompute {
            Recompute::Yes => tape.recompute(x, |tape, x| linear(tape, x, self.params())),
            Recompute::No => linear(&mut tape, x, self.params()),
        };
        let mut d_y = Tensor::activations(&self.device, ROWS, OUT);
        let mut values = Random::new(8).normals_f32(ROWS * OUT);
        for row in values.chunks_exact_mut(OUT) {
            LARGE_GRADIENT
                .iter()
                .for_each(|&column| row[column] *= 60.0);
        }
        d_y.write(&values);
        let found = y.tensor().to_f32(Purpose::Activations).read();
        let mut gradients = Gradients::zeros(&self.device, &self.trainables);
        tape.backward(&y, d_y, &mut gradients);
        let gradients = gradients.iter().map(Tensor::read);
        std::iter::once(found).chain(gradients).collect()
    }

    fn params(&self) -> LinearParams<'_> {
        LinearParams {
            weight: &self.weight,
            bias: None,
            adapter: Some(&self.adapter),
            slots: &[],
        }
    }

    /// The same with the columns that it meets kept beside.
    fn observed(device: Device) -> Self {
        let mut layer = Self::new(device);
        layer.device.start_observing();
        layer.pass(None, Recompute::No);
        let observed = layer.device.end_observing();
        layer.packed().take_observed(&observed);
        layer
    }
}

fn cpu(isa: Isa, numerics: Numerics) -> Device {
    Device::cpu_in(numerics, isa, 2).expect("threads start")
}

const STEP: StepKey = StepKey {
    seed: 3,
    micro_step: 4,
};

#[test]
fn every_instruction_set_agrees_with_the_definition() {
    let wanted = Layer::observed(Device::reference_in(INT8).expect("address space"));
    for isa in Isa::available() {
        let layer = Layer::observed(cpu(isa, INT8));
        for step in [None, Some(STEP)] {
            let wanted = wanted.pass(step, Recompute::No);
            for (i, found) in layer.pass(step, Recompute::No).iter().enumerate() {
                let what = format!("{i} on {isa:?}, {step:?}");
                // y and the gradient of x are single sums; those of a and b add large ones up.
                let off = match i {
                    0 | 3 => 2e-3,
                    _ => 5e-2,
                };
                check_close(&what, found, &wanted[i], Tolerance::new(off, 1e-5));
            }
        }
    }
}

#[test]
fn the_largest_columns_are_kept_beside_in_both_directions() {
    let mut layer = Layer::observed(cpu(Isa::best(), INT8));
    let wanted = Outliers {
        inputs: LARGE.map(|column| column as u32).into(),
        gradients: LARGE_GRADIENT.map(|column| column as u32).into(),
    };
    assert_eq!(layer.packed().outliers(), &wanted);

    // How far y and the gradient of x are from those of f32.
    let exact = Layer::new(cpu(Isa::best(), DType::F32.into())).pass(None, Recompute::No);
    let error = |layer: &Layer, i: usize| {
        let found = layer.pass(None, Recompute::No);
        let pairs = || found[i].iter().zip(&exact[i]);
        let off: f32 = pairs().map(|(found, exact)| (found - exact).powi(2)).sum();
        (off / exact[i].iter().map(|v| v * v).sum::<f32>()).sqrt()
    };
    let ignorant = Layer::new(cpu(Isa::best(), INT8));
    // y, and x behind a and b.
    for i in [0, 3] {
        let (with, without) = (error(&layer, i), error(&ignorant, i));
        assert!(with < 0.01, "{with}");
        assert!(with < without / 1.5, "{with} and {without}");
    }
}

#[test]
fn columns_that_do_not_fit_are_refused() {
    let mut layer = Layer::new(cpu(Isa::best(), INT8));
    let first = layer.packed().outliers().clone();
    let of = |inputs: &[u32], gradients: &[u32]| Outliers {
        inputs: inputs.into(),
        gradients: gradients.into(),
    };
    for wrong in [
        of(&[1], &[1, 2]),
        of(&[1, 200], &[1, 2]),
        of(&[2, 1], &[1, 2]),
        of(&[1, 1], &[1, 2]),
        of(&[1, 2], &[1, 100]),
    ] {
        assert!(!layer.packed().set_outliers(wrong));
        assert_eq!(layer.packed().outliers(), &first);
    }
    assert!(layer.packed().set_outliers(of(&[5, 199], &[0, 99])));
}

#[test]
fn what_is_recomputed_has_the_same_bits_and_each_step_rounds_anew() {
    let layer = Layer::observed(cpu(Isa::best(), INT8));
    let kept = layer.pass(Some(STEP), Recompute::No);
    assert!(layer.pass(Some(STEP), Recompute::Yes) == kept);
    let next = StepKey {
        micro_step: 5,
        ..STEP
    };
    assert!(layer.pass(Some(next), Recompute::No)[3] != kept[3]);
}

#[test]
fn a_plan_counts_what_the_processor_takes() {
    let dry = Layer::new(Device::dry_cpu(INT8, Isa::best(), 2));
    let real = Layer::new(cpu(Isa::best(), INT8));
    for layer in [&dry, &real] {
        let mut tape = Tape::training(&layer.device, &layer.trainables, Some(STEP));
        let ids: Vec<u32> = (0..ROWS as u32).collect();
        let table = Table::Rows(&layer.x);
        let lookup = Lookup {
            table,
            ids: &ids,
            padding_idx: None,
            rows: None,
            adapter: None,
        };
        let x = embedding(&mut tape, &[lookup]);
        let y = linear(&mut tape, x, layer.params());
        let d_y = Tensor::activations(&layer.device, ROWS, OUT);
        let mut gradients = Gradients::zeros(&layer.device, &layer.trainables);
        tape.backward(&y, d_y, &mut gradients);
    }
    let peaks = [&dry, &real].map(|layer| layer.device.peak_memory().total());
    assert_eq!(peaks[0], peaks[1]);
}
