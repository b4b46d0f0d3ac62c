//! Products in every format, arithmetic, orientation and type against the f64 reference of the
//! operands as they are stored, on every instruction set, element by element.

mod common;

use common::products::*;
use common::*;
use half::f16;
use lowrank_kernels::product::{Epilogue, *};
use lowrank_kernels::*;

/// f32 sums, relative to the sum of the magnitudes of an element's terms: eight units in the last
/// place.
const SUM: f64 = 1e-6;
/// One rounding to bf16.
const ROUNDED: f64 = 1.0 / 256.0;
/// An activation's own error, relative to max(1, |x|).
const ACTIVATION: f64 = 1e-6;
/// The same in bf16 storage.
const ACTIVATION_BF16: f64 = 4e-4;

const STORED: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8];

fn transposed(x: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| x[i % rows * cols + i / rows])
        .collect()
}

/// Shapes [m, n, k]: none, one, about a lane, a panel and a tile, pairs across the edges of blocks
/// together.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes = vec![
        [13, 33, 257],
        [12, 32, 384],
        [25, 65, 385],
        [24, 64, 96],
        [193, 97, 50],
        [389, 289, 20],
        [7, 40, 770],
        [1, 70, 1153],
        [26, 300, 34],
    ];
    for length in LENGTHS {
        shapes.push([length, 33, 17]);
        shapes.push([13, length, 18]);
        shapes.push([5, 33, length]);
    }
    shapes
}

/// One whose integers are rounded at random.
const FORM: Form = Form {
    isa: Isa::Scalar,
    arithmetic: Arithmetic::F32,
    stored: WeightFormat::Int8,
    side: Side::Straight,
    a: DType::F32,
    a_transposed: false,
    c: DType::F32,
    n_terms: 1,
};

const RANKS: [usize; 2] = [5, 1];
const SCALES: [f32; 2] = [0.75, -2.0];

/// Operands of one product.
struct Case {
    shape: [usize; 3],
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    /// Of two terms: the first one's rows are all but the first, the second's the first half.
    h: [Vec<f32>; 2],
    g: [Vec<f32>; 2],
    start: Vec<f32>,
    pre: Vec<f32>,
}

/// What a case is run with.
#[derive(Clone, Copy, Debug)]
struct Form {
    isa: Isa,
    arithmetic: Arithmetic,
    stored: WeightFormat,
    side: Side,
    a: DType,
    a_transposed: bool,
    c: DType,
    n_terms: usize,
}

/// Distance between rows of c beyond their width.
const MARGIN: usize = 3;

impl Case {
    fn new(shape @ [m, n, k]: [usize; 3]) -> Self {
        let term = |i: usize| random(RANKS[i] * term_rows(m, i).len(), 10 + i as u64);
        Self {
            shape,
            a: rounded(&random(m * k, 1)),
            b: random(n * k, 2),
            bias: random(n, 3),
            h: [term(0), term(1)],
            g: [random(n * RANKS[0], 5), random(n * RANKS[1], 6)],
            start: rounded(&random(m * n, 7)),
            pre: rounded(&random(m * n, 8).iter().map(|v| 3.0 * v).collect::<Vec<_>>()),
        }
    }

    /// b as it comes back from its storage and the arithmetic.
    fn stored_b(&self, form: Form) -> Vec<f32> {
        let stored = match form.stored {
            WeightFormat::F32 => self.b.clone(),
            WeightFormat::Bf16 => rounded(&self.b),
            WeightFormat::Int8 => unreachable!("the operands of integers are a pair"),
            WeightFormat::Blocks(_) => unreachable!("blocks are held against what they decode to"),
        };
        match form.arithmetic {
            Arithmetic::F32 => stored,
            Arithmetic::Bf16 => rounded(&stored),
        }
    }

