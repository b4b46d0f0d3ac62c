//! A run that is told to stop at any event and goes on again ends as the run that never stopped:
//! same values, same log.

use lowrank_engine::{BaseFormat, DType, Device, Isa};
use lowrank_model::Batch;
use lowrank_train::config::{Method, NumericSettings, TrainConfig};
use lowrank_train::trainer::{Outcome, Watch};

use std::sync::atomic::AtomicBool;

use crate::tiny::{Place, bits, config, run, trainer};

#[test]
fn stopped_at_any_event_and_resumed_is_never_stopped() {
    for numerics in [
        NumericSettings::of(DType::F32),
        NumericSettings::of(DType::Bf16),
        NumericSettings::new(DType::F32, Some(BaseFormat::Bf16), None),
        NumericSettings::new(DType::F32, Some(BaseFormat::Int8), None),
    ] {
        stop_and_resume(&TrainConfig {
            numerics,
            ..config()
        });
    }
    stop_and_resume(&TrainConfig {
        method: Method::BitFit,
        ..config()
    });
}

fn stop_and_resume(config: &TrainConfig) {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = run(config, &dir.path().join("whole"), 0).expect("the run ends");
    assert_eq!(whole.log.len(), 12);
    assert_eq!(whole.log.iter().filter(|row| row.eval.is_some()).count(), 6);
    assert_eq!(
        whole.summary.final_step,
        whole.summary.best_step.expect("an evaluation")
    );
    // Events come at steps, in the midst of evaluations (three batches each), after them and after
    // checkpoints.
    for stop_at in 1..=8 {
        let left =
            run(config, &dir.path().join(stop_at.to_string()), stop_at).expect("the run ends");
        assert!(left.starts > 1, "the stop at event {stop_at} did nothing");
        assert_eq!(left.values, whole.values, "stopped at event {stop_at}");
        assert_eq!(left.log, whole.log, "stopped at event {stop_at}");
        assert_eq!(left.summary.proof, whole.summary.proof);
    }
}

#[test]
fn a_model_that_is_asked_between_steps_trains_as_if_it_were_not() {
    let (config, place) = (config(), Place::default());
    let dir = tempfile::tempdir().expect("a folder");
    let whole = run(&config, &dir.path().join("whole"), 0).expect("the run ends");
    let device = Device::cpu(Isa::best(), 1).expect("threads start");
    let asked = dir.path().join("asked");
    std::fs::create_dir(&asked).expect("a folder");
    let model = place.model(&config, &device);
    let mut trainer = trainer(place, &config, &asked, model).expect("a run begins");
    let (stop, on_event) = (
        AtomicBool::new(false),
        |_: lowrank_train::trainer::Event<'_>| {},
    );
    let watch = Watch {
        stop: &stop,
        on_event: &on_event,
    };
    let batch = Batch {
        input_ids: &[2, 17, 5, 3],
        token_type_ids: None,
        offsets: &[0, 4],
    };
    let mut answers = vec![trainer.model().logits(&batch).expect("logits")];
    let outcome = loop {
        match trainer.advance(watch).expect("a step") {
            None => answers.push(trainer.model().logits(&batch).expect("logits")),
            Some(outcome) => break outcome,
        }
    };
    assert!(matches!(outcome, Outcome::Finished(_)));
    assert_eq!(answers.len() as u64, 1 + trainer.steps());
    assert_ne!(answers.first(), answers.last());
    assert_eq!(bits(trainer.model()), whole.values);
}

#[test]
fn patience_ends_a_run_and_the_best_values_are_loaded() {
    let mut config = config();
    config.optimization.learning_rate = 0.5;
    config.optimization.max_steps = Some(60);
    config.evaluation.eval_steps = Some(1);
    config.evaluation.early_stopping_patience = Some(3);
    let dir = tempfile::tempdir().expect("a folder");
    let left = run(&config, dir.path(), 0).expect("the run ends");
    assert!(
        left.summary.stopped_early && left.summary.steps < 60,
        "{:?}",
        left.summary
    );
    let best = left.summary.best_step.expect("an evaluation");
    assert_eq!(left.summary.steps, best + 3);
    assert_eq!(left.summary.final_step, best);
    // A finished run that is started again stays as it is.
    let again = run(&config, dir.path(), 0).expect("the run ends");
    assert_eq!(again.values, left.values);
}
