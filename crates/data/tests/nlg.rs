//! E2E, WebNLG and DART in their published shapes: prompts as in the paper's code, references,
//! faults with line and field; and the real sets, where they are at hand.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_data::nlg::{detect, read_prompts};
use lowrank_data::{
    DataError, LoadSpec, NlgFormat, PromptRow, Task, Tokenizer, load_examples, read_table,
};

/// A file in a folder that lives as long.
struct File(#[allow(dead_code)] tempfile::TempDir, PathBuf);

fn file(name: &str, text: &str) -> File {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    File(dir, path)
}

/// The rows of a file whose kind must be found by itself.
#[track_caller]
fn found(name: &str, text: &str, format: NlgFormat) -> Vec<PromptRow> {
    let file = file(name, text);
    assert_eq!(detect(&file.1), Some(format));
    read_prompts(&file.1, None).unwrap()
}

fn pairs(rows: &[PromptRow]) -> Vec<(&str, Vec<&str>)> {
    rows.iter()
        .map(|row| {
            (
                row.prompt.as_str(),
                row.references.iter().map(String::as_str).collect(),
            )
        })
        .collect()
}

const GROUPED: &str = r#"{"mr": "name[Aromi], eatType[pub], priceRange[£20-25], familyFriendly[no], customer rating[3 out of 5]", "refs": ["A pub.", " Aromi is a pub. "]}
{"mr": "name[Zizzi]", "refs": ["Zizzi."]}
"#;

#[test]
fn e2e_in_its_three_shapes() {
    let linear = "name : Aromi | Type : pub | price : £20-25 | family friendly : no | customer rating : 3 out of 5";
    let rows = found("a.jsonl", GROUPED, NlgFormat::E2e);
    let expected = [
        (linear, vec!["A pub.", "Aromi is a pub."]),
        ("name : Zizzi", vec!["Zizzi."]),
    ];
    assert_eq!(pairs(&rows), expected);

    let csv = "\"mr\",\"ref\"\n\"name[Zizzi]\",\"Zizzi, here.\"\n\"name[Aromi]\",Aromi.\nname[Zizzi],There is Zizzi.\n";
    for header in ["\"mr\",\"ref\"", "MR,ref"] {
        let rows = found(
            "a.csv",
            &csv.replace("\"mr\",\"ref\"", header),
            NlgFormat::E2e,
        );
        let expected = [
            ("name : Zizzi", vec!["Zizzi, here.", "There is Zizzi."]),
            ("name : Aromi", vec!["Aromi."]),
        ];
        assert_eq!(pairs(&rows), expected);
        assert_eq!(rows[0].reference_lines, [2, 4]);
    }

    let lines = "name : Zizzi | near : A||Zizzi is near A . \nname : B||B .\n\nname : Zizzi | near : A||Near A : Zizzi .\n";
    let rows = found("a.lora.txt", lines, NlgFormat::E2e);
    let expected = [
        (
            "name : Zizzi | near : A",
            vec!["Zizzi is near A .", "Near A : Zizzi ."],
        ),
        ("name : B", vec!["B ."]),
    ];
    assert_eq!(pairs(&rows), expected);
    assert_eq!(rows[0].reference_lines, [1, 4]);
}

#[test]
fn webnlg_in_its_json_shapes() {
    let lines = r#"{"category": "Airport", "size": 1, "seen": true, "triples": [["A_B", "cityServed", "C, D"], ["A_B", "leader_(of)", "E"]], "texts": ["One.", "Two."]}
{"category": "Politician", "seen": false, "triples": [["F", "is", "G"]], "texts": ["Three."]}
{"category": "Airport", "seen": true, "triples": [["F", "is", "G"]], "texts": []}
"#;
    let rows = found("a.jsonl", lines, NlgFormat::Webnlg);
    let expected = [
        (
            "A_B : cityServed : C, D | A_B : leader_(of) : E",
            vec!["One.", "Two."],
        ),
        ("F : is : G", vec!["Three."]),
    ];
    assert_eq!(
        pairs(&rows),
        expected,
        "a meaning without any text is left out"
    );
    let seen: Vec<_> = rows.iter().map(|row| row.seen).collect();
    assert_eq!(seen, [Some(true), Some(false)]);

    let document = r#"{
  "entries": [
    {"1": {"category": "Food", "lexicalisations": [
       {"comment": "good", "lang": "", "lex": "A good one.", "xml_id": "Id1"},
       {"comment": "toFix", "lex": "A bad one."}],
     "modifiedtripleset": [{"object": "C", "property": "isB", "subject": "A"}]}},
    {"2": {"category": "Artist", "lexicalisations": [{"comment": "good", "lex": "Two."}],
     "modifiedtripleset": [{"object": "F", "property": "E", "subject": "D"}, {"object": "I", "property": "H", "subject": "G"}]}}
  ]
}"#;
    let rows = found("a.json", document, NlgFormat::Webnlg);
    let expected = [
        ("A : isB : C", vec!["A good one."]),
        ("D : E : F | G : H : I", vec!["Two."]),
    ];
    assert_eq!(pairs(&rows), expected);
    let told: Vec<_> = rows.iter().map(|row| (row.line, row.seen)).collect();
    assert_eq!(told, [(3, Some(true)), (7, Some(false))]);
}

