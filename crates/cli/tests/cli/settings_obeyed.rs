//! A setting is obeyed or refused: numbers have ranges, pairs that exclude each other are errors,
//! what has no effect is named.

use std::fs;

use serde_json::Value;

use crate::support::{Lab, lowrank};

const SHORT: [&str; 3] = ["--max-steps", "2", "--quiet"];

#[test]
fn lora_plus_has_no_rate_for_terms_of_the_table_of_tokens() {
    let lab = Lab::new();
    let table = ["--target-modules", "query", "word_embeddings"];
    let ratio = ["--loraplus-lr-ratio", "4"];
    lab.train("run", &[&SHORT[..], &table, &ratio].concat())
        .fails(2, &["`loraplus_lr_ratio`", "table of tokens", "hint: "]);
    let rows = ["--trainable-token-indices", "7", "9"];
    lab.train("rows", &[&SHORT[..], &rows, &ratio].concat())
        .ok();
    lab.train("table", &[&SHORT[..], &table].concat()).ok();
}

#[test]
fn a_setting_without_effect_is_an_error_that_names_it() {
    let lab = Lab::new();
    let cases: [(&[&str], &str); 14] = [
        (&["--lr-num-cycles", "2"], "--lr-num-cycles"),
        (&["--lr-end", "1e-5"], "--lr-end"),
        (&["--lr-power", "2"], "--lr-power"),
        (
            &["--lr-scheduler-type", "constant", "--warmup-steps", "1"],
            "--warmup-steps",
        ),
        (
            &["--lr-scheduler-type", "constant", "--warmup-ratio", "0.5"],
            "--warmup-ratio",
        ),
        (
            &["--warmup-steps", "1", "--warmup-ratio", "0.5"],
            "--warmup-ratio",
        ),
        (
            &["--eval-strategy", "epoch", "--eval-steps", "1"],
            "--eval-steps",
        ),
        (
            &["--save-strategy", "no", "--save-steps", "1"],
            "--save-steps",
        ),
        (
            &["--early-stopping-threshold", "0.1"],
            "--early-stopping-threshold",
        ),
        (&["--full", "--r", "4"], "--r"),
        (&["--full", "--lora-dropout", "0.5"], "--lora-dropout"),
        (
            &["--full", "--layers-to-transform", "1"],
            "--layers-to-transform",
        ),
        (&["--template", "{prompt}{completion}"], "--template"),
        (&["--task", "regression", "--labels", "a", "b"], "--labels"),
    ];
    for (more, word) in cases {
        lab.train("run", &[SHORT.as_slice(), more].concat())
            .fails(2, &["no effect", word, "hint: "]);
    }
    // The form of the rows is met before the settings are.
    lab.train(
        "run",
        &[SHORT.as_slice(), &["--data-format", "e2e"]].concat(),
    )
    .fails(1, &["--data-format", "--task causal_lm"]);
    // At their defaults they ask for nothing: printed configurations hold them.
    lab.train(
        "run",
        &[SHORT.as_slice(), &["--lr-end", "1e-7", "--dry-run"]].concat(),
    )
    .ok();
    let printed = lab.train(
        "run",
        &[SHORT.as_slice(), &["--full", "--dry-run"]].concat(),
    );
    fs::write(lab.path("full.yaml"), printed.ok().stdout).unwrap();
    lowrank(&["train", "--config", &lab.text("full.yaml"), "--dry-run"]).ok();
}

#[test]
fn other_commands_name_what_has_no_effect_too() {
    let lab = Lab::new();
    lab.train("run", &SHORT).ok();
    let (model, run, rows) = (lab.text("model"), lab.text("run"), lab.text("test.tsv"));
    let merged = lab.text("merged");
    let on = ["--model", &model, "--adapter", &run];
    let cases: [(&[&str], &str); 9] = [
        (
            &["predict", "--text", "w5", "--text-column", "a"],
            "--text-column",
        ),
        (
            &[
                "predict",
                "--text",
                "w5",
                "--no-header",
                "--bad-rows",
                "skip",
            ],
            "--no-header, --bad-rows: --text is no file",
        ),
        (
            &["predict", "--text", "w5", "--template", "{prompt}"],
            "--template",
        ),
        (
            &["predict", "--text", "w5", "--lora-alpha", "3"],
            "--lora-alpha",
        ),
        (
            &["eval", "--data-file", &rows, "--max-new-tokens", "3"],
            "--max-new-tokens",
        ),
        (
            &["eval", "--data-file", &rows, "--metrics", "bleu"],
            "--metrics",
        ),
        (
            &["merge", "--output-dir", &merged, "--tolerance", "1"],
            "--tolerance",
        ),
        (
            &["merge", "--output-dir", &merged, "--data-file", &rows],
            "--data-file",
        ),
        (
            &["merge", "--output-dir", &merged, "--label-column", "a"],
            "--label-column",
        ),
    ];
    for (command, word) in cases {
        lowrank(&[command, &on].concat()).fails(2, &[word, "hint: "]);
    }
    let verify = [
        "merge",
        "--output-dir",
        &merged,
        "--verify",
        "--tolerance",
        "nan",
    ];
    lowrank(&[verify.as_slice(), &on].concat()).fails(2, &["tolerance"]);
    lowrank(&["plan", &model, "--task", "regression", "--num-labels", "3"])
        .fails(2, &["--num-labels"]);
}

