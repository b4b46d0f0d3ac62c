//! The tokeniser of NIST's `mteval-v13a.pl`, which BLEU and NIST have been reported with since
//! 2009: punctuation stands alone, except full stops and commas inside numbers. Case is kept.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::Segment;
use crate::ngrams::Coded;

/// What is replaced, in this order: each sees what those before it left.
static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let rule = |pattern, by| (Regex::new(pattern).expect("a fixed pattern"), by);
    [
        // ASCII punctuation but the apostrophe, comma, hyphen and full stop.
        rule(r"[{-~\[-` -&(-+:-@/]", " $0 "),
        rule(r"([^0-9])([.,])", "$1 $2 "),
        rule(r"([.,])([^0-9])", " $1 $2"),
        rule(r"([0-9])(-)", "$1 $2 "),
    ]
});

/// The tokens with one blank between them.
pub fn tokenize(text: &str) -> String {
    let mut text = text
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    if text.contains('&') {
        for (entity, character) in [
            ("&quot;", "\""),
            ("&amp;", "&"),
            ("&lt;", "<"),
            ("&gt;", ">"),
        ] {
            text = text.replace(entity, character);
        }
    }
    let mut text = format!(" {text} ");
    for (pattern, by) in RULES.iter() {
        if let Cow::Owned(changed) = pattern.replace_all(&text, *by) {
            text = changed;
        }
    }
    let mut tokens = String::with_capacity(text.len());
    for token in text.split_whitespace() {
        if !tokens.is_empty() {
            tokens.push(' ');
        }
        tokens.push_str(token);
    }
    tokens
}

/// Tokenised and lower-cased segments as numbers. As in e2e-metrics, an empty text is one empty
/// token.
pub(crate) fn lowercased(segments: &[Segment]) -> Vec<Coded> {
    let texts: Vec<Segment> = segments
        .iter()
        .map(|segment| segment.map(|text| tokenize(text).to_lowercase()))
        .collect();
    Coded::all(&texts, |text| text.split(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_stands_alone_but_not_in_numbers() {
        let cases = [
            ("It's £10,000.50, or so.", "It's £10,000.50 , or so ."),
            ("3-star, family-friendly", "3 - star , family-friendly"),
            ("a/b (c) [d] {e}~", "a / b ( c ) [ d ] { e } ~"),
            ("&quot;x&quot; &amp;lt; y", "\" x \" < y"),
            ("end.of.it 1.a a.1", "end . of . it 1 . a a . 1"),
            ("", ""),
        ];
        for (text, tokens) in cases {
            assert_eq!(tokenize(text), tokens, "{text}");
        }
    }
}
