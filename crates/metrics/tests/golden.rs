//! Texts of our own, with the numbers that sacreBLEU, pyter and coco-caption give them
//! (`tools/golden/generated_text.py`).

use lowrank_metrics::{Segment, cider, pyter, rouge_l, sacrebleu, ter};
use lowrank_testkit::read_golden_json;
use serde_json::Value;

fn segments(row: &Value) -> Vec<Segment> {
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().expect("a list").iter();
        items
            .map(|text| text.as_str().expect("a text").to_owned())
            .collect()
    };
    let outputs = texts(&row["outputs"]);
    let references = row["references"]
        .as_array()
        .expect("a list")
        .iter()
        .map(texts);
    outputs
        .into_iter()
        .zip(references)
        .map(|(o, r)| Segment::new(o, r))
        .collect()
}

/// coco-caption's scores are given texts that are lower-cased and nothing else.
fn lower(segments: &[Segment]) -> Vec<Segment> {
    segments
        .iter()
        .map(|segment| segment.map(str::to_lowercase))
        .collect()
}

#[test]
fn scores_are_those_of_the_packages() {
    let golden = read_golden_json("generated_text.json").expect("golden file");
    let rows = golden["rows"].as_array().expect("rows");
    assert!(rows.len() >= 8);
    for row in rows {
        let segments = segments(row);
        let scores = [
            ("sacrebleu", sacrebleu::score(&segments)),
            ("ter", ter::score(&segments)),
            ("pyter", pyter::score(&segments)),
            ("rouge_l", rouge_l::score(&lower(&segments))),
            ("cider", cider::score(&lower(&segments))),
        ];
        for (name, found) in scores {
            let expected = row[name].as_f64().expect("a number");
            // The same numbers in another order of sums: the largest difference measured is
            // 4.4e-16.
            let error = (found - expected).abs();
            assert!(
                error <= 1e-14 * expected.abs().max(1.0),
                "{name} of {}: {found} {expected}",
                row["name"]
            );
        }
    }
}
