//! What was measured of a machine, in a file: it is read by the processes that come after. What
//! cannot be read, is not whole, is of another machine or says what cannot be is measured anew;
//! what cannot be written is measured each time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use lowrank_formats::files::{Ceiling, create_dir_all, read_if_there, write_atomic};
use serde::{Deserialize, Serialize};

use super::timed::{BESIDE, Timed, WAYS};

/// More than any such file takes.
const CEILING: Ceiling = Ceiling {
    bytes: 64 << 10,
    what: "a file of measured rates",
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cached {
    /// Processor, program and kernels that the rates are of.
    key: String,
    timed: Vec<Timed>,
}

/// The file of a key in a folder: machines that share a home have one each.
pub(super) fn file(dir: &Path, key: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    dir.join(format!("arithmetic-{:016x}.json", hasher.finish()))
}

/// What the file says, if it is whole and of this key.
pub(super) fn read(file: &Path, key: &str) -> Option<Vec<Timed>> {
    parse(&read_if_there(file, CEILING).ok()??, key)
}

fn parse(bytes: &[u8], key: &str) -> Option<Vec<Timed>> {
    let cached: Cached = serde_json::from_slice(bytes).ok()?;
    let ways = WAYS.iter().chain(&BESIDE);
    let is_whole = cached.timed.iter().map(|timed| &timed.way).eq(ways);
    // Numbers that JSON has no word for are null in it, so that none of them comes back.
    let can_be = |timed: &Timed| timed.flops_per_second > 0.0 && timed.error >= 0.0;
    let fits = cached.key == key && is_whole && cached.timed.iter().all(can_be);
    fits.then_some(cached.timed)
}

/// Writes the file, whole or not at all; it is no failure where that cannot be.
pub(super) fn write(file: &Path, key: &str, timed: &[Timed]) {
    let cached = Cached {
        key: key.to_owned(),
        timed: timed.to_vec(),
    };
    let Ok(json) = serde_json::to_vec_pretty(&cached) else {
        return;
    };
    if let Some(dir) = file.parent() {
        // Neither is needed: the next process measures as this one did.
        let _ = create_dir_all(dir).and_then(|()| write_atomic(file, &json));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const KEY: &str = "a processor, a program";

    fn timed() -> Vec<Timed> {
        let ways = WAYS.iter().chain(&BESIDE).zip(1..);
        let timed = ways.map(|(way, i)| Timed {
            way: *way,
            flops_per_second: 1e9 * f64::from(i) + 0.125,
            error: 1e-3 / f64::from(i),
        });
        timed.collect()
    }

    #[test]
    fn what_was_written_is_read_back_for_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir.path().join("made/anew"), KEY);
        assert_eq!(read(&file, KEY), None);
        write(&file, KEY, &timed());
        assert_eq!(read(&file, KEY), Some(timed()));
        assert_eq!(read(&file, "another processor"), None);
        // No temporary file stays.
        let entries = fs::read_dir(file.parent().unwrap()).unwrap();
        assert_eq!(entries.count(), 1);
    }

    #[test]
    fn what_is_broken_old_or_hostile_is_measured_anew() {
        let whole = serde_json::to_string(&Cached {
            key: KEY.to_owned(),
            timed: timed(),
        })
        .unwrap();
        assert!(parse(whole.as_bytes(), KEY).is_some());
        let first = "\"flops_per_second\":1000000000.125";
        assert!(whole.contains(first), "{whole}");
        let with = |rate: &str| whole.replace(first, &format!("\"flops_per_second\":{rate}"));
        for text in [
            String::new(),
            "null".to_owned(),
            "[]".to_owned(),
            "\u{0}\u{ff}".to_owned(),
            whole[..whole.len() / 2].to_owned(),
            format!("{whole}{whole}"),
            "[".repeat(60_000),
            with("-1.0"),
            with("0"),
            with("null"),
            with("1e999"),
            with("NaN"),
            with("\"fast\""),
            whole.replace("\"bf16\"", "\"f8\""),
            whole.replace("\"int8\"", "\"bf16\""),
            whole.replace("\"error\":0.001", "\"error\":-0.001"),
            whole.replace(KEY, "another machine"),
            format!("{{\"key\":\"{KEY}\",\"timed\":[]}}"),
        ] {
            assert_ne!(text, whole);
            assert_eq!(parse(text.as_bytes(), KEY), None, "{text}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_read_or_written_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        // A file where a folder should be, and a folder where the file should be.
        let blocked = dir.path().join("blocked");
        fs::write(&blocked, "").unwrap();
        let taken = file(dir.path(), KEY);
        fs::create_dir(&taken).unwrap();
        for file in [file(&blocked.join("below"), KEY), taken] {
            assert_eq!(read(&file, KEY), None);
            write(&file, KEY, &timed());
            assert_eq!(read(&file, KEY), None);
        }
        // Longer than any that was written.
        let long = dir.path().join("long");
        fs::write(&long, vec![b' '; 65 << 10]).unwrap();
        assert_eq!(read(&long, KEY), None);
    }
}
