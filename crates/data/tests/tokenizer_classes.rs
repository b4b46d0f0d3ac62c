//! For each class of transformers that we build, and for what may stand beside a `tokenizer.json`:
//! the ids of 200 strings equal those that transformers gives. Golden files by
//! `tools/fixtures/make_tokenizer_classes.py`.

use std::path::{Path, PathBuf};

use lowrank_data::{Tokenizer, TokenizerError};
use lowrank_testkit::verify_manifest;
use serde_json::{Value, json};

fn classes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/classes")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn strings() -> Vec<String> {
    serde_json::from_value(read(&classes().join("texts.json"))).unwrap()
}

/// The ids that transformers gives in this folder, or in the one that it was saved from.
fn expected(name: &str) -> Value {
    let own = classes().join(name).join("ids.json");
    let bare = name.strip_suffix("-json").unwrap_or(name);
    read(&if own.exists() {
        own
    } else {
        classes().join(bare).join("ids.json")
    })
}

/// The texts whose ids differ, with both.
fn differences(tokenizer: &Tokenizer, expected: &Value) -> Vec<String> {
    let texts = strings();
    let wanted = expected["ids"].as_array().unwrap();
    assert_eq!((texts.len(), wanted.len()), (200, 200));
    let mut found = Vec::new();
    for (text, wanted) in texts.iter().zip(wanted) {
        let got = tokenizer.encode(text, None, None).unwrap().input_ids;
        if got != ids(wanted) {
            found.push(format!("{text:?}: {got:?}, expected {wanted}"));
        }
    }
    found
}

#[test]
fn ids_equal_those_of_transformers_for_each_class() {
    verify_manifest(&classes()).unwrap();
    let folders = std::fs::read_dir(classes()).unwrap();
    let mut names: Vec<String> = folders
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 24, "{names:?}");
    let mut faults = Vec::new();
    for name in &names {
        let tokenizer = Tokenizer::from_dir(&classes().join(name), None)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = expected(name);
        let differ = differences(&tokenizer, &expected);
        if let Some(first) = differ.first() {
            faults.push(format!(
                "{name}: {} texts differ, the first {first}",
                differ.len()
            ));
        }
        let pair = tokenizer.encode("The film", Some("is slow"), None).unwrap();
        let types = pair.token_type_ids.clone();
        let zeros = || vec![0; pair.input_ids.len()];
        let wanted = match &expected["types"] {
            Value::Null => zeros(),
            types => ids(types),
        };
        if pair.input_ids != ids(&expected["pair"]) || types.unwrap_or_else(zeros) != wanted {
            let (ids, types) = (&expected["pair"], &expected["types"]);
            faults.push(format!(
                "{name}: the pair is {pair:?}, expected {ids}, {types}"
            ));
        }
        let end = if name.ends_with("-json") {
            "tokenizer.json"
        } else {
            ""
        };
        assert!(tokenizer.source().ends_with(end), "{name}");
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_wrong_id_is_noticed() {
    let tokenizer = Tokenizer::from_dir(&classes().join("llama"), None).unwrap();
    let mut expected = expected("llama");
    expected["ids"][50][1] = 1.into();
    assert_eq!(differences(&tokenizer, &expected).len(), 1);
}

/// A folder with some files of a fixture, and others.
fn folder(fixture: &str, files: &[&str], more: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let from = classes().join(fixture).join(file);
        std::fs::copy(from, dir.path().join(file)).unwrap();
    }
    for (file, content) in more {
        std::fs::write(dir.path().join(file), content.to_string()).unwrap();
    }
    dir
}

fn error(dir: &tempfile::TempDir) -> TokenizerError {
    Tokenizer::from_dir(dir.path(), None).unwrap_err()
}

