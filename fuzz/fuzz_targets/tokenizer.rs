//! Any bytes as the files of a tokenizer, and any text through it: an error or ids, never a panic.
//! The first byte chooses the file, a line of `---` parts it from a second one and from the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_data::{Tokenizer, TokenizerFamily};

const FILES: [&[&str]; 4] = [
    &["vocab.txt"],
    &["tokenizer.json"],
    &["vocab.json", "merges.txt"],
    &["tokenizer.json", "tokenizer_config.json"],
];

fuzz_target!(init: {
    // The library under ours panics on files that contradict themselves, which ours turns into
    // errors: only a panic that comes out ends the run.
    std::panic::set_hook(Box::new(|_| {}));
}, |bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let names = FILES[usize::from(choice) % FILES.len()];
    let dir = std::env::temp_dir().join(format!("lowrank-fuzz-{}", std::process::id()));
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).expect("a folder");
    let text = String::from_utf8_lossy(rest);
    let parts: Vec<&str> = text.split("\n---\n").collect();
    for (name, part) in names.iter().zip(&parts) {
        std::fs::write(dir.join(name), part).expect("a file");
    }
    let sample = parts.get(names.len()).copied().unwrap_or("a b [SEP] é 漢");
    for family in ["bert", "roberta", "xlm-roberta", "gpt2"] {
        match Tokenizer::from_dir(&dir, TokenizerFamily::from_name(family)) {
            Err(error) => drop((error.to_string(), error.hint())),
            Ok(tokenizer) => drop(tokenizer.encode(sample, None, Some(16))),
        }
    }
});
