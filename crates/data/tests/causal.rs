//! Rows of language models: how prompt and completion are laid out, which tokens count, and what the pre-flight says of it.

use std::path::Path;

use lowrank_data::check::{CheckFile, CheckOptions, check};
use lowrank_data::{
    DataError, FileFormat, Header, IGNORE_INDEX, Label, LoadSpec, Loaded, Table, Task, TextColumns,
    Tokenizer, examples_from_table,
};

fn tokenizer() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2");
    Tokenizer::from_dir(&dir, None).expect("the fixture loads")
}

fn table(text: &str) -> Table {
    let bytes = text.as_bytes().to_vec();
    Table::parse(
        Path::new("rows.jsonl"),
        bytes,
        FileFormat::Jsonl,
        Header::Present,
    )
    .expect("the rows are JSON")
}

fn load(text: &str, change: impl FnOnce(&mut LoadSpec)) -> Result<Loaded, DataError> {
    let mut spec = LoadSpec::new(Task::CausalLm);
    change(&mut spec);
    examples_from_table(&table(text), &spec, Some(&tokenizer()))
}

fn labels(loaded: &Loaded, row: usize) -> &[i64] {
    match &loaded.examples[row].label {
        Label::Tokens(labels) => labels,
        other => panic!("expected labels of tokens, found {other:?}"),
    }
}

#[test]
fn a_prompt_and_its_completion_as_in_the_papers_code() {
    let tokenizer = tokenizer();
    let loaded = load(r#"{"prompt": "the name", "completion": "a place"}"#, |_| {}).unwrap();
    let eos = tokenizer.eos_id().expect("GPT-2 has an end token");
    let prompt = tokenizer.encode_plain("the name").unwrap();
    let completion = tokenizer.encode_plain(" a place").unwrap();
    let expected = [&prompt[..], &[eos], &completion, &[eos]].concat();
    assert_eq!(loaded.examples[0].input_ids, expected);
    let found = labels(&loaded, 0);
    let (masked, counted) = found.split_at(prompt.len() + 1);
    assert!(masked.iter().all(|label| *label == IGNORE_INDEX));
    let counted: Vec<u32> = counted.iter().map(|label| *label as u32).collect();
    assert_eq!(counted, [&completion[..], &[eos]].concat());
}

#[test]
fn another_template_and_a_row_that_is_too_long() {
    let tokenizer = tokenizer();
    let text = r#"{"question": "one two three", "answer": "four"}"#;
    let loaded = load(text, |spec| {
        spec.template = "{prompt}\nA:{completion}".parse().unwrap();
    })
    .unwrap();
    let prompt = tokenizer.encode_plain("one two three\nA:").unwrap();
    assert!(loaded.examples[0].input_ids.starts_with(&prompt));
    assert_eq!(
        labels(&loaded, 0)[prompt.len()],
        i64::from(loaded.examples[0].input_ids[prompt.len()])
    );
    let whole = loaded.examples[0].input_ids.clone();
    let counted = whole.len() - prompt.len();
    let cut = load(text, |spec| {
        spec.template = "{prompt}\nA:{completion}".parse().unwrap();
        spec.max_length = Some(counted + 1);
    })
    .unwrap();
    assert_eq!(
        cut.examples[0].input_ids,
        whole[whole.len() - counted - 1..]
    );
    assert_eq!(
        labels(&cut, 0)
            .iter()
            .filter(|l| **l != IGNORE_INDEX)
            .count(),
        counted
    );
    assert_eq!(cut.report.truncated_rows, 1);
}

#[test]
fn plain_text_counts_but_for_its_first_token() {
    let loaded = load("{\"text\": \"one two\"}\n{\"text\": \"\"}", |_| {}).unwrap();
    let ids: Vec<i64> = loaded.examples[0]
        .input_ids
        .iter()
        .map(|id| (*id).into())
        .collect();
    assert_eq!(labels(&loaded, 0)[0], IGNORE_INDEX);
    assert_eq!(labels(&loaded, 0)[1..], ids[1..]);
    let eos = tokenizer().eos_id().unwrap();
    assert_eq!(loaded.examples[0].input_ids.last(), Some(&eos));
    // An empty text is the end token alone, which nothing predicts.
    assert_eq!(labels(&loaded, 1), [IGNORE_INDEX]);
}

#[test]
fn rows_of_ids_with_and_without_labels() {
    let text = "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, 7]}\n{\"input_ids\": [5, 6], \"labels\": [5, 6]}";
    let loaded = load(text, |_| {}).unwrap();
    assert!(matches!(
        loaded.report.columns.text,
        TextColumns::Ids { .. }
    ));
    assert_eq!(labels(&loaded, 0), [-100, -100, 7]);
    assert_eq!(labels(&loaded, 1), [-100, 6]);
    let loaded = load("{\"input_ids\": [5, 6, 7]}", |_| {}).unwrap();
    assert_eq!(labels(&loaded, 0), [-100, 6, 7]);
    let vocabulary = |spec: &mut LoadSpec| spec.vocab_size = Some(10);
    let error = load(
        "{\"input_ids\": [5, 6], \"labels\": [-100, 10]}",
        vocabulary,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("line 1, column `labels`"),
        "{error}"
    );
    let error = load("{\"input_ids\": [5, 6], \"labels\": [1]}", |_| {}).unwrap_err();
    assert!(error.to_string().contains("labels"), "{error}");
}

#[test]
fn the_check_shows_what_counts_and_whether_the_end_token_does() {
    let text = "{\"prompt\": \"one\", \"completion\": \"two\"}\n{\"prompt\": \"one\", \"completion\": \"three\"}";
    let run = |template: Option<&str>| {
        let tokenizer = tokenizer();
        let mut spec = LoadSpec::new(Task::CausalLm);
        if let Some(template) = template {
            spec.template = template.parse().unwrap();
        }
        let table = table(text);
        let loaded = examples_from_table(&table, &spec, Some(&tokenizer)).unwrap();
        let file = CheckFile {
            name: "train",
            table: &table,
            loaded: &loaded,
        };
        let options = CheckOptions {
            batch_size: 2,
            samples: 1,
        };
        check(&[file], Some(&tokenizer), &options)
    };
    let report = run(None);
    let loss = report.files[0].loss.expect("a language model's rows");
    assert_eq!(loss.rows_with_end, 2);
    let shown = report.render();
    assert!(
        shown.contains("2 of 2 rows end with the end token"),
        "{shown}"
    );
    assert!(shown.contains("label « two<|endoftext|>»"), "{shown}");
    let report = run(Some("{prompt} {completion}"));
    assert!(
        report.warnings[0].contains("will not learn to stop"),
        "{:?}",
        report.warnings
    );
}
