//! Every field of generation_config.json against transformers: tokens of greedy and beam search,
//! and, as random streams differ, the scores that are drawn from. Made by
//! tools/golden/generation.py.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use lowrank_engine::{Device, Host, Isa};
use lowrank_formats::read_json;
use serde_json::Value;

use super::beam::process;
use super::config::{GenerationConfig, GenerationFile};
use super::options::{Generate, Search};
use super::rules::{At, Rules};
use super::warp::warp;
use crate::config::Task;
use crate::load::LoadOptions;
use crate::model::Model;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");

fn cases(kind: &str) -> Vec<Value> {
    let path = Path::new(GOLDEN).join("generation.json");
    let mut file = read_json(&path).expect("it is read");
    serde_json::from_value(file[kind].take()).expect("a list")
}

fn options(case: &Value) -> Generate {
    let path = Path::new("generation_config.json");
    let bytes = case["config"].to_string().into_bytes();
    let file = GenerationFile::parse(path, &bytes).expect("it is read");
    assert!(file.unknown().is_empty(), "{:?}", file.unknown());
    file.config.options(1)
}

fn tokens(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

fn model(name: &str) -> Model {
    let folder = Path::new(GOLDEN).join(name);
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let loaded = Model::load(&folder.join("model"), &options, &device);
    let (mut model, _) = loaded.expect("it loads");
    model
        .load_adapter(&folder.join("adapter"))
        .expect("it fits");
    model
}

#[test]
fn each_field_gives_the_peers_tokens() {
    let mut loaded: Option<(String, Model)> = None;
    let mut fields = BTreeSet::new();
    for case in cases("searches") {
        let name = case["model"].as_str().expect("a name").to_owned();
        if loaded.as_ref().is_none_or(|(old, _)| *old != name) {
            loaded = Some((name.clone(), model(&name)));
        }
        let (_, model) = loaded.as_ref().expect("it was loaded");
        fields.extend(case["config"].as_object().expect("fields").keys().cloned());
        let prompts: Vec<_> = case["prompts"].as_array().expect("a list").iter().collect();
        let prompts: Vec<Vec<u32>> = prompts.into_iter().map(tokens).collect();
        // All prompts at once here, each by itself there.
        let found = model.generate(&prompts, &options(&case));
        let found: Vec<_> = found.expect("it generates").into_iter().collect();
        let expected = case["tokens"].as_array().expect("a list");
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.tokens, tokens(expected), "{name}: {}", case["name"]);
        }
        assert_eq!(found.len(), expected.len());
    }
    let scores = cases("scores");
    for case in &scores {
        fields.extend(case["config"].as_object().expect("fields").keys().cloned());
    }
    // Texts are not this crate's matter.
    fields.insert("stop_strings".to_owned());
    let missing: Vec<_> = GenerationConfig::NAMES
        .iter()
        .filter(|name| !fields.contains(**name))
        .collect();
    assert!(missing.is_empty(), "fields without a case: {missing:?}");
}

/// As the draw of a search takes them.
fn scores_of(options: &Generate, at: At, logits: &[f32]) -> Vec<f32> {
    let mut scores = logits.to_vec();
    let rules = Rules::of(&Arc::new(options.clone()), scores.len());
    match options.search {
        Search::Beam(form) => {
            process(Host::default(), &rules, form.sampling, at, &mut scores).expect("numbers");
        }
        Search::Sample(sampling) => {
            rules.apply(at, &mut scores);
            warp(&sampling, 1, &mut scores);
        }
        Search::Greedy => unreachable!("every case draws"),
    }
    scores
}

#[test]
fn what_is_drawn_from_is_what_the_peer_draws_from() {
    let cases = cases("scores");
    assert!(cases.len() >= 30);
    for case in cases {
        let (name, options) = (&case["name"], options(&case));
        let logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).expect("numbers");
        let tokens = tokens(&case["tokens"]);
        let prompt_len = case["prompt_tokens"].as_u64().expect("a number") as usize;
        let room = options.max_new_tokens;
        let at = At {
            tokens: &tokens,
            prompt_len,
            room,
        };
        let found = scores_of(&options, at, &logits);
        let expected: Vec<Option<f32>> =
            serde_json::from_value(case["scores"].clone()).expect("numbers");
        // Without beams the level is not looked at: a draw hangs on differences.
        let level = |scores: &mut dyn Iterator<Item = f32>| match options.search {
            Search::Beam(_) => 0.0,
            Search::Greedy | Search::Sample(_) => scores.fold(f32::MIN, f32::max),
        };
        let top = level(&mut expected.iter().copied().flatten());
        let own = level(&mut found.iter().copied());
        for (token, (found, expected)) in found.iter().zip(&expected).enumerate() {
            match expected {
                None => assert_eq!(*found, f32::NEG_INFINITY, "{name}, token {token}"),
                Some(expected) => {
                    let error = ((found - own) - (expected - top)).abs();
                    assert!(error <= 1e-5, "{name}, token {token}: {found}, {expected}");
                }
            }
        }
    }
}
