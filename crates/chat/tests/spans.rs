//! Which characters are learned, and what hostile templates come to.

use std::path::Path;
use std::time::Instant;

use lowrank_chat::{
    Chat, ChatError, ChatPart, ChatRow, ChatTemplate, LossOn, SpanSource, Variables, built_in,
    left_out, rows,
};
use serde_json::{Value, json};

fn template(name: &str) -> ChatTemplate {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    let source = std::fs::read_to_string(fixtures.join(format!("{name}.jinja"))).unwrap();
    ChatTemplate::new(&source).unwrap()
}

fn variables() -> Variables {
    Variables {
        special_tokens: [("bos_token", "<s>"), ("eos_token", "</s>")]
            .map(|(name, token)| (name.to_owned(), token.to_owned()))
            .into(),
        ..Variables::default()
    }
}

fn chat(messages: &Value) -> Chat {
    Chat::from_messages(messages.as_array().unwrap()).unwrap()
}

fn two_turns() -> Chat {
    chat(&json!([
        { "role": "user", "content": "2+2?" },
        { "role": "assistant", "content": "4" },
        { "role": "user", "content": "3+3?" },
        { "role": "assistant", "content": "six" },
        { "role": "user", "content": "thanks" },
    ]))
}

fn learned(row: &ChatRow) -> Vec<&str> {
    row.spans
        .iter()
        .map(|span| &row.text[span.clone()])
        .collect()
}

fn rows_of(template: &ChatTemplate, chat: &Chat, loss_on: LossOn) -> Vec<ChatRow> {
    rows(template, chat, &variables(), loss_on).unwrap()
}

#[test]
fn what_a_turn_adds_is_what_generation_blocks_mark() {
    for name in ["llama3", "gemma", "gemma3", "phi3", "lfm2"] {
        let by_prefix = rows_of(&template(name), &two_turns(), LossOn::Assistant);
        let marked = template(&format!("{name}_training"));
        let by_marks = rows_of(&marked, &two_turns(), LossOn::Assistant);
        assert_eq!(by_prefix.len(), 1, "{name}");
        assert_eq!(by_prefix[0].source, SpanSource::Prefixes, "{name}");
        assert_eq!(by_marks[0].source, SpanSource::Marks, "{name}");
        assert_eq!(by_prefix[0].text, by_marks[0].text, "{name}");
        assert_eq!(learned(&by_prefix[0]), learned(&by_marks[0]), "{name}");
        let last = rows_of(&marked, &two_turns(), LossOn::LastAssistant);
        let last_by_prefix = rows_of(&template(name), &two_turns(), LossOn::LastAssistant);
        assert_eq!(learned(&last[0]), learned(&by_marks[0])[1..], "{name}");
        assert_eq!(learned(&last_by_prefix[0]), learned(&last[0]), "{name}");
    }
}

#[test]
fn a_template_that_drops_old_reasoning_gives_a_row_a_turn() {
    let qwen3 = template("qwen3");
    let thought = chat(&json!([
        { "role": "user", "content": "2+2?" },
        { "role": "assistant", "content": "<think>\nsum\n</think>\n\n4" },
        { "role": "user", "content": "3+3?" },
        { "role": "assistant", "content": "<think>\nagain\n</think>\n\n6" },
    ]));
    let found = rows_of(&qwen3, &thought, LossOn::Assistant);
    let texts: Vec<_> = found.iter().map(learned).collect();
    assert_eq!(
        texts,
        [
            ["<think>\nsum\n</think>\n\n4<|im_end|>\n"],
            ["<think>\nagain\n</think>\n\n6<|im_end|>\n"]
        ]
    );
    assert!(found.iter().all(|row| row.source == SpanSource::TurnByTurn));
    // Each row ends with its turn, and old reasoning is gone as it will be when the model is asked.
    assert!(found.iter().all(|row| row.text.len() == row.spans[0].end));
    assert!(!found[1].text.contains("sum"));
}

#[test]
fn weights_of_0_and_whole_texts_are_heeded() {
    let weighed = chat(&json!([
        { "role": "user", "content": "2+2?" },
        { "role": "assistant", "content": "5", "weight": 0 },
        { "role": "user", "content": "sure?" },
        { "role": "assistant", "content": "4", "weight": 1 },
    ]));
    for name in ["llama3", "llama3_training"] {
        let found = rows_of(&template(name), &weighed, LossOn::Assistant);
        assert_eq!(learned(&found[0]), ["4<|eot_id|>"], "{name}");
    }
    let all = rows_of(&template("llama3"), &weighed, LossOn::All);
    assert_eq!(learned(&all[0]), [all[0].text.as_str()]);
    let nobody = chat(&json!([{ "role": "user", "content": "hello?" }]));
    let error = rows(
        &template("llama3"),
        &nobody,
        &variables(),
        LossOn::Assistant,
    );
    assert_eq!(error.unwrap_err(), ChatError::NoAssistant);
}

