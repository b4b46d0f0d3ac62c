//! What is made again in backward instead of being kept: a norm's output that adapters above it
//! read.

use lowrank_engine::ops::add::add;
use lowrank_engine::ops::embedding::{Lookup, Table, embedding};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear};
use lowrank_engine::ops::norm::{LayerNormParams, layer_norm};
use lowrank_engine::param::{Frozen, PackedMatrix};
use lowrank_engine::{
    DType, Device, Gradients, Isa, Matrix, Param, Phase, Purpose, StepKey, Tape, Tensor,
    Trainables, Var,
};
use lowrank_testkit::Random;

const ROWS: usize = 40;
const COLS: usize = 33;
const RANK: usize = 4;

/// A trained x below a frozen norm, and two adapted layers that read the norm's output.
struct Model {
    trainables: Trainables,
    x: Param,
    norm: [Param; 2],
    layers: [(Matrix, Adapter); 2],
}

impl Model {
    /// x holds `values`; all else is the same each time.
    fn new(device: &Device, values: &[f32]) -> Self {
        let mut random = Random::new(3);
        let mut trainables = Trainables::default();
        let x = Param::Trainable(trainables.add(device, "x".into(), &[ROWS, COLS], values));
        let norm = [0, 1].map(|_| {
            let vector = Frozen::new(device, 1, COLS, &random.normals_f32(COLS));
            Param::Frozen(vector)
        });
        let layers = ["q", "v"].map(|name| {
            let weight = random.normals_f32(COLS * COLS);
            let packed = PackedMatrix::from_transposed(device, COLS, COLS, &weight);
            let mut factor = |what: &str, shape: [usize; 2]| {
                let values = random.normals_f32(COLS * RANK);
                trainables.add(device, format!("{name}.{what}"), &shape, &values)
            };
            let adapter = Adapter {
                a: factor("a", [RANK, COLS]),
                b: factor("b", [COLS, RANK]),
                blocks: None,
                scaling: 0.5,
                dropout: 0.3,
                site: lowrank_engine::Site::named(7 << 32),
            };
            (Matrix::Frozen(packed), adapter)
        });
        Model {
            trainables,
            x,
            norm,
            layers,
        }
    }

    fn tape(&self, device: &Device) -> Tape<'_> {
        let step = StepKey {
            seed: 1,
            micro_step: 2,
        };
        Tape::training(device, &self.trainables, Some(step))
    }

    fn input<'m>(&'m self, tape: &mut Tape<'m>) -> Var {
        let ids: Vec<u32> = (0..ROWS as u32).collect();
        let lookup = Lookup {
            table: Table::Rows(&self.x),
            ids: &ids,
            padding_idx: None,
            rows: None,
            adapter: None,
        };
        embedding(tape, &[lookup])
    }

    fn norm<'m>(&'m self, tape: &mut Tape<'m>, x: Var) -> Var {
        let params = LayerNormParams {
            weight: &self.norm[0],
            bias: &self.norm[1],
            eps: 1e-5,
        };
        // With a residual, so that z is the norm's own.
        layer_norm(tape, x.clone(), Some(x), params, 0.0)
    }

    fn layers<'m>(&'m self, tape: &mut Tape<'m>, y: Var) -> [Var; 2] {
        let apply = |(weight, adapter): &'m (Matrix, Adapter)| {
            let params = LinearParams {
                weight,
                bias: None,
                adapter: Some(adapter),
                slots: &[],
            };
            linear(tape, y.clone(), params)
        };
        let [first, second] = &self.layers;
        [first, second].map(apply)
    }
}

/// The gradients of all adapters, where the layers read the norm's output or, with `held`, a value
/// that holds the same.
fn adapter_gradients(device: &Device, held: bool) -> (Vec<Vec<f32>>, u64) {
    let values = Random::new(9).normals_f32(ROWS * COLS);
    let mut model = Model::new(device, &values);
    if held {
        let mut tape = model.tape(device);
        let x = model.input(&mut tape);
        let y = model.norm(&mut tape, x).tensor().read();
        drop(tape);
        model = Model::new(device, &y);
    }
    let mut tape = model.tape(device);
    let mut y = model.input(&mut tape);
    if !held {
        y = model.norm(&mut tape, y);
    }
    let [q, v] = model.layers(&mut tape, y);
    let sum = add(&mut tape, q, v, 0.0);
    let mut gradients = Gradients::zeros(device, &model.trainables);
    let d = Random::new(4).normals_f32(ROWS * COLS);
    let d = Tensor::from_slice(device, ROWS, COLS, Purpose::Activations, &d);
    device.start_profile();
    tape.backward(&sum, d, &mut gradients);
    let profile = device.end_profile().expect("started above");
    let norms = (profile.longest_first().into_iter())
        .filter(|op| op.op == "layer_norm" && op.phase == Phase::Backward)
        .map(|op| op.calls);
    let adapters = model.layers.iter().flat_map(|(_, a)| [a.a, a.b]);
    let of = |id| gradients.get(id).read();
    (adapters.map(of).collect(), norms.sum())
}

#[test]
fn adapters_get_the_gradients_that_a_held_input_gives() {
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let (made_again, norms) = adapter_gradients(&device, false);
    let (held, _) = adapter_gradients(&device, true);
    assert!(held.iter().all(|g| g.iter().any(|v| *v != 0.0)));
    assert_eq!(made_again, held);
    assert_eq!(norms, 2, "once for both layers, and the norm's backward");
}

#[test]
fn a_norms_output_is_not_kept_for_adapters() {
    for precision in [DType::F32, DType::Bf16] {
        let device = Device::dry_in(precision);
        let values = vec![0.0; ROWS * COLS];
        let model = Model::new(&device, &values);
        let mut tape = model.tape(&device);
        let x = model.input(&mut tape);
        let y = model.norm(&mut tape, x);
        let outputs = model.layers(&mut tape, y);
        // z and the outputs; mean, rstd and two h in f32.
        let want = 3 * ROWS * COLS * precision.bytes() + 4 * (2 * ROWS + 2 * ROWS * RANK);
        let found = device.memory().of(Purpose::Activations);
        assert_eq!(found, want as u64, "{precision:?}");
        drop(outputs);
    }
}
