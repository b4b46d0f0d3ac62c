//! What frozen layers give may be kept or not, in whole or in part: not one bit of the result
//! depends on it.

use lowrank_engine::{BaseFormat, DType, Device, Numerics, Purpose};
use lowrank_model::Passes;
use lowrank_train::config::{ModulePattern, NumericSettings, Task, TrainConfig};
use lowrank_train::frozen_cache::FrozenCaches;
use lowrank_train::metrics::Metric;

use crate::planned::{lengths, planned_peak};
use crate::tiny::{Place, config, run_at};

const ALL: u64 = 1 << 30;
/// About half of the training rows of a width of 32 in f32.
const SOME: u64 = 32 * 4 * 70;

/// Adapters in the second of two layers, with dropout in them.
fn upper(task: Task, numerics: NumericSettings) -> TrainConfig {
    let mut config = config();
    config.data.task = task;
    config.lora.target_modules = in_layers("1");
    config.numerics = numerics;
    config.optimization.max_steps = Some(12);
    config.evaluation.metric_for_best_model = Metric::Loss;
    config
}

/// Every linear layer of these layers, whatever the family.
pub fn in_layers(numbers: &str) -> ModulePattern {
    ModulePattern::Text(format!(
        r".*\.(layer|layers|h)\.({numbers})\..*(query|key|value|_proj|c_attn|c_fc|fc1|fc2|dense)"
    ))
}

const CASES: [(&str, Task); 9] = [
    ("bert-single-label", Task::SingleLabel),
    ("bert-silu-classifier-dropout", Task::SingleLabel),
    ("roberta-single-label", Task::SingleLabel),
    ("deberta-single-label", Task::SingleLabel),
    ("deberta-v2-v3", Task::SingleLabel),
    ("gpt2-single-label", Task::SingleLabel),
    ("gpt2-causal", Task::CausalLm),
    ("gpt_neo-causal", Task::CausalLm),
    ("opt-causal", Task::CausalLm),
];

#[test]
fn kept_or_not_the_adapter_is_the_same_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    for (golden, task) in CASES {
        for numerics in [
            NumericSettings::of(DType::F32),
            NumericSettings::of(DType::Bf16),
            NumericSettings::new(DType::F32, Some(BaseFormat::Int8), None),
        ] {
            // One of each head is enough: what is kept is kept alike.
            let is_int8 = numerics.base_format == BaseFormat::Int8;
            if is_int8 && !["bert-single-label", "gpt2-causal"].contains(&golden) {
                continue;
            }
            let config = upper(task, numerics);
            let run = |name: &str, threads, prefix_cache_bytes, stop_at| {
                let place = Place {
                    golden,
                    threads,
                    prefix_cache_bytes,
                };
                let of = Numerics::from(numerics);
                let dir = dir.path().join(format!("{golden}-{of}-{name}"));
                run_at(place, &config, &dir, stop_at).expect("the run ends")
            };
            let off = run("off", 1, 0, 0);
            let runs = [
                ("all", run("all", 1, ALL, 0)),
                ("some", run("some", 1, SOME, 0)),
                ("threads", run("threads", 3, ALL, 0)),
                ("stopped", run("stopped", 1, ALL, 3)),
                ("stopped, some", run("stopped-some", 3, SOME, 5)),
            ];
            for (name, left) in runs {
                assert!(
                    left.adapter == off.adapter,
                    "{golden}: the file with {name}"
                );
                assert_eq!(left.log, off.log, "{golden}: the log with {name}");
                let kept = left.peak.of(Purpose::FrozenCache);
                assert!(kept > 0, "{golden}: nothing is kept with {name}");
            }
        }
    }
}

