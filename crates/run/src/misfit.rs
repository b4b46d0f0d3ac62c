//! What to do about an adapter that does not fit the model that was passed: a hint that is true
//! where it stands.

use std::path::Path;

use lowrank_formats::files;
use lowrank_model::ModelError;

use crate::base::Base;
use crate::error::RunError;

impl Base {
    /// Whether a name that an adapter gives its base means this model: the same name, the same
    /// folder, or the id of the cache's snapshot that was passed as a folder.
    pub fn is_named(&self, name: &str) -> bool {
        let plain = |name: &str| name.trim_end_matches('/').to_owned();
        if plain(name) == plain(&self.name) {
            return true;
        }
        let resolved = |path: &Path| files::resolve(path).ok();
        let here = resolved(&self.dir);
        if here.is_some() && resolved(Path::new(name)) == here {
            return true;
        }
        let in_cache = format!("models--{}", plain(name).replace('/', "--"));
        let path = here.as_deref().unwrap_or(&self.dir);
        path.components()
            .any(|part| part.as_os_str() == in_cache.as_str())
    }

    /// An error of attaching the adapter whose tensors are in `tensors` and which names its base
    /// so: whose fault it is, and what can be done about it.
    pub fn misfit(&self, error: ModelError, named: Option<&str>, tensors: &Path) -> RunError {
        let settings = tensors.with_file_name("adapter_config.json");
        let is_of_settings = matches!(
            error,
            ModelError::AdapterConfig(_)
                | ModelError::AdapterUnsupported(_)
                | ModelError::Pattern { .. }
        );
        let place = match is_of_settings && files::is_file(&settings) {
            true => settings.as_path(),
            false => tensors,
        };
        let hint = match &error {
            // The patterns are the adapter's own: its modules or its ranks are those of another
            // model.
            ModelError::AdapterFit { .. } | ModelError::Pattern { .. } => {
                Some(self.base_hint(named))
            }
            _ => None,
        };
        let error = RunError::from(error).about(place);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// Which model to pass in the place of this one, as far as the adapter says it.
    pub fn base_hint(&self, named: Option<&str>) -> String {
        match named.filter(|name| !name.is_empty()) {
            None => "pass --model with the model that the adapter was trained on".to_owned(),
            Some(name) if self.is_named(name) => format!(
                "the adapter names this very model (`{name}`) as its base: either the model was changed since, or the adapter's two files are not of one adapter"
            ),
            Some(name) if files::is_dir(Path::new(name)) => {
                format!("the adapter names `{name}` as its base; pass --model {name}")
            }
            Some(name) => format!(
                "the adapter names `{name}` as its base; pass --model with that, by its id or the folder where it is here"
            ),
        }
    }
}
