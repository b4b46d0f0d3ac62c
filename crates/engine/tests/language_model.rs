//! The head of a language model and what it shares with the embedding: chunked loss against finite
//! differences, tied tables, and weights that are stored as GPT-2 stores them.

use lowrank_engine::ops::embedding::{Lookup, Table, embedding};
use lowrank_engine::ops::linear::{Adapter, LinearParams, linear};
use lowrank_engine::ops::lm_head::{LmHead, LmTargets, lm_logits, lm_loss, lm_loss_backward};
use lowrank_engine::ops::trained_rows::TrainedRows;
use lowrank_engine::param::transpose;
use lowrank_engine::{
    Arithmetic, BaseFormat, DType, Device, Gradients, Isa, Matrix, Numerics, PackedMatrix, Param,
    Purpose, Site, StepKey, Tape, Tensor, Trainables,
};
use lowrank_kernels::bf16;
use lowrank_testkit::{GradientCheck, Random, check_gradient};

/// f32 forward passes and a finite step. Measured worst 4e-4.
const CURVED: GradientCheck = GradientCheck {
    eps: 1e-2,
    tolerance: 3e-3,
    floor: 1.0,
    directions: 3,
    seed: 5,
};

/// The same with a smaller step, for a function that is curved more.
const SMALL: GradientCheck = GradientCheck {
    eps: 3e-3,
    ..CURVED
};

fn device() -> Device {
    Device::cpu(Isa::best(), 2).expect("threads start")
}

fn frozen(device: &Device, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    Matrix::Frozen(PackedMatrix::new(device, rows, cols, values))
}

fn head(table: &Matrix) -> LmHead<'_> {
    LmHead {
        table,
        rows: None,
        adapter: None,
        soft_cap: None,
    }
}

fn lookup<'m, 'i>(table: Table<'m>, ids: &'i [u32]) -> Lookup<'m, 'i> {
    Lookup {
        table,
        ids,
        padding_idx: None,
        rows: None,
        adapter: None,
    }
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&v| v as f32).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn the_loss_over_several_chunks_gives_the_gradient_of_the_hidden_states() {
    let device = device();
    // 300 rows: a whole chunk and a part of one.
    let (rows, cols, vocab) = (300, 5, 37);
    let mut random = Random::new(4);
    let matrix = frozen(&device, vocab, cols, &random.normals_f32(vocab * cols));
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % vocab as i64).collect();
    let start = random.normals(rows * cols);
    let ids: Vec<u32> = (0..rows as u32).collect();
    for (smoothing, soft_cap) in [(0.0, None), (0.1, None), (0.0, Some(2.0)), (0.1, Some(4.0))] {
        let targets = LmTargets {
            head: LmHead {
                soft_cap,
                ..head(&matrix)
            },
            labels: &labels,
            smoothing,
        };
        let run = |x: &[f64]| {
            let mut trainables = Trainables::default();
            let id = trainables.add(&device, "h".into(), &[rows, cols], &narrow(x));
            let param = Param::Trainable(id);
            let mut tape = Tape::training(&device, &trainables, None);
            let h = embedding(&mut tape, &[lookup(Table::Rows(&param), &ids)]);
            let mut gradients = Gradients::zeros(&device, &trainables);
            let sum = lm_loss(&h, targets, &trainables).sum;
            let same = lm_loss_backward(tape, h, targets, 0.5, &mut gradients);
            assert_eq!(sum, same);
            (0.5 * sum, wide(&gradients.get(id).read()))
        };
        let gradient = run(&start).1;
        check_gradient("hidden states", |x| run(x).0, &start, &gradient, CURVED);
    }
}

#[test]
fn a_tied_table_gets_both_gradients_once() {
    let device = device();
    let (vocab, cols) = (11, 6);
    let (ids, labels) = ([3, 3, 9, 0, 10], [4, 9, 3, 3, 1]);
    let start = Random::new(8).normals(vocab * cols);
    let run = |x: &[f64]| {
        let mut trainables = Trainables::default();
        let id = trainables.add(&device, "wte".into(), &[vocab, cols], &narrow(x));
        let matrix = Matrix::Trainable(id);
        let mut tape = Tape::training(&device, &trainables, None);
        let h = embedding(&mut tape, &[lookup(Table::Matrix(&matrix), &ids)]);
        let targets = LmTargets {
            head: head(&matrix),
            labels: &labels,
            smoothing: 0.1,
        };
        let mut gradients = Gradients::zeros(&device, &trainables);
        let sum = lm_loss_backward(tape, h, targets, 1.0, &mut gradients);
        (sum, wide(&gradients.get(id).read()))
    };
    let gradient = run(&start).1;
    check_gradient("tied table", |x| run(x).0, &start, &gradient, CURVED);
}

