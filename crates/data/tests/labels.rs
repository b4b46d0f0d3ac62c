//! The promise on labels: what a column of labels means, which values are no classes, and what is
//! said about them.

use std::path::Path;

use lowrank_data::{
    DataError, FileFormat, Header, IGNORE_INDEX, Label, LabelColumns, LabelLayout, LabelMap,
    LabelOddity, LabelOrigin, LoadSpec, Loaded, Table, Task, Tokenizer, UnlabelledRows,
    examples_from_table, guess_task,
};

fn table(text: &str, name: &str) -> Table {
    let format = FileFormat::from_path(Path::new(name)).unwrap();
    let bytes = text.as_bytes().to_vec();
    Table::parse(Path::new(name), bytes, format, Header::Present).unwrap()
}

fn load_with(text: &str, name: &str, spec: &LoadSpec) -> Result<Loaded, DataError> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert-uncased");
    let tokenizer = Tokenizer::from_dir(&dir, None).unwrap();
    examples_from_table(&table(text, name), spec, Some(&tokenizer))
}

/// A CSV file of one column of labels beside a text.
fn csv(labels: &[&str]) -> String {
    let quoted = |label: &&str| format!("good film,\"{}\"\n", label.replace('"', "\"\""));
    let rows: String = labels.iter().map(quoted).collect();
    format!("text,label\n{rows}")
}

/// The same as JSON lines; labels are JSON values.
fn jsonl(labels: &[&str]) -> String {
    let row = |label: &&str| format!("{{\"text\": \"good film\", \"label\": {label}}}\n");
    labels.iter().map(row).collect()
}

fn load(labels: &[&str], task: Task) -> Result<Loaded, DataError> {
    load_with(&csv(labels), "a.csv", &LoadSpec::new(task))
}

fn names(loaded: &Loaded) -> Vec<&str> {
    let map = loaded.label_map.as_ref().expect("a map");
    map.names().iter().map(String::as_str).collect()
}

fn classes(loaded: &Loaded) -> Vec<u32> {
    let class = |label: &Label| match label {
        Label::Class(class) => *class,
        other => panic!("{other:?}"),
    };
    loaded.examples.iter().map(|e| class(&e.label)).collect()
}

fn vectors(loaded: &Loaded) -> Vec<Vec<f32>> {
    let vector = |label: &Label| match label {
        Label::Multi(vector) => vector.clone(),
        other => panic!("{other:?}"),
    };
    loaded.examples.iter().map(|e| vector(&e.label)).collect()
}

fn message(result: Result<Loaded, DataError>) -> String {
    let error = result.unwrap_err();
    format!("{error}\nhint: {}", error.hint().unwrap_or_default())
}

fn with_labels(task: Task, labels: &[&str]) -> LoadSpec {
    let names = labels.iter().map(|name| (*name).to_string()).collect();
    LoadSpec {
        labels: Some(LabelMap::new(names).unwrap()),
        ..LoadSpec::new(task)
    }
}

fn dropping(task: Task) -> LoadSpec {
    LoadSpec {
        unlabelled: UnlabelledRows::Drop,
        ..LoadSpec::new(task)
    }
}

#[test]
fn words_for_a_gap_are_refused_by_line_and_left_out_on_request() {
    for gap in [
        "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "<NA>", "-", "?", "", " ",
    ] {
        for others in [
            ["0", "1", "1"],
            ["no", "yes", "yes"],
            ["True", "False", "True"],
        ] {
            let labels = [others[0], others[1], gap, others[2]];
            let text = message(load(&labels, Task::SingleLabel));
            assert!(
                text.contains("1 of 4 rows") && text.contains("line 4, column `label`: no label"),
                "{text}"
            );
            assert!(text.contains("--unlabelled drop"), "{text}");
            let kept = load_with(&csv(&labels), "a.csv", &dropping(Task::SingleLabel)).unwrap();
            assert_eq!(
                (kept.examples.len(), kept.report.unlabelled_rows),
                (3, 1),
                "{gap}"
            );
            assert_eq!(kept.label_map.unwrap().len(), 2, "{gap}");
        }
    }
    let typed = ["\"a\"", "null", "\"b\"", "\"None\""];
    let kept = load_with(&jsonl(&typed), "a.jsonl", &dropping(Task::SingleLabel)).unwrap();
    assert_eq!(
        (names(&kept), kept.report.unlabelled_rows),
        (vec!["a", "b"], 2)
    );
    let text = message(load(&["nan", "nan", ""], Task::SingleLabel));
    assert!(
        text.contains("none of 3 rows has a label in column `label`: on line 2 stands `nan`"),
        "{text}"
    );
}