#[test]
fn what_peft_refuses_is_refused() {
    let lab = Lab::new();
    let cases: [(&[&str], &str); 5] = [
        (
            &[
                "--target-modules",
                "all-linear",
                "--layers-to-transform",
                "1",
            ],
            "layers_to_transform",
        ),
        (
            &["--target-modules", ".*query", "--layers-to-transform", "1"],
            "layers_to_transform",
        ),
        (
            &[
                "--target-modules",
                ".*query",
                "--layers-to-transform",
                "1",
                "--layers-pattern",
                "layer",
            ],
            "layers_pattern",
        ),
        (
            &[
                "--target-modules",
                "all-linear",
                "--layers-pattern",
                "layer",
            ],
            "layers_pattern",
        ),
        (&["--layers-pattern", "layer"], "layers_pattern"),
    ];
    let model = lab.text("model");
    for (more, word) in cases {
        lab.train("run", &[SHORT.as_slice(), more].concat())
            .fails(2, &[word, "expected"]);
        lowrank(&[&["plan", &model], more].concat()).fails(2, &[word, "expected"]);
        let rows = lab.text("train.tsv");
        lowrank(&[&["check", "--model", &model, "--train-file", &rows], more].concat())
            .fails(2, &[word, "expected"]);
    }
}

#[test]
fn numbers_have_ranges_before_they_are_used() {
    let lab = Lab::new();
    let huge = u64::MAX.to_string();
    let cases = [
        ("--lr-end", "nan", "a finite number"),
        ("--lr-end", "inf", "a finite number"),
        ("--lr", "inf", "a finite number"),
        ("--weight-decay", "nan", "a finite number"),
        ("--lora-alpha", "1e308", "lora_alpha"),
        ("--lora-alpha", "nan", "a finite number"),
        ("--early-stopping-threshold", "inf", "a finite number"),
        ("--epochs", "inf", "a finite number"),
        ("--warmup-ratio", "1", "warmup_ratio"),
        ("--warmup-steps", "2", "warmup_steps"),
        ("--warmup-steps", &huge, "warmup_steps"),
        ("--per-device-batch-size", &huge, "per_device_batch_size"),
        (
            "--gradient-accumulation-steps",
            "4294967296",
            "gradient_accumulation_steps",
        ),
        (
            "--per-device-eval-batch-size",
            &huge,
            "per_device_eval_batch_size",
        ),
        ("--r", &huge, "r:"),
        ("--r", "40", "rank 40"),
        ("--threads", "1000000", "threads"),
        ("--rank-pattern", "query=99999999", "rank_pattern"),
        ("--alpha-pattern", "query=inf", "alpha_pattern"),
    ];
    for (flag, value, word) in cases {
        let (model, rows, run) = (lab.text("model"), lab.text("train.tsv"), lab.text("run"));
        let words = [
            "train",
            "--model",
            &model,
            "--train-file",
            &rows,
            "--output-dir",
            &run,
        ];
        let ran = lowrank(&[words.as_slice(), &SHORT, &[flag, value]].concat());
        assert!([1, 2].contains(&ran.code), "{flag} {value}: {}", ran.code);
        let code = ran.code;
        ran.fails(code, &[word, "error: "]);
        assert!(!lab.path("run").exists(), "{flag} {value} left a run");
    }
    let model = lab.text("model");
    for more in [
        ["--per-device-batch-size", &huge],
        ["--per-device-batch-size", "4294967296"],
        ["--per-device-batch-size", "1000000"],
        ["--max-length", "4294967296"],
        ["--max-length", "65"],
        ["--num-labels", &huge],
        ["--r", &huge],
    ] {
        lowrank(&[["plan", &model], more].concat()).fails(2, &["error: "]);
    }
    let rows = lab.text("test.tsv");
    for command in ["predict", "eval"] {
        let words = [
            command,
            "--model",
            &model,
            "--data-file",
            &rows,
            "--batch-size",
            &huge,
        ];
        lowrank(&words).fails(2, &["batch size"]);
    }
    // What is large, but not absurd, is still planned.
    let plan = lowrank(&["plan", "gpt3-175b", "--json"]).ok().json();
    assert!(plan["total_parameters"].as_u64().unwrap() > 174_000_000_000);
}