#[test]
fn a_frozen_table_is_read_from_its_panels() {
    let device = device();
    let (vocab, cols) = (70, 9);
    let values = Random::new(2).normals_f32(vocab * cols);
    let matrix = frozen(&device, vocab, cols, &values);
    let trainables = Trainables::default();
    let mut tape = Tape::inference(&device, &trainables);
    let ids = [69, 0, 33, 31, 32];
    let h = embedding(&mut tape, &[lookup(Table::Matrix(&matrix), &ids)]);
    for (row, &id) in h.tensor().read().chunks_exact(cols).zip(&ids) {
        assert_eq!(row, &values[id as usize * cols..][..cols]);
    }
    let logits = lm_logits(h.tensor(), head(&matrix), &trainables);
    let h = h.tensor().read();
    for (i, row) in logits.read().chunks_exact(vocab).enumerate() {
        for (v, logit) in row.iter().enumerate() {
            let pairs = h[i * cols..][..cols].iter();
            let want: f64 = pairs
                .zip(&values[v * cols..])
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            assert!((f64::from(*logit) - want).abs() < 1e-5, "{i},{v}");
        }
    }
}

/// Trained rows of a tied table, which a lookup reads and the head multiplies with, beside
/// low-rank terms of both, the head's with dropout. All of them at once.
#[test]
fn trained_rows_and_terms_of_the_tables_have_the_gradients_of_their_loss() {
    let device = device();
    let (vocab, cols, rank) = (37, 6, 2);
    let mut random = Random::new(8);
    let matrix = frozen(&device, vocab, cols, &random.normals_f32(vocab * cols));
    let ids: Vec<u32> = (0..300).map(|i| i * 5 % 37).collect();
    let labels: Vec<i64> = (0..300).map(|i| i * 7 % 37).collect();
    // Rows in no order; one of them is met in no lookup and one is no label.
    let places = [36, 3, 20];
    let (k, v, d, r) = (places.len(), vocab, cols, rank);
    let shapes = [[k, d], [r, d], [v, r], [v, r], [d, r]];
    let lengths = shapes.map(|[rows, cols]| rows * cols);
    let start = random.normals(lengths.iter().sum());
    let step = StepKey {
        seed: 3,
        micro_step: 11,
    };
    for (soft_cap, dropout) in [(None, 0.0), (Some(4.0), 0.25)] {
        let run = |x: &[f64]| {
            let mut trainables = Trainables::default();
            let mut rest = x;
            let ids_of = ["rows", "a", "b", "of table a", "of table b"].map(|name| {
                let i = trainables.len();
                let (own, after) = rest.split_at(lengths[i]);
                rest = after;
                trainables.add(&device, name.into(), &shapes[i], &narrow(own))
            });
            let rows = TrainedRows::new(&places, ids_of[0]);
            let adapter = Adapter {
                a: ids_of[1],
                b: ids_of[2],
                blocks: None,
                scaling: 0.5,
                dropout,
                site: Site::named(5),
            };
            let of_table = Adapter {
                a: ids_of[3],
                b: ids_of[4],
                // Small, for the curvature.
                scaling: 0.125,
                ..adapter
            };
            let mut tape = Tape::training(&device, &trainables, Some(step));
            let lookup = Lookup {
                rows: Some(&rows),
                adapter: Some(&of_table),
                ..lookup(Table::Matrix(&matrix), &ids)
            };
            let h = embedding(&mut tape, &[lookup]);
            let targets = LmTargets {
                head: LmHead {
                    rows: Some(&rows),
                    adapter: Some(&adapter),
                    soft_cap,
                    ..head(&matrix)
                },
                labels: &labels,
                smoothing: 0.1,
            };
            let mut gradients = Gradients::zeros(&device, &trainables);
            let evaluated = lm_loss(&h, targets, &trainables);
            let sum = lm_loss_backward(tape, h, targets, 1.0, &mut gradients);
            assert!(dropout > 0.0 || evaluated.sum == sum);
            let gradient: Vec<f32> = gradients.iter().flat_map(Tensor::read).collect();
            (sum, wide(&gradient))
        };
        let gradient = run(&start).1;
        check_gradient("rows, A and B", |x| run(x).0, &start, &gradient, SMALL);
    }
}

