//! Two real models in GGUF files: the perplexity of tinyshakespeare as `lowrank eval` gives it
//! equals that of transformers from the same decoded weights. Made by
//! `tools/golden/real_models.py`; skipped aloud without the files.

use std::path::Path;

use lowrank_testkit::{read_golden_json, real_model, shared_data};
use serde_json::{Value, json};

use crate::support::lowrank;

/// Of the perplexity. The peer sums in f64 and we in f32. Seen on an AMD EPYC (AVX-512, two
/// threads) over the whole text: 5.6e-8 of SmolLM2, 6.8e-8 of Gemma 3; of a page
/// 1.3e-7 at most.
const TOLERANCE: f64 = 1e-5;

/// How much of the text.
#[derive(Clone, Copy)]
enum Part {
    FirstPieces(usize),
    All,
}

/// The text in pieces of whole lines, of so many characters at least.
fn pieces(text: &str, least: usize) -> Vec<String> {
    let (mut found, mut piece) = (Vec::new(), String::new());
    for line in text.split_inclusive('\n') {
        piece.push_str(line);
        if piece.chars().count() >= least {
            found.push(std::mem::take(&mut piece).trim_end_matches('\n').to_owned());
        }
    }
    found.push(piece.trim_end_matches('\n').to_owned());
    found.retain(|piece| !piece.is_empty());
    found
}

fn check(name: &str, file: &str, part: Part) {
    let Some(model) = real_model(&Path::new(name).join(file)) else {
        return;
    };
    let Some(text) = shared_data(Path::new("tinyshakespeare/test.txt")) else {
        return;
    };
    let golden = read_golden_json("quantised/real/perplexity.json").expect("golden numbers");
    let least = golden["characters a piece at least"]
        .as_u64()
        .expect("a number") as usize;
    let expected = golden["models"][name]["pieces"].as_array().expect("a list");
    let text = std::fs::read_to_string(text).expect("it is read");
    let pieces = pieces(&text, least);
    assert_eq!(pieces.len(), expected.len());
    let count = match part {
        Part::FirstPieces(count) => count,
        Part::All => pieces.len(),
    };
    let number = |piece: &Value, at: usize| piece[at].as_f64().expect("a number");
    let tokens: f64 = expected[..count].iter().map(|piece| number(piece, 0)).sum();
    let loss: f64 = expected[..count].iter().map(|piece| number(piece, 1)).sum();
    let wanted = (loss / (tokens - count as f64)).exp();

    let dir = tempfile::tempdir().expect("a folder");
    let rows = dir.path().join("pieces.jsonl");
    let lines = pieces[..count]
        .iter()
        .map(|piece| format!("{}\n", json!({ "text": piece })));
    std::fs::write(&rows, lines.collect::<String>()).expect("it is written");
    let (model, rows) = (model.display().to_string(), rows.display().to_string());
    let line = "eval --task causal_lm --precision f32 --max-length 4096 --per-device-eval-batch-size 1 --json --model";
    let words = line
        .split(' ')
        .chain([model.as_str(), "--data-file", &rows]);
    let found = lowrank(&words.collect::<Vec<_>>()).ok().json();
    assert_eq!(found["tokens"].as_f64(), Some(tokens), "{name}: tokens");
    let perplexity = found["metrics"]["perplexity"].as_f64().expect("a number");
    let error = (perplexity / wanted - 1.0).abs();
    println!(
        "{name}, {count} pieces: perplexity {perplexity}, expected {wanted}, relative error {error:e}"
    );
    assert!(
        error <= TOLERANCE,
        "{name}: perplexity {perplexity}, expected {wanted}"
    );
}

const SMOLLM2: (&str, &str) = ("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
const GEMMA_3: (&str, &str) = ("gemma3-270m", "gemma-3-270m-q4_k_m.gguf");

#[test]
fn the_perplexity_of_a_page_is_that_of_transformers() {
    for (name, file) in [SMOLLM2, GEMMA_3] {
        check(name, file, Part::FirstPieces(1));
    }
}

#[test]
#[ignore = "slow: minutes; `cargo xtask real-models` runs it"]
fn the_perplexity_of_the_whole_text_is_that_of_transformers() {
    for (name, file) in [SMOLLM2, GEMMA_3] {
        check(name, file, Part::All);
    }
}
