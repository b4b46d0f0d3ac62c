//! A layer whose rows have adapters of their own gives each row the bits that its adapter alone
//! gives, on every instruction set and in both precisions, parts of a fused layer among them; and
//! the definition's values.

use lowrank_engine::ops::blocks::Blocks;
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear_activation, linear_f32};
use lowrank_engine::{
    Activation, Adapters, DType, Device, Isa, Matrix, PackedMatrix, Param, Purpose, RowSlots, Site,
    Tape, Tensor, Trainables,
};
use lowrank_testkit::{Random, Tolerance, check_close};

const IN: usize = 70;
const OUT: usize = 3 * 37;

/// Rows of each sequence across the edges of strips, and its slot.
const SEQUENCES: [(usize, usize); 9] = [
    (1, 1),
    (5, 2),
    (63, 3),
    (64, 0),
    (3, 3),
    (30, 1),
    (1, 0),
    (97, 2),
    (2, 2),
];

struct Layer {
    device: Device,
    weight: Matrix,
    bias: Param,
    trainables: Trainables,
    /// The layer's own adapter, and those of two slots.
    own: Adapter,
    slots: Vec<Option<Adapter>>,
    x: Vec<f32>,
}

impl Layer {
    /// Ranks below, at and above a panel of factors; the last adapter is of two parts.
    fn new(device: Device) -> Self {
        let mut random = Random::new(5);
        let values = random.normals_f32(OUT * IN);
        let packed = PackedMatrix::new(&device, OUT, IN, &values);
        let mut trainables = Trainables::default();
        let parts = Blocks {
            rows: [OUT / 3; 3],
            adapted: [true, false, true],
        };
        let slots = [(3, None), (40, None), (2, Some(parts))];
        let slots = slots.into_iter().enumerate().map(|(i, (rank, blocks))| {
            let shapes = match blocks {
                None => [[rank, IN], [OUT, rank]],
                Some(parts) => [[parts.count() * rank, IN], parts.stored_shape(rank)],
            };
            let [a, b] = shapes.map(|shape| {
                let values = random.normals_f32(shape[0] * shape[1]);
                let name = format!("{i} {shape:?}");
                trainables.add(&device, name, &shape, &values)
            });
            Adapter {
                a,
                b,
                blocks,
                scaling: 0.5 + i as f32,
                dropout: 0.3,
                site: Site::named(i as u64),
            }
        });
        let mut adapters: Vec<Adapter> = slots.collect();
        let own = adapters.remove(0);
        let rows: usize = SEQUENCES.iter().map(|(rows, _)| rows).sum();
        let bias = trainables.add(&device, "bias".into(), &[OUT], &random.normals_f32(OUT));
        Layer {
            weight: Matrix::Frozen(packed),
            bias: Param::Trainable(bias),
            own,
            slots: adapters.into_iter().map(Some).collect(),
            x: random.normals_f32(rows * IN),
            trainables,
            device,
        }
    }

    /// f(y) and y in f32 of some rows of x.
    fn run(&self, x: &[f32], adapters: Adapters, own: Option<&Adapter>) -> [Vec<f32>; 2] {
        let tape = Tape::inference(&self.device, &self.trainables);
        let mut tape = tape.with_adapters(adapters);
        let mut values = Tensor::activations(&self.device, x.len() / IN, IN);
        values.write(x);
        let x = tape.constant(values);
        let params = LinearParams {
            weight: &self.weight,
            bias: Some(&self.bias),
            adapter: own,
            slots: &self.slots,
        };
        let f = linear_activation(&mut tape, x.clone(), params, Activation::Gelu);
        let y = linear_f32(&mut tape, x, params);
        [f, y].map(|y| y.tensor().to_f32(Purpose::Activations).read())
    }

    fn by_slot(&self) -> [Vec<f32>; 2] {
        let mut offsets = vec![0];
        let ends = SEQUENCES.iter().scan(0, |end, (rows, _)| {
            *end += rows;
            Some(*end)
        });
        offsets.extend(ends);
        let slots = RowSlots::of_sequences(&offsets, &SEQUENCES.map(|(_, slot)| slot));
        self.run(&self.x, Adapters::BySlot(slots), Some(&self.own))
    }
}

#[test]
fn rows_of_several_adapters_have_the_bits_of_each_alone() {
    for isa in Isa::available() {
        for precision in [DType::F32, DType::Bf16] {
            let device = Device::cpu_in(precision, isa, 2).expect("threads start");
            let layer = Layer::new(device);
            let found = layer.by_slot();
            let mut first = 0;
            for (rows, slot) in SEQUENCES {
                let x = &layer.x[first * IN..][..rows * IN];
                let own = match slot {
                    0 => None,
                    1 => Some(&layer.own),
                    loaded => layer.slots[loaded - 2].as_ref(),
                };
                let alone = layer.run(x, Adapters::Own, own);
                for (found, alone) in found.iter().zip(&alone) {
                    let found = &found[first * OUT..][..rows * OUT];
                    let is_same =
                        (found.iter().zip(alone)).all(|(f, a)| f.to_bits() == a.to_bits());
                    let name = format!("{} {precision:?}, rows from {first}", isa.name());
                    assert!(is_same && found.len() == alone.len(), "{name}");
                }
                first += rows;
            }
        }
    }
}

#[test]
fn rows_of_several_adapters_have_the_values_of_the_definition() {
    let device = Device::reference().expect("address space");
    let [wanted_f, wanted] = Layer::new(device).by_slot();
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let [found_f, found] = Layer::new(device).by_slot();
    // Sums of 70 and 40 products of normals: up to 3e-5 off by rounding.
    let tolerance = Tolerance::new(1e-4, 1e-5);
    check_close("y", &found, &wanted, tolerance);
    check_close("f(y)", &found_f, &wanted_f, tolerance);
}

#[test]
#[should_panic(expected = "not the tokens of sequences")]
fn rows_that_are_no_tokens_have_no_slot() {
    let device = Device::cpu(Isa::best(), 1).expect("threads start");
    let layer = Layer::new(device);
    let slots = RowSlots::of_sequences(&[0, 2], &[1]);
    layer.run(&layer.x[..3 * IN], Adapters::BySlot(slots), None);
}
