//! Any text as a file of settings: an error with a line, or settings that are written and read back
//! as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/cli/src/yaml.rs"]
mod yaml;

fuzz_target!(|text: &str| {
    let Ok(entries) = yaml::parse(text) else { return };
    let map: serde_json::Map<_, _> = entries.into_iter().map(|e| (e.key, e.value)).collect();
    let written = yaml::to_yaml(&map);
    let back = yaml::parse(&written).expect("what is written is read");
    // A setting without a value is not written.
    assert_eq!(back.len(), map.values().filter(|value| !value.is_null()).count(), "{written}");
    for entry in back {
        assert_eq!(Some(&entry.value), map.get(&entry.key), "{written}");
    }
});
