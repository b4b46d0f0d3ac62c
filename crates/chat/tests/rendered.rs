//! Chats as transformers renders them, to the character, with the spans of its generation blocks.
//! Golden file by `tools/golden/chats.py`; with LOWRANK_CHATS another one made by it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowrank_chat::{Chat, ChatError, ChatTemplate, Moment, Prompting, Variables};
use serde_json::Value;

fn fixtures() -> PathBuf {
    match std::env::var_os("LOWRANK_CHATS") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
    }
}

fn chat_of(chat: &Value) -> Chat {
    let read = Chat::from_messages(chat["messages"].as_array().unwrap()).unwrap();
    match chat["tools"].as_array() {
        Some(tools) => read.with_tools(tools.clone()),
        None => read,
    }
}

/// Byte ranges as ranges of characters.
fn characters(text: &str, spans: &[std::ops::Range<usize>]) -> Vec<[u64; 2]> {
    let at = |byte: usize| text[..byte].chars().count() as u64;
    spans
        .iter()
        .map(|span| [at(span.start), at(span.end)])
        .collect()
}

#[test]
fn chats_are_rendered_as_transformers_does() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("rendered.json")).unwrap()).unwrap();
    let tokens = golden["special_tokens"].as_object().unwrap();
    let now = format!("{}+00:00[UTC]", golden["now"].as_str().unwrap());
    let variables = Variables {
        special_tokens: (tokens.iter())
            .map(|(name, token)| (name.clone(), token.as_str().unwrap().to_owned()))
            .collect(),
        now: Moment::parse(&now).unwrap(),
        ..Variables::default()
    };
    let mut templates: BTreeMap<&str, ChatTemplate> = BTreeMap::new();
    let (mut rendered, mut wrong) = (0, Vec::new());
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = templates.entry(name).or_insert_with(|| {
            let path = fixtures().join(format!("templates/{name}.jinja"));
            ChatTemplate::new(&std::fs::read_to_string(path).unwrap()).unwrap()
        });
        let chat = chat_of(&golden["chats"][case["chat"].as_str().unwrap()]);
        let prompting = match case["open"].as_bool().unwrap() {
            true => Prompting::Open,
            false => Prompting::Closed,
        };
        let found = template.render(&chat, &variables, prompting);
        let place = format!("{name}, {}, open {}", case["chat"], case["open"]);
        match (&found, case["text"].as_str(), case["error"].as_str()) {
            (Ok(found), Some(text), _) => {
                rendered += 1;
                if found.text != text {
                    wrong.push(format!("{place}:\n{:?}\nexpected\n{text:?}", found.text));
                } else if Value::from(
                    characters(text, &found.generated)
                        .into_iter()
                        .map(|s| Value::from(s.to_vec()))
                        .collect::<Vec<_>>(),
                ) != case["spans"]
                {
                    wrong.push(format!("{place}: spans {:?}", found.generated));
                }
            }
            (Err(ChatError::Raised(message)), _, Some(error)) => {
                if error.strip_prefix("TemplateError: ") != Some(message) {
                    wrong.push(format!("{place}: raised {message:?}, expected {error:?}"));
                }
            }
            (Err(_), _, Some(error)) if !error.starts_with("TemplateError") => {}
            (found, text, error) => wrong.push(format!(
                "{place}: {found:?}, expected {text:?} or {error:?}"
            )),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(rendered >= 120, "{rendered} cases only");
}
