//! Two layers with an activation between them: its derivative is multiplied in where the gradient
//! of its output is written, with an adapter above, with dropout in its branch, and where the
//! output is read twice.

use lowrank_engine::ops::activation::activation;
use lowrank_engine::ops::add::add;
use lowrank_engine::ops::embedding::{Lookup, Table, embedding};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear, linear_activation};
use lowrank_engine::param::PackedMatrix;
use lowrank_engine::{
    Activation, DType, Device, Gradients, Isa, Matrix, Param, Purpose, StepKey, Tape, Tensor,
    Trainables, Var,
};
use lowrank_testkit::{GradientCheck, Random, check_gradient, relative_error};

const ROWS: usize = 37;
const IN: usize = 33;
const HIDDEN: usize = 70;
const OUT: usize = 34;
const RANK: usize = 3;

/// What stands above the activation's output.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Above {
    /// A frozen layer.
    Frozen,
    /// An adapted layer.
    Adapted,
    /// An adapted layer with dropout in the adapter's branch, which is not written by the base's
    /// product.
    Dropped,
    /// An adapted layer, and the output itself.
    Twice,
    /// Nothing: the output is the end of the pass.
    Nothing,
    /// As `Adapted`, with the activation an op of its own, and the two layers recomputed in
    /// backward.
    Recomputed,
}

const ALL: [Above; 6] = [
    Above::Frozen,
    Above::Adapted,
    Above::Dropped,
    Above::Twice,
    Above::Nothing,
    Above::Recomputed,
];

fn frozen(device: &Device, seed: u64, [out, inp]: [usize; 2]) -> Matrix {
    let values = Random::new(seed).normals_f32(out * inp);
    let scale = 1.0 / (inp as f32).sqrt();
    let packed = PackedMatrix::from_blocks(device, out, inp, |first, block| {
        for (to, from) in block.iter_mut().zip(&values[first * inp..]) {
            *to = scale * from;
        }
        Ok::<(), std::convert::Infallible>(())
    });
    Matrix::Frozen(packed.expect("nothing can fail"))
}

/// The trained values: x, A and B, end to end.
fn start() -> Vec<f64> {
    Random::new(5).normals(ROWS * IN + RANK * HIDDEN + OUT * RANK)
}

fn layer<'m>(weight: &'m Matrix, adapter: Option<&'m Adapter>) -> LinearParams<'m> {
    LinearParams {
        weight,
        bias: None,
        adapter,
        slots: &[],
    }
}

#[derive(Clone, Copy)]
struct Layers<'m> {
    lower: LinearParams<'m>,
    /// The upper layer without its adapter.
    base: LinearParams<'m>,
    /// The upper layer.
    adapted: LinearParams<'m>,
    kind: Activation,
}

impl<'m> Layers<'m> {
    fn forward(self, tape: &mut Tape<'m>, x: Var, above: Above) -> Var {
        if above == Above::Recomputed {
            return tape.recompute(x, move |tape, x| {
                let h = linear(tape, x, self.lower);
                let h = activation(tape, h, self.kind);
                linear(tape, h, self.adapted)
            });
        }
        let h = linear_activation(tape, x, self.lower, self.kind);
        match above {
            Above::Nothing | Above::Recomputed => h,
            Above::Frozen => linear(tape, h, self.base),
            Above::Adapted | Above::Dropped => linear(tape, h, self.adapted),
            Above::Twice => {
                let first = linear(tape, h.clone(), self.adapted);
                let second = linear(tape, h, self.base);
                add(tape, first, second, 0.0)
            }
        }
    }
}