#[test]
fn a_turn_whose_beginning_cannot_be_told_is_refused() {
    // The number of messages stands in front.
    let counting = ChatTemplate::new(
        "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    );
    let error = rows(
        &counting.unwrap(),
        &two_turns(),
        &variables(),
        LossOn::Assistant,
    );
    let expected = ChatError::NoPrefix { at: 1, differs: 0 };
    assert_eq!(error.unwrap_err(), expected);
}

#[test]
fn hostile_templates_end() {
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(99) %}\
         {% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'a' * 100000000000 }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ range(100000000000) | list }}",
        "{% set x = [1] * 10000000000 %}",
    ];
    let chat = two_turns();
    for source in hostile {
        let started = Instant::now();
        let template = ChatTemplate::new(source).unwrap();
        let error = template.render(&chat, &variables(), lowrank_chat::Prompting::Closed);
        let error = error.expect_err(source).to_string();
        assert!(started.elapsed().as_secs() < 60, "{source}: {error}");
    }
    let deep = format!("{{{{ {}1", "(".repeat(5000));
    ChatTemplate::new(&deep).unwrap_err();
}

#[test]
fn what_a_template_does_not_know_is_named_with_its_line() {
    let message = |source: &str| {
        let template = ChatTemplate::new(source);
        let rendered = template.and_then(|template| {
            template.render(&two_turns(), &variables(), lowrank_chat::Prompting::Closed)
        });
        rendered.unwrap_err().to_string()
    };
    assert_eq!(
        message("\n{% unknown %}"),
        "line 2 of the chat template: syntax error: unknown statement unknown"
    );
    let found = message("a\n\n{{ messages[0].content.swapcase() }}");
    assert!(
        found.starts_with("line 3 of the chat template: unknown method"),
        "{found}"
    );
    assert!(found.contains("swapcase"), "{found}");
    assert_eq!(
        message("{{ raise_exception('Roles must alternate') }}"),
        "the chat template refuses this chat: Roles must alternate"
    );
    let found = message("{{ lol() }}");
    assert!(found.contains("lol"), "{found}");
}

#[test]
fn parts_that_a_template_leaves_out_are_found() {
    let call = |name: &str| json!({ "type": "function", "function": { "name": name, "arguments": { "a": 1 } } });
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "weather?" },
        { "role": "assistant", "content": "Let me see.", "reasoning_content": "I ask the tool.",
          "tool_calls": [call("weather"), call("time")] },
        { "role": "tool", "content": "sunny" },
        { "role": "assistant", "content": "fine", "reasoning_content": "It is sunny." },
    ]);
    let tools =
        json!([{ "type": "function", "function": { "name": "weather", "parameters": {} } }]);
    let chat = chat(&messages).with_tools_of(&tools).unwrap();
    let found = |template: &ChatTemplate| {
        let rows = rows_of(template, &chat, LossOn::Assistant);
        left_out(template, &chat, &variables(), &rows)
    };
    use ChatPart::{Reasoning, ToolCalls, Tools};
    // Its last turn's reasoning and its first turn's are each in the row of that turn.
    assert_eq!(found(&template("qwen3")), []);
    assert_eq!(found(&template("qwen2_5")), [Reasoning]);
    // It drops the calls of a message that has words, the tools, and all reasoning.
    assert_eq!(
        found(&template("deepseek_r1_distill")),
        [Tools, ToolCalls, Reasoning]
    );
    let plain = ChatTemplate::new(built_in("plain").unwrap()).unwrap();
    assert_eq!(found(&plain), [Tools, ToolCalls, Reasoning]);
    let deaf = ChatTemplate::new(
        "{% for m in messages if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<assistant>{% endif %}",
    );
    let deaf = deaf.unwrap();
    let all = [
        ChatPart::SystemPrompt,
        Tools,
        ToolCalls,
        ChatPart::ToolResults,
        Reasoning,
    ];
    assert_eq!(found(&deaf), all);
    // Where there is nothing to leave out, nothing is.
    let rows = rows_of(&deaf, &two_turns(), LossOn::Assistant);
    assert_eq!(left_out(&deaf, &two_turns(), &variables(), &rows), []);
}
