//! Names in checkpoints and adapters as people have them: under what wrappers put before and
//! between, with an adapter's name, without a prefix. Each gives the same bits, or an error that
//! names the cause.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use std::path::Path;

use lowrank_engine::{Device, Isa};
use lowrank_formats::{Checkpoint, OutTensor, write_safetensors};
use lowrank_model::{
    Batch, HeadKind, LoadOptions, LoadReport, Model, ModelError, StoredHead, Task,
};
use lowrank_testkit::Golden;

/// A tensor's new name; none leaves it out.
type Rename<'a> = &'a dyn Fn(&str) -> Option<String>;

fn golden(case: &str) -> Golden {
    Golden::open(case).expect("a golden case opens")
}

fn load(dir: &Path, task: Task) -> Result<(Model, LoadReport), ModelError> {
    let config = lowrank_model::ModelConfig::read(&dir.join("config.json")).expect("a config");
    let options = LoadOptions::new(task, config.labels.count().unwrap_or(2));
    Model::load(
        dir,
        &options,
        &Device::cpu(Isa::best(), 1).expect("threads start"),
    )
}

fn logits(model: &Model) -> Vec<u32> {
    let batch = Batch {
        input_ids: &[0, 10, 81, 58, 2],
        token_type_ids: None,
        offsets: &[0, 5],
    };
    let logits = model.logits(&batch).expect("logits");
    logits.into_iter().map(f32::to_bits).collect()
}

/// The tensors of `from` under other names into the file `to`; none leaves one out.
fn renamed(from: &Path, to: &Path, rename: Rename<'_>) {
    let checkpoint = Checkpoint::open_file(from).expect("opens");
    let mut tensors = Vec::new();
    for info in checkpoint.infos() {
        let values = checkpoint.read_f32_vec(&info.name).expect("a tensor");
        if let Some(name) = rename(&info.name) {
            tensors.push((name, info.shape.clone(), values));
        }
    }
    let out: Vec<OutTensor<'_>> = (tensors.iter())
        .map(|(name, shape, values)| OutTensor::f32(name, shape, values))
        .collect();
    write_safetensors(to, &out, &[]).expect("written");
}

/// A golden case's model under other names.
fn model_under(case: &str, rename: Rename<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let base = golden(case).model_dir();
    std::fs::copy(base.join("config.json"), dir.path().join("config.json")).expect("copied");
    renamed(
        &base.join("model.safetensors"),
        &dir.path().join("model.safetensors"),
        rename,
    );
    dir
}

