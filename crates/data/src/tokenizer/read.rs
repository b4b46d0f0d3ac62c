//! Reads the files of a tokenizer's folder. Knows nothing of what is in them.

use std::path::Path;

use lowrank_formats::FormatError;
use lowrank_formats::files::{self, Ceiling};

use super::settings::malformed;
use crate::error::TokenizerError;

/// The bytes of a file that may be missing.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    Ok(files::read_if_there(path, Ceiling::TOKENIZER)?)
}

/// The bytes of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    Ok(files::read(path, Ceiling::TOKENIZER)?)
}

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String, TokenizerError> {
    match files::read_text(path, Ceiling::TOKENIZER) {
        Err(FormatError::NotUtf8 { line, .. }) => {
            Err(malformed(path, Some(line), "not UTF-8 text".into()))
        }
        text => Ok(text?),
    }
}
