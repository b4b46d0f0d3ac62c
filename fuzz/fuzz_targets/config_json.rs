//! Any JSON as a model's `config.json`: every kind of field is asked for, and rendering it gives
//! JSON that means the same.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lowrank_formats::{ConfigReader, to_python_json};

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return;
    };
    let reader = ConfigReader::new(Path::new("config.json"), &value).alias("hidden_size", "n_embd");
    let _ = reader.usize("hidden_size", 1..=65_536);
    let _ = reader.usize_or("num_labels", 2, 0..=usize::MAX);
    let _ = reader.f64("layer_norm_eps", 0.0..=1.0);
    let _ = reader.bool("tie_word_embeddings");
    let _ = reader.string("model_type");
    let _ = reader.opt_strings("architectures");
    let _ = reader.opt_string_map("id2label");
    let _ = reader.choice_or("hidden_act", 0, &[("gelu", 0), ("relu", 1)]);
    let _ = reader.finish().map_err(|error| error.to_string());
    let text = to_python_json(&value);
    assert!(text.is_ascii());
    let again: serde_json::Value = serde_json::from_str(&text).expect("what is rendered is JSON");
    assert_eq!(to_python_json(&again), text);
});
