//! Train, evaluate, predict, merge, plan, inspect, check: the jobs in the order in which users do
//! them.

use std::fs;

use serde_json::Value;

use crate::support::{Lab, golden, lowrank};

#[test]
fn train_evaluate_predict_merge() {
    let lab = Lab::new();
    let run = lab.text("run");
    let base = fs::read(lab.path("model/model.safetensors")).unwrap();
    let trained = lab
        .train(
            "run",
            &[
                "--max-steps",
                "30",
                "--lr",
                "0.01",
                "--json",
                "--test-file",
                &lab.text("test.tsv"),
            ],
        )
        .ok();
    let summary = trained.json();
    assert_eq!(summary["steps"], 30);
    assert_eq!(
        summary["idle_values"],
        Value::Array(vec![]),
        "every trained value got gradients and moved"
    );
    assert_eq!(
        summary["predicted_peak_bytes"],
        summary["counted_peak_bytes"]
    );
    assert_eq!(summary["predicted_bytes"], summary["counted_bytes"]);
    for file in [
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "adapter/adapter_config.json",
    ] {
        assert!(lab.path("run").join(file).is_file(), "{file}");
    }
    assert_eq!(lab.log("run").len(), 30);
    assert!(
        base == fs::read(lab.path("model/model.safetensors")).unwrap(),
        "training leaves the base as it was"
    );

    let eval = lowrank(&[
        "eval",
        "--model",
        &lab.text("model"),
        "--adapter",
        &run,
        "--data-file",
        &lab.text("test.tsv"),
        "--json",
    ])
    .ok();
    assert_eq!(
        eval.json()["metrics"],
        summary["after"]["metrics"],
        "the files say what the run said"
    );

    let predict = |model: &str, adapter: Option<&str>| {
        let mut words = vec![
            "predict",
            "--quiet",
            "--model",
            model,
            "--text",
            "w5 w90",
            "w7",
            "w60 w61 w62 w63",
        ];
        words.extend(adapter.iter().flat_map(|a| ["--adapter", a]));
        let ran = lowrank(&words).ok();
        ran.stdout
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .collect::<Vec<_>>()
    };
    let adapted = predict(&lab.text("model"), Some(&run));
    assert_eq!(adapted.len(), 3);
    let probabilities = adapted[0]["probabilities"].as_object().unwrap();
    assert_eq!(probabilities.keys().collect::<Vec<_>>(), ["high", "low"]);
    let sum: f64 = probabilities.values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-12);

    let merged = lab.text("merged");
    let words = [
        "merge",
        "--model",
        &lab.text("model"),
        "--adapter",
        &run,
        "--output-dir",
        &merged,
        "--verify",
        "--json",
    ];
    let report = lowrank(&words).ok().json();
    assert!(
        report["verify"]["max_logit_difference"].as_f64().unwrap() < 1e-4,
        "{report}"
    );
    let plain = predict(&merged, None);
    for (a, b) in adapted.iter().zip(&plain) {
        assert_eq!(
            a["label"], b["label"],
            "label names are in the merged config"
        );
        let logits = |v: &Value| {
            v["logits"]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap())
                .collect::<Vec<_>>()
        };
        assert!(
            logits(a)
                .iter()
                .zip(logits(b))
                .all(|(x, y)| (x - y).abs() < 1e-4),
            "{a} {b}"
        );
    }
    lowrank(&words).fails(2, &["is not empty", "--overwrite"]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let lab = Lab::new();
    let more = [
        "--max-steps",
        "12",
        "--lora-dropout",
        "0.1",
        "--quiet",
        "--threads",
    ];
    for threads in ["1", "2", "3"] {
        lab.train(threads, &[more.as_slice(), &[threads]].concat())
            .ok();
    }
    assert_eq!(lab.adapter_bytes("1"), lab.adapter_bytes("2"));
    assert_eq!(lab.adapter_bytes("1"), lab.adapter_bytes("3"));
    assert_eq!(lab.log("1"), lab.log("2"));
}

#[test]
fn seeds_differ_and_recomputation_does_not() {
    let lab = Lab::new();
    let more = ["--max-steps", "6", "--quiet"];
    lab.train("a", &more).ok();
    lab.train(
        "b",
        &[more.as_slice(), &["--gradient-checkpointing"]].concat(),
    )
    .ok();
    lab.train("c", &[more.as_slice(), &["--seed", "2"]].concat())
        .ok();
    assert_eq!(lab.adapter_bytes("a"), lab.adapter_bytes("b"));
    assert_ne!(lab.adapter_bytes("a"), lab.adapter_bytes("c"));
}