#[test]
fn a_class_that_is_not_known_is_refused_by_its_name() {
    for class in [
        "BertJapaneseTokenizer",
        "HerbertTokenizerFast",
        "BertweetTokenizer",
        "CamembertTokenizer",
        "BarthezTokenizer",
        "CpmTokenizer",
        "PhobertTokenizer",
        "FlaubertTokenizer",
        "RoFormerTokenizer",
        "T5Tokenizer",
        "MyOwnTokenizer",
    ] {
        let named = json!({ "tokenizer_class": class });
        for file in ["tokenizer_config.json", "config.json"] {
            for (fixture, vocabulary) in [("bert", "vocab.txt"), ("llama", "tokenizer.model")] {
                let dir = folder(fixture, &[vocabulary], &[(file, named.clone())]);
                let error = error(&dir);
                let message = error.to_string();
                assert!(message.contains(&format!("`{class}`")), "{message}");
                assert!(message.contains(file), "{message}");
                assert!(error.hint().is_some());
            }
        }
    }
    let own = json!({"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", null]}});
    let dir = folder("bert", &["vocab.txt"], &[("tokenizer_config.json", own)]);
    assert!(error(&dir).to_string().contains("`own.OwnTokenizer`"));
    // Code that belongs to the model alone says nothing of the tokenizer.
    let model = json!({"tokenizer_class": "BertTokenizer", "auto_map": {"AutoModel": "own.Model"}});
    let dir = folder("bert", &["vocab.txt"], &[("tokenizer_config.json", model)]);
    Tokenizer::from_dir(dir.path(), None).unwrap();
}

#[test]
fn a_tokenizer_json_stands_for_a_class_that_is_not_known_but_not_for_python_code() {
    let named = |class: &str| [("tokenizer_config.json", json!({ "tokenizer_class": class }))];
    let dir = folder(
        "distilbert",
        &["tokenizer.json"],
        &named("RoFormerTokenizer"),
    );
    let tokenizer = Tokenizer::from_dir(dir.path(), None).unwrap();
    assert_eq!(
        (tokenizer.source(), tokenizer.family()),
        ("tokenizer.json", None)
    );
    let dir = folder(
        "distilbert",
        &["tokenizer.json"],
        &named("BertJapaneseTokenizer"),
    );
    let error = error(&dir);
    assert!(
        matches!(error, TokenizerError::PythonClass { .. }),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("PreTrainedTokenizerFast"));
}

#[test]
fn the_vocabulary_must_be_that_of_the_class() {
    let config = json!({"tokenizer_class": "GPT2Tokenizer"});
    let dir = folder("bert", &["vocab.txt"], &[("tokenizer_config.json", config)]);
    let message = error(&dir).to_string();
    assert!(
        message.ends_with("`GPT2Tokenizer` is read from `vocab.json`, found `vocab.txt`"),
        "{message}"
    );
    let dir = folder(
        "llama",
        &["tokenizer.model"],
        &[("config.json", json!({"model_type": "bert"}))],
    );
    let message = error(&dir).to_string();
    assert!(
        message.contains("the tokenizer of the model type `bert`"),
        "{message}"
    );
    let dir = folder(
        "bert",
        &["vocab.txt"],
        &[("config.json", json!({"model_type": "camembert"}))],
    );
    let message = error(&dir).to_string();
    assert!(
        message.contains("that of the model type `camembert` is not known"),
        "{message}"
    );
    let class = json!({"tokenizer_class": "XLMRobertaTokenizer"});
    let dir = folder(
        "llama",
        &["tokenizer.model"],
        &[("tokenizer_config.json", class)],
    );
    let message = error(&dir).to_string();
    assert!(message.contains("expected a Unigram model"), "{message}");
}

#[test]
fn the_class_counts_before_the_model_s_type() {
    // A Chinese GPT-2 has BERT's vocabulary.
    let config = json!({"model_type": "gpt2", "tokenizer_class": "BertTokenizer"});
    let dir = folder("bert", &["vocab.txt"], &[("config.json", config)]);
    let tokenizer = Tokenizer::from_dir(dir.path(), None).unwrap();
    let differ = differences(&tokenizer, &expected("bert"));
    assert!(differ.is_empty(), "{differ:?}");
}

