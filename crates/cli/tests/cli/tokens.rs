//! Predictions of token classification that can be laid beside the input, and the scores of
//! entities.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Lab, golden, lowrank};

/// A tiny tagger of these classes and `B-D`, whose vocabulary has one token that goes on with a
/// word, `##s`.
fn tagger(lab: &Lab, labels: [&str; 3]) -> String {
    let (from, to) = (
        golden("bert-token-classification").join("model"),
        lab.path("tagger"),
    );
    fs::create_dir_all(&to).unwrap();
    fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
    let vocabulary = fs::read_to_string(lab.path("model/vocab.txt")).unwrap();
    fs::write(to.join("vocab.txt"), vocabulary.replace("w96\n", "##s\n")).unwrap();
    let bytes = fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
    config["id2label"] = json!({ "0": labels[0], "1": labels[1], "2": labels[2], "3": "B-D" });
    config.as_object_mut().unwrap().remove("label2id");
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    to.display().to_string()
}

fn lines(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn rows_of_words_get_a_label_a_word() {
    let lab = Lab::new();
    let model = tagger(&lab, ["O", "B-PER", "I-PER"]);
    let rows = lab.path("rows.jsonl");
    fs::write(
        &rows,
        "{\"tokens\": [\"w5\", \"w6sss\", \"w7\"]}\n{\"tokens\": [\"w8\"]}\n",
    )
    .unwrap();
    let ids = lab.path("ids.jsonl");
    // The same tokens as ids: [CLS] w5 w6 ##s ##s ##s w7 [SEP].
    fs::write(&ids, "{\"input_ids\": [2, 5, 6, 96, 96, 96, 7, 3]}\n").unwrap();
    let (rows, ids) = (rows.display().to_string(), ids.display().to_string());
    let predict = |file: &str, more: &[&str]| {
        let words = ["predict", "--model", &model, "--data-file", file];
        lowrank(&[&words[..], more].concat()).ok()
    };
    let of_words = lines(&predict(&rows, &[]).stdout);
    let of_ids = lines(&predict(&ids, &[]).stdout);
    assert_eq!(of_words[0]["words"], json!(["w5", "w6sss", "w7"]));
    assert_eq!(of_words[1]["words"], json!(["w8"]));
    assert_eq!(of_words[1]["labels"].as_array().unwrap().len(), 1);
    // Of each word its first token; the row of ids has a label for every token.
    assert_eq!(of_ids[0]["labels"].as_array().unwrap().len(), 8);
    for (word, token) in [1, 2, 6].into_iter().enumerate() {
        for key in ["labels", "logits", "probabilities"] {
            assert_eq!(
                of_words[0][key][word], of_ids[0][key][token],
                "{key} of word {word}"
            );
        }
    }
    // Words beyond the limit are there, without a label, and it is said.
    let cut = predict(&rows, &["--max-length", "5"]);
    assert!(
        cut.stderr.contains("1 words are beyond --max-length 5"),
        "{}",
        cut.stderr
    );
    let cut = lines(&cut.stdout);
    assert_eq!(cut[0]["words"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&cut[0]["labels"][2], &cut[0]["cut_words"]),
        (&Value::Null, &json!(1))
    );
    assert!(cut[0]["labels"][1].is_string() && cut[1].get("cut_words").is_none());
    let words = ["predict", "--model", &model, "--data-file", &ids];
    lowrank(&[&words[..], &["--aggregation-strategy", "first"]].concat())
        .fails(2, &["--aggregation-strategy", "row of ids"]);
}

#[test]
fn neighbours_of_one_kind_are_merged_on_request() {
    let lab = Lab::new();
    let text = "w5 w6s  w7";
    let row = lab.path("row.jsonl");
    fs::write(&row, "{\"tokens\": [\"w5\", \"w6s\", \"w7\"]}\n").unwrap();
    let row = row.display().to_string();
    let with = |labels: [&str; 3], more: &[&str]| {
        let model = tagger(&lab, labels);
        let words = ["predict", "-q", "--model", &model];
        let ran = lowrank(&[&words[..], more].concat()).ok();
        lines(&ran.stdout)[0]["entities"].clone()
    };
    // One kind, nothing begins: all is one span, of characters or of words.
    let same = with(["I-X", "X", "LAST"], &["--text", text]);
    let whole = same.as_array().unwrap();
    let spans: Vec<(u64, u64)> = (whole.iter())
        .map(|e| (e["start"].as_u64().unwrap(), e["end"].as_u64().unwrap()))
        .collect();
    assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0), "{spans:?}");
    for entity in whole {
        let (start, end) = (
            entity["start"].as_u64().unwrap(),
            entity["end"].as_u64().unwrap(),
        );
        assert_eq!(
            entity["word"],
            text[start as usize..end as usize],
            "{entity}"
        );
        let score = entity["score"].as_f64().unwrap();
        assert!(score > 0.0 && score <= 1.0, "{entity}");
    }
    // A text token by token: 4 tokens, the one that goes on among them, each with its own place.
    let each = with(
        ["A", "B", "C"],
        &["--text", text, "--aggregation-strategy", "none"],
    );
    let places: Vec<(u64, u64)> = (each.as_array().unwrap().iter())
        .map(|e| (e["start"].as_u64().unwrap(), e["end"].as_u64().unwrap()))
        .collect();
    assert_eq!(places, [(0, 2), (3, 5), (5, 6), (8, 10)]);
    // Every class begins: no word is merged with another, but tokens of a word are one.
    let begun = with(["B-A", "B-B", "B-C"], &["--text", text]);
    let words: Vec<&str> = (begun.as_array().unwrap().iter())
        .map(|e| e["word"].as_str().unwrap())
        .collect();
    assert_eq!(words, ["w5", "w6s", "w7"]);
    let more = ["--data-file", &row, "--aggregation-strategy", "average"];
    let of_words = with(["B-A", "B-B", "B-C"], &more);
    assert_eq!(of_words[1]["word"], "w6s");
    assert_eq!(
        (&of_words[1]["start_word"], &of_words[1]["end_word"]),
        (&json!(1), &json!(2))
    );
    // What is outside is no entity.
    let outside = with(["O", "I-O", "B-O"], &["--text", text]);
    let entities = outside.as_array().unwrap();
    assert!(entities.iter().all(|e| e["label"] == "D"), "{outside}");
}

