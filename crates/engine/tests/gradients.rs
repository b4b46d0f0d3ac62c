//! Every op on the tape: its backward against finite differences of its forward, through the public
//! face. The kernels' own derivatives are proved in f64 beside them; this proves what the tape does
//! with them: which gradients are formed, scaled, masked and summed.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use std::sync::{Arc, LazyLock};

use lowrank_engine::ops::activation::activation;
use lowrank_engine::ops::add::add;
use lowrank_engine::ops::attention::{
    AttentionForm, AttentionMask, AttentionSpec, Positions, attention, disentangled_attention,
};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::{Lookup, Table, embedding};
use lowrank_engine::ops::gated::{gated, gated_halves};
use lowrank_engine::ops::gather::gather;
use lowrank_engine::ops::head_part::{HeadPart, head_part};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear};
use lowrank_engine::ops::loss::{Targets, loss};
use lowrank_engine::ops::neighbours::neighbours;
use lowrank_engine::ops::norm::{LayerNormParams, RmsFactor, RmsNormParams, layer_norm, rms_norm};
use lowrank_engine::ops::reshape::reshape;
use lowrank_engine::ops::rope::{RopeForm, RopeLayout, RopeTable, rope};
use lowrank_engine::ops::scale::scale;
use lowrank_engine::ops::slice::slice;
use lowrank_engine::param::{Frozen, PackedMatrix};
use lowrank_engine::{
    Activation, Arithmetic, BaseFormat, DType, Device, Gradients, Isa, Matrix, Numerics, Param,
    Purpose, StepKey, Tape, Tensor, Trainables, Var,
};
use lowrank_kernels::bf16;
use lowrank_testkit::Random;
use lowrank_testkit::{GradientCheck, Tolerance, check_close, check_gradient};

/// f32 forward passes and a step of 1: exact but for rounding. Measured worst 2e-6.
const LINEAR: GradientCheck = GradientCheck {
    eps: 1.0,
    tolerance: 2e-5,
    floor: 1.0,
    directions: 3,
    seed: 5,
};
/// f32 forward passes and a finite step: rounding ÷ eps and curvature · eps². Measured worst 6e-4.
const CURVED: GradientCheck = GradientCheck {
    eps: 1e-2,
    tolerance: 3e-3,
    floor: 1.0,
    directions: 3,
    seed: 5,
};

const STEP: StepKey = StepKey {
    seed: 3,
    micro_step: 11,
};

/// Against f64: rounding of f32 and of sums over a few dozen elements. Measured worst 6.3e-7 ·
/// (1 + |x|).
const OF_F32: Tolerance = Tolerance::new(2e-6, 2e-6);
/// Values and products in bf16, of which each rounding is 2^-9. Measured worst 0.025 · (1 + |x|).
const OF_BF16: Tolerance = Tolerance::new(0.04, 0.04);

/// Every combination of settings that a run may have.
const NUMERICS: [Numerics; 6] = [
    numerics(DType::F32, BaseFormat::F32, Arithmetic::F32),
    numerics(DType::F32, BaseFormat::Bf16, Arithmetic::F32),
    numerics(DType::F32, BaseFormat::Bf16, Arithmetic::Bf16),
    numerics(DType::Bf16, BaseFormat::F32, Arithmetic::F32),
    numerics(DType::Bf16, BaseFormat::Bf16, Arithmetic::F32),
    numerics(DType::Bf16, BaseFormat::Bf16, Arithmetic::Bf16),
];

const fn numerics(activations: DType, weights: BaseFormat, arithmetic: Arithmetic) -> Numerics {
    Numerics {
        activations,
        weights,
        arithmetic,
    }
}

/// Frozen weights of the cases are values that bf16 holds, so that their format alone rounds
/// nothing.
fn tolerance(numerics: Numerics) -> Tolerance {
    match (numerics.activations, numerics.arithmetic) {
        (DType::F32, Arithmetic::F32) => OF_F32,
        (DType::Bf16, _) | (_, Arithmetic::Bf16) => OF_BF16,
    }
}

/// Trained values by shape, and a function of them on the tape.
struct Case<'c> {
    shapes: Vec<[usize; 2]>,
    step: Option<StepKey>,
    build: &'c dyn for<'m> Fn(&mut Tape<'m>, &'m [Param], &'m Extra) -> Var,
    extra: &'c dyn Fn(&Device, &[Param]) -> Extra,
}