#[test]
fn the_plan_counts_the_kept_states_as_the_run_does() {
    let dir = tempfile::tempdir().expect("a folder");
    for (golden, task) in CASES {
        let mixed = NumericSettings::new(DType::F32, Some(BaseFormat::Bf16), None);
        let in_bf16 = NumericSettings::of(DType::Bf16);
        let int8 = NumericSettings::new(DType::Bf16, Some(BaseFormat::Int8), None);
        for (limit, numerics) in [
            (0, in_bf16),
            (SOME, in_bf16),
            (ALL, in_bf16),
            (SOME, mixed),
            (0, int8),
            (ALL, int8),
        ] {
            let config = upper(task, numerics);
            let place = Place {
                golden,
                threads: 2,
                prefix_cache_bytes: limit,
            };
            let name = format!("{golden}-{limit}-{}", Numerics::from(numerics));
            let run_dir = dir.path().join(name);
            let run = run_at(place, &config, &run_dir, 0).expect("the run ends");
            let planned = planned_peak(place, &config).expect("the rows fit");
            let kept = [&planned, &run.peak].map(|peak| peak.of(Purpose::FrozenCache));
            assert_eq!(kept[0], kept[1], "{golden} with {limit} bytes");
            if task == Task::CausalLm {
                // The plan takes every token for counted, these rows mask some: their last layer
                // reads a copy of the others, at most a tensor of all tokens of a batch.
                let copy = planned.of(Purpose::Activations) / 8;
                assert!(
                    planned.total() + copy >= run.peak.total(),
                    "{golden} with {limit} bytes: {planned:?}, {:?}",
                    run.peak
                );
            } else {
                assert_eq!(planned, run.peak, "{golden} with {limit} bytes");
            }
        }
    }
}

#[test]
fn what_is_kept_is_what_does_not_change() {
    let kept = |golden, change: &dyn Fn(&mut TrainConfig)| {
        let mut config = upper(Task::SingleLabel, NumericSettings::of(DType::F32));
        change(&mut config);
        let place = Place {
            golden,
            ..Place::default()
        };
        let model = place.model(&config, &Device::dry());
        let layers =
            [Passes::Training, Passes::Inference].map(|passes| model.frozen_layers(passes).count);
        let lengths = lengths(config.data.task);
        let caches = FrozenCaches::new(&model, &config, &lengths, ALL);
        let tokens = |n: &[usize]| n.iter().sum::<usize>() as u64;
        let all = 4 * 32 * (tokens(&lengths.train) + tokens(&lengths.validation));
        (layers, caches.bytes() as f64 / all as f64)
    };
    let bert = "bert-single-label";
    assert_eq!(kept(bert, &|_| {}), ([1, 1], 1.0));
    // Two of three layers.
    let three = |config: &mut TrainConfig| {
        config.lora.target_modules = ModulePattern::Names(vec!["query".to_owned()]);
        config.lora.layers_to_transform = Some(vec![2]);
    };
    assert_eq!(kept("bert-patterns", &three), ([2, 2], 1.0));
    // An adapter in the first layer, a bias there, a trained table below it: nothing is frozen.
    let first = |config: &mut TrainConfig| config.lora.target_modules = in_layers("0|1");
    assert_eq!(kept(bert, &first), ([0, 0], 0.0));
    let biases = |config: &mut TrainConfig| {
        config.lora.bias = lowrank_train::config::BiasMode::All;
    };
    assert_eq!(kept(bert, &biases), ([0, 0], 0.0));
    let table = |config: &mut TrainConfig| {
        config.lora.modules_to_save = vec!["word_embeddings".to_owned()];
    };
    assert_eq!(kept(bert, &table), ([0, 0], 0.0));
    // The table of relative positions is read by every layer of DeBERTa.
    let relative = |config: &mut TrainConfig| {
        config.lora.modules_to_save = vec!["rel_embeddings".to_owned()];
    };
    assert_eq!(kept("deberta-v2-v3", &relative), ([0, 0], 0.0));
    // Rows that come once are not kept.
    let once = |config: &mut TrainConfig| {
        config.optimization.max_steps = Some(4);
        config.evaluation.eval_steps = Some(4);
    };
    assert_eq!(kept(bert, &once), ([1, 1], 0.0));
}

#[test]
fn with_dropout_only_evaluation_is_kept() {
    let config = upper(Task::SingleLabel, NumericSettings::of(DType::F32));
    let golden = lowrank_testkit::Golden::open("bert-single-label").expect("a golden case opens");
    let path = golden.model_dir().join("config.json");
    let mut with_dropout = lowrank_model::ModelConfig::read(&path).expect("a config");
    with_dropout.set_dropout(0.1).expect("a probability");
    let options = lowrank_model::LoadOptions::new(lowrank_model::Task::SingleLabel, 2);
    let mut model =
        lowrank_model::Model::from_config(with_dropout, &options, &Device::dry()).expect("a model");
    model
        .attach_lora(&config.lora.to_peft("tiny", None), 1)
        .expect("adapters attach");
    assert_eq!(
        [Passes::Training, Passes::Inference].map(|passes| model.frozen_layers(passes).count),
        [0, 1]
    );
    let caches = FrozenCaches::new(&model, &config, &lengths(Task::SingleLabel), ALL);
    assert!(caches.train.is_none() && caches.validation.is_some());
}
