//! What the tests of this crate share: fixtures, folders of their own, and the ways to damage a
//! file.
#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};

/// A committed fixture; made by `tools/fixtures/make_pickle_fixtures.py`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A JSON fixture.
pub fn json(name: &str) -> serde_json::Value {
    let bytes = std::fs::read(fixture(name)).expect("the fixture is committed");
    serde_json::from_slice(&bytes).expect("the fixture is JSON")
}

/// An empty folder for one test.
pub fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("the build's own folder is writable");
    dir
}

/// The data that is beside the repository on some machines; says so loudly when it is not here.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: `{name}` is not beside the repository, this test checked nothing");
    None
}

/// The names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("the folder exists")
        .map(|entry| {
            entry
                .expect("the entry is readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// Calls `check` with every truncation of `bytes`, and with one bit flipped, two for each of its
/// first `flipped` bytes.
pub fn for_each_damage(bytes: &[u8], flipped: usize, mut check: impl FnMut(Vec<u8>)) {
    for len in 0..bytes.len() {
        check(bytes[..len].to_vec());
    }
    for at in 0..flipped.min(bytes.len()) {
        for bit in [at % 8, (at + 3) % 8] {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << bit;
            check(damaged);
        }
    }
}