    /// Columns of a that are kept beside its integers.
    fn outliers(&self) -> Vec<u32> {
        let k = self.shape[2] as u32;
        match k {
            0..4 => Vec::new(),
            _ => vec![k - 1, 1, k / 2],
        }
    }

    fn rounding(form: Form) -> Rounding {
        match form.n_terms {
            1 => Rounding::Stochastic(DropoutKey {
                seed: 5,
                step: 2,
                site: 9,
            }),
            _ => Rounding::Nearest,
        }
    }

    /// a and b in integers, the outliers in the arithmetic.
    fn integers(&self, form: Form) -> [Vec<f64>; 2] {
        let [_, n, k] = self.shape;
        let outliers = self.outliers();
        let (w, shape) = match form.side {
            Side::Straight => (self.b.clone(), [n, k]),
            Side::Transposed => (transposed(&self.b, [n, k]), [k, n]),
        };
        let weight = reference::IntegerWeight {
            values: &reference::int8_weight(&w, shape[1]),
            shape,
            side: form.side,
            outliers: &outliers,
            rounding: Self::rounding(form),
        };
        let operands = reference::integer_operands(&self.a, &weight);
        operands.map(|mut x| {
            for (i, x) in x.iter_mut().enumerate() {
                if outliers.contains(&((i % k.max(1)) as u32)) {
                    *x = match form.arithmetic {
                        Arithmetic::F32 => f64::from(*x as f32),
                        Arithmetic::Bf16 => f64::from(rounded(&[*x as f32])[0]),
                    };
                }
            }
            x
        })
    }

    /// v, and the sum of the magnitudes of each element's terms.
    fn want(&self, form: Form) -> (Vec<f64>, Vec<f64>) {
        let [m, n, k] = self.shape;
        let operand = |x: &[f32]| match form.arithmetic {
            Arithmetic::F32 => x.to_vec(),
            Arithmetic::Bf16 => rounded(x),
        };
        let [wide_a, wide_b] = match form.stored {
            WeightFormat::Int8 => self.integers(form),
            _ => [wide(&self.a), wide(&self.stored_b(form))],
        };
        let value = |a: &dyn Fn(f64) -> f64| {
            let x = |x: &[f32]| x.iter().map(|&v| a(f64::from(v))).collect::<Vec<_>>();
            // alpha is 1/2 and exact in either arithmetic.
            let alpha = a(-0.5);
            let mut v = reference::gemm(
                [m, n, k],
                &wide_a.iter().map(|&v| a(v)).collect::<Vec<_>>(),
                &wide_b.iter().map(|&v| a(v)).collect::<Vec<_>>(),
                alpha,
                Some(&x(&self.bias)),
                &vec![0.0; m * n],
            );
            for i in 0..form.n_terms {
                let rows = term_rows(m, i);
                let scaled: Vec<f32> = self.h[i].iter().map(|h| h * SCALES[i]).collect();
                let (h, scale) = match form.arithmetic {
                    Arithmetic::F32 => (self.h[i].clone(), f64::from(SCALES[i])),
                    Arithmetic::Bf16 => (rounded(&scaled), 1.0),
                };
                let part = rows.start * n..rows.end * n;
                let shape = [rows.len(), n, RANKS[i]];
                let (h, g) = (x(&h), x(&operand(&self.g[i])));
                let sum = reference::gemm(shape, &h, &g, a(scale), None, &v[part.clone()]);
                v[part].copy_from_slice(&sum);
            }
            v
        };
        (value(&|v| v), value(&|v| v.abs()))
    }

