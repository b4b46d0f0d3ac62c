//! What must hold for every run: accumulation equals the large batch, and what is written can be used.

use crate::tiny::{config, run};
use lowrank_testkit::{Tolerance, check_close, compare_close};
use lowrank_train::trainer::TrainError;

/// Sums in another order: losses differ by up to 1e-6 over these steps.
const SAME: Tolerance = Tolerance {
    abs: 2e-5,
    rel: 2e-5,
};

#[test]
fn accumulation_equals_the_large_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    // 20 rows of 2 to 12 tokens: the last step of each epoch has 4 rows, so micro-batches and steps are of unequal size.
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