const XML: &str = r#"<?xml version="1.0" ?>
<benchmark>
  <entries>
    <entry category="Food" eid="Id1" shape="(X (X))" shape_type="NA" size="2">
      <originaltripleset><otriple>Not | thisOne | either</otriple></originaltripleset>
      <modifiedtripleset>
        <mtriple>A_&amp;_B | isB | "C, D"@en</mtriple>
        <mtriple> G | leader_(of) | 1 &lt; 2 </mtriple>
      </modifiedtripleset>
      <lex comment="good" lid="Id1">A &quot;good&quot; one: caf&#233;.</lex>
      <lex comment="toFix" lid="Id2">A bad one.</lex>
      <lex comment="good" lid="Id3">
        A second <!-- not read --><![CDATA[<one>]]>.
      </lex>
    </entry>
    <entry category="Artist" eid="Id2" size="1">
      <lex comment="good" lid="Id1">Two.</lex>
      <modifiedtripleset><mtriple>F | is | G</mtriple></modifiedtripleset>
    </entry>
    <entry category="Airport" eid="Id3" size="1">
      <modifiedtripleset><mtriple>H | is | I</mtriple></modifiedtripleset>
      <lex comment="toFix" lid="Id1">None of them good.</lex>
    </entry>
    <entry eid="Id4" size="1"><modifiedtripleset><mtriple>J | is | K</mtriple></modifiedtripleset></entry>
  </entries>
</benchmark>
"#;

