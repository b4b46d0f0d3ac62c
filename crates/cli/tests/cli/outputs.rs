//! Where commands may write and what they leave there: nothing that they did not make is replaced,
//! what stands beside a model comes along, and a signal leaves no litter. And what is printed:
//! names of files in errors, no control characters.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Lab, Ran, command, lowrank};

fn merge(lab: &Lab, target: &str, more: &[&str]) -> Ran {
    let (model, run, target) = (lab.text("model"), lab.text("run"), lab.text(target));
    let flags = [
        "merge",
        "--model",
        &model,
        "--adapter",
        &run,
        "--output-dir",
        &target,
    ];
    lowrank(&[flags.as_slice(), more].concat())
}

fn trained() -> Lab {
    let lab = Lab::new();
    let more = ["--max-steps", "2", "--quiet", "--eval-strategy", "no"];
    lab.train("run", &more).ok();
    lab
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn merge_replaces_what_it_made_and_nothing_else() {
    let lab = trained();
    merge(&lab, "merged", &["--quiet"]).ok();
    merge(&lab, "merged", &[]).fails(2, &["is not empty", "--overwrite"]);
    merge(&lab, "merged", &["--overwrite", "--quiet"]).ok();
    // A file of the user's beside what was merged.
    fs::write(lab.path("merged/NOTES.md"), "mine").unwrap();
    merge(&lab, "merged", &["--overwrite"]).fails(2, &["holds `NOTES.md`", "--output-dir"]);
    fs::remove_file(lab.path("merged/NOTES.md")).unwrap();
    // A file that was changed since.
    fs::write(lab.path("merged/config.json"), "{}").unwrap();
    merge(&lab, "merged", &["--overwrite"]).fails(2, &["holds `config.json`, which was changed"]);
    // Folders that it did not make: the run, the base, what holds both, one with another's files.
    fs::create_dir_all(lab.path("other/thesis")).unwrap();
    fs::write(lab.path("other/thesis/x"), "x").unwrap();
    let before = fs::read(lab.path("model/model.safetensors")).unwrap();
    for (target, words) in [
        ("run", "--adapter names"),
        ("model", "--model names"),
        ("", "holds what --model names"),
        ("run/checkpoint-2", "was not made by it"),
        ("other", "was not made by it"),
        ("train.tsv", "is a file"),
    ] {
        merge(&lab, target, &["--overwrite"]).fails(2, &[words, "--output-dir"]);
    }
    assert_eq!(
        fs::read(lab.path("model/model.safetensors")).unwrap(),
        before
    );
    assert!(lab.path("other/thesis/x").is_file() && lab.path("run/config.yaml").is_file());
    // Another run than the adapter's.
    lab.train("run2", &["--max-steps", "1", "--quiet"]).ok();
    merge(&lab, "run2", &["--overwrite"]).fails(2, &["is a run"]);
}

#[test]
fn merge_copies_what_stands_beside_the_weights_whether_it_can_read_it_or_not() {
    let lab = trained();
    fs::remove_file(lab.path("model/vocab.txt")).unwrap();
    let side = [
        "sentencepiece.bpe.model",
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    for name in side {
        fs::write(lab.path("model").join(name), b"{ not json \xff").unwrap();
    }
    fs::write(lab.path("model/flax_model.msgpack"), "x").unwrap();
    fs::create_dir(lab.path("model/onnx")).unwrap();
    let told: Value = merge(&lab, "merged", &["--json"]).ok().json();
    for name in side {
        assert_eq!(
            fs::read(lab.path("merged").join(name)).unwrap(),
            b"{ not json \xff",
            "{name}"
        );
    }
    assert_eq!(
        told["left_out"],
        json!(["flax_model.msgpack (other weights)", "onnx/ (a folder)"])
    );
    assert!(!lab.path("merged/onnx").exists());
}

#[test]
fn a_configuration_is_not_written_over_another_or_beside_weights() {
    let lab = trained();
    let plan = |dir: &str| lowrank(&["plan", "gpt3-small", "--write-config", &lab.text(dir)]);
    plan("fresh").ok();
    plan("fresh").ok();
    assert_eq!(names(&lab.path("fresh")), ["config.json"]);
    fs::write(lab.path("fresh/config.json"), "{}").unwrap();
    plan("fresh").fails(2, &["fresh/config.json", "differs", "--write-config"]);
    plan("model").fails(2, &["holds `model.safetensors`"]);
    plan("run").fails(2, &["is a run"]);
    plan("train.tsv").fails(2, &["train.tsv` is a file"]);
    plan("train.tsv/x").fails(1, &["train.tsv/x"]);
}

#[test]
fn results_do_not_replace_what_a_command_reads_or_files_of_a_model() {
    let lab = trained();
    let predict = |out: &str| {
        let (model, run, rows, out) = (
            lab.text("model"),
            lab.text("run"),
            lab.text("test.tsv"),
            lab.text(out),
        );
        lowrank(&[
            "predict",
            "--model",
            &model,
            "--adapter",
            &run,
            "--data-file",
            &rows,
            "--output-file",
            &out,
        ])
    };
    predict("test.tsv").fails(2, &["is what --data-file names", "--output-file"]);
    predict("model/config.json").fails(2, &["is a file of a model"]);
    predict("run/metrics.jsonl").fails(2, &["is a file of a run"]);
    predict("run/adapter/adapter_config.json").fails(2, &["is a file of an adapter"]);
    predict("run/predictions.jsonl").ok();
    predict("run/predictions.jsonl").ok();
    fs::write(lab.path("mine/metrics.jsonl"), "x").unwrap_err();
    fs::create_dir(lab.path("mine")).unwrap();
    fs::write(lab.path("mine/metrics.jsonl"), "x").unwrap();
    lab.train("mine", &["--max-steps", "1"])
        .fails(2, &["holds `metrics.jsonl`, which a run would replace"]);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_no_half_written_folder_or_file() {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: only a debug build can be held at a file call");
        return;
    }
    let lab = trained();
    let (model, run, rows) = (lab.text("model"), lab.text("run"), lab.text("test.tsv"));
    let (merged, out) = (lab.text("merged"), lab.text("out.jsonl"));
    let merge = [
        "merge",
        "--model",
        &model,
        "--adapter",
        &run,
        "--output-dir",
        &merged,
    ];
    let predict = [
        "predict",
        "--model",
        &model,
        "--adapter",
        &run,
        "--data-file",
        &rows,
        "--output-file",
        &out,
    ];
    for (words, signal) in [
        (merge.as_slice(), "INT"),
        (merge.as_slice(), "TERM"),
        (merge.as_slice(), "HUP"),
        (predict.as_slice(), "INT"),
    ] {
        // Held at its last writes, when the temporary name is there.
        let log = lab.path("calls");
        let _ = fs::remove_file(&log);
        command(words)
            .env("LOWRANK_FAULT_LOG", &log)
            .output()
            .unwrap();
        let calls = fs::read_to_string(&log).unwrap();
        let at = calls
            .lines()
            .position(|call| call.contains(" Sync "))
            .unwrap()
            + 1;
        for target in ["merged", "out.jsonl"] {
            let _ = fs::remove_dir_all(lab.path(target));
            let _ = fs::remove_file(lab.path(target));
        }
        fs::remove_file(&log).unwrap();
        let mut child = command(words)
            .env("LOWRANK_FAULT_LOG", &log)
            .env("LOWRANK_FAULT", format!("{at}:hold"))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while fs::read_to_string(&log).unwrap_or_default().lines().count() < at {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before the call"
            );
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let pid = child.id().to_string();
        let sent = std::process::Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status();
        assert!(sent.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
        let left: Vec<String> = names(&lab.path(""))
            .into_iter()
            .filter(|n| n.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn what_files_hold_reaches_the_terminal_without_control_characters() {
    let lab = Lab::new();
    let header =
        json!({"a\u{1b}]0;x\u{7}\u{9b}b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0; 4]);
    fs::write(lab.path("e.safetensors"), bytes).unwrap();
    let shown = lowrank(&["inspect", &lab.text("e.safetensors"), "--tensors"]).ok();
    assert!(
        shown.stdout.contains("a\\u001b]0;x\\u0007\\u009bb"),
        "{}",
        shown.stdout
    );
    let told = lowrank(&["inspect", &lab.text("e.safetensors"), "--tensors", "--json"]).ok();
    assert!(!told.stdout.contains(['\u{1b}', '\u{9b}']) && told.json().is_object());
    let long = format!("\u{1b}[2J\u{202e}{}", "x".repeat(100_000));
    fs::write(
        lab.path("c.json"),
        json!({ "model_type": long }).to_string(),
    )
    .unwrap();
    let stderr = lowrank(&["plan", &lab.text("c.json")]).fails(1, &["c.json", "\\u001b[2J\\u202e"]);
    assert!(
        stderr.len() < 5000 && !stderr.contains('\u{1b}'),
        "{} bytes",
        stderr.len()
    );
}

#[test]
fn an_error_names_the_file_that_it_is_about() {
    let lab = trained();
    let weights = lab.path("model/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut bytes = whole.clone();
    let name = b"encoder.layer.1.output.dense.bias";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at + name.len() - 1] = b'z';
    fs::write(&weights, bytes).unwrap();
    lab.train("r", &["--max-steps", "1"]).fails(
        1,
        &["encoder.layer.1.output.dense.bias", &lab.text("model")],
    );
    fs::write(&weights, whole).unwrap();
    // The scaling overflows: the message speaks of the target, and gives no advice that cannot
    // help.
    let config = lab.path("run/adapter/adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["lora_alpha"] = json!(1e308);
    fs::write(&config, settings.to_string()).unwrap();
    let stderr = merge(&lab, "m", &[]).fails(1, &[]);
    assert!(
        !stderr.contains(".tmp/") && !stderr.contains("write f32"),
        "{stderr}"
    );
    // Settings and the hub's cache: a pipe is refused by name, it does not hang.
    let missing = lab.text("none.yaml");
    lowrank(&["check", "--config", &missing]).fails(2, &["none.yaml"]);
}
