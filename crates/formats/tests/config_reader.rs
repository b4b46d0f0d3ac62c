//! `config.json`: fields with their ranges, aliases and defaults, and all faults of a file in one
//! message.

use std::path::Path;

use lowrank_formats::ConfigReader;
use serde_json::json;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Gelu,
    Relu,
}

const ACTS: [(&str, Act); 2] = [("gelu", Act::Gelu), ("relu", Act::Relu)];

#[test]
fn fields_are_read_with_aliases_and_defaults() {
    let value = json!({
        "n_embd": 64, "hidden_act": "relu", "eps": 1e-5, "flag": true, "name": "x", "null": null, "n_layer": 3,
        "num_hidden_layers": 4, "id2label": {"0": "no", "1": "yes"}, "architectures": ["A"]
    });
    let reader = ConfigReader::new(Path::new("config.json"), &value)
        .alias("hidden_size", "n_embd")
        .alias("num_hidden_layers", "n_layer");
    assert_eq!(reader.usize("hidden_size", 1..=100), 64);
    assert_eq!(reader.usize("num_hidden_layers", 1..=100), 4);
    assert_eq!(reader.choice("hidden_act", &ACTS), Act::Relu);
    assert_eq!(reader.choice_or("other_act", Act::Gelu, &ACTS), Act::Gelu);
    assert_eq!(reader.f64("eps", 0.0..=1.0), 1e-5);
    assert_eq!(reader.f64("n_layer", 0.0..=5.0), 3.0);
    assert!(reader.bool("flag") && !reader.bool_or("null", false));
    assert_eq!(reader.string("name"), "x");
    assert_eq!(reader.string_or("null", "default"), "default");
    assert_eq!(reader.usize_or("null", 7, 1..=9), 7);
    assert_eq!(reader.opt_f64("missing", 0.0..=1.0), None);
    assert_eq!(reader.opt_strings("architectures"), Some(vec!["A".into()]));
    let labels = reader.opt_string_map("id2label").unwrap();
    assert_eq!(
        labels,
        [("0".into(), "no".into()), ("1".into(), "yes".into())]
    );
    assert!(reader.has("name") && !reader.has("null") && !reader.has("missing"));
    assert!(reader.raw("null").unwrap().is_null());
    reader.finish().unwrap();
}

#[test]
fn every_fault_is_in_one_message() {
    let value = json!({
        "hiden_size": 64, "vocab_size": 0, "layers": 1.5, "negative": -1, "eps": "1e-5", "big": 1e300, "flag": "yes",
        "name": 5, "act": "gelo", "labels": {"0": 1}, "list": ["a", 1], "huge": 18_446_744_073_709_551_615u64
    });
    let reader = ConfigReader::new(Path::new("model/config.json"), &value);
    // Stand-ins keep the reader going.
    assert_eq!(reader.usize("hidden_size", 1..=65_536), 1);
    assert_eq!(reader.usize("vocab_size", 1..=10), 1);
    reader.usize("layers", 1..=10);
    reader.usize_or("negative", 3, 0..=10);
    reader.usize("huge", 1..=10);
    reader.usize("gone", 1..=usize::MAX);
    reader.f64("eps", 0.0..=1.0);
    reader.f64("big", 0.0..=f64::INFINITY);
    reader.f64("big", f64::NEG_INFINITY..=0.0);
    reader.bool("flag");
    assert_eq!(reader.string("name"), "");
    assert_eq!(reader.choice("act", &ACTS), Act::Gelu);
    reader.opt_string_map("labels");
    reader.opt_strings("list");
    reader.fault(
        "heads",
        "expected a divisor of `hidden_size` (64), found `7`",
    );
    assert_eq!(
        reader.finish().unwrap_err().to_string(),
        "`model/config.json` has 14 faults
  hidden_size: missing, expected an integer from 1 to 65536; did you mean `hiden_size`?
  vocab_size: expected an integer from 1 to 10, found `0`
  layers: expected an integer from 1 to 10, found `1.5`
  negative: expected an integer from 0 to 10, found `-1`
  huge: expected an integer from 1 to 10, found `18446744073709551615`
  gone: missing, expected an integer from 1 on
  eps: expected a number from 0 to 1, found `\"1e-5\"`
  big: expected a number up to 0, found `1e+300`
  flag: expected true or false, found `\"yes\"`
  name: expected text, found `5`
  act: expected one of `gelu`, `relu`, found `gelo`; did you mean `gelu`?
  labels: expected an object of text, found `{\"0\":1}`
  list: expected a list of text, found `[\"a\",1]`
  heads: expected a divisor of `hidden_size` (64), found `7`"
    );
}

#[test]
fn a_file_that_is_no_object_has_that_one_fault() {
    let value = json!([1, 2]);
    let reader = ConfigReader::new(Path::new("config.json"), &value);
    assert_eq!(reader.usize("hidden_size", 1..=10), 1);
    assert_eq!(reader.opt_string("name"), None);
    assert_eq!(
        reader.finish().unwrap_err().to_string(),
        "`config.json` has a fault\n  (whole file): expected a JSON object"
    );
}

#[test]
fn a_long_value_and_a_long_list_of_faults_are_cut() {
    let value = json!({ "long": "x".repeat(500) });
    let reader = ConfigReader::new(Path::new("config.json"), &value);
    reader.usize("long", 1..=2);
    for i in 0..30 {
        reader.bool(&format!("missing_key_number_{i}"));
    }
    let text = reader.finish().unwrap_err().to_string();
    assert!(text.starts_with("`config.json` has 31 faults"), "{text}");
    assert!(text.ends_with("\n  … and 11 more"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() < 160),
        "{text}"
    );
}
