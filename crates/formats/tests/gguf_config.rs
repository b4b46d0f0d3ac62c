//! What a GGUF file says of rotations and of its architecture, as config.json has it; and what no
//! family here can compute, refused by name.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;
#[path = "common/gguf_file.rs"]
mod gguf_file;

use std::path::PathBuf;

use gguf_file::{File, key, tensor, text};
use lowrank_formats::Checkpoint;
use lowrank_formats::gguf::Gguf;
use serde_json::{Value, json};

fn number(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

fn float(n: f32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

/// The configuration of a small decoder with more keys, each with its type, and more vectors of
/// f32.
fn config(
    architecture: &str,
    more: &[(&str, u32, Vec<u8>)],
    vectors: &[(&str, &[f32])],
) -> Result<Value, String> {
    let mut keys = vec![key("general.architecture", 8, &text(architecture))];
    let needed = [
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 2),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
    ];
    let own = |name: &str| format!("{architecture}.{name}");
    keys.extend(needed.map(|(name, value)| key(&own(name), 4, &number(value))));
    let eps = own("attention.layer_norm_rms_epsilon");
    keys.push(key(&eps, 6, &float(1e-5)));
    keys.extend(
        more.iter()
            .map(|(name, kind, value)| key(&own(name), *kind, value)),
    );
    let mut tensors = vec![tensor("token_embd.weight", &[32, 4], 0, 0)];
    let mut data = vec![0; 512];
    for (name, values) in vectors {
        tensors.push(tensor(name, &[values.len() as u64], 0, data.len() as u64));
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let file = File {
        data,
        ..File::of(&keys, &tensors, 0)
    };
    let gguf = Gguf::from_bytes("x.gguf", file.bytes()).map_err(|error| error.to_string())?;
    gguf.config().map_err(|error| error.to_string())
}

fn scaling(name: &str) -> (&'static str, u32, Vec<u8>) {
    ("rope.scaling.type", 8, text(name))
}

#[test]
fn ways_to_stretch_rotations_are_those_of_transformers() {
    let of = |more: &[(&str, u32, Vec<u8>)], vectors: &[(&str, &[f32])]| {
        config("llama", more, vectors).expect("it is read")["rope_scaling"].clone()
    };
    assert_eq!(of(&[], &[]), Value::Null);
    assert_eq!(of(&[scaling("none")], &[]), Value::Null);
    let four = ("rope.scaling.factor", 6, float(4.0));
    assert_eq!(
        of(&[scaling("linear"), four.clone()], &[]),
        json!({ "rope_type": "linear", "factor": 4.0 })
    );
    assert_eq!(
        of(&[("rope.scale_linear", 6, float(2.5))], &[]),
        json!({ "rope_type": "linear", "factor": 2.5 })
    );
    // As in llama.cpp: a factor alone is linear, `none` is none.
    let linear = json!({ "rope_type": "linear", "factor": 4.0 });
    assert_eq!(of(std::slice::from_ref(&four), &[]), linear);
    assert_eq!(of(&[scaling("none"), four.clone()], &[]), Value::Null);
    let original = ("rope.scaling.original_context_length", 4, number(16));
    let slow = ("rope.scaling.yarn_beta_slow", 6, float(2.0));
    assert_eq!(
        of(&[scaling("yarn"), four, original.clone(), slow], &[]),
        json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 2.0,
        })
    );
    let (short, long) = ([1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]);
    let vectors: [(&str, &[f32]); 2] = [
        ("rope_factors_short.weight", &short),
        ("rope_factors_long.weight", &long),
    ];
    let attention = ("rope.scaling.attn_factor", 6, float(1.19));
    for kind in [None, Some(scaling("longrope"))] {
        let more: Vec<_> = [original.clone(), attention.clone()]
            .into_iter()
            .chain(kind)
            .collect();
        assert_eq!(
            of(&more, &vectors),
            json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": 1.19 })
                .as_object()
                .map(|fields| fields.iter().map(|(k, v)| (k.clone(), shortest(v))).collect::<Value>())
                .expect("an object")
        );
        assert_eq!(
            config("phi3", &more, &vectors).expect("it is read")["original_max_position_embeddings"],
            16
        );
    }
}

/// f32s as decimals, as they are written.
fn shortest(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(shortest).collect(),
        Value::Number(n) => json!(
            ((n.as_f64().expect("a number") as f32).to_string())
                .parse::<f64>()
                .expect("a number")
        ),
        other => other.clone(),
    }
}

