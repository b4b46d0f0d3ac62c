//! Which head answers: what a checkpoint's tensors hold, whatever config.json and flags say. A new
//! one never answers.

use std::fs;

use lowrank_formats::{Checkpoint, OutTensor, write_safetensors};
use serde_json::{Value, json};

use crate::support::{Lab, golden, lowrank};

/// What is changed in a config.json.
type Edit<'a> = &'a dyn Fn(&mut Value);

/// This lab's model with the head of a golden case, and a config.json that `change` edits.
fn model_of(lab: &Lab, case: &str, name: &str, change: Edit<'_>) -> String {
    let (from, to) = (golden(case).join("model"), lab.path(name));
    fs::create_dir_all(&to).unwrap();
    fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
    fs::copy(lab.path("model/vocab.txt"), to.join("vocab.txt")).unwrap();
    let bytes = fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut config);
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    to.display().to_string()
}

fn remove(config: &mut Value, keys: &[&str]) {
    for key in keys {
        config.as_object_mut().unwrap().remove(*key);
    }
}

const LABEL_KEYS: [&str; 4] = ["architectures", "id2label", "label2id", "problem_type"];

#[test]
fn a_head_answers_whatever_config_json_lacks() {
    let lab = Lab::new();
    let whole = model_of(&lab, "bert-single-label", "whole", &|_| {});
    let expected = lowrank(&["predict", "-q", "--model", &whole, "--text", "w5 w6"]).ok();
    let logits = |line: &str| serde_json::from_str::<Value>(line).unwrap()["logits"].clone();
    let expected = logits(&expected.stdout);
    let cases: [(&str, Edit<'_>, &[&str]); 6] = [
        (
            "nothing",
            &|c| remove(c, &LABEL_KEYS),
            &["LABEL_0", "LABEL_1"],
        ),
        (
            "nulls",
            &|c| LABEL_KEYS.iter().for_each(|key| c[*key] = Value::Null),
            &["LABEL_0", "LABEL_1"],
        ),
        (
            "names alone",
            &|c| {
                remove(c, &LABEL_KEYS);
                c["label2id"] = json!({ "good": 1, "bad": 0 });
            },
            &["bad", "good"],
        ),
        (
            "numbers",
            &|c| {
                remove(c, &LABEL_KEYS);
                c["id2label"] = json!({ "0": 4, "1": 7 });
                c["num_labels"] = json!(2);
            },
            &["4", "7"],
        ),
        (
            "a masked language model's class",
            &|c| c["architectures"] = json!(["BertForMaskedLM"]),
            &["LABEL_0", "LABEL_1"],
        ),
        (
            "more names than outputs",
            &|c| c["id2label"] = json!({ "0": "a", "1": "b", "2": "c" }),
            &["LABEL_0", "LABEL_1"],
        ),
    ];
    for (case, change, names) in cases {
        let model = model_of(&lab, "bert-single-label", case, change);
        let ran = lowrank(&["predict", "--model", &model, "--text", "w5 w6"]).ok();
        let line: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(line["logits"], expected, "{case}");
        let probabilities = line["probabilities"].as_object().unwrap();
        let found: Vec<&str> = probabilities.keys().map(String::as_str).collect();
        assert_eq!(found, names, "{case}");
        let is_said = ran.stderr.contains("config.json names 3 labels");
        assert_eq!(is_said, case == "more names than outputs", "{}", ran.stderr);
    }
}

#[test]
fn a_head_for_each_token_is_told_from_one_for_sequences() {
    let lab = Lab::new();
    let of_tokens = model_of(&lab, "bert-token-classification", "tokens", &|c| {
        remove(c, &LABEL_KEYS);
    });
    let ran = lowrank(&["predict", "-q", "--model", &of_tokens, "--text", "w5 w6"]).ok();
    assert!(ran.stdout.contains("\"entities\""), "{}", ran.stdout);
    let roberta = golden("roberta-all-linear").join("model");
    let rows = lab.path("ids.jsonl");
    fs::write(&rows, "{\"input_ids\": [0, 5, 6, 2]}\n").unwrap();
    let model = lab.path("roberta");
    fs::create_dir(&model).unwrap();
    fs::copy(
        roberta.join("model.safetensors"),
        model.join("model.safetensors"),
    )
    .unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(roberta.join("config.json")).unwrap()).unwrap();
    config["architectures"] = json!(["RobertaForTokenClassification"]);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let (model, rows) = (model.display().to_string(), rows.display().to_string());
    let ran = lowrank(&["predict", "--model", &model, "--data-file", &rows]).ok();
    assert!(
        ran.stderr.contains("classifier.out_proj.weight"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stdout.contains("input_ids"), "{}", ran.stdout);
}

#[test]
fn only_train_starts_a_new_head() {
    let lab = Lab::new();
    let model = model_of(&lab, "bert-single-label", "two", &|_| {});
    let body = lab.text("model");
    let rows = lab.path("rows.tsv");
    fs::write(&rows, "text\tlabel\nw5\ta\nw6\tb\nw7\tc\n").unwrap();
    let rows = rows.display().to_string();
    let out = lab.text("out");
    let run = lab.text("run");
    let refused = |words: &[&str]| {
        let stderr = lowrank(words).fails(2, &[]);
        assert!(
            !stderr.contains("pass --ignore-mismatched-sizes"),
            "{stderr}"
        );
        stderr
    };
    for flag in [
        "--ignore-mismatched-sizes",
        "--ignore-mismatched-sizes=true",
    ] {
        let more = [flag, "--model", &model, "--labels", "a", "b", "c"];
        refused(&[&["predict", "--text", "w5"], more.as_slice()].concat());
        refused(&[&["eval", "--data-file", &rows], more.as_slice()].concat());
        refused(&["generate", flag, "--model", &model, "--prompt", "w5"]);
        refused(&[
            "merge",
            flag,
            "--model",
            &model,
            "--adapter",
            &run,
            "--output-dir",
            &out,
        ]);
    }
    let labels = ["--model", &model, "--text", "w5", "--labels", "a", "b", "c"];
    let stderr = refused(&[&["predict"], labels.as_slice()].concat());
    assert!(!stderr.contains("mismatched"), "{stderr}");
    assert!(stderr.contains("pass --labels with 2 names"), "{stderr}");
    let stderr = refused(&["predict", "--model", &body, "--text", "w5"]);
    assert!(stderr.contains("no classification head"), "{stderr}");
    // A head without its pooler: half of it would be random.
    let half = model_of(&lab, "bert-single-label", "half", &|c| {
        c["architectures"] = json!(["BertForSequenceClassification"]);
    });
    let file = lab.path("half/model.safetensors");
    let checkpoint = Checkpoint::open_file(&file).unwrap();
    let kept: Vec<_> = (checkpoint.infos())
        .filter(|info| !info.name.contains("pooler"))
        .map(|info| {
            let values = checkpoint.read_f32_vec(&info.name).unwrap();
            (info.name.clone(), info.shape.clone(), values)
        })
        .collect();
    let tensors: Vec<_> = (kept.iter())
        .map(|(name, shape, values)| OutTensor::f32(name, shape, values))
        .collect();
    write_safetensors(&file, &tensors, &[]).unwrap();
    lowrank(&["predict", "--model", &half, "--text", "w5"])
        .fails(1, &["pooler", "would be random"]);
    // `train` may, and what it trained answers without a flag.
    let train = [
        "--model",
        &model,
        "--train-file",
        &rows,
        "--output-dir",
        &run,
    ];
    let train = [&["train", "--max-steps", "1", "-q"], train.as_slice()].concat();
    lowrank(&[&train[..], &["--labels", "a", "b", "c"]].concat())
        .fails(1, &["--ignore-mismatched-sizes starts a new head"]);
    let more = ["--labels", "a", "b", "c", "--ignore-mismatched-sizes"];
    lowrank(&[&train[..], &more].concat()).ok();
    let ran = lowrank(&[
        "predict",
        "--model",
        &model,
        "--adapter",
        &run,
        "--text",
        "w5",
    ])
    .ok();
    assert!(ran.stdout.contains("\"c\""), "{}", ran.stdout);
    // The head that answers is the adapter's: nothing was started.
    assert!(
        ran.stderr.contains("the adapter's, of another shape") && !ran.stderr.contains("anew"),
        "{}",
        ran.stderr
    );
    lowrank(&[
        "merge",
        "--model",
        &model,
        "--adapter",
        &run,
        "--output-dir",
        &out,
    ])
    .ok();
    let ran = lowrank(&["predict", "--model", &out, "--text", "w5"]).ok();
    assert!(ran.stdout.contains("\"c\""), "{}", ran.stdout);
}
