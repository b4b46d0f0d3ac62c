//! Any bytes as a generation_config.json: what is read can be shown, checked against a vocabulary
//! and laid over itself.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lowrank_model::GenerationFile;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("generation_config.json");
    let file = match GenerationFile::parse(path, bytes) {
        Ok(file) => file,
        Err(error) => return assert!(error.to_string().contains("generation_config.json")),
    };
    let same = file.config.clone().over(file.config.clone());
    // A length given twice takes the twin's place below it.
    assert_eq!(same, file.config);
    let options = same.options(1);
    let _ = (options.faults(), options.misfits(50));
    for field in [file.taken(&options.search), file.not_obeyed(&options.search)].concat() {
        assert!(field.value.len() < 400, "{} is cut", field.name);
        assert!(file.has(&field.name) || field.name == "top_k");
    }
    assert!(file.unknown().iter().all(|name| file.has(name)));
});
