//! Tokenizers from GGUF files: for each way of dividing text, the ids of 200 strings equal those of
//! llama.cpp. Golden files by `tools/fixtures/make_gguf_tokenizers.py`.

use std::path::{Path, PathBuf};

use lowrank_data::Tokenizer;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/gguf")
        .join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// `bpe.gguf` with another name of its pre-tokenizer: the file has no tensors, so that its bytes
/// may move.
fn with_pre(dir: &Path, pre: &str) -> PathBuf {
    let bytes = std::fs::read(fixture("bpe.gguf")).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes
        .windows(key.len())
        .position(|part| part == key)
        .unwrap()
        + key.len()
        + 4;
    let len = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let mut changed = bytes[..at].to_vec();
    changed.extend((pre.len() as u64).to_le_bytes());
    changed.extend(pre.as_bytes());
    changed.extend(&bytes[at + 8 + len..]);
    let path = dir.join(format!("{pre}.gguf"));
    std::fs::write(&path, changed).unwrap();
    path
}

#[test]
fn ids_equal_those_of_llama_cpp_for_each_way_of_dividing_text() {
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<String> = serde_json::from_value(read("texts.json")).unwrap();
    let all = read("ids.json");
    let mut faults = Vec::new();
    let mut checked = 0;
    for (name, wanted) in all.as_object().unwrap() {
        if name == "made" {
            continue;
        }
        let file = match name.strip_prefix("bpe ") {
            Some(pre) => with_pre(dir.path(), pre),
            None => fixture(&format!("{name}.gguf")),
        };
        let tokenizer = Tokenizer::of_model(&file, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let wanted: Vec<Vec<u32>> = serde_json::from_value(wanted.clone()).unwrap();
        assert_eq!((texts.len(), wanted.len()), (200, 200));
        let mut differ = 0;
        for (text, wanted) in texts.iter().zip(&wanted) {
            let found = tokenizer.encode_plain(text).unwrap();
            if found != *wanted {
                differ += 1;
                if differ <= 3 {
                    faults.push(format!("{name}: {text:?}\n  {found:?}\n  {wanted:?}"));
                }
            }
        }
        if differ > 0 {
            faults.push(format!("{name}: {differ} differ"));
        }
        checked += 1;
    }
    assert!(checked >= 18, "{checked} files");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_damage_makes_it_panic_and_what_is_taken_encodes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.gguf");
    for name in ["bpe", "spm", "bert"] {
        let sound = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
        for step in 0..60 {
            // Half of them where the keys are, at the beginning and at the end.
            let at = match step % 3 {
                0 => step * 9,
                1 => sound.len() - 1 - step * 7,
                _ => step * (sound.len() / 60),
            };
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << (step % 8);
            std::fs::write(&path, &damaged).unwrap();
            if let Ok(tokenizer) = Tokenizer::of_model(&path, None) {
                let _ = tokenizer.encode("the film 12", Some("is"), Some(64));
            }
        }
    }
}

#[test]
fn names_that_are_not_known_are_refused_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::of_model(&with_pre(dir.path(), "gpt2"), None).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`tokenizer.ggml.pre` is `gpt2`"), "{text}");
    assert!(text.contains("did you mean `gpt-2`?"), "{text}");
}

#[test]
fn unigram_models_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("unigram.gguf");
    let mut bytes = std::fs::read(fixture("bert.gguf")).unwrap();
    let key = [
        &b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0"[..],
        b"bert",
    ]
    .concat();
    let at = bytes.windows(key.len()).position(|part| part == key);
    let end = at.expect("the key is there") + key.len();
    // A text of two letters in place of one of four.
    bytes.splice(end - 12..end, *b"\x02\0\0\0\0\0\0\0t5");
    std::fs::write(&path, bytes).unwrap();
    let error = Tokenizer::of_model(&path, None).unwrap_err().to_string();
    assert!(error.contains("is `t5`, a unigram model"), "{error}");
}

#[test]
fn a_saved_tokenizer_gives_the_ids_of_its_file() {
    let texts: Vec<String> = serde_json::from_value(read("texts.json")).unwrap();
    for name in ["bpe", "spm", "spm-no-prefix", "bert"] {
        let own = Tokenizer::of_model(&fixture(&format!("{name}.gguf")), None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        own.save_files(dir.path()).unwrap();
        let saved = Tokenizer::from_dir(dir.path(), None).unwrap();
        for text in &texts {
            let (own, saved) = (own.encode(text, None, None), saved.encode(text, None, None));
            assert_eq!(own.unwrap(), saved.unwrap(), "{name}: {text:?}");
        }
    }
}
