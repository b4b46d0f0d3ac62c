//! `lowrank eval` of texts that are there already: formats, METEOR's tables, the published scores,
//! and what it refuses.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Ran, lowrank};

const OUTPUTS: &str = "The Vaults is a cheap pub.\nA cafe in the city centre, near the river.\n";
const REFERENCES: &str = "The Vaults is a cheap pub by the river.\nA cheap pub is The Vaults.\n\n\
    Near the river is a cafe.\n\n";

struct Texts {
    dir: tempfile::TempDir,
}

impl Texts {
    fn new() -> Self {
        let texts = Self {
            dir: tempfile::tempdir().expect("a folder"),
        };
        texts.write("out.txt", OUTPUTS);
        texts.write("refs.txt", REFERENCES);
        texts
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).unwrap();
        fs::write(path, text).unwrap();
    }

    fn score(&self, outputs: &str, references: &str, more: &[&str]) -> Ran {
        let (outputs, references) = (self.path(outputs), self.path(references));
        let words = ["eval", "--outputs", &outputs, "--references", &references];
        lowrank(&[&words, more].concat())
    }
}

#[test]
fn every_way_to_write_the_same_texts() {
    let texts = Texts::new();
    let plain = texts.score("out.txt", "refs.txt", &["--json"]).ok().json();
    assert_eq!(
        (&plain["segments"], &plain["references"]),
        (&json!(2), &json!(3))
    );
    let scores = plain["scores"].as_object().unwrap();
    assert_eq!(scores.len(), 8);
    // By hand: 6 of 6 words are in order in the first reference, which has 9; then 3 of 9 in one
    // that has 6.
    let rouge = |p: f64, r: f64| 2.44 * p * r / (r + 1.44 * p);
    let expected = (rouge(1.0, 6.0 / 9.0) + rouge(3.0 / 9.0, 3.0 / 6.0)) / 2.0;
    let found = scores["rouge_l"].as_f64().unwrap();
    assert!((found - expected).abs() < 1e-12, "{found} {expected}");

    let lines = |rows: Vec<Value>| {
        rows.iter()
            .map(|row| format!("{row}\n"))
            .collect::<String>()
    };
    let outputs = OUTPUTS
        .lines()
        .map(|text| json!({ "prompt": "x", "text": text }));
    texts.write("out.jsonl", lines(outputs.collect()));
    let groups = REFERENCES.trim_end().split("\n\n").map(|group| {
        let group: Vec<&str> = group.lines().collect();
        json!({ "references": group })
    });
    texts.write("refs.jsonl", lines(groups.clone().collect()));
    let with_prompts = groups.map(|mut row| {
        row["prompt"] = json!("x");
        row
    });
    texts.write("rows.jsonl", lines(with_prompts.collect()));
    for (outputs, references) in [("out.jsonl", "refs.jsonl"), ("out.txt", "rows.jsonl")] {
        let same = texts.score(outputs, references, &["--json"]).ok().json();
        assert_eq!(same, plain, "{outputs} {references}");
    }
    texts.write(
        "crlf.txt",
        format!("\u{feff}{}", REFERENCES.replace('\n', "\r\n")),
    );
    let same = texts.score("out.txt", "crlf.txt", &["--json"]).ok().json();
    assert_eq!(same, plain);

    let table = texts
        .score("out.txt", "refs.txt", &["--metrics", "bleu,rouge-l"])
        .ok();
    assert!(table.stdout.contains("ROUGE-L") && !table.stdout.contains("METEOR"));
    assert!(table.stderr.is_empty(), "{}", table.stderr);
}

#[test]
fn meteor_says_what_it_ran_without() {
    let texts = Texts::new();
    let bare = texts
        .score("out.txt", "refs.txt", &["--metrics", "meteor"])
        .ok();
    assert!(bare.stdout.contains("METEOR 1.5 (incomplete)"));
    assert!(
        bare.stderr
            .contains("without function words, synonyms, paraphrases")
    );
    texts.write("met/function/english.words", "the\na\n");
    texts.write("met/synonym/english.synsets", "pub\n1\ncafe\n1\n");
    texts.write("met/synonym/english.exceptions", "");
    let dir = texts.path("met");
    let with = |more: &[&str]| {
        let words = [&["--metrics", "meteor", "--meteor-dir", &dir], more].concat();
        texts.score("out.txt", "refs.txt", &words).ok()
    };
    assert!(with(&[]).stderr.contains("without paraphrases,"));
    assert_eq!(
        with(&["--json"]).json()["meteor_without"],
        json!(["paraphrases"])
    );
    texts.write("met/paraphrase-en", "0.5\ncheap\nby\n");
    let whole = with(&[]);
    assert!(whole.stdout.contains("METEOR 1.5  ") && whole.stderr.is_empty());
}

/// WebNLG's categories that training had not seen are scored apart.
#[test]
fn seen_and_unseen_apart() {
    let texts = Texts::new();
    let row = |seen: bool, text: &str| json!({ "category": "City", "seen": seen, "triples": [["a", "b", "c"]], "texts": [text] });
    let rows = [
        row(true, "the vaults is a cheap pub ."),
        row(false, "nothing like it at all"),
    ];
    texts.write("webnlg.jsonl", format!("{}\n{}\n", rows[0], rows[1]));
    let parts = texts
        .score("out.txt", "webnlg.jsonl", &["--json"])
        .ok()
        .json();
    assert_eq!(parts["seen"]["scores"]["paper_ter"], json!(0.0));
    assert!(parts["unseen"]["scores"]["paper_ter"].as_f64().unwrap() > 0.9);
    assert_eq!(parts["segments"], json!(2));
    let table = texts.score("out.txt", "webnlg.jsonl", &[]).ok().stdout;
    assert!(table.contains("unseen"), "{table}");
}