#[test]
fn webnlg_as_it_is_published_gives_the_rows_of_the_json() {
    let lines = r#"{"category": "Food", "triples": [["A_&_B", "isB", "\"C, D\"@en"], ["G", "leader_(of)", "1 < 2"]], "texts": ["A \"good\" one: café.", "A second <one>."]}
{"category": "Artist", "triples": [["F", "is", "G"]], "texts": ["Two."]}
{"category": "Airport", "triples": [["H", "is", "I"]], "texts": []}
{"triples": [["J", "is", "K"]], "texts": []}
"#;
    let document = r#"{"entries": [
  {"1": {"category": "Food", "lexicalisations": [
     {"comment": "good", "lex": "A \"good\" one: café."}, {"comment": "toFix", "lex": "A bad one."}, {"comment": "good", "lex": "A second <one>."}],
   "modifiedtripleset": [{"object": "\"C, D\"@en", "property": "isB", "subject": "A_&_B"}, {"object": "1 < 2", "property": "leader_(of)", "subject": "G"}]}},
  {"2": {"category": "Artist", "lexicalisations": [{"comment": "good", "lex": "Two."}],
   "modifiedtripleset": [{"object": "G", "property": "is", "subject": "F"}]}},
  {"3": {"category": "Airport", "lexicalisations": [{"comment": "toFix", "lex": "None of them good."}],
   "modifiedtripleset": [{"object": "I", "property": "is", "subject": "H"}]}},
  {"4": {"lexicalisations": [], "modifiedtripleset": [{"object": "K", "property": "is", "subject": "J"}]}}
]}"#;
    let rows = found("a.xml", XML, NlgFormat::Webnlg);
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.line, row.reference_lines.clone(), row.seen))
        .collect();
    assert_eq!(
        told,
        [(4, vec![10, 12], Some(true)), (16, vec![17], Some(false))]
    );
    // All but where it stands.
    let same = |rows: Vec<PromptRow>| {
        let placeless = |row: PromptRow| PromptRow {
            line: 0,
            reference_lines: Vec::new(),
            ..row
        };
        rows.into_iter().map(placeless).collect::<Vec<_>>()
    };
    let rows = same(rows);
    assert_eq!(rows, same(found("a.jsonl", lines, NlgFormat::Webnlg)));
    assert_eq!(rows, same(found("a.json", document, NlgFormat::Webnlg)));

    // By how it begins, whatever its name and however its lines end; and where the beginning does
    // not tell, by its kind.
    let bare = XML.split_once('\n').unwrap().1;
    for text in [bare.replace('\n', "\r\n"), format!("\u{feff}{XML}")] {
        assert_eq!(same(found("a.txt", &text, NlgFormat::Webnlg)), rows);
    }
    let late = file("a.xml", &format!("<!--{}-->{bare}", "-x".repeat(1 << 15)));
    assert_eq!(detect(&late.1), None);
    let late = read_prompts(&late.1, Some(NlgFormat::Webnlg)).unwrap();
    assert_eq!(same(late), rows);
}

#[test]
fn training_takes_the_same_ids_from_webnlg_in_xml_and_jsonl() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2");
    let tokenizer = Tokenizer::from_dir(&dir, None).expect("the fixture loads");
    let spec = LoadSpec::new(Task::CausalLm);
    let lines = r#"{"category": "Food", "triples": [["A_&_B", "isB", "\"C, D\"@en"], ["G", "leader_(of)", "1 < 2"]], "texts": ["A \"good\" one: café.", "A second <one>."]}
{"category": "Artist", "triples": [["F", "is", "G"]], "texts": ["Two."]}
"#;
    let ids = |name: &str, text: &str| {
        let file = file(name, text);
        let loaded = load_examples(&file.1, &spec, Some(&tokenizer)).unwrap();
        let examples = loaded.examples.iter().cloned();
        examples.map(|e| (e.input_ids, e.label)).collect::<Vec<_>>()
    };
    let xml = ids("a.xml", XML);
    assert_eq!(xml.len(), 3);
    assert_eq!(xml, ids("a.jsonl", lines));
}