/// What is not trained.
#[derive(Default)]
struct Extra {
    vectors: Vec<Param>,
    table: Option<Arc<RopeTable>>,
    adapted: Option<(Matrix, Adapter)>,
}

fn nothing(_: &Device, _: &[Param]) -> Extra {
    Extra::default()
}

/// One for all: tensors of another device are refused.
fn device() -> Device {
    static DEVICE: LazyLock<Device> =
        LazyLock::new(|| Device::cpu(Isa::best(), 2).expect("threads start"));
    DEVICE.clone()
}

/// The definition of every call.
fn reference() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| Device::reference().expect("address space"));
    DEVICE.clone()
}

/// Every instruction set of this machine, in all of [`NUMERICS`].
fn processors() -> &'static [Device] {
    static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
        let of =
            |isa| NUMERICS.map(|numerics| Device::cpu_in(numerics, isa, 2).expect("threads start"));
        Isa::available().into_iter().flat_map(of).collect()
    });
    &DEVICES
}

/// What a pass gives: y, and the gradient of Σ y·cotangent by the trained values.
struct Pass {
    y: Vec<f32>,
    gradient: Vec<f32>,
}

impl Case<'_> {
    /// The gradient against finite differences, and every instruction set against the reference.
    fn check(&self, what: &str, check: GradientCheck) {
        let mut random = Random::new(17);
        let total: usize = self.shapes.iter().map(|[r, c]| r * c).sum();
        let x = random.normals(total);
        let wanted = self.pass(&reference(), &x, None);
        let cotangent = random.normals_f32(wanted.y.len());
        let f = |x: &[f64]| {
            let y = self.pass(&device(), x, None).y;
            let terms = y.iter().zip(&cotangent);
            terms.map(|(y, c)| f64::from(*y) * f64::from(*c)).sum()
        };
        let gradient = self.pass(&device(), &x, Some(&cotangent)).gradient;
        assert!(
            gradient.iter().any(|&g| g != 0.0),
            "{what}: some gradient flows"
        );
        let gradient: Vec<f64> = gradient.into_iter().map(f64::from).collect();
        check_gradient(what, f, &x, &gradient, check);
        let wanted = self.pass(&reference(), &x, Some(&cotangent));
        for device in processors() {
            let tolerance = tolerance(device.numerics());
            let found = self.pass(device, &x, Some(&cotangent));
            let what = format!("{what}, {device:?} in {}", device.numerics());
            check_close(&format!("{what}: y"), &found.y, &wanted.y, tolerance);
            let gradients = (&found.gradient, &wanted.gradient);
            check_close(&format!("{what}: d"), gradients.0, gradients.1, tolerance);
        }
    }

    /// Weights that bf16 holds have the bits of f32 where they are widened.
    fn check_widened(&self) {
        let total: usize = self.shapes.iter().map(|[r, c]| r * c).sum();
        let x = Random::new(17).normals(total);
        let wanted = self.pass(&reference(), &x, None);
        let cotangent = Random::new(18).normals_f32(wanted.y.len());
        for of_isa in processors().chunks_exact(NUMERICS.len()) {
            let [of_f32, widened] = [&of_isa[0], &of_isa[1]].map(|device| {
                let Pass { y, gradient } = self.pass(device, &x, Some(&cotangent));
                [y, gradient].concat()
            });
            assert!(of_f32 == widened, "{:?}", of_isa[0]);
        }
    }

    fn pass(&self, device: &Device, x: &[f64], cotangent: Option<&[f32]>) -> Pass {
        let (trainables, params) = self.values(device, x);
        let extra = (self.extra)(device, &params);
        let mut tape = Tape::training(device, &trainables, self.step);
        let y = (self.build)(&mut tape, &params, &extra);
        let values = y.tensor().read();
        let mut gradients = Gradients::zeros(device, &trainables);
        if let Some(cotangent) = cotangent {
            let mut d_y = Tensor::activations(device, y.rows(), y.cols());
            d_y.write(cotangent);
            tape.backward(&y, d_y, &mut gradients);
        }
        Pass {
            y: values,
            gradient: gradients.iter().flat_map(Tensor::read).collect(),
        }
    }

    fn values(&self, device: &Device, x: &[f64]) -> (Trainables, Vec<Param>) {
        let mut trainables = Trainables::default();
        let mut rest = x;
        let mut params = Vec::new();
        for (i, [rows, cols]) in self.shapes.iter().enumerate() {
            let (now, later) = rest.split_at(rows * cols);
            rest = later;
            let values: Vec<f32> = now.iter().map(|&v| v as f32).collect();
            params.push(Param::Trainable(trainables.add(
                device,
                format!("p{i}"),
                &[*rows, *cols],
                &values,
            )));
        }
        (trainables, params)
    }
}

