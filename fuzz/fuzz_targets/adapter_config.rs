//! Any bytes as `adapter_config.json`: an error, or a configuration that is written back to the
//! same bytes, whose changed form is read again, and whose patterns can be asked about any module.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lowrank_formats::peft::{LoraConfig, Matcher, PeftCompat};

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("adapter_config.json");
    let config = match LoraConfig::from_bytes(path, bytes.to_vec()) {
        Ok(config) => config,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    assert_eq!(config.to_bytes(), bytes);
    let _ = (config.unsupported_fields(), config.unknown_fields());
    for compat in [PeftCompat::Minimal, PeftCompat::Minor(14)] {
        LoraConfig::from_bytes(path, config.to_bytes_for(compat))
            .expect("an older form is readable");
    }
    if let Ok(matcher) = Matcher::new(&config) {
        let modules = [
            "roberta.encoder.layer.3.attention.self.query",
            "classifier.dense",
            "",
        ];
        let _ = matcher.unmatched(&modules, &modules);
        for module in modules {
            let _ = (
                matcher.is_target(module),
                matcher.scaling(module),
                matcher.is_module_to_save(module),
            );
        }
    }
    let changed = LoraConfig {
        r: config.r + 1,
        ..config
    };
    let text = changed.to_bytes();
    if changed.r <= 1 << 20 {
        let again = LoraConfig::from_bytes(path, text.clone()).expect("what we write we can read");
        assert_eq!(again.r, changed.r);
        assert_eq!(again.to_bytes(), text);
    }
});
