//! The promise on data files: what is read from each format, and what each fault says.

use std::path::{Path, PathBuf};

use lowrank_data::{
    BadRows, ColumnSpec, DataError, FileFormat, Header, IGNORE_INDEX, Label, LabelColumns,
    LabelMap, LabelNeed, LoadSpec, Loaded, LongRows, Table, Task, TextColumns, Tokenizer,
    examples_from_table, load_examples,
};

fn tokenizer(name: &str) -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    Tokenizer::from_dir(&dir, None).unwrap()
}

fn parse(text: &str, name: &str) -> Result<Table, DataError> {
    let format = FileFormat::from_path(Path::new(name))?;
    Table::parse(
        Path::new(name),
        text.as_bytes().to_vec(),
        format,
        Header::Present,
    )
}

fn load_with(text: &str, name: &str, spec: &LoadSpec) -> Result<Loaded, DataError> {
    examples_from_table(&parse(text, name)?, spec, Some(&tokenizer("bert-uncased")))
}

fn load(text: &str, name: &str, task: Task) -> Result<Loaded, DataError> {
    load_with(text, name, &LoadSpec::new(task))
}

/// The whole message of an error, with its hint.
fn message<T: std::fmt::Debug>(result: Result<T, DataError>) -> String {
    let error = result.unwrap_err();
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded
        .label_map
        .as_ref()
        .unwrap()
        .names()
        .iter()
        .map(String::as_str)
        .collect()
}

fn classes(loaded: &Loaded) -> Vec<u32> {
    let class = |label: &Label| match label {
        Label::Class(class) => *class,
        other => panic!("{other:?}"),
    };
    loaded
        .examples
        .iter()
        .map(|example| class(&example.label))
        .collect()
}

