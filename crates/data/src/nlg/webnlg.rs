//! WebNLG 2017 (Gardent et al. 2017): triples with texts, by category. Linearised as in the paper's
//! code: names and relations as they are written, only texts that are marked good.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Fields, PromptRow, Source, triple_text};
use crate::error::{DataError, RowFault, RowFaultKind};
use crate::rows::FileFormat;

/// The categories that the paper's code counts as seen in training.
const SEEN: [&str; 10] = [
    "Airport",
    "Astronaut",
    "Building",
    "City",
    "ComicsCharacter",
    "Food",
    "Monument",
    "SportsTeam",
    "University",
    "WrittenWork",
];

/// JSONL with `triples`, `texts`, and perhaps `category` and `seen`.
pub(super) fn lines(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    source.each_row(FileFormat::Jsonl, |row| {
        let prompt = row.triples("triples", str::to_owned)?;
        with_category(row, row.row(prompt, row.texts("texts")?))
    })
}

/// The document `{"entries": [{"1": {…}}, …]}`.
pub(super) fn entries(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    #[derive(Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        entries: Vec<&'a RawValue>,
    }
    let document: Document<'_> =
        serde_json::from_str(source.text).map_err(|error| source.not_json(&error))?;
    source.each_value(&document.entries, entry)
}

fn entry(line: u64, value: &Value) -> Result<PromptRow, RowFault> {
    let outer = Fields::of(line, String::new(), value)?;
    let Some((number, inner)) = outer.object.iter().next() else {
        return Err(RowFault {
            line,
            column: None,
            kind: RowFaultKind::Missing { nearest: None },
        });
    };
    let row = Fields::of(line, format!("{number}."), inner)?;
    let mut triples = Vec::new();
    for (i, triple) in row.list("modifiedtripleset")?.iter().enumerate() {
        let triple = Fields::of(line, row.place(&format!("modifiedtripleset[{i}].")), triple)?;
        triples.push(triple_text(
            triple.text("subject")?,
            triple.text("property")?,
            triple.text("object")?,
        ));
    }
    let prompt = row.linear("modifiedtripleset", triples)?;
    let mut texts = Vec::new();
    for (i, text) in row.list("lexicalisations")?.iter().enumerate() {
        let text = Fields::of(line, row.place(&format!("lexicalisations[{i}].")), text)?;
        if text.text("comment")? == "good" {
            texts.push(text.text("lex")?.to_owned());
        }
    }
    with_category(&row, row.row(prompt, texts))
}

/// Whether the paper's code counts a category as seen in training.
pub(super) fn is_seen(category: &str) -> bool {
    SEEN.contains(&category)
}

fn with_category(row: &Fields<'_>, mut found: PromptRow) -> Result<PromptRow, RowFault> {
    if row.object.contains_key("category") {
        found.category = Some(row.text("category")?.to_owned());
    }
    found.seen = match row.object.get("seen") {
        Some(Value::Bool(seen)) => Some(*seen),
        Some(other) => {
            return Err(super::wrong(
                row.line,
                row.place("seen"),
                "true or false",
                other,
            ));
        }
        None => found.category.as_deref().map(is_seen),
    };
    Ok(found)
}
