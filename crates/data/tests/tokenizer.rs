//! The promise that token ids equal those of transformers, on golden files made by
//! `tools/fixtures/make_tokenizer_fixtures.py`, and on real tokenizers where they are at hand.

use std::path::{Path, PathBuf};

use lowrank_data::{IGNORE_INDEX, Tokenizer, TokenizerError, TokenizerFamily};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(path);
    if !found.exists() {
        println!("SKIPPED: {} is not at hand", found.display());
        return None;
    }
    Some(found)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

fn max_length(case: &Value) -> Option<usize> {
    case["max_length"].as_u64().map(|length| length as usize)
}

/// Compares a tokenizer with a golden file; returns the number of encoded texts.
fn check_cases(tokenizer: &Tokenizer, expected: &Value) -> usize {
    let encoded = expected["encoded"].as_array().unwrap();
    for case in encoded {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text, case["pair"].as_str(), max_length(case));
        let full = tokenizer.encode(text, case["pair"].as_str(), None).unwrap();
        let got = match got {
            Ok(got) => got,
            // Where only special tokens fit, transformers gives these, and we refuse.
            Err(TokenizerError::MaxLengthTooSmall {
                max_length,
                special,
            }) => {
                assert_eq!(ids(&case["input_ids"]).len(), max_length.min(special));
                continue;
            }
            Err(error) => panic!("{error}: {case}"),
        };
        assert_eq!(got.input_ids, ids(&case["input_ids"]), "{case}");
        assert_eq!(
            got.input_ids.len() + got.truncated_tokens,
            full.input_ids.len(),
            "{case}"
        );
        let types = got
            .token_type_ids
            .unwrap_or_else(|| vec![0; got.input_ids.len()]);
        let expected_types = match &case["token_type_ids"] {
            Value::Null => vec![0; types.len()],
            types => ids(types),
        };
        assert_eq!(types, expected_types, "{case}");
    }
    for case in expected["words"].as_array().unwrap() {
        let words: Vec<String> = case["words"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap().to_string())
            .collect();
        let got = tokenizer.encode_words(&words, max_length(case)).unwrap();
        assert_eq!(got.encoded.input_ids, ids(&case["input_ids"]), "{case}");
        let word_ids: Vec<Option<u32>> = case["word_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().map(|id| id as u32))
            .collect();
        assert_eq!(got.word_ids, word_ids, "{case}");
    }
    for case in expected["decoded"].as_array().unwrap() {
        assert_eq!(
            tokenizer.decode(&ids(&case["input_ids"])).unwrap(),
            case["text"].as_str().unwrap(),
            "{case}"
        );
    }
    encoded.len()
}

#[test]
fn equals_transformers_on_the_golden_files() {
    for name in [
        "bert-uncased",
        "bert-uncased-json",
        "bert-cased",
        "bert-cased-json",
        "roberta",
        "gpt2",
        "deberta",
        "deberta-v2",
        "deberta-v2-lower",
    ] {
        let tokenizer = Tokenizer::from_dir(&fixture(name), None).unwrap();
        let expected = json(&fixture(name).join("expected.json"));
        assert!(check_cases(&tokenizer, &expected) > 150);
        if name.starts_with("deberta-v2") {
            let other = Tokenizer::from_dir(&fixture(&format!("{name}-json")), None).unwrap();
            assert_eq!(
                (tokenizer.source(), other.source()),
                ("spm.model", "tokenizer.json")
            );
            assert!(check_cases(&other, &expected) > 150);
        }
    }
}

#[test]
fn a_golden_file_with_one_wrong_id_is_noticed() {
    let tokenizer = Tokenizer::from_dir(&fixture("bert-cased"), None).unwrap();
    let mut expected = json(&fixture("bert-cased").join("expected.json"));
    expected["encoded"][20]["input_ids"][1] = 1.into();
    expected["encoded"][20]["input_ids"][2] = 2.into();
    let caught = std::panic::catch_unwind(|| check_cases(&tokenizer, &expected));
    assert!(caught.is_err());
}

