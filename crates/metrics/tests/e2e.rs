//! The scores that e2e-metrics gives 21 systems on the E2E validation set, to every digit
//! published, from the raw texts. Needs ../shared; without it each test says so and passes.

use std::path::{Path, PathBuf};

use lowrank_metrics::{Segment, bleu, cider, nist, ptb, rouge_l};
use serde_json::Value;

/// The folder of the shared data, or a loud note.
fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data/artifacts/e2e_metrics");
    let folder = std::env::var_os("LOWRANK_E2E_METRICS").map_or(folder, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no `{}`", folder.display());
    None
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&text(path)).expect("JSON")
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().expect("a list");
    items
        .iter()
        .map(|s| s.as_str().expect("a string").to_owned())
        .collect()
}

/// One system: its file's name, raw segments, and the scores by column.
struct System {
    name: String,
    segments: Vec<Segment>,
    row: Vec<String>,
}

fn systems(folder: &Path) -> Vec<System> {
    let references: Vec<Vec<String>> = json(folder.join("dev_refs_ptb.json"))
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| strings(&row["refs"]))
        .collect();
    let scores = text(folder.join("expected_scores.tsv"));
    let mut systems = Vec::new();
    for line in scores.lines().skip(1) {
        let row: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let name = row[1].clone();
        let outputs = text(folder.join("dev_outputs_ukp").join(&name));
        let outputs: Vec<&str> = outputs.lines().collect();
        assert_eq!(outputs.len(), references.len(), "{name}");
        let segments = outputs.into_iter().zip(&references);
        systems.push(System {
            name,
            segments: segments
                .map(|(o, r)| Segment::new(o, r.iter().cloned()))
                .collect(),
            row,
        });
    }
    assert_eq!(systems.len(), 21);
    systems
}

/// Half a unit of the last of four digits. The numbers themselves agree to about 1e-15; a metric
/// that is off shows.
fn check(name: &str, metric: &str, found: f64, expected: &str) {
    let rounded = format!("{found:.4}");
    let rounded = rounded.trim_end_matches('0');
    assert_eq!(
        rounded,
        expected.trim_end_matches('0'),
        "{metric} of {name}: {found}"
    );
}

#[test]
fn every_published_digit() {
    let Some(folder) = folder() else { return };
    for system in systems(&folder) {
        let tokenised: Vec<Segment> = ptb::tokenize_all(&system.segments);
        let scores = [
            ("BLEU", bleu::score(&system.segments), 2),
            ("NIST", nist::score(&system.segments), 3),
            ("ROUGE-L", rouge_l::score(&tokenised), 5),
            ("CIDEr", cider::score(&tokenised), 6),
        ];
        for (metric, found, column) in scores {
            check(&system.name, metric, found, &system.row[column]);
        }
    }
}

#[test]
fn ptb_tokens_are_those_of_the_published_tokeniser() {
    let Some(folder) = folder() else { return };
    let (mut raw, mut expected) = (Vec::new(), Vec::new());
    for row in json(folder.join("dev_refs_ptb.json"))
        .as_array()
        .expect("a list")
    {
        raw.extend(strings(&row["refs"]));
        expected.extend(strings(&row["refs_ptb"]));
    }
    assert_eq!(expected.len(), 4672);
    assert_eq!(ptb::lines(raw.iter().map(String::as_str)), expected);
    for system in systems(&folder) {
        let file = format!("{}.ptb.json", system.name);
        let expected = strings(&json(folder.join("dev_outputs_ukp").join(file)));
        let found = ptb::lines(system.segments.iter().map(|s| s.output.as_str()));
        assert_eq!(found, expected, "{}", system.name);
    }
}
