//! What can go wrong with a model or an adapter. Each message says what, where, expected against
//! found; hints are separate, so that a program can show them apart.

use lowrank_formats::FormatError;

/// Errors of loading, adapting, running and merging models.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The configuration names a family that is not known.
    #[error("model type `{found}` is not supported; supported: {supported}")]
    UnknownFamily {
        /// `model_type` of the config.
        found: String,
        /// The supported types.
        supported: String,
    },
    /// The configuration asks for something that is not implemented.
    #[error("config.json: {0}")]
    UnsupportedConfig(String),
    /// Tensors of the checkpoint do not fit the configuration.
    #[error("the checkpoint does not fit its config.json ({} tensors)\n  {}", .faults.len(), .faults.join("\n  "))]
    Weights {
        /// One line a tensor.
        faults: Vec<String>,
        /// Whether loading with `ignore_mismatched_sizes` would help: only the head differs.
        head_only: bool,
    },
    /// A checkpoint that is no plain model: a dumped model with adapters.
    #[error(
        "the checkpoint holds `{name}`: it is the state dict of a model with adapters, expected plain weights"
    )]
    NotPlainWeights {
        /// A tensor that only such a model has.
        name: String,
    },
    /// Names of a checkpoint that could be the same tensor of the model.
    #[error("the checkpoint holds {} tensors that could be `{meaning}`: `{}`", .names.len(), .names.join("`, `"))]
    AmbiguousNames {
        /// The model's tensor.
        meaning: String,
        /// The names in the checkpoint.
        names: Vec<String>,
    },
    /// A pattern matched nothing that can be adapted.
    #[error("`{field}`: {}", .faults.join("\n  "))]
    Pattern {
        /// The field of the adapter configuration.
        field: &'static str,
        /// One line a fault, with the nearest names.
        faults: Vec<String>,
    },
    /// A value of the adapter configuration is out of range or not supported.
    #[error("adapter configuration: {}", .0.join("\n  "))]
    AdapterConfig(Vec<String>),
    /// What an adapter that exists does to its base is not done here.
    #[error("adapter configuration: {}", .0.join("\n  "))]
    AdapterUnsupported(Vec<String>),
    /// An adapter's tensors do not fit this model.
    #[error("adapter does not fit this base model ({} tensors)\n  {}", .faults.len(), .faults.join("\n  "))]
    AdapterFit {
        /// One line a tensor.
        faults: Vec<String>,
        /// The base that the adapter names.
        base: Option<String>,
    },
    /// A result that is no number.
    #[error("{0}")]
    NotFinite(String),
    /// A batch that the model cannot take.
    #[error("{0}")]
    Batch(String),
    /// The operation needs another state of the model.
    #[error("{0}")]
    State(String),
}

impl ModelError {
    /// What is wrong with the patterns of a field, if something is.
    pub(crate) fn of_patterns(field: &'static str, faults: Vec<String>) -> Result<(), Self> {
        match faults.is_empty() {
            true => Ok(()),
            false => Err(ModelError::Pattern { field, faults }),
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ModelError::Weights {
                head_only: true, ..
            } => Some("the checkpoint's head was made for other labels".to_string()),
            ModelError::Weights { .. } => Some(
                "the config and the weights come from different models, or a file is incomplete"
                    .to_string(),
            ),
            ModelError::NotPlainWeights { .. } => Some(
                "in Python, save the adapter by itself with `save_pretrained`, or the weights that `merge_and_unload` gives"
                    .to_string(),
            ),
            ModelError::AmbiguousNames { .. } => Some(
                "the checkpoint holds several models; save the one that is meant by itself".to_string(),
            ),
            ModelError::AdapterFit {
                base: Some(base), ..
            } => Some(format!("the adapter names `{base}` as its base")),
            ModelError::AdapterUnsupported(_) => Some(
                "in Python, fold the adapter in with PEFT's `merge_and_unload`, save that with `save_pretrained`, and pass --model with the folder in the place of --adapter".to_string(),
            ),
            ModelError::Pattern { field: "r", .. } => {
                Some("lower --r, or the layer's entry in --rank-pattern".to_string())
            }
            ModelError::Pattern { .. } => {
                Some("`lowrank inspect MODEL` lists the module names".to_string())
            }
            ModelError::NotFinite(_) => Some(
                "the values of the model or of its adapter are too large, or not numbers: `lowrank inspect --values` looks at them; a run that diverged needs a lower --learning-rate".to_string(),
            ),
            ModelError::Format(error) => error.hint(),
            ModelError::UnknownFamily { .. }
            | ModelError::UnsupportedConfig(_)
            | ModelError::AdapterConfig(_)
            | ModelError::AdapterFit { .. }
            | ModelError::Batch(_)
            | ModelError::State(_) => None,
        }
    }
}