/// A file made with `--dir` and `--out`: thousands of random strings through a real tokenizer.
#[test]
fn equals_transformers_on_the_files_named_by_the_environment() {
    let Ok(files) = std::env::var("LOWRANK_TOKENIZER_CASES") else {
        println!("SKIPPED: LOWRANK_TOKENIZER_CASES names no file");
        return;
    };
    for file in files.split(':') {
        let expected = json(Path::new(file));
        let tokenizer =
            Tokenizer::from_dir(Path::new(expected["dir"].as_str().unwrap()), None).unwrap();
        println!(
            "{file}: {} texts are equal",
            check_cases(&tokenizer, &expected)
        );
    }
}

#[test]
fn the_hard_strings_on_real_tokenizers() {
    for (key, dir, family) in [
        ("roberta", "artifacts/roberta", TokenizerFamily::Roberta),
        ("gpt2", "artifacts/gpt2", TokenizerFamily::Gpt2),
        (
            "deberta_v3_spm_no_special",
            "artifacts/deberta-v3",
            TokenizerFamily::DebertaV2,
        ),
    ] {
        let (Some(dir), Some(expected)) =
            (shared(dir), shared("artifacts/tokenizer_expected.json"))
        else {
            return;
        };
        let tokenizer = Tokenizer::from_dir(&dir, Some(family)).unwrap();
        let cases = json(&expected);
        assert_eq!(cases.as_array().unwrap().len(), 15);
        for case in cases.as_array().unwrap() {
            let got = tokenizer
                .encode(case["text"].as_str().unwrap(), None, None)
                .unwrap();
            let mut expected = ids(&case[key]);
            if key.ends_with("no_special") {
                expected.insert(0, 1);
                expected.push(2);
            }
            assert_eq!(got.input_ids, expected, "{case}");
        }
    }
}

/// The directory of a real BERT-uncased tokenizer (MiniLM's) may be named; both of its forms are
/// tried.
#[test]
fn the_hard_strings_on_real_bert() {
    let (Ok(dir), Some(expected)) = (
        std::env::var("LOWRANK_BERT_TOKENIZER"),
        shared("artifacts/tokenizer_expected.json"),
    ) else {
        println!("SKIPPED: LOWRANK_BERT_TOKENIZER names no directory");
        return;
    };
    let only_vocab = std::env::temp_dir().join(format!("lowrank-data-bert-{}", std::process::id()));
    std::fs::create_dir_all(&only_vocab).unwrap();
    for file in ["vocab.txt", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&dir).join(file), only_vocab.join(file)).unwrap();
    }
    for dir in [Path::new(&dir), &only_vocab] {
        let tokenizer = Tokenizer::from_dir(dir, None).unwrap();
        assert_eq!(tokenizer.vocab_size(), 30522);
        for case in json(&expected).as_array().unwrap() {
            let got = tokenizer
                .encode(case["text"].as_str().unwrap(), None, None)
                .unwrap();
            assert_eq!(got.input_ids, ids(&case["bert_uncased"]), "{case}");
        }
    }
    std::fs::remove_dir_all(only_vocab).unwrap();
}

#[test]
fn settings_baked_into_the_file_do_not_decide_the_length() {
    let tokenizer = Tokenizer::from_dir(&fixture("bert-uncased-json"), None).unwrap();
    let long = "The film is slow, the acting is poor, and the ending makes no sense at all.";
    assert!(tokenizer.encode(long, None, None).unwrap().input_ids.len() > 12);
    assert_eq!(
        tokenizer
            .encode("film", None, None)
            .unwrap()
            .input_ids
            .len(),
        3
    );
    assert_eq!(tokenizer.model_max_length(), None);
    assert_eq!(
        Tokenizer::from_dir(&fixture("bert-uncased"), None)
            .unwrap()
            .model_max_length(),
        Some(32)
    );
}

#[test]
fn labels_go_to_the_first_token_of_each_word() {
    let tokenizer = Tokenizer::from_dir(&fixture("bert-uncased"), None).unwrap();
    let words = ["The", "unreadable", "film"].map(String::from);
    let encoded = tokenizer.encode_words(&words, None).unwrap();
    let labels = encoded.align(&[0, 1, 2]);
    assert_eq!(labels.len(), encoded.encoded.input_ids.len());
    assert_eq!(labels.first(), Some(&IGNORE_INDEX));
    assert_eq!(labels.last(), Some(&IGNORE_INDEX));
    let counted: Vec<i64> = labels
        .iter()
        .copied()
        .filter(|label| *label != IGNORE_INDEX)
        .collect();
    assert_eq!(counted, [0, 1, 2]);
}

