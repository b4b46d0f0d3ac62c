//! Folders that were named wrongly, and adapters of other models: the error says what to pass in
//! their place.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Lab, golden, lowrank};

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn an_adapter_one_or_two_folders_down_is_named() {
    let lab = Lab::new();
    let adapter = golden("bert-no-head").join("adapter");
    for place in [
        "out/checkpoint-4",
        "out/checkpoint-10",
        "deep/runs/best",
        "one/default",
    ] {
        copy_dir(&adapter, &lab.path(place));
    }
    let model = lab.text("model");
    let with = |adapter: &str| {
        let adapter = lab.text(adapter);
        let words = [
            "predict",
            "--model",
            &model,
            "--adapter",
            &adapter,
            "--text",
            "w5",
        ];
        lowrank(&words)
    };
    let stderr = with("out").fails(2, &["checkpoint-4", "--adapter"]);
    // The last one is the newest: numbers count by size.
    assert!(
        stderr.contains(&format!("--adapter {}", lab.text("out/checkpoint-10"))),
        "{stderr}"
    );
    with("deep").fails(2, &["deep/runs/best"]);
    with("one").fails(2, &[&format!("pass --adapter {}", lab.text("one/default"))]);
    with("model").fails(2, &["it is a model", "pass it as --model"]);
    fs::create_dir(lab.path("none")).unwrap();
    with("none").fails(1, &["holds no `adapter_config.json`", "--adapter"]);
    let weights = "adapter_model.safetensors";
    fs::create_dir(lab.path("half")).unwrap();
    fs::copy(adapter.join(weights), lab.path("half").join(weights)).unwrap();
    with("half").fails(1, &["holds `adapter_model.safetensors` alone"]);
}

#[test]
fn a_model_one_or_two_folders_down_is_named() {
    let lab = Lab::new();
    for place in ["cache/snapshots/0a1b2c", "run/model"] {
        copy_dir(&lab.path("model"), &lab.path(place));
    }
    copy_dir(
        &golden("bert-no-head").join("adapter"),
        &lab.path("adapter"),
    );
    let with = |model: &str| lowrank(&["predict", "--model", &lab.text(model), "--text", "w5"]);
    with("cache").fails(
        2,
        &[&format!(
            "pass --model {}",
            lab.text("cache/snapshots/0a1b2c")
        )],
    );
    with("run").fails(2, &["run/model"]);
    with("adapter").fails(2, &["holds an adapter", "--adapter", "--model"]);
    with("model/config.json").fails(2, &["is a file", "--model"]);
}

#[test]
fn the_hint_of_an_adapter_that_does_not_fit_is_true_where_it_stands() {
    let lab = Lab::new();
    let dir = lab.path("adapter");
    copy_dir(&golden("roberta-all-linear").join("adapter"), &dir);
    let file = dir.join("adapter_config.json");
    let model = lab.text("model");
    let stderr = |base: Value| {
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["base_model_name_or_path"] = base;
        fs::write(&file, config.to_string()).unwrap();
        let adapter = dir.display().to_string();
        let words = [
            "predict",
            "--model",
            &model,
            "--adapter",
            &adapter,
            "--text",
            "w5",
        ];
        lowrank(&words).fails(1, &["hint: "])
    };
    copy_dir(&lab.path("model"), &lab.path("other"));
    let other = lab.text("other");
    for same in [
        model.clone(),
        format!("{model}/"),
        format!("{other}/../model"),
    ] {
        let text = stderr(same.into());
        assert!(
            text.contains("this very model") && !text.contains("pass --model"),
            "{text}"
        );
    }
    let text = stderr(other.clone().into());
    assert!(text.contains(&format!("pass --model {other}")), "{text}");
    let text = stderr("someone/a-base".into());
    assert!(
        text.contains("`someone/a-base`") && text.contains("--model"),
        "{text}"
    );
    let text = stderr(Value::Null);
    assert!(
        text.contains("pass --model with the model that the adapter"),
        "{text}"
    );
}
