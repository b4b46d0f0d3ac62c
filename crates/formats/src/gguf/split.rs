//! Files in several parts: `NAME-00001-of-00003.gguf`, each with its number and the count of all in
//! its keys. The first one has the keys of the model. Source: llama.cpp `gguf-split`.

use std::path::{Path, PathBuf};

use super::fault::GgufFault;
use super::metadata::Metadata;
use crate::Result;
use crate::error::FormatError;
use crate::files;

/// The names of all parts, if the name is that of a part.
///
/// # Errors
/// A part is missing, or the name's number is not one of its count.
pub(super) fn parts_of(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some((stem, number, count)) = name.and_then(numbers) else {
        return Ok(None);
    };
    let fault = |message: String| FormatError::Gguf {
        path: path.to_owned(),
        fault: Box::new(GgufFault::Split(message)),
    };
    if number == 0 || number > count {
        return Err(fault(format!("its name says part {number} of {count}")));
    }
    let part = |n: u32| path.with_file_name(format!("{stem}-{n:05}-of-{count:05}.gguf"));
    let mut parts = Vec::new();
    // Each must be there before the next one is looked for: a count costs nothing.
    for n in 1..=count {
        let part = part(n);
        if !files::exists(&part) {
            let name = part.file_name().unwrap_or_default().to_string_lossy();
            return Err(fault(format!(
                "it is one of {count} parts, and `{name}` is missing"
            )));
        }
        parts.push(part);
    }
    Ok(Some(parts))
}

/// `NAME-00002-of-00003.gguf`: its stem and numbers.
fn numbers(name: &str) -> Option<(&str, u32, u32)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    Some((stem, five(number)?, five(count)?))
}

/// Whether a part's own keys say that it is number `number` (from 0) of `of`.
pub(super) fn check(
    metadata: &Metadata,
    number: usize,
    of: usize,
) -> std::result::Result<(), GgufFault> {
    let count = metadata.unsigned("split.count")?.unwrap_or(0);
    // A file of one part says 0, 1 or nothing.
    if count.max(1) != of as u64 {
        let message = match of {
            1 => format!(
                "it is one of {count} parts; its name must end as in `-00001-of-{count:05}.gguf`"
            ),
            _ => format!("it is said to be one of {count} parts, expected {of} as its name says"),
        };
        return Err(GgufFault::Split(message));
    }
    let own = metadata.unsigned("split.no")?.unwrap_or(0);
    if own != number as u64 {
        let message = format!(
            "it is said to be part {}, expected {} as its name says",
            own.saturating_add(1),
            number + 1
        );
        return Err(GgufFault::Split(message));
    }
    Ok(())
}

/// Whether all parts together hold as many tensors as the first one says.
pub(super) fn check_count(metadata: &Metadata, found: usize) -> std::result::Result<(), GgufFault> {
    match metadata.unsigned("split.tensors.count")? {
        Some(expected) if expected != found as u64 => Err(GgufFault::Split(format!(
            "its parts hold {found} tensors, expected {expected}"
        ))),
        Some(_) | None => Ok(()),
    }
}
