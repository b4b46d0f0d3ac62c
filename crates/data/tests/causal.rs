//! Rows of language models: how prompt and completion are laid out, which tokens count, and what
//! the pre-flight says of it.

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
        shown.contains("2 of 2 rows end with an end token"),
        "{shown}"
    );
    assert!(
        shown.contains("one<|endoftext|>« two<|endoftext|>»"),
        "{shown}"
    );
    let report = run(Some("{prompt} {completion}"));
    assert!(
        report.warnings[0].contains("will not learn to stop"),
        "{:?}",
        report.warnings
    );
}

/// The ids that a layout should give: pieces between end tokens, encoded each by itself.
fn laid(pieces: &[&str]) -> Vec<u32> {
    let tokenizer = tokenizer();
    let eos = tokenizer.eos_id().expect("GPT-2 has an end token");
    let mut ids = Vec::new();
    for piece in pieces {
        match *piece {
            "{eos}" => ids.push(eos),
            text => ids.extend(tokenizer.encode_plain(text).expect("plain text")),
        }
    }
    ids
}

#[test]
fn what_a_prompt_is_about_is_part_of_it() {
    for (text, prompt) in [
        (
            r#"{"instruction": "name it", "input": "a place", "output": "the name"}"#,
            "name it\na place",
        ),
        (
            r#"{"instruction": "name it", "context": "a place", "response": "the name", "category": "qa"}"#,
            "name it\na place",
        ),
        (
            r#"{"question": "name it", "context": "a place", "answer": "the name"}"#,
            "name it\na place",
        ),
        (
            r#"{"context": "a place", "question": "name it", "answers": {"text": ["the name", "x"], "answer_start": [1]}}"#,
            "name it\na place",
        ),
        (
            r#"{"system_prompt": "be good", "question": "name it", "response": "the name"}"#,
            "be good\nname it",
        ),
        (
            r#"{"instruction": "name it", "input": " ", "output": "the name", "history": [], "system": ""}"#,
            "name it",
        ),
        (
            r#"{"instruction": "name it", "input": null, "output": "the name"}"#,
            "name it",
        ),
        (
            r#"{"document": "name it", "summary": "the name"}"#,
            "name it",
        ),
    ] {
        let loaded = load(text, |_| {}).unwrap();
        let expected = laid(&[prompt, "{eos}", " the name", "{eos}"]);
        assert_eq!(loaded.examples[0].input_ids, expected, "{text}");
    }
}

#[test]
fn columns_beside_a_prompt_are_taken_left_out_or_refused_as_told() {
    let text =
        r#"{"instruction": "name it", "input": "a place", "hints": "two", "output": "the name"}"#;
    let loaded = load(text, |spec| {
        spec.columns.text = Some("instruction".into());
        spec.columns.text_pair = Some("output".into());
    })
    .unwrap();
    assert_eq!(loaded.report.ignored_columns, ["input", "hints"]);
    assert_eq!(
        loaded.examples[0].input_ids,
        laid(&["name it", "{eos}", " the name", "{eos}"])
    );
    let loaded = load(text, |spec| spec.columns.context = Some("hints".into())).unwrap();
    assert_eq!(loaded.report.ignored_columns, ["input"]);
    assert_eq!(
        loaded.examples[0].input_ids,
        laid(&["name it\ntwo", "{eos}", " the name", "{eos}"])
    );
    let history = r#"{"instruction": "name it", "input": "", "output": "the name", "history": [["hello", "yes"]]}"#;
    let error = load(history, |_| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("column `history`: earlier turns of a conversation"),
        "{error}"
    );
    let chat = r#"{"messages": [{"role": "user", "content": "hello"}]}"#;
    let error = load(chat, |_| {}).unwrap_err();
    assert!(
        error.to_string().contains("column `messages` holds chats"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("completion"));
}

#[test]
fn alpacas_layout_has_two_forms() {
    let with = r#"{"instruction": "name it", "input": "a place", "output": "the name"}"#;
    let without = r#"{"instruction": "name it", "input": "", "output": "the name"}"#;
    let tail =
        "Write a response that appropriately completes the request.\n\n### Instruction:\nname it";
    for (text, prompt) in [
        (
            with,
            format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. {tail}\n\n### Input:\na place\n\n### Response:"
            ),
        ),
        (
            without,
            format!("Below is an instruction that describes a task. {tail}\n\n### Response:"),
        ),
    ] {
        let loaded = load(text, |spec| spec.template = "alpaca".parse().unwrap()).unwrap();
        assert_eq!(
            loaded.examples[0].input_ids,
            laid(&[&prompt, "the name", "{eos}"])
        );
        assert_eq!(spec_text("alpaca"), "alpaca");
    }
    let own = "About {context}: {prompt}{eos} {completion}{eos}";
    let loaded = load(with, |spec| spec.template = own.parse().unwrap()).unwrap();
    assert_eq!(
        loaded.examples[0].input_ids,
        laid(&["About a place: name it", "{eos}", " the name", "{eos}"])
    );
}