/// A trained table, read row by row: its gradient is the gradient of x.
fn leaf<'m>(tape: &mut Tape<'m>, param: &'m Param) -> Var {
    let rows = param.shape(tape.trainables())[0] as u32;
    let ids: Vec<u32> = (0..rows).collect();
    embedding(
        tape,
        &[Lookup {
            table: Table::Rows(param),
            ids: &ids,
            padding_idx: None,
            rows: None,
            adapter: None,
        }],
    )
}

fn frozen_matrix(out: usize, inp: usize) -> Matrix {
    frozen_matrix_on(&device(), out, inp)
}

fn frozen_matrix_on(device: &Device, out: usize, inp: usize) -> Matrix {
    let values = halves(23, out * inp);
    Matrix::Frozen(PackedMatrix::new(device, out, inp, &values))
}

/// Values that bf16 holds, small enough that sums over a few hundred have the size of 1.
fn halves(seed: u64, n: usize) -> Vec<f32> {
    let values = Random::new(seed).normals_f32(n);
    values
        .iter()
        .map(|&v| bf16::from_f32(v).to_f32() / 16.0)
        .collect()
}

fn vector(device: &Device, len: usize, seed: u64) -> Param {
    let values = Random::new(seed).normals_f32(len);
    Param::Frozen(Frozen::new(device, 1, len, &values))
}

#[test]
fn linear_with_an_adapter_and_dropout() {
    // Trained: x, A, B. The function is linear in each alone, so each is moved alone.
    for (rows, inp, out, rank) in [
        (5, 7, 9, 2),
        (33, 40, 35, 8),
        (64, 96, 32, 33),
        (1, 1, 1, 1),
    ] {
        for step in [None, Some(STEP)] {
            for moved in 0..3 {
                check_linear([rows, inp, out, rank], moved, step);
            }
        }
    }
}

fn check_linear([rows, inp, out, rank]: [usize; 4], moved: usize, step: Option<StepKey>) {
    let device = device();
    let mut random = Random::new(7);
    let shapes = [[rows, inp], [rank, inp], [out, rank]];
    let start: Vec<Vec<f32>> = shapes
        .iter()
        .map(|[r, c]| random.normals_f32(r * c))
        .collect();
    let matrix = frozen_matrix(out, inp);
    let bias = Param::Frozen(Frozen::new(&device, 1, out, &random.normals_f32(out)));
    let cotangent = random.normals_f32(rows * out);
    let run = |values: &[f64], backward: bool| -> (f64, Vec<f64>) {
        let mut trainables = Trainables::default();
        let ids: Vec<_> = (0..3)
            .map(|i| {
                let moved_values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                let values = if i == moved { &moved_values } else { &start[i] };
                trainables.add(&device, format!("p{i}"), &shapes[i], values)
            })
            .collect();
        let table = Param::Trainable(ids[0]);
        let adapter = Adapter {
            a: ids[1],
            b: ids[2],
            blocks: None,
            scaling: 0.75,
            dropout: 0.4,
            site: lowrank_engine::Site::named(9 << 32),
        };
        let mut tape = Tape::training(&device, &trainables, step);
        let x = leaf(&mut tape, &table);
        let params = LinearParams {
            weight: &matrix,
            bias: Some(&bias),
            adapter: Some(&adapter),
            slots: &[],
        };
        let y = linear(&mut tape, x, params);
        let sum = y
            .tensor()
            .read()
            .iter()
            .zip(&cotangent)
            .map(|(y, c)| f64::from(*y) * f64::from(*c))
            .sum();
        if !backward {
            return (sum, Vec::new());
        }
        let mut gradients = Gradients::zeros(&device, &trainables);
        let d_y = Tensor::from_slice(&device, rows, out, Purpose::Activations, &cotangent);
        tape.backward(&y, d_y, &mut gradients);
        (
            sum,
            gradients
                .get(ids[moved])
                .read()
                .into_iter()
                .map(f64::from)
                .collect(),
        )
    };
    let x: Vec<f64> = start[moved].iter().map(|&v| f64::from(v)).collect();
    let (value, gradient) = run(&x, true);
    let check = GradientCheck {
        floor: value.abs().max(10.0),
        ..LINEAR
    };
    check_gradient(
        &format!("linear {rows}x{inp}x{out} r{rank}, argument {moved}"),
        |x| run(x, false).0,
        &x,
        &gradient,
        check,
    );
}