#[test]
fn a_list_of_fractions_is_said_to_be_one_and_not_to_lack_labels() {
    let text = message(load_with(
        &jsonl(&["[0.3, 0.7]", "[0.2, 0.9]"]),
        "a.jsonl",
        &LoadSpec::new(Task::MultiLabel),
    ));
    assert!(
        text.contains("line 1, column `label`: `0.3` is not a class"),
        "{text}"
    );
    assert!(!text.contains("none of"), "{text}");
    // Lists that lack one label each have others: the row is named, and what it lacks.
    let words = "{\"tokens\": [\"a\", \"b\", \"c\"], \"ner_tags\": [-1, 0, 1]}\n".repeat(3);
    let text = message(load_with(
        &words,
        "a.jsonl",
        &LoadSpec::new(Task::TokenClassification),
    ));
    assert!(
        text.contains("line 1, column `ner_tags`: no label: `-1` is not a class"),
        "{text}"
    );
}

#[test]
fn vectors_between_signs_that_part_no_names_are_vectors() {
    for cells in [["0:1:1", "1:0:0"], ["0-1-1", "1-0-0"], ["0.1.1", "1.0.0"]] {
        let loaded = load(&cells, Task::MultiLabel).unwrap();
        assert_eq!(
            vectors(&loaded),
            [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]],
            "{cells:?}"
        );
    }
}

#[test]
fn a_word_for_a_gap_is_a_class_where_it_is_named() {
    let spec = with_labels(Task::SingleLabel, &["EU", "NA", "None"]);
    let loaded = load_with(&csv(&["NA", "EU", "None"]), "a.csv", &spec).unwrap();
    assert_eq!(classes(&loaded), [1, 0, 2]);
    let spec = with_labels(Task::SingleLabel, &["-1", "0", "1"]);
    let loaded = load_with(&csv(&["0", "-1", "1.0"]), "a.csv", &spec).unwrap();
    assert_eq!(classes(&loaded), [1, 0, 2]);
}

#[test]
fn negative_numbers_are_no_classes_beside_numbers_from_0() {
    for labels in [
        ["-1", "0", "1", "2"],
        ["0.0", "1.0", "-1.0", "1.0"],
        ["3", "0", "-1", "1"],
    ] {
        let text = message(load(&labels, Task::SingleLabel));
        assert!(
            text.contains("no label: `-1` is not a class") && text.contains("--labels"),
            "{text}"
        );
        let kept = load_with(&csv(&labels), "a.csv", &dropping(Task::SingleLabel)).unwrap();
        assert_eq!(kept.report.unlabelled_rows, 1);
        assert_eq!(names(&kept)[0], "0");
    }
    let text = message(load(&["0", "1", "-7"], Task::SingleLabel));
    assert!(text.contains("`-7` is a negative number"), "{text}");
    // Nothing but -1 and 1 are the two classes of many older data sets.
    let signs = load(&["-1", "1", "+1"], Task::SingleLabel).unwrap();
    assert_eq!(
        (names(&signs), classes(&signs)),
        (vec!["-1", "1"], vec![0, 1, 1])
    );
    let head = with_labels(Task::SingleLabel, &["bad", "good", "fine"]);
    let text = message(load_with(&csv(&["2", "3", "-1"]), "a.csv", &head));
    assert!(
        text.contains("2 of 3 rows") && text.contains("label `3` is not in the map"),
        "{text}"
    );
}

