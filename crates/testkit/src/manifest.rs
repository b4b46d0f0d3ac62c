//! The hashes of the golden files: what a script made is what the tests read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// `tests/golden/manifest.json`.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// The script that made the files.
    pub made_by: String,
    /// Its seed.
    pub seed: u64,
    /// Package versions it ran with.
    pub versions: BTreeMap<String, String>,
    /// SHA-256 by path, relative to the manifest's folder.
    pub files: BTreeMap<String, String>,
}

/// Checks every file below `root` against `root/manifest.json`, both ways. Returns how many files
/// there are, or one line for each that is missing, changed or not listed.
pub fn verify_manifest(root: &Path) -> Result<usize, Vec<String>> {
    let path = root.join("manifest.json");
    let text = std::fs::read(&path).map_err(|e| vec![format!("{}: {e}", path.display())])?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| vec![format!("{}: {e}", path.display())])?;
    let mut faults = Vec::new();
    for (name, expected) in &manifest.files {
        match std::fs::read(root.join(name)) {
            Err(error) => faults.push(format!("{name}: {error}")),
            Ok(bytes) => {
                let found = hex(&Sha256::digest(&bytes));
                if found != *expected {
                    faults.push(format!("{name}: expected sha256 {expected}, found {found}"));
                }
            }
        }
    }
    let mut on_disk = Vec::new();
    if let Err(error) = list_files(root, &mut on_disk) {
        faults.push(format!("{}: {error}", root.display()));
    }
    for file in on_disk {
        let name = relative_name(root, &file);
        if name != "manifest.json" && !manifest.files.contains_key(&name) {
            faults.push(format!("{name}: not in the manifest"));
        }
    }
    if faults.is_empty() {
        Ok(manifest.files.len())
    } else {
        Err(faults)
    }
}

fn relative_name(root: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(root).unwrap_or(file);
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn list_files(folder: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), out)?;
        } else {
            out.push(entry.path());
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for a test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("lowrank-testkit-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("a")).unwrap();
            std::fs::write(path.join("a/one.txt"), "abc").unwrap();
            // The well-known digest of "abc".
            let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
            let text = format!(
                r#"{{"made_by":"x","seed":1,"versions":{{}},"files":{{"a/one.txt":"{digest}"}}}}"#
            );
            std::fs::write(path.join("manifest.json"), text).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_listed_and_unchanged_passes() {
        assert_eq!(verify_manifest(&Folder::new("same").0), Ok(1));
    }

    #[test]
    fn one_changed_byte_fails() {
        let folder = Folder::new("changed");
        std::fs::write(folder.0.join("a/one.txt"), "abd").unwrap();
        assert!(verify_manifest(&folder.0).unwrap_err()[0].contains("a/one.txt: expected sha256"));
    }

    #[test]
    fn a_file_too_many_or_too_few_fails() {
        let folder = Folder::new("count");
        std::fs::write(folder.0.join("two.txt"), "x").unwrap();
        assert_eq!(
            verify_manifest(&folder.0).unwrap_err(),
            ["two.txt: not in the manifest"]
        );
        std::fs::remove_file(folder.0.join("two.txt")).unwrap();
        std::fs::remove_file(folder.0.join("a/one.txt")).unwrap();
        assert_eq!(verify_manifest(&folder.0).unwrap_err().len(), 1);
    }
}