#[test]
fn frozen_tables_and_weights_under_an_adapter_in_every_format() {
    // Few rows, whose panels are widened in registers, and more; a depth beyond one block of f32
    // sums, each way.
    for (rows, inp, out, rank) in [(5, 40, 35, 4), (33, 40, 420, 8), (33, 420, 40, 8)] {
        for step in [None, Some(STEP)] {
            let ids: Vec<u32> = (0..rows as u32).collect();
            let case = Case {
                shapes: vec![[rows, inp], [rank, inp], [out, rank]],
                step,
                build: &|tape, params, extra| {
                    let lookup = |param| Lookup {
                        table: Table::Rows(param),
                        ids: &ids,
                        padding_idx: None,
                        rows: None,
                        adapter: None,
                    };
                    let x = embedding(tape, &[lookup(&params[0]), lookup(&extra.vectors[0])]);
                    let (weight, adapter) = extra.adapted.as_ref().expect("a layer");
                    let params = LinearParams {
                        weight,
                        bias: None,
                        adapter: Some(adapter),
                        slots: &[],
                    };
                    linear(tape, x, params)
                },
                extra: &|device, params| {
                    let table = Frozen::table_from_blocks(device, rows, inp, |first, block| {
                        let values = halves(29, rows * inp);
                        block.copy_from_slice(&values[first * inp..][..block.len()]);
                        Ok::<(), std::convert::Infallible>(())
                    });
                    let trained = |i: usize| params[i].trainable().expect("it is trained");
                    let adapter = Adapter {
                        a: trained(1),
                        b: trained(2),
                        blocks: None,
                        scaling: 1.0 / 64.0,
                        dropout: 0.4,
                        site: lowrank_engine::Site::named(9 << 32),
                    };
                    Extra {
                        vectors: vec![Param::Frozen(table.expect("nothing can fail"))],
                        adapted: Some((frozen_matrix_on(device, out, inp), adapter)),
                        ..Extra::default()
                    }
                },
            };
            case.check(&format!("adapted {rows}x{inp}x{out}"), CURVED);
            case.check_widened();
        }
    }
}

#[test]
fn a_trained_linear_gives_gradients_of_weight_and_bias() {
    let device = device();
    let mut random = Random::new(3);
    let (rows, inp, out) = (19, 33, 35);
    let x = random.normals_f32(rows * inp);
    let d_y = random.normals_f32(rows * out);
    let mut trainables = Trainables::default();
    let weight = trainables.add(
        &device,
        "w".into(),
        &[out, inp],
        &random.normals_f32(out * inp),
    );
    let bias = trainables.add(&device, "b".into(), &[out], &random.normals_f32(out));
    let (matrix, vector) = (Matrix::Trainable(weight), Param::Trainable(bias));
    let mut tape = Tape::training(&device, &trainables, None);
    let input = tape.constant(Tensor::from_slice(
        &device,
        rows,
        inp,
        Purpose::Activations,
        &x,
    ));
    let y = linear(
        &mut tape,
        input,
        LinearParams {
            weight: &matrix,
            bias: Some(&vector),
            adapter: None,
            slots: &[],
        },
    );
    let mut gradients = Gradients::zeros(&device, &trainables);
    tape.backward(
        &y,
        Tensor::from_slice(&device, rows, out, Purpose::Activations, &d_y),
        &mut gradients,
    );
    for o in 0..out {
        let expected: f64 = (0..rows).map(|r| f64::from(d_y[r * out + o])).sum();
        assert!(
            (f64::from(gradients.get(bias).read()[o]) - expected).abs() < 1e-5,
            "bias {o}"
        );
        for i in 0..inp {
            let expected: f64 = (0..rows)
                .map(|r| f64::from(d_y[r * out + o]) * f64::from(x[r * inp + i]))
                .sum();
            let found = f64::from(gradients.get(weight).read()[o * inp + i]);
            assert!(
                (found - expected).abs() < 2e-5,
                "weight {o},{i}: {found} against {expected}"
            );
        }
    }
}

