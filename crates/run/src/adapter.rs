//! An adapter on disk, of this program (of any method), of PEFT or of loralib: its configuration,
//! its tensors, and our notes beside it.

use std::path::{Path, PathBuf};

use lowrank_engine::BaseFormat;
use lowrank_formats::files;
use lowrank_formats::peft::{AdapterConfig, AdapterFile, KEY_PREFIX, Loralib};
use lowrank_formats::{Checkpoint, FormatError};
use lowrank_model::{ModelConfig, StoredHead, TokenTables};

use crate::error::{RunError, RunResult};
use crate::notes::AdapterNotes;
use crate::places;

/// An adapter on disk.
pub struct AdapterSource {
    /// Its configuration.
    pub config: AdapterConfig,
    /// Its tensors.
    pub tensors: AdapterFile,
    /// Our notes, where there are some.
    pub notes: Option<AdapterNotes>,
    /// Its folder; none for a loralib file.
    pub dir: Option<PathBuf>,
}

/// The folder of an adapter, which may be that of its run.
fn folder_of(path: &str) -> PathBuf {
    let given = Path::new(path);
    let in_run = given.join("adapter");
    match !files::is_file(&given.join("adapter_config.json")) && files::is_dir(&in_run) {
        true => in_run,
        false => given.to_owned(),
    }
}

/// What an adapter's folder says of its base, if it can be read.
pub fn base_model_of(path: &str) -> Option<String> {
    let config = AdapterConfig::read(&folder_of(path)).ok()?;
    let name = config.base_model().filter(|name| !name.is_empty());
    name.map(str::to_owned)
}

/// The blocks over which an adapter was trained, if its notes name some and can be read.
pub fn base_format_of(path: &str) -> Option<BaseFormat> {
    AdapterNotes::read(&folder_of(path)).ok()??.base_format
}

impl AdapterSource {
    /// Opens a PEFT directory, a run, a checkpoint of a run, or a loralib file (whose alpha is
    /// `alpha`, as it holds none).
    pub fn open(path: &str, alpha: Option<f64>) -> RunResult<Self> {
        let (given, dir) = (Path::new(path), folder_of(path));
        if files::is_dir(&dir) {
            let config = AdapterConfig::read(&dir).map_err(|error| match error {
                FormatError::NothingFound { .. } => places::no_adapter_in(given),
                error => error.into(),
            })?;
            return Ok(Self {
                tensors: config.read_tensors(&dir)?,
                config,
                notes: AdapterNotes::read(&dir)?,
                dir: Some(dir),
            });
        }
        if !files::is_file(&dir) {
            return Err(RunError::usage(format!("there is no adapter `{path}`"))
                .hint("pass --adapter with a directory that holds adapter_config.json, a run, or a loralib .bin file"));
        }
        let checkpoint = Checkpoint::open_file(&dir)?;
        if !Loralib::is_loralib(&checkpoint) {
            return Err(
                RunError::usage(format!("`{path}` is not a loralib checkpoint"))
                    .hint("pass --adapter with the directory that holds adapter_config.json"),
            );
        }
        let loralib = Loralib::read(&dir)?;
        let alpha = alpha.ok_or_else(|| {
            RunError::usage(format!(
                "`{path}` is a loralib checkpoint, which does not hold its alpha"
            ))
            .hint("pass --lora-alpha with the value it was trained with")
        })?;
        Ok(Self {
            config: loralib.config(alpha).into(),
            tensors: loralib.tensors,
            notes: None,
            dir: None,
        })
    }

    /// Takes the tables of tokens out of the tensors, if the adapter brings some.
    pub fn take_tables(&mut self, config: &ModelConfig) -> RunResult<Option<TokenTables>> {
        let tensors = std::mem::take(&mut self.tensors);
        let place = tensors.path().to_owned();
        let (tensors, tables) = TokenTables::take(tensors, &self.config, config)
            .map_err(|error| RunError::from(error).about(&place))?;
        self.tensors = tensors;
        Ok(tables)
    }

    /// The head among the tensors, as one of a model of this type.
    pub fn head(&self, model_type: &str) -> RunResult<Option<StoredHead>> {
        let shape = |name: &str| {
            let tensor = self.tensors.get(&format!("{KEY_PREFIX}{name}"))?;
            Some(tensor.shape.clone())
        };
        Ok(StoredHead::find_among(model_type, &shape)?)
    }
}