    /// c after a product that starts from `start`, and pre where the epilogue stores it.
    fn run(&self, form: Form, end: End) -> (Vec<f32>, Vec<f32>) {
        let [m, n, k] = self.shape;
        let outliers = self.outliers();
        let view = MatRef::new(&self.b, n, k);
        let view = match form.side {
            Side::Straight => view,
            Side::Transposed => view.transposed(),
        };
        let words = Packed::of(form.isa, form.stored, view);
        let b = (words.panels(form.side))
            .with_outliers(&outliers)
            .with_rounding(Self::rounding(form));
        let format = match form.arithmetic {
            Arithmetic::F32 => WeightFormat::F32,
            Arithmetic::Bf16 => WeightFormat::Bf16,
        };
        let g = [0, 1].map(|i| {
            let g = MatRef::new(&self.g[i], n, RANKS[i]);
            Packed::of(form.isa, format, g)
        });
        let terms = [0, 1].map(|i| LowRankTerm {
            rows: term_rows(m, i),
            h: MatRef::new(&self.h[i], term_rows(m, i).len(), RANKS[i]),
            g: g[i].weights(),
            scale: SCALES[i],
        });
        let a = match form.a_transposed {
            true => transposed(&self.a, [m, k]),
            false => self.a.clone(),
        };
        let narrow_a = narrow(&a);
        let [rows, cols] = if form.a_transposed { [k, m] } else { [m, k] };
        let a: AnyMatRef = match form.a {
            DType::F32 => MatRef::new(&a, rows, cols).into(),
            DType::Bf16 => MatRef::new(&narrow_a, rows, cols).into(),
        };
        let call = Product {
            alpha: -0.5,
            bias: Some(&self.bias),
            low_rank: &terms[..form.n_terms],
            ..Product::new(
                form.arithmetic,
                if form.a_transposed { a.transposed() } else { a },
                &b,
            )
        };
        let mut c = Matrix::new(form.c, n, &self.start);
        let given = Matrix::new(form.c, n, &self.pre);
        let mut pre = Matrix::new(form.c, n, &vec![f32::NAN; m * n]);
        let epilogue = match end {
            End::Store => Epilogue::Store,
            End::Add => Epilogue::Add,
            End::Activate(kind) => Epilogue::Activate {
                kind,
                pre: Some(pre.values_mut()),
            },
            End::ActivateAlone(kind) => Epilogue::Activate { kind, pre: None },
            End::ActivateBackward(kind) => Epilogue::ActivateBackward {
                kind,
                pre: given.values(),
            },
        };
        let output = Output {
            values: c.values_mut(),
            row_stride: n + MARGIN,
        };
        run_product(form.isa, &call, epilogue, output);
        (c.inside(n), pre.inside(n))
    }
}

/// Rows of c that a term is added to.
fn term_rows(m: usize, i: usize) -> std::ops::Range<usize> {
    match i {
        0 => 1.min(m)..m,
        _ => 0..m / 2,
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Store,
    Add,
    Activate(Activation),
    ActivateAlone(Activation),
    ActivateBackward(Activation),
}

/// A matrix of either type whose rows are MARGIN further apart than they are wide.
enum Matrix {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// What is between the rows.
const OUTSIDE: f32 = 77.0;

impl Matrix {
    fn new(dtype: DType, n: usize, values: &[f32]) -> Self {
        let rows = values.chunks(n.max(1));
        let spread: Vec<f32> = rows
            .flat_map(|row| [row, &[OUTSIDE; MARGIN]].concat())
            .collect();
        match dtype {
            DType::F32 => Matrix::F32(spread),
            DType::Bf16 => Matrix::Bf16(narrow(&spread)),
        }
    }

    fn values(&self) -> Values<'_> {
        match self {
            Matrix::F32(x) => Values::F32(x),
            Matrix::Bf16(x) => Values::Bf16(x),
        }
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Matrix::F32(x) => ValuesMut::F32(x),
            Matrix::Bf16(x) => ValuesMut::Bf16(x),
        }
    }

    /// The rows, between which nothing may have changed.
    fn inside(&self, n: usize) -> Vec<f32> {
        let all: Vec<f32> = match self {
            Matrix::F32(x) => x.clone(),
            Matrix::Bf16(x) => x.iter().map(|v| v.to_f32()).collect(),
        };
        let rows = all.chunks(n + MARGIN);
        assert!(
            rows.clone().all(|row| row[n..] == [OUTSIDE; MARGIN]),
            "between the rows"
        );
        rows.flat_map(|row| row[..n].to_vec()).collect()
    }
}