#[test]
fn layer_norm_with_residual_and_dropout() {
    for step in [None, Some(STEP)] {
        let case = Case {
            shapes: vec![[6, 37], [6, 37], [1, 37], [1, 37]],
            step,
            build: &|tape, params, _| {
                let (x, residual) = (leaf(tape, &params[0]), leaf(tape, &params[1]));
                let norm = LayerNormParams {
                    weight: &params[2],
                    bias: &params[3],
                    eps: 1e-5,
                };
                layer_norm(tape, x, Some(residual), norm, 0.3)
            },
            extra: &nothing,
        };
        case.check("layer_norm", CURVED);
    }
}

#[test]
fn rms_norm_with_residual_and_dropout() {
    for (factor, residual) in [
        (RmsFactor::Weight, true),
        (RmsFactor::OnePlusWeight, true),
        (RmsFactor::OnePlusWeight, false),
    ] {
        for step in [None, Some(STEP)] {
            let case = Case {
                shapes: vec![[6, 37], [1, 37], [6, 37]],
                step,
                build: &|tape, params, _| {
                    let x = leaf(tape, &params[0]);
                    let sum = residual.then(|| leaf(tape, &params[2]));
                    let norm = RmsNormParams {
                        weight: &params[1],
                        factor,
                        eps: 1e-5,
                    };
                    rms_norm(tape, x, sum, norm, 0.3)
                },
                extra: &nothing,
            };
            case.check("rms_norm", CURVED);
        }
    }
}

#[test]
fn scaled_values_and_values_under_another_shape() {
    let case = Case {
        shapes: vec![[5, 16], [1, 4]],
        step: None,
        build: &|tape, params, _| {
            let x = leaf(tape, &params[0]);
            let y = scale(tape, x.clone(), -0.7);
            let heads = reshape(tape, y, 4);
            let norm = RmsNormParams {
                weight: &params[1],
                factor: RmsFactor::Weight,
                eps: 1e-5,
            };
            let heads = rms_norm(tape, heads, None, norm, 0.0);
            let y = reshape(tape, heads, 16);
            // x is read again, so that neither op must take its place.
            add(tape, y, x, 0.0)
        },
        extra: &nothing,
    };
    case.check("scale and reshape", CURVED);
}

#[test]
fn rotations_of_whole_and_partial_heads() {
    for (layout, rotary_dim) in [
        (RopeLayout::HalfSplit, 8),
        (RopeLayout::HalfSplit, 6),
        (RopeLayout::Interleaved, 8),
        (RopeLayout::Interleaved, 2),
    ] {
        let case = Case {
            shapes: vec![[5, 16]],
            step: None,
            build: &|tape, params, extra| {
                let x = leaf(tape, &params[0]);
                let table = extra.table.as_ref().expect("a table");
                let form = RopeForm {
                    head_dim: 8,
                    rotary_dim,
                    layout,
                };
                let positions = Arc::from([0u32, 1, 2, 0, 9].as_slice());
                let y = rope(tape, x.clone(), table, form, positions);
                // x is read again, so that the rotation must not take its place.
                add(tape, y, x, 0.0)
            },
            extra: &|device, _| {
                let frequencies: Vec<f32> =
                    (0..rotary_dim / 2).map(|i| 0.7 / (i + 1) as f32).collect();
                Extra {
                    table: Some(RopeTable::new(device, 10, &[&frequencies], 1.0).into()),
                    ..Extra::default()
                }
            },
        };
        case.check("rope", LINEAR);
    }
}

#[test]
fn gated_activations_of_two_values_and_of_halves() {
    use Activation::{Gelu, GeluTanh, Silu};
    for kind in [Silu, Gelu, GeluTanh] {
        let case = Case {
            shapes: vec![[5, 19], [5, 19]],
            step: None,
            build: &|tape, params, _| {
                let (gate, up) = (leaf(tape, &params[0]), leaf(tape, &params[1]));
                gated(tape, gate, up, kind)
            },
            extra: &nothing,
        };
        case.check("gated", CURVED);
        let case = Case {
            shapes: vec![[5, 38]],
            step: None,
            build: &|tape, params, _| {
                let x = leaf(tape, &params[0]);
                gated_halves(tape, x, kind)
            },
            extra: &nothing,
        };
        case.check("gated halves", CURVED);
    }
}

#[test]
fn residual_sums_and_columns_of_a_value_that_is_read_again() {
    for step in [None, Some(STEP)] {
        let case = Case {
            shapes: vec![[6, 10], [6, 5], [1, 5], [1, 5]],
            step,
            build: &|tape, params, _| {
                let (fused, stream) = (leaf(tape, &params[0]), leaf(tape, &params[1]));
                let (left, right) = (slice(tape, &fused, 0..5), slice(tape, &fused, 5..10));
                let stream = add(tape, left, stream, 0.3);
                let norm = LayerNormParams {
                    weight: &params[2],
                    bias: &params[3],
                    eps: 1e-5,
                };
                let y = layer_norm(tape, stream.clone(), None, norm, 0.0);
                let y = add(tape, y, right, 0.3);
                add(tape, y, stream, 0.0)
            },
            extra: &nothing,
        };
        case.check("add and columns", CURVED);
    }
}

