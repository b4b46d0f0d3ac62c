//! What can end a run badly, and what to do about it.

use lowrank_model::ModelError;

use crate::checkpoint::CheckpointError;
use crate::config::{ConfigError, Difference};
use crate::metrics_log::MetricsLogError;

/// What can end a run badly. Checkpoints written before it stay.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration cannot be run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] MetricsLogError),
    /// There is nothing to train on.
    #[error("there are no training rows")]
    NoRows,
    /// No row has a label that counts.
    #[error("no training row has a target that the loss counts")]
    NoTargets,
    /// The loss is no number any more.
    #[error("the loss is {loss} at step {step}: training has diverged")]
    Diverged {
        /// The step that was being computed.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// A trained value is no number any more.
    #[error("`{name}` holds values that are not finite after step {step}: training has diverged")]
    NotFinite {
        /// The step that was done.
        step: u64,
        /// The trained tensor.
        name: String,
    },
    /// The run in the folder was made with other settings.
    #[error("the run cannot be continued with other settings\n  {}", difference_lines(.0))]
    OtherSettings(Vec<Difference>),
    /// The rows are not those of the run.
    #[error("the {which} rows are not those that the run was started with")]
    OtherRows {
        /// `training` or `validation`.
        which: &'static str,
    },
    /// The base is not that of the run.
    #[error("the base `{base}` is not the one that the run was started on\n  {}", differences.join("\n  "))]
    OtherBase {
        /// The base, as it was named.
        base: String,
        /// One line for each difference.
        differences: Vec<String>,
    },
    /// All checkpoints of the run are broken.
    #[error("none of the {} checkpoints can be used\n  {}", .0.len(), reasons(.0))]
    NoUsableCheckpoint(Vec<CheckpointError>),
}

impl TrainError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            TrainError::Model(error) => error.hint(),
            TrainError::Checkpoint(CheckpointError::Format(error)) => error.hint(),
            TrainError::Checkpoint(CheckpointError::Model(error)) => error.hint(),
            TrainError::Diverged { .. } | TrainError::NotFinite { .. } => {
                Some("lower --learning-rate, or raise --warmup-ratio; the checkpoints before this step are kept".to_owned())
            }
            TrainError::OtherSettings(_) => {
                Some("--resume alone takes the run's own settings; start a new run in another --output-dir".to_owned())
            }
            TrainError::OtherBase { .. } => Some(
                "put the model's files back as they were, or start a new run in another --output-dir; --allow-other-base goes on all the same".to_owned(),
            ),
            TrainError::OtherRows { .. } => Some("put the file back as it was, or start a new run".to_owned()),
            TrainError::NoUsableCheckpoint(_) => Some("start anew with --overwrite; the old run is moved aside".to_owned()),
            TrainError::Checkpoint(CheckpointError::Invalid { .. })
            | TrainError::Config(_)
            | TrainError::Log(_)
            | TrainError::NoRows
            | TrainError::NoTargets => None,
        }
    }
}

/// Each checkpoint with what is wrong in it, one a line.
fn reasons(errors: &[CheckpointError]) -> String {
    let line = |error: &CheckpointError| match std::error::Error::source(error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => {
            format!("{error}: {cause}")
        }
        Some(_) | None => error.to_string(),
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n  ")
}

fn difference_lines(differences: &[Difference]) -> String {
    let line = |d: &Difference| {
        format!(
            "{}: {} in the run, {} asked for",
            d.field, d.in_run, d.asked
        )
    };
    differences
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n  ")
}