#[test]
fn every_fault_of_webnlgs_xml_names_its_line_and_element() {
    let refused = |text: &str, words: &[&str]| {
        let file = file("a.xml", text);
        let error = read_prompts(&file.1, Some(NlgFormat::Webnlg)).unwrap_err();
        for word in words {
            let message = error.to_string();
            assert!(message.contains(word), "`{word}` is missing in: {message}");
        }
    };
    refused("", &["a.xml", "holds no row"]);
    refused(" \n", &["holds no row"]);
    refused("<benchmark>\n<entries>", &["line 2", "not XML"]);
    refused("<benchmark>\n<entries></entry>", &["line 2", "not XML"]);
    refused(
        "<!-- x -->\n<html/>",
        &["line 2: expected the element `benchmark`, found the element `html`"],
    );
    for none in ["<benchmark/>", "<benchmark><entries/></benchmark>"] {
        refused(
            none,
            &["line 1, column `benchmark`: expected `entries` with at least one `entry`"],
        );
    }
    let entry = |inner: &str| {
        format!("<benchmark><entries>\n<entry>\n{inner}</entry></entries></benchmark>")
    };
    let set = "<modifiedtripleset><mtriple>a | b | c</mtriple></modifiedtripleset>\n";
    let lex = "<lex comment=\"good\">x</lex>\n";
    refused(
        &entry(lex),
        &["line 2, column `modifiedtripleset`: expected one, found 0"],
    );
    refused(
        &entry(&format!("{set}{set}{lex}")),
        &["line 2, column `modifiedtripleset`: expected one, found 2"],
    );
    refused(
        &entry(&format!("<modifiedtripleset/>{lex}")),
        &["line 3, column `modifiedtripleset`: expected at least one `mtriple`"],
    );
    refused(
        &entry(set),
        &["line 2, column `lex`: expected a text with `comment=\"good\"` in at least one entry"],
    );
    for triple in ["a | b", "a | b | c | d", "a | | c", " | b | c", "a|b|c"] {
        let set = set.replace("a | b | c", triple);
        refused(
            &entry(&format!("{set}{lex}")),
            &["line 3, column `mtriple[0]`: expected `subject | property | object`"],
        );
    }
    let texts = [
        ("<lex>x</lex>", "lex[1].comment`: no value"),
        (
            "<lex comment=\"\">x</lex>",
            "lex[1].comment`: expected text",
        ),
        ("<lex comment=\"good\"> </lex>", "lex[1]`: expected text"),
        (
            "<lex comment=\"good\">x<b>y</b></lex>",
            "lex[1]`: expected text, found the element `b`",
        ),
    ];
    for (text, expected) in texts {
        let all = entry(&format!("{set}{lex}{text}"));
        refused(&all, &[&format!("line 5, column `{expected}")]);
    }
    // Entities of its own, and elements in elements without end.
    refused(
        "<!DOCTYPE b [<!ENTITY a \"aa\">]>\n<benchmark>&a;</benchmark>",
        &["not XML", "DTD"],
    );
    refused(&"<benchmark>".repeat(100_000), &["not XML"]);
}

#[test]
fn dart_in_its_two_shapes() {
    let array = r#"[
  {"tripleset": [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "Full_Name", "X"]], "subtree_was_extended": false,
   "annotations": [{"source": "S", "text": "One."}, {"source": "S", "text": "Two."}]},
  {"tripleset": [["A", "[TABLECONTEXT]", "B"]], "annotations": [{"source": "S", "text": "Three."}]}
]"#;
    let linear = "Mars Hill : joined : 1973 | Mars Hill : full_name : X";
    let rows = found("a.json", array, NlgFormat::Dart);
    let expected = [
        (linear, vec!["One.", "Two."]),
        ("A : [tablecontext] : B", vec!["Three."]),
    ];
    assert_eq!(pairs(&rows), expected);
    assert_eq!((rows[0].line, rows[1].line), (2, 4));
    let lines = r#"{"triples": [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "Full_Name", "X"]], "texts": ["One.", "Two."], "sources": ["S", "S"]}"#;
    assert_eq!(
        pairs(&found("a.jsonl", lines, NlgFormat::Dart)),
        expected[..1]
    );
}

#[test]
fn any_prompts_with_references() {
    let text = "{\"prompt\": \"a b\", \"references\": [\"c\", \"d\"], \"id\": 3}\n";
    let rows = found("a.jsonl", text, NlgFormat::References);
    assert_eq!(pairs(&rows), [("a b", vec!["c", "d"])]);
    // Rows of training have a completion, and are read as they always were.
    let rows = file(
        "b.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\", \"references\": [\"c\"]}\n",
    );
    assert_eq!(detect(&rows.1), None);
}