#[test]
fn one_value_read_twice_gets_both_gradients() {
    for step in [None, Some(STEP)] {
        let case = Case {
            shapes: vec![[4, 33]],
            step,
            build: &|tape, params, extra| {
                let x = leaf(tape, &params[0]);
                let x = dropout(tape, x, 0.2);
                let h = activation(tape, x.clone(), Activation::Gelu);
                let norm = LayerNormParams {
                    weight: &extra.vectors[0],
                    bias: &extra.vectors[1],
                    eps: 1e-5,
                };
                layer_norm(tape, h, Some(x), norm, 0.1)
            },
            extra: &|device, _| Extra {
                vectors: (0..2).map(|i| vector(device, 33, i)).collect(),
                ..Extra::default()
            },
        };
        case.check("x read twice", CURVED);
    }
}

#[test]
fn attention_over_unequal_sequences_and_single_queries() {
    let causal = |window| AttentionMask::Causal { window };
    for (q_offsets, mask, step) in [
        (vec![0, 3, 4, 12], AttentionMask::Full, None),
        (vec![0, 1, 2, 3], AttentionMask::Full, None),
        (vec![0, 3, 4, 12], AttentionMask::Full, Some(STEP)),
        (vec![0, 3, 4, 12], causal(None), None),
        (vec![0, 1, 2, 3], causal(None), None),
        (vec![0, 3, 4, 12], causal(Some(2)), Some(STEP)),
    ] {
        let queries = *q_offsets.last().expect("offsets");
        let case = Case {
            shapes: vec![[queries, 16], [12, 16], [12, 16]],
            step,
            build: &|tape, params, _| {
                let [q, k, v] = [0, 1, 2].map(|i| leaf(tape, &params[i]));
                let spec = AttentionSpec {
                    form: AttentionForm {
                        num_heads: 2,
                        num_key_value_heads: 2,
                        head_dim: 8,
                        scale: 0.35,
                        soft_cap: None,
                        mask,
                        dropout: 0.25,
                    },
                    q_offsets: Arc::from(q_offsets.as_slice()),
                    kv_offsets: Arc::from([0, 3, 4, 12].as_slice()),
                };
                attention(tape, q, k, v, spec)
            },
            extra: &nothing,
        };
        case.check("attention", CURVED);
    }
}

#[test]
fn attention_of_grouped_heads_with_a_soft_cap() {
    for (key_value_heads, soft_cap, step) in [
        (1, None, None),
        (2, Some(0.7), Some(STEP)),
        (4, Some(0.7), None),
    ] {
        let case = Case {
            shapes: vec![
                [12, 16],
                [12, 4 * key_value_heads],
                [12, 4 * key_value_heads],
            ],
            step,
            build: &|tape, params, _| {
                let [q, k, v] = [0, 1, 2].map(|i| leaf(tape, &params[i]));
                let offsets: Arc<[usize]> = Arc::from([0, 3, 4, 12].as_slice());
                let spec = AttentionSpec {
                    form: AttentionForm {
                        num_heads: 4,
                        num_key_value_heads: key_value_heads,
                        head_dim: 4,
                        scale: 0.35,
                        soft_cap,
                        mask: AttentionMask::Causal { window: Some(5) },
                        dropout: 0.25,
                    },
                    q_offsets: offsets.clone(),
                    kv_offsets: offsets,
                };
                attention(tape, q, k, v, spec)
            },
            extra: &nothing,
        };
        case.check("attention of grouped heads", CURVED);
    }
}

