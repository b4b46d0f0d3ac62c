//! Queries and values of GPT-2's fused layer as targets of their own: what is trained, what PEFT's
//! files hold, and that both are the same function.

use std::path::Path;

use lowrank_engine::{Device, Isa};
use lowrank_formats::peft::{AdapterFile, InitLoraWeights, LoraConfig, TargetModules};
use lowrank_model::{Batch, LoadOptions, MergeOptions, Model, ModelConfig, ModelError, Task};
use lowrank_testkit::{Golden, Tolerance, check_close};
use serde_json::json;

const WIDTH: usize = 32;
const RANK: usize = 3;
const OPTIONS: LoadOptions = LoadOptions::new(Task::CausalLm, 1);

fn base() -> Model {
    base_of("gpt2-causal")
}

fn base_of(name: &str) -> Model {
    let device = Device::cpu(Isa::best(), 1).expect("threads start");
    let golden = Golden::open(name).expect("a golden case");
    Model::load(&golden.model_dir(), &OPTIONS, &device)
        .expect("it loads")
        .0
}

#[allow(clippy::field_reassign_with_default)]
fn config(targets: &[&str]) -> LoraConfig {
    let mut config = LoraConfig::default();
    config.r = RANK;
    config.lora_alpha = 7.0;
    config.target_modules = Some(TargetModules::List(
        targets.iter().map(ToString::to_string).collect(),
    ));
    // B is not zero either: the adapter does something from the start.
    config.init_lora_weights = InitLoraWeights::Random;
    config
}

fn adapted(targets: &[&str]) -> Model {
    let mut model = base();
    model.attach_lora(&config(targets), 5).expect("it attaches");
    model
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (3..20).collect();
    let batch = Batch {
        input_ids: &ids,
        token_type_ids: None,
        offsets: &[0, 9, 17],
    };
    model.logits(&batch).expect("the batch fits")
}

fn refusal(change: impl FnOnce(&mut LoraConfig), targets: &[&str]) -> String {
    let mut config = config(targets);
    change(&mut config);
    let error = base().attach_lora(&config, 1).expect_err("refused");
    assert!(matches!(error, ModelError::Pattern { .. }), "{error}");
    error.to_string()
}

fn saved(model: &Model, dir: &Path) -> (LoraConfig, AdapterFile) {
    std::fs::create_dir_all(dir).expect("made");
    model.save_adapter(dir, Some("tiny")).expect("saved");
    let config = LoraConfig::read(dir).expect("a configuration");
    (config, AdapterFile::read(dir).expect("tensors"))
}

#[test]
fn the_papers_counts() {
    let sized = |layers: usize, width: usize, heads: usize| {
        let config = json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_layer": layers, "n_embd": width, "n_head": heads,
        });
        let config = ModelConfig::from_value(Path::new("config.json"), config).expect("a config");
        let mut model = Model::from_config(config, &OPTIONS, &Device::dry()).expect("a dry model");
        let mut lora = self::config(&["c_attn.q", "c_attn.v"]);
        lora.r = 4;
        model.attach_lora(&lora, 1).expect("it attaches");
        (
            model.trainables().count(),
            model.adapter_report().modules.len(),
        )
    };
    assert_eq!(sized(24, 1024, 16), (393_216, 48));
    assert_eq!(sized(36, 1280, 20), (737_280, 72));
}

