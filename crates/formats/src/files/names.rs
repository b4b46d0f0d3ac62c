//! The hidden names under which files and folders are made before they have their own:
//! `.<name>.<process>-<n>-<time>.tmp`, and `.old` for a folder that waits aside. Who made one, and
//! for what, stands in the name.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::error::FormatError;

/// What is being made.
const TEMPORARY: &str = ".tmp";
/// What waits aside while its successor takes its place.
const ASIDE: &str = ".old";
/// A file of an adapter whose save is decided with the other's, see [`crate::peft::write_adapter`].
const NEXT: &str = ".next";

/// Distinguishes several pending files of one process.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What a hidden name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hidden<'a> {
    /// The final name.
    pub(super) target: &'a str,
    /// The process that made it.
    pub(super) process: u32,
    /// Whether it waits aside, as opposed to being made.
    pub(super) is_aside: bool,
}

/// Reads a hidden name; nothing for any other.
pub(super) fn parse(name: &str) -> Option<Hidden<'_>> {
    let hidden = name.strip_prefix('.')?;
    let (rest, is_aside) = match (hidden.strip_suffix(TEMPORARY), hidden.strip_suffix(ASIDE)) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => return None,
    };
    let (target, id) = rest.rsplit_once('.')?;
    let mut parts = id.split('-');
    let (process, n, time) = (parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let whole = parts.next().is_none() && n.parse::<u64>().is_ok() && is_hex(time);
    (whole && !target.is_empty()).then_some(Hidden {
        target,
        process: process.parse().ok()?,
        is_aside,
    })
}

/// A hidden name beside `target` that no other pending write uses.
pub(super) fn temporary_sibling(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(FormatError::Io {
            action: "create",
            path: target.to_owned(),
            error: io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"),
        });
    };
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    // The time keeps a new process with a dead one's number from meeting its left-overs.
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}-{id}-{nanos:x}{TEMPORARY}", std::process::id()));
    Ok(target.with_file_name(hidden))
}

/// The name aside that goes with a temporary one.
pub(super) fn aside_of(temporary: &Path) -> PathBuf {
    temporary.with_extension(ASIDE.trim_start_matches('.'))
}

/// A path as it is shown to people: hidden names give way to the names that they will have.
pub fn shown(path: &Path) -> Shown<'_> {
    Shown(path)
}

/// Displays a path, see [`shown`].
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_hidden = |part: Component<'_>| final_name(part).is_some();
        if !self.0.components().any(is_hidden) {
            return write!(f, "{}", self.0.display());
        }
        let parts = self.0.components().map(|part| match final_name(part) {
            Some(name) => PathBuf::from(name),
            None => PathBuf::from(part.as_os_str()),
        });
        write!(f, "{}", parts.collect::<PathBuf>().display())
    }
}

fn final_name(part: Component<'_>) -> Option<&str> {
    let name = part.as_os_str().to_str()?;
    let of_next = || name.strip_prefix('.')?.strip_suffix(NEXT);
    parse(name).map(|hidden| hidden.target).or_else(of_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_name_is_read_back_and_shown_as_what_it_will_be() {
        let hidden = temporary_sibling(Path::new("a/merged.v2")).unwrap();
        let name = hidden.file_name().unwrap().to_str().unwrap();
        let read = parse(name).unwrap();
        assert_eq!(
            (read.target, read.process, read.is_aside),
            ("merged.v2", std::process::id(), false)
        );
        let inner = hidden.join(".adapter_model.safetensors.next");
        assert_eq!(
            shown(&inner).to_string(),
            Path::new("a/merged.v2/adapter_model.safetensors")
                .display()
                .to_string()
        );
        let aside = aside_of(&hidden);
        assert!(
            parse(aside.file_name().unwrap().to_str().unwrap())
                .unwrap()
                .is_aside
        );
    }

    #[test]
    fn foreign_names_are_left_alone() {
        for name in [
            ".cache.tmp",
            ".x.1-2.tmp",
            "x.1-2-3.tmp",
            ".x.1-2-zz.tmp",
            ".x.a-2-3.old",
            "..1-2-3.tmp",
            ".x.1-2-3.bak",
        ] {
            assert_eq!(parse(name), None, "{name}");
            assert_eq!(shown(Path::new(name)).to_string(), name);
        }
    }
}