#[test]
fn disentangled_attention_with_each_table() {
    // Distances beyond 2 share a row.
    let rows: Vec<u32> = (-9i32..=9).map(|d| (d.clamp(-3, 3) + 3) as u32).collect();
    for (keys, queries, step) in [
        (true, true, None),
        (true, true, Some(STEP)),
        (true, false, Some(STEP)),
        (false, true, None),
        (false, false, None),
    ] {
        for q_offsets in [vec![0, 3, 4, 12], vec![0, 1, 2, 3]] {
            let n = *q_offsets.last().expect("offsets");
            let mut shapes = vec![[n, 16], [12, 16], [12, 16]];
            shapes.extend(vec![[7, 16]; usize::from(keys) + usize::from(queries)]);
            let case = Case {
                shapes,
                step,
                build: &|tape, params, _| {
                    let qkv = [0, 1, 2].map(|i| leaf(tape, &params[i]));
                    let positions = Positions {
                        rows: rows.clone().into(),
                        keys: keys.then(|| leaf(tape, &params[3])),
                        queries: queries.then(|| leaf(tape, &params[params.len() - 1])),
                    };
                    let spec = AttentionSpec {
                        form: AttentionForm {
                            num_heads: 2,
                            num_key_value_heads: 2,
                            head_dim: 8,
                            scale: 0.2,
                            soft_cap: None,
                            mask: AttentionMask::Full,
                            dropout: 0.25,
                        },
                        q_offsets: Arc::from(q_offsets.as_slice()),
                        kv_offsets: Arc::from([0, 3, 4, 12].as_slice()),
                    };
                    disentangled_attention(tape, qkv, positions, spec)
                },
                extra: &nothing,
            };
            case.check("disentangled attention", CURVED);
        }
    }
}

/// A table that nothing below needs a gradient for is neither differentiated nor in the way of the
/// other's gradient.
#[test]
fn disentangled_attention_with_a_frozen_table() {
    let rows: Vec<u32> = (0..7).collect();
    let case = Case {
        shapes: vec![[7, 16]],
        step: None,
        build: &|tape, params, _| {
            let constant = |tape: &mut Tape<'_>, rows: usize, seed| {
                let mut x = Tensor::activations(tape.device(), rows, 16);
                x.write(&Random::new(seed).normals_f32(rows * 16));
                tape.constant(x)
            };
            let positions = Positions {
                rows: rows.clone().into(),
                keys: Some(constant(tape, 7, 4)),
                queries: Some(leaf(tape, &params[0])),
            };
            let spec = AttentionSpec {
                form: AttentionForm {
                    num_heads: 2,
                    num_key_value_heads: 2,
                    head_dim: 8,
                    scale: 0.2,
                    soft_cap: None,
                    mask: AttentionMask::Full,
                    dropout: 0.0,
                },
                q_offsets: Arc::from([0, 4].as_slice()),
                kv_offsets: Arc::from([0, 4].as_slice()),
            };
            let qkv = [1, 2, 3].map(|seed| constant(tape, 4, seed));
            disentangled_attention(tape, qkv, positions, spec)
        },
        extra: &nothing,
    };
    case.check("disentangled attention, one table trained", CURVED);
}

#[test]
fn neighbouring_rows_of_each_sequence() {
    for taps in [1, 3, 5] {
        let case = Case {
            shapes: vec![[9, 4]],
            step: None,
            build: &|tape, params, _| {
                let x = leaf(tape, &params[0]);
                neighbours(tape, &x, &Arc::from([0, 1, 3, 9].as_slice()), taps)
            },
            extra: &nothing,
        };
        case.check("neighbours", LINEAR);
    }
}

#[test]
fn parts_of_a_projection_fused_by_head() {
    let case = Case {
        shapes: vec![[3, 24], [1, 8]],
        step: None,
        build: &|tape, params, _| {
            let x = leaf(tape, &params[0]);
            let mut sum = None;
            for part in 0..3 {
                let form = HeadPart {
                    head_dim: 4,
                    parts: 3,
                    part,
                };
                let bias = (part != 1).then_some(&params[1]);
                let y = head_part(tape, &x, form, bias);
                let y = activation(tape, y, Activation::Tanh);
                sum = Some(match sum {
                    None => y,
                    Some(sum) => add(tape, y, sum, 0.0),
                });
            }
            sum.expect("three parts")
        },
        extra: &nothing,
    };
    case.check("head_part", CURVED);
}

#[test]
fn selected_rows_and_recomputed_blocks() {
    for recompute in [false, true] {
        let case = Case {
            shapes: vec![[9, 12]],
            step: Some(STEP),
            build: &|tape, params, _| {
                let x = leaf(tape, &params[0]);
                let block = move |tape: &mut Tape<'_>, x: Var| {
                    let h = dropout(tape, x, 0.3);
                    activation(tape, h, Activation::Tanh)
                };
                let x = if recompute {
                    tape.recompute(x, block)
                } else {
                    block(tape, x)
                };
                gather(tape, &x, &[0, 4, 4, 8])
            },
            extra: &nothing,
        };
        case.check("gather", CURVED);
    }
}