#[test]
fn training_takes_a_row_for_each_reference_in_the_files_order() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2");
    let tokenizer = Tokenizer::from_dir(&dir, None).expect("the fixture loads");
    let spec = LoadSpec::new(Task::CausalLm);
    let lines = file(
        "a.txt",
        "name : B||One .\nname : C||Two .\nname : B||Three .\n",
    );
    let loaded = load_examples(&lines.1, &spec, Some(&tokenizer)).unwrap();
    assert_eq!(
        loaded.examples.iter().map(|e| e.line).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    // The very ids of the paper's code: context, end token, blank and completion, end token.
    let eos = tokenizer.eos_id().unwrap();
    let ids = |text: &str| tokenizer.encode_plain(text).unwrap();
    let expected = [ids("name : B"), vec![eos], ids(" Three ."), vec![eos]].concat();
    assert_eq!(loaded.examples[2].input_ids, expected);
    let grouped = file("a.jsonl", GROUPED);
    assert_eq!(
        load_examples(&grouped.1, &spec, Some(&tokenizer))
            .unwrap()
            .examples
            .len(),
        3
    );
    // Columns that are named are read, whatever the file looks like.
    let mut named = LoadSpec::new(Task::CausalLm);
    named.columns.text = Some("mr".to_owned());
    assert!(
        read_table(&grouped.1, &named)
            .unwrap()
            .columns()
            .contains(&"refs".to_owned())
    );
}

#[test]
fn every_fault_names_its_line_and_field() {
    let refused = |name: &str, text: &str, format: NlgFormat, words: &[&str]| {
        let file = file(name, text);
        let error = read_prompts(&file.1, Some(format)).unwrap_err();
        let hint = error.hint().unwrap_or_default();
        let message = format!("{error}; {hint}");
        for word in words {
            assert!(message.contains(word), "`{word}` is missing in: {message}");
        }
    };
    use NlgFormat::{Dart, E2e, References, Webnlg};
    refused(
        "a.jsonl",
        "{\"mr\": \"name[A\", \"refs\": [\"x\"]}\n{\"mr\": \"name[A]\", \"refs\": [\"x\", 3]}\n{\"mr\": \"name[A]\", \"ref\": []}\n",
        E2e,
        &[
            "3 of 3",
            "line 1, column `mr`: expected `slot[value], slot[value]`, found the text `name[A`",
            "line 2, column `refs[1]`: expected text, found `3`",
            "line 3, column `refs`: no value (the row has `ref`)",
        ],
    );
    for mr in [
        "name[A] eatType[pub]",
        "name[A],",
        "[A]",
        "name[]",
        "name[A[b]]",
        "x",
    ] {
        let row = format!("{{\"mr\": \"{mr}\", \"refs\": [\"x\"]}}\n");
        refused("a.jsonl", &row, E2e, &["line 1, column `mr`"]);
    }
    refused(
        "a.txt",
        "a||b\nc|d\na||b||c\n",
        E2e,
        &["line 2: expected `meaning||text`", "line 3"],
    );
    refused(
        "a.csv",
        "mr,ref\nname[A],x\nname[A],\n",
        E2e,
        &["line 3, column `ref`"],
    );
    refused(
        "a.jsonl",
        "{\"triples\": [[\"a\", \"b\"]], \"texts\": [\"x\"]}\n{\"triples\": [], \"texts\": [\"x\"]}\n",
        Webnlg,
        &[
            "line 1, column `triples[0]`: expected a list of three texts, found a list of 2",
            "line 2, column `triples`",
        ],
    );
    let document = "{\"entries\": [\n {\"1\": {\"lexicalisations\": [{\"lex\": \"x\"}],\n  \"modifiedtripleset\": [{\"subject\": \"a\", \"property\": \"b\", \"object\": \"c\"}]}},\n {\"2\": 7}]}";
    refused(
        "a.json",
        document,
        Webnlg,
        &[
            "line 2, column `1.lexicalisations[0].comment`: no value",
            "line 4, column `2`: expected an object, found `7`",
        ],
    );
    refused(
        "a.json",
        "{\n\"entries\": [\n{]}",
        Webnlg,
        &["line 3", "not JSON"],
    );
    refused(
        "a.json",
        "[\n {\"tripleset\": [[\"a\", 1, \"c\"]], \"annotations\": []},\n {\"tripleset\": [[\"a\", \"b\", \"c\"]], \"annotations\": [{\"source\": \"x\"}]}]",
        Dart,
        &[
            "line 2, column `tripleset[0]`: expected text, found `1`",
            "line 3, column `annotations[0].text`: no value",
        ],
    );
    refused(
        "a.jsonl",
        "{\"prompt\": \"a\", \"references\": \"b\"}\n",
        References,
        &["line 1, column `references`: expected a list"],
    );
    refused("a.jsonl", GROUPED, Dart, &["column `triples`: no value"]);
    refused(
        "a.jsonl",
        "{\"triples\": [[\"a\", \"b\", \"c\"]], \"texts\": []}\n",
        Dart,
        &["holds no row"],
    );
    let unknown = file("a.jsonl", "{\"text\": \"a\"}\n");
    let error = read_prompts(&unknown.1, None).unwrap_err();
    assert!(error.hint().unwrap().contains("--data-format"), "{error}");
}

