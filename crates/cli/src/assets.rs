//! The model and the data that the repository holds, for commands that name none.

use std::env;
use std::path::{Path, PathBuf};

use lowrank_formats::files;
use lowrank_run::{RunError, RunResult};

use crate::args::{CheckArgs, TrainArgs};

/// Fills in the model and data that the repository holds where none are named.
pub fn with_default_assets(mut args: TrainArgs) -> RunResult<TrainArgs> {
    if args.train_file.is_none() {
        let names_data = args.validation_file.is_some()
            || args.test_file.is_some()
            || args.model.model.is_some();
        if names_data {
            return Err(RunError::usage("no training rows given")
                .hint("pass --train-file FILE (.jsonl, .csv or .tsv)"));
        }
        let file = |name: &str| asset(&format!("sentiment/movie/{name}.tsv"));
        args.train_file = Some(file("train")?);
        args.validation_file = Some(file("validation")?);
        args.test_file = Some(file("test")?);
        args.optimization.num_train_epochs = args
            .optimization
            .num_train_epochs
            .or(Some(DEFAULT_RUN_EPOCHS));
    }
    if args.model.model.is_none() {
        args.model.model = Some(asset("minilm-l6")?);
    }
    Ok(args)
}

/// Epochs of the run without any settings: about a minute on two cores.
const DEFAULT_RUN_EPOCHS: f64 = 2.0;

/// The same for `check`.
pub fn check_with_default_assets(mut args: CheckArgs) -> RunResult<CheckArgs> {
    let no_rows =
        args.train_file.is_none() && args.validation_file.is_none() && args.test_file.is_none();
    if no_rows && args.model.model.is_none() {
        let file = |name: &str| asset(&format!("sentiment/movie/{name}.tsv"));
        args.train_file = Some(file("train")?);
        args.validation_file = Some(file("validation")?);
        args.test_file = Some(file("test")?);
    }
    if args.model.model.is_none() {
        args.model.model = Some(asset("minilm-l6")?);
    }
    Ok(args)
}

fn asset(name: &str) -> RunResult<String> {
    let path = find_asset(name).ok_or_else(|| {
        RunError::usage(format!(
            "no model and data given, and the default `assets/{name}` is not found"
        ))
        .hint("run from a checkout of the repository, or pass --model and --train-file")
    })?;
    // Relative where that is possible, so that a run does not name the folders above the checkout.
    let here = env::current_dir().unwrap_or_default();
    let shown = path
        .strip_prefix(&here)
        .map(Path::to_path_buf)
        .unwrap_or(path);
    Ok(shown.display().to_string())
}

/// A file or folder of the repository that holds this program's default model and data: looked for
/// from the current directory upward, then from the program's own folder upward.
fn find_asset(relative: &str) -> Option<PathBuf> {
    let here = env::current_dir().ok();
    let program = env::current_exe().ok();
    let starts = [here.as_deref(), program.as_deref()];
    let folders = starts.into_iter().flatten().flat_map(Path::ancestors);
    folders
        .map(|folder| folder.join("assets").join(relative))
        .find(|path| files::exists(path))
}