fn spec_text(template: &str) -> String {
    let template: lowrank_data::Template = template.parse().expect("a template");
    template.to_string()
}

#[test]
fn prompts_alone_are_made_as_in_training() {
    let prompts = |text: &str| {
        let prompts = lowrank_data::prompts_of(&table(text), &lowrank_data::ColumnSpec::default());
        prompts.map(|prompts| prompts[0].joined())
    };
    for (text, expected) in [
        (
            r#"{"instruction": "name it", "input": "a place", "output": "the name"}"#,
            "name it\na place",
        ),
        (
            r#"{"instruction": "name it", "context": "a place"}"#,
            "name it\na place",
        ),
        (r#"{"input": "a place"}"#, "a place"),
        (r#"{"context": "a place", "completion": "x"}"#, "a place"),
        (r#"{"text": "a place"}"#, "a place"),
    ] {
        assert_eq!(prompts(text).unwrap(), expected, "{text}");
    }
    let error = prompts(r#"{"name": "x"}"#).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no column is known to hold the prompt"),
        "{error}"
    );
}

#[test]
fn prompts_with_their_completions_are_made_as_in_training() {
    let completed = |text: &str| {
        lowrank_data::completed_of(&table(text), &lowrank_data::ColumnSpec::default()).unwrap()
    };
    let rows = completed(r#"{"instruction": "name it", "input": "a place", "output": "the name"}"#);
    let row = &rows.expect("a pair is known")[0];
    assert_eq!(
        (
            row.prompt.joined().as_str(),
            row.completion.as_str(),
            row.line
        ),
        ("name it\na place", "the name", 1)
    );
    assert_eq!(completed(r#"{"text": "a place"}"#), None);
    assert_eq!(completed(r#"{"name": "a place"}"#), None);
}

#[test]
fn plain_text_is_a_row_a_line() {
    let table = Table::parse(
        Path::new("a.txt"),
        b"the name\n\na place\n".to_vec(),
        FileFormat::Text,
        Header::Present,
    )
    .unwrap();
    let loaded =
        examples_from_table(&table, &LoadSpec::new(Task::CausalLm), Some(&tokenizer())).unwrap();
    let rows: Vec<_> = loaded
        .examples
        .iter()
        .map(|example| example.input_ids.clone())
        .collect();
    assert_eq!(
        rows,
        [laid(&["the name", "{eos}"]), laid(&["a place", "{eos}"])]
    );
    assert_eq!(
        loaded.report.notes,
        ["each line that is not blank is a row"]
    );
}

#[test]
fn a_long_prompt_keeps_its_end_and_a_long_completion_its_beginning() {
    let words = ["the", "name", "of", "a", "place", "one", "two,", "three"];
    let long: String = (0..80_000)
        .map(|i| words[i * 7 % 5 + i % 4])
        .collect::<Vec<_>>()
        .join(" ");
    assert!(long.len() > 300_000);
    let whole = laid(&[&long, "{eos}", " the name", "{eos}"]);
    let text = serde_json::json!({ "prompt": long, "completion": "the name" }).to_string();
    let loaded = load(&text, |spec| spec.max_length = Some(40)).unwrap();
    assert_eq!(loaded.examples[0].input_ids, whole[whole.len() - 40..]);
    let whole = laid(&["the name", "{eos}", &format!(" {long}"), "{eos}"]);
    let text = serde_json::json!({ "prompt": "the name", "completion": long }).to_string();
    let loaded = load(&text, |spec| spec.max_length = Some(40)).unwrap();
    // One token of the prompt stays, the end token; then the completion's beginning.
    let eos = laid(&["the name"]).len();
    assert_eq!(loaded.examples[0].input_ids, whole[eos..eos + 40]);
    let text = serde_json::json!({ "text": long }).to_string();
    let loaded = load(&text, |spec| spec.max_length = Some(40)).unwrap();
    assert_eq!(loaded.examples[0].input_ids, laid(&[&long])[..40]);
}

#[test]
fn none_in_the_place_of_a_context_leaves_out_all_that_stands_beside_the_prompt() {
    let alone = load(
        r#"{"instruction": "name it", "output": "the name"}"#,
        |_| {},
    )
    .unwrap();
    for text in [
        r#"{"instruction": "name it", "input": "a place", "output": "the name"}"#,
        r#"{"system": "be short", "instruction": "name it", "output": "the name"}"#,
        r#"{"instruction": "name it", "context": "a place", "output": "the name"}"#,
    ] {
        let with = load(text, |_| {}).unwrap();
        let without = load(text, |spec| spec.columns.context = Some("none".into())).unwrap();
        assert_eq!(without.examples[0].input_ids, alone.examples[0].input_ids);
        assert_ne!(with.examples[0].input_ids, alone.examples[0].input_ids);
    }
    // A column that has the word for its name is one.
    let text = r#"{"instruction": "name it", "none": "a place", "output": "the name"}"#;
    let named = load(text, |spec| spec.columns.context = Some("none".into())).unwrap();
    assert_ne!(named.examples[0].input_ids, alone.examples[0].input_ids);
}
