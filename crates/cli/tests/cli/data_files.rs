//! Data files as people bring them: what a file's form is taken for, what is left out of it, and
//! that it is said.

use std::fs;

use serde_json::{Value, json};

use crate::language_model::Lab as LanguageLab;
use crate::support::{Lab, Ran, lowrank};

/// `words` with `@name` standing for a path in the lab.
fn run(lab: &Lab, words: &[&str]) -> Ran {
    let place = |word: &&str| match word.strip_prefix('@') {
        Some(name) => lab.text(name),
        None => (*word).to_owned(),
    };
    let words: Vec<String> = words.iter().map(place).collect();
    lowrank(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn check(lab: &Lab, file: &str, more: &[&str]) -> Ran {
    let file = format!("@{file}");
    let words = [
        "check",
        "--model",
        "@model",
        "--threads",
        "1",
        "--train-file",
        &file,
    ];
    run(lab, &[&words[..], more].concat())
}

/// One step on a file of the lab.
fn train(lab: &Lab, to: &str, file: &str, more: &[&str]) -> Ran {
    let words = [
        "train",
        "--model",
        "@model",
        "--output-dir",
        to,
        "--train-file",
        file,
    ];
    let step = [
        "--max-steps",
        "1",
        "--warmup-steps",
        "0",
        "--batch-size",
        "8",
    ];
    run(lab, &[&words[..], &step, more].concat())
}

#[test]
fn a_table_is_trained_on_whatever_parts_its_fields() {
    let lab = Lab::new();
    let rows = "w5 w6;low\nw60 w70;high\nw7;low\nw80, w9 w90;high\n".repeat(4);
    fs::write(lab.path("semicolons.csv"), format!("text;label\n{rows}")).unwrap();
    let said = train(&lab, "@run", "@semicolons.csv", &[]).ok().stderr;
    assert!(
        said.contains("semicolons.csv: fields are separated by `;`, not by `,`"),
        "{said}"
    );
    fs::write(
        lab.path("bare.csv"),
        rows.replace("w80, w9", "w80 w9").replace(';', ","),
    )
    .unwrap();
    check(&lab, "bare.csv", &[]).fails(
        1,
        &["the first line was taken for the header", "--no-header"],
    );
    let numbered = ["--no-header", "--text-column", "0", "--label-column", "1"];
    let seen = check(&lab, "bare.csv", &numbered).ok().stdout;
    assert!(
        seen.contains("16 rows") && seen.contains("text `0`, label `1`"),
        "{seen}"
    );
    // The same from a file of settings.
    fs::write(
        lab.path("no.yaml"),
        "no_header: true\ntext_column: 0\nlabel_column: 1\n",
    )
    .unwrap();
    assert_eq!(
        check(&lab, "bare.csv", &["--config", "@no.yaml"])
            .ok()
            .stdout,
        seen
    );
    check(&lab, "train.jsonl", &["--no-header"]).fails(1, &["train.jsonl"]);
}

#[test]
fn rows_that_cannot_be_used_are_left_out_and_keep_their_place_in_predictions() {
    let lab = Lab::new();
    let mut rows: Vec<String> = (0..200)
        .map(|i| {
            let label = ["low", "high"][i % 2];
            json!({ "text": format!("w{}", 5 + i % 90), "label": label }).to_string()
        })
        .collect();
    rows[3] = "{\"text\": 5, \"label\": \"odd\"}".into();
    rows[120] = "{\"text\": \"w5\"".into();
    fs::write(lab.path("rows.jsonl"), rows.join("\n")).unwrap();
    train(&lab, "@strict", "@rows.jsonl", &[]).fails(1, &["line 121: not JSON", "--bad-rows skip"]);
    let skip = ["--bad-rows", "skip"];
    let said = train(&lab, "@run", "@rows.jsonl", &skip).ok().stderr;
    for part in [
        "rows.jsonl: 2 of 200 rows cannot be used and are left out",
        "  line 4, column `text`: expected a text, found `5`",
        "  line 121: not JSON: EOF while parsing an object at column 13",
    ] {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
    let notes: Value =
        serde_json::from_slice(&fs::read(lab.path("run/adapter/lowrank.json")).unwrap()).unwrap();
    assert_eq!(
        notes["labels"],
        json!(["high", "low"]),
        "a bad row adds no class"
    );
    let config = fs::read_to_string(lab.path("run/config.yaml")).unwrap();
    assert!(config.contains("bad_rows: skip"), "{config}");
    let words = [
        "predict",
        "--model",
        "@model",
        "--adapter",
        "@run",
        "--data-file",
        "@rows.jsonl",
        "--bad-rows",
        "skip",
    ];
    let predicted = run(&lab, &words).ok().stdout;
    let lines: Vec<Value> = predicted
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 200);
    assert!((1..).zip(&lines).all(|(n, line)| line["line"] == n));
    assert_eq!(
        lines[3],
        json!({ "line": 4, "skipped": "expected a text, found `5`" })
    );
    assert!(lines[120]["skipped"].is_string() && lines[119]["label"].is_string());
    let few = ["--bad-rows", "skip", "--max-bad-rows", "0.005"];
    check(&lab, "rows.jsonl", &few).fails(
        1,
        &[
            "at most 0.5 % of the rows may be left out",
            "--max-bad-rows 0.01",
        ],
    );
    check(&lab, "rows.jsonl", &["--max-bad-rows", "0.5"]).fails(2, &["--bad-rows skip"]);
    check(
        &lab,
        "rows.jsonl",
        &["--bad-rows", "skip", "--max-bad-rows", "1.5"],
    )
    .fails(2, &["from 0 to 1"]);
    check(&lab, "rows.jsonl", &["--bad-rows", "ignore"]).fails(2, &["error", "skip"]);
}

#[test]
fn long_rows_are_cut_left_out_or_refused_as_told() {
    let lab = Lab::new();
    let text = "text\tlabel\nw5\tlow\nw60 w61 w62 w63 w64 w65\thigh\n";
    fs::write(lab.path("long.tsv"), text).unwrap();
    let with = |what: &str| {
        check(
            &lab,
            "long.tsv",
            &["--max-length", "5", "--long-rows", what],
        )
    };
    assert!(
        with("truncate")
            .ok()
            .stdout
            .contains("1 row by 3 tokens; 0 rows dropped")
    );
    assert!(
        with("drop")
            .ok()
            .stdout
            .contains("0 rows by 0 tokens; 1 row dropped")
    );
    with("error").fails(
        1,
        &[
            "line 3, column `text`: 8 tokens, at most 5 are allowed",
            "--long-rows",
        ],
    );
}

#[test]
fn what_a_prompt_is_about_is_trained_on_and_generated_from() {
    let lab = LanguageLab::new();
    let row = json!({ "instruction": "name", "input": "food : Italian", "output": "Zizzi" });
    let plain = json!({ "instruction": "name", "input": "", "output": "Zizzi" });
    fs::write(
        lab.path("alpaca.jsonl"),
        format!("{row}\n{plain}\n").repeat(4),
    )
    .unwrap();
    let base = ["--model", "@base", "--threads", "1"];
    let seen = lab
        .run(
            &[
                &["check", "--train-file", "@alpaca.jsonl", "--samples", "2"],
                &base[..],
            ]
            .concat(),
        )
        .ok()
        .stdout;
    assert!(
        seen.contains("prompt `instruction`, context `input`, completion `output`"),
        "{seen}"
    );
    assert!(seen.contains("name\\nfood : Italian"), "{seen}");
    let train = [
        "train",
        "--train-file",
        "@alpaca.jsonl",
        "--from-scratch",
        "--full",
        "--max-steps",
        "1",
        "--warmup-steps",
        "0",
    ];
    for (run, template) in [("@joined", None), ("@alpaca", Some("alpaca"))] {
        let layout = template.map_or(vec![], |name| vec!["--template", name]);
        lab.run(&[&train[..], &["--output-dir", run], &layout, &base].concat())
            .ok();
    }
    // Prompts of a file are made of the same columns, completions or not.
    fs::write(
        lab.path("asked.jsonl"),
        format!(
            "{}\n",
            json!({ "instruction": "name", "input": "food : Italian" })
        ),
    )
    .unwrap();
    let model = lab.path("joined/model").display().to_string();
    let ask = |more: &[&str]| {
        let words = [
            "generate",
            "--model",
            &model,
            "--threads",
            "1",
            "--max-new-tokens",
            "2",
            "--json",
        ];
        lab.run(&[&words[..], more].concat()).ok().stdout
    };
    let of_file = ask(&["--prompt-file", "@asked.jsonl"]);
    assert!(of_file.contains("name\\nfood : Italian"), "{of_file}");
    assert_eq!(
        ask(&["--prompt-file", "@alpaca.jsonl"]).lines().next(),
        of_file.lines().next()
    );
}

#[test]
fn plain_text_trains_a_language_model_and_nothing_else() {
    let lab = LanguageLab::new();
    fs::write(
        lab.path("a.txt"),
        "Zizzi serves food.\n\nAromi serves food.\n",
    )
    .unwrap();
    let words = [
        "check",
        "--model",
        "@base",
        "--threads",
        "1",
        "--train-file",
        "@a.txt",
    ];
    let seen = lab.run(&words).ok().stdout;
    assert!(seen.contains("(text, 2 rows)"), "{seen}");
    assert!(
        seen.contains("each line that is not blank is a row"),
        "{seen}"
    );
    let labelled = [&words[..], &["--task", "single_label"]].concat();
    lab.run(&labelled)
        .fails(1, &["a text file holds no labels", "--task causal_lm"]);
}

#[test]
fn a_pipe_is_no_data_file() {
    let lab = Lab::new();
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/zero", lab.path("zero.jsonl")).unwrap();
    #[cfg(unix)]
    check(&lab, "zero.jsonl", &[]).fails(1, &["zero.jsonl", "a device"]);
    check(&lab, "model", &[]).fails(1, &["is a folder"]);
    fs::copy(lab.path("train.tsv"), lab.path("train.xlsx")).unwrap();
    check(&lab, "train.xlsx", &[]).fails(1, &["the format cannot be told", ".jsonl"]);
}