#[test]
fn one_odd_row_is_the_one_that_is_named_and_changes_nothing_else() {
    let mut numbers = vec!["1"; 60];
    numbers.extend(vec!["0"; 40]);
    let mut words = vec!["low"; 60];
    words.extend(vec!["high"; 40]);
    for (column, odd, what) in [
        (
            &numbers,
            "abc",
            "`abc` is no number, and the labels of this column are numbers",
        ),
        (&numbers, "0.5", "`0.5` is not a class"),
        (
            &words,
            "7",
            "`7` is a number, and the labels of this column are names",
        ),
        (&words, "2.5", "`2.5` is not a class"),
    ] {
        let mut column = column.clone();
        column[70] = odd;
        let text = message(load(&column, Task::SingleLabel));
        assert!(
            text.contains("1 of 100 rows cannot be used\n  line 72, column `label`: "),
            "{text}"
        );
        assert!(text.contains(what), "{text}");
    }
    let text = message(load(&["1", "a", "0", "b"], Task::SingleLabel));
    assert!(
        text.contains("2 labels are names (`a`) and 2 are numbers (`0`): which are meant?"),
        "{text}"
    );
    let text = message(load(&["1", "0.5", "0", "1.5"], Task::SingleLabel));
    assert!(
        text.contains("fractions") && text.contains("--task regression"),
        "{text}"
    );
}

#[test]
fn a_number_is_its_class_whatever_the_file_lacks() {
    for labels in [["2", "0", "2"], ["0", "1", "2"], ["2.0", "1.0", "0.0"]] {
        let loaded = load(&labels, Task::SingleLabel).unwrap();
        assert_eq!(names(&loaded), ["0", "1", "2"]);
    }
    let hole = load(&["2", "0", "2"], Task::SingleLabel).unwrap();
    assert_eq!(classes(&hole), [2, 0, 2]);
    assert_eq!(
        hole.report.labels.oddities,
        [LabelOddity::Holes {
            names: vec!["1".into()]
        }]
    );
    // Stars and Sentiment140's 0 and 4 are names, which is said.
    let stars = load(&["5", "1", "2", "3", "4"], Task::SingleLabel).unwrap();
    assert_eq!(names(&stars), ["1", "2", "3", "4", "5"]);
    assert_eq!(
        stars.report.labels.oddities,
        [LabelOddity::NumbersAsNames { first: "1".into() }]
    );
    assert_eq!(
        names(&load(&["4", "0"], Task::SingleLabel).unwrap()),
        ["0", "4"]
    );
    // A validation file is read by the training rows' names.
    let by_stars = with_labels(Task::SingleLabel, &["1", "2"]);
    let one = load_with(&csv(&["1", "1.0"]), "a.csv", &by_stars).unwrap();
    assert_eq!(classes(&one), [0, 0]);
    assert!(
        message(load_with(&csv(&["0", "1"]), "a.csv", &by_stars))
            .contains("label `0` is not in the map")
    );
    // Codes keep their zeros.
    let codes = load(&["007", "010", "007"], Task::SingleLabel).unwrap();
    assert_eq!(names(&codes), ["007", "010"]);
}

#[test]
fn truth_values_are_one_thing_in_every_format() {
    let spec = LoadSpec::new(Task::SingleLabel);
    for text in [
        jsonl(&["true", "false", "true"]),
        jsonl(&["\"True\"", "\"FALSE\"", "true"]),
        jsonl(&["true", "0", "true"]),
    ] {
        let loaded = load_with(&text, "a.jsonl", &spec).unwrap();
        assert_eq!(
            (names(&loaded), classes(&loaded)),
            (vec!["false", "true"], vec![1, 0, 1])
        );
    }
    let loaded = load(&["TRUE", "False", "1", "true"], Task::SingleLabel).unwrap();
    assert_eq!(
        (names(&loaded), classes(&loaded)),
        (vec!["false", "true"], vec![1, 0, 1, 1])
    );
    for map in [["0", "1"], ["no", "yes"], ["False", "True"]] {
        let spec = with_labels(Task::SingleLabel, &map);
        let loaded = load_with(&csv(&["True", "0", "false", "1"]), "a.csv", &spec).unwrap();
        assert_eq!(classes(&loaded), [1, 0, 0, 1], "{map:?}");
    }
    // LIAR and PUBHEALTH have names beside them.
    let liar = load(
        &["true", "half-true", "false", "mostly-true"],
        Task::SingleLabel,
    )
    .unwrap();
    assert_eq!(names(&liar), ["false", "half-true", "mostly-true", "true"]);
    // With true named first, the number 1 would say two things.
    let spec = with_labels(Task::SingleLabel, &["true", "false"]);
    assert!(load_with(&csv(&["1", "0"]), "a.csv", &spec).is_err());
}

