//! E2E (Novikova et al. 2017): meanings `name[Aromi], eatType[pub]` with texts. Linearised as the
//! paper's files have them: `name : Aromi | Type : pub`. The paper's own files hold texts split
//! into words; those of the published sets are as written.

use serde_json::Value;

use super::{Fields, PromptRow, Source, group, wrong};
use crate::error::{DataError, RowFault};
use crate::rows::FileFormat;

/// Between meaning and text in the paper's files.
pub(super) const BARS: &str = "||";

/// The published names that the paper's files have other words for.
const SLOTS: [(&str, &str); 3] = [
    ("eatType", "Type"),
    ("priceRange", "price"),
    ("familyFriendly", "family friendly"),
];

/// Whether this is the header of the published CSV.
pub(super) fn is_header(line: &str) -> bool {
    let names: Vec<_> = line
        .split(',')
        .map(|name| name.trim().trim_matches('"').to_ascii_lowercase())
        .collect();
    names == ["mr", "ref"]
}

/// JSONL with `mr` and `refs`.
pub(super) fn grouped(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    source.each_row(FileFormat::Jsonl, |row| {
        Ok(row.row(meaning(row, "mr")?, row.texts("refs")?))
    })
}

/// The published CSV, a text a row.
pub(super) fn csv(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    let table = source.table(FileFormat::Csv)?;
    let column = |wanted: &str| {
        let mut columns = table.columns().iter();
        let found = columns.find(|name| name.eq_ignore_ascii_case(wanted));
        found.cloned().unwrap_or_else(|| wanted.to_owned())
    };
    let (mr, reference) = (column("mr"), column("ref"));
    let rows = source.each_row(FileFormat::Csv, |row| {
        let text = row.text(&reference)?.to_owned();
        Ok(row.row(meaning(row, &mr)?, vec![text]))
    })?;
    Ok(group(rows))
}

/// The paper's lines, linearised already, a text a line.
pub(super) fn lines(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    let numbered = source.text.lines().zip(1..);
    let filled = numbered.filter(|(line, _)| !line.trim().is_empty());
    let rows = filled.map(|(line, number)| {
        let fault = || {
            let found = Value::String(line.to_owned());
            wrong(number, String::new(), "`meaning||text`", &found)
        };
        let (prompt, text) = line.trim().split_once(BARS).ok_or_else(fault)?;
        if prompt.trim().is_empty() || text.trim().is_empty() || text.contains(BARS) {
            return Err(fault());
        }
        Ok(PromptRow {
            line: number,
            prompt: prompt.to_owned(),
            references: vec![text.trim().to_owned()],
            reference_lines: vec![number],
            category: None,
            seen: None,
        })
    });
    Ok(group(source.all(rows.collect())?))
}

/// `slot[value], slot[value]` as `slot : value | slot : value`.
fn meaning(row: &Fields<'_>, field: &str) -> Result<String, RowFault> {
    let written = row.text(field)?;
    let fault = || {
        let found = Value::String(written.to_owned());
        wrong(
            row.line,
            row.place(field),
            "`slot[value], slot[value]`",
            &found,
        )
    };
    let mut linear = Vec::new();
    let mut rest = written;
    loop {
        let (slot, behind) = rest.split_once('[').ok_or_else(fault)?;
        let (value, behind) = behind.split_once(']').ok_or_else(fault)?;
        let (slot, value) = (slot.trim(), value.trim());
        if slot.is_empty() || value.is_empty() || slot.contains([']', ',']) || value.contains('[') {
            return Err(fault());
        }
        let known = SLOTS.iter().find(|(name, _)| *name == slot);
        linear.push(format!(
            "{} : {value}",
            known.map_or(slot, |(_, word)| word)
        ));
        rest = match behind.trim() {
            "" => return Ok(linear.join(" | ")),
            more => more.strip_prefix(',').ok_or_else(fault)?,
        };
    }
}