#[test]
fn end_tokens_are_found_by_name_or_by_id() {
    let end = |files: &[(&str, Value)]| {
        let dir = folder("generic-json", &["tokenizer.json"], files);
        let tokenizer = Tokenizer::from_dir(dir.path(), None).unwrap();
        tokenizer.eos_id()
    };
    assert_eq!(end(&[]), None);
    assert_eq!(end(&[("config.json", json!({"eos_token_id": 7}))]), Some(7));
    assert_eq!(
        end(&[("generation_config.json", json!({"eos_token_id": [9, 7]}))]),
        Some(9)
    );
    let named = ("tokenizer_config.json", json!({"eos_token": "[SEP]"}));
    assert_eq!(
        end(&[named, ("config.json", json!({"eos_token_id": 7}))]),
        Some(3)
    );
}

#[test]
fn unknown_text_is_known_by_the_model_s_own_word() {
    for (name, id) in [
        ("xlm-roberta", 3),
        ("generic-unigram", 2),
        ("bert", 1),
        ("xlm-roberta-json", 3),
    ] {
        let tokenizer = Tokenizer::from_dir(&classes().join(name), None).unwrap();
        assert_eq!(tokenizer.unk_id(), Some(id), "{name}");
    }
    assert_eq!(
        Tokenizer::from_dir(&classes().join("llama"), None)
            .unwrap()
            .unk_id(),
        None
    );
}

#[test]
fn blanks_before_punctuation_are_taken_out_where_the_settings_say_so() {
    let decoded = |fixture: &str, vocabulary: &[&str]| {
        let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": true});
        let dir = folder(fixture, vocabulary, &[("tokenizer_config.json", config)]);
        let tokenizer = Tokenizer::from_dir(dir.path(), None).unwrap();
        let ids = tokenizer.encode_plain("film , film .").unwrap();
        tokenizer.decode(&ids).unwrap()
    };
    assert_eq!(
        decoded("xlm-roberta-json", &["tokenizer.json"]),
        "film, film."
    );
    assert_eq!(decoded("gemma-json", &["tokenizer.json"]), "film , film .");
}

#[test]
fn many_added_tokens_are_added_at_once() {
    let tokens = (0..20_000).map(|i| (format!("<x{i}>"), json!(i + 162)));
    let config = (
        "tokenizer_config.json",
        json!({"tokenizer_class": "BertTokenizer"}),
    );
    let added = Value::Object(tokens.collect());
    let dir = folder(
        "bert",
        &["vocab.txt"],
        &[config.clone(), ("added_tokens.json", added)],
    );
    let message = error(&dir).to_string();
    assert!(message.contains("should have id 162"), "{message}");
    let size = Tokenizer::from_dir(&classes().join("bert"), None)
        .unwrap()
        .vocab_size();
    let tokens = (0..20_000).map(|i| (format!("<x{i}>"), json!(i + size)));
    let added = Value::Object(tokens.collect());
    let dir = folder(
        "bert",
        &["vocab.txt"],
        &[config, ("added_tokens.json", added)],
    );
    let tokenizer = Tokenizer::from_dir(dir.path(), None).unwrap();
    let ids = tokenizer.encode_plain("a<x19999>").unwrap();
    assert_eq!(*ids.last().unwrap() as usize, size + 19_999);
}

/// transformers finds the one or the other, and not the same one in each process.
#[test]
fn added_tokens_that_are_one_text_once_normalised_are_refused() {
    let load = |lower: bool| {
        let config = json!({"tokenizer_class": "BertTokenizer", "do_lower_case": lower});
        let added = json!({"NewWord": 251, "newword": 252});
        let beside = [
            ("tokenizer_config.json", config),
            ("added_tokens.json", added),
        ];
        let dir = folder("bert", &["vocab.txt"], &beside);
        Tokenizer::from_dir(dir.path(), None)
    };
    load(false).unwrap();
    let message = load(true).unwrap_err().to_string();
    assert!(message.contains("`NewWord` and `newword`"), "{message}");
}

/// A raw `tokenizer.json` under a class whose special tokens it has not: the file is all there is.
#[test]
fn a_file_without_template_gets_the_class_s_where_it_has_its_tokens() {
    let lengths = |remove: bool| {
        let tokenizer = edited("distilbert", |file| {
            file["post_processor"] = Value::Null;
            if remove {
                file["added_tokens"] = json!([]);
                let vocab = file["model"]["vocab"].as_object_mut().unwrap();
                vocab.remove("[CLS]");
            }
        });
        tokenizer
            .unwrap()
            .encode("film", None, None)
            .unwrap()
            .input_ids
            .len()
    };
    assert_eq!((lengths(false), lengths(true)), (3, 1));
}

