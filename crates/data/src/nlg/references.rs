//! Any prompts with references: JSONL with `prompt` and a list of `references`.

use super::{PromptRow, Source};
use crate::error::DataError;
use crate::rows::FileFormat;

/// One prompt a line.
pub(super) fn lines(source: &Source<'_>) -> Result<Vec<PromptRow>, DataError> {
    source.each_row(FileFormat::Jsonl, |row| {
        Ok(row.row(row.text("prompt")?.to_owned(), row.texts("references")?))
    })
}