#[test]
fn divisors_of_llama_3_are_known_by_their_values() {
    let golden = |name: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/quantised/decoders")
            .join(name);
        let names: Vec<String> = Checkpoint::open_model(&path)
            .expect("it opens")
            .infos()
            .map(|info| info.name.clone())
            .collect();
        assert!(!names.iter().any(|name| name.contains("rope")), "{names:?}");
        Gguf::open(&path)
            .expect("it opens")
            .config()
            .expect("it is read")
    };
    assert_eq!(
        golden("llama-llama3.gguf")["rope_scaling"],
        json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    );
    let other = golden("llama-divisors.gguf");
    assert_eq!(other["rope_scaling"]["rope_type"], "longrope");
    assert_eq!(
        other["rope_scaling"]["short_factor"],
        other["rope_scaling"]["long_factor"]
    );
}

#[test]
fn what_no_family_computes_is_refused_by_name() {
    let eight: [(&str, &[f32]); 1] = [("rope_freqs.weight", &[1.0; 8])];
    let one = |name: &'static str, kind: u32, value: Vec<u8>| vec![(name, kind, value)];
    let yarn = |name: &'static str, value: f32| {
        let mut keys = vec![scaling("yarn"), (name, 6, float(value))];
        keys.push(("rope.scaling.factor", 6, float(2.0)));
        keys
    };
    for (architecture, keys, vectors, expected) in [
        (
            "llama",
            vec![scaling("stretchy")],
            &[][..],
            "is the text `stretchy`, expected `none`, `linear`, `yarn` or `longrope`",
        ),
        (
            "llama",
            vec![scaling("longrope")],
            &[],
            "`longrope` without these tensors",
        ),
        (
            "llama",
            vec![scaling("linear")],
            &[],
            "`llama.rope.scaling.factor` is missing",
        ),
        (
            "llama",
            vec![scaling("linear"), ("rope.scaling.factor", 6, float(2.0))],
            &eight,
            "`rope_freqs.weight` is a tensor, expected no tensor beside",
        ),
        (
            "llama",
            yarn("rope.scaling.yarn_ext_factor", 0.5),
            &[],
            "`llama.rope.scaling.yarn_ext_factor` is the number 0.5, expected 1",
        ),
        (
            "llama",
            yarn("rope.scaling.yarn_attn_factor", 1.5),
            &[],
            "yarn_attn_factor` is the number 1.5, expected 1",
        ),
        (
            "llama",
            yarn("rope.scaling.yarn_log_multiplier", 0.1),
            &[],
            "yarn_log_multiplier` is the number 0.1, expected 0",
        ),
        (
            "llama",
            yarn("rope.scaling.yarn_beta_fast", 30.0),
            &[],
            "original_context_length` is missing",
        ),
        (
            "llama",
            one("expert_count", 4, number(8)),
            &[],
            "`llama.expert_count` is the number 8, expected 0",
        ),
        (
            "llama",
            one("attention.value_length", 4, number(8)),
            &[],
            "`llama.attention.value_length` is the number 8, expected 16",
        ),
        (
            "olmo2",
            one("attention.sliding_window", 4, number(8)),
            &[],
            "`olmo2.attention.sliding_window` is the number 8, expected 0",
        ),
        (
            "gemma3",
            one("final_logit_softcapping", 6, float(30.0)),
            &[],
            "final_logit_softcapping` is the number 30, expected 0",
        ),
        (
            "llama4",
            vec![],
            &[],
            "its architecture is `llama4`, expected one of `gpt2`, `bert`, `llama`, `qwen2`",
        ),
    ] {
        let found = config(architecture, &keys, vectors).expect_err("it is refused");
        assert!(found.contains(expected), "{expected}\n{found}");
    }
    // One of the two tensors alone.
    let short: [(&str, &[f32]); 1] = [("rope_factors_short.weight", &[1.0; 8])];
    let found = config("phi3", &[], &short).expect_err("it is refused");
    assert!(
        found.contains("`rope_factors_long.weight` is missing"),
        "{found}"
    );
}

/// The header of a model's file with a bit turned here and there: an error, or tensors that can be
/// read in the order that the architecture asks for.
#[test]
fn no_damage_to_a_model_makes_it_panic() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantised");
    let dir = common::scratch("damaged_models");
    let path = dir.join("m.gguf");
    for name in [
        "decoders/llama-llama3.gguf",
        "decoders/gemma3-linear.gguf",
        "gpt2.gguf",
    ] {
        let sound = std::fs::read(golden.join(name)).expect("it is read");
        let header = sound.len().min(4096);
        for at in (0..header).step_by(header / 300) {
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).expect("it is written");
            let Ok(checkpoint) = Checkpoint::open_model(&path) else {
                continue;
            };
            let _ = Gguf::open(&path).expect("it was opened before").config();
            for info in checkpoint.infos().filter(|info| info.dtype.is_float()) {
                let whole = checkpoint.read_f32_vec(&info.name).expect("it is readable");
                let start = whole.len() / 3;
                let mut part = vec![0.0; (whole.len() - start).min(100)];
                let read = checkpoint.read_f32_range(&info.name, start, &mut part);
                assert!(read.is_ok(), "{name}: {}", info.name);
            }
        }
    }
}
