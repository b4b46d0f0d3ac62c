//! Chats from a file's rows: ids and masks equal those of transformers, each form is read, and what
//! cannot be is said. Golden file by `tools/golden/chats.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowrank_chat::{ChatTemplate, LossOn, Variables, built_in};
use lowrank_data::{
    BadRows, ChatFormat, ChatUse, DataError, IGNORE_INDEX, Label, LoadSpec, Loaded, LongRows, Task,
    Tokenizer, load_examples, read_table, reads_chats,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_dir(&fixtures().join(name), None).unwrap()
}

fn format(template: &str, tokenizer: &Tokenizer) -> ChatFormat {
    ChatFormat {
        template: Arc::new(ChatTemplate::new(template).unwrap()),
        variables: Variables {
            special_tokens: tokenizer.special_tokens_map().clone(),
            ..Variables::default()
        },
        loss_on: LossOn::Assistant,
        used: ChatUse::Instructions,
    }
}

fn spec(chat: ChatFormat) -> LoadSpec {
    LoadSpec {
        chat: Some(chat),
        ..LoadSpec::new(Task::CausalLm)
    }
}

/// Loads rows with the GPT-2 of the fixtures and a built-in template.
fn load(rows: &[Value], change: impl FnOnce(&mut LoadSpec)) -> Result<Loaded, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let gpt2 = tokenizer("gpt2");
    let mut spec = spec(format(built_in("plain").unwrap(), &gpt2));
    change(&mut spec);
    load_examples(&path, &spec, Some(&gpt2))
}

/// Each example's text, with what is learned of it in brackets.
fn shown(loaded: &Loaded) -> Vec<String> {
    let gpt2 = tokenizer("gpt2");
    let text = |example: &lowrank_data::Example| {
        let Label::Tokens(labels) = &example.label else {
            panic!("{:?}", example.label);
        };
        let mut text = String::new();
        let pairs: Vec<(u32, bool)> = (example.input_ids.iter().zip(labels))
            .map(|(id, label)| (*id, *label != IGNORE_INDEX))
            .collect();
        for run in pairs.chunk_by(|a, b| a.1 == b.1) {
            let ids: Vec<u32> = run.iter().map(|(id, _)| *id).collect();
            let part = gpt2.decode(&ids).unwrap();
            text += &if run[0].1 { format!("[{part}]") } else { part };
        }
        text
    };
    loaded.examples.iter().map(text).collect()
}

#[test]
fn ids_and_masks_of_assistant_tokens_equal_those_of_transformers() {
    let chat = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chat/tests/fixtures");
    let chats = &read(&chat.join("rendered.json"))["chats"];
    let golden = read(&fixtures().join("chats.json"));
    let folder = tempfile::tempdir().unwrap();
    let mut tokenizers: BTreeMap<&str, Tokenizer> = BTreeMap::new();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 80);
    let mut learned = 0;
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let name = text("tokenizer");
        let tokenizer = tokenizers.entry(name).or_insert_with(|| tokenizer(name));
        let source = chat.join(format!("templates/{}.jinja", text("template")));
        let source = std::fs::read_to_string(source).unwrap();
        let row = &chats[text("chat")];
        let path = folder.path().join("row.jsonl");
        std::fs::write(&path, row.to_string()).unwrap();
        let spec = spec(format(&source, tokenizer));
        let place = format!("{name}, {}, {}", text("template"), text("chat"));
        let numbers = |key: &str| -> Vec<i64> {
            let list = case[key].as_array().unwrap().iter();
            list.map(|n| n.as_i64().unwrap()).collect()
        };
        let loaded = match load_examples(&path, &spec, Some(tokenizer)) {
            Ok(loaded) => loaded,
            // Nothing of it would be learned.
            Err(error) => {
                assert!(!numbers("mask").contains(&1), "{place}: {error}");
                continue;
            }
        };
        let example = &loaded.examples[0];
        let ids: Vec<i64> = example.input_ids.iter().map(|id| i64::from(*id)).collect();
        assert_eq!(ids, numbers("input_ids"), "{place}");
        let expected = numbers("mask").into_iter().zip(&ids).enumerate();
        let expected: Vec<i64> = expected
            .map(|(at, (mask, id))| {
                if mask == 1 && at > 0 {
                    *id
                } else {
                    IGNORE_INDEX
                }
            })
            .collect();
        assert_eq!(example.label, Label::Tokens(expected), "{place}");
        learned += 1;
    }
    assert!(learned > 60, "{learned}");
}