#[test]
fn training_goes_on_from_an_adapter() {
    let lab = Lab::new();
    lab.train("first", &["--max-steps", "4", "--r", "4", "--quiet"])
        .ok();
    let adapter = lab.text("first/adapter");
    lab.train(
        "second",
        &["--max-steps", "4", "--adapter", &adapter, "--quiet"],
    )
    .ok();
    let config: Value =
        serde_json::from_slice(&fs::read(lab.path("second/adapter/adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["r"], 4);
    lab.train(
        "third",
        &["--max-steps", "4", "--adapter", &adapter, "--r", "8"],
    )
    .fails(2, &["`r` is 4 there"]);
}

#[test]
fn full_fine_tuning_writes_a_model() {
    let lab = Lab::new();
    let summary = lab
        .train(
            "run",
            &["--full", "--max-steps", "5", "--lr", "1e-3", "--json"],
        )
        .ok()
        .json();
    assert_eq!(
        summary["predicted_peak_bytes"],
        summary["counted_peak_bytes"]
    );
    let eval = lowrank(&[
        "eval",
        "--model",
        &lab.text("run/model"),
        "--data-file",
        &lab.text("validation.tsv"),
        "--json",
    ])
    .ok();
    assert_eq!(eval.json()["metrics"], summary["after"]["metrics"]);
}

#[test]
fn biases_are_trained_saved_evaluated_trained_further_and_merged() {
    let lab = Lab::new();
    let words = "--method bitfit --max-steps 5 --lr 1e-2 --precision f32 --json";
    let summary = lab
        .train("run", &words.split(' ').collect::<Vec<_>>())
        .ok()
        .json();
    assert_eq!(
        summary["predicted_peak_bytes"],
        summary["counted_peak_bytes"]
    );
    assert_eq!(summary["idle_values"], serde_json::json!([]));
    let metrics = |flag: &str, value: &str| {
        let (data, model) = (lab.text("validation.tsv"), lab.text("model"));
        let mut words = vec!["eval", "--data-file", &data, "--json", flag, value];
        words.extend(["--precision", "f32"]);
        if flag == "--adapter" {
            words.extend(["--model", &model]);
        }
        lowrank(&words).ok().json()["metrics"].clone()
    };
    let adapter = lab.text("run/adapter");
    assert_eq!(metrics("--adapter", &adapter), summary["after"]["metrics"]);
    let merged = lab.text("merged");
    lowrank(&[
        "merge",
        "--model",
        &lab.text("model"),
        "--adapter",
        &adapter,
        "--output-dir",
        &merged,
        "--verify",
        "--quiet",
    ])
    .ok();
    assert_eq!(metrics("--model", &merged), summary["after"]["metrics"]);
    let shown = lowrank(&["inspect", &adapter]).ok().stdout;
    assert!(shown.starts_with("BitFit adapter"), "{shown}");
    // The adapter says what is trained further.
    let more = ["--adapter", &adapter, "--max-steps", "2", "--quiet"];
    lab.train("more", &more).ok();
    assert_ne!(lab.adapter_bytes("run"), lab.adapter_bytes("more"));
    let other = [more.as_slice(), &["--method", "lora"]].concat();
    let words = ["the adapter is one of BitFit", "--method bitfit"];
    lab.train("other", &other).fails(2, &words);
    let idle = ["--method", "bitfit", "--r", "4"];
    let words = ["--r: with --method bitfit no low-rank adapter is trained"];
    lab.train("idle", &idle).fails(2, &words);
}

#[test]
fn the_other_tasks_train_and_predict() {
    let lab = Lab::new();
    let jsonl = |name: &str, row: &dyn Fn(usize) -> Value| {
        let lines: Vec<String> = (0..24).map(|i| row(i).to_string()).collect();
        fs::write(lab.path(name), lines.join("\n")).unwrap();
    };
    jsonl(
        "regression.jsonl",
        &|i| serde_json::json!({ "text": format!("w{} w{}", 5 + i, 30 + i), "score": i as f64 / 7.0 }),
    );
    jsonl(
        "multi.jsonl",
        &|i| serde_json::json!({ "text": format!("w{}", 5 + i), "labels": if i % 3 == 0 { vec!["x", "y"] } else { vec!["z"] } }),
    );
    jsonl(
        "words.jsonl",
        &|i| serde_json::json!({ "tokens": [format!("w{}", 5 + i), "w9"], "ner_tags": ["B", if i % 2 == 0 { "O" } else { "B" }] }),
    );
    jsonl(
        "pairs.jsonl",
        &|i| serde_json::json!({ "sentence1": format!("w{}", 5 + i), "sentence2": "w9 w10", "label": i % 2 }),
    );
    jsonl(
        "ids.jsonl",
        &|i| serde_json::json!({ "input_ids": [2, 5 + i, 3], "label": i % 2 }),
    );
    for (task, file, metric) in [
        ("regression", "regression.jsonl", "pearson"),
        ("multi_label", "multi.jsonl", "f1_micro"),
        ("token_classification", "words.jsonl", "accuracy"),
        ("single_label", "pairs.jsonl", "matthews"),
        ("single_label", "ids.jsonl", "f1"),
    ] {
        let (run, data, model) = (
            lab.text(file.trim_end_matches(".jsonl")),
            lab.text(file),
            lab.text("model"),
        );
        let words = [
            "train",
            "--model",
            &model,
            "--train-file",
            &data,
            "--validation-file",
            &data,
            "--task",
            task,
            "--epochs",
            "2",
            "--batch-size",
            "5",
            "--gradient-accumulation-steps",
            "2",
            "--output-dir",
            &run,
            "--json",
            "--metric-for-best-model",
            metric,
        ];
        let summary = lowrank(&words).ok().json();
        assert_eq!(
            summary["steps"], 6,
            "24 rows in batches of 5 are 5, two a step are 3 steps, twice"
        );
        assert!(
            summary["after"]["metrics"][metric].is_number() || metric == "pearson",
            "{task}: {summary}"
        );
        let predicted = lowrank(&[
            "predict",
            "--model",
            &model,
            "--adapter",
            &run,
            "--data-file",
            &data,
            "--quiet",
        ])
        .ok();
        assert_eq!(predicted.stdout.lines().count(), 24, "{task}");
        lowrank(&[
            "eval",
            "--model",
            &model,
            "--adapter",
            &run,
            "--data-file",
            &data,
        ])
        .ok();
    }
}

#[test]
fn plan_has_the_papers_figures() {
    let lab = Lab::new();
    for (name, width, layers, intermediate, heads, adapters, encoder, bitfit) in [
        (
            "base.json",
            768,
            12,
            3072,
            12,
            294_912u64,
            124_055_040u64,
            102_144u64,
        ),
        (
            "large.json",
            1024,
            24,
            4096,
            16,
            786_432,
            354_310_144,
            271_360,
        ),
    ] {
        let config = serde_json::json!({
            "model_type": "roberta", "vocab_size": 50265, "hidden_size": width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": intermediate, "max_position_embeddings": 514,
            "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1,
        });
        fs::write(lab.path(name), config.to_string()).unwrap();
        let plan = lowrank(&[
            "plan",
            &lab.text(name),
            "--json",
            "--max-length",
            "16",
            "--batch-size",
            "2",
        ])
        .ok()
        .json();
        assert_eq!(plan["lora"]["adapter_parameters"], adapters);
        assert_eq!(plan["encoder_parameters"], encoder);
        assert_eq!(plan["other_methods"]["bitfit"], bitfit);
        let head = width * width + width + 2 * width + 2;
        assert_eq!(plan["lora"]["trainable_parameters"], adapters + head as u64);
    }
    let text = lowrank(&["plan", &lab.text("base.json")]).ok().stdout;
    assert!(text.contains("294,912"), "{text}");
}

#[test]
fn plan_knows_the_size_of_the_file() {
    let lab = Lab::new();
    lab.train("run", &["--max-steps", "2", "--quiet"]).ok();
    let plan = lowrank(&["plan", "--model", &lab.text("model"), "--json"])
        .ok()
        .json();
    assert_eq!(
        plan["adapter_file_bytes"].as_u64().unwrap(),
        lab.adapter_bytes("run").len() as u64
    );
}

#[test]
fn inspect_shows_models_adapters_files_and_runs() {
    let lab = Lab::new();
    lab.train("run", &["--max-steps", "2", "--quiet"]).ok();
    let kind = |path: &str| lowrank(&["inspect", path, "--json"]).ok().json();
    assert_eq!(kind(&lab.text("model"))["kind"], "model");
    assert_eq!(kind(&lab.text("run"))["kind"], "run");
    assert_eq!(kind(&lab.text("run/adapter"))["r"], 8);
    assert_eq!(
        kind(&lab.text("run/adapter/adapter_model.safetensors"))["types"]["F32"]["tensors"],
        12,
        "4 layers of A and B, a new pooler, a head"
    );
    let text = lowrank(&["inspect", &lab.text("model"), "--tensors"])
        .ok()
        .stdout;
    assert!(text.contains("attention.self.query"), "{text}");
}

#[test]
fn check_shows_what_the_model_will_see() {
    let lab = Lab::new();
    let words = [
        "check",
        "--model",
        &lab.text("model"),
        "--train-file",
        &lab.text("train.tsv"),
        "--test-file",
        &lab.text("test.tsv"),
    ];
    let text = lowrank(&words).ok().stdout;
    assert!(
        text.contains("[CLS]"),
        "samples are decoded with special tokens: {text}"
    );
    assert!(text.contains("attention.self.value"), "{text}");
    let json = lowrank(&[words.as_slice(), &["--json"]].concat())
        .ok()
        .json();
    assert_eq!(json["targets"].as_array().unwrap().len(), 4);
}

#[test]
fn adapters_of_peft_are_evaluated() {
    let case = golden("bert-single-label");
    let lab = Lab::new();
    fs::write(
        lab.path("ids.jsonl"),
        "{\"input_ids\": [2, 9, 11, 3], \"label\": 1}\n{\"input_ids\": [2, 3], \"label\": 0}\n",
    )
    .unwrap();
    let (model, adapter) = (
        case.join("model").display().to_string(),
        case.join("adapter").display().to_string(),
    );
    let words = [
        "eval",
        "--model",
        &model,
        "--adapter",
        &adapter,
        "--data-file",
        &lab.text("ids.jsonl"),
        "--json",
    ];
    assert_eq!(lowrank(&words).ok().json()["rows"], 2);
}