#[test]
fn pefts_form_is_the_same_function_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a folder");
    for (i, targets) in [
        &["c_attn.q", "c_attn.v"][..],
        &["c_attn.k"],
        &["c_attn.v", "c_attn.k", "c_attn.q"],
        &["c_attn.q", "c_attn.v", "mlp.c_proj"],
    ]
    .iter()
    .enumerate()
    {
        let model = adapted(targets);
        let parts = targets.iter().filter(|t| t.starts_with("c_attn.")).count();
        let of_layer = |m: &&lowrank_model::AdaptedModule| m.path.contains("c_attn");
        let report = model.adapter_report();
        for module in report.modules.iter().filter(of_layer) {
            assert_eq!((module.shape, module.rank), ([WIDTH, WIDTH], RANK));
            assert_eq!(module.parameters as usize, 2 * RANK * WIDTH);
            assert_eq!((module.alpha, module.scaling), (7.0, 7.0 / 3.0));
        }
        assert_eq!(report.adapter_parameters(), model.trainables().count());
        let dir = dir.path().join(i.to_string());
        let (config, file) = saved(&model, &dir);
        let shapes: Vec<_> = model
            .saved_shapes()
            .into_iter()
            .map(|(n, s)| (n.to_owned(), s))
            .collect();
        for (name, tensor) in file.iter() {
            assert!(
                shapes.contains(&(name.to_owned(), tensor.shape.clone())),
                "{name}"
            );
            if name.ends_with("c_attn.lora_B.weight") {
                assert_eq!(tensor.shape, [3 * WIDTH, parts * RANK]);
                let filled = tensor.data.iter().filter(|v| **v != 0.0).count();
                assert_eq!(filled, parts * WIDTH * RANK, "zero outside the blocks");
            }
        }
        assert!(config.fan_in_fan_out);
        if targets.len() == parts {
            assert_eq!(
                (config.r, config.lora_alpha),
                (parts * RANK, 7.0 * parts as f64)
            );
        } else {
            assert_eq!(config.rank_pattern, [("c_attn".to_owned(), parts * RANK)]);
        }
        let mut again = base();
        again.load_adapter(&dir).expect("it fits");
        assert_eq!(logits(&again), logits(&model), "{targets:?}");
        assert_ne!(logits(&again), logits(&base()));
    }
}

/// Grouped heads: keys and values have half the rows of queries.
#[test]
fn parts_of_unequal_rows_are_pefts_form_too() {
    let dir = tempfile::tempdir().expect("a folder");
    for (i, (targets, shapes)) in [
        (&["qkv_proj.q", "qkv_proj.v"][..], &[[32, 32], [16, 32]][..]),
        (&["qkv_proj.k"], &[[16, 32]]),
        (&["gate_up_proj.up"], &[[64, 32]]),
        (
            &[
                "gate_up_proj.up",
                "gate_up_proj.gate",
                "qkv_proj.v",
                "o_proj",
            ],
            &[[32, 32], [16, 32], [64, 32], [64, 32]],
        ),
    ]
    .iter()
    .enumerate()
    {
        let attached = |name: &str| {
            let mut model = base_of(name);
            model.attach_lora(&config(targets), 5).expect("it attaches");
            model
        };
        let model = attached("phi3-causal");
        let report = model.adapter_report();
        let found: Vec<_> = report.modules.iter().map(|module| module.shape).collect();
        assert_eq!(found[..shapes.len()], **shapes, "{targets:?}");
        let dir = dir.path().join(i.to_string());
        let (_, file) = saved(&model, &dir);
        for (name, tensor) in file
            .iter()
            .filter(|(name, _)| name.ends_with("lora_B.weight"))
        {
            let of = |layer: &str| {
                let named = |target: &&&str| target.starts_with(layer) && name.contains(layer);
                targets.iter().filter(named).count()
            };
            let parts = (of("qkv_proj.") + of("gate_up_proj.")).max(1);
            assert_eq!(tensor.shape[1], parts * RANK, "{name}");
        }
        let mut again = base_of("phi3-causal");
        again.load_adapter(&dir).expect("it fits");
        assert_eq!(logits(&again), logits(&model), "{targets:?}");
        assert_ne!(logits(&again), logits(&base_of("phi3-causal")));
    }
    let mut lora = config(&["qkv_proj.q", "qkv_proj.v"]);
    lora.r = 17;
    let error = base_of("phi3-causal")
        .attach_lora(&lora, 1)
        .expect_err("refused");
    assert!(
        error.to_string().contains("rank 34 is outside 1..=32"),
        "{error}"
    );
}

