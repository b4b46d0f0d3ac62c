//! WebNLG 2017 as it is published, in XML: `benchmark` > `entries` > `entry`, each with one
//! `modifiedtripleset` of `mtriple`s `subject | property | object`, and its texts, `lex`. It gives
//! the rows of the JSON form, so the linearisation and the seen categories are those of
//! `webnlg.rs`; only here each text has its own line.

use roxmltree::{Document, Node};
use serde_json::Value;

use super::webnlg::is_seen;
use super::{PromptRow, Source, text, triple_text, wrong};
use crate::error::{DataError, RowFault, RowFaultKind};

/// The document's entries. One whose texts are none or none of them good has no references.
pub(super) fn entries(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    let lines = Lines::of(source.text);
    let document = Document::parse(source.text);
    let document = document.map_err(|error| source.fault(not_xml(&error, &lines)))?;
    let root = document.root_element();
    if !root.has_tag_name("benchmark") {
        let fault = unexpected(lines.at(root), "", "the element `benchmark`", &named(root));
        return Err(source.fault(fault));
    }
    let all = elements(root, "entries").flat_map(|list| elements(list, "entry"));
    let rows: Vec<_> = all.map(|found| entry(found, &lines)).collect();
    if rows.is_empty() {
        let expected = "`entries` with at least one `entry`";
        let fault = unexpected(lines.at(root), "benchmark", expected, "none");
        return Err(source.fault(fault));
    }
    let rows = source.all(rows)?;
    // Such a file is published for the test set; its meanings would be left out one by one, in
    // silence.
    if let Some(first) = rows.first()
        && rows.iter().all(|row| row.references.is_empty())
    {
        let expected = "a text with `comment=\"good\"` in at least one entry";
        return Err(source.fault(unexpected(first.line, "lex", expected, "none")));
    }
    Ok(rows)
}

fn entry(entry: Node<'_, '_>, lines: &Lines) -> Result<PromptRow, RowFault> {
    let line = lines.at(entry);
    let category = match entry.attribute("category") {
        Some(_) => Some(attribute(line, "", entry, "category")?),
        None => None,
    };
    let sets: Vec<_> = elements(entry, "modifiedtripleset").collect();
    let [set] = sets.as_slice() else {
        let found = sets.len().to_string();
        return Err(unexpected(line, "modifiedtripleset", "one", &found));
    };
    let mut triples = Vec::new();
    for (i, node) in elements(*set, "mtriple").enumerate() {
        triples.push(triple(node, format!("mtriple[{i}]"), lines)?);
    }
    if triples.is_empty() {
        let (line, expected) = (lines.at(*set), "at least one `mtriple`");
        return Err(unexpected(line, "modifiedtripleset", expected, "none"));
    }
    let (mut references, mut reference_lines) = (Vec::new(), Vec::new());
    for (i, node) in elements(entry, "lex").enumerate() {
        let (line, place) = (lines.at(node), format!("lex[{i}]"));
        if attribute(line, &format!("{place}."), node, "comment")? == "good" {
            references.push(content(line, place, node)?);
            reference_lines.push(line);
        }
    }
    Ok(PromptRow {
        line,
        prompt: triples.join(" | "),
        references,
        reference_lines,
        seen: category.as_deref().map(is_seen),
        category,
    })
}

fn triple(node: Node<'_, '_>, place: String, lines: &Lines) -> Result<String, RowFault> {
    let line = lines.at(node);
    let written = content(line, place.clone(), node)?;
    let parts: Vec<_> = written.split(" | ").map(str::trim).collect();
    match parts.as_slice() {
        [subject, property, object] if !parts.contains(&"") => {
            Ok(triple_text(subject, property, object))
        }
        _ => {
            let found = Value::String(written);
            Err(wrong(line, place, "`subject | property | object`", &found))
        }
    }
}

fn elements<'a, 'input: 'a>(
    parent: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    let children = parent.children();
    children.filter(move |child| child.has_tag_name(name))
}

/// An attribute's text, without blanks around it. `at` is the element's place with a dot behind it.
fn attribute(line: u64, at: &str, node: Node<'_, '_>, name: &str) -> Result<String, RowFault> {
    let place = format!("{at}{name}");
    let Some(value) = node.attribute(name) else {
        return Err(RowFault {
            line,
            column: Some(place),
            kind: RowFaultKind::Missing { nearest: None },
        });
    };
    text(line, place, &value.into()).map(str::to_owned)
}

/// An element's text, without blanks around it.
fn content(line: u64, place: String, node: Node<'_, '_>) -> Result<String, RowFault> {
    if let Some(inner) = node.children().find(Node::is_element) {
        return Err(unexpected(line, &place, "text", &named(inner)));
    }
    // A comment or a section of raw characters cuts it into several.
    let texts = node.children().filter(Node::is_text);
    let written: String = texts.filter_map(|child| child.text()).collect();
    text(line, place, &written.into()).map(str::to_owned)
}

fn named(node: Node<'_, '_>) -> String {
    format!("the element `{}`", node.tag_name().name())
}

fn unexpected(line: u64, place: &str, expected: &'static str, found: &str) -> RowFault {
    RowFault {
        line,
        column: (!place.is_empty()).then(|| place.to_owned()),
        kind: RowFaultKind::WrongType {
            expected,
            found: found.to_owned(),
        },
    }
}

fn not_xml(error: &roxmltree::Error, lines: &Lines) -> RowFault {
    let (at, message) = (error.pos(), error.to_string());
    let message = message.split(" at ").next().unwrap_or_default();
    let (line, message) = match error {
        // The parser names the beginning of the document, but its end is missing.
        roxmltree::Error::UnclosedRootNode => (lines.last(), message.to_owned()),
        _ => (at.row.into(), format!("{message}, at column {}", at.col)),
    };
    RowFault {
        line,
        column: None,
        kind: RowFaultKind::NotXml(message),
    }
}

/// Where the lines of a text end: the parser's own look-up counts from the beginning each time.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The line where an element begins, counted from 1.
    fn at(&self, node: Node<'_, '_>) -> u64 {
        let start = node.range().start;
        1 + self.0.partition_point(|&end| end < start) as u64
    }

    fn last(&self) -> u64 {
        1 + self.0.len() as u64
    }
}