#[test]
fn what_scoring_refuses() {
    let texts = Texts::new();
    let fails = |outputs: &str, references: &str, words: &[&str]| {
        texts.score(outputs, references, &[]).fails(1, words);
    };
    texts.write("short.txt", "one\n");
    fails(
        "short.txt",
        "refs.txt",
        &["1 outputs", "2 groups", "refs.txt`, line 4"],
    );
    texts.write("long.txt", "one\ntwo\nthree\nfour\n");
    fails(
        "long.txt",
        "refs.txt",
        &["4 outputs", "2 groups", "long.txt`, line 3", "hint:"],
    );
    texts.write("empty.txt", "");
    fails("empty.txt", "refs.txt", &["empty.txt", "no output"]);
    fails("out.txt", "empty.txt", &["empty.txt", "no reference"]);
    texts.write("hole.txt", "one\n\n\ntwo\n");
    fails(
        "out.txt",
        "hole.txt",
        &["hole.txt", "line 3", "group of references is empty"],
    );
    texts.write("latin.txt", b"one\ntw\xf6\n");
    fails("latin.txt", "refs.txt", &["latin.txt", "line 2", "UTF-8"]);
    fails("out.txt", "latin.txt", &["latin.txt", "line 2", "UTF-8"]);
    fails("none.txt", "refs.txt", &["cannot read", "none.txt"]);
    texts.write(
        "a.jsonl",
        "{\"references\": [\"x\"]}\n{\"references\": []}\n",
    );
    fails("out.txt", "a.jsonl", &["a.jsonl", "line 2", "empty"]);
    texts.write(
        "b.jsonl",
        "{\"references\": [\"x\"]}\n{\"references\": [5]}\n",
    );
    fails("out.txt", "b.jsonl", &["b.jsonl", "line 2", "no text"]);
    texts.write("c.jsonl", "{\"reference\": \"x\"}\n");
    fails(
        "out.txt",
        "c.jsonl",
        &["no column `references`", "found reference"],
    );
    fails(
        "c.jsonl",
        "refs.txt",
        &["no column `text`", "found reference"],
    );
    texts.write("d.jsonl", "{\"text\": 5}\n{\"text\": \"x\"}\n");
    fails("d.jsonl", "refs.txt", &["d.jsonl", "line 1", "no text"]);
    // Empty lines are outputs that are empty: counted, not refused.
    texts.write("blank.txt", "\none\n");
    let blank = texts.score("blank.txt", "refs.txt", &[]).ok();
    assert!(blank.stderr.contains("1 of 2 outputs are empty"));
}

#[test]
fn what_the_request_refuses() {
    let texts = Texts::new();
    let (outputs, references) = (texts.path("out.txt"), texts.path("refs.txt"));
    lowrank(&["eval", "--outputs", &outputs]).fails(2, &["--references"]);
    lowrank(&["eval", "--references", &references]).fails(2, &["--outputs"]);
    lowrank(&["eval", "--outputs", &outputs, "--model", "x"]).fails(2, &["cannot be used with"]);
    texts
        .score("out.txt", "refs.txt", &["--metrics", "blue"])
        .fails(2, &["no metric `blue`", "did you mean `bleu`"]);
    let dir = |name: &str, words: &[&str]| {
        let ran = texts.score("out.txt", "refs.txt", &["--meteor-dir", &texts.path(name)]);
        ran.fails(1, words);
    };
    dir(
        "nowhere",
        &["nowhere", "no table of METEOR", "meteor-1.5.jar"],
    );
    texts.write("jar/meteor-1.5.jar", "PK, but no archive");
    dir("jar", &["meteor-1.5.jar", "damaged"]);
    texts.write("cut/synonym/english.synsets", "pub\n1\ncafe\n");
    texts.write("cut/synonym/english.exceptions", "");
    dir("cut", &["english.synsets", "line 4", "without its synsets"]);
    texts.write("gz/paraphrase-en.gz", "not packed");
    dir("gz", &["paraphrase-en.gz", "no table of METEOR"]);
}

/// All five columns of the 21 systems whose scores e2e-metrics published, METEOR with its own
/// tables.
#[test]
fn the_published_scores() {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = shared.join("artifacts/e2e_metrics");
    let tables = std::env::var("LOWRANK_METEOR_DIR").unwrap_or_default();
    if !folder.is_dir() || tables.is_empty() {
        eprintln!(
            "SKIPPED: needs `{}` and LOWRANK_METEOR_DIR",
            folder.display()
        );
        return;
    }
    let references = shared
        .join("e2e/validation.grouped.jsonl")
        .display()
        .to_string();
    let expected = fs::read_to_string(folder.join("expected_scores.tsv")).unwrap();
    for line in expected.lines().skip(1) {
        let row: Vec<&str> = line.split('\t').collect();
        let outputs = folder
            .join("dev_outputs_ukp")
            .join(row[1])
            .display()
            .to_string();
        let words = ["eval", "--outputs", &outputs, "--references", &references];
        let more = [
            "--metrics",
            "bleu,nist,meteor,rouge_l,cider",
            "--json",
            "--meteor-dir",
            &tables,
        ];
        let found = lowrank(&[&words[..], &more[..]].concat()).ok().json();
        assert_eq!(found["meteor_without"], json!([]));
        for (name, digits) in ["bleu", "nist", "meteor", "rouge_l", "cider"]
            .iter()
            .zip(&row[2..])
        {
            let found = format!("{:.4}", found["scores"][name].as_f64().unwrap());
            assert_eq!(found.trim_end_matches('0'), *digits, "{name} of {}", row[1]);
        }
    }
}