#[test]
fn each_form_of_a_chat_is_read() {
    let eos = tokenizer("gpt2")
        .special_tokens_map()
        .get("eos_token")
        .cloned();
    let eos = eos.unwrap_or_default();
    let asked = "User: 2+2?\nAssistant:";
    let expected = format!("{asked}[ 4{eos}]");
    let turns =
        json!([{ "role": "user", "content": "2+2?" }, { "role": "assistant", "content": "4" }]);
    let share_gpt = json!([{ "from": "human", "value": "2+2?" }, { "from": "gpt", "value": "4" }]);
    let forms = [
        json!({ "messages": turns }),
        json!({ "conversations": share_gpt, "id": "x" }),
        json!({ "conversations": turns.to_string() }),
        json!({ "instruction": "2+2?", "input": "", "output": "4" }),
        json!({ "instruction": "2+2?", "input": "", "output": "4", "history": [], "system": "" }),
        json!({ "instruction": "2+2?", "input": "", "output": "4", "history": "" }),
        json!({ "instruction": "2+2?", "input": "", "output": "4", "history": "[]" }),
        json!({ "question": "2+2?", "answer": "4" }),
        json!({ "prompt": [turns[0]], "completion": [turns[1]] }),
    ];
    for form in forms {
        let loaded = load(std::slice::from_ref(&form), |_| ()).unwrap();
        assert_eq!(shown(&loaded), [expected.as_str()], "{form}");
    }
    let bare = json!({ "instruction": "2+2?", "input": "", "output": "4", "history": "" });
    load(&[bare], |spec| spec.chat = None).unwrap();
    // TRL's plain form is plain, unless a template is asked for by its name.
    let plain = [json!({ "prompt": "2+2?", "completion": "4" })];
    assert_ne!(shown(&load(&plain, |_| ()).unwrap()), [expected.as_str()]);
    let always = |spec: &mut LoadSpec| spec.chat.as_mut().unwrap().used = ChatUse::Always;
    assert_eq!(shown(&load(&plain, always).unwrap()), [expected]);
}

#[test]
fn what_stands_beside_a_chat_becomes_part_of_it() {
    let row = json!({
        "instruction": "and 3+3?", "input": "a sum", "output": "6", "system": "Count.",
        "history": [["2+2?", "4"]],
    });
    let found = shown(&load(&[row], |_| ()).unwrap());
    assert!(
        found[0].starts_with("System: Count.\nUser: 2+2?\nAssistant:[ 4"),
        "{found:?}"
    );
    assert!(
        found[0].contains("User: and 3+3?\na sum\nAssistant:[ 6"),
        "{found:?}"
    );
    let row = json!({
        "conversations": [{ "from": "human", "value": "a" }, { "from": "gpt", "value": "b" }],
        "system": "Be.",
    });
    let found = shown(&load(&[row], |_| ()).unwrap());
    assert!(
        found[0].starts_with("System: Be.\nUser: a\nAssistant:[ b"),
        "{found:?}"
    );
    // Earlier turns of a conversational prompt are not learned.
    let said = json!([
        { "role": "user", "content": "a" }, { "role": "assistant", "content": "b" },
        { "role": "user", "content": "c" },
    ]);
    let row = json!({ "prompt": said, "completion": [{ "role": "assistant", "content": "d" }] });
    let found = shown(&load(&[row], |_| ()).unwrap());
    assert!(
        found[0].contains("Assistant: b") && found[0].contains("[ d"),
        "{found:?}"
    );
}

#[test]
fn long_chats_are_cut_left_out_or_refused() {
    let long = "word ".repeat(30);
    let turns =
        json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": long }]);
    let rows = [
        json!({ "messages": turns }),
        json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] }),
    ];
    let with = |long_rows| {
        move |spec: &mut LoadSpec| {
            (spec.long_rows, spec.max_length) = (long_rows, Some(20));
        }
    };
    let cut = load(&rows, with(LongRows::Truncate)).unwrap();
    assert_eq!((cut.report.truncated_rows, cut.report.longest), (1, 20));
    assert!(cut.report.truncated_tokens > 0);
    let dropped = load(&rows, with(LongRows::Drop)).unwrap();
    assert_eq!(
        (dropped.report.dropped_rows, dropped.examples.len()),
        (1, 1)
    );
    let refused = load(&rows, with(LongRows::Refuse)).unwrap_err().to_string();
    assert!(refused.contains("line 1"), "{refused}");
}

/// A chat of so many exchanges of five words, behind a system prompt.
fn exchanges(n: usize) -> Value {
    let mut turns = vec![json!({ "role": "system", "content": "Be." })];
    for i in 0..n {
        turns.push(json!({ "role": "user", "content": format!("question {i} of many") }));
        turns.push(json!({ "role": "assistant", "content": format!("answer {i} of many") }));
    }
    json!({ "messages": turns })
}

