//! The names by which common data sets call their columns.

/// Pairs of common data sets, in order of preference: GLUE, SNLI and MNLI, QNLI, QQP, BoolQ, SICK,
/// and plain names.
pub(super) const PAIRS: [(&str, &str); 13] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "passage"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "document"),
    ("sentence_A", "sentence_B"),
    ("sentence_1", "sentence_2"),
];
/// Pairs for language models: what is given, what follows.
pub(super) const COMPLETIONS: [(&str, &str); 22] = [
    ("prompt", "completion"),
    ("context", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "answers"),
    ("query", "response"),
    ("query", "answer"),
    ("source", "target"),
    ("input", "output"),
    ("input", "target"),
    ("article", "highlights"),
    ("article", "summary"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
];
/// What stands beside a prompt that is found by its name, and belongs to it.
pub(super) const CONTEXTS: [&str; 3] = ["input", "context", "passage"];
pub(super) const SYSTEMS: [&str; 3] = ["system", "system_prompt", "system_message"];
pub(super) const HISTORIES: [&str; 1] = ["history"];
/// Prompts whose completions are not there, in order of preference.
pub(super) const PROMPTS: [&str; 8] = [
    "prompt",
    "instruction",
    "question",
    "query",
    "source",
    "context",
    "input",
    "text",
];
/// Lists of turns with their speakers.
pub(super) const CONVERSATIONS: [&str; 6] = [
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "chat",
];
pub(super) const TOOLS: [&str; 2] = ["tools", "functions"];
pub(super) const SINGLES: [&str; 7] = [
    "text",
    "sentence",
    "content",
    "review",
    "tweet",
    "document",
    "sentence1",
];
/// Texts by other names, which count where one of them alone is there.
pub(super) const OTHER_SINGLES: [&str; 14] = [
    "comment_text",
    "comment",
    "body",
    "message",
    "review_text",
    "review_body",
    "reviewtext",
    "utterance",
    "headline",
    "title",
    "abstract",
    "description",
    "post",
    "sms",
];
pub(super) const WORDS: [&str; 2] = ["tokens", "words"];
pub(super) const TAGS: [&str; 9] = [
    "ner_tags",
    "tags",
    "labels",
    "label",
    "pos_tags",
    "chunk_tags",
    "ner",
    "upos",
    "pos",
];
