//! Recipes by name: listed, refused where they do not fit, planned with the paper's counts, and
//! resolved to plain settings.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Ran, lowrank};

/// A folder with a configuration, and rows of token ids, which need no tokenizer.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new(config: &Value) -> Self {
        let lab = Self(tempfile::tempdir().expect("a folder"));
        fs::write(lab.path("config.json"), config.to_string()).unwrap();
        let rows = |label: &dyn Fn(u32) -> Value| -> String {
            let row = |i| {
                format!(
                    "{}\n",
                    json!({ "input_ids": [5, 6 + i, 7], "label": label(i) })
                )
            };
            (0..4).map(row).collect()
        };
        fs::write(
            lab.path("names.jsonl"),
            rows(&|i| json!(["no", "yes"][i as usize % 2])),
        )
        .unwrap();
        fs::write(
            lab.path("numbers.jsonl"),
            rows(&|i| json!(f64::from(i) / 2.0)),
        )
        .unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A run that is only resolved.
    fn resolve(&self, rows: &str, words: &[&str]) -> Ran {
        let (model, rows) = (self.text(""), self.text(rows));
        let mut all = vec![
            "train",
            "--dry-run",
            "--model",
            &model,
            "--train-file",
            &rows,
        ];
        all.extend(words);
        lowrank(&all)
    }

    /// The resolved settings of a run.
    fn dry_run(&self, rows: &str, words: &[&str]) -> String {
        self.resolve(rows, words).ok().stdout
    }
}

/// A tiny model of a family that takes rows of any preset's length.
fn tiny(model_type: &str) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
        "intermediate_size": 64, "max_position_embeddings": 2048, "n_positions": 2048, "n_embd": 32, "n_layer": 2, "n_head": 4,
    });
    if model_type == "gpt_neo" {
        config = json!({
            "model_type": model_type, "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 2048,
        });
    }
    config
}

fn presets() -> Vec<Value> {
    let list = lowrank(&["train", "--list-presets", "--json"]).ok().json();
    list.as_array().expect("a list").clone()
}

#[test]
fn every_preset_resolves_to_settings_that_give_the_same_run() {
    let all = presets();
    assert!(all.len() >= 48 + 6 + 6, "{} presets", all.len());
    let mut labs: Vec<(String, Lab)> = Vec::new();
    for preset in &all {
        let name = preset["name"].as_str().unwrap();
        for family in preset["families"].as_array().unwrap() {
            let family = family.as_str().unwrap();
            if !labs.iter().any(|(known, _)| known == family) {
                labs.push((family.to_owned(), Lab::new(&tiny(family))));
            }
            let lab = labs
                .iter()
                .find(|(known, _)| known == family)
                .map(|(_, lab)| lab)
                .unwrap();
            let regression = preset["settings"]["task"] == "regression";
            let rows = if regression {
                "numbers.jsonl"
            } else {
                "names.jsonl"
            };
            // Longer than any preset's warm-up, which these few rows are not.
            let resolved = lab.dry_run(rows, &["--preset", name, "--max-steps", "100000"]);
            assert!(
                !resolved.contains("preset"),
                "the values stand there:\n{resolved}"
            );
            let rate = preset["settings"]["learning_rate"].to_string();
            assert!(
                resolved.contains(&format!("learning_rate: {rate}\n")),
                "{name}:\n{resolved}"
            );
            let file = lab.text("resolved.yaml");
            fs::write(&file, &resolved).unwrap();
            let again = lowrank(&["train", "--dry-run", "--config", &file])
                .ok()
                .stdout;
            assert_eq!(again, resolved, "{name}");
        }
    }
}

