//! The promise of the pre-flight: it finds what is odd, and is silent where nothing is.

use std::path::Path;

use lowrank_data::check::{CheckFile, CheckOptions, CheckReport, LabelBalance, Lengths, check};
use lowrank_data::{FileFormat, Header, LoadSpec, Table, Task, Tokenizer, examples_from_table};

fn report(files: &[(&str, &str)], spec: &LoadSpec) -> CheckReport {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert-uncased");
    let tokenizer = Tokenizer::from_dir(&dir, None).unwrap();
    let parsed: Vec<_> = files
        .iter()
        .map(|(name, text)| {
            let path = format!("{name}.csv");
            let table = Table::parse(
                Path::new(&path),
                text.as_bytes().to_vec(),
                FileFormat::Csv,
                Header::Present,
            )
            .unwrap();
            let loaded = examples_from_table(&table, spec, Some(&tokenizer)).unwrap();
            (*name, table, loaded)
        })
        .collect();
    let files: Vec<CheckFile> = parsed
        .iter()
        .map(|(name, table, loaded)| CheckFile {
            name,
            table,
            loaded,
        })
        .collect();
    check(
        &files,
        Some(&tokenizer),
        &CheckOptions {
            batch_size: 2,
            samples: 1,
        },
    )
}

#[test]
fn odd_rows_are_found() {
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.max_length = Some(8);
    let train = "text,label\nthe film is slow,neg\ngood film,pos\n the film is slow ,neg\ngood film,neg\n,pos\n\
                 the acting is fine and the ending makes good sense,pos\n";
    let validation = "text,label\ngood film,pos\n\u{4e2d}\u{6587},odd\n";
    let report = report(&[("train", train), ("validation", validation)], &spec);
    assert_eq!(
        report.warnings,
        [
            "train: 1 of 6 rows are cut, 11.8 % of all tokens are lost",
            "train: 1 row without text: line 6",
            "train: 2 rows with the text of an earlier one: line 4 = line 2, line 5 = line 3",
            "train: 1 row with the text of an earlier one and another label: line 5 = line 3",
            "validation: 25.0 % of the tokens are unknown to the vocabulary",
            "validation: 1 row also stands in train: line 2 = line 3",
            "validation: classes without a row in train: odd",
        ]
    );
    let sample = &report.files[0].samples[0];
    assert_eq!(
        (sample.text.as_str(), sample.label.as_str(), sample.line),
        ("[CLS] the film is slow [SEP]", "neg", 2)
    );
    let text = report.render();
    for part in [
        "train\n  file        train.csv (csv, 6 rows)",
        "label neg\n    [CLS] the film is slow [SEP]",
        "warnings (7)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["files"][0]["duplicates"]["count"], 2);
}

#[test]
fn nothing_odd_is_no_warning() {
    let train = "text,label\nthe film is slow,a\ngood film,b\n";
    let report = report(
        &[
            ("train", train),
            ("validation", "text,label\nthe acting is fine,a\nfine,b\n"),
        ],
        &LoadSpec::new(Task::SingleLabel),
    );
    assert_eq!(report.warnings, Vec::<String>::new());
    assert!(report.render().ends_with("no warnings\n"));
    // [CLS] + 4 + [SEP] beside [CLS] + 2 + [SEP]: two of twelve places would be padding.
    assert_eq!(
        (
            report.files[0].padding.tokens,
            report.files[0].padding.padded_tokens
        ),
        (10, 12)
    );
}

#[test]
fn a_dominant_class_and_constant_targets_are_said() {
    let rows: String = (0..20)
        .map(|i| format!("the film {i},{}\n", if i == 0 { "b" } else { "a" }))
        .collect();
    let found = report(
        &[("train", &format!("text,label\n{rows}"))],
        &LoadSpec::new(Task::SingleLabel),
    );
    assert!(
        found
            .warnings
            .contains(&"train: 95.0 % of the labels are `a`".to_string()),
        "{:?}",
        found.warnings
    );
    let found = report(
        &[("train", "text,score\nfilm,1\nslow film,1\n")],
        &LoadSpec::new(Task::Regression),
    );
    assert_eq!(found.warnings, ["train: all targets are 1"]);
    assert_eq!(
        found.files[0].labels,
        LabelBalance::Numbers {
            min: 1.0,
            mean: 1.0,
            std: 0.0,
            max: 1.0
        }
    );
}

#[test]
fn lengths_are_nearest_rank() {
    let lengths: Vec<usize> = (1..=100).rev().collect();
    let expected = Lengths {
        min: 1,
        median: 50,
        p95: 95,
        max: 100,
        mean: 50.5,
    };
    assert_eq!(Lengths::of(&lengths), expected);
    assert_eq!(
        Lengths::of(&[7]),
        Lengths {
            min: 7,
            median: 7,
            p95: 7,
            max: 7,
            mean: 7.0
        }
    );
    assert_eq!(Lengths::of(&[]).max, 0);
}

#[test]
fn texts_that_are_not_read_are_a_warning() {
    let train = "id,title,text,label,date\n\
                 a1,a good film,the film is slow,neg,2020-01-01 10:00\n\
                 a2,the acting,good film,pos,2020-01-02 10:00\n\
                 a3,,the ending,pos,2020-01-03 10:00\n";
    let report = report(&[("train", train)], &LoadSpec::new(Task::SingleLabel));
    assert_eq!(report.files[0].unread_texts, ["title"]);
    assert_eq!(
        report.warnings,
        [
            "train: column `title` holds texts and is not read: --text-pair-column takes a second text \
          (a language model's completion), --text-column another one"
        ]
    );
    // Said once for the file, however many rows there are.
    assert!(
        report.render().contains("not read    id, title, date"),
        "{}",
        report.render()
    );
}