/// Checks each element within its own tolerance, and NaN nowhere.
#[track_caller]
fn check_each(what: &str, found: &[f32], want: &[f64], allowed: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), want.len(), "{what}");
    for (i, (&found, &want)) in found.iter().zip(want).enumerate() {
        let (error, allowed) = ((f64::from(found) - want).abs(), allowed(i));
        let close = error <= allowed;
        assert!(
            close,
            "{what}: [{i}] is {found}, not {want}: off by {error:e}, allowed {allowed:e}"
        );
    }
}

fn of_c(c: DType) -> f64 {
    match c {
        DType::F32 => 0.0,
        DType::Bf16 => ROUNDED,
    }
}

#[test]
fn the_comparator_sees_one_wrong_element() {
    let want = [1.0, 1e-3];
    check_each("", &[1.0, 1e-3], &want, |i| want[i] * SUM);
    let wrong = std::panic::catch_unwind(|| {
        check_each("", &[1.0, 1e-3 + 2e-8], &want, |i| want[i] * SUM);
    });
    assert!(wrong.is_err());
    let nan = std::panic::catch_unwind(|| check_each("", &[1.0, f32::NAN], &want, |_| 1.0));
    assert!(nan.is_err());
}

#[test]
fn products_agree_in_every_form() {
    for isa in isas() {
        for shape in shapes() {
            let case = Case::new(shape);
            for (i, stored) in STORED.into_iter().enumerate() {
                for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
                    for side in [Side::Straight, Side::Transposed] {
                        // The other settings take turns.
                        let turn = i + shape[0] + shape[1] + shape[2];
                        let form = Form {
                            isa,
                            arithmetic,
                            stored,
                            side,
                            a: [DType::F32, DType::Bf16][turn % 2],
                            a_transposed: turn % 3 == 0,
                            c: [DType::F32, DType::Bf16][turn / 2 % 2],
                            n_terms: turn % 4 % 3,
                        };
                        check_form(&case, form);
                    }
                }
            }
        }
    }
}

fn check_form(case: &Case, form: Form) {
    let what = format!("{:?} {form:?}", case.shape);
    let (want, magnitude) = case.want(form);
    let bound = |i: usize| SUM * magnitude[i] + of_c(form.c) * want[i].abs() + 1e-30;
    check_each(&what, &case.run(form, End::Store).0, &want, bound);
    let sums: Vec<f64> = want
        .iter()
        .zip(&case.start)
        .map(|(v, s)| v + f64::from(*s))
        .collect();
    check_each(
        &format!("{what} added"),
        &case.run(form, End::Add).0,
        &sums,
        |i| SUM * (magnitude[i] + 1.0) + of_c(form.c) * sums[i].abs(),
    );
}

#[test]
fn epilogues_agree_in_every_form() {
    let kinds = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ];
    for isa in isas() {
        for shape in [
            [25, 67, 34],
            [12, 32, 0],
            [3, 16, 384],
            [13, 33, 385],
            [1, 1, 1],
        ] {
            let case = Case::new(shape);
            for (turn, kind) in kinds.into_iter().enumerate() {
                for (arithmetic, c) in [
                    (Arithmetic::F32, DType::F32),
                    (Arithmetic::F32, DType::Bf16),
                    (Arithmetic::Bf16, DType::F32),
                    (Arithmetic::Bf16, DType::Bf16),
                ] {
                    let form = Form {
                        isa,
                        arithmetic,
                        stored: WeightFormat::Bf16,
                        side: [Side::Straight, Side::Transposed][turn % 2],
                        a: c,
                        a_transposed: false,
                        c,
                        n_terms: turn % 3,
                    };
                    check_epilogues(&case, form, kind);
                }
            }
        }
    }
}

