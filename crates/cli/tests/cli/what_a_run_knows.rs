//! A run knows its base, its state and its log: what was changed, damaged or lost since is found
//! and said.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Lab, Ran, lowrank};

/// Twelve steps with a checkpoint and an evaluation every four, of which all stay.
const SETTINGS: [&str; 11] = [
    "--max-steps",
    "12",
    "--save-steps",
    "4",
    "--eval-steps",
    "4",
    "--save-total-limit",
    "9",
    "--lora-dropout",
    "0.1",
    "--quiet",
];

fn run_of(lab: &Lab, more: &[&str]) {
    lab.train("run", &[SETTINGS.as_slice(), more].concat()).ok();
}

/// Goes on from the last checkpoint that is there.
fn resume(lab: &Lab, more: &[&str]) -> Ran {
    let words = ["train", "--resume", "--output-dir", &lab.text("run")];
    lowrank(&[&words, more].concat())
}

fn checkpoint(lab: &Lab, step: u64) -> PathBuf {
    lab.path("run").join(format!("checkpoint-{step}"))
}

/// As if the run had been killed before its last checkpoint.
fn cut_back(lab: &Lab) {
    fs::remove_dir_all(checkpoint(lab, 12)).unwrap();
    fs::remove_dir_all(lab.path("run/adapter")).unwrap();
    fs::remove_file(lab.path("run/summary.json")).unwrap();
}

fn change(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "`{from}` is missing in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Flips a bit of the last weight of the base.
fn flip_a_weight(lab: &Lab) {
    let file = lab.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
}

#[test]
fn a_run_does_not_go_on_with_another_base_unless_told() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    let whole = lab.adapter_bytes("run");
    cut_back(&lab);
    flip_a_weight(&lab);
    resume(&lab, &[]).fails(
        1,
        &[
            "not the one that the run was started on",
            "weights: SHA-256",
            "--allow-other-base",
        ],
    );
    flip_a_weight(&lab);
    let config = lab.path("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    for (from, to, word) in [
        (
            "\"hidden_act\":\"gelu\"",
            "\"hidden_act\":\"relu\"",
            "`hidden_act`",
        ),
        (
            "\"layer_norm_eps\":1e-12",
            "\"layer_norm_eps\":0.1",
            "`layer_norm_eps`",
        ),
    ] {
        let other = text.replacen(from, to, 1);
        assert_ne!(other, text, "{from}");
        fs::write(&config, other).unwrap();
        resume(&lab, &[]).fails(1, &["config.json", word, "then", "now"]);
    }
    // Who wrote the file does not matter.
    fs::write(
        &config,
        text.replacen('{', "{\"transformers_version\":\"99\",", 1),
    )
    .unwrap();
    resume(&lab, &[]).ok();
    assert_eq!(lab.adapter_bytes("run"), whole);
}

#[test]
fn a_run_that_is_told_to_goes_on_with_another_base_and_notes_it() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    cut_back(&lab);
    flip_a_weight(&lab);
    let ran = resume(&lab, &["--allow-other-base"]).ok();
    assert!(
        ran.stderr.contains("warning: the base is not the one"),
        "{}",
        ran.stderr
    );
    fs::remove_dir_all(checkpoint(&lab, 8)).unwrap();
    resume(&lab, &[]).ok();
}

#[test]
fn an_adapter_of_a_run_or_of_a_checkpoint_is_used_on_its_base_alone() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    flip_a_weight(&lab);
    let model = lab.text("model");
    let (merged, next) = (lab.text("merged"), lab.text("next"));
    let rows = lab.text("test.tsv");
    for adapter in ["run", "run/adapter", "run/checkpoint-8"] {
        let adapter = lab.text(adapter);
        let on = ["--model", &model, "--adapter", &adapter];
        let commands: [&[&str]; 4] = [
            &["predict", "--text", "w5 w6"],
            &["eval", "--data-file", &rows],
            &["merge", "--output-dir", &merged],
            &["train", "--train-file", &rows, "--output-dir", &next],
        ];
        for command in commands {
            lowrank(&[command, &on].concat())
                .fails(1, &["trained on other weights", "--allow-other-base"]);
        }
        lowrank(&[commands[0], &on, &["--allow-other-base"]].concat()).ok();
    }
    flip_a_weight(&lab);
    let adapter = lab.text("run/checkpoint-8");
    let words = [
        "predict",
        "--text",
        "w5",
        "--model",
        &model,
        "--adapter",
        &adapter,
    ];
    lowrank(&words).ok();
}