#[test]
fn texts_of_0_and_1_are_vectors_in_csv_and_json() {
    let spec = LoadSpec::new(Task::MultiLabel);
    let written = [
        ["0,1,0", "1,0,1", "0,0,0"],
        ["0 1 0", "1 0 1", "0 0 0"],
        ["[0, 1, 0]", "[1, 0, 1]", "[0, 0, 0]"],
        ["[0 1 0]", "[1 0 1]", "[0 0 0]"],
        ["(0,1,0)", "(1,0,1)", "(0,0,0)"],
        ["0;1;0", "1;0;1", "0;0;0"],
        ["0|1|0", "1|0|1", "0|0|0"],
        ["0.0 1.0 0.0", "1.0 0.0 1.0", "0.0 0.0 0.0"],
        [
            "[False, True, False]",
            "[True, False, True]",
            "[False, False, False]",
        ],
        ["010", "101", "000"],
    ];
    let expected = [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]];
    for labels in &written {
        let loaded = load_with(&csv(labels), "a.csv", &spec).unwrap();
        assert_eq!(
            (names(&loaded), vectors(&loaded)),
            (vec!["0", "1", "2"], expected.map(Vec::from).into()),
            "{labels:?}"
        );
        let strings = labels.map(|label| format!("\"{label}\""));
        let strings = strings.each_ref().map(String::as_str);
        let loaded = load_with(&jsonl(&strings), "a.jsonl", &spec).unwrap();
        assert_eq!(vectors(&loaded), expected, "{labels:?}");
        assert_eq!(loaded.report.labels.layout, LabelLayout::Vector);
    }
    for labels in [
        [
            "[\"0\", \"1\", \"0\"]",
            "[\"1\", \"0\", \"1\"]",
            "[\"0\", \"0\", \"0\"]",
        ],
        ["[false, true, false]", "[true, false, true]", "[0, 0, 0]"],
    ] {
        assert_eq!(
            vectors(&load_with(&jsonl(&labels), "a.jsonl", &spec).unwrap()),
            expected
        );
    }
    // Their names are those given.
    let named = with_labels(Task::MultiLabel, &["x", "y", "z"]);
    let loaded = load_with(&csv(&written[0]), "a.csv", &named).unwrap();
    assert_eq!(
        (names(&loaded), vectors(&loaded)),
        (vec!["x", "y", "z"], expected.map(Vec::from).into())
    );
}

#[test]
fn an_odd_vector_is_the_fault_and_0_and_1_alone_are_no_classes() {
    let mut column = vec!["0,1,0"; 9];
    for (odd, what) in [
        ("0,1", "expected 3 labels, found 2"),
        ("News", "`News` is no vector"),
        ("1", "expected 3 labels, found 1"),
        ("", "no label"),
        ("nan", "no label: `nan`"),
    ] {
        column[4] = odd;
        let text = message(load(&column, Task::MultiLabel));
        assert!(
            text.contains("1 of 9 rows cannot be used\n  line 6, column `label`: ")
                && text.contains(what),
            "{text}"
        );
    }
    let mut column = vec!["News|Sport"; 9];
    column[2] = "0,1,0";
    assert!(
        message(load(&column, Task::MultiLabel))
            .contains("line 4, column `label`: `0,1,0` is a vector")
    );
    for labels in [["0", "1", "1"], ["0,1", "1", "0"]] {
        let text = message(load(&labels, Task::MultiLabel));
        assert!(
            text.contains("neither places of a vector nor names")
                && text.contains("--label-columns"),
            "{text}"
        );
    }
    let text = message(load(&["0,1,0", "News"], Task::MultiLabel));
    assert!(text.contains("1 labels are vectors of 0 and 1"), "{text}");
}

