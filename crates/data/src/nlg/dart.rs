//! DART (Nan et al. 2021): triples with texts. Linearised as in the paper's code: relations in
//! lower case.

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Fields, PromptRow, Source};
use crate::error::{DataError, RowFault};
use crate::rows::FileFormat;

/// JSONL with `triples` and `texts`.
pub(super) fn lines(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    source.each_row(FileFormat::Jsonl, |row| {
        Ok(row.row(
            row.triples("triples", str::to_lowercase)?,
            row.texts("texts")?,
        ))
    })
}

/// The published array of objects with `tripleset` and `annotations`.
pub(super) fn array(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    let values: Vec<&RawValue> =
        serde_json::from_str(source.text).map_err(|error| source.not_json(&error))?;
    source.each_value(&values, example)
}

fn example(line: u64, value: &Value) -> Result<PromptRow, RowFault> {
    let row = Fields::of(line, String::new(), value)?;
    let prompt = row.triples("tripleset", str::to_lowercase)?;
    let mut texts = Vec::new();
    for (i, annotation) in row.list("annotations")?.iter().enumerate() {
        let annotation = Fields::of(line, format!("annotations[{i}]."), annotation)?;
        texts.push(annotation.text("text")?.to_owned());
    }
    Ok(row.row(prompt, texts))
}