#[test]
fn a_file_that_is_cut_anywhere_is_an_error_or_fewer_rows() {
    let array = r#"[{"tripleset": [["é", "B", "c"]], "annotations": [{"text": "x"}]}]"#;
    let entries = r#"{"entries": [{"1": {"lexicalisations": [], "modifiedtripleset": []}}]}"#;
    for (text, format) in [
        (GROUPED, NlgFormat::E2e),
        (array, NlgFormat::Dart),
        (entries, NlgFormat::Webnlg),
        (XML, NlgFormat::Webnlg),
    ] {
        let file = file("a.json", "");
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            fs::write(&file.1, &text[..end]).unwrap();
            if let Ok(rows) = read_prompts(&file.1, Some(format)) {
                assert!(!rows.is_empty());
            }
        }
    }
}

#[test]
fn another_task_refuses_the_kind() {
    let mut spec = LoadSpec::new(Task::SingleLabel);
    spec.nlg = Some(NlgFormat::E2e);
    let grouped = file("a.jsonl", GROUPED);
    let error = read_table(&grouped.1, &spec).unwrap_err();
    assert!(matches!(error, DataError::Spec(_)), "{error}");
}

/// A folder of real data beside the repository, or nothing, said aloud.
fn shared(name: &str) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = repository.join("../shared/data").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: there is no {}", folder.display());
    None
}

fn count(path: PathBuf) -> (usize, usize) {
    let rows = read_prompts(&path, None).unwrap_or_else(|error| panic!("{error}"));
    (
        rows.len(),
        rows.iter().map(|row| row.references.len()).sum(),
    )
}

#[test]
fn the_real_e2e() {
    let Some(folder) = shared("e2e") else { return };
    for (grouped, lines, expected) in [
        ("train", "train", (4862, 42061)),
        ("validation", "valid", (547, 4672)),
        ("test", "test", (630, 4693)),
    ] {
        assert_eq!(
            count(folder.join(format!("{grouped}.grouped.jsonl"))),
            expected
        );
        assert_eq!(count(folder.join(format!("{lines}.lora.txt"))), expected);
    }
    // The prompts of the published set are those of the paper's file, each with as many texts.
    let sorted = |name: &str| {
        let rows = read_prompts(&folder.join(name), None).unwrap();
        let mut all: Vec<_> = rows
            .into_iter()
            .map(|r| (r.prompt, r.references.len()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(sorted("train.grouped.jsonl"), sorted("train.lora.txt"));
}

#[test]
fn the_real_webnlg() {
    let Some(folder) = shared("webnlg2017") else {
        return;
    };
    // Five meanings of the training set and one of the validation set have no text.
    assert_eq!(count(folder.join("train.jsonl")), (6935, 18025));
    assert_eq!(count(folder.join("validation.jsonl")), (871, 2258));
    let test = read_prompts(&folder.join("test.jsonl"), None).unwrap();
    let seen = test.iter().filter(|row| row.seen == Some(true)).count();
    assert_eq!((test.len(), seen), (1862, 971));
    assert_eq!(
        test[0].prompt,
        "Abilene_Regional_Airport : cityServed : Abilene,_Texas"
    );
}

#[test]
fn the_real_dart() {
    let Some(folder) = shared("dart") else { return };
    assert_eq!(count(folder.join("validation.jsonl")), (2768, 6980));
}
