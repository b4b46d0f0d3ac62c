//! From what a user calls a model to a directory: a path, or an id in the local cache of Hugging Face's tools. The network is
//! touched only with `--online`, in a build with the feature `hub`.

use std::env;
use std::path::{Path, PathBuf};

use lowrank_formats::files::{self, Ceiling};

use crate::args::ModelArgs;
use crate::errors::{CliError, CliResult};
use crate::places;

/// The directory of a model.
///
/// # Errors
/// There is no such directory, and no such id in the cache.
pub fn find_model(args: &ModelArgs) -> CliResult<PathBuf> {
    let name = args.model.as_deref().ok_or_else(|| {
        CliError::usage("no model given")
            .hint("pass --model DIR, a Hugging Face model directory, or an id in the local cache")
    })?;
    let path = Path::new(name);
    if files::is_dir(path) {
        return match files::is_file(&path.join(places::MODEL_FILE)) {
            true => Ok(path.to_owned()),
            false => Err(places::no_model_in(path)),
        };
    }
    if files::is_file(path) {
        return Err(CliError::usage(format!(
            "`{name}` is a file, expected the directory of a model"
        ))
        .hint("pass --model with the directory that holds config.json"));
    }
    if !is_id(name) {
        return Err(CliError::usage(format!("there is no directory `{name}`"))
            .hint("a model is a directory with config.json and weights, or an id like `org/name` in the local cache"));
    }
    let revision = args.revision.as_deref().unwrap_or("main");
    let cache = cache_dir();
    if let Some(cache) = &cache
        && let Some(found) = find_in_cache(cache, name, revision)?
    {
        return Ok(found);
    }
    if args.online.unwrap_or(false) {
        return download(name, revision);
    }
    let place = cache.map_or_else(|| "the cache".to_owned(), |c| format!("`{}`", c.display()));
    Err(CliError::failure(format!(
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

/// The cache folder by the rules of `huggingface_hub`.
fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
}

/// `models--org--name/snapshots/<commit>`, where the commit is the revision itself or stands in `refs/<revision>`.
fn find_in_cache(cache: &Path, id: &str, revision: &str) -> CliResult<Option<PathBuf>> {
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

#[cfg(not(feature = "hub"))]
fn download(id: &str, _revision: &str) -> CliResult<PathBuf> {
    Err(CliError::failure(format!("cannot download `{id}`: this build has no hub client"))
        .hint("build with `cargo build --release --features hub`, or download the directory by other means"))
}

#[cfg(feature = "hub")]
fn download(id: &str, revision: &str) -> CliResult<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Repo, RepoType};

    let failed = |error: hf_hub::api::sync::ApiError| {
        CliError::from_error(&error)
            .hint("check the id, the revision and the network; a private model needs HF_TOKEN")
    };
    let mut builder = ApiBuilder::from_env();
    if let Some(cache) = cache_dir() {
        builder = builder.with_cache_dir(cache);
    }
    let api = builder.build().map_err(failed)?;
    let repo = api.repo(Repo::with_revision(
        id.to_owned(),
        RepoType::Model,
        revision.to_owned(),
    ));
    let files: Vec<String> = repo
        .info()
        .map_err(failed)?
        .siblings
        .into_iter()
        .map(|f| f.rfilename)
        .collect();
    let safetensors = files
        .iter()
        .any(|f| f.starts_with("model") && f.ends_with(".safetensors"));
    let wanted = |file: &&String| {
        let weights = if safetensors {
            file.starts_with("model") && file.ends_with(".safetensors")
        } else {
            file.starts_with("pytorch_model") && file.ends_with(".bin")
        };
        !file.contains('/') && (weights || file.ends_with(".json") || file.ends_with(".txt"))
    };
    for file in files.iter().filter(wanted) {
        repo.get(file).map_err(failed)?;
    }
    let config = repo.get("config.json").map_err(failed)?;
    Ok(config.parent().map(Path::to_owned).unwrap_or_default())
}

/// A file or folder of the repository that holds this program's default model and data: looked for from the current directory
/// upward, then from the program's own folder upward.
pub fn find_asset(relative: &str) -> Option<PathBuf> {
    let here = env::current_dir().ok();
    let program = env::current_exe().ok();
    let starts = [here.as_deref(), program.as_deref()];
    let folders = starts.into_iter().flatten().flat_map(Path::ancestors);
    folders
        .map(|folder| folder.join("assets").join(relative))
        .find(|path| files::exists(path))
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