/// As in the paper's table 18, which goes up to the full rank of a part.
#[test]
fn a_part_may_have_full_rank() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut lora = config(&["c_attn.q", "c_attn.v"]);
    lora.r = WIDTH;
    let mut model = base();
    model.attach_lora(&lora, 5).expect("it attaches");
    saved(&model, dir.path());
    let mut again = base();
    again.load_adapter(dir.path()).expect("it fits");
    assert_eq!(logits(&again), logits(&model));
}

#[test]
fn merging_is_that_of_pefts_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = adapted(&["c_attn.q", "c_attn.v"]);
    saved(&model, &dir.path().join("adapter"));
    let mut one = base();
    one.load_adapter(&dir.path().join("adapter"))
        .expect("it fits");
    let merged = |model: &Model, name: &str| {
        let out = dir.path().join(name);
        std::fs::create_dir(&out).expect("made");
        let golden = Golden::open("gpt2-causal").expect("a golden case");
        let options = MergeOptions {
            dtype: None,
            max_shard_bytes: 1 << 30,
            labels: None,
        };
        model
            .write_merged(&golden.model_dir(), &out, &options)
            .expect("written");
        std::fs::read(out.join("model.safetensors")).expect("a file")
    };
    assert_eq!(merged(&model, "parts"), merged(&one, "one"));
    let mut folded = adapted(&["c_attn.q", "c_attn.v"]);
    folded.merge_adapters().expect("merged");
    // Measured worst 5e-6.
    let tolerance = Tolerance::new(3e-5, 1e-5);
    check_close("merged", &logits(&folded), &logits(&model), tolerance);
}

#[test]
fn a_part_starts_the_same_whatever_else_is_adapted() {
    let values = |targets: &[&str]| {
        let model = adapted(targets);
        let key = "base_model.model.transformer.h.1.attn.c_attn.lora_";
        ["A", "B"].map(|which| {
            let id = model
                .trainables()
                .find(&format!("{key}{which}.weight"))
                .unwrap();
            model.trainables().get(id).value.read()
        })
    };
    let ([q_a, q_b], [both_a, both_b]) = (values(&["c_attn.q"]), values(&["c_attn.q", "c_attn.v"]));
    assert_eq!(both_a[..q_a.len()], q_a);
    assert_eq!(both_b[..q_b.len()], q_b);
    let [v_a, _] = values(&["c_attn.v"]);
    assert_eq!(both_a[q_a.len()..], v_a);
    assert_ne!(q_a, v_a);
    // loralib's start: U(-1/√in, 1/√in) for all of A.
    let bound = 1.0 / (WIDTH as f32).sqrt();
    assert!(
        both_a.iter().all(|a| a.abs() <= bound) && both_a.iter().any(|a| a.abs() > 0.9 * bound)
    );
}

#[test]
fn what_does_not_go_with_parts_is_refused() {
    let nothing = |_: &mut LoraConfig| {};
    assert!(refusal(nothing, &["c_attn.x"]).contains("c_attn"));
    assert!(refusal(nothing, &["c_fc.q"]).contains("c_fc"));
    let both = refusal(nothing, &["c_attn", "c_attn.q"]);
    assert!(both.contains("`c_attn` is the whole layer"), "{both}");
    let path = refusal(nothing, &["h.0.attn.c_attn.q"]);
    assert!(
        path.contains("expected `c_attn.q`") && path.contains("layers_to_transform"),
        "{path}"
    );
    let rs = refusal(|config| config.use_rslora = true, &["c_attn.q"]);
    assert!(rs.contains("`use_rslora` does not go with parts"), "{rs}");
    let pattern = |config: &mut LoraConfig| config.rank_pattern.push(("c_attn".to_owned(), 2));
    assert!(refusal(pattern, &["c_attn.q"]).contains("`rank_pattern`"));
    let wide = refusal(|config| config.r = WIDTH + 1, &["c_attn.q", "c_attn.v"]);
    assert!(wide.contains("rank 66"), "{wide}");
}
