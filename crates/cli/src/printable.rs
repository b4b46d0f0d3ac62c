//! What comes out of files may stand on a terminal: control characters would move its cursor,
//! rename its window or hide text. They are shown as `\u001b`, which JSON reads back as the
//! character that it was. Every line that the program prints passes here.

use std::borrow::Cow;

/// The most characters of one line of a message. A name of megabytes says no more than its
/// beginning.
const LONGEST_LINE: usize = 1000;

/// The most lines of a message.
const MOST_LINES: usize = 200;

/// The text with all control characters but line feeds and tabs, and what turns the direction of
/// writing, as `\uXXXX`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A message for standard error: printable, of bounded length.
pub fn message(text: &str) -> String {
    let mut lines = text.lines();
    let mut shown: Vec<String> = (&mut lines)
        .take(MOST_LINES)
        .map(|l| cut(l, LONGEST_LINE))
        .collect();
    let more = lines.count();
    if more > 0 {
        shown.push(format!("… and {more} more lines"));
    }
    shown.join("\n")
}

/// The text, printable, and cut after `most` characters with its length.
pub fn cut(text: &str, most: usize) -> String {
    let Some((end, _)) = text.char_indices().nth(most) else {
        return printable(text).into_owned();
    };
    let rest = text[end..].chars().count();
    format!("{}… ({rest} more characters)", printable(&text[..end]))
}

fn is_escaped(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        // Marks of direction, and line ends that no line feed is.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        '\u{2028}' | '\u{2029}' => true,
        _ => c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_json_reads_them_back() {
        let raw = "a\u{1b}]0;x\u{7}\u{9b}2J\r\u{7f}\u{202e}b\n\tc 漢🙂";
        let shown = printable(raw);
        assert_eq!(
            shown,
            "a\\u001b]0;x\\u0007\\u009b2J\\u000d\\u007f\\u202eb\n\tc 漢🙂"
        );
        let json = serde_json::to_string(raw).unwrap();
        let back: String = serde_json::from_str(&printable(&json)).unwrap();
        assert_eq!(back, raw);
        assert!(matches!(printable("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn a_message_is_bounded_in_both_directions() {
        let long = "x".repeat(5_000_000);
        let shown = message(&format!("error: {long}\nhint: y"));
        assert!(
            shown.len() < 1100 && shown.ends_with("more characters)\nhint: y"),
            "{shown}"
        );
        let many = message(&"line\n".repeat(1000));
        assert!(many.ends_with("… and 800 more lines"), "{many}");
    }
}
