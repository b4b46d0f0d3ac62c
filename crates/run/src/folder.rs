//! The folder of a training run: where a run may begin, and what is in it.

use std::path::{Path, PathBuf};

use lowrank_formats::files;
use lowrank_formats::{FormatError, RunDir};
use lowrank_train::config::TrainConfig;

use crate::error::{RunError, RunResult};
use crate::result::result_name;

/// The resolved configuration in the run's folder.
pub const CONFIG_FILE: &str = "config.yaml";

/// What becomes of a run that is in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and no other begins there.
    Refuse,
    /// It goes on.
    Resume,
    /// It is moved aside.
    MoveAside,
}

impl Existing {
    /// Whether the run in the folder of this configuration goes on and keeps the settings that it
    /// was started with.
    pub fn goes_on(self, config: &TrainConfig) -> bool {
        let has_settings = || files::is_file(&Path::new(&config.output_dir).join(CONFIG_FILE));
        self == Existing::Resume && has_settings()
    }

    /// Refuses a folder in which no run may begin, before anything is read.
    ///
    /// # Errors
    /// A run is there, or other files that a run would replace; `result` is the folder for what it
    /// trains.
    pub fn check(self, dir: &Path, result: &str) -> RunResult {
        if self != Existing::Refuse {
            return Ok(());
        }
        if !RunDir::is_run(dir) {
            return check_free(dir, result);
        }
        Err(run_exists(&FormatError::RunExists {
            path: dir.to_owned(),
        }))
    }

    /// Takes the folder for this process alone. Returns also where the old run went, if one was
    /// moved aside.
    ///
    /// # Errors
    /// As [`Existing::check`], or the folder cannot be written to.
    pub(crate) fn take(self, config: &TrainConfig) -> RunResult<(RunDir, Option<PathBuf>)> {
        let dir = Path::new(&config.output_dir);
        match self {
            Existing::Resume => Ok((RunDir::open(dir)?, None)),
            Existing::MoveAside => Ok(RunDir::create_moving_old(dir)?),
            Existing::Refuse => {
                check_free(dir, result_name(config.method))?;
                let created = RunDir::create(dir).map_err(|error| match &error {
                    FormatError::RunExists { .. } => run_exists(&error),
                    _ => RunError::from(error),
                });
                Ok((created?, None))
            }
        }
    }
}

fn run_exists(error: &FormatError) -> RunError {
    RunError::from_error(error).hint(
        "--resume goes on with it, --overwrite moves it aside, --output-dir takes another folder",
    )
}

/// The names that a new run would write, of which none may be in a folder that is no run.
const OF_A_RUN: [&str; 5] = [
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "report.html",
    "before.json",
];

/// Refuses a folder for a new run in which the run would replace files that are not of a run;
/// `result` is the folder for what it trains.
///
/// # Errors
/// The folder holds such a file.
fn check_free(dir: &Path, result: &str) -> RunResult {
    if RunDir::is_run(dir) || !files::is_dir(dir) {
        return Ok(());
    }
    let there = |name: &&str| files::exists(&dir.join(name));
    let mut names = OF_A_RUN.iter().copied().chain([result]);
    let Some(name) = names.find(|name| there(name)) else {
        return Ok(());
    };
    Err(RunError::usage(format!(
        "`{}` is no run, but holds `{name}`, which a run would replace",
        dir.display()
    ))
    .hint("--output-dir takes another folder"))
}