#[test]
fn a_long_chat_loses_its_first_turns_and_keeps_what_the_system_says() {
    let whole = load(&[exchanges(5)], |_| ()).unwrap();
    let length = whole.examples[0].input_ids.len();
    let short = |max_length, template: Option<&str>| {
        load(&[exchanges(5)], |spec| {
            spec.max_length = Some(max_length);
            if let Some(source) = template {
                spec.chat = Some(format(source, &tokenizer("gpt2")));
            }
        })
        .unwrap()
    };
    let loaded = short(length - 1, None);
    let text = &shown(&loaded)[0];
    assert!(
        text.starts_with("System: Be.\nUser: question 1 of many"),
        "{text}"
    );
    assert!(text.contains("[ answer 4 of many"), "{text}");
    let report = loaded.report.chats.as_ref().unwrap();
    assert_eq!(
        (report.shortened.count, &report.shortened.lines),
        (1, &vec![1])
    );
    assert_eq!((report.turns, report.empty_turns), (5, 1));
    assert_eq!(
        (
            loaded.report.truncated_rows,
            loaded.examples[0].input_ids.len() < length
        ),
        (1, true)
    );
    // Where the last turn alone is too long, its end goes.
    let one = load(&[exchanges(1)], |_| ()).unwrap().report.longest;
    let loaded = short(one - 3, None);
    let text = &shown(&loaded)[0];
    assert!(
        text.starts_with("System: Be.\nUser: question 4 of many"),
        "{text}"
    );
    assert_eq!(loaded.examples[0].input_ids.len(), one - 3);
    // Turn by turn, each row loses turns of its own.
    let counts = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '!' if loop.last and m.role == 'assistant' else '' }}\n{% endfor %}\
                  {% if add_generation_prompt %}assistant:{% endif %}";
    let loaded = short(length / 2, Some(counts));
    assert_eq!(loaded.examples.len(), 5);
    assert!(loaded.report.longest <= length / 2);
    let texts = shown(&loaded);
    assert!(
        texts.iter().all(|text| text.starts_with("system: Be.")),
        "{texts:?}"
    );
    assert!(
        texts[4].contains("[ answer 4 of many!") && !texts[4].contains("question 1"),
        "{texts:?}"
    );
}

#[test]
fn plain_texts_become_blocks_of_which_each_token_is_learned_once() {
    let texts = [
        "one two three four five six seven",
        "a",
        "eight nine ten eleven twelve",
    ];
    let rows: Vec<Value> = texts.iter().map(|text| json!({ "text": text })).collect();
    let whole = load(&rows, |_| ()).unwrap();
    for most in [2, 3, 4, 100] {
        let blocks = load(&rows, |spec| {
            (spec.long_rows, spec.max_length) = (LongRows::Blocks, Some(most));
        })
        .unwrap();
        assert_eq!(blocks.report.truncated_tokens, 0);
        assert!(blocks.report.longest <= most);
        let learned = |loaded: &Loaded, line: u64| -> Vec<i64> {
            let rows = loaded.examples.iter().filter(|row| row.line == line);
            let labels = rows.flat_map(|row| match &row.label {
                Label::Tokens(labels) => labels.clone(),
                other => panic!("{other:?}"),
            });
            labels.filter(|label| *label != IGNORE_INDEX).collect()
        };
        for line in 1..=3 {
            assert_eq!(
                learned(&blocks, line),
                learned(&whole, line),
                "{most}, line {line}"
            );
        }
        // Each block begins with the token before it.
        for pair in blocks
            .examples
            .windows(2)
            .filter(|pair| pair[0].line == pair[1].line)
        {
            assert_eq!(pair[1].input_ids[0], *pair[0].input_ids.last().unwrap());
        }
    }
    let refused = load(&[exchanges(1)], |spec| spec.long_rows = LongRows::Blocks);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("`long_rows: blocks`") && refused.contains("chats `messages`"),
        "{refused}"
    );
}

