//! Chat templates by name, for models that bring none. They are written for every program that
//! reads Jinja.

/// The name of a template, and its text.
const BUILT_IN: [(&str, &str); 4] = [
    (
        "chatml",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
         + '<|im_end|>' + '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    (
        "llama3",
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] \
         + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    (
        "gemma",
        "{{ bos_token }}{% for message in messages %}\
         {% if message['role'] not in ['user', 'assistant'] %}\
         {{ raise_exception('the template gemma knows the roles user and assistant only') }}{% endif %}\
         {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' \
         + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ),
    // Without special tokens but the end token: for models that were never taught any.
    (
        "plain",
        "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}\
         {{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    ),
];

/// The text of the template of this name.
pub fn built_in(name: &str) -> Option<&'static str> {
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    found.map(|(_, source)| *source)
}

/// The names of all.
pub fn built_in_names() -> impl Iterator<Item = &'static str> + use<> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Chat, ChatTemplate, LossOn, SpanSource, Variables, rows};

    #[test]
    fn the_answer_and_its_end_are_learned_under_each() {
        let turns = json!([
            { "role": "user", "content": "2+2?" },
            { "role": "assistant", "content": "4" },
            { "role": "user", "content": "3+3?" },
            { "role": "assistant", "content": "6" },
        ]);
        let chat = Chat::from_messages(turns.as_array().unwrap()).unwrap();
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let variables = Variables {
            special_tokens: tokens
                .map(|(name, token)| (name.to_owned(), token.to_owned()))
                .into(),
            ..Variables::default()
        };
        let ends = [
            ("chatml", "4<|im_end|>\n"),
            ("llama3", "4<|eot_id|>"),
            ("gemma", "4<end_of_turn>\n"),
            ("plain", " 4</s>"),
        ];
        assert!(built_in_names().eq(ends.iter().map(|(name, _)| *name)));
        for (name, learned) in ends {
            let template = ChatTemplate::new(built_in(name).unwrap()).unwrap();
            let found = rows(&template, &chat, &variables, LossOn::Assistant).unwrap();
            let [row] = found.as_slice() else {
                panic!("{name}: {found:?}");
            };
            assert_eq!(row.source, SpanSource::Prefixes, "{name}");
            assert_eq!(&row.text[row.spans[0].clone()], learned, "{name}");
            assert_eq!(row.spans.len(), 2, "{name}");
        }
    }
}
