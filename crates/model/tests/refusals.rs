//! What a model refuses, and in which words: every message names the place, what was expected and
//! what was found.

use std::path::Path;

use lowrank_engine::{Device, Gradients, Isa};
use lowrank_formats::peft::{
    BitFitConfig, InitLoraWeights, LayersToTransform, LoraConfig, NamePattern, TargetModules,
};
use lowrank_formats::{Checkpoint, OutTensor, write_safetensors};
use lowrank_model::{
    Batch, LoadOptions, Model, ModelConfig, ModelError, PassOptions, Targets, Task,
};
use lowrank_testkit::Golden;

fn device() -> Device {
    Device::cpu(Isa::best(), 1).expect("threads start")
}

fn options(num_labels: usize) -> LoadOptions {
    LoadOptions::new(Task::SingleLabel, num_labels)
}

fn golden() -> Golden {
    Golden::open("bert-single-label").expect("a golden case opens")
}

fn model() -> Model {
    Model::load(&golden().model_dir(), &options(2), &device())
        .expect("the model loads")
        .0
}

/// The golden model, its tensors changed by `change`: (name, shape, values); `None` leaves it out.
fn changed_model(dir: &Path, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<f32>) -> bool) {
    let base = golden().model_dir();
    std::fs::copy(base.join("config.json"), dir.join("config.json")).expect("copied");
    let checkpoint = Checkpoint::open_dir(&base).expect("the checkpoint opens");
    let mut tensors = Vec::new();
    for info in checkpoint.infos() {
        let mut values = checkpoint.read_f32_vec(&info.name).expect("a tensor");
        let mut shape = info.shape.clone();
        if change(&info.name, &mut shape, &mut values) {
            tensors.push((info.name.clone(), shape, values));
        }
    }
    let out: Vec<OutTensor<'_>> = tensors
        .iter()
        .map(|(n, s, v)| OutTensor::f32(n, s, v))
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &out, &[]).expect("written");
}

fn load_error(dir: &Path, num_labels: usize) -> ModelError {
    match Model::load(dir, &options(num_labels), &device()) {
        Ok(_) => panic!("this model must be refused"),
        Err(error) => error,
    }
}

fn attach_error(change: impl FnOnce(&mut LoraConfig)) -> String {
    let mut config = LoraConfig::default();
    change(&mut config);
    model()
        .attach_lora(&config, 1)
        .expect_err("this configuration must be refused")
        .to_string()
}

fn names(names: &[&str]) -> Option<TargetModules> {
    Some(TargetModules::List(
        names.iter().map(ToString::to_string).collect(),
    ))
}

#[test]
fn weights_that_are_absent_misshapen_or_not_finite() {
    let dir = tempfile::tempdir().expect("a folder");
    changed_model(dir.path(), |name, shape, values| {
        if name.ends_with("layer.0.attention.self.query.weight") {
            values[5] = f32::NAN;
        }
        if name.ends_with("layer.1.output.dense.bias") {
            shape[0] -= 1;
            values.pop();
        }
        !name.ends_with("layer.1.attention.self.key.weight")
    });
    let message = load_error(dir.path(), 2).to_string();
    assert!(message.contains("(3 tensors)"), "{message}");
    assert!(
        message.contains("layer.0.attention.self.query.weight: value 5 is NaN"),
        "{message}"
    );
    assert!(
        message.contains("layer.1.output.dense.bias: expected [32], found [31]"),
        "{message}"
    );
    assert!(
        message.contains("layer.1.attention.self.key.weight: expected [32, 32], not in"),
        "{message}"
    );
}

#[test]
fn a_head_of_other_labels_is_refused_or_started_anew() {
    let dir = golden().model_dir();
    let error = load_error(&dir, 5);
    assert!(
        error
            .to_string()
            .contains("classifier.weight: expected [5, 32], found [2, 32]"),
        "{error}"
    );
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("other labels"), "{hint}");
    // Not every command may start a new head: which flag helps is the command's to say.
    assert!(!hint.contains("--"), "{hint}");
    let options = LoadOptions {
        ignore_mismatched_sizes: true,
        ..options(5)
    };
    let (model, report) = Model::load(&dir, &options, &device()).expect("a new head");
    assert_eq!(report.mismatched, ["classifier.weight", "classifier.bias"]);
    assert_eq!(model.num_labels(), 5);
}

