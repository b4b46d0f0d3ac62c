//! Runs on int8 weights: the same bits however they are driven (and those on other weights), and
//! what a checkpoint records.

use lowrank_engine::{Arithmetic, BaseFormat, DType, Device, Isa};
use lowrank_model::MergeOptions;
use lowrank_testkit::Golden;
use lowrank_train::checkpoint::RunState;
use lowrank_train::config::{Method, NumericSettings, Task, TrainConfig};
use lowrank_train::metrics_log::MetricsRow;

use crate::frozen_cache::in_layers;
use crate::tiny::{Left, Place, config, run_at};

const INT8: Option<BaseFormat> = Some(BaseFormat::Int8);

fn of_task(golden: &str, numerics: NumericSettings) -> TrainConfig {
    let mut config = TrainConfig {
        numerics,
        ..config()
    };
    config.lora.target_modules = in_layers("[0-9]");
    if golden.ends_with("causal") {
        config.data.task = Task::CausalLm;
        config.data.labels.clear();
    }
    config
}

#[test]
fn threads_and_recomputation_leave_the_bits_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    for golden in ["bert-single-label", "deberta-v2-v3", "gpt2-causal"] {
        for numerics in [
            NumericSettings::new(DType::F32, INT8, None),
            NumericSettings::new(DType::Bf16, INT8, None),
            NumericSettings::new(DType::Bf16, INT8, Some(Arithmetic::F32)),
            NumericSettings::of(DType::F32),
            NumericSettings::of(DType::Bf16),
        ] {
            // One family is enough for what other tests drive too.
            if numerics.base_format != BaseFormat::Int8 && golden != "bert-single-label" {
                continue;
            }
            let run = |threads: usize, recompute: bool| -> Left {
                let mut config = of_task(golden, numerics);
                config.optimization.gradient_checkpointing = recompute;
                let place = Place {
                    golden,
                    threads,
                    prefix_cache_bytes: 0,
                };
                let dir = dir
                    .path()
                    .join(format!("{golden} {numerics:?} {threads} {recompute}"));
                run_at(place, &config, &dir, 0).expect("the run ends")
            };
            let one = run(1, false);
            for (threads, recompute) in [(2, true), (4, false), (8, false), (16, false)] {
                let other = run(threads, recompute);
                assert_eq!(other.values, one.values, "{golden} {threads} {recompute}");
                assert_eq!(other.log, one.log, "{golden} {threads} {recompute}");
            }
        }
    }
}

#[test]
fn a_run_begins_as_it_does_in_f32() {
    let dir = tempfile::tempdir().expect("a folder");
    let begun = |name: &str, format: Option<BaseFormat>| {
        let config = of_task("bert", NumericSettings::new(DType::F32, format, None));
        let left = run_at(Place::default(), &config, &dir.path().join(name), 0);
        let log = left.expect("the run ends").log;
        let row = |row: &MetricsRow| [row.loss, row.grad_norm].map(|v| v.expect("a number"));
        log.iter().take(3).map(row).collect::<Vec<_>>()
    };
    let (wanted, found) = (begun("f32", None), begun("int8", INT8));
    for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
        assert!(
            (found - wanted).abs() < 0.02 * wanted,
            "{found} for {wanted}"
        );
        assert_ne!(found, wanted);
    }
}

#[test]
fn a_checkpoint_records_the_columns_beside_and_a_run_goes_on_with_those() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = of_task("bert", NumericSettings::new(DType::F32, INT8, None));
    run_at(Place::default(), &config, dir.path(), 0).expect("the run ends");
    let checkpoint = dir.path().join("checkpoint-12");
    let mut state = RunState::read(&checkpoint).expect("a checkpoint");
    let [inputs, gradients] = &state.outliers["bert.encoder.layer.0.intermediate.dense.weight"];
    assert!(!inputs.is_empty() && !gradients.is_empty());
    assert!(!state.outliers.contains_key("classifier.weight"));
    let device = Device::cpu_in(config.numerics, Isa::best(), 1).expect("threads start");
    let mut model = Place::default().model(&config, &device);
    let first = model.outliers();
    let recorded = |state: &RunState| {
        let all = state.outliers.iter();
        let of = |[inputs, gradients]: &[Vec<u32>; 2]| lowrank_engine::Outliers {
            inputs: inputs.clone(),
            gradients: gradients.clone(),
        };
        all.map(|(name, lists)| (name.clone(), of(lists))).collect()
    };
    assert_ne!(first, recorded(&state));
    model.set_outliers(&recorded(&state)).expect("they fit");
    assert_eq!(model.outliers(), recorded(&state));
    state.outliers.pop_first();
    let error = model
        .set_outliers(&recorded(&state))
        .expect_err("one is absent");
    assert!(error.to_string().contains("kept beside"), "{error}");
}

#[test]
fn what_is_merged_starts_from_the_original_weights() {
    let (place, out) = (Place::default(), tempfile::tempdir().expect("a folder"));
    let golden = Golden::open(place.golden).expect("a golden case opens");
    let config = TrainConfig {
        method: Method::Lora,
        ..of_task("bert", NumericSettings::new(DType::F32, INT8, None))
    };
    let device = Device::cpu_in(config.numerics, Isa::best(), 1).expect("threads start");
    let mut model = place.model(&config, &device);
    let options = MergeOptions {
        max_shard_bytes: 1 << 30,
        ..MergeOptions::default()
    };
    for error in [
        model.merge_adapters().map(|_| ()),
        (model.write_merged(&golden.model_dir(), out.path(), &options)).map(|_| ()),
    ] {
        let error = error.expect_err("it is refused").to_string();
        assert!(error.contains("original weights"), "{error}");
    }
    assert_eq!(std::fs::read_dir(out.path()).expect("a folder").count(), 0);
}