#[test]
fn bad_chats_are_named_by_line_and_column() {
    let message = |row: Value| load(&[row], |_| ()).unwrap_err().to_string();
    let good = json!({ "role": "user", "content": "a" });
    let found = message(json!({ "messages": [good, { "role": "assistant" }] }));
    assert!(found.contains("line 1, column `messages`"), "{found}");
    assert!(
        found.contains("`content` of message 2 is missing"),
        "{found}"
    );
    let found = message(json!({ "messages": [good] }));
    assert!(
        found.contains("no message has the role `assistant`"),
        "{found}"
    );
    let found = message(json!({ "conversations": [{ "from": "robot", "value": "a" }] }));
    assert!(found.contains("`from` of message 1 is `robot`"), "{found}");
    let turns = json!([good, { "role": "assistant", "content": "b" }]);
    let found = message(json!({ "messages": turns, "tools": "{" }));
    assert!(found.contains("column `tools`"), "{found}");
    // One bad row among good ones may be left out.
    let rows: Vec<Value> = (0..4)
        .map(|i| match i {
            1 => json!({ "messages": [] }),
            _ => json!({ "messages": turns }),
        })
        .collect();
    let lenient = |spec: &mut LoadSpec| (spec.bad_rows, spec.max_bad_rows) = (BadRows::Skip, 0.5);
    let loaded = load(&rows, lenient).unwrap();
    assert_eq!((loaded.examples.len(), loaded.report.bad_rows), (3, 1));
    let without = load(&[json!({ "messages": turns })], |spec| spec.chat = None);
    let found = without.unwrap_err();
    assert!(found.to_string().contains("no chat template"), "{found}");
    assert!(found.hint().unwrap().contains("--chat-template"), "{found}");
}

#[test]
fn which_rows_are_chats_is_told_from_their_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let gpt2 = tokenizer("gpt2");
    let spec = spec(format(built_in("plain").unwrap(), &gpt2));
    let is_chat = |row: Value| {
        std::fs::write(&path, row.to_string()).unwrap();
        reads_chats(&read_table(&path, &spec).unwrap(), &spec).unwrap()
    };
    assert!(is_chat(
        json!({ "messages": [{ "role": "user", "content": "a" }] })
    ));
    assert!(is_chat(json!({ "instruction": "a", "output": "b" })));
    assert!(!is_chat(json!({ "prompt": "a", "completion": "b" })));
    assert!(!is_chat(json!({ "text": "a" })));
    // A column of that name which holds no turns is a text like others.
    assert!(!is_chat(json!({ "chat": "a", "text": "b" })));
}

#[test]
fn what_is_odd_about_chats_is_an_error_or_a_named_policy() {
    let chat = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chat/tests/fixtures/templates");
    let with = |name: &str| {
        let source = std::fs::read_to_string(chat.join(format!("{name}.jinja"))).unwrap();
        move |spec: &mut LoadSpec| spec.chat = Some(format(&source, &tokenizer("gpt2")))
    };
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    let row = |turns: Value| [json!({ "messages": turns })];
    // Roles out of order: the template's own words, with the place.
    let twice = row(json!([
        said("user", "a"),
        said("user", "b"),
        said("assistant", "c")
    ]));
    let found = load(&twice, with("gemma")).unwrap_err().to_string();
    assert!(found.contains("line 1, column `messages`"), "{found}");
    assert!(found.contains("roles must alternate"), "{found}");
    // A template without end.
    let endless =
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
    let endless = load(&twice, |spec| {
        spec.chat = Some(format(endless, &tokenizer("gpt2")))
    });
    let found = endless.unwrap_err().to_string();
    assert!(found.contains("line 1, column `messages`"), "{found}");
    // Calls of tools as objects, with arguments as a text, and as a text altogether: one result.
    let call = |arguments: Value| json!([{ "type": "function", "function": { "name": "f", "arguments": arguments } }]);
    let calls = |calls: Value| {
        let turn = json!({ "role": "assistant", "content": "", "tool_calls": calls });
        let loaded = load(&row(json!([said("user", "a"), turn])), with("qwen2_5")).unwrap();
        shown(&loaded)
    };
    let objects = calls(call(json!({ "a": 1 })));
    assert!(objects[0].contains("\"name\": \"f\""), "{objects:?}");
    assert_eq!(calls(call(json!("{\"a\": 1}"))), objects);
    assert_eq!(calls(call(json!({ "a": 1 })).to_string().into()), objects);
    // An answer without words is learned as it stands, which is said.
    let silent = load(
        &row(json!([said("user", "a"), said("assistant", " ")])),
        |_| (),
    )
    .unwrap();
    let warnings = silent.report.chats.unwrap().warnings();
    let expected =
        "1 chat holds an answer without words, of which ending the turn at once is learned: line 1";
    assert_eq!(warnings, [expected]);
    // More tokens than the model's table has rows.
    let small = load(
        &row(json!([said("user", "a"), said("assistant", "b")])),
        |spec| spec.vocab_size = Some(20),
    );
    let found = small.unwrap_err().to_string();
    assert!(
        found.contains("line 1, column `messages`") && found.contains("20"),
        "{found}"
    );
}