/// A directory with some files, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("lowrank-data-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for (file, content) in files {
            std::fs::write(path.join(file), content).unwrap();
        }
        Self(path)
    }

    fn error(&self) -> TokenizerError {
        Tokenizer::from_dir(&self.0, None).unwrap_err()
    }

    fn message(&self) -> String {
        self.error()
            .to_string()
            .replace(&self.0.display().to_string(), "DIR")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_missing_is_said() {
    let dir = Dir::new("nothing", &[]);
    assert_eq!(
        dir.message(),
        "`DIR` holds no tokenizer (looked for `tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt`, `spm.model`, \
         `sentencepiece.bpe.model`, `tokenizer.model`)"
    );
    let dir = Dir::new("no-merges", &[("vocab.json", "{\"<s>\": 0}")]);
    assert_eq!(
        dir.message(),
        "`DIR` holds `vocab.json` without `merges.txt`: the merges of a byte-level BPE cannot be guessed"
    );
    assert!(dir.error().hint().unwrap().contains("input_ids"));
    let dir = Dir::new("spm", &[("sentencepiece.bpe.model", "x")]);
    assert_eq!(
        dir.message(),
        "`DIR/sentencepiece.bpe.model`: not a SentencePiece model, or cut off"
    );
    let dir = Dir::new("no-cls", &[("vocab.txt", "[UNK]\n[SEP]\na\n")]);
    assert_eq!(
        dir.message(),
        "`DIR/vocab.txt` has no entry for the cls token `[CLS]`"
    );
    if let Some(dir) = shared("models/sapiens-roberta") {
        assert!(matches!(
            Tokenizer::from_dir(&dir, None),
            Err(TokenizerError::NoMerges { .. })
        ));
    }
}

#[test]
fn broken_files_are_said_with_their_line() {
    let vocab = "{\"<s>\": 0, \"</s>\": 1, \"a\": 2, \"b\": 3, \"ab\": 4}";
    for (name, merges, expected) in [
        (
            "one",
            "#version: 0.2\na b\na\n",
            "`DIR/merges.txt`, line 3: expected two symbols with a space between them, found `a`",
        ),
        (
            "three",
            "a b c\n",
            "`DIR/merges.txt`, line 1: expected two symbols with a space between them, found `a b c`",
        ),
        (
            "foreign",
            "a b\na c\n",
            "`DIR/merges.txt`, line 2: `c` is not in `vocab.json`",
        ),
    ] {
        let dir = Dir::new(
            &format!("merges-{name}"),
            &[("vocab.json", vocab), ("merges.txt", merges)],
        );
        assert_eq!(dir.message(), expected);
    }
    let dir = Dir::new(
        "vocab-json",
        &[("vocab.json", "{\"a\": -1}"), ("merges.txt", "")],
    );
    assert_eq!(
        dir.message(),
        "`DIR/vocab.json`: the id of `a` is not a token id: `-1`"
    );
    let dir = Dir::new("not-json", &[("tokenizer.json", "{\n\"version\": \n}")]);
    assert!(
        dir.message()
            .starts_with("`DIR/tokenizer.json`, line 3: not JSON: "),
        "{}",
        dir.message()
    );
    let dir = Dir::new(
        "no-tokenizer",
        &[("tokenizer.json", "{\"version\": \"1.0\"}")],
    );
    assert!(
        dir.message().starts_with("`DIR/tokenizer.json`: "),
        "{}",
        dir.message()
    );
    let dir = Dir::new(
        "config",
        &[
            ("vocab.txt", "[UNK]\n[CLS]\n[SEP]\n"),
            ("tokenizer_config.json", "[1]"),
        ],
    );
    assert_eq!(
        dir.message(),
        "`DIR/tokenizer_config.json`: expected a JSON object"
    );
}

/// A template that speaks of a token or a text that is not there must be an error when loading, not
/// a panic in training.
#[test]
fn contradictions_are_found_when_loading() {
    let mut file = json(&fixture("bert-uncased-json").join("tokenizer.json"));
    file["post_processor"]["single"] = serde_json::json!([{"Sequence": {"id": "B", "type_id": 0}}]);
    let dir = Dir::new("template", &[("tokenizer.json", &file.to_string())]);
    assert!(
        matches!(dir.error(), TokenizerError::Malformed { .. }),
        "{}",
        dir.message()
    );
}

#[test]
fn files_are_copied_unchanged() {
    let target = Dir::new("copy", &[]);
    Tokenizer::from_dir(&fixture("roberta"), None)
        .unwrap()
        .save_files(&target.0)
        .unwrap();
    for file in [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        assert_eq!(
            std::fs::read(target.0.join(file)).unwrap(),
            std::fs::read(fixture("roberta").join(file)).unwrap()
        );
    }
    let error = Tokenizer::from_dir(&fixture("roberta"), None)
        .unwrap()
        .save_files(&target.0.join("none"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("none/"), "{error}");
}

#[test]
fn the_family_is_told_by_class_and_model_type() {
    for (name, family) in [
        ("BertTokenizerFast", Some(TokenizerFamily::Bert)),
        ("roberta", Some(TokenizerFamily::Roberta)),
        ("RobertaTokenizer", Some(TokenizerFamily::Roberta)),
        ("GPT2Tokenizer", Some(TokenizerFamily::Gpt2)),
        ("XLMRobertaTokenizer", Some(TokenizerFamily::XlmRoberta)),
        ("xlm-roberta", Some(TokenizerFamily::XlmRoberta)),
        ("BertJapaneseTokenizer", None),
        ("BertweetTokenizer", None),
        ("CamembertTokenizerFast", None),
        ("HerbertTokenizer", None),
        ("RoFormerTokenizer", None),
        ("gpt_neo", Some(TokenizerFamily::Gpt2)),
        ("DebertaV2Tokenizer", Some(TokenizerFamily::DebertaV2)),
        ("deberta-v2", Some(TokenizerFamily::DebertaV2)),
        ("DebertaTokenizerFast", Some(TokenizerFamily::Deberta)),
        ("llama", Some(TokenizerFamily::Llama)),
    ] {
        assert_eq!(TokenizerFamily::from_name(name), family, "{name}");
    }
}

/// Any damage is an error or a tokenizer that works; never a panic that reaches the caller.
#[test]
fn damaged_files_do_not_panic() {
    let mut state = 1u64;
    let mut next = |bound: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    for (fixture_name, file) in [
        ("bert-uncased-json", "tokenizer.json"),
        ("bert-uncased", "vocab.txt"),
        ("bert-uncased", "tokenizer_config.json"),
        ("roberta", "vocab.json"),
        ("roberta", "merges.txt"),
        ("roberta", "special_tokens_map.json"),
        ("deberta-v2", "spm.model"),
    ] {
        let good = std::fs::read(fixture(fixture_name).join(file)).unwrap();
        let dir = Dir::new(&format!("damaged-{file}"), &[]);
        Tokenizer::from_dir(&fixture(fixture_name), None)
            .unwrap()
            .save_files(&dir.0)
            .unwrap();
        for round in 0..60 {
            let mut bad = good.clone();
            match round % 3 {
                0 => bad.truncate(next(good.len())),
                1 => {
                    let at = next(good.len());
                    bad[at] = next(256) as u8;
                }
                _ => {
                    let (from, to) = (next(good.len()), next(good.len()));
                    bad.drain(from.min(to)..(from.max(to)).min(from.min(to) + 40));
                }
            }
            std::fs::write(dir.0.join(file), bad).unwrap();
            match Tokenizer::from_dir(&dir.0, None) {
                Err(error) => assert!(!error.to_string().is_empty()),
                Ok(tokenizer) => {
                    let _ = tokenizer.encode("The film's naïve 12 <mask>", Some("x"), Some(9));
                }
            }
        }
    }
}

#[test]
fn a_tokenizer_that_is_no_json_says_its_line() {
    // The library panics on this one: its reader of decoders expects sound JSON.
    let text = "{\n\"decoder\": {\"type:\"x\"}}";
    let dir = Dir::new("no-json", &[("tokenizer.json", text)]);
    let message = dir.message();
    assert!(
        message.starts_with("`DIR/tokenizer.json`, line 2: "),
        "{message}"
    );
}