fn check_epilogues(case: &Case, form: Form, kind: Activation) {
    let what = format!("{kind:?} {:?} {form:?}", case.shape);
    let (v, magnitude) = case.want(form);
    let activation = match form.c {
        DType::F32 => ACTIVATION,
        DType::Bf16 => ACTIVATION_BF16,
    };
    let (c, pre) = case.run(form, End::Activate(kind));
    check_each(&what, &pre, &v, |i| {
        SUM * magnitude[i] + of_c(form.c) * v[i].abs()
    });
    // f of what is stored.
    let want: Vec<f64> = wide(&pre)
        .iter()
        .map(|&x| reference::activation(kind, x))
        .collect();
    check_each(&what, &c, &want, |i| {
        activation * f64::from(pre[i].abs().max(1.0)) + of_c(form.c) * want[i].abs()
    });
    let (alone, _) = case.run(form, End::ActivateAlone(kind));
    assert_eq!(bits(&alone), bits(&c), "{what}: with the input kept or not");

    let (c, _) = case.run(form, End::ActivateBackward(kind));
    let slopes: Vec<f64> = wide(&case.pre)
        .iter()
        .map(|&x| reference::activation_derivative(kind, x))
        .collect();
    let want: Vec<f64> = v.iter().zip(&slopes).map(|(v, slope)| v * slope).collect();
    check_each(&what, &c, &want, |i| {
        let slope = slopes[i].abs().max(1.0);
        SUM * magnitude[i] * slope
            + 2.0 * activation * v[i].abs() * slope
            + of_c(form.c) * want[i].abs()
    });
}

#[test]
fn bf16_weights_multiplied_in_f32_have_the_bits_of_f32_weights_of_the_same_values() {
    for isa in isas() {
        for shape in shapes() {
            let mut case = Case::new(shape);
            case.b = rounded(&case.b);
            for side in [Side::Straight, Side::Transposed] {
                let form = |format: WeightFormat| Form {
                    isa,
                    arithmetic: Arithmetic::F32,
                    stored: format,
                    side,
                    a: DType::F32,
                    a_transposed: false,
                    c: DType::F32,
                    n_terms: 1,
                };
                let (wide, _) = case.run(form(WeightFormat::F32), End::Store);
                let (narrow, _) = case.run(form(WeightFormat::Bf16), End::Store);
                assert_eq!(
                    bits(&narrow),
                    bits(&wide),
                    "{shape:?} {side:?} on {}",
                    isa.name()
                );
                let stored = Form {
                    c: DType::Bf16,
                    ..form(WeightFormat::Bf16)
                };
                let (stored, _) = case.run(stored, End::Store);
                assert_eq!(
                    stored,
                    rounded(&narrow),
                    "one rounding, {shape:?} on {}",
                    isa.name()
                );
            }
        }
    }
}

/// Parts of blocks of any values, whose scales are finite.
fn any_blocks(format: BlockFormat, values: usize) -> BlockRows {
    let mut blocks = BlockRows::zeros(format, values);
    let random = random(4 * values, 3);
    let mut number = random.iter().map(|v| v.to_bits() ^ v.to_bits() >> 13);
    let mut next = || number.next().unwrap();
    let half = |bits: u32| f16::from_f32((bits % 2000) as f32 / 1e5 - 0.01).to_bits();
    let largest = match format {
        BlockFormat::Q8_0 => 256,
        BlockFormat::Q6K => 64,
        BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q5K => 32,
        _ => 16,
    };
    blocks.codes.fill_with(|| (next() % largest) as u8);
    let scale = |bits: u32| match format {
        BlockFormat::Q4K | BlockFormat::Q5K => bits % 64,
        BlockFormat::Q6K => u32::from(bits as i8 as u8),
        BlockFormat::Nf4 => ((bits % 1000) as f32 / 999.0).to_bits(),
        _ => u32::from(half(bits)),
    };
    blocks.scales.fill_with(|| scale(next()));
    blocks.mins.fill_with(|| scale(next()));
    blocks.supers.fill_with(|| [half(next()), half(next())]);
    blocks
}

