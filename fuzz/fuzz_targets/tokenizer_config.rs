//! Any bytes as tokenizer_config.json, special_tokens_map.json and added_tokens.json beside a small
//! vocabulary: an error, or a tokenizer whose ids are read back to text, never a panic. A line of
//! `---` parts the files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_data::{Tokenizer, TokenizerFamily};

const FILES: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

fuzz_target!(init: {
    // A panic that the reader catches is an error; only one that comes out ends the run.
    std::panic::set_hook(Box::new(|_| {}));
}, |bytes: &[u8]| {
    let dir = std::env::temp_dir().join(format!("lowrank-fuzz-config-{}", std::process::id()));
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::write(dir.join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##c\n").expect("a file");
    let text = String::from_utf8_lossy(bytes);
    for (name, part) in FILES.iter().zip(text.split("\n---\n")) {
        std::fs::write(dir.join(name), part).expect("a file");
    }
    for family in ["bert", "roberta", "gpt2"] {
        match Tokenizer::from_dir(&dir, TokenizerFamily::from_name(family)) {
            Err(error) => drop((error.to_string(), error.hint())),
            Ok(tokenizer) => {
                if let Ok(encoded) = tokenizer.encode("a bc [MASK] é", Some("b"), Some(16)) {
                    drop(tokenizer.decode(&encoded.input_ids));
                }
            }
        }
    }
});