#[test]
fn the_same_rows_from_every_format() {
    let jsonl = "{\"text\": \"good film\", \"label\": \"pos\"}\n\n{\"text\": \"a \\\"bad\\\", slow film\", \"label\": \"neg\"}\n";
    let csv = "\u{feff}text,label\r\ngood film,pos\r\n\"a \"\"bad\"\", slow film\",neg\r\n";
    let tsv = "label\ttext\tnote\npos\tgood film\tx\nneg\ta \"bad\", slow film\t";
    let loaded: Vec<Loaded> = [(jsonl, "a.jsonl"), (csv, "a.csv"), (tsv, "a.tsv")]
        .map(|(text, name)| load(text, name, Task::SingleLabel).unwrap())
        .into();
    for other in &loaded {
        assert_eq!(names(other), ["neg", "pos"]);
        assert_eq!(classes(other), [1, 0]);
        for (a, b) in loaded[0].examples.iter().zip(other.examples.iter()) {
            assert_eq!(a.input_ids, b.input_ids);
        }
    }
    assert_eq!(
        loaded[0]
            .examples
            .iter()
            .map(|e| e.line)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    assert_eq!(loaded[0].report.blank_lines, 1);
    assert_eq!(
        loaded[1]
            .examples
            .iter()
            .map(|e| e.line)
            .collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(loaded[2].report.ignored_columns, ["note"]);
}

#[test]
fn line_numbers_hold_over_fields_of_several_lines() {
    let table = parse("text,label\n\"two\nlines\",1\n\nlast,0", "a.csv").unwrap();
    assert_eq!(
        table.rows().iter().map(|row| row.line).collect::<Vec<_>>(),
        [2, 5]
    );
    assert_eq!(table.to_json(&table.rows()[0])["text"], "two\nlines");
    assert_eq!(table.to_json(&table.rows()[1])["label"], "0");
}

#[test]
fn quotes_mean_nothing_in_tsv() {
    let table = parse("sentence\tlabel\n\"open quote\t1\nclosed\"\t0\n", "a.tsv").unwrap();
    assert_eq!(table.rows().len(), 2);
    assert_eq!(table.to_json(&table.rows()[0])["sentence"], "\"open quote");
}

#[test]
fn a_file_without_header_has_numbered_columns() {
    let table = Table::parse(
        Path::new("cola.tsv"),
        b"gj04\t1\t\tThey drank.\nx\t0\t*\tThey.\n".to_vec(),
        FileFormat::Tsv,
        Header::Absent,
    )
    .unwrap();
    assert_eq!(table.columns(), ["0", "1", "2", "3"]);
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.columns = ColumnSpec {
        text: Some("3".into()),
        label: Some("1".into()),
        ..ColumnSpec::default()
    };
    let loaded = examples_from_table(&table, &spec, Some(&tokenizer("bert-cased"))).unwrap();
    assert_eq!(classes(&loaded), [1, 0]);
}

#[test]
fn known_column_names_are_found() {
    for (header, expected, pair) in [
        ("sentence,label", "sentence", None),
        (
            "idx,sentence1,sentence2,label",
            "sentence1",
            Some("sentence2"),
        ),
        ("premise,hypothesis,label", "premise", Some("hypothesis")),
        ("question,sentence,label", "question", Some("sentence")),
        ("question1,question2,label", "question1", Some("question2")),
        ("text,label,rating", "text", None),
    ] {
        let row = header.split(',').map(|_| "1").collect::<Vec<_>>().join(",");
        let loaded = load(&format!("{header}\n{row}\n"), "a.csv", Task::SingleLabel).unwrap();
        let columns = TextColumns::Text {
            text: expected.into(),
            pair: pair.map(String::from),
        };
        assert_eq!(loaded.report.columns.text, columns, "{header}");
        assert_eq!(loaded.examples[0].token_type_ids.is_some(), pair.is_some());
    }
}

#[test]
fn whole_file_faults_say_where_and_what() {
    let cases = [
        ("", "a.jsonl", "`a.jsonl`: the file holds no row"),
        ("\n \n", "a.jsonl", "`a.jsonl`: the file holds no row"),
        (
            "text,label\n",
            "a.csv",
            "`a.csv`: the file holds no row, only a header",
        ),
        (
            "text,label\nx,1\n\"y,0\nz,1\n",
            "a.csv",
            "`a.csv`, line 3: the quote that opens field 1 is never closed\nhint: double each quote inside a quoted field, or name the file .tsv if quotes mean nothing in it",
        ),
        (
            "text,label\nx,1\ny\nz,1,2\n",
            "a.csv",
            "`a.csv`: 2 of 3 rows cannot be used\n  line 3: expected 2 fields as in the header, found 1\n  line 4: expected 2 fields as in the header, found 3\nhint: quote a field that holds the separator (CSV); a tab inside a TSV field cannot be written",
        ),
        (
            "{\"text\": {\"0\": \"x\", \"1\": \"y\"}, \"label\": {\"0\": 1, \"1\": 0}}",
            "a.json",
            "`a.json`, line 1: the file is one JSON object of columns, expected an object for each row\nhint: with pandas, write it by `to_json(FILE, orient=\"records\", lines=True)`",
        ),
        (
            "x",
            "a.xlsx",
            "`a.xlsx`: the format cannot be told from the extension\nhint: expected .jsonl or .json (objects such as `{\"text\": \"...\", \"label\": \"...\"}`), .csv or .tsv (a header `text,label`), .txt (a language model's text) or .parquet",
        ),
        (
            "",
            "a.jsonl.gz",
            "`a.jsonl.gz`, line 1: this is a gzip file, not text\nhint: unpack it first",
        ),
    ];
    for (text, name, expected) in cases {
        assert_eq!(message(parse(text, name)), expected);
    }
    let bytes = |bytes: &[u8]| {
        message(Table::parse(
            Path::new("a.csv"),
            bytes.to_vec(),
            FileFormat::Csv,
            Header::Present,
        ))
    };
    assert_eq!(
        bytes(b"text\nok\nna\xefve\n"),
        "`a.csv`, line 3: not UTF-8 text\nhint: convert it, for example `iconv -f latin1 -t utf-8 FILE`"
    );
    assert!(bytes(b"\xff\xfet\0e\0").starts_with("`a.csv`, line 1: UTF-16 text, expected UTF-8"));
    assert!(
        bytes(b"\x1f\x8b\x08\x00").starts_with("`a.csv`, line 1: this is a gzip file, not text")
    );
    let none = load_examples(
        Path::new("nowhere.csv"),
        &LoadSpec::new(Task::SingleLabel),
        None,
    );
    assert!(message(none).starts_with("cannot read `nowhere.csv`: "));
}

#[test]
fn a_row_that_is_not_json_is_named_by_line() {
    let text = "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": 1\n[1]\n{\"text\": \"c\", \"label\": NaN}\n";
    assert_eq!(
        message(parse(text, "a.jsonl")),
        "`a.jsonl`: 3 of 4 rows cannot be used\n  line 2: not JSON: EOF while parsing an object at column 24\n  \
         line 3: expected a JSON object, found a list\n  line 4: not JSON: expected value at column 24\n\
         hint: `NaN` and `Infinity` are no JSON: remove these rows, or write `null`"
    );
}

#[test]
fn a_printed_dictionary_is_told_how_to_be_written() {
    let error = message(parse("{'text': 'a', 'label': 1}\n", "a.jsonl"));
    assert!(error.contains("json.dumps"), "{error}");
}

#[test]
fn column_faults_name_the_nearest() {
    let text = "{\"sentense\": \"x\", \"lable\": 1}\n";
    assert_eq!(
        message(load(text, "a.jsonl", Task::SingleLabel)),
        "`a.jsonl`: no column is known to hold the text; found `sentense`, `lable`\n\
         hint: name the column of text with --text-column (and that of a second text with --text-pair-column)"
    );
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.columns.text = Some("sentence".into());
    assert_eq!(
        message(load_with(text, "a.jsonl", &spec)),
        "`a.jsonl`: no column `sentence` for the text; found `sentense`, `lable`\nhint: did you mean `sentense`?"
    );
    spec.columns.text = Some("sentense".into());
    assert_eq!(
        message(load_with(text, "a.jsonl", &spec)),
        "`a.jsonl`: no column is known to hold the label; found `sentense`, `lable`\nhint: name the column of labels with --label-column; where each label has a column of 0 and 1, name them with --label-columns"
    );
    let text = "{\"text\": \"x\", \"label\": 1}\n{\"txt\": \"x\", \"label\": 1}\n{\"text\": 5, \"label\": 1}\n{\"text\": \"x\", \"label\": null}\n";
    assert_eq!(
        message(load(text, "a.jsonl", Task::SingleLabel)),
        "`a.jsonl`: 3 of 4 rows cannot be used\n  line 2, column `text`: no value (the row has `txt`)\n  \
         line 3, column `text`: expected a text, found `5`\n  line 4, column `label`: no label\nhint: did you mean `txt`?"
    );
}

#[test]
fn labels_may_be_names_numbers_and_booleans() {
    let rows = |labels: &[&str]| {
        labels
            .iter()
            .map(|l| format!("{{\"text\": \"x\", \"label\": {l}}}\n"))
            .collect::<String>()
    };
    for (labels, map, expected) in [
        (
            vec!["10", "9", "9.0", "10"],
            vec!["9", "10"],
            vec![1, 0, 0, 1],
        ),
        (vec!["true", "false"], vec!["false", "true"], vec![1, 0]),
        (
            vec!["\"b\"", "\" a \"", "\"b\""],
            vec!["a", "b"],
            vec![1, 0, 1],
        ),
        (vec!["\"2\"", "0"], vec!["0", "1", "2"], vec![2, 0]),
        (vec!["4", "0"], vec!["0", "4"], vec![1, 0]),
        (vec!["-1", "1"], vec!["-1", "1"], vec![0, 1]),
    ] {
        let loaded = load(&rows(&labels), "a.jsonl", Task::SingleLabel).unwrap();
        assert_eq!((names(&loaded), classes(&loaded)), (map, expected));
    }
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.labels = Some(LabelMap::new(vec!["negative".into(), "positive".into()]).unwrap());
    let loaded = load_with(
        "text,label\nx,1\ny,negative\nz,positive\nw,0.0\n",
        "a.csv",
        &spec,
    )
    .unwrap();
    assert_eq!(classes(&loaded), [1, 0, 1, 0]);
    assert_eq!(
        classes(&load_with(&rows(&["true", "false"]), "a.jsonl", &spec).unwrap()),
        [1, 0]
    );
    assert_eq!(
        message(load_with(
            "text,label\nx,positve\ny,2\nz,\n",
            "a.csv",
            &spec
        )),
        "`a.csv`: 3 of 3 rows cannot be used\n  \
         line 2, column `label`: label `positve` is not in the map; known: `negative`, `positive`\n  \
         line 3, column `label`: label `2` is not in the map; known: `negative`, `positive`\n  \
         line 4, column `label`: no label\n\
         hint: did you mean `positive`? the classes are those of the training rows; --labels names them all"
    );
    assert!(
        message(load(&rows(&["0.5"]), "a.jsonl", Task::SingleLabel))
            .contains("`0.5` is not a class")
    );
    let many = (0..25).map(|_| "\"x\"").collect::<Vec<_>>();
    let error = message(load_with(&rows(&many), "a.jsonl", &spec));
    assert!(
        error.starts_with("`a.jsonl`: 25 of 25 rows") && error.contains("\n  and 15 more"),
        "{error}"
    );
}

#[test]
fn regression_targets_must_be_finite_numbers() {
    let loaded = load("text,score\nx,-1.5\ny,3\n", "a.csv", Task::Regression).unwrap();
    assert_eq!(loaded.examples[0].label, Label::Value(-1.5));
    assert_eq!(loaded.label_map, None);
    assert_eq!(
        message(load(
            "text,label,rating\nx,pos,1\ny,nan,2\nz,inf,3\nw,1e39,2\n",
            "a.csv",
            Task::Regression
        )),
        "`a.csv`: 4 of 4 rows cannot be used\n  line 2, column `label`: `pos` is not a number\n  \
         line 3, column `label`: no label: `nan` is not a class\n  line 4, column `label`: `inf` is not finite\n  \
         line 5, column `label`: `1e39` is not finite\nhint: column `rating` holds numbers: pass --label-column rating"
    );
}

#[test]
fn several_labels_as_names_numbers_or_vectors() {
    let rows = |labels: &[&str]| {
        labels
            .iter()
            .map(|l| format!("{{\"text\": \"x\", \"labels\": {l}}}\n"))
            .collect::<String>()
    };
    let multi = |loaded: &Loaded| -> Vec<Vec<f32>> {
        loaded
            .examples
            .iter()
            .map(|e| match &e.label {
                Label::Multi(v) => v.clone(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let loaded = load(
        &rows(&["[\"b\", \"a\"]", "[]", "[\"c\"]"]),
        "a.jsonl",
        Task::MultiLabel,
    )
    .unwrap();
    assert_eq!(names(&loaded), ["a", "b", "c"]);
    assert_eq!(
        multi(&loaded),
        [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    );
    let loaded = load(
        &rows(&["[0, 1, 1]", "[1.0, 0.0, 0.0]"]),
        "a.jsonl",
        Task::MultiLabel,
    )
    .unwrap();
    assert_eq!(multi(&loaded), [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]);
    let loaded = load(
        &rows(&["[0]", "[1]", "[0, 1]"]),
        "a.jsonl",
        Task::MultiLabel,
    )
    .unwrap();
    assert_eq!(multi(&loaded), [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]);
    let loaded = load("text,labels\nx,a|b\ny,\nz,b\n", "a.csv", Task::MultiLabel).unwrap();
    assert_eq!(multi(&loaded), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]);
    let mut spec = LoadSpec::new(Task::MultiLabel);
    spec.labels = Some(LabelMap::new(vec!["x".into(), "y".into()]).unwrap());
    assert!(
        message(load_with(&rows(&["[0, 1, 1]"]), "a.jsonl", &spec))
            .contains("expected 2 labels, found 3")
    );
    assert!(
        message(load_with(&rows(&["[\"z\"]"]), "a.jsonl", &spec))
            .contains("label `z` is not in the map")
    );
}

#[test]
fn token_classification_aligns_words() {
    let text =
        "{\"tokens\": [\"The\", \"unreadable\", \"film\"], \"ner_tags\": [\"O\", \"B\", \"O\"]}\n";
    let loaded = load(text, "a.jsonl", Task::TokenClassification).unwrap();
    assert_eq!(names(&loaded), ["B", "O"]);
    let Label::Tokens(labels) = &loaded.examples[0].label else {
        panic!()
    };
    assert_eq!(labels.len(), loaded.examples[0].input_ids.len());
    assert_eq!(
        labels
            .iter()
            .filter(|l| **l != IGNORE_INDEX)
            .copied()
            .collect::<Vec<_>>(),
        [1, 0, 1]
    );
    let text = "{\"tokens\": [\"The\", \"film\"], \"tags\": [0]}\n{\"tokens\": [], \"tags\": [0]}\n{\"tokens\": \"x\", \"tags\": [0]}\n";
    assert_eq!(
        message(load(text, "a.jsonl", Task::TokenClassification)),
        "`a.jsonl`: 3 of 3 rows cannot be used\n  line 1, column `tokens`: expected 2 labels, one for each of the words, found 1\n  \
         line 2, column `tokens`: expected 0 labels, one for each of the words, found 1\n  line 3, column `tokens`: expected a list of words, found the text `x`\n\
         hint: write lists as JSON, `[\"a\", \"b\"]`; Python's `['a', 'b']` is read too"
    );
}

#[test]
fn lists_that_python_printed_into_cells_are_read() {
    let csv = "tokens,ner_tags\n\"['The', \"\"it's\"\"]\",\"['O', 'B']\"\n\"['a' 'film']\",[1 0]\n";
    let json = "{\"tokens\": \"['The', \\\"it's\\\"]\", \"ner_tags\": \"['O', 'B']\"}\n\
                {\"tokens\": [\"a\", \"film\"], \"ner_tags\": \"[1, 0]\"}\n";
    let mut spec = LoadSpec::new(Task::TokenClassification);
    spec.labels = Some(LabelMap::new(vec!["O".into(), "B".into()]).unwrap());
    let from_csv = load_with(csv, "a.csv", &spec).unwrap();
    let from_json = load_with(json, "a.jsonl", &spec).unwrap();
    assert_eq!(
        from_csv.examples[0].input_ids,
        from_json.examples[0].input_ids
    );
    for (a, b) in from_csv.examples.iter().zip(from_json.examples.iter()) {
        assert_eq!((&a.input_ids, &a.label), (&b.input_ids, &b.label));
    }
    let csv = "text,labels\nx,\"['light', 'very, very dark']\"\ny,\"('light',)\"\nz,[]\n";
    let loaded = load(csv, "a.csv", Task::MultiLabel).unwrap();
    assert_eq!(names(&loaded)[1], "very, very dark");
    assert_eq!(loaded.examples[2].label, Label::Multi(vec![0.0, 0.0]));
}

#[test]
fn rows_already_tokenised_need_no_tokenizer() {
    let mut spec = LoadSpec::new(Task::SingleLabel);
    (spec.vocab_size, spec.type_vocab_size, spec.max_length) = (Some(25), Some(2), Some(4));
    let read = |text: &str, spec: &LoadSpec| {
        examples_from_table(&parse(text, "a.jsonl").unwrap(), spec, None)
    };
    let text = "{\"input_ids\": [0, 4, 2, 1, 1], \"attention_mask\": [1, 1, 1, 0, 0], \"labels\": 1}\n\
                {\"input_ids\": [0, 4, 5, 6, 2], \"token_type_ids\": [0, 0, 1, 1, 1], \"labels\": 0}\n";
    let loaded = read(text, &spec).unwrap();
    assert_eq!(loaded.examples[0].input_ids, [0, 4, 2]);
    assert_eq!(loaded.examples[1].input_ids, [0, 4, 5, 6]);
    assert_eq!(
        loaded.examples[1].token_type_ids.as_deref(),
        Some(&[0, 0, 1, 1][..])
    );
    assert_eq!(
        (loaded.report.truncated_rows, loaded.report.truncated_tokens),
        (1, 1)
    );
    let text = "{\"input_ids\": [0, 25], \"label\": 1}\n{\"input_ids\": [-1], \"label\": 1}\n{\"input_ids\": [], \"label\": 1}\n\
                {\"input_ids\": [1, 2], \"token_type_ids\": [0, 2], \"label\": 1}\n{\"input_ids\": [1, 2], \"attention_mask\": [0, 1], \"label\": 1}\n\
                {\"input_ids\": [1, 2], \"token_type_ids\": [0], \"label\": 1}\n{\"input_ids\": [1.5], \"label\": 1}\n";
    assert_eq!(
        message(read(text, &spec)),
        "`a.jsonl`: 7 of 7 rows cannot be used\n  \
         line 1, column `input_ids`: token id 25 at position 1, the model's vocabulary has 25\n  \
         line 2, column `input_ids`: token id -1 at position 0, the model's vocabulary has 25\n  \
         line 3, column `input_ids`: the row has no token ids\n  \
         line 4, column `token_type_ids`: token type 2 at position 1, the model has 2\n  \
         line 5, column `attention_mask`: the attention mask is not ones followed by zeros\n  \
         line 6, column `token_type_ids`: expected 2 token types, one for each of the token ids, found 1\n  \
         line 7, column `input_ids`: expected a list of whole numbers, found a list of 1\n\
         hint: the rows, the tokenizer and the model must belong together"
    );
    let tokens = LoadSpec {
        task: Task::TokenClassification,
        ..spec.clone()
    };
    let loaded = read(
        "{\"input_ids\": [0, 4, 2], \"labels\": [-100, 1, -100]}\n",
        &tokens,
    )
    .unwrap();
    assert_eq!(loaded.examples[0].label, Label::Tokens(vec![-100, 0, -100]));
    assert!(
        message(read(
            "{\"input_ids\": [0, 4, 2], \"labels\": [1]}\n",
            &tokens
        ))
        .contains("expected 3 labels, one for each of the token ids, found 1")
    );
    assert_eq!(
        message(read("{\"text\": \"x\", \"label\": 1}", &spec)),
        "`a.jsonl`: rows are text (column `text`), and there is no tokenizer\n\
         hint: put `tokenizer.json` beside the model, or give rows that are already tokenised (`input_ids`)"
    );
}

#[test]
fn long_rows_are_cut_dropped_or_refused() {
    let text = "text,label\nfilm,1\nthe film is slow and the acting is poor,0\n";
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.max_length = Some(6);
    let loaded = load_with(text, "a.csv", &spec).unwrap();
    assert_eq!(loaded.examples[1].input_ids.len(), 6);
    assert_eq!(loaded.report.truncated_rows, 1);
    assert_eq!(
        loaded.report.truncated_tokens,
        u64::from(loaded.examples[1].truncated_tokens)
    );
    spec.long_rows = LongRows::Drop;
    let loaded = load_with(text, "a.csv", &spec).unwrap();
    assert_eq!((loaded.examples.len(), loaded.report.dropped_rows), (1, 1));
    spec.long_rows = LongRows::Refuse;
    assert!(message(load_with(text, "a.csv", &spec)).contains("line 3, column `text`: "));
    (spec.long_rows, spec.max_length) = (LongRows::Drop, Some(3));
    let only_long = "text,label\nthe film is slow,0\nthe film,1\n";
    assert_eq!(
        message(load_with(only_long, "a.csv", &spec)),
        "`a.csv`: all 2 rows are longer than 3 tokens (the shortest has 4): nothing is left\n\
         hint: pass --long-rows truncate to cut them, or a larger --max-length"
    );
    spec.max_length = Some(2);
    assert_eq!(
        message(load_with(text, "a.csv", &spec)),
        "a maximum length of 2 leaves no room for text beside 2 special tokens\nhint: pass --max-length 3 or more"
    );
}

#[test]
fn a_vocabulary_larger_than_the_models_is_refused() {
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.vocab_size = Some(100);
    assert!(
        message(load_with("text,label\nfilm,1\n", "a.csv", &spec))
            .contains("the model's vocabulary has 100")
    );
}

#[test]
fn labels_are_optional_where_told() {
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.need = LabelNeed::IfPresent;
    for text in ["text\nx\ny\n", "text,label\nx,1\ny,\n"] {
        let loaded = load_with(text, "a.csv", &spec).unwrap();
        assert!(loaded.examples.iter().all(|e| e.label == Label::None));
        assert_eq!(loaded.report.columns.label, None);
    }
    assert_eq!(
        classes(&load_with("text,label\nx,1\ny,0\n", "a.csv", &spec).unwrap()),
        [1, 0]
    );
    spec.need = LabelNeed::Ignored;
    assert_eq!(
        load_with("text,label\nx,1\n", "a.csv", &spec)
            .unwrap()
            .examples[0]
            .label,
        Label::None
    );
}

#[test]
fn id2label_is_read_and_checked() {
    let map = |text: &str| LabelMap::from_id2label(&serde_json::from_str(text).unwrap());
    let loaded = map("{\"1\": \"b\", \"0\": \"a\", \"10\": \"k\"}");
    assert_eq!(
        loaded.unwrap_err().to_string(),
        "`id2label`: key `10`: expected the numbers from 0 to 2"
    );
    assert_eq!(
        map("{\"1\": \"b\", \"0\": \"a\"}").unwrap().names(),
        ["a", "b"]
    );
    assert_eq!(
        map("{\"1\": \"a\", \"0\": \"a\"}").unwrap_err().to_string(),
        "label `a` is named twice"
    );
    assert_eq!(map("{}").unwrap_err().to_string(), "no label is named");
    assert_eq!(
        map("[]").unwrap_err().to_string(),
        "`id2label`: expected an object"
    );
    assert_eq!(
        map("{\"0\": \"a\", \"00\": \"b\"}")
            .unwrap_err()
            .to_string(),
        "`id2label`: a key stands twice in different spellings"
    );
    assert!(
        map("{\"0\": \"LABEL_0\", \"1\": \"LABEL_1\"}")
            .unwrap()
            .is_placeholder()
    );
}

/// Every data set at hand loads with nothing named but the task.
#[test]
fn real_data_sets_load() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !shared.exists() {
        println!("SKIPPED: {} is not at hand", shared.display());
        return;
    }
    let tokenizer = Tokenizer::from_dir(&shared.join("artifacts/roberta"), None).unwrap();
    let file = |path: &str| -> PathBuf { shared.join(path) };
    for (path, rows, classes) in [
        ("sentiment/movie/train.tsv", 8056, 2),
        ("sentiment/movie/test.tsv", 1007, 2),
        ("glue_sst2/validation.tsv", 872, 2),
        ("glue_mrpc/validation.jsonl", 408, 2),
        ("glue_rte/train.jsonl", 2490, 2),
        ("glue_qnli/validation.jsonl", 5463, 2),
        ("glue_mnli/validation.jsonl", 10000, 3),
    ] {
        let start = std::time::Instant::now();
        let mut spec = LoadSpec::new(Task::SingleLabel);
        (spec.vocab_size, spec.max_length) = (Some(50265), Some(128));
        let loaded = load_examples(&file(path), &spec, Some(&tokenizer)).unwrap();
        assert_eq!(
            (loaded.examples.len(), loaded.label_map.unwrap().len()),
            (rows, classes),
            "{path}"
        );
        println!("{path}: {:?}", start.elapsed());
    }
    let mut spec = LoadSpec::new(Task::Regression);
    spec.columns.label = Some("rating".into());
    load_examples(&file("sentiment/movie/test.tsv"), &spec, Some(&tokenizer)).unwrap();
}

fn columns_and_rows(table: &Table) -> (Vec<&str>, Vec<Vec<String>>) {
    let values = |row| {
        let object = table.to_json(row);
        object
            .values()
            .map(|value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), String::from)
            })
            .collect()
    };
    (
        table.columns().iter().map(String::as_str).collect(),
        table.rows().iter().map(values).collect(),
    )
}

#[test]
fn separators_are_found_by_looking() {
    let expected = [["a, b", "1"], ["c", "0"]];
    for (text, name, note) in [
        (
            "text;label\na, b;1\nc;0\n",
            "a.csv",
            "fields are separated by `;`, not by `,`",
        ),
        (
            "text\tlabel\na, b\t1\nc\t0\n",
            "a.csv",
            "fields are separated by tabs, not by `,`",
        ),
        (
            "text|label\na, b|1\nc|0",
            "a.csv",
            "fields are separated by `|`, not by `,`",
        ),
        (
            "text,label\n\"a, b\",1\nc,0\n",
            "a.tsv",
            "fields are separated by `,`, not by tabs",
        ),
        (
            "text;label\n\"a, b\";\"1\"\nc;0\n",
            "a.tsv",
            "fields are separated by `;`, not by tabs",
        ),
    ] {
        let table = parse(text, name).unwrap();
        let (columns, rows) = columns_and_rows(&table);
        assert_eq!(columns, ["text", "label"], "{text}");
        assert_eq!(rows, expected, "{text}");
        assert_eq!(table.notes(), [note]);
    }
    // Some rows that are parted otherwise are faults of theirs.
    let ragged = format!("text;label\n{}a;b;1\n", "a, b;1\n".repeat(9));
    assert!(
        message(parse(&ragged, "a.csv"))
            .contains("line 11: expected 2 fields as in the header, found 3")
    );
    // The separator that the name promises wins wherever it parts the rows, and where no other
    // does.
    for text in [
        "text,label\na;b,1\nc;d,0\n",
        "text\na;b\nc;d\n",
        "text,label\na;b\nc,d,e\n",
    ] {
        let notes = parse(text, "a.csv").map(|table| table.notes().len());
        assert!(notes.is_err() || notes.is_ok_and(|n| n == 0), "{text}");
    }
}

#[test]
fn headers_may_have_columns_without_a_name() {
    for (text, columns, first) in [
        (
            ",text,label\n0,x,1\n1,y,0\n",
            vec!["Unnamed: 0", "text", "label"],
            vec!["0", "x", "1"],
        ),
        (
            "text,label,\nx,1\ny,0\n",
            vec!["text", "label"],
            vec!["x", "1"],
        ),
        (
            "text,label,,\nx,1,,\ny,0,,\n",
            vec!["text", "label"],
            vec!["x", "1"],
        ),
        (
            "text,label\nx,1,\ny,0,,\n",
            vec!["text", "label"],
            vec!["x", "1"],
        ),
        (
            "text,,label\nx,?,1\ny,,0\n",
            vec!["text", "Unnamed: 1", "label"],
            vec!["x", "?", "1"],
        ),
    ] {
        let table = parse(text, "a.csv").unwrap();
        let (found, rows) = columns_and_rows(&table);
        assert_eq!(
            (found, &rows[0]),
            (columns, &first.iter().map(|s| s.to_string()).collect()),
            "{text}"
        );
    }
}

#[test]
fn columns_of_one_name_are_only_refused_where_they_are_read() {
    let loaded = load(
        "text,label,note,note\nx,1,a,b\n",
        "a.csv",
        Task::SingleLabel,
    )
    .unwrap();
    assert_eq!(loaded.report.ignored_columns, ["note", "note"]);
    assert_eq!(
        message(load("text,label,text\nx,1,y\n", "a.csv", Task::SingleLabel)),
        "`a.csv`, line 1: column name `text` stands 2 times in the header\nhint: rename one of the columns"
    );
}

#[test]
fn a_table_without_a_header_is_read_or_the_first_line_is_named() {
    let cola = "gj04\t1\t\tThey drank.\ngj04\t0\t*\tThey drank the.\n";
    let loaded = load(cola, "train.tsv", Task::SingleLabel).unwrap();
    assert_eq!(classes(&loaded), [1, 0]);
    let label = LabelColumns::One("label".into());
    assert_eq!(loaded.report.columns.label, Some(label));
    assert_eq!(
        parse(cola, "train.tsv").unwrap().notes(),
        [
            "no header, laid out as GLUE's CoLA: the columns are named `source`, `label`, `mark`, `sentence`"
        ]
    );
    let error = message(load(
        "good film,0\nbad film,1\n",
        "a.csv",
        Task::SingleLabel,
    ));
    assert!(
        error.contains("the first line was taken for the header"),
        "{error}"
    );
    assert!(error.contains("--no-header"), "{error}");
    let refused = Table::parse(
        Path::new("a.jsonl"),
        b"{}".to_vec(),
        FileFormat::Jsonl,
        Header::Absent,
    );
    assert_eq!(
        message(refused),
        "`a.jsonl`: rows of a jsonl file have no header to be without\nhint: leave out --no-header"
    );
}

#[test]
fn line_ends_of_every_age_are_read() {
    for end in ["\n", "\r\n", "\r"] {
        for (name, lines) in [
            ("a.csv", ["text,label", "\"a, b\",1", "c,0"]),
            ("a.tsv", ["text\tlabel", "a, b\t1", "c\t0"]),
            (
                "a.jsonl",
                [
                    "",
                    "{\"text\": \"a, b\", \"label\": \"1\"}",
                    "{\"text\": \"c\", \"label\": \"0\"}",
                ],
            ),
        ] {
            let table = parse(&lines.join(end), name).unwrap();
            let (columns, rows) = columns_and_rows(&table);
            assert_eq!(columns, ["text", "label"]);
            assert_eq!(rows, [["a, b", "1"], ["c", "0"]], "{name} {end:?}");
            assert_eq!(table.rows()[1].line, 3);
        }
    }
    // Mixed ends: a carriage return inside a line of a newer file is content.
    let table = parse("text,label\r\na\rb,1\nc,0\r\n", "a.csv").unwrap();
    assert_eq!(columns_and_rows(&table).1, [["a\rb", "1"], ["c", "0"]]);
}

#[test]
fn json_documents_are_rows_too() {
    let expected = [["x", "1"], ["y", "0"]];
    for (text, lines) in [
        (
            "[{\"text\": \"x\", \"label\": 1}, {\"text\": \"y\", \"label\": 0}]",
            [1, 2],
        ),
        (
            "[\n  {\"text\": \"x\",\n \"label\": 1},\n  {\"text\": \"y\", \"label\": 0}\n]\n",
            [2, 4],
        ),
        (
            "{\"version\": \"1\", \"data\": [\n{\"text\": \"x\", \"label\": 1},\n{\"text\": \"y\", \"label\": 0}]}",
            [2, 3],
        ),
        (
            "{\"reviews\": [{\"text\": \"x\", \"label\": 1},\n{\"text\": \"y\", \"label\": 0}]}\n",
            [1, 2],
        ),
        (
            "{\n\"text\": \"x\",\n\"label\": 1}\n{\n\"text\": \"y\",\n\"label\": 0}\n",
            [1, 4],
        ),
    ] {
        let table = parse(text, "a.json").unwrap();
        let (columns, rows) = columns_and_rows(&table);
        assert_eq!(columns, ["text", "label"], "{text}");
        assert_eq!(rows, expected, "{text}");
        assert_eq!(
            table.rows().iter().map(|row| row.line).collect::<Vec<_>>(),
            lines,
            "{text}"
        );
    }
    // A row may hold a list of objects itself.
    let chat = "{\"id\": 1, \"turns\": [{\"a\": 1}]}\n{\"id\": 2, \"turns\": [{\"a\": 2}]}\n";
    assert_eq!(parse(chat, "a.jsonl").unwrap().columns(), ["id", "turns"]);
    assert!(
        message(parse("[{\"text\": \"x\"}, 5]", "a.json"))
            .contains("expected a JSON object, found a number")
    );
}

#[test]
fn plain_text_is_a_line_a_row() {
    let table = parse("first line\r\n\n  \nthe last one", "a.txt").unwrap();
    assert_eq!(
        columns_and_rows(&table),
        (
            vec!["text"],
            vec![vec!["first line".into()], vec!["the last one".into()]]
        )
    );
    assert_eq!((table.rows()[1].line, table.blank_lines()), (4, 2));
    assert_eq!(
        message(parse("\n \n", "a.txt")),
        "`a.txt`: the file holds no row"
    );
    assert!(
        message(parse("a\nb\0c\n", "a.txt"))
            .contains("1 of 2 rows cannot be used\n  line 2: a NUL byte")
    );
    assert!(message(parse("t\0e\0x\0t\0\n\0", "a.txt")).contains("UTF-16 text, expected UTF-8"));
}

#[test]
fn rows_without_words_are_left_out_and_said() {
    let text = "{\"tokens\": [\"a\"], \"tags\": [\"O\"]}\n{\"tokens\": [], \"tags\": []}\n{\"tokens\": [\"b\"], \"tags\": [\"B\"]}\n";
    let loaded = load(text, "a.jsonl", Task::TokenClassification).unwrap();
    let lines: Vec<u64> = loaded.examples.iter().map(|example| example.line).collect();
    assert_eq!(lines, [1, 3]);
    assert_eq!(
        loaded.report.notes,
        ["1 row without words is left out (line 2)"]
    );
    assert_eq!((loaded.report.rows, loaded.report.wordless_rows), (3, 1));
    assert_eq!(
        loaded.left_out[0].to_string(),
        "line 2, column `tokens`: the row has no words"
    );
    let none = "{\"tokens\": [], \"tags\": []}\n";
    assert!(
        message(load(none, "a.jsonl", Task::TokenClassification)).contains("the row has no words")
    );
    // The same from a table, where an empty list is text.
    let csv = "tokens,tags\n\"['a']\",\"['O']\"\n[],[]\n";
    assert_eq!(
        load(csv, "a.csv", Task::TokenClassification)
            .unwrap()
            .examples
            .len(),
        1
    );
}

/// 300 good rows with some lines in their place.
fn many_rows(bad: &[(usize, &str)]) -> String {
    let mut lines: Vec<String> = (0..300)
        .map(|i| format!("{{\"text\": \"film\", \"label\": {}}}", i % 2))
        .collect();
    for (at, line) in bad {
        lines[*at] = line.to_string();
    }
    lines.join("\n")
}

fn lenient(text: &str, share: Option<f64>) -> Result<Loaded, DataError> {
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.bad_rows = BadRows::Skip;
    spec.max_bad_rows = share.unwrap_or(spec.max_bad_rows);
    let bytes = text.as_bytes().to_vec();
    let path = Path::new("a.jsonl");
    let table = Table::parse_lenient(path, bytes, FileFormat::Jsonl, Header::Present)?;
    examples_from_table(&table, &spec, Some(&tokenizer("bert-uncased")))
}

#[test]
fn bad_rows_are_refused_or_left_out_up_to_a_share() {
    let text = many_rows(&[
        (1, "{\"text\": \"x\""),
        (7, "{\"text\": 5, \"label\": 9}"),
        (9, "{\"text\": \"x\"}"),
    ]);
    let strict = message(load(&text, "a.jsonl", Task::SingleLabel));
    assert!(
        strict.starts_with("`a.jsonl`: 1 of 300 rows cannot be used\n  line 2: not JSON"),
        "{strict}"
    );
    assert!(
        strict.ends_with("--bad-rows skip leaves out rows that cannot be used"),
        "{strict}"
    );
    let loaded = lenient(&text, None).unwrap();
    assert_eq!(
        (
            loaded.examples.len(),
            loaded.report.bad_rows,
            loaded.report.rows
        ),
        (297, 3, 300)
    );
    // A row that is left out adds no class.
    assert_eq!(names(&loaded), ["0", "1"]);
    assert_eq!(
        loaded.report.notes,
        [
            "3 of 300 rows cannot be used and are left out\n  line 2: not JSON: EOF while parsing an object at column 12\n  \
          line 8, column `text`: expected a text, found `5`\n  line 10, column `label`: no label"
        ]
    );
    let lines: Vec<u64> = loaded.left_out.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [2, 8, 10]);
}

#[test]
fn too_many_bad_rows_are_refused_unless_told() {
    let bad: Vec<(usize, &str)> = (0..12).map(|i| (10 * i, "[]")).collect();
    let text = many_rows(&bad);
    let error = message(lenient(&text, None));
    assert!(error.starts_with("`a.jsonl`: 12 of 300 rows cannot be used\n  line 1: expected a JSON object, found a list\n"), "{error}");
    assert!(
        error.contains("  and 2 more\n  at most 1 % of the rows may be left out"),
        "{error}"
    );
    assert!(
        error.ends_with("pass --max-bad-rows 0.04 to go on without them"),
        "{error}"
    );
    let loaded = lenient(&text, Some(0.04)).unwrap();
    assert_eq!((loaded.examples.len(), loaded.report.bad_rows), (288, 12));
    assert!(loaded.report.notes[0].ends_with("\n  and 2 more"));
    // One of a few may go, but not all.
    assert_eq!(
        lenient("[]\n{\"text\": \"x\", \"label\": 1}\n", None)
            .unwrap()
            .examples
            .len(),
        1
    );
    assert!(lenient("[]\n", Some(1.0)).is_err());
}

#[test]
fn a_ragged_line_can_be_left_out_of_a_table() {
    let mut text = String::from("text,label\n");
    (0..200).for_each(|i| text.push_str(&format!("film,{}\n", i % 2)));
    text.push_str("a, b,1\nfilm\0,0\n");
    let path = Path::new("a.csv");
    let table =
        Table::parse_lenient(path, text.into_bytes(), FileFormat::Csv, Header::Present).unwrap();
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.bad_rows = BadRows::Skip;
    let loaded = examples_from_table(&table, &spec, Some(&tokenizer("bert-uncased"))).unwrap();
    let lines: Vec<u64> = loaded.left_out.iter().map(|fault| fault.line).collect();
    assert_eq!((loaded.examples.len(), lines), (200, vec![202, 203]));
}

#[test]
fn plain_text_is_no_table_of_labels() {
    assert_eq!(
        message(load("good film\nbad film\n", "a.txt", Task::SingleLabel)),
        "`a.txt`: a text file holds no labels; expected a table\n\
         hint: write rows such as `{\"text\": \"...\", \"label\": \"...\"}` into a .jsonl file, or name a table .csv or .tsv; \
         --task causal_lm trains a language model on the text"
    );
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.need = LabelNeed::Ignored;
    assert_eq!(
        load_with("good film\n\nbad film\n", "a.txt", &spec)
            .unwrap()
            .examples
            .len(),
        2
    );
}

#[test]
fn what_is_kept_of_a_long_text_is_as_of_the_whole() {
    // Some words of one token, some of several, accents and signs; over the size from which a part
    // is tokenised.
    let words = [
        "the",
        "unreadable",
        "film,",
        "café",
        "is",
        "slow!",
        "w5",
        "naïve",
    ];
    let long: String = (0..60_000)
        .map(|i| words[i * 7 % 5 + i % 3])
        .collect::<Vec<_>>()
        .join(" ");
    assert!(long.len() > 300_000);
    let short = "the film is slow";
    for name in ["bert-uncased", "roberta", "deberta-v2"] {
        let tokenizer = tokenizer(name);
        for (first, second) in [
            (long.as_str(), None),
            (short, Some(long.as_str())),
            (long.as_str(), Some(short)),
        ] {
            let whole = tokenizer.encode(first, second, Some(33)).unwrap();
            let row = serde_json::json!({ "text": first, "text_pair": second }).to_string();
            let mut spec = LoadSpec::new(Task::SingleLabel);
            (spec.need, spec.max_length) = (LabelNeed::Ignored, Some(33));
            spec.columns.text = Some("text".into());
            spec.columns.text_pair = second.map(|_| "text_pair".into());
            let table = parse(&row, "a.jsonl").unwrap();
            let loaded = examples_from_table(&table, &spec, Some(&tokenizer)).unwrap();
            assert_eq!(loaded.examples[0].input_ids, whole.input_ids, "{name}");
            assert_eq!(
                loaded.examples[0].token_type_ids, whole.token_type_ids,
                "{name}"
            );
            assert!(
                loaded.report.notes[0].starts_with("1 text is so long"),
                "{name}"
            );
        }
        let list: Vec<&str> = long.split(' ').take(9000).collect();
        let row = serde_json::json!({ "tokens": list }).to_string();
        let mut spec = LoadSpec::new(Task::TokenClassification);
        (spec.need, spec.max_length) = (LabelNeed::Ignored, Some(33));
        let table = parse(&row, "a.jsonl").unwrap();
        let loaded = examples_from_table(&table, &spec, Some(&tokenizer)).unwrap();
        let list: Vec<String> = list.into_iter().map(String::from).collect();
        let whole = tokenizer.encode_words(&list, Some(33)).unwrap().encoded;
        assert_eq!(loaded.examples[0].input_ids, whole.input_ids, "{name}");
    }
}

#[test]
fn a_long_text_without_blanks_is_refused_by_size() {
    let row = format!("{{\"text\": \"{}\"}}\n", "a".repeat(5 << 20));
    let mut spec = LoadSpec::new(Task::SingleLabel);
    (spec.need, spec.max_length) = (LabelNeed::Ignored, Some(16));
    let error = message(load_with(&row, "a.jsonl", &spec));
    assert!(
        error.contains(
            "line 1, column `text`: the text cannot be tokenised: a text of 5242880 bytes"
        ),
        "{error}"
    );
    assert!(
        error.contains("at most 4194304 are tokenised at once"),
        "{error}"
    );
}

#[test]
fn a_text_is_found_by_its_name_in_any_case() {
    let text_of = |header: &str| {
        let text = format!("{header}\na thing,0\nanother,1\n");
        let table = parse(&text, "rows.csv").unwrap();
        let columns =
            ColumnSpec::default().resolve(&table, Task::SingleLabel, LabelNeed::Required, None);
        columns.map(|columns| match columns.text {
            TextColumns::Text { text, .. } => text,
            other => panic!("{other:?}"),
        })
    };
    for name in [
        "Text",
        "comment_text",
        "Review",
        "reviewText",
        "SMS",
        "Body",
    ] {
        assert_eq!(text_of(&format!("{name},label")).unwrap(), name);
    }
    let three = |header: &str| {
        let table = parse(&format!("{header}\na,b,0\nc,d,1\n"), "rows.csv").unwrap();
        ColumnSpec::default().resolve(&table, Task::SingleLabel, LabelNeed::Required, None)
    };
    // The usual name before others; of two others neither is guessed.
    let found = three("title,text,label").unwrap();
    assert!(matches!(found.text, TextColumns::Text { text, .. } if text == "text"));
    assert!(matches!(
        three("title,body,label"),
        Err(DataError::NoColumnFor { .. })
    ));
}
