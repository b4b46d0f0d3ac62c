//! What `train`, `check` and `eval` make of labels and say about them.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Lab, Ran, lowrank};

/// `train` on this content for two steps.
fn train(lab: &Lab, name: &str, content: &str, more: &[&str]) -> Ran {
    fs::write(lab.path(name), content).unwrap();
    let (model, file, run) = (lab.text("model"), lab.text(name), lab.text("run"));
    let words = [
        "train",
        "--model",
        &model,
        "--train-file",
        &file,
        "--output-dir",
        &run,
        "--overwrite",
        "--max-steps",
        "2",
        "--warmup-steps",
        "0",
        "--per-device-batch-size",
        "4",
    ];
    lowrank(&[&words, more].concat())
}

fn notes(lab: &Lab) -> Value {
    let bytes = fs::read(lab.path("run/adapter/lowrank.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Names the outputs of the lab's model.
fn name_outputs(lab: &Lab, names: &[&str]) {
    let path = lab.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let pairs = || names.iter().enumerate();
    config["id2label"] = pairs()
        .map(|(i, name)| (i.to_string(), json!(name)))
        .collect();
    config["label2id"] = pairs()
        .map(|(i, name)| ((*name).to_owned(), json!(i)))
        .collect();
    fs::write(&path, config.to_string()).unwrap();
}

/// A model with a head of two outputs of these names, in place of the lab's.
fn lab_with_head(names: [&str; 2]) -> Lab {
    let lab = Lab::new();
    let rows = "text\tlabel\nw5 w6\tno\nw7\tyes\nw8\tno\nw9\tyes\n";
    train(&lab, "head.tsv", rows, &[]).ok();
    let (run, merged) = (lab.text("run"), lab.text("merged"));
    lowrank(&["merge", "--adapter", &run, "--output-dir", &merged]).ok();
    fs::remove_dir_all(lab.path("model")).unwrap();
    fs::rename(lab.path("merged"), lab.path("model")).unwrap();
    name_outputs(&lab, &names);
    lab
}

#[test]
fn train_says_labels_columns_taken_and_columns_not_read() {
    let lab = Lab::new();
    let rows =
        "id,text,class,note\n1,w5,low,x\n2,w6,high,x\n3,w7,low,x\n4,w8,None,x\n5,w9,High,x\n";
    train(&lab, "a.csv", rows, &[]).fails(
        1,
        &["line 5, column `class`", "`None`", "--unlabelled drop"],
    );
    let said = train(&lab, "a.csv", rows, &["--unlabelled", "drop"])
        .ok()
        .stderr;
    let line = "labels: `High` 1, `high` 1, `low` 2 (column `class`, one class a row, 1 rows without a label left out); \
                text `text`; not read: `id`, `note`";
    assert!(said.contains(line), "{said}");
    assert!(
        said.contains("warning: ") && said.contains("case or blanks alone: `High`, `high`"),
        "{said}"
    );
    let run = lab.text("run");
    let resumed = lowrank(&["train", "--resume", "--output-dir", &run])
        .ok()
        .stderr;
    assert!(resumed.contains(line), "{resumed}");
    let quiet = train(&lab, "a.csv", rows, &["--unlabelled", "drop", "--quiet"])
        .ok()
        .stderr;
    assert!(
        !quiet.contains("labels:") && !quiet.contains("warning"),
        "{quiet}"
    );
    let (model, file) = (lab.text("model"), lab.text("a.csv"));
    let words = [
        "check",
        "--model",
        &model,
        "--train-file",
        &file,
        "--unlabelled",
        "drop",
    ];
    let checked = lowrank(&words).ok().stdout;
    for part in [
        "1 of 5 rows have no label",
        "case or blanks alone",
        "label `class`",
    ] {
        assert!(checked.contains(part), "{checked}");
    }
}

#[test]
fn fractions_are_regression_unless_classes_are_asked_for() {
    let lab = Lab::new();
    let rows = "sentence1,sentence2,score\nw5,w6,5.000\nw7,w8,2.5\nw9,w10,-1.25\n";
    let said = train(&lab, "s.csv", rows, &[]).ok().stderr;
    for part in [
        "column `score`",
        "regression, since 2 of 3 labels",
        "--task single_label",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(notes(&lab)["task"], "regression");
    train(&lab, "s.csv", rows, &["--task", "single_label"])
        .fails(1, &["`2.5` is not a class", "--task regression"]);
    train(&lab, "i.csv", "text,label\nw5,0.0\nw6,1.0\n", &[]).ok();
    assert_eq!(notes(&lab)["labels"], json!(["0", "1"]));
}

#[test]
fn several_labels_come_as_columns_vectors_and_names_with_commas() {
    let lab = Lab::new();
    let columns = "text,toxic,obscene\nw5,1,0\nw6,0,0\nw7,1,1\n";
    let said = train(&lab, "c.csv", columns, &[]).ok().stderr;
    assert!(
        said.contains("multi_label, since") && said.contains("columns `toxic`, `obscene`"),
        "{said}"
    );
    assert_eq!(notes(&lab)["labels"], json!(["toxic", "obscene"]));
    let (run, file) = (lab.text("run"), lab.text("c.csv"));
    lowrank(&["eval", "--adapter", &run, "--data-file", &file]).ok();
    train(
        &lab,
        "c.csv",
        columns,
        &["--task", "multi_label", "--label-columns", "obscene,toxic"],
    )
    .ok();
    assert_eq!(notes(&lab)["labels"], json!(["obscene", "toxic"]));
    let lists = "{\"text\": \"w5\", \"labels\": [\"Arts, Culture\"]}\n{\"text\": \"w6\", \"labels\": [\"News\"]}\n";
    let named = ["--labels", "Arts, Culture", "News", "Sport"];
    train(&lab, "l.jsonl", lists, &named).ok();
    assert_eq!(
        notes(&lab)["labels"],
        json!(["Arts, Culture", "News", "Sport"])
    );
    let vectors = "text,labels\nw5,0 1 0\nw6,1 0 1\nw7,0 0 0\n";
    train(
        &lab,
        "v.csv",
        vectors,
        &["--task", "multi_label", "--labels", "a,b,c"],
    )
    .ok();
    assert_eq!(notes(&lab)["labels"], json!(["a", "b", "c"]));
}

#[test]
fn numbers_are_the_outputs_of_a_pretrained_head() {
    let lab = lab_with_head(["LABEL_0", "LABEL_1"]);
    for rows in ["text,label\nw5,0\nw6,1\n", "text,label\nw5,1\nw6,1\n"] {
        train(&lab, "n.csv", rows, &[]).ok();
        assert_eq!(notes(&lab)["labels"], json!(["0", "1"]));
    }
    let stars = "text,label\nw5,1\nw6,2\n";
    train(&lab, "s.csv", stars, &[]).fails(1, &["label `2`", "checkpoint's head", "--labels"]);
    train(&lab, "s.csv", stars, &["--labels", "1", "2"]).ok();
    train(&lab, "s.csv", stars, &["--ignore-mismatched-sizes"]).ok();
    assert_eq!(notes(&lab)["labels"], json!(["1", "2"]));
}

#[test]
fn labels_that_a_head_does_not_know_have_a_way_out() {
    let lab = lab_with_head(["NEGATIVE", "POSITIVE"]);
    let ham = "text,label\nw5,ham\nw6,spam\n";
    train(&lab, "h.csv", ham, &[]).fails(
        1,
        &[
            "label `ham`",
            "id2label",
            "--labels",
            "--ignore-mismatched-sizes",
        ],
    );
    train(&lab, "h.csv", ham, &["--labels", "ham,spam"]).ok();
    let (model, file) = (lab.text("model"), lab.text("h.csv"));
    let eval = lowrank(&["eval", "--model", &model, "--data-file", &file]);
    let message = eval.fails(1, &["label `ham`", "id2label", "--labels"]);
    assert!(!message.contains("--ignore-mismatched-sizes"), "{message}");
    fs::write(
        lab.path("t.csv"),
        "text,label\nw5,True\nw6,0\nw7,POSITIVE\n",
    )
    .unwrap();
    lowrank(&["eval", "--model", &model, "--data-file", &lab.text("t.csv")]).ok();
}
