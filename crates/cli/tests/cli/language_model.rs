//! Language models from the command line: trained from scratch, adapted to prompts, evaluated, checked and refused.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Ran, lowrank};

/// A folder with the configuration and the tokenizer of a tiny GPT-2, and rows for it.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Self(tempfile::tempdir().expect("a folder"));
        let model = lab.path("base");
        fs::create_dir(&model).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/fixtures/gpt2");
        for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
            fs::copy(from.join(file), model.join(file)).unwrap();
        }
        let vocabulary: Value =
            serde_json::from_slice(&fs::read(from.join("vocab.json")).unwrap()).unwrap();
        let config = json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "vocab_size": vocabulary.as_object().unwrap().len(), "n_positions": 48, "n_embd": 32,
            "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        });
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let names = ["Aromi", "Bibimbap", "Clowns", "Zizzi"];
        let foods = ["Italian", "French", "Indian", "Chinese"];
        let mut texts = String::new();
        let mut prompts = String::new();
        for (i, name) in names.iter().enumerate() {
            for (j, food) in foods.iter().enumerate() {
                let said = format!("{name} serves {food} food.");
                texts.push_str(&format!("{}\n", json!({ "text": said })));
                let prompt = format!("name : {name} | food : {food}");
                prompts.push_str(&format!(
                    "{}\n",
                    json!({ "prompt": prompt, "completion": said, "id": 4 * i + j })
                ));
            }
        }
        fs::write(lab.path("texts.jsonl"), texts).unwrap();
        fs::write(lab.path("prompts.jsonl"), prompts).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs with `@name` standing for a path in this folder.
    fn run(&self, words: &[&str]) -> Ran {
        let words: Vec<String> = words
            .iter()
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).display().to_string(),
                None => (*word).to_owned(),
            })
            .collect();
        lowrank(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn scratch(&self, run: &str) -> Ran {
        self.run(&[
            "train",
            "--model",
            "@base",
            "--full",
            "--from-scratch",
            "--train-file",
            "@texts.jsonl",
            "--validation-file",
            "@texts.jsonl",
            "--output-dir",
            run,
            "--num-train-epochs",
            "20",
            "--per-device-batch-size",
            "4",
            "--learning-rate",
            "3e-3",
        ])
    }
}

fn losses(log: &Path) -> (f64, f64) {
    let text = fs::read_to_string(log).expect("a log");
    let of = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["loss"]
            .as_f64()
            .unwrap()
    };
    let (first, last) = (text.lines().next().unwrap(), text.lines().last().unwrap());
    (of(first), of(last))
}

#[test]
fn from_scratch_then_adapted_to_prompts_and_evaluated() {
    let lab = Lab::new();
    lab.scratch("@scratch").ok();
    let (first, last) = losses(&lab.path("scratch/metrics.jsonl"));
    assert!(last < 0.5 * first, "{first} to {last}");
    assert!(lab.path("scratch/model/model.safetensors").is_file());

    let adapt = |run: &str| {
        lab.run(&[
            "train",
            "--model",
            "@scratch/model",
            "--train-file",
            "@prompts.jsonl",
            "--output-dir",
            run,
            "--num-train-epochs",
            "10",
            "--per-device-batch-size",
            "4",
            "--learning-rate",
            "5e-3",
            "--r",
            "4",
            "--label-smoothing-factor",
            "0.1",
            "--max-length",
            "48",
        ])
        .ok()
    };
    adapt("@adapted");
    let (first, last) = losses(&lab.path("adapted/metrics.jsonl"));
    assert!(last < first, "{first} to {last}");
    let config: Value =
        serde_json::from_slice(&fs::read(lab.path("adapted/adapter/adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["fan_in_fan_out"], true);
    assert_eq!(config["target_modules"], json!(["c_attn"]));

    let perplexity = |more: &[&str]| {
        let words = [
            &[
                "eval",
                "--model",
                "@scratch/model",
                "--data-file",
                "@prompts.jsonl",
                "--json",
            ],
            more,
        ]
        .concat();
        let ran = lab.run(&words).ok();
        let found: Value = ran.json();
        found["metrics"]["perplexity"]
            .as_f64()
            .expect("a perplexity")
    };
    let (before, after) = (perplexity(&[]), perplexity(&["--adapter", "@adapted"]));
    assert!(after < before, "{before} to {after}");

    // Merged, it says the same as with the adapter apart.
    lab.run(&[
        "merge",
        "--model",
        "@scratch/model",
        "--adapter",
        "@adapted",
        "--output-dir",
        "@merged",
    ])
    .ok();
    let words = [
        "eval",
        "--model",
        "@merged",
        "--data-file",
        "@prompts.jsonl",
        "--json",
    ];
    let ran = lab.run(&words).ok();
    let merged: Value = ran.json();
    let merged = merged["metrics"]["perplexity"].as_f64().unwrap();
    assert!(
        (merged - after).abs() < 2e-2 * after,
        "{merged} against {after}"
    );
}

#[test]
fn what_a_language_model_refuses() {
    let lab = Lab::new();
    lab.run(&[
        "train",
        "--model",
        "@base",
        "--from-scratch",
        "--train-file",
        "@texts.jsonl",
    ])
    .fails(2, &["from_scratch"]);
    lab.run(&[
        "check",
        "--model",
        "@base",
        "--train-file",
        "@prompts.jsonl",
        "--template",
        "{prompt}",
    ])
    .fails(2, &["{completion}", "each once"]);
    lab.scratch("@scratch").ok();
    lab.run(&["predict", "--model", "@scratch/model", "--text", "a"])
        .fails(2, &["lowrank generate"]);
}
