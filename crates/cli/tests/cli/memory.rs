//! Limits of memory, and what is kept under them.

use std::fs;

use serde_json::Value;

use crate::support::{Lab, lowrank};

/// A lab whose model drops nothing out, and adapters in its upper layer only.
fn frozen_below() -> (Lab, [&'static str; 6]) {
    let lab = Lab::new();
    let path = lab.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["hidden_dropout_prob"] = 0.0.into();
    config["attention_probs_dropout_prob"] = 0.0.into();
    fs::write(&path, config.to_string()).unwrap();
    let words = [
        "--layers-to-transform",
        "1",
        "--num-train-epochs",
        "3",
        "--lr",
        "0.01",
    ];
    (lab, words)
}

fn summary(lab: &Lab, run: &str) -> Value {
    serde_json::from_slice(&fs::read(lab.path(run).join("summary.json")).unwrap()).unwrap()
}

#[test]
fn the_prefix_cache_changes_time_and_memory_only() {
    let (lab, words) = frozen_below();
    let mut adapters = Vec::new();
    for (run, size) in [("off", "off"), ("auto", "auto"), ("some", "4KB")] {
        let more = [words.as_slice(), &["--prefix-cache", size]].concat();
        let ran = lab.train(run, &more).ok();
        let kept = summary(&lab, run)["counted_bytes"]["prefix_cache"].as_u64();
        let said = ran
            .stderr
            .contains("layer below the lowest adapter is computed once");
        match size {
            "off" => assert_eq!((kept, said), (Some(0), false)),
            "auto" => assert!(kept > Some(10_000) && said, "{}", ran.stderr),
            _ => assert!(
                kept > Some(0) && kept <= Some(4000) && said,
                "{}",
                ran.stderr
            ),
        }
        let whole = summary(&lab, run);
        assert_eq!(whole["predicted_bytes"], whole["counted_bytes"], "{run}");
        adapters.push((lab.adapter_bytes(run), lab.log(run)));
    }
    assert!(adapters.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn with_dropout_in_the_frozen_layers_a_run_says_so() {
    let lab = Lab::new();
    let words = ["--layers-to-transform", "1", "--num-train-epochs", "2"];
    let said = "dropout is on in them";
    assert!(lab.train("run", &words).ok().stderr.contains(said));
    // Nothing is below an adapter in the first layer, and nothing comes again in one epoch.
    for (run, more) in [
        (
            "first",
            ["--layers-to-transform", "0", "--num-train-epochs", "2"],
        ),
        (
            "once",
            ["--layers-to-transform", "1", "--num-train-epochs", "1"],
        ),
    ] {
        assert!(!lab.train(run, &more).ok().stderr.contains(said), "{run}");
    }
}

#[test]
fn a_limit_chooses_the_batch_and_a_resumed_run_keeps_it() {
    let lab = Lab::new();
    let words = ["--max-memory", "1GiB", "--gradient-accumulation-steps", "2"];
    let ran = lab
        .train("run", &[words.as_slice(), &["--max-steps", "3"]].concat())
        .ok();
    // Everything fits: the two batches of eight become one.
    assert!(
        ran.stderr
            .contains("batches of 16, 1 a step for its 16 rows"),
        "{}",
        ran.stderr
    );
    let config = fs::read_to_string(lab.path("run/config.yaml")).unwrap();
    for line in [
        "per_device_batch_size: 16\n",
        "gradient_accumulation_steps: 1\n",
        "max_memory: 1073741824\n",
    ] {
        assert!(config.contains(line), "{config}");
    }
    let found = summary(&lab, "run");
    let number = |name: &str| found[name].as_u64().unwrap_or(0);
    assert!(number("counted_peak_bytes") > 0);
    assert!(number("fixed_bytes") + number("predicted_reserved_bytes") <= 1 << 30);
    let before = fs::read(lab.path("run/report.html")).unwrap();
    let resumed = lowrank(&["train", "--resume", "--output-dir", &lab.text("run")]).ok();
    assert!(
        !resumed.stderr.contains("for this memory"),
        "{}",
        resumed.stderr
    );
    // A finished run has nothing to add to its results.
    assert!(
        resumed.stdout.contains("finished already"),
        "{}",
        resumed.stdout
    );
    assert_eq!(fs::read(lab.path("run/report.html")).unwrap(), before);
    assert_eq!(summary(&lab, "run"), found);
    let json = [
        "train",
        "--resume",
        "--json",
        "--output-dir",
        &lab.text("run"),
    ];
    assert_eq!(lowrank(&json).ok().json(), found);
}

#[test]
fn limits_that_cannot_be_are_refused_with_the_least() {
    let lab = Lab::new();
    for bad in ["2G", "lots", "1.5"] {
        lab.train("run", &["--max-memory", bad])
            .fails(2, &["1.5GiB"]);
        lab.train("run", &["--prefix-cache", bad])
            .fails(2, &["1.5GiB", "auto, or off"]);
    }
    let error = lab
        .train("run", &["--max-memory", "1MB"])
        .fails(2, &["not even one row", "the least is", "--max-length"]);
    assert!(!lab.path("run").exists());
    let least = error
        .split('(')
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let least: u64 = least
        .and_then(|n| n.parse().ok())
        .expect("the least in bytes");
    // A little above the least: the process's own size varies by some pages.
    let enough = (least + (4 << 20)).to_string();
    lab.train("run", &["--max-memory", &enough, "--max-steps", "2"])
        .ok();
}

#[test]
fn a_plan_prices_every_batch() {
    let (lab, _) = frozen_below();
    let model = lab.text("model");
    let plan = |more: &[&str]| {
        let words = ["plan", "--model", &model, "--batch-size", "6", "--json"];
        lowrank(&[words.as_slice(), more].concat())
    };
    let found = plan(&["--max-memory", "1GB", "--layers-to-transform", "1"])
        .ok()
        .json();
    assert_eq!(found["rows"], 6);
    let choices = found["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 8, "four sizes, recomputed or not");
    let number = |i: usize, name: &str| choices[i][name].as_f64().expect("a number");
    // Without recomputation first: more bytes, fewer operations; a smaller batch is smaller.
    assert!(number(0, "flops_per_token") < number(4, "flops_per_token"));
    assert!((0..3).all(|i| number(i, "bytes") >= number(i + 1, "bytes")));
    let lora = &found["lora"];
    assert_eq!(lora["frozen_layers"], 1);
    let kept = lora["flops_per_token_with_them_kept"]
        .as_f64()
        .expect("kept");
    assert!(kept < 0.7 * lora["flops_per_token"].as_f64().unwrap());
    plan(&["--max-memory", "1KB"]).fails(2, &["not even one row", "the least is"]);
    assert!(plan(&[]).ok().json()["choices"].is_null());
}