#[test]
fn blocks_multiply_with_the_bits_of_what_they_decode_to() {
    // Depths of one block and of several, whole panels and not; few rows and many.
    for (isa, format) in (isas().into_iter()).flat_map(|isa| BlockFormat::ALL.map(|f| (isa, f))) {
        let block = format.block();
        for [rows, depth] in [[33, block], [70, 3 * 256], [256, 2 * 256]] {
            let blocks = any_blocks(format, rows * depth);
            let mut values = vec![0.0; rows * depth];
            blocks.values(format, &mut values);
            let w = MatRef::new(&values, rows, depth);
            let packed = Packed::of_blocks(format, &blocks, [rows, depth]);
            let mut unpacked = vec![f32::NAN; rows * depth];
            packed.weights().unpack(&mut unpacked);
            assert!(
                bits(&unpacked) == bits(&values),
                "{format:?} {rows} x {depth}"
            );
            let row = rows - 1;
            let mut sum = vec![1.0; depth];
            packed.weights().add_row(row, &mut sum);
            let of_row = &values[row * depth..];
            let wanted: Vec<f32> = of_row.iter().map(|v| 1.0 + v).collect();
            assert!(bits(&sum) == bits(&wanted), "{format:?}: a row");
            for (arithmetic, plain) in [
                (Arithmetic::F32, WeightFormat::F32),
                (Arithmetic::Bf16, WeightFormat::Bf16),
            ] {
                for (side, m) in [
                    (Side::Straight, 1),
                    (Side::Straight, 40),
                    (Side::Transposed, 40),
                ] {
                    let k = match side {
                        Side::Straight => depth,
                        Side::Transposed => rows,
                    };
                    let a = random(m * k, 9);
                    let a = MatRef::new(&a, m, k);
                    let run = |packed: &Packed| {
                        product_of(
                            isa,
                            &Product::new(arithmetic, a.into(), &packed.panels(side)),
                        )
                    };
                    let wanted = run(&Packed::of(isa, plain, w));
                    let what = format!("{format:?} {rows} x {depth} {side:?} on {isa:?}");
                    assert!(bits(&run(&packed)) == bits(&wanted), "{what}");
                }
            }
        }
    }
}