#[test]
fn the_whole_column_tells_what_parts_names() {
    let multi = |labels: &[&str]| load(labels, Task::MultiLabel).unwrap();
    let loaded = multi(&["News", "Arts, Culture|Sport", "Arts, Culture"]);
    assert_eq!(names(&loaded), ["Arts, Culture", "News", "Sport"]);
    let loaded = multi(&["Law, Order; News", "Sport"]);
    assert_eq!(names(&loaded), ["Law, Order", "News", "Sport"]);
    assert_eq!(names(&multi(&["a, b", "b,c"])), ["a", "b", "c"]);
    let loaded = multi(&["['light', 'very, very dark']", "['light']"]);
    assert_eq!(names(&loaded), ["light", "very, very dark"]);
    let typed = jsonl(&["[\"Arts, Culture\", \"Sport\"]", "[\"a|b\"]", "[]"]);
    let loaded = load_with(&typed, "a.jsonl", &LoadSpec::new(Task::MultiLabel)).unwrap();
    assert_eq!(names(&loaded), ["Arts, Culture", "Sport", "a|b"]);
    assert_eq!(loaded.report.labels.rows_with_none, 1);
    // One odd cell of many does not turn the others' commas into parts of names.
    let mut column = vec!["a,b"; 30];
    column[10] = "a|b";
    let text = message(load(&column, Task::MultiLabel));
    assert!(
        text.contains("1 of 30 rows") && text.contains("`a|b` is parted by `|`"),
        "{text}"
    );
    // Known names tell it themselves.
    let spec = with_labels(Task::MultiLabel, &["Arts, Culture", "News"]);
    let loaded = load_with(&csv(&["Arts, Culture", "News"]), "a.csv", &spec).unwrap();
    assert_eq!(vectors(&loaded), [[1.0, 0.0], [0.0, 1.0]]);
    let numbers = multi(&["0,2", "1", "2,3"]);
    assert_eq!(
        (names(&numbers), vectors(&numbers)[0].clone()),
        (vec!["0", "1", "2", "3"], vec![1.0, 0.0, 1.0, 0.0])
    );
}

#[test]
fn a_column_of_0_and_1_for_each_label_is_found_or_named() {
    let text = "id,text,toxic,obscene,insult,year\n0,good film,1,0,True,1999\n1,slow film,0,0,false,2001\n2,a film,0.0,1.0,1,2002\n";
    let loaded = load_with(text, "a.csv", &LoadSpec::new(Task::MultiLabel)).unwrap();
    assert_eq!(names(&loaded), ["toxic", "obscene", "insult"]);
    assert_eq!(
        vectors(&loaded),
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    );
    assert_eq!(loaded.report.ignored_columns, ["id", "year"]);
    assert_eq!(loaded.report.labels.layout, LabelLayout::ColumnALabel);
    let guess = guess_task(
        &table(text, "a.csv"),
        &LoadSpec::new(Task::SingleLabel).columns,
    );
    assert_eq!(guess.unwrap().task, Task::MultiLabel);
    let mut named = LoadSpec::new(Task::MultiLabel);
    named.columns.labels = vec!["insult".into(), "toxic".into()];
    let loaded = load_with(text, "a.csv", &named).unwrap();
    assert_eq!(vectors(&loaded), [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]);
    // A head's names find their columns, in the head's order.
    let head = with_labels(Task::MultiLabel, &["obscene", "toxic"]);
    let loaded = load_with(text, "a.csv", &head).unwrap();
    assert_eq!(
        loaded.report.columns.label,
        Some(LabelColumns::Each(vec!["obscene".into(), "toxic".into()]))
    );
    let odd = text.replace("2,a film,0.0", "2,a film,maybe");
    let text = message(load_with(&odd, "a.csv", &named));
    assert!(
        text.contains("line 4, column `toxic`: `maybe` is neither 0 nor 1"),
        "{text}"
    );
    let gap = odd.replace("maybe", "");
    named.unlabelled = UnlabelledRows::Drop;
    assert_eq!(
        load_with(&gap, "a.csv", &named)
            .unwrap()
            .report
            .unlabelled_rows,
        1
    );
    // A column of labels wins over flags beside it.
    let flags = "text,label,seen,liked\ngood film,a|b,1,0\nslow film,b,0,0\n";
    let loaded = load_with(flags, "a.csv", &LoadSpec::new(Task::MultiLabel)).unwrap();
    assert_eq!(names(&loaded), ["a", "b"]);
}

