//! DeBERTa's promises beside the golden numbers: counts of the paper's model, what is saved with an
//! adapter, what its config may say. One batch's rows do not mix, and full fine-tuning writes every
//! tensor in its own shape.

use std::path::Path;

use lowrank_engine::{DType, Device, Isa};
use lowrank_formats::peft::LoraConfig;
use lowrank_formats::{Checkpoint, read_json};
use lowrank_model::{Batch, LoadOptions, MergeOptions, Model, ModelConfig, Task};
use lowrank_testkit::Golden;
use serde_json::{Value, json};

fn device() -> Device {
    Device::cpu(Isa::best(), 1).expect("threads start")
}

fn options(task: Task, num_labels: usize) -> LoadOptions {
    LoadOptions::new(task, num_labels)
}

fn published(name: &str) -> ModelConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tools/bench/configs")
        .join(name);
    ModelConfig::read(&path).expect("the config is sound")
}

#[test]
fn xxlarge_has_the_paper_s_counts() {
    let config = published("deberta-v2-xxlarge.json");
    let mut model = Model::from_config(config, &options(Task::SingleLabel, 3), &Device::dry())
        .expect("the model is built");
    // transformers 5.23 counts 1,566,915,075 with three labels; peft 4,718,592 at r = 16 on
    // query_proj and value_proj.
    assert_eq!(model.base_parameters(), 1_566_915_075);
    let lora = LoraConfig {
        r: 16,
        ..LoraConfig::default()
    };
    let report = model.attach_lora(&lora, 1).expect("attached");
    assert_eq!(report.adapter_parameters(), 4_718_592);
    assert_eq!(report.modules.len(), 96);
    // The pooler and the classifier.
    assert_eq!(
        report.saved.iter().map(|m| m.parameters).sum::<u64>(),
        2_360_832 + 4_611
    );
}

#[test]
fn the_pooler_is_saved_unless_the_user_names_what_is() {
    for (task, given, saved) in [
        (Task::SingleLabel, None, &["pooler.dense", "classifier"][..]),
        (Task::SingleLabel, Some("classifier"), &["classifier"]),
        (Task::TokenClassification, None, &["classifier"]),
    ] {
        let golden = Golden::open("deberta-v2-v3").expect("a golden case opens");
        let options = options(task, 3);
        let (mut model, _) =
            Model::load(&golden.model_dir(), &options, &device()).expect("the model loads");
        let lora = LoraConfig {
            modules_to_save: given.map(|name| vec![name.to_string()]),
            ..LoraConfig::default()
        };
        let report = model.attach_lora(&lora, 1).expect("attached");
        let paths: Vec<_> = report.saved.iter().map(|m| m.path.as_str()).collect();
        assert_eq!(paths, saved);
        let adapted = |name: &str| {
            report
                .modules
                .iter()
                .filter(|m| m.path.ends_with(name))
                .count()
        };
        assert_eq!((adapted("query_proj"), adapted("value_proj")), (2, 2));
        assert_eq!(report.modules.len(), 4);
    }
}

#[test]
fn v1_adapts_its_fused_projection() {
    let golden = Golden::open("deberta-single-label").expect("a golden case opens");
    let options = options(Task::SingleLabel, 2);
    let (mut model, _) =
        Model::load(&golden.model_dir(), &options, &device()).expect("the model loads");
    let report = model
        .attach_lora(&LoraConfig::default(), 1)
        .expect("attached");
    assert!(report.modules.iter().all(|m| m.path.ends_with(".in_proj")));
    assert_eq!(report.modules[0].shape, [96, 32]);
}

/// bf16 values and products: the golden logits within its precision. Measured: 0.014 of the largest
/// logit.
#[test]
fn bf16_gives_nearly_the_peers_logits() {
    for name in [
        "deberta-v2-v3",
        "deberta-v2-xxlarge",
        "deberta-single-label",
    ] {
        let golden = Golden::open(name).expect("a golden case opens");
        let device = Device::cpu_in(DType::Bf16, Isa::best(), 2).expect("threads start");
        let options = options(Task::SingleLabel, golden.num_labels);
        let (mut model, _) =
            Model::load(&golden.model_dir(), &options, &device).expect("the model loads");
        let adapter = golden.adapter_dir().expect("an adapter");
        model.load_adapter(&adapter).expect("the adapter fits");
        let mut input_ids = Vec::new();
        let mut offsets = vec![0];
        for row in &golden.rows {
            input_ids.extend(&row.input_ids);
            offsets.push(input_ids.len());
        }
        let batch = Batch {
            input_ids: &input_ids,
            token_type_ids: None,
            offsets: &offsets,
        };
        let got = model.logits(&batch).expect("the batch is sound");
        let want = &golden.logits().data;
        let largest = want.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let worst = got
            .iter()
            .zip(want)
            .map(|(g, w)| (g - w).abs())
            .fold(0.0, f32::max);
        println!("{name}: {}", worst / largest);
        assert!(worst <= 0.04 * largest, "{name}: {worst} of {largest}");
    }
}