#[test]
fn entities_are_scored_in_eval_and_in_training() {
    let lab = Lab::new();
    let model = tagger(&lab, ["O", "B-PER", "I-PER"]);
    let rows = lab.path("rows.jsonl");
    let row = json!({ "tokens": ["w5", "w6s", "w7"], "ner_tags": ["B-PER", "I-PER", "O"] });
    fs::write(&rows, format!("{row}\n{row}\n")).unwrap();
    let rows = rows.display().to_string();
    let ran = lowrank(&["eval", "--json", "--model", &model, "--data-file", &rows]).ok();
    let metrics = &ran.json()["metrics"];
    for name in ["precision", "recall", "f1", "accuracy"] {
        let value = metrics[name].as_f64().unwrap_or(-1.0);
        assert!((0.0..=1.0).contains(&value), "{name}: {metrics}");
    }
    let run = lab.text("run");
    let words = [
        "train",
        "--model",
        &model,
        "--train-file",
        &rows,
        "--validation-file",
        &rows,
        "--output-dir",
        &run,
        "--max-steps",
        "2",
        "--quiet",
        "--metric-for-best-model",
        "f1",
    ];
    lowrank(&words).ok();
    let log = fs::read_to_string(lab.path("run/metrics.jsonl")).unwrap();
    assert!(
        log.contains("\"precision\"") && log.contains("\"recall\""),
        "{log}"
    );
}