#[test]
fn the_label_column_is_found_by_the_names_of_public_data_sets() {
    for name in [
        "score",
        "rating",
        "target",
        "class",
        "stars",
        "gold_label",
        "Label",
        "Sentiment",
        "is_spam",
        "coarse_label",
    ] {
        let text = format!("id,text,{name}\n1,good film,1\n2,slow film,0\n");
        let loaded = load_with(&text, "a.csv", &LoadSpec::new(Task::SingleLabel)).unwrap();
        assert_eq!(
            loaded.report.columns.label,
            Some(LabelColumns::One(name.into()))
        );
        assert_eq!(loaded.report.ignored_columns, ["id"]);
    }
    let two = "text,coarse_label,fine_label\ngood film,1,12\nslow film,0,3\n";
    let text = message(load_with(two, "a.csv", &LoadSpec::new(Task::SingleLabel)));
    assert!(
        text.contains("several columns may hold the label: `coarse_label`, `fine_label`"),
        "{text}"
    );
    assert!(text.contains("--label-column"), "{text}");
    let preferred = "text,label_text,score,label\ngood film,pos,5,1\nslow film,neg,1,0\n";
    let loaded = load_with(preferred, "a.csv", &LoadSpec::new(Task::SingleLabel)).unwrap();
    assert_eq!(
        loaded.report.columns.label,
        Some(LabelColumns::One("label".into()))
    );
}

#[test]
fn most_fractions_are_measurements_and_whole_ones_classes() {
    let guess = |text: &str| {
        let spec = LoadSpec::new(Task::SingleLabel).columns;
        guess_task(&table(text, "a.csv"), &spec).map(|guess| guess.task)
    };
    let pairs = "sentence1,sentence2,score\na film,the film,5.000\na,b,3.800\nc,d,2.600\n";
    assert_eq!(guess(pairs), Some(Task::Regression));
    assert_eq!(guess("text,label\na,0.0\nb,1.0\nc,1.0\n"), None);
    assert_eq!(guess("text,label\na,1\nb,2.5\nc,3\n"), None);
    let halves = "text,rating\na,1.0\nb,2.5\nc,3.0\nd,\ne,4.0\n";
    assert_eq!(guess(halves), Some(Task::Regression));
    assert_eq!(
        guess("text,label\na,\"0,1\"\nb,\"0,0\"\nc,\"1,1\"\n"),
        Some(Task::MultiLabel)
    );
    assert_eq!(
        guess("text,label\na,\"['x', 'y']\"\nb,['x']\n"),
        Some(Task::MultiLabel)
    );
    assert_eq!(guess("text,label\na,x y\nb,x\n"), None);
    let words = "tokens,ner_tags\n\"[\"\"a\"\"]\",\"[\"\"O\"\"]\"\n";
    assert_eq!(guess(words), Some(Task::TokenClassification));
    let kept = load_with(
        "text,score\na,1.5\nb,nan\nc,-\nd,2\n",
        "a.csv",
        &dropping(Task::Regression),
    )
    .unwrap();
    assert_eq!((kept.examples.len(), kept.report.unlabelled_rows), (2, 2));
}

