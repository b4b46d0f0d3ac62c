//! Files that are too large for the repository: real models, and the text that they are measured
//! on. Where they are not, a test says so and passes.

use std::path::{Path, PathBuf};

/// A file of a real model, by its place in the folder that `LOWRANK_REAL_MODELS` names, or else in
/// that of shared data.
pub fn real_model(place: &Path) -> Option<PathBuf> {
    let folder = match std::env::var_os("LOWRANK_REAL_MODELS") {
        Some(folder) => PathBuf::from(folder),
        None => shared().join("models"),
    };
    there(
        folder.join(place),
        "LOWRANK_REAL_MODELS names a folder of real models",
    )
}

/// A file of the shared data.
pub fn shared_data(place: &Path) -> Option<PathBuf> {
    there(
        shared().join(place),
        "the shared data lie beside the repository",
    )
}

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data")
}

fn there(path: PathBuf, hint: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: no {}; it runs where {hint}", path.display());
    None
}
