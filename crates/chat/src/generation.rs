//! `{% generation %}` blocks, which say what the assistant writes. The engine knows no such tag: it
//! is rewritten to a filter block whose filter puts a sentinel on each side of its text, and the
//! sentinels are taken out of what was rendered. (A call block would not see names that it sets.)

use std::ops::Range;

/// Begins what the assistant writes; a character for private use.
pub(crate) const BEGIN: char = '\u{F8F01}';
/// Ends it.
pub(crate) const END: char = '\u{F8F02}';
/// The filter of the blocks.
pub(crate) const FILTER: &str = "lowrank_generation";

/// The source with its generation blocks as filter blocks; `None` where it has none.
pub(crate) fn rewrite(source: &str) -> Option<String> {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') => tag_length(rest, "}}"),
            Some(b'%') => tag_length(rest, "%}"),
            _ => 1,
        };
        let (tag, behind) = rest.split_at(length);
        match filter_of(tag) {
            Some(tag) => {
                found = true;
                out.push_str(&tag);
            }
            None => out.push_str(tag),
        }
        rest = behind;
    }
    out.push_str(rest);
    found.then_some(out)
}

/// Bytes of a tag up to `end`, which does not end it inside a quoted text.
fn tag_length(tag: &str, end: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag[at..].starts_with(end) => return at + end.len(),
            None => {}
        }
    }
    tag.len()
}

/// The filter's tag in place of a generation tag.
fn filter_of(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let sign = |c: char| c == '-' || c == '+';
    let open = &inner[..usize::from(inner.starts_with(sign))];
    let inner = &inner[open.len()..];
    let close = &inner[inner.len() - usize::from(inner.ends_with(sign))..];
    let tag = match inner[..inner.len() - close.len()].trim() {
        "generation" => format!("filter {FILTER}"),
        "endgeneration" => "endfilter".to_owned(),
        _ => return None,
    };
    Some(format!("{{%{open} {tag} {close}%}}"))
}

/// The text without sentinels, and what stood between them.
pub(crate) fn taken_out(rendered: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(rendered.len());
    let mut spans: Vec<Range<usize>> = Vec::new();
    let mut began = Vec::new();
    for c in rendered.chars() {
        match c {
            BEGIN => began.push(text.len()),
            END => {
                if let Some(start) = began.pop().filter(|_| began.is_empty()) {
                    spans.push(start..text.len());
                }
            }
            c => text.push(c),
        }
    }
    (text, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_filter_blocks_wherever_they_are_tags() {
        let source =
            "{# {% generation %} #}{{ '{% generation %}' }}{%- generation -%}x{%+endgeneration%}{";
        let expected = "{# {% generation %} #}{{ '{% generation %}' }}{%- filter lowrank_generation -%}x{%+ endfilter %}{";
        assert_eq!(rewrite(source).unwrap(), expected);
        assert_eq!(rewrite("{% set generation = 1 %}{{ \"a\\\"%}\" }}"), None);
        assert_eq!(rewrite("{% generation"), None);
    }

    #[test]
    fn sentinels_are_taken_out() {
        let marked = format!("a{BEGIN}bc{END}d{BEGIN}{END}");
        assert_eq!(taken_out(&marked), ("abcd".to_owned(), vec![1..3, 4..4]));
    }
}
