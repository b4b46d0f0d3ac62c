//! Parts of a fused layer with adapters of their own give, bit for bit, what one adapter with zeros
//! between its blocks gives: outputs, the gradients of x and A, and the blocks of B's gradient.
//! That one's gradients are proved by finite differences.

use lowrank_engine::ops::blocks::Blocks;
use lowrank_engine::ops::embedding::{Lookup, Table, embedding};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear};
use lowrank_engine::{
    DType, Device, Gradients, Isa, Matrix, PackedMatrix, Param, Purpose, StepKey, Tape, Tensor,
    Trainables,
};
use lowrank_testkit::Random;

const ROWS: usize = 19;
const IN: usize = 24;
const OUT: usize = 36;
const RANK: usize = 2;

struct Found {
    y: Vec<f32>,
    /// Of x, A and B.
    gradients: Vec<Vec<f32>>,
    trained: u64,
}

/// A pass with this B [rows, cols] on x.
fn pass(precision: DType, blocks: Option<Blocks>, a: &[f32], b: (&[f32], [usize; 2])) -> Found {
    let device = Device::cpu_in(precision, Isa::best(), 2).expect("threads start");
    let mut random = Random::new(11);
    let weight = random.normals_f32(OUT * IN);
    let packed = PackedMatrix::new(&device, OUT, IN, &weight);
    let matrix = Matrix::Frozen(packed);
    let mut trainables = Trainables::default();
    let x = random.normals_f32(ROWS * IN);
    let ids = [
        trainables.add(&device, "x".into(), &[ROWS, IN], &x),
        trainables.add(&device, "a".into(), &[a.len() / IN, IN], a),
        trainables.add(&device, "b".into(), &b.1, b.0),
    ];
    let adapter = Adapter {
        a: ids[1],
        b: ids[2],
        blocks,
        scaling: 0.75,
        dropout: 0.3,
        site: lowrank_engine::Site::named(9 << 32),
    };
    let step = StepKey {
        seed: 3,
        micro_step: 11,
    };
    let table = Param::Trainable(ids[0]);
    let mut tape = Tape::training(&device, &trainables, Some(step));
    let every: Vec<u32> = (0..ROWS as u32).collect();
    let lookup = Lookup {
        table: Table::Rows(&table),
        ids: &every,
        padding_idx: None,
        rows: None,
        adapter: None,
    };
    let x = embedding(&mut tape, &[lookup]);
    let params = LinearParams {
        weight: &matrix,
        bias: None,
        adapter: Some(&adapter),
        slots: &[],
    };
    let y = linear(&mut tape, x, params);
    let mut gradients = Gradients::zeros(&device, &trainables);
    let cotangent = random.normals_f32(ROWS * OUT);
    let d_y = Tensor::from_slice(&device, ROWS, OUT, Purpose::Activations, &cotangent);
    let found = y.tensor().to_f32(Purpose::Activations).read();
    tape.backward(&y, d_y, &mut gradients);
    Found {
        y: found,
        gradients: gradients.iter().map(|g| g.read()).collect(),
        trained: trainables.count() - (ROWS * IN) as u64,
    }
}

#[test]
fn parts_are_the_blocks_of_one_adapter() {
    for (rows, adapted) in [
        ([12, 12, 12], [true, false, true]),
        ([12, 12, 12], [false, true, false]),
        ([12, 12, 12], [true, true, true]),
        ([12, 12, 12], [false, true, true]),
        ([20, 8, 8], [true, false, true]),
        ([20, 8, 8], [false, true, true]),
        ([18, 18, 0], [false, true, false]),
    ] {
        let blocks = Blocks { rows, adapted };
        let (n, [stored_rows, _]) = (blocks.count(), blocks.stored_shape(RANK));
        let mut random = Random::new(7);
        let a = random.normals_f32(n * RANK * IN);
        let stored = random.normals_f32(stored_rows * RANK);
        let whole = blocks.expand(&stored, RANK);
        for precision in [DType::F32, DType::Bf16] {
            if precision == DType::Bf16 && !Isa::best().multiplies_bf16() {
                eprintln!("SKIPPED: this processor has no products of bf16");
                continue;
            }
            let parts = pass(precision, Some(blocks), &a, (&stored, [stored_rows, RANK]));
            let one = pass(precision, None, &a, (&whole, [OUT, n * RANK]));
            assert_eq!(parts.y, one.y);
            assert_eq!(parts.gradients[..2], one.gradients[..2]);
            assert_eq!(parts.trained as usize, RANK * (n * IN + stored_rows));
            // What expands to the whole's gradient inside the blocks is the stored one's.
            let ones = blocks.expand(&vec![1.0; stored.len()], RANK);
            let inside: Vec<f32> = (one.gradients[2].iter().zip(&ones))
                .map(|(g, on)| g * on)
                .collect();
            assert_eq!(blocks.expand(&parts.gradients[2], RANK), inside);
            assert_ne!(
                one.gradients[2], inside,
                "one adapter moves what lies between"
            );
        }
    }
}