/// The sum of y times a cotangent, and the gradients of the trained values.
fn pass(precision: DType, above: Above, kind: Activation, values: &[f64]) -> (f64, Vec<f64>) {
    let device = Device::cpu_in(precision, Isa::best(), 2).expect("threads start");
    let (lower, upper) = (
        frozen(&device, 1, [HIDDEN, IN]),
        frozen(&device, 2, [OUT, HIDDEN]),
    );
    let mut trainables = Trainables::default();
    let mut rest: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let mut add_value = |name: &str, shape: [usize; 2]| {
        let later = rest.split_off(shape[0] * shape[1]);
        trainables.add(
            &device,
            name.into(),
            &shape,
            &std::mem::replace(&mut rest, later),
        )
    };
    let x = Param::Trainable(add_value("x", [ROWS, IN]));
    let adapter = Adapter {
        a: add_value("a", [RANK, HIDDEN]),
        b: add_value("b", [OUT, RANK]),
        blocks: None,
        scaling: 0.25,
        dropout: if above == Above::Dropped { 0.4 } else { 0.0 },
        site: lowrank_engine::Site::named(9 << 32),
    };
    let step = Some(StepKey {
        seed: 3,
        micro_step: 11,
    });
    let mut tape = Tape::training(&device, &trainables, step);
    let ids: Vec<u32> = (0..ROWS as u32).collect();
    let lookup = Lookup {
        table: Table::Rows(&x),
        ids: &ids,
        padding_idx: None,
        rows: None,
        adapter: None,
    };
    let input = embedding(&mut tape, &[lookup]);
    let adapted = Some(&adapter);
    let layers = Layers {
        lower: layer(&lower, None),
        base: layer(&upper, None),
        adapted: layer(&upper, adapted),
        kind,
    };
    let y = layers.forward(&mut tape, input, above);
    let cotangent = Random::new(6).normals_f32(y.rows() * y.cols());
    let found = y.tensor().to_f32(Purpose::Activations);
    let sum = (found.read().iter().zip(&cotangent))
        .map(|(y, c)| f64::from(*y) * f64::from(*c))
        .sum();
    let mut d_y = Tensor::activations(&device, y.rows(), y.cols());
    d_y.write(&cotangent);
    let mut gradients = Gradients::zeros(&device, &trainables);
    tape.backward(&y, d_y, &mut gradients);
    let gradients = gradients.iter().flat_map(|g| g.read());
    (sum, gradients.map(f64::from).collect())
}

/// f32 forward passes and a finite step: rounding ÷ eps and curvature · eps². Measured worst 6e-4.
const CURVED: GradientCheck = GradientCheck {
    eps: 4e-3,
    tolerance: 3e-3,
    floor: 10.0,
    directions: 3,
    seed: 5,
};

#[test]
fn an_activation_between_layers_has_its_derivative_whatever_stands_above() {
    for above in ALL {
        for kind in [Activation::Gelu, Activation::Tanh] {
            let x = start();
            let (_, gradient) = pass(DType::F32, above, kind, &x);
            let what = format!("{kind:?} under {above:?}");
            let f = |x: &[f64]| pass(DType::F32, above, kind, x).0;
            check_gradient(&what, f, &x, &gradient, CURVED);
        }
    }
}

/// Rounding of weights, activations and their gradients to 8 bits. Measured worst 5.2e-3.
const BF16: f64 = 1e-2;

#[test]
fn bf16_has_the_gradients_of_f32_but_for_rounding() {
    if !Isa::best().multiplies_bf16() {
        eprintln!("SKIPPED: this processor has no products of bf16");
        return;
    }
    for above in ALL {
        let x = start();
        let (_, want) = pass(DType::F32, above, Activation::Gelu, &x);
        let (_, found) = pass(DType::Bf16, above, Activation::Gelu, &x);
        let (x_len, a_len) = (ROWS * IN, RANK * HIDDEN);
        for range in [0..x_len, x_len..x_len + a_len, x_len + a_len..x.len()] {
            let error = relative_error(&found[range.clone()], &want[range.clone()], 1e-3);
            assert!(error <= BF16, "under {above:?}, {range:?}: {error}");
        }
    }
}