fn adapted<'m>(
    tape: &mut Tape<'m>,
    weight: &'m Matrix,
    adapter: &'m Adapter,
    values: &[f32],
) -> Vec<f32> {
    let x = Tensor::from_slice(tape.device(), 6, 8, Purpose::Activations, values);
    let x = tape.constant(x);
    let params = LinearParams {
        weight,
        bias: None,
        adapter: Some(adapter),
        slots: &[],
    };
    linear(tape, x, params).tensor().read()
}

/// A layer that is used twice in a pass drops other elements the second time, and the same ones in
/// every pass.
#[test]
fn a_second_use_has_masks_of_its_own() {
    let device = device();
    let mut trainables = Trainables::default();
    let mut random = Random::new(3);
    let ids = [[2, 8], [4, 2]].map(|[rows, cols]| {
        let values = random.normals_f32(rows * cols);
        trainables.add(&device, format!("{rows}"), &[rows, cols], &values)
    });
    let adapter = Adapter {
        a: ids[0],
        b: ids[1],
        blocks: None,
        scaling: 1.0,
        dropout: 0.5,
        site: lowrank_engine::Site::named(7 << 32),
    };
    let matrix = frozen_matrix(4, 8);
    let values = random.normals_f32(6 * 8);
    let run = || {
        let mut tape = Tape::training(&device, &trainables, Some(STEP));
        let first = adapted(&mut tape, &matrix, &adapter, &values);
        let second = tape.second_use(|tape| adapted(tape, &matrix, &adapter, &values));
        let third = adapted(&mut tape, &matrix, &adapter, &values);
        (first, second, third)
    };
    let (first, second, third) = run();
    assert_ne!(first, second);
    assert_eq!(first, third);
    assert_eq!((first, second, third), run());
}

#[test]
fn frozen_values_below_the_lowest_adapter_are_not_recorded() {
    // Its own: other tests' scratch comes and goes on the shared one.
    let device = Device::cpu(Isa::best(), 1).expect("a thread starts");
    let trainables = Trainables::default();
    let matrix = frozen_matrix_on(&device, 8, 8);
    let mut tape = Tape::training(&device, &trainables, Some(STEP));
    let before = device.memory().total();
    let x = tape.constant(Tensor::zeros(&device, 4, 8, Purpose::Activations));
    let y = linear(
        &mut tape,
        x,
        LinearParams {
            weight: &matrix,
            bias: None,
            adapter: None,
            slots: &[],
        },
    );
    let y = activation(&mut tape, y, Activation::Gelu);
    let y = dropout(&mut tape, y, 0.1);
    assert!(!y.requires_grad());
    assert_eq!(
        device.memory().total() - before,
        4 * 8 * 4,
        "only the result is held"
    );
}

#[test]
fn losses_are_sums_and_their_gradients_are_scaled() {
    let device = device();
    let trainables = Trainables::default();
    let tape = Tape::inference(&device, &trainables);
    let logits = [0.3f32, -1.2, 0.8, 2.0, 0.1, -0.4];
    let var = tape.constant(Tensor::from_slice(
        &device,
        3,
        2,
        Purpose::Activations,
        &logits,
    ));
    let out = loss(&var, Targets::Class(&[0, -100, 1]), 0.5);
    let row = |a: f64, b: f64| -(a - (a.exp() + b.exp()).ln());
    let expected = row(0.3f32.into(), (-1.2f32).into()) + row((-0.4f32).into(), 0.1f32.into());
    assert!((out.sum - expected).abs() < 1e-6 && out.count == 2);
    assert_eq!(
        &out.d_logits.read()[2..4],
        &[0.0, 0.0],
        "a masked row has no gradient"
    );
    let p = 1.0 / (1.0 + (-1.5f64).exp());
    assert!((f64::from(out.d_logits.read()[0]) - 0.5 * (p - 1.0)).abs() < 1e-7);
    let out = loss(&var, Targets::Value(&[0.0; 6]), 1.0);
    assert!((f64::from(out.d_logits.read()[3]) - 4.0).abs() < 1e-6 && out.count == 6);
    let out = loss(&var, Targets::Multi(&[1.0; 6]), 1.0);
    let sum: f64 = logits
        .iter()
        .map(|&x| (1.0 + (-f64::from(x)).exp()).ln())
        .sum();
    assert!((out.sum - sum).abs() < 1e-5);
}
