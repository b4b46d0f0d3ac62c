//! How a base turned a text and a chat into tokens when an adapter was trained on it: an adapter on
//! a base that does it otherwise is given other tokens than it was taught.

use lowrank_chat::{Chat, Prompting};
use lowrank_data::{ChatFormat, Tokenizer};
use lowrank_train::fingerprint;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A text with what tokenizers differ in: case, digits, blanks, accents, other scripts, signs.
const TEXT: &str = "Hello, World!  It's 1234.5 \u{2014} na\u{ef}ve caf\u{e9}\n\tdef f(x): return x_1  # \u{6f22}\u{5b57} \u{1f642}";

/// What a base made of a text and a chat, as an adapter's notes hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// SHA-256 of the tokenizer's tokens in the order of their ids.
    pub tokenizer_sha256: String,
    /// The ids of the text.
    pub text: Vec<u32>,
    /// SHA-256 of the chat template, where rows were chats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_sha256: Option<String>,
    /// The ids of a chat by that template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Vec<u32>>,
}

impl Probe {
    /// What a tokenizer, and a template where there is one, make of them; nothing where the text is
    /// refused.
    pub fn of(tokenizer: &Tokenizer, format: Option<&ChatFormat>) -> Option<Self> {
        Some(Probe {
            tokenizer_sha256: of_tokens(tokenizer),
            text: tokenizer.encode_plain(TEXT).ok()?,
            template_sha256: format
                .map(|format| fingerprint::of_bytes(format.template.source().as_bytes())),
            chat: format.and_then(|format| chat(tokenizer, format)),
        })
    }

    /// What is said of a base that does it otherwise. All tokens of its vocabulary are looked at
    /// only where something differs.
    pub fn told_of(&self, tokenizer: &Tokenizer, format: Option<&ChatFormat>) -> Vec<String> {
        let Ok(text) = tokenizer.encode_plain(TEXT) else {
            return Vec::new();
        };
        let now = format.and_then(|format| chat(tokenizer, format));
        let is_same_chat = self.chat.iter().zip(&now).all(|(then, now)| then == now);
        if text == self.text && is_same_chat {
            return Vec::new();
        }
        let now = Probe::of(tokenizer, format);
        now.map_or_else(Vec::new, |now| self.differences(&now))
    }

    /// What is said of a base that does it otherwise (`now`) than the one that an adapter was
    /// trained on; nothing where both give the same tokens.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(place) = differing(&self.text, &now.text) {
            let why = match self.tokenizer_sha256 == now.tokenizer_sha256 {
                true => "its tokens are the same, so that its rules differ",
                false => "its tokens are others",
            };
            found.push(format!(
                "warning: this tokenizer is not the one that the adapter was trained with: of a probe text {place}; {why}"
            ));
        }
        if let (Some(then), Some(chat)) = (&self.chat, &now.chat)
            && let Some(place) = differing(then, chat)
            && found.is_empty()
        {
            let why = match self.template_sha256 == now.template_sha256 {
                true => "the template is the same, but its special tokens are not",
                false => "the template is another one",
            };
            found.push(format!(
                "warning: chats are not laid out as the adapter was trained on them: of a probe chat {place}; {why}"
            ));
        }
        found
    }
}

/// Of all tokens in the order of their ids, a line feed behind each.
fn of_tokens(tokenizer: &Tokenizer) -> String {
    let tokens = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token(id));
    let lines = tokens.map(|token| token.unwrap_or_default() + "\n");
    fingerprint::of_bytes(lines.collect::<String>().as_bytes())
}

/// The ids of a chat of two turns, which every template lays out.
fn chat(tokenizer: &Tokenizer, format: &ChatFormat) -> Option<Vec<u32>> {
    let messages = [
        json!({ "role": "user", "content": "2+2?" }),
        json!({ "role": "assistant", "content": "4" }),
        json!({ "role": "user", "content": "3+3?" }),
    ];
    let chat = Chat::from_messages(&messages).ok()?;
    let rendered = (format.template).render(&chat, &format.variables, Prompting::Open);
    tokenizer.encode_plain(&rendered.ok()?.text).ok()
}

/// Where two lists of ids differ first.
fn differing(then: &[u32], now: &[u32]) -> Option<String> {
    if then == now {
        return None;
    }
    let pairs = then.iter().zip(now);
    let at = pairs.take_while(|(then, now)| then == now).count();
    let token = |ids: &[u32]| {
        ids.get(at)
            .map_or("none".to_owned(), |id| format!("id {id}"))
    };
    Some(format!(
        "token {} is {} here and was {} there",
        at + 1,
        token(now),
        token(then)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_what_gives_the_same_tokens_is_not() {
        let probe = |tokenizer: &str, text: &[u32], template: &str, chat: &[u32]| Probe {
            tokenizer_sha256: tokenizer.to_owned(),
            text: text.to_vec(),
            template_sha256: Some(template.to_owned()),
            chat: Some(chat.to_vec()),
        };
        let then = probe("a", &[1, 2, 3], "t", &[7, 8]);
        assert_eq!(
            then.differences(&probe("b", &[1, 2, 3], "u", &[7, 8])),
            [""; 0]
        );
        let said = |now: Probe| then.differences(&now).join("\n");
        let tokens = said(probe("b", &[1, 9], "t", &[7]));
        assert!(
            tokens.contains("token 2 is id 9 here and was id 2 there; its tokens are others"),
            "{tokens}"
        );
        assert!(!tokens.contains('\n'), "{tokens}");
        let rules = said(probe("a", &[1, 2], "t", &[7, 8]));
        assert!(
            rules.contains("token 3 is none here") && rules.contains("its rules differ"),
            "{rules}"
        );
        let template = said(probe("a", &[1, 2, 3], "u", &[7, 9]));
        assert!(
            template.contains("of a probe chat token 2") && template.contains("another one"),
            "{template}"
        );
        let special = said(probe("a", &[1, 2, 3], "t", &[8]));
        assert!(special.contains("its special tokens are not"), "{special}");
        let notes = serde_json::to_string(&then).unwrap();
        assert_eq!(serde_json::from_str::<Probe>(&notes).unwrap(), then);
    }
}
