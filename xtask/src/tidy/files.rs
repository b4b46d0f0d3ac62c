//! The text files of the repository, read once. Build outputs and what git ignores by name are left
//! out.

use std::path::Path;

/// Folders that hold nothing of ours, by name or by path.
const SKIPPED: [&str; 8] = [
    ".git",
    "target",
    ".venv",
    "runs",
    "fuzz/target",
    "fuzz/corpus",
    "fuzz/artifacts",
    "__pycache__",
];

/// One text file.
pub struct TextFile {
    /// Path from the root, with slashes.
    pub path: String,
    /// Its contents.
    pub text: String,
}

impl TextFile {
    /// Is it Rust source?
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Does it hold tests or benches alone?
    pub fn is_test(&self) -> bool {
        let parts = self.path.split('/');
        parts
            .clone()
            .any(|part| part == "tests" || part == "benches" || part == "fuzz")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
    }
}

/// All text files, sorted by path.
pub struct Repository {
    /// The files.
    pub files: Vec<TextFile>,
    /// Every path, of text or not, folders included.
    pub paths: Vec<String>,
}

impl Repository {
    /// Reads everything below `root`.
    pub fn read(root: &Path) -> Result<Self, String> {
        let mut repository = Self {
            files: Vec::new(),
            paths: Vec::new(),
        };
        repository.walk(root, "")?;
        repository.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(repository)
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files
            .iter()
            .find(|file| file.path == path)
            .map(|file| file.text.as_str())
    }

    /// Is there such a file or folder?
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths.iter().any(|known| known == path)
    }

    fn walk(&mut self, root: &Path, below: &str) -> Result<(), String> {
        let folder = root.join(below);
        let fault = |error: std::io::Error| format!("{}: {error}", folder.display());
        for entry in std::fs::read_dir(&folder).map_err(fault)? {
            let entry = entry.map_err(fault)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() {
                name.clone()
            } else {
                format!("{below}/{name}")
            };
            if SKIPPED.contains(&name.as_str()) || SKIPPED.contains(&path.as_str()) {
                continue;
            }
            self.paths.push(path.clone());
            if entry.file_type().map_err(fault)?.is_dir() {
                self.walk(root, &path)?;
                continue;
            }
            // Large files are weights and data as published; what is not UTF-8 is no text.
            let small = entry.metadata().map_err(fault)?.len() < 4_000_000;
            if let Some(text) = small
                .then(|| std::fs::read_to_string(entry.path()).ok())
                .flatten()
            {
                self.files.push(TextFile { path, text });
            }
        }
        Ok(())
    }

    /// A repository of given files, for tests of rules.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let mut repository = Self {
            files: Vec::new(),
            paths: Vec::new(),
        };
        for (path, text) in files {
            let parts: Vec<&str> = path.split('/').collect();
            for n in 1..=parts.len() {
                repository.paths.push(parts[..n].join("/"));
            }
            repository.files.push(TextFile {
                path: (*path).to_owned(),
                text: (*text).to_owned(),
            });
        }
        repository
    }
}
