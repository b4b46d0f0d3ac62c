//! Any bytes as `spm.model`, and texts through it: an error or ids that are read back to text,
//! never a panic. One text is taken from the end of the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_data::{Tokenizer, TokenizerFamily};

fuzz_target!(init: {
    // The library under ours panics on files that contradict themselves, which ours turns into
    // errors: only a panic that comes out ends the run.
    std::panic::set_hook(Box::new(|_| {}));
}, |bytes: &[u8]| {
    let dir = std::env::temp_dir().join(format!("lowrank-fuzz-spm-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::write(dir.join("spm.model"), bytes).expect("a file");
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(48)..]);
    for settings in ["{}", r#"{"do_lower_case": true, "split_by_punct": true}"#] {
        std::fs::write(dir.join("tokenizer_config.json"), settings).expect("a file");
        let tokenizer = match Tokenizer::from_dir(&dir, Some(TokenizerFamily::DebertaV2)) {
            Err(error) => return drop((error.to_string(), error.hint())),
            Ok(tokenizer) => tokenizer,
        };
        for text in ["", "Ａ b [SEP] é\u{301} 漢字 ﬁ ½ \u{2581}", &tail] {
            if let Ok(encoded) = tokenizer.encode(text, Some(text), Some(16)) {
                assert!(encoded.input_ids.len() <= 16);
                drop(tokenizer.decode(&encoded.input_ids));
            }
            drop(tokenizer.encode_plain(text));
        }
    }
});
