//! Settings in a file: what is known, what wins, and the resolved configuration that can be fed
//! back.

use std::fs;

use crate::support::{Lab, lowrank};

#[test]
fn unknown_keys_are_refused_with_line_and_nearest_key() {
    let lab = Lab::new();
    fs::write(
        lab.path("a.yaml"),
        "r: 4\n# a slip\nlearning_rat: 0.1\nshuffle: perhaps\ncolour: red\n",
    )
    .unwrap();
    let stderr = lab.train("run", &["--config", &lab.text("a.yaml")]).fails(
        2,
        &[
            "line 3: unknown key `learning_rat`; did you mean `learning_rate`?",
            "line 4: `shuffle`",
            "line 5: unknown key `colour`",
        ],
    );
    assert!(!stderr.contains("line 1"), "{stderr}");
    assert!(!lab.path("run").exists(), "nothing was begun");
    fs::write(lab.path("b.yaml"), "r: 4\n  bad: [\n").unwrap();
    lab.train("run", &["--config", &lab.text("b.yaml")])
        .fails(2, &["b.yaml`, line "]);
    lab.train("run", &["--config", &lab.text("none.yaml")])
        .fails(2, &["cannot read `", "none.yaml`"]);
}

#[test]
fn flags_win_over_the_file_and_dry_run_feeds_back() {
    let lab = Lab::new();
    fs::write(
        lab.path("a.yaml"),
        "r: 4\nlr: 0.02\ntarget_modules: [query, key]\nrank_pattern: {layer.0.attention.self.key: 2}\nmax_steps: 3\n",
    )
    .unwrap();
    let first = lab
        .train(
            "run",
            &["--config", &lab.text("a.yaml"), "--r", "6", "--dry-run"],
        )
        .ok()
        .stdout;
    assert!(
        first.contains("\nr: 6\n") && first.contains("learning_rate: 0.02\n"),
        "{first}"
    );
    assert!(
        first.contains("labels: [high, low]\n"),
        "labels are resolved from the rows: {first}"
    );
    assert!(!lab.path("run").exists(), "a dry run writes nothing");
    fs::write(lab.path("resolved.yaml"), &first).unwrap();
    let again = lowrank(&["train", "--config", &lab.text("resolved.yaml"), "--dry-run"])
        .ok()
        .stdout;
    assert_eq!(again, first);
    lowrank(&["train", "--config", &lab.text("resolved.yaml"), "--quiet"]).ok();
    let kept = fs::read_to_string(lab.path("run/config.yaml")).unwrap();
    assert_eq!(kept, first);
}

#[test]
fn impossible_settings_are_reported_together() {
    let lab = Lab::new();
    let words = [
        "--r",
        "0",
        "--warmup-ratio",
        "2",
        "--metric-for-best-model",
        "pearson",
        "--max-steps",
        "0",
    ];
    lab.train("run", &words).fails(
        2,
        &[
            "4 settings",
            "r: expected",
            "warmup_ratio: expected",
            "max_steps: expected",
            "metric_for_best_model",
        ],
    );
    lab.train("run", &["--no-such-flag"])
        .fails(2, &["--no-such-flag"]);
}