#[test]
fn configs_that_are_absurd_list_every_fault() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(golden().model_dir().join("config.json")).expect("config");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("json");
    let object = config.as_object_mut().expect("an object");
    object.remove("vocab_size");
    object.insert("num_attention_heads".into(), 5.into());
    object.insert("hidden_act".into(), "geluu".into());
    object.insert("num_hidden_layers".into(), 4_000_000_000u64.into());
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    let message = load_error(dir.path(), 2).to_string();
    for part in [
        "vocab_size",
        "num_attention_heads",
        "hidden_act",
        "num_hidden_layers",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    config["model_type"] = "gpt9".into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    let message = load_error(dir.path(), 2).to_string();
    assert!(
        message.contains("`gpt9` is not supported; supported: bert, roberta"),
        "{message}"
    );
}

#[test]
fn patterns_that_match_nothing_name_what_is_near() {
    let message = attach_error(|c| c.target_modules = names(&["query", "valeu"]));
    assert!(
        message.contains("`valeu` matches no module; did you mean `value`?"),
        "{message}"
    );
    let message = attach_error(|c| c.target_modules = names(&["query", "LayerNorm"]));
    assert!(
        message.contains("LayerNorm` is a layer norm; only linear layers"),
        "{message}"
    );
    let message = attach_error(|c| c.target_modules = names(&["position_embeddings"]));
    assert!(
        message.contains("is an embedding table; only linear layers"),
        "{message}"
    );
    let message = attach_error(|c| c.target_modules = Some(TargetModules::Regex("quer".into())));
    assert!(message.contains("quer"), "{message}");
    let message = attach_error(|c| c.target_modules = Some(TargetModules::Regex("(quer".into())));
    assert!(message.contains("(quer"), "{message}");
    let message =
        attach_error(|c| c.exclude_modules = Some(NamePattern::List(vec!["valuee".into()])));
    assert!(
        message.contains("exclude_modules") && message.contains("`valuee`"),
        "{message}"
    );
    let message = attach_error(|c| c.rank_pattern = vec![("kye".into(), 2)]);
    assert!(
        message.contains("rank_pattern") && message.contains("`kye`"),
        "{message}"
    );
    let message = attach_error(|c| c.alpha_pattern = vec![("kye".into(), 2.0)]);
    assert!(message.contains("alpha_pattern"), "{message}");
    let message =
        attach_error(|c| c.layers_to_transform = Some(LayersToTransform::Many(vec![0, 7])));
    assert!(
        message.contains("layers_to_transform") && message.contains('7'),
        "{message}"
    );
    let message = attach_error(|c| c.modules_to_save = Some(vec!["pooller".into()]));
    assert!(
        message.contains("modules_to_save") && message.contains("pooller"),
        "{message}"
    );
    let message = attach_error(|c| c.exclude_modules = Some(NamePattern::Regex(".*".into())));
    assert!(message.contains("target_modules"), "{message}");
}

#[test]
fn ranks_and_options_out_of_range() {
    let message = attach_error(|c| c.r = 33);
    assert!(
        message.contains("rank 33 is outside 1..=32 (the matrix is 32 x 32)"),
        "{message}"
    );
    let message = attach_error(|c| c.r = 0);
    assert!(message.contains("rank 0"), "{message}");
    let message = attach_error(|c| c.init_lora_weights = InitLoraWeights::Other("pissa".into()));
    assert!(message.contains("pissa"), "{message}");
}

#[test]
fn an_adapter_of_another_base_lists_its_tensors() {
    let other = Golden::open("roberta-single-label").expect("a golden case opens");
    let error = model()
        .load_adapter(&other.adapter_dir().expect("an adapter"))
        .expect_err("another base");
    let message = error.to_string();
    assert!(
        message.starts_with("adapter does not fit this base model"),
        "{message}"
    );
    assert!(
        message.contains("roberta.encoder.layer.0.attention.self.query.lora_A.weight"),
        "{message}"
    );
    assert!(
        message
            .contains("bert.encoder.layer.0.attention.self.query.lora_A.weight: expected [4, 32]"),
        "{message}"
    );
}