#[test]
fn ids_that_are_no_ids_are_said() {
    for (file, content, expected) in [
        (
            "added_tokens.json",
            json!({"<x>": -1}),
            "the id of `<x>` is not a token id",
        ),
        (
            "added_tokens.json",
            json!({"<x>": 1e30}),
            "the id of `<x>` is not a token id",
        ),
        (
            "tokenizer_config.json",
            json!({"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"-3": {"content": "x"}}}),
            "entry `-3` is not an id with a token",
        ),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": [1]}),
            "expected an object of ids and tokens",
        ),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"4000000000": {"content": "x"}}}),
            "should have id 4000000000",
        ),
    ] {
        let dir = folder("bert", &["vocab.txt"], &[(file, content)]);
        let message = error(&dir).to_string();
        assert!(
            message.contains(expected) && message.contains(file),
            "{message}"
        );
    }
    let dir = folder("bert", &["vocab.txt"], &[]);
    let lone = "{\"unk_token\": \"\\ud800\"}";
    std::fs::write(dir.path().join("tokenizer_config.json"), lone).unwrap();
    let message = error(&dir).to_string();
    assert!(
        message.contains("tokenizer_config.json`, line 1: not JSON"),
        "{message}"
    );
}

/// Edits a `tokenizer.json` and loads it.
fn edited(fixture: &str, edit: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
    let mut file = read(&classes().join(fixture).join("tokenizer.json"));
    edit(&mut file);
    let files = [("tokenizer.json", file)];
    let dir = folder(fixture, &["tokenizer_config.json"], &files);
    Tokenizer::from_dir(dir.path(), None)
}

#[test]
fn files_that_ask_for_too_much_are_refused_when_loading() {
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    type Edit = Box<dyn FnOnce(&mut Value)>;
    let edits: [(&str, Edit); 5] = [
        (
            "the normaliser makes more than",
            Box::new(move |file| {
                file["normalizer"] = json!({"type": "Sequence", "normalizers": vec![doubling; 40]});
            }),
        ),
        (
            "holds text A 300 times",
            Box::new(move |file| file["post_processor"]["single"] = json!(vec![text; 300])),
        ),
        (
            "byte-level steps follow each other",
            Box::new(move |file| {
                file["pre_tokenizer"] =
                    json!({"type": "Sequence", "pretokenizers": vec![level; 30]});
            }),
        ),
        (
            "`max_input_chars_per_word` is 1000000",
            Box::new(|file| file["model"]["max_input_chars_per_word"] = json!(1_000_000)),
        ),
        (
            "the normaliser's map",
            Box::new(|file| {
                file["normalizer"] =
                    json!({"type": "Precompiled", "precompiled_charsmap": "////fw=="});
            }),
        ),
    ];
    for (expected, edit) in edits {
        let message = edited("distilbert", edit).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(message.contains("tokenizer.json"), "{message}");
    }
}

#[test]
fn merges_are_not_skipped_by_chance() {
    let tokenizer = edited("gemma-json", |file| file["model"]["dropout"] = json!(0.9)).unwrap();
    let sound = edited("gemma-json", |_| {}).unwrap();
    for text in strings() {
        assert_eq!(
            tokenizer.encode_plain(&text).unwrap(),
            sound.encode_plain(&text).unwrap()
        );
    }
}

#[test]
fn long_words_take_linear_time() {
    let word = "ab".repeat(100_000);
    for name in [
        "bert",
        "gemma",
        "llama",
        "xlm-roberta",
        "gpt2-added",
        "generic-bpe",
        "generic-unigram",
    ] {
        let tokenizer = Tokenizer::from_dir(&classes().join(name), None).unwrap();
        let ids = tokenizer.encode_plain(&word).unwrap();
        assert!(!ids.is_empty(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_by_their_names() {
    for file in [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.json",
    ] {
        let dir = folder("bert", &["vocab.txt"], &[]);
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(file)).unwrap();
        let message = error(&dir).to_string();
        assert!(
            message.contains(file) && message.contains("a device"),
            "{message}"
        );
    }
}