/// Neighbours in a batch change no bit: not through the convolution, nor through the table that
/// follows the longest row.
#[test]
fn rows_do_not_mix() {
    for name in [
        "deberta-v2-xxlarge",
        "deberta-v2-one-layer",
        "deberta-all-linear",
    ] {
        let golden = Golden::open(name).expect("a golden case opens");
        let options = options(Task::SingleLabel, golden.num_labels);
        let (model, _) =
            Model::load(&golden.model_dir(), &options, &device()).expect("the model loads");
        let logits = |rows: &[usize]| {
            let mut input_ids = Vec::new();
            let mut offsets = vec![0];
            for &row in rows {
                input_ids.extend(&golden.rows[row].input_ids);
                offsets.push(input_ids.len());
            }
            let batch = Batch {
                input_ids: &input_ids,
                token_type_ids: None,
                offsets: &offsets,
            };
            model.logits(&batch).expect("the batch is sound")
        };
        let together = logits(&[2, 1, 0]);
        let labels = golden.num_labels;
        for (place, row) in [2, 1, 0].into_iter().enumerate() {
            let alone = logits(&[row]);
            assert_eq!(
                alone,
                together[place * labels..][..labels],
                "{name}, row {row}"
            );
        }
    }
}

#[test]
fn full_fine_tuning_writes_every_tensor_in_its_own_shape() {
    let dir = std::env::temp_dir().join(format!("lowrank-deberta-{}", std::process::id()));
    for name in ["deberta-v2-full", "deberta-full"] {
        let golden = Golden::open(name).expect("a golden case opens");
        let options = options(Task::SingleLabel, golden.num_labels);
        let (mut model, _) =
            Model::load(&golden.model_dir(), &options, &device()).expect("the model loads");
        model.train_all().expect("everything can be trained");
        let merge = MergeOptions {
            dtype: None,
            max_shard_bytes: 1 << 30,
            labels: None,
        };
        std::fs::create_dir_all(&dir).expect("made");
        model
            .write_merged(&golden.model_dir(), &dir, &merge)
            .expect("written");
        let open = |dir: &Path| Checkpoint::open_dir(dir).expect("a checkpoint");
        let (old, new) = (open(&golden.model_dir()), open(&dir));
        for info in old.infos() {
            let written = new.info(&info.name).expect("every tensor is there");
            assert_eq!(written.shape, info.shape, "{}", info.name);
            let values = |c: &Checkpoint| c.read_f32_vec(&info.name).expect("values");
            assert_eq!(values(&old), values(&new), "{}", info.name);
        }
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}

fn fault_of(model: &str, changes: Value) -> String {
    let golden = Golden::open(model).expect("a golden case opens");
    let path = golden.model_dir().join("config.json");
    let mut raw = read_json(&path).expect("a config");
    for (key, value) in changes.as_object().expect("changes") {
        raw[key] = value.clone();
    }
    match ModelConfig::from_value(Path::new("config.json"), raw) {
        Ok(_) => panic!("{changes} must be refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_a_config_may_not_say() {
    let v2 = "deberta-v2-xxlarge";
    for (model, changes, part) in [
        (v2, json!({ "pos_att_type": ["c2p", "p2p"] }), "found `p2p`"),
        (
            v2,
            json!({ "conv_kernel_size": 4 }),
            "expected an odd number, found 4",
        ),
        (v2, json!({ "conv_groups": 2 }), "grouped convolutions"),
        (
            v2,
            json!({ "attention_head_size": 64 }),
            "expected 8, found 64",
        ),
        (
            v2,
            json!({ "pooler_hidden_size": 16 }),
            "expected hidden_size = 32",
        ),
        (v2, json!({ "position_buckets": 1 }), "at least 2 buckets"),
        (v2, json!({ "position_buckets": 2.5 }), "whole number"),
        (v2, json!({ "position_buckets": 94 }), "fewer than 2 * 48"),
        (
            "deberta-full",
            json!({ "talking_head": true }),
            "not supported",
        ),
    ] {
        let message = fault_of(model, changes);
        assert!(message.contains(part), "{message}");
    }
}