#[test]
fn integers_give_the_same_bits_on_every_instruction_set() {
    for shape in shapes() {
        let mut case = Case::new(shape);
        case.bias.fill(0.0);
        for (side, rounding) in [
            (Side::Straight, Rounding::Nearest),
            (Side::Transposed, Case::rounding(FORM)),
        ] {
            let run = |isa: Isa| {
                let [m, n, k] = shape;
                let w = MatRef::new(&case.b, n, k);
                let w = match side {
                    Side::Straight => w,
                    Side::Transposed => w.transposed(),
                };
                let packed = Packed::of(isa, WeightFormat::Int8, w);
                let panels = packed.panels(side).with_rounding(rounding);
                let a = MatRef::new(&case.a, m, k);
                product_of(isa, &Product::new(Arithmetic::Bf16, a.into(), &panels))
            };
            let wanted = bits(&run(Isa::Scalar));
            for isa in isas() {
                assert_eq!(bits(&run(isa)), wanted, "{shape:?} {side:?} on {isa:?}");
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_shows_in_its_row_and_in_no_other() {
    for isa in isas() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (mut a, b) = (random(4 * 40, 1), random(3 * 40, 2));
            a[40 + 7] = bad;
            let packed = Packed::of(isa, WeightFormat::Int8, MatRef::new(&b, 3, 40));
            let panels = packed.panels(Side::Straight);
            let a = MatRef::new(&a, 4, 40);
            let c = product_of(isa, &Product::new(Arithmetic::F32, a.into(), &panels));
            let shows: Vec<bool> = c.iter().map(|v| !v.is_finite()).collect();
            let wanted: Vec<bool> = (0..12).map(|i| i / 3 == 1).collect();
            assert_eq!(shows, wanted, "{bad} on {isa:?}");
        }
    }
}

#[test]
fn stochastic_rounding_has_the_number_for_its_mean() {
    let n = 4000;
    let x: Vec<f32> = (0..n)
        .flat_map(|_| [127.0, 3.25, -0.125, 126.9, 0.0])
        .collect();
    let key = |seed| DropoutKey {
        seed,
        step: 1,
        site: 3,
    };
    let codes = |seed| {
        let rounding = Rounding::Stochastic(key(seed));
        reference::quantise(&x, &[1.0; 5], rounding).codes
    };
    let found = codes(4);
    assert_eq!(found, codes(4));
    assert_ne!(found, codes(5));
    for (j, (value, spread)) in [(127.0, 0.0), (3.25, 0.03), (-0.125, 0.03), (126.9, 0.03)]
        .into_iter()
        .enumerate()
    {
        let mean = found.iter().skip(j).step_by(5).sum::<f64>() / f64::from(n);
        assert!((mean - value).abs() <= spread, "{mean} for {value}");
    }
    assert!(found.iter().skip(4).step_by(5).all(|code| *code == 0.0));
}

#[test]
#[should_panic(expected = "outlier 5 of 5 columns")]
fn an_outlier_beyond_the_depth_panics() {
    let (a, b) = ([0.0; 20], [0.0; 15]);
    let packed = Packed::of(Isa::best(), WeightFormat::Int8, MatRef::new(&b, 3, 5));
    let panels = packed.panels(Side::Straight).with_outliers(&[5]);
    let a = MatRef::new(&a, 4, 5);
    product_of(
        Isa::best(),
        &Product::new(Arithmetic::F32, a.into(), &panels),
    );
}

#[test]
fn a_depth_beyond_a_task_s_panels_is_summed_by_blocks() {
    for isa in isas() {
        // Many rows, and many columns; both by more than a whole block.
        for shape in [[515, 3, 6147], [7, 200, 7168]] {
            let case = Case::new(shape);
            for (arithmetic, c) in [
                (Arithmetic::Bf16, DType::F32),
                (Arithmetic::Bf16, DType::Bf16),
                (Arithmetic::F32, DType::Bf16),
            ] {
                let form = Form {
                    isa,
                    arithmetic,
                    stored: WeightFormat::Bf16,
                    side: Side::Transposed,
                    a: DType::Bf16,
                    a_transposed: false,
                    c,
                    n_terms: 2,
                };
                check_form(&case, form);
            }
        }
    }
}

#[test]
fn a_depth_beyond_what_i32_holds_is_summed_by_blocks() {
    for isa in isas() {
        let mut case = Case::new([5, 33, 66_400]);
        // As large as sums get.
        case.a.iter_mut().for_each(|v| *v = v.signum());
        case.b.iter_mut().for_each(|v| *v = 1.0);
        for side in [Side::Straight, Side::Transposed] {
            let form = Form {
                isa,
                side,
                n_terms: 0,
                ..FORM
            };
            check_form(&case, form);
            case.a.iter_mut().for_each(|v| *v = 1.0);
        }
    }
}

#[test]
fn packing_is_undone_by_unpacking() {
    for isa in isas() {
        for [_, n, k] in shapes() {
            let b = random(n * k, 2);
            let b_t = transposed(&b, [n, k]);
            let integers = reference::int8_weight(&b, k);
            let integers: Vec<f32> = integers.iter().map(|v| *v as f32).collect();
            for (format, want) in [
                (WeightFormat::F32, b.clone()),
                (WeightFormat::Bf16, rounded(&b)),
                (WeightFormat::Int8, integers.clone()),
            ] {
                for view in [MatRef::new(&b, n, k), MatRef::new(&b_t, k, n).transposed()] {
                    let mut unpacked = vec![f32::NAN; n * k];
                    Packed::of(isa, format, view)
                        .weights()
                        .unpack(&mut unpacked);
                    assert_eq!(unpacked, want, "{format:?} [{n}, {k}] on {}", isa.name());
                }
            }
        }
    }
}

/// [rows, m, n]: factors on either side, both wide, more rows than are packed at once.
const OUTERS: [[usize; 3]; 18] = [
    [40, 8, 96],
    [33, 8, 49],
    [7, 3, 47],
    [20, 16, 130],
    [5, 13, 9],
    [0, 2, 4],
    [64, 4, 768],
    [9, 11, 100],
    [300, 40, 8],
    [50, 205, 70],
    [301, 23, 33],
    [64, 24, 32],
    [17, 97, 130],
    [31, 70, 33],
    [3, 1, 1],
    [2500, 41, 35],
    [40, 1, 70],
    // Parts of which the last is shorter.
    [4097, 34, 40],
];

#[test]
fn outer_products_agree_in_every_form() {
    for isa in isas() {
        for [rows, m, n] in OUTERS {
            let (a, x) = (rounded(&random(rows * m, 1)), rounded(&random(rows * n, 2)));
            let start = random(m * n, 3);
            let (a16, x16) = (narrow(&a), narrow(&x));
            let f64s = |x: &[f32], cols: usize| reference::transpose(&wide(x), rows, cols);
            let (a_t, x_t) = (f64s(&a, m), f64s(&x, n));
            let want = reference::gemm([m, n, rows], &a_t, &x_t, 0.5, None, &wide(&start));
            let abs = |x: &[f64]| x.iter().map(|v| v.abs()).collect::<Vec<_>>();
            let from = abs(&wide(&start));
            let magnitude = reference::gemm([m, n, rows], &abs(&a_t), &abs(&x_t), 0.5, None, &from);
            let forms: [(AnyMatRef, AnyMatRef); 4] = [
                (
                    MatRef::new(&a, rows, m).into(),
                    MatRef::new(&x, rows, n).into(),
                ),
                (
                    MatRef::new(&a, rows, m).into(),
                    MatRef::new(&x16, rows, n).into(),
                ),
                (
                    MatRef::new(&a16, rows, m).into(),
                    MatRef::new(&x, rows, n).into(),
                ),
                (
                    MatRef::new(&a16, rows, m).into(),
                    MatRef::new(&x16, rows, n).into(),
                ),
            ];
            for (a, x) in forms {
                for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
                    let alpha = 0.5;
                    let call = Outer {
                        arithmetic,
                        a,
                        x,
                        alpha,
                    };
                    let mut c = start.clone();
                    run_outer(isa, &call, &mut c);
                    let what = format!("{:?} on {}", call.shape(), isa.name());
                    check_each(&what, &c, &want, |i| SUM * magnitude[i]);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "the pre-activation")]
fn a_pre_activation_of_another_length_panics() {
    let isa = Isa::best();
    let (a, b, mut c) = ([0.0; 20], [0.0; 15], [0.0; 12]);
    let b = Packed::of(isa, WeightFormat::F32, MatRef::new(&b, 3, 5));
    let b = b.panels(Side::Straight);
    let call = Product::new(Arithmetic::F32, MatRef::new(&a, 4, 5).into(), &b);
    let (kind, pre) = (Activation::Relu, Values::F32(&[0.0; 11]));
    let output = Output {
        values: ValuesMut::F32(&mut c),
        row_stride: 3,
    };
    let epilogue = Epilogue::ActivateBackward { kind, pre };
    run_product(isa, &call, epilogue, output);
}
