//! From what a user calls a model to a directory: a path, or an id in the local cache of Hugging
//! Face's tools. The network is touched only by whoever lends the means.

use std::path::{Path, PathBuf};

use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::gguf::is_gguf;

use crate::error::{RunError, RunResult};
use crate::places;
use crate::settings::ModelSettings;

/// Gets an id at a revision from the network and returns the directory where it then is.
pub type Download = fn(id: &str, revision: &str) -> RunResult<PathBuf>;

/// Where ids are looked up.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    /// The cache folder of `huggingface_hub`.
    pub cache: Option<PathBuf>,
    /// What gets an id that is not there; the network is not used where absent.
    pub download: Option<Download>,
}

/// The directory of a model, or its GGUF file.
///
/// # Errors
/// There is no such directory, and no such id in the cache.
pub fn find_model(settings: &ModelSettings) -> RunResult<PathBuf> {
    let name = settings.model.as_deref().ok_or_else(|| {
        RunError::usage("no model given")
            .hint("pass --model DIR, a Hugging Face model directory, or an id in the local cache")
    })?;
    let path = Path::new(name);
    if files::is_dir(path) {
        return match files::is_file(&path.join(places::MODEL_FILE)) {
            true => Ok(path.to_owned()),
            false => Err(places::no_model_in(path)),
        };
    }
    if is_gguf(path)? {
        return Ok(path.to_owned());
    }
    if files::is_file(path) {
        return Err(RunError::usage(format!(
            "`{name}` is a file, expected the directory of a model or a GGUF file"
        ))
        .hint("pass --model with the directory that holds config.json"));
    }
    if !is_id(name) {
        return Err(RunError::usage(format!("there is no directory `{name}`"))
            .hint("a model is a directory with config.json and weights, or an id like `org/name` in the local cache"));
    }
    let revision = settings.revision.as_deref().unwrap_or("main");
    let Hub { cache, download } = &settings.hub;
    if let Some(cache) = cache
        && let Some(found) = find_in_cache(cache, name, revision)?
    {
        return Ok(found);
    }
    if let Some(download) = download {
        return download(name, revision);
    }
    let place = cache
        .as_ref()
        .map_or_else(|| "the cache".to_owned(), |c| format!("`{}`", c.display()));
    Err(RunError::failure(format!(
        "there is no directory `{name}`, and {place} holds no model of this id at revision `{revision}`"
    ))
    .hint("the network is not used unless asked for: pass --online, or --model with a directory"))
}

/// `name` or `org/name`, as hub ids are written.
fn is_id(name: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['.', '-'])
            && p.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(part)
}

/// `models--org--name/snapshots/<commit>`, where the commit is the revision itself or stands in
/// `refs/<revision>`.
fn find_in_cache(cache: &Path, id: &str, revision: &str) -> RunResult<Option<PathBuf>> {
    if revision
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.'))
    {
        return Ok(None);
    }
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    let named = files::read_if_there(&repository.join("refs").join(revision), Ceiling::NAME)?;
    let named = named.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let commit = named.as_deref().map_or(revision, str::trim);
    let snapshot = repository.join("snapshots").join(commit);
    Ok(files::is_file(&snapshot.join("config.json")).then_some(snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        assert!(is_id("org/name") && is_id("bert-base-uncased") && is_id("a/b.c_d-1"));
        assert!(
            !is_id("../x") && !is_id("a/b/c") && !is_id("/abs") && !is_id("a//b") && !is_id("")
        );
    }

    #[test]
    fn the_cache_is_read_by_ref_and_by_commit() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("models--org--name");
        let snapshot = repository.join("snapshots/abc123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        let find = |revision| find_in_cache(dir.path(), "org/name", revision).unwrap();
        std::fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        assert_eq!(
            find("main"),
            None,
            "a snapshot without config.json is no model"
        );
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(find("main"), Some(snapshot.clone()));
        assert_eq!(find("abc123"), Some(snapshot));
        assert_eq!(find("v2"), None);
        assert_eq!(find("../../x"), None);
    }
}
