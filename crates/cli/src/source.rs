//! What the environment says of places: the cache of Hugging Face's tools, our own, and the network
//! where it is asked for (in a build with the feature `hub`).

use std::env;
#[cfg(feature = "hub")]
use std::path::Path;
use std::path::PathBuf;

use lowrank_run::hub::Hub;
use lowrank_run::{RunError, RunResult};

/// Where ids are looked up; with `online`, also in the network.
pub fn hub(online: Option<bool>) -> Hub {
    Hub {
        cache: cache_dir(),
        download: online.unwrap_or(false).then_some(download),
    }
}

/// A folder that a variable names.
fn set(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// Where this program keeps what it can find out again.
pub fn own_cache_dir() -> Option<PathBuf> {
    let of_system = || match () {
        () if cfg!(windows) => set("LOCALAPPDATA").map(|dir| dir.join("lowrank/cache")),
        () if cfg!(target_os = "macos") => {
            env::home_dir().map(|h| h.join("Library/Caches/lowrank"))
        }
        () => env::home_dir().map(|home| home.join(".cache/lowrank")),
    };
    set("LOWRANK_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("lowrank")))
        .or_else(of_system)
}

/// The cache folder by the rules of `huggingface_hub`.
fn cache_dir() -> Option<PathBuf> {
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(not(feature = "hub"))]
fn download(id: &str, _revision: &str) -> RunResult<PathBuf> {
    Err(RunError::failure(format!("cannot download `{id}`: this build has no hub client"))
        .hint("build with `cargo build --release --features hub`, or download the directory by other means"))
}

#[cfg(feature = "hub")]
fn download(id: &str, revision: &str) -> RunResult<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Repo, RepoType};

    let failed = |error: hf_hub::api::sync::ApiError| {
        RunError::from_error(&error)
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