#[test]
fn capped_logits_are_the_tangent_of_plain_ones() {
    let device = device();
    let (vocab, cols) = (70, 9);
    let matrix = frozen(
        &device,
        vocab,
        cols,
        &Random::new(2).normals_f32(vocab * cols),
    );
    let trainables = Trainables::default();
    let h = Random::new(3).normals_f32(5 * cols);
    let h = Tensor::from_slice(&device, 5, cols, Purpose::Activations, &h);
    let plain = lm_logits(&h, head(&matrix), &trainables).read();
    let soft_cap = Some(3.0);
    let capped = LmHead {
        soft_cap,
        ..head(&matrix)
    };
    let capped = lm_logits(&h, capped, &trainables).read();
    for (capped, plain) in capped.iter().zip(&plain) {
        let want = 3.0 * (f64::from(*plain) / 3.0).tanh();
        assert!((f64::from(*capped) - want).abs() < 2e-6, "{capped} {want}");
    }
}

/// The most bytes that stand in memory beside what does before.
fn workspace(numerics: Numerics, vocab: usize, soft_cap: Option<f32>) -> u64 {
    let device = Device::dry_in(numerics);
    let matrix = frozen(&device, vocab, 8, &[]);
    let (rows, labels) = (1000, vec![1; 1000]);
    let mut trainables = Trainables::default();
    let id = trainables.add(&device, "h".into(), &[rows, 8], &[]);
    let param = Param::Trainable(id);
    let mut tape = Tape::training(&device, &trainables, None);
    let ids: Vec<u32> = (0..rows as u32).collect();
    let h = embedding(&mut tape, &[lookup(Table::Rows(&param), &ids)]);
    let mut gradients = Gradients::zeros(&device, &trainables);
    let targets = LmTargets {
        head: LmHead {
            soft_cap,
            ..head(&matrix)
        },
        labels: &labels,
        smoothing: 0.0,
    };
    device.reset_peak();
    let before = device.memory().of(Purpose::Workspace);
    lm_loss(&h, targets, &trainables);
    lm_loss_backward(tape, h, targets, 1.0, &mut gradients);
    device.peak_memory().of(Purpose::Workspace) - before
}

#[test]
fn the_logits_of_a_large_vocabulary_take_a_hundred_megabytes_at_most() {
    for (activations, arithmetic) in [
        (DType::F32, Arithmetic::F32),
        (DType::F32, Arithmetic::Bf16),
        (DType::Bf16, Arithmetic::Bf16),
    ] {
        let numerics = Numerics {
            activations,
            weights: BaseFormat::Bf16,
            arithmetic,
        };
        for (vocab, soft_cap) in [(262_144, None), (256_000, Some(30.0)), (1_000_003, None)] {
            let bytes = workspace(numerics, vocab, soft_cap);
            assert!(
                (60_000_000..101_000_000).contains(&bytes),
                "{numerics:?}, {vocab}, {soft_cap:?}: {bytes}"
            );
        }
    }
}

#[test]
fn a_trained_conv1d_is_a_trained_linear_transposed() {
    let device = device();
    let mut random = Random::new(3);
    let (rows, inp, out) = (19, 33, 70);
    let (x, d_y) = (
        random.normals_f32(rows * inp),
        random.normals_f32(rows * out),
    );
    let weight = random.normals_f32(out * inp);
    let run = |transposed: bool| {
        let mut trainables = Trainables::default();
        let input = trainables.add(&device, "x".into(), &[rows, inp], &x);
        let (id, matrix) = if transposed {
            let values = transpose(&weight, out, inp);
            let id = trainables.add(&device, "w".into(), &[inp, out], &values);
            (id, Matrix::TrainableConv1d(id))
        } else {
            let id = trainables.add(&device, "w".into(), &[out, inp], &weight);
            (id, Matrix::Trainable(id))
        };
        assert_eq!(matrix.shape(&trainables), [out, inp]);
        assert_eq!(matrix.to_rows(&trainables), weight);
        let (ids, param): (Vec<u32>, _) = ((0..rows as u32).collect(), Param::Trainable(input));
        let mut tape = Tape::training(&device, &trainables, None);
        let h = embedding(&mut tape, &[lookup(Table::Rows(&param), &ids)]);
        let params = LinearParams {
            weight: &matrix,
            bias: None,
            adapter: None,
            slots: &[],
        };
        let y = linear(&mut tape, h, params);
        let values = y.tensor().read();
        let mut gradients = Gradients::zeros(&device, &trainables);
        let d = Tensor::from_slice(&device, rows, out, Purpose::Activations, &d_y);
        tape.backward(&y, d, &mut gradients);
        let mut d_weight = gradients.get(id).read();
        if transposed {
            d_weight = transpose(&d_weight, inp, out);
        }
        (values, d_weight, gradients.get(input).read())
    };
    let ((y, d_w, d_x), (other_y, other_d_w, other_d_x)) = (run(false), run(true));
    assert_eq!((y, d_x), (other_y, other_d_x));
    // The order of the sums differs. Measured worst 2e-6.
    for (a, b) in d_w.iter().zip(&other_d_w) {
        assert!((a - b).abs() <= 1e-5, "{a} against {b}");
    }
}