#[test]
fn batches_out_of_range() {
    let model = model();
    let say = |ids: &[u32], types: Option<&[u32]>, offsets: &[usize]| {
        let batch = Batch {
            input_ids: ids,
            token_type_ids: types,
            offsets,
        };
        model
            .logits(&batch)
            .expect_err("this batch must be refused")
            .to_string()
    };
    assert!(say(&[1, 2], None, &[0, 1]).contains("offsets"));
    assert!(say(&[1, 2], None, &[0, 0, 2]).contains("offsets"));
    assert!(say(&[], None, &[0]).contains("offsets"));
    assert!(say(&[], None, &[]).contains("offsets"));
    assert!(say(&[1, 97], None, &[0, 2]).contains("token id 97 is outside the vocabulary of 97"));
    assert!(say(&[1, 2], Some(&[0, 9]), &[0, 2]).contains("token type 9"));
    assert!(say(&[1, 2], Some(&[0]), &[0, 2]).contains("1 token types for 2 tokens"));
    assert!(say(&[1; 65], None, &[0, 65]).contains("65 tokens, the model has 64 positions"));
}

#[test]
fn targets_out_of_range() {
    let (model, device) = (model(), device());
    let batch = Batch {
        input_ids: &[1, 2, 3],
        token_type_ids: None,
        offsets: &[0, 1, 3],
    };
    let say = |targets: Targets<'_>| {
        let mut gradients = Gradients::zeros(&device, model.trainables());
        let error =
            model.forward_backward(&batch, targets, &PassOptions::default(), &mut gradients);
        error
            .expect_err("these targets must be refused")
            .to_string()
    };
    assert!(say(Targets::Class(&[0])).contains("1 labels for 2 rows"));
    assert!(say(Targets::Class(&[0, 2])).contains("label 2 is outside 0..2"));
    assert!(
        say(Targets::Value(&[0.0, 1.0]))
            .contains("the targets are not those of single_label_classification")
    );
}

#[test]
fn adding_a_target_changes_no_other_initial_value() {
    let attach = |targets: &[&str]| {
        let config = LoraConfig {
            target_modules: names(targets),
            ..LoraConfig::default()
        };
        let mut model = model();
        model.attach_lora(&config, 5).expect("attaches");
        model
    };
    let (few, many) = (attach(&["query"]), attach(&["query", "value", "key"]));
    let mut compared = 0;
    for (_, t) in few
        .trainables()
        .iter()
        .filter(|(_, t)| t.name.contains("lora_A"))
    {
        let id = many.trainables().find(&t.name).expect("the same adapter");
        assert_eq!(
            many.trainables().get(id).value.read(),
            t.value.read(),
            "{}",
            t.name
        );
        let bound = 1.0 / 32f32.sqrt();
        assert!(
            t.value.read().iter().all(|v| v.abs() <= bound)
                && t.value.read().iter().any(|v| v.abs() > 0.5 * bound)
        );
        compared += 1;
    }
    assert!(compared >= 2);
}

#[test]
fn a_failed_save_leaves_the_adapter_that_was_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut model = model();
    assert!(
        model
            .save_adapter(dir.path(), None)
            .expect_err("nothing adapted")
            .to_string()
            .contains("no adapter")
    );
    model
        .attach_lora(&LoraConfig::default(), 1)
        .expect("attaches");
    model.save_adapter(dir.path(), Some("base")).expect("saved");
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "x").expect("written");
    assert!(
        model.save_adapter(&blocked, None).is_err(),
        "a folder cannot be made where a file is"
    );
    let again = Golden::open("bert-single-label").expect("a golden case opens");
    let mut fresh = Model::load(&again.model_dir(), &options(2), &device())
        .expect("the model loads")
        .0;
    fresh
        .load_adapter(dir.path())
        .expect("the saved adapter loads");
}

#[test]
fn a_model_without_biases_has_nothing_for_bitfit() {
    let fields = serde_json::json!({
        "model_type": "opt", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "ffn_dim": 16, "max_position_embeddings": 16,
        "word_embed_proj_dim": 8, "enable_bias": false, "layer_norm_elementwise_affine": false,
    });
    let config = ModelConfig::from_value(Path::new("config.json"), fields).expect("a config");
    let options = LoadOptions {
        task: Task::CausalLm,
        ..options(0)
    };
    let mut model = Model::from_config(config, &options, &device()).expect("a model");
    let error = model.train_biases(&BitFitConfig::default()).unwrap_err();
    assert!(
        error.to_string().contains("`opt` model has no biases"),
        "{error}"
    );
}