#[test]
fn a_checkpoint_under_wrappers_loads_and_says_what_was_left_out() {
    let plain = load(&golden("bert-single-label").model_dir(), Task::SingleLabel).unwrap();
    let cases: [(&str, Rename<'_>, &[&str]); 7] = [
        ("parallel", &|n| Some(format!("module.{n}")), &["module."]),
        (
            "compiled",
            &|n| Some(format!("_orig_mod.{n}")),
            &["_orig_mod."],
        ),
        (
            "both",
            &|n| Some(format!("module._orig_mod.{n}")),
            &["_orig_mod.", "module."],
        ),
        ("lightning", &|n| Some(format!("model.{n}")), &["model."]),
        (
            "merged without unloading",
            &|n| Some(format!("base_model.model.{n}")),
            &["base_model.model."],
        ),
        (
            "a compiled encoder",
            &|n| Some(n.replace("bert.encoder.", "bert.encoder._orig_mod.")),
            &["_orig_mod."],
        ),
        (
            "sharded in place",
            &|n| {
                let n = n.replace("layer.0.", "layer.0._fsdp_wrapped_module.");
                Some(format!("_fsdp_wrapped_module.{n}"))
            },
            &["_fsdp_wrapped_module."],
        ),
    ];
    for (case, rename, left_out) in cases {
        let dir = model_under("bert-single-label", rename);
        let (model, report) =
            load(dir.path(), Task::SingleLabel).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(report.left_out, left_out, "{case}");
        assert_eq!((report.new.len(), report.unused.len()), (0, 0), "{case}");
        assert_eq!(logits(&model), logits(&plain.0), "{case}");
    }
}

#[test]
fn a_bare_body_is_found_under_a_wrapper_too() {
    for case in ["gpt2-causal", "opt-causal", "deberta-v2-v3"] {
        let task = match case {
            "deberta-v2-v3" => Task::SingleLabel,
            _ => Task::CausalLm,
        };
        let base = golden(case).model_dir();
        let (plain, _) = load(&base, task).unwrap();
        let prefix = match case {
            "gpt2-causal" => "transformer.",
            "opt-causal" => "model.",
            _ => "deberta.",
        };
        let bare = |n: &str| Some(format!("module.{}", n.strip_prefix(prefix).unwrap_or(n)));
        let dir = model_under(case, &bare);
        let (model, report) = load(dir.path(), task).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(report.left_out, ["module."], "{case}");
        assert_eq!(logits(&model), logits(&plain), "{case}");
        // A wrapper whose name is the family's own prefix.
        let dir = model_under(case, &|n| Some(format!("model.{n}")));
        let (model, report) = load(dir.path(), task).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(report.left_out, ["model."], "{case}");
        assert_eq!(logits(&model), logits(&plain), "{case}");
    }
}

#[test]
fn what_is_no_plain_model_is_named() {
    let error = |dir: &tempfile::TempDir| match load(dir.path(), Task::SingleLabel) {
        Ok(_) => panic!("this checkpoint must be refused"),
        Err(error) => format!("{error}\n{}", error.hint().unwrap_or_default()),
    };
    let dumped = model_under("bert-single-label", &|n| {
        let n = n.replace("self.query.weight", "self.query.base_layer.weight");
        Some(format!("base_model.model.{n}"))
    });
    let message = error(&dumped);
    assert!(message.contains("model with adapters"), "{message}");
    assert!(message.contains("merge_and_unload"), "{message}");
    let other = model_under("bert-single-label", &|n| {
        Some(n.replace("bert.", "roberta."))
    });
    let message = error(&other);
    assert!(message.contains("`roberta.`"), "{message}");
    assert!(message.contains("`model_type` is `bert`"), "{message}");
    // A body twice, each under a name of its own: whose is the model's?
    let base = golden("bert-single-label")
        .model_dir()
        .join("model.safetensors");
    let twice = model_under("bert-single-label", &|n| Some(n.to_owned()));
    let checkpoint = Checkpoint::open_file(&base).unwrap();
    let mut tensors = Vec::new();
    for info in checkpoint.infos() {
        let values = checkpoint.read_f32_vec(&info.name).unwrap();
        for prefix in ["teacher.", "student."] {
            tensors.push((
                format!("{prefix}{}", info.name),
                info.shape.clone(),
                values.clone(),
            ));
        }
    }
    let out: Vec<_> = (tensors.iter())
        .map(|(name, shape, values)| OutTensor::f32(name, shape, values))
        .collect();
    write_safetensors(&twice.path().join("model.safetensors"), &out, &[]).unwrap();
    let message = error(&twice);
    assert!(
        message.contains("student.bert") && message.contains("teacher.bert"),
        "{message}"
    );
}

/// A golden case's adapter under other keys.
fn adapter_under(case: &str, rename: Rename<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let from = golden(case).adapter_dir().expect("an adapter");
    let config = "adapter_config.json";
    std::fs::copy(from.join(config), dir.path().join(config)).expect("copied");
    renamed(
        &from.join("adapter_model.safetensors"),
        &dir.path().join("adapter_model.safetensors"),
        rename,
    );
    dir
}

#[test]
fn an_adapter_under_other_keys_is_the_same_adapter() {
    let base = golden("bert-single-label");
    let adapted = |dir: &Path| {
        let (mut model, _) = load(&base.model_dir(), Task::SingleLabel).unwrap();
        model
            .load_adapter(dir)
            .map(|report| report.notes.clone())
            .map(|notes| (model, notes))
    };
    let (plain, notes) = adapted(&base.adapter_dir().expect("an adapter")).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    let named = |n: &str, name: &str| {
        let n = n.replace(".lora_A.", &format!(".lora_A.{name}."));
        let n = n.replace(".lora_B.", &format!(".lora_B.{name}."));
        n.replace(
            "classifier.",
            &format!("classifier.modules_to_save.{name}."),
        )
    };
    let cases: [(&str, Rename<'_>, &str); 7] = [
        (
            "default",
            &|n| Some(named(n, "default")),
            "its name `default`",
        ),
        (
            "its own name",
            &|n| Some(named(n, "my_adapter")),
            "its name `my_adapter`",
        ),
        ("wrapped", &|n| Some(format!("module.{n}")), "`module.`"),
        (
            "compiled",
            &|n| Some(n.replace("base_model.model.", "base_model.model._orig_mod.")),
            "`_orig_mod.`",
        ),
        (
            "without the prefix",
            &|n| n.strip_prefix("base_model.model.").map(str::to_owned),
            "lacked `base_model.model.`",
        ),
        (
            "of the inner model",
            &|n| Some(named(&n.replace("base_model.model.", "model."), "default")),
            "`model.`",
        ),
        (
            "of the bare body",
            &|n| Some(n.replace("base_model.model.bert.", "base_model.model.")),
            "lacked `bert.`",
        ),
    ];
    for (case, rename, note) in cases {
        let dir = adapter_under("bert-single-label", rename);
        let (model, notes) = adapted(dir.path()).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(notes.iter().any(|n| n.contains(note)), "{case}: {notes:?}");
        assert_eq!(logits(&model), logits(&plain), "{case}");
    }
    // Two adapters in one file: neither is taken for the other.
    let two = adapter_under("bert-single-label", &|n| {
        Some(named(
            n,
            if n.contains("layer.0") {
                "first"
            } else {
                "second"
            },
        ))
    });
    let Err(error) = adapted(two.path()) else {
        panic!("two adapters must be refused");
    };
    let message = error.to_string();
    assert!(message.contains("`first`, `second`"), "{message}");
}

#[test]
fn a_head_is_known_by_its_tensors() {
    let find = |case: &str, rename: Rename<'_>| {
        let dir = model_under(case, rename);
        let config = lowrank_model::ModelConfig::read(&dir.path().join("config.json")).unwrap();
        let checkpoint = Checkpoint::open_dir(dir.path()).unwrap();
        let found = StoredHead::find(&checkpoint, &config.model_type).unwrap();
        found.map(|head| (head.kind, head.width))
    };
    let same = |n: &str| Some(n.to_owned());
    let wrapped = |n: &str| Some(format!("module.{n}"));
    let no_pooler = |n: &str| (!n.contains("pooler")).then(|| n.to_owned());
    let body = |n: &str| (!n.contains("classifier") && !n.contains("score")).then(|| n.to_owned());
    let likely = Some((HeadKind::LikelySequence, 2));
    assert_eq!(find("bert-single-label", &same), likely);
    assert_eq!(find("bert-single-label", &wrapped), likely);
    assert_eq!(
        find("bert-single-label", &no_pooler),
        Some((HeadKind::LikelyTokens, 2))
    );
    assert_eq!(find("bert-single-label", &body), None);
    assert_eq!(find("bert-no-head", &same), None);
    assert_eq!(
        find("roberta-all-linear", &same).map(|h| h.0),
        Some(HeadKind::Sequence)
    );
    assert_eq!(
        find("gpt2-single-label", &wrapped).map(|h| h.0),
        Some(HeadKind::Sequence)
    );
    assert_eq!(find("gpt2-causal", &same), None);
}
