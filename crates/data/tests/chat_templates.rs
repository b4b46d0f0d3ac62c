//! The chat templates of a model, from each place that they can stand in.

use std::path::Path;

use lowrank_data::{NamedTemplate, Tokenizer, chat_templates};
use serde_json::json;

fn named(name: Option<&str>, text: &str) -> NamedTemplate {
    NamedTemplate {
        name: name.map(str::to_owned),
        text: text.to_owned(),
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).unwrap();
    std::fs::write(path, text).unwrap();
}

fn config(dir: &Path, template: serde_json::Value) {
    let config = json!({ "eos_token": "</s>", "chat_template": template });
    write(dir, "tokenizer_config.json", &config.to_string());
}

#[test]
fn files_take_the_place_of_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(chat_templates(dir).unwrap(), []);
    write(dir, "tokenizer_config.json", "{}");
    assert_eq!(chat_templates(dir).unwrap(), []);
    config(dir, json!(null));
    assert_eq!(chat_templates(dir).unwrap(), []);
    config(dir, json!("{{ messages }}"));
    assert_eq!(
        chat_templates(dir).unwrap(),
        [named(None, "{{ messages }}")]
    );
    config(
        dir,
        json!([{ "name": "default", "template": "a" }, { "name": "tool_use", "template": "b" }]),
    );
    assert_eq!(
        chat_templates(dir).unwrap(),
        [named(None, "a"), named(Some("tool_use"), "b")]
    );
    write(dir, "additional_chat_templates/rag.jinja", "named\n");
    write(dir, "additional_chat_templates/notes.txt", "none");
    assert_eq!(
        chat_templates(dir).unwrap(),
        [named(Some("rag"), "named\n")]
    );
    write(dir, "chat_template.jinja", "ä\r\n");
    assert_eq!(
        chat_templates(dir).unwrap(),
        [named(None, "ä\r\n"), named(Some("rag"), "named\n")]
    );
}

#[test]
fn templates_that_are_no_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for template in [
        json!(3),
        json!([{ "name": "a" }]),
        json!(["a"]),
        json!({ "a": 1 }),
    ] {
        config(dir, template);
        let error = chat_templates(dir).unwrap_err().to_string();
        assert!(error.contains("`chat_template`: expected text"), "{error}");
    }
    std::fs::write(dir.join("chat_template.jinja"), [b'a', b'\n', 0xff]).unwrap();
    let error = chat_templates(dir).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}

/// A GGUF file of these keys and nothing else.
fn gguf(keys: &[(&str, &str)], names: Option<&[&str]>) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let count = (keys.len() + usize::from(names.is_some())) as u64;
    let mut bytes = [
        b"GGUF\x03\0\0\0".to_vec(),
        vec![0; 8],
        count.to_le_bytes().to_vec(),
    ]
    .concat();
    for (name, value) in keys {
        bytes.extend([text(name), 8u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    if let Some(names) = names {
        bytes.extend(text("tokenizer.chat_templates"));
        bytes.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
        bytes.extend((names.len() as u64).to_le_bytes());
        names.iter().for_each(|name| bytes.extend(text(name)));
    }
    bytes
}

#[test]
fn a_gguf_file_has_one_and_perhaps_named_ones() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let read = |bytes: Vec<u8>| {
        std::fs::write(&file, bytes).unwrap();
        chat_templates(&file).map_err(|error| error.to_string())
    };
    assert_eq!(read(gguf(&[], None)).unwrap(), []);
    let one = ("tokenizer.chat_template", "{{ a }}");
    assert_eq!(read(gguf(&[one], None)).unwrap(), [named(None, "{{ a }}")]);
    let two = ("tokenizer.chat_template.tool_use", "{{ b }}");
    assert_eq!(
        read(gguf(&[one, two], Some(&["tool_use"]))).unwrap(),
        [named(None, "{{ a }}"), named(Some("tool_use"), "{{ b }}")]
    );
    let error = read(gguf(&[one], Some(&["tool_use"]))).unwrap_err();
    assert!(
        error.contains("`tokenizer.chat_template.tool_use` is missing"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_that_is_saved_keeps_its_templates() {
    let from = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/classes/bert");
    std::fs::copy(fixture.join("vocab.txt"), from.path().join("vocab.txt")).unwrap();
    write(from.path(), "chat_template.jinja", "a");
    write(from.path(), "additional_chat_templates/tool_use.jinja", "b");
    let tokenizer = Tokenizer::from_dir(from.path(), None).unwrap();
    let to = tempfile::tempdir().unwrap();
    tokenizer.save_files(to.path()).unwrap();
    assert_eq!(
        chat_templates(to.path()).unwrap(),
        chat_templates(from.path()).unwrap()
    );
}
