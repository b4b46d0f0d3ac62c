//! METEOR's own tokens (`-norm`) of a text that is tokenised and lower-cased already, as
//! coco-caption hands it over: hyphens part words, apostrophes stand with what follows them, dots
//! leave abbreviations.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// Latin and Cyrillic letters, for use inside a class.
const ALPHA: &str = "A-Za-zŠŽšžŸÀ-ÖØ-öø-žЀ-ӿԀ-ԧꙀ-ꙮ꙾-ꚗᴀ-ᵿ";
/// Stands for a dot of an ellipsis until the end.
const DOT: char = '\u{e000}';

/// What is replaced, in this order: each sees what those before it left.
static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rule = |pattern: &str, by| {
        let pattern = pattern.replace("{a}", ALPHA);
        (Regex::new(&pattern).expect("a fixed pattern"), by)
    };
    vec![
        rule(r"[^0-9{a} \t\n\x0b\f\r.'`,\-‘’\u{e000}]", " $0 "),
        rule(r"([^0-9]),([^0-9])", "$1 , $2"),
        rule(r"([0-9]),([^0-9])", "$1 , $2"),
        rule(r"([^0-9]),([0-9])", "$1 , $2"),
        rule("[`‘’]", "'"),
        rule("[“”]|''", " \" "),
        rule("–|--", "-"),
        rule(r"([0-9{a}.])-([0-9{a}])", "$1 $2"),
        rule(r"([^{a}])'([^{a}])", "$1 ' $2"),
        rule(r"([^{a}0-9])'([{a}])", "$1 ' $2"),
        rule(r"([{a}])'([^{a}])", "$1 ' $2"),
        rule(r"([{a}])'([{a}])", "$1 '$2"),
        rule(r"([0-9])'(s)", "$1 '$2"),
    ]
});

/// The words.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut text = format!(" {} ", ellipses(text));
    for (pattern, by) in RULES.iter() {
        if let Cow::Owned(changed) = pattern.replace_all(&text, *by) {
            text = changed;
        }
    }
    let parts: Vec<&str> = text.split_whitespace().collect();
    let mut words = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        match part.strip_suffix('.').filter(|word| !word.is_empty()) {
            Some(word) => words.extend(with_dot(word, parts.get(i + 1).copied())),
            None => words.push(part.replace(DOT, ".")),
        }
    }
    words
}

/// Runs of dots as words of their own.
fn ellipses(text: &str) -> Cow<'_, str> {
    if !text.contains("..") {
        return text.into();
    }
    static RUN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\.{2,}").expect("a fixed pattern"));
    let dots = |run: &regex::Captures| {
        let dots = String::from(DOT).repeat(run[0].len());
        format!(" {dots} ")
    };
    RUN.replace_all(text, dots)
}

/// A word that a dot follows: `u.s` loses all dots, before a word in lower case the dot stays, else
/// it stands alone.
fn with_dot(word: &str, next: Option<&str>) -> Vec<String> {
    let next = next.and_then(|next| next.bytes().next());
    if word.contains('.') && word.chars().any(char::is_alphabetic) {
        vec![word.replace('.', "")]
    } else if matches!(word, "v" | "vs" | "rev")
        || next.is_some_and(|c| c.is_ascii_lowercase())
        || word == "pp" && next.is_some_and(|c| c.is_ascii_digit())
    {
        vec![format!("{word}.")]
    } else {
        vec![word.to_owned(), ".".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_of_the_original() {
        let cases = [
            (
                "family-friendly mother-in-law",
                "family friendly mother in law",
            ),
            (
                "it 's do n't o'brien james '",
                "it ' s do n 't o 'brien james '",
            ),
            ("u.s. st. ives no. 5 at st.", "us st. ives no . 5 at st ."),
            ("10,000 # 20 50 % and/or", "10,000 # 20 50 % and / or"),
            ("-lrb- x -rrb- a&b 1990's", "-lrb- x -rrb- a & b 1990 's"),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text).join(" "), expected, "{text}");
        }
    }
}