/// Loss, d_h and the gradient of a trained table, on inputs that bf16 holds exactly.
fn loss_in(
    precision: DType,
    trained: bool,
    [rows, cols, vocab]: [usize; 3],
) -> (f64, Vec<f32>, Vec<f32>) {
    let device = Device::cpu_in(precision, Isa::best(), 2).expect("threads start");
    let mut random = Random::new(6);
    let mut halves = |n| -> Vec<f32> {
        let values = random.normals_f32(n);
        values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
    };
    let (table, hidden) = (halves(vocab * cols), halves(rows * cols));
    let mut trainables = Trainables::default();
    let h_id = trainables.add(&device, "h".into(), &[rows, cols], &hidden);
    let table_id = trainables.add(&device, "wte".into(), &[vocab, cols], &table);
    let matrix = if trained {
        Matrix::Trainable(table_id)
    } else {
        frozen(&device, vocab, cols, &table)
    };
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % vocab as i64).collect();
    let targets = LmTargets {
        head: head(&matrix),
        labels: &labels,
        smoothing: 0.1,
    };
    let ids: Vec<u32> = (0..rows as u32).collect();
    let param = Param::Trainable(h_id);
    let mut tape = Tape::training(&device, &trainables, None);
    let h = embedding(&mut tape, &[lookup(Table::Rows(&param), &ids)]);
    let mut gradients = Gradients::zeros(&device, &trainables);
    let sum = lm_loss_backward(tape, h, targets, 1.0, &mut gradients);
    let [d_h, d_table] = [h_id, table_id].map(|id| gradients.get(id).read());
    (sum, d_h, d_table)
}

#[test]
fn the_loss_in_bf16_is_that_in_f32_up_to_the_rounding_of_its_gradients() {
    if !Isa::best().multiplies_bf16() {
        eprintln!("skipped: {} does not multiply bf16", Isa::best().name());
        return;
    }
    // More rows than one part holds, a vocabulary that goes by blocks, and is neither even nor
    // whole panels; a small one.
    for shape in [[600, 6, 6211], [5, 9, 33]] {
        for trained in [false, true] {
            let (sum, d_h, d_table) = loss_in(DType::Bf16, trained, shape);
            let (want, want_d_h, want_d_table) = loss_in(DType::F32, trained, shape);
            assert!(
                (sum - want).abs() < 1e-6 * want,
                "{shape:?}: {sum}, expected {want}"
            );
            for (what, got, want) in [("d_h", d_h, want_d_h), ("d_table", d_table, want_d_table)] {
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
                let apart = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b));
                let size = norm(&mut want.iter().copied());
                // Measured worst 2.1e-3: bf16 keeps 8 bits.
                assert!(
                    apart <= 5e-3 * size,
                    "{shape:?}, {what}, trained {trained}: {apart} of {size}"
                );
                assert!(trained || what == "d_h" || got.iter().all(|v| *v == 0.0));
            }
        }
    }
}

#[test]
fn the_loss_holds_some_rows_of_logits_and_no_second_table() {
    let (rows, cols, vocab) = (2048, 768, 50257);
    for precision in [DType::F32, DType::Bf16] {
        let device = Device::dry_in(precision);
        let matrix = frozen(&device, vocab, cols, &[]);
        let mut trainables = Trainables::default();
        let id = trainables.add(&device, "h".into(), &[rows, cols], &[]);
        let param = Param::Trainable(id);
        let mut tape = Tape::training(&device, &trainables, None);
        let ids: Vec<u32> = (0..rows as u32).collect();
        let h = embedding(&mut tape, &[lookup(Table::Rows(&param), &ids)]);
        let mut gradients = Gradients::zeros(&device, &trainables);
        let labels = vec![0; rows];
        let targets = LmTargets {
            head: head(&matrix),
            labels: &labels,
            smoothing: 0.0,
        };
        device.reset_peak();
        lm_loss_backward(tape, h, targets, 1.0, &mut gradients);
        let workspace = device.peak_memory().of(Purpose::Workspace);
        // f32: 192 rows of logits, which become their gradient. bf16: also the gradient of 512
        // rows, at half the size.
        let rows_of_logits = match precision {
            DType::F32 => 192,
            DType::Bf16 => 128 + 512 / 2,
        };
        let logits = (rows_of_logits * vocab * 4) as u64;
        assert!(
            (logits..logits + (2 << 20)).contains(&workspace),
            "{precision:?}: {workspace} bytes beside logits of {logits}"
        );
    }
}