#[test]
fn a_state_that_was_changed_is_passed_over_and_an_older_version_s_is_read() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    let whole = lab.adapter_bytes("run");
    let state = checkpoint(&lab, 8).join("state.json");
    let sealed = fs::read_to_string(&state).unwrap();
    cut_back(&lab);
    let saved = lab.path("run");
    let copy = lab.path("copy");
    copy_dir(&saved, &copy);
    let again = || {
        fs::remove_dir_all(&saved).unwrap();
        copy_dir(&copy, &saved);
    };
    // A number changed, in a file with a checksum and in one of an older version, which had none.
    let mut old: Value = serde_json::from_str(&sealed).unwrap();
    let object = old.as_object_mut().unwrap();
    object.remove("checksum").expect("a checksum");
    object.remove("base").expect("a base");
    let old = serde_json::to_string_pretty(&old).unwrap();
    let edits = [
        ("\"step\": 8", "\"step\": 7"),
        ("\"micro_step\": 8", "\"micro_step\": 80"),
        ("\"next_row\": 0", "\"next_row\": 8"),
        ("\"epoch\": 1", "\"epoch\": 2"),
        ("\"stopped_early\": false", "\"stopped_early\": true"),
        ("\"evaluated_step\": 8", "\"evaluated_step\": 9"),
        ("\"layout\": 1", "\"layout\": 2"),
        ("\"evaluated_step\"", "\"evaluated_stop\""),
        ("\"cursor\": {", "\"cursor\": "),
    ];
    for (from, to) in edits {
        for text in [&sealed, &old] {
            fs::write(&state, text).unwrap();
            change(&state, from, to);
            let ran = resume(&lab, &[]).ok();
            assert!(
                ran.stderr.contains("checkpoint-8") && ran.stderr.contains("state.json"),
                "{to}: {}",
                ran.stderr
            );
            assert!(
                ran.stderr.contains("resumed after step 4"),
                "{}",
                ran.stderr
            );
            assert_eq!(lab.adapter_bytes("run"), whole, "{to}");
            again();
        }
    }
    // The seconds decide nothing, but the checksum finds them too.
    change(&state, "\"tokens\": ", "\"tokens\": 1");
    assert!(resume(&lab, &[]).ok().stderr.contains("checksum"));
    again();
    // A checksum that was cut out of a new state is missed.
    let mut unsealed: Value = serde_json::from_str(&sealed).unwrap();
    unsealed.as_object_mut().unwrap().remove("checksum");
    fs::write(&state, unsealed.to_string()).unwrap();
    assert!(
        resume(&lab, &[])
            .ok()
            .stderr
            .contains("its checksum is missing")
    );
    again();
    fs::write(&state, &old).unwrap();
    let ran = resume(&lab, &[]).ok();
    assert!(
        ran.stderr.contains("resumed after step 8"),
        "{}",
        ran.stderr
    );
    assert_eq!(lab.adapter_bytes("run"), whole);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_dir(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

#[test]
fn whole_checkpoints_are_used_although_the_best_one_is_damaged() {
    let lab = Lab::new();
    // At this rate the first evaluation is the best.
    let more = [
        "--lr",
        "0.5",
        "--warmup-ratio",
        "0",
        "--metric-for-best-model",
        "loss",
    ];
    run_of(&lab, &more);
    let state = fs::read_to_string(checkpoint(&lab, 8).join("state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let best = state["best"]["best_step"].as_u64().unwrap();
    assert_eq!(best, 4, "the case needs it");
    cut_back(&lab);
    let file = checkpoint(&lab, 4).join("state.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let ran = resume(&lab, &[]).ok();
    for word in [
        "checkpoint-4",
        "state.safetensors",
        "now step 8",
        "resumed after step 8",
    ] {
        assert!(
            ran.stderr.contains(word),
            "`{word}` is missing in {}",
            ran.stderr
        );
    }
    // Where all are damaged, each is named with its reason.
    for step in [4, 8, 12] {
        let _ = fs::remove_file(checkpoint(&lab, step).join("state.json"));
    }
    resume(&lab, &[]).fails(
        1,
        &[
            "none of the 3 checkpoints",
            "checkpoint-4",
            "checkpoint-8",
            "checkpoint-12",
            "--overwrite",
        ],
    );
}

#[test]
fn a_log_that_lost_rows_is_said() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    let whole = lab.adapter_bytes("run");
    cut_back(&lab);
    let log = lab.path("run/metrics.jsonl");
    let rows: Vec<String> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let kept = [&rows[..2], &rows[3..5]].concat().join("\n") + "\n";
    fs::write(&log, kept).unwrap();
    let ran = resume(&lab, &["--quiet"]).ok();
    assert!(
        ran.stderr.contains("metrics.jsonl") && ran.stderr.contains("4 of the 8 rows are missing"),
        "{}",
        ran.stderr
    );
    assert_eq!(lab.adapter_bytes("run"), whole);
}

#[test]
fn damaged_notes_are_never_no_notes() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    let notes = lab.path("run/adapter/lowrank.json");
    let good = fs::read_to_string(&notes).unwrap();
    let (model, adapter) = (lab.text("model"), lab.text("run"));
    let predict = [
        "predict",
        "--text",
        "w5",
        "--model",
        &model,
        "--adapter",
        &adapter,
    ];
    assert!(lowrank(&predict).ok().stdout.contains("\"low\""));
    for damaged in [
        good.replace("\"low\"", "\"lov\""),
        good.replace("\"labels\"", "\"label\""),
        good[..good.len() - 2].to_owned(),
        "[]".to_owned(),
    ] {
        fs::write(&notes, damaged).unwrap();
        lowrank(&predict).fails(1, &["lowrank.json", "hint: "]);
    }
    fs::remove_file(&notes).unwrap();
    lowrank(&predict).fails(1, &["lowrank.json", "missing"]);
    // Without a checksum, as older versions wrote them or an editor left them.
    let mut old: Value = serde_json::from_str(&good).unwrap();
    old.as_object_mut().unwrap().remove("checksum");
    old["labels"][0] = "renamed".into();
    fs::write(&notes, old.to_string()).unwrap();
    assert!(lowrank(&predict).ok().stdout.contains("\"renamed\""));
}

#[test]
fn settings_of_a_run_that_were_lost_are_said() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    cut_back(&lab);
    let file = lab.path("run/config.yaml");
    fs::write(&file, "").unwrap();
    resume(&lab, &[]).fails(2, &["config.yaml` holds no settings", "--overwrite"]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    resume(&lab, &[]).fails(2, &["config.yaml", "expected a regular file"]);
    fs::remove_dir(&file).unwrap();
    resume(&lab, &[]).fails(2, &["has no `config.yaml`", "--resume"]);
}

#[test]
fn keys_given_twice_in_notes_and_states_are_never_taken() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    cut_back(&lab);
    let state = checkpoint(&lab, 8).join("state.json");
    change(&state, "\"tokens\"", "\"step\": 8,\n  \"tokens\"");
    let ran = resume(&lab, &[]).ok();
    assert!(
        ran.stderr.contains("the key \"step\" twice"),
        "{}",
        ran.stderr
    );
    let notes = lab.path("run/adapter/lowrank.json");
    change(&notes, "\"task\"", "\"max_length\": 7,\n  \"task\"");
    let (model, run) = (lab.text("model"), lab.text("run"));
    let words = [
        "predict",
        "--model",
        &model,
        "--adapter",
        &run,
        "--text",
        "a",
    ];
    lowrank(&words).fails(1, &["lowrank.json", "the key \"max_length\" twice"]);
}

#[test]
fn a_setting_of_an_adapter_that_is_not_performed_names_its_file() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    let file = lab.path("run/adapter/adapter_config.json");
    change(&file, "\"use_dora\": false", "\"use_dora\": 1");
    let (model, run) = (lab.text("model"), lab.text("run"));
    let words = [
        "predict",
        "--model",
        &model,
        "--adapter",
        &run,
        "--text",
        "a",
    ];
    let expected = ["adapter_config.json`: ", "use_dora: `1` is not supported"];
    lowrank(&words).fails(1, &expected);
    lab.train("more", &["--adapter", &run]).fails(1, &expected);
}

#[test]
fn a_run_whose_summary_or_log_is_damaged_is_shown_with_what_is_wrong() {
    let lab = Lab::new();
    run_of(&lab, &[]);
    let run = lab.text("run");
    let whole = lowrank(&["inspect", &run]).ok();
    assert!(!whole.stdout.contains("warning"), "{}", whole.stdout);
    fs::write(lab.path("run/summary.json"), "{\"st").unwrap();
    fs::write(lab.path("run/metrics.jsonl"), "{\"step\": []}\n").unwrap();
    let shown = lowrank(&["inspect", &run]).ok().stdout;
    assert!(!shown.contains("not finished"), "{shown}");
    for file in ["summary.json", "metrics.jsonl"] {
        assert!(shown.contains(file), "{shown}");
    }
}