#[test]
fn plans_show_the_papers_counts() {
    let sized = |file: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/bench/configs");
        dir.join(file).display().to_string()
    };
    let gpt2 = |layers: usize, width: usize, heads: usize| {
        Lab::new(&json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_layer": layers, "n_embd": width, "n_head": heads,
        }))
    };
    let (medium, large) = (gpt2(24, 1024, 16), gpt2(36, 1280, 20));
    let rows = [
        (
            sized("roberta-base.json"),
            "paper/roberta-base-mnli",
            294_912,
        ),
        (
            sized("roberta-large.json"),
            "paper/roberta-large-cola",
            786_432,
        ),
        (
            sized("deberta-v2-xxlarge.json"),
            "paper/deberta-v2-xxlarge-cola",
            4_718_592,
        ),
        (medium.text("config.json"), "paper/gpt2-medium-e2e", 393_216),
        (
            large.text("config.json"),
            "paper/gpt2-large-webnlg",
            737_280,
        ),
        ("gpt3-175b".to_owned(), "paper/gpt3-wikisql-4.7m", 4_718_592),
        (
            "gpt3-175b".to_owned(),
            "paper/gpt3-wikisql-37.7m",
            37_748_736,
        ),
    ];
    let listed = presets();
    for (model, name, parameters) in rows {
        // The counts do not depend on the batch, and a small one is planned faster.
        let small = ["--batch-size", "1", "--max-length", "16", "--json"];
        let mut words = vec!["plan", &model, "--preset", name];
        words.extend(small);
        let plan = lowrank(&words).ok().json();
        assert_eq!(plan["lora"]["adapter_parameters"], parameters, "{name}");
        assert!(
            plan["preset"]
                .as_str()
                .unwrap()
                .contains("follows the paper")
        );
        let preset = listed.iter().find(|p| p["name"] == name).unwrap();
        assert_eq!(preset["parameters"], parameters, "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = Lab::new(&tiny("bert"));
    let train = |words: &[&str]| lab.resolve("names.jsonl", words);
    train(&["--preset", "paper/gpt2-medium-e2e"]).fails(
        2,
        &[
            "made for `gpt2` models, but the model is `bert`",
            "--list-presets",
        ],
    );
    train(&["--preset", "paper/roberta-bse-sst2"]).fails(
        2,
        &[
            "there is no preset",
            "did you mean `paper/roberta-base-sst2`?",
        ],
    );
    lowrank(&["plan", "gpt3-small", "--preset", "paper/gpt2-medium-e2e"])
        .fails(2, &["but the model is `gpt_neo`"]);
    let gpt2 = Lab::new(&tiny("gpt2"));
    let words = ["--task", "causal_lm", "--classifier-dropout", "0.1"];
    gpt2.resolve("names.jsonl", &words)
        .fails(1, &["no dropout of its own before a classifier"]);
}

#[test]
fn the_list_names_them_all() {
    let text = lowrank(&["train", "--list-presets"]).ok().stdout;
    for preset in presets() {
        assert!(text.contains(preset["name"].as_str().unwrap()));
        assert!(text.contains(preset["note"].as_str().unwrap()));
    }
    assert!(text.contains("table 10, DeBERTa XXL, LoRA"));
}

#[test]
fn dropout_that_is_asked_for_is_the_models() {
    let lab = crate::support::Lab::new();
    let first_loss = |run: &str, words: &[&str]| {
        let mut all = vec!["--max-steps", "1", "--precision", "f32"];
        all.extend(words);
        lab.train(run, &all).ok();
        let log = fs::read_to_string(lab.path(run).join("metrics.jsonl")).unwrap();
        let row = log.lines().find(|line| line.contains("\"loss\"")).unwrap();
        let row: Value = serde_json::from_str(row).unwrap();
        row["loss"].as_f64().unwrap()
    };
    let none = first_loss("none", &["--dropout", "0"]);
    let own = first_loss("own", &[]);
    let head = first_loss("head", &["--dropout", "0", "--classifier-dropout", "0.5"]);
    let zero = first_loss("zero", &["--dropout", "0", "--classifier-dropout", "0"]);
    assert_eq!(none, zero);
    assert!(
        none != own && none != head && own != head,
        "{none} {own} {head}"
    );
    lab.train("wrong", &["--dropout", "1"])
        .fails(2, &["dropout: expected from 0 to below 1, found 1"]);
}
