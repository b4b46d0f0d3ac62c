//! GPT-2 as the paper adapts it, from the command line: its recipe, its data, queries and values
//! each at their own rank.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::language_model::Lab;

/// E2E rows, a checkpoint every three steps, and no end of positions.
const RECIPE: [&str; 18] = [
    "train",
    "--model",
    "@scratch/model",
    "--preset",
    "paper/gpt2-medium-e2e",
    "--train-file",
    "@e2e.jsonl",
    "--max-length",
    "48",
    "--max-steps",
    "9",
    "--warmup-steps",
    "2",
    "--lr",
    "0.01",
    "--save-steps",
    "3",
    "--output-dir",
];

fn lab() -> Lab {
    let lab = Lab::new();
    lab.scratch("@scratch").ok();
    let row = |name: &str, food: &str| {
        let texts = [
            format!("{name} serves {food} food."),
            format!("{food} food at {name}."),
        ];
        format!(
            "{}\n",
            json!({ "mr": format!("name[{name}], food[{food}]"), "refs": texts })
        )
    };
    let mut rows = String::new();
    for name in ["Aromi", "Bibimbap", "Clowns"] {
        for food in ["Italian", "French"] {
            rows.push_str(&row(name, food));
        }
    }
    fs::write(lab.path("e2e.jsonl"), rows).unwrap();
    lab
}

fn train(lab: &Lab, run: &str, more: &[&str]) {
    let words = [&RECIPE[..], &[run, "--save-total-limit", "9"], more].concat();
    lab.run(&words).ok();
}

fn adapter(lab: &Lab, run: &str) -> Vec<u8> {
    fs::read(lab.path(run).join("adapter/adapter_model.safetensors")).unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_papers_recipe_from_data_to_text() {
    let lab = lab();
    train(&lab, "@whole", &["--threads", "1"]);
    let config = json_of(&lab.path("whole/adapter/adapter_config.json"));
    assert_eq!(config["target_modules"], json!(["c_attn"]));
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&json!(8), &json!(64))
    );
    let summary = fs::read_to_string(lab.path("whole/config.yaml")).unwrap();
    assert!(
        summary.contains("target_modules: [c_attn.q, c_attn.v]\n"),
        "{summary}"
    );

    // Training has moved the blocks of B and nothing between them.
    let bytes = adapter(&lab, "whole");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut seen = 0;
    for (name, tensor) in tensors.as_object().unwrap() {
        if !name.ends_with("c_attn.lora_B.weight") {
            continue;
        }
        assert_eq!(tensor["shape"], json!([96, 8]));
        let start = 8 + header + tensor["data_offsets"][0].as_u64().unwrap() as usize;
        for (i, value) in bytes[start..start + 96 * 8 * 4].chunks_exact(4).enumerate() {
            let value = f32::from_le_bytes(value.try_into().unwrap());
            let (part, second) = (i / 8 / 32, i % 8 >= 4);
            let inside = (part == 0 && !second) || (part == 2 && second);
            assert_eq!(inside, value != 0.0, "{name}: {i}");
            assert!(inside || value.to_bits() == 0);
        }
        seen += 1;
    }
    assert_eq!(seen, 2);

    // A run that went on from a checkpoint on other threads has the same bytes.
    train(&lab, "@stopped", &["--threads", "2"]);
    assert_eq!(adapter(&lab, "stopped"), bytes);
    let entries = fs::read_dir(lab.path("stopped")).unwrap();
    let mut checkpoints: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    checkpoints.retain(|path| path.to_string_lossy().contains("/checkpoint-"));
    checkpoints.sort();
    assert_eq!(checkpoints.len(), 3, "{checkpoints:?}");
    for later in &checkpoints[1..] {
        fs::remove_dir_all(later).unwrap();
    }
    lab.run(&[
        "train",
        "--resume",
        "--output-dir",
        "@stopped",
        "--threads",
        "2",
    ])
    .ok();
    assert_eq!(adapter(&lab, "stopped"), bytes);

    // It is a PEFT adapter as any other: evaluated, merged, and asked for the text of the file's
    // meanings.
    let eval = |words: &[&str]| {
        let all = [
            &[
                "eval",
                "--data-file",
                "@e2e.jsonl",
                "--max-length",
                "48",
                "--json",
            ],
            words,
        ]
        .concat();
        lab.run(&all).ok().json()["metrics"]["perplexity"]
            .as_f64()
            .unwrap()
    };
    let base = eval(&["--model", "@scratch/model"]);
    let apart = eval(&[
        "--model",
        "@scratch/model",
        "--adapter",
        "@whole",
        "--precision",
        "f32",
    ]);
    assert!(apart < base, "{base} to {apart}");
    lab.run(&[
        "merge",
        "--model",
        "@scratch/model",
        "--adapter",
        "@whole",
        "--output-dir",
        "@merged",
        "--verify",
    ])
    .ok();
    let merged = eval(&["--model", "@merged"]);
    // Measured 6e-8.
    assert!((merged - apart).abs() < 1e-5, "{merged} and {apart}");
    let words = [
        "generate",
        "--model",
        "@scratch/model",
        "--adapter",
        "@whole",
        "--preset",
        "paper/gpt2-medium-e2e",
        "--prompt-file",
        "@e2e.jsonl",
        "--max-new-tokens",
        "4",
    ];
    let lines = lab.run(&words).ok().stdout;
    assert_eq!(lines.lines().count(), 6, "a text for each meaning");
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["prompt"], "name : Aromi | food : Italian");
}

#[test]
fn parts_of_no_fused_layer_are_refused() {
    let lab = lab();
    let refused = |targets: &[&str], words: &[&str]| {
        let all = [&RECIPE[..], &["@run", "--target-modules"], targets].concat();
        lab.run(&all).fails(1, words);
    };
    refused(&["c_attn.w"], &["target_modules", "c_attn"]);
    refused(&["c_attn", "c_attn.q"], &["`c_attn` is the whole layer"]);
    refused(&["c_proj.q"], &["c_proj"]);
    assert!(!lab.path("run").exists());
}
