//! Products that end in an activation or in its backward, against the f64 reference, on every instruction set.

mod common;

use common::*;
use lowrank_kernels::*;

/// Measured worst 8e-7.
const TOLERANCE: f64 = 2e-6;

const KINDS: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

/// A product and what it adds to, with rows of c further apart than they are wide.
struct Case {
    shape: [usize; 3],
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    start: Vec<f32>,
    pre: Vec<f32>,
}

const MARGIN: usize = 3;

impl Case {
    fn new(shape @ [m, n, k]: [usize; 3]) -> Self {
        let len = m * (n + MARGIN);
        Self {
            shape,
            a: random(m * k, 1),
            b: random(n * k, 2),
            bias: random(n, 3),
            start: random(len, 4),
            pre: random(len, 5).iter().map(|v| 3.0 * v).collect(),
        }
    }

    /// c after the product and its end; its first rows only, as `start` has them.
    fn run(&self, isa: Isa, finish: Finish<'_>) -> Vec<f32> {
        let [m, n, k] = self.shape;
        let mut packed = vec![f32::NAN; packed_len(n, k)];
        pack(isa, MatRef::new(&self.b, n, k), &mut packed);
        let product = Gemm {
            a: MatRef::new(&self.a, m, k),
            b: PackedF32::Rows(&packed),
            n,
            bias: Some(&self.bias),
            alpha: 0.5,
            accumulate: true,
        };
        let mut c = self.start.clone();
        gemm_then(isa, &product, &mut c, n + MARGIN, finish);
        c
    }

    /// The columns of c inside a matrix whose rows are further apart.
    fn inside(&self, x: &[f32]) -> Vec<f32> {
        let n = self.shape[1];
        let rows = x.chunks(n + MARGIN);
        rows.flat_map(|row| row[..n].to_vec()).collect()
    }

    /// The product and what it was added to.
    fn sums(&self) -> Vec<f64> {
        let (a, b, bias) = (wide(&self.a), wide(&self.b), wide(&self.bias));
        let start = wide(&self.inside(&self.start));
        reference::gemm(self.shape, &a, &b, 0.5, Some(&bias), &start)
    }

    /// Checks the columns inside, and that those outside stayed.
    fn check(&self, found: &[f32], want: &[f64], what: &str) {
        let n = self.shape[1];
        check_close(&self.inside(found), want, TOLERANCE, what);
        let rows = found.chunks(n + MARGIN).zip(self.start.chunks(n + MARGIN));
        for (row, before) in rows {
            assert_eq!(bits(&row[n..]), bits(&before[n..]), "{what}: the margin");
        }
    }
}

#[test]
fn ends_of_products_agree() {
    for isa in isas() {
        // Depths of none, one and several blocks; rows and columns beside the tile's and the panel's edges.
        for shape in [
            [25, 67, 34],
            [12, 32, 0],
            [3, 16, 384],
            [13, 33, 385],
            [1, 1, 1],
            [400, 40, 800],
        ] {
            let case = Case::new(shape);
            for kind in KINDS {
                let what = format!("{kind:?} {shape:?} on {}", isa.name());
                let mut pre = case.start.clone();
                let with_pre = Finish::Activate {
                    kind,
                    pre: Some(&mut pre),
                };
                let c = case.run(isa, with_pre);
                case.check(&pre, &case.sums(), &what);
                let values = wide(&case.inside(&pre));
                let want: Vec<f64> = (values.iter())
                    .map(|&v| reference::activation(kind, v))
                    .collect();
                case.check(&c, &want, &what);
                let alone = case.run(isa, Finish::Activate { kind, pre: None });
                assert_eq!(bits(&alone), bits(&c), "{what}: with the input kept or not");

                let pre = &case.pre;
                let c = case.run(isa, Finish::ActivateBackward { kind, pre });
                let want: Vec<f64> = (case.sums().iter().zip(wide(&case.inside(pre))))
                    .map(|(v, x)| v * reference::activation_derivative(kind, x))
                    .collect();
                case.check(&c, &want, &what);
            }
        }
    }
}

#[test]
#[should_panic(expected = "the pre-activation")]
fn an_input_of_another_length_panics() {
    let case = Case::new([4, 5, 6]);
    let (kind, pre) = (Activation::Relu, &case.pre[1..]);
    case.run(Isa::best(), Finish::ActivateBackward { kind, pre });
}