#[test]
fn a_model_beyond_the_machine_is_refused_with_its_figures() {
    let lab = Lab::new();
    let file = lab.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["vocab_size"] = 10_000_000.into();
    config["hidden_size"] = 65_536.into();
    fs::write(&file, config.to_string()).unwrap();
    let words = ["--full", "--from-scratch", "--max-steps", "1"];
    lab.train("run", &words).fails(
        2,
        &[
            "the run needs",
            "TiB",
            "trainable weights",
            "machine",
            "--max-memory",
        ],
    );
    assert!(!lab.path("run").exists());
    lowrank(&[
        "profile",
        "--model-config",
        &file.display().to_string(),
        "--steps",
        "1",
    ])
    .fails(2, &["the weights need", "TiB"]);
    // A plan is not bound to this machine.
    fs::remove_file(lab.path("model/model.safetensors")).unwrap();
    lowrank(&["plan", &lab.text("model")]).ok();
}

#[test]
fn a_run_too_short_to_move_everything_says_why() {
    let lab = Lab::new();
    let words: [&[&str]; 3] = [
        &["--max-steps", "1"],
        &["--max-steps", "2"],
        &["--max-steps", "1", "--lr-scheduler-type", "constant"],
    ];
    for words in words {
        let more = [words, &["--overwrite"]].concat();
        let ran = lab.train("run", &more).ok();
        assert!(
            ran.stdout.contains("too few steps") && !ran.stdout.contains("warning"),
            "{}",
            ran.stdout
        );
    }
    // What a run does not come to is said beforehand.
    let more = ["--max-steps", "1", "--save-steps", "5", "--overwrite"];
    let ran = lab.train("run", &more).ok();
    for word in ["warm-up is all of the run's 1 steps", "--save-steps 5"] {
        assert!(ran.stderr.contains(word), "`{word}`: {}", ran.stderr);
    }
    let ran = lab.train("run", &["--max-steps", "4", "--overwrite"]).ok();
    assert!(
        ran.stdout.contains("got gradients and moved"),
        "{}",
        ran.stdout
    );
}

#[test]
fn answers_are_numbers_or_errors_that_name_the_row() {
    let lab = Lab::new();
    lab.train("run", &SHORT).ok();
    // Weights of the head that f32 holds, but whose products it does not.
    let file = lab.path("run/adapter/adapter_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    for (key, value) in [
        ("base_model.model.bert.pooler.dense.bias", 20.0f32),
        ("base_model.model.classifier.weight", 3e38),
    ] {
        let offsets = &header[key]["data_offsets"];
        let place = |i: usize| offsets[i].as_u64().unwrap() as usize + 8 + n;
        let values = bytes[place(0)..place(1)].chunks_exact_mut(4);
        values.for_each(|v| v.copy_from_slice(&value.to_le_bytes()));
    }
    fs::write(&file, bytes).unwrap();
    let (model, run, rows) = (lab.text("model"), lab.text("run"), lab.text("test.tsv"));
    let on = ["--model", &model, "--adapter", &run];
    let commands: [(&[&str], &str); 3] = [
        (&["predict", "--text", "w5 w6"], "line 1"),
        (&["predict", "--data-file", &rows], "line 2"),
        (&["eval", "--data-file", &rows], "line 2"),
    ];
    for (command, line) in commands {
        let message = lowrank(&[command, &on].concat()).fails(1, &["a logit", "finite"]);
        assert!(message.contains(line), "{message}");
    }
    // An adapter whose scaling is no number says so before anything is computed.
    let config = lab.path("run/adapter/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"lora_alpha\": 16", "\"lora_alpha\": 1e308"),
    )
    .unwrap();
    let merged = lab.text("merged");
    for command in [
        ["predict", "--text", "w5"],
        ["merge", "--output-dir", &merged],
    ] {
        lowrank(&[command.as_slice(), &on].concat()).fails(1, &["lora_alpha", "f32"]);
    }
    assert!(!lab.path("merged").exists());
}
