//! Tokenizers that are refused: each command that needs text says why, by the name that the folder
//! gives.

use std::fs;

use crate::support::{Lab, lowrank};

#[test]
fn a_class_that_is_not_known_is_named_by_each_command() {
    let lab = Lab::new();
    lab.train("run", &[]).ok();
    let config = "{\"tokenizer_class\": \"BertJapaneseTokenizer\"}";
    fs::write(lab.path("model/tokenizer_config.json"), config).unwrap();
    let (model, rows, adapter) = (lab.text("model"), lab.text("train.tsv"), lab.text("run"));
    let named = ["`BertJapaneseTokenizer`", "tokenizer_config.json", "hint: "];
    lowrank(&["check", "--model", &model, "--train-file", &rows]).fails(1, &named);
    let on_text = ["--adapter", &adapter, "--text", "w5 w6"];
    lowrank(&[&["predict", "--model", &model], &on_text[..]].concat()).fails(1, &named);
    lab.train("other", &[]).fails(1, &named);
}

#[test]
fn a_library_s_panic_is_an_error_without_its_text() {
    let lab = Lab::new();
    fs::remove_file(lab.path("model/vocab.txt")).unwrap();
    // Its prefix is longer than the pieces that it is cut from.
    let file = "{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": null, \"post_processor\": null, \
                \"decoder\": null, \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": [\"a b\"], \
                \"continuing_subword_prefix\": \"####\"}}";
    fs::write(lab.path("model/tokenizer.json"), file).unwrap();
    let (model, rows) = (lab.text("model"), lab.text("train.tsv"));
    let message = lowrank(&["check", "--model", &model, "--train-file", &rows])
        .fails(1, &["tokenizer.json", "its parts contradict each other"]);
    assert!(!message.contains("tokenizers-"), "{message}");
}
