//! What must hold for every run: accumulation equals the large batch, and what is written can be
//! used.

use crate::planned::planned_peak;
use crate::tiny::{Place, config, run};
use lowrank_engine::{DType, Device, Gradients, Isa, Purpose, StepKey};
use lowrank_model::{Batch, Model, PassOptions, Targets};
use lowrank_testkit::{Tolerance, check_close, compare_close};
use lowrank_train::config::{InitLora, Method};
use lowrank_train::reduce::{Reducer, Solo, StepGradients};
use lowrank_train::trainer::TrainError;

/// Sums in another order: losses differ by up to 1e-6 over these steps.
const SAME: Tolerance = Tolerance {
    abs: 2e-5,
    rel: 2e-5,
};

#[test]
fn accumulation_equals_the_large_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    // 20 rows of 2 to 12 tokens: the last step of each epoch has 4 rows, so micro-batches and steps
    // are of unequal size.
    let losses_of = |batch: usize, accumulation: usize| {
        let mut config = config();
        config.optimization.per_device_batch_size = batch;
        config.optimization.gradient_accumulation_steps = accumulation;
        config.lora.lora_dropout = 0.0;
        let run_dir = dir.path().join(format!("{batch}x{accumulation}"));
        let left = run(&config, &run_dir, 0).expect("the run ends");
        let losses = left.log.iter().map(|row| row.loss.expect("a loss"));
        losses.map(|l| l as f32).collect::<Vec<f32>>()
    };
    let whole = losses_of(8, 1);
    assert_eq!(whole.len(), 12);
    for (batch, accumulation) in [(4, 2), (2, 4), (1, 8), (3, 3)] {
        let losses = losses_of(batch, accumulation);
        let name = format!("{batch} x {accumulation}");
        if batch * accumulation == 8 {
            check_close(&name, &losses, &whole, SAME);
        } else {
            // The comparison can fail: nine rows a step are another run.
            assert!(compare_close(&losses, &whole, SAME).is_err());
        }
    }
}

#[test]
fn values_that_are_not_finite_are_never_written() {
    let mut config = config();
    // One step, whose loss is still fine: only the values tell.
    config.optimization.learning_rate = 1e300;
    config.optimization.warmup_steps = Some(0);
    config.optimization.max_steps = Some(1);
    config.evaluation.eval_strategy = lowrank_train::config::IntervalStrategy::No;
    config.evaluation.load_best_model_at_end = false;
    let dir = tempfile::tempdir().expect("a folder");
    let Err(error) = run(&config, dir.path(), 0) else {
        panic!("the run ends")
    };
    assert!(
        matches!(error, TrainError::NotFinite { step: 1, .. }),
        "{error}"
    );
    assert!(error.hint().is_some_and(|h| h.contains("--learning-rate")));
    let names = std::fs::read_dir(dir.path()).expect("a folder");
    let names: Vec<_> = names.map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names, ["metrics.jsonl"], "no checkpoint");
}

/// 60 rows of 9 tokens: more than one sum takes whose parts are added in order.
struct MicroBatch {
    ids: Vec<u32>,
    offsets: Vec<usize>,
    labels: Vec<i64>,
}

impl MicroBatch {
    fn new(seed: u32) -> Self {
        MicroBatch {
            ids: (0..540).map(|i| 5 + (31 * i + i / 7 + seed) % 90).collect(),
            offsets: (0..=60).map(|row| 9 * row).collect(),
            labels: (0..60).map(|row| (row / 3 + i64::from(seed)) % 2).collect(),
        }
    }

    fn add(&self, model: &Model, index: usize, gradients: &mut Gradients) -> f64 {
        let batch = Batch {
            input_ids: &self.ids,
            token_type_ids: None,
            offsets: &self.offsets,
        };
        let micro_step = index as u64;
        let options = PassOptions {
            dropout: Some(StepKey {
                seed: 5,
                micro_step,
            }),
            grad_scale: 1.0 / 120.0,
            ..PassOptions::default()
        };
        let targets = Targets::Class(&self.labels);
        let pass = model.forward_backward(&batch, targets, &options, gradients);
        pass.expect("the batch fits").0
    }
}

fn bits(gradients: &Gradients) -> Vec<u32> {
    let values = gradients.iter().flat_map(|gradient| gradient.read());
    values.map(f32::to_bits).collect()
}

#[test]
fn a_step_is_the_sum_of_its_micro_batches_bit_for_bit() {
    let (place, mut config) = (Place::default(), config());
    // Neither factor is zero, so that both have a gradient.
    config.lora.init_lora_weights = InitLora::Random;
    let micro_batches = [1, 2, 3].map(MicroBatch::new);
    for precision in [DType::F32, DType::Bf16] {
        let device = Device::cpu_in(precision, Isa::best(), 2).expect("threads start");
        let model = place.model(&config, &device);
        let zeros = || Gradients::zeros(&device, model.trainables());
        let mut step = StepGradients::zeros(&device, model.trainables(), micro_batches.len());
        let loss_of_step = Solo
            .reduce(micro_batches.len(), &mut step, &mut |index, gradients| {
                Ok(micro_batches[index].add(&model, index, gradients))
            })
            .expect("nothing fails");
        let (mut loss, mut sum, mut running) = (0.0, zeros(), zeros());
        // As three machines would: each alone, from zero.
        for (index, micro_batch) in micro_batches.iter().enumerate() {
            let mut own = zeros();
            loss += micro_batch.add(&model, index, &mut own);
            for (sum, own) in sum.iter_mut().zip(own.iter()) {
                // The first is the sum: a zero that is added would turn its -0 into 0.
                let added = match index {
                    0 => own.read(),
                    _ => sum
                        .read()
                        .iter()
                        .zip(own.read())
                        .map(|(a, b)| a + b)
                        .collect(),
                };
                sum.write(&added);
            }
            micro_batch.add(&model, index, &mut running);
        }
        assert_eq!(loss_of_step.to_bits(), loss.to_bits(), "{precision:?}");
        assert!(bits(step.sum()) == bits(&sum), "{precision:?}");
        // The comparison can fail: products that add to a running sum have other bits.
        if precision == DType::F32 {
            assert!(bits(&running) != bits(&sum));
        }
    }
}

#[test]
fn a_plan_counts_what_biases_and_a_second_gradient_take() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut peaks = Vec::new();
    for accumulation in [1, 2] {
        let mut config = config();
        config.method = Method::BitFit;
        config.optimization.gradient_accumulation_steps = accumulation;
        let left = run(&config, &dir.path().join(accumulation.to_string()), 0).expect("it ends");
        let planned = planned_peak(Place::default(), &config).expect("the rows fit");
        assert_eq!(planned, left.peak, "{accumulation} micro-batches a step");
        peaks.push(left.peak.of(Purpose::Gradients));
    }
    assert_eq!(2 * peaks[0], peaks[1]);
}