#[test]
fn tags_follow_the_same_rules() {
    let spec = LoadSpec::new(Task::TokenClassification);
    let rows = |tags: &[&str]| -> String {
        let row =
            |tags: &&str| format!("{{\"tokens\": [\"good\", \"film\"], \"ner_tags\": {tags}}}\n");
        tags.iter().map(row).collect()
    };
    let loaded = load_with(&rows(&["[0, 3]", "[-100, 1]"]), "a.jsonl", &spec).unwrap();
    assert_eq!(names(&loaded), ["0", "1", "2", "3"]);
    let Label::Tokens(labels) = &loaded.examples[1].label else {
        panic!()
    };
    assert_eq!(labels.iter().filter(|l| **l != IGNORE_INDEX).count(), 1);
    for (odd, what) in [
        ("[null, \"O\"]", "no label"),
        ("[\"NA\", \"O\"]", "no label: `NA`"),
        ("[7, \"O\"]", "`7` is a number"),
    ] {
        let text = message(load_with(
            &rows(&["[\"O\", \"B\"]", "[\"O\", \"O\"]", odd]),
            "a.jsonl",
            &spec,
        ));
        assert!(
            text.contains("line 3, column `ner_tags`") && text.contains(what),
            "{text}"
        );
    }
    let text = message(load_with(&rows(&["[0, 1]", "[0, -1]"]), "a.jsonl", &spec));
    assert!(text.contains("`-1` is not a class"), "{text}");
}

#[test]
fn odd_names_are_said() {
    let loaded = load(
        &[
            "Sport",
            "sport ",
            "sport",
            "New  York",
            "new york",
            "['a']",
            "none",
            "b",
            "b\u{200b}",
            "\u{2014}",
            "TBD",
        ],
        Task::SingleLabel,
    )
    .unwrap();
    let said: Vec<String> = loaded
        .report
        .labels
        .oddities
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "classes whose names differ in case or blanks alone: `New  York`, `new york`",
            "classes whose names differ in case or blanks alone: `Sport`, `sport`",
            "classes whose names differ in case or blanks alone (one holds signs without width): `b`, `b\u{200b}`",
            "labels that stand with and without blanks around them are one class: `sport`",
            "names of classes with quotes or brackets: `['a']`",
            "classes that may mean no label: `TBD`, `none`, `—`",
        ]
    );
    let said = |labels: &[&str]| -> Vec<String> {
        let loaded = load(labels, Task::SingleLabel).unwrap();
        let oddities = loaded.report.labels.oddities;
        oddities.iter().map(ToString::to_string).collect()
    };
    let comma = said(&["0,5", "-1,25", "0,5", "3,0"]);
    assert!(
        matches!(&comma[..], [one] if one.contains("decimal comma") && one.contains("`-1,25`"))
    );
    for labels in [["a,b", "c"], ["1,000,000", "1,2,3"], ["Paris, 3", "b"]] {
        assert!(said(&labels).is_empty(), "{labels:?}");
    }
    let ids: Vec<String> = (0..24).map(|i| format!("row {i}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert_eq!(said(&ids), ["24 classes: is this a column of classes?"]);
    assert!(said(&ids[..19]).is_empty());
    let single = load(&["a", "a"], Task::SingleLabel).unwrap();
    assert_eq!(
        single.report.labels.oddities,
        [LabelOddity::SingleClass { name: "a".into() }]
    );
    assert_eq!(single.report.labels.counts(), "`a` 2");
    assert_eq!(
        load(&["it's", "o'clock"], Task::SingleLabel)
            .unwrap()
            .report
            .labels
            .oddities,
        []
    );
}

#[test]
fn an_unknown_label_says_whose_names_are_meant() {
    let mut spec = with_labels(Task::SingleLabel, &["NEGATIVE", "POSITIVE"]);
    for (origin, words) in [
        (
            LabelOrigin::TrainedHead,
            vec!["id2label", "--labels", "--ignore-mismatched-sizes"],
        ),
        (LabelOrigin::Head, vec!["id2label", "--labels"]),
        (LabelOrigin::Adapter, vec!["adapter", "--labels"]),
        (LabelOrigin::Flag, vec!["--labels"]),
    ] {
        spec.labels_from = origin;
        let text = message(load_with(&csv(&["ham", "spam"]), "a.csv", &spec));
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(
            text.contains("--ignore-mismatched-sizes"),
            origin == LabelOrigin::TrainedHead
        );
    }
}
