//! How a run fails: one message with its causes and a hint. Whoever shows it decides how; the kind
//! says whose fault it is.

use std::fmt;
use std::path::Path;

use lowrank_formats::files;

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something went wrong.
    Failure,
    /// The request itself cannot be, as a misspelt setting.
    Usage,
    /// A fault of the program itself.
    Internal,
    /// The run was told to stop.
    Interrupted,
}

/// A failure that is ready to be shown.
#[derive(Debug)]
pub struct RunError {
    kind: Kind,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

/// What everything here returns.
pub type RunResult<T = ()> = Result<T, RunError>;

impl RunError {
    /// Something went wrong.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    /// A request that cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The end of a run that was told to stop.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }

    /// A fault of the program itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// An error of a library with the errors that caused it.
    pub fn from_error(error: &dyn std::error::Error) -> Self {
        Self::failure(error.to_string()).caused_by(error.source())
    }

    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// The same with the chain of causes behind it; a cause that its parent already repeats is left
    /// out.
    pub fn caused_by(mut self, cause: Option<&(dyn std::error::Error + 'static)>) -> Self {
        let mut next = cause;
        while let Some(error) = next {
            let text = error.to_string();
            let known = self.causes.last().unwrap_or(&self.message);
            if !known.contains(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// The same with a hint: a command to run or an edit to make.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with a hint, where there is one and none stands yet.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = self.hint.or(hint);
        self
    }

    /// The same with the file or folder that it is about, unless the message names it already.
    pub fn about(mut self, path: &Path) -> Self {
        let shown = files::shown(path).to_string();
        if !self.message.contains(&shown) {
            self.message = format!("`{shown}`: {}", self.message);
        }
        self
    }

    /// The same as a usage error.
    pub fn into_usage(mut self) -> Self {
        self.kind = Kind::Usage;
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The failure as one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "error": self.message, "causes": self.causes, "hint": self.hint })
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, "\n  because: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RunError {}

impl From<lowrank_train::config::ConfigError> for RunError {
    fn from(error: lowrank_train::config::ConfigError) -> Self {
        Self::from_error(&error).into_usage()
    }
}

impl From<lowrank_train::metrics_log::MetricsLogError> for RunError {
    fn from(error: lowrank_train::metrics_log::MetricsLogError) -> Self {
        Self::from_error(&error)
    }
}

impl From<lowrank_train::trainer::TrainError> for RunError {
    fn from(error: lowrank_train::trainer::TrainError) -> Self {
        Self::from_error(&error).maybe_hint(error.hint())
    }
}

impl From<lowrank_formats::FormatError> for RunError {
    fn from(error: lowrank_formats::FormatError) -> Self {
        Self::from_error(&error).maybe_hint(error.hint())
    }
}

impl From<lowrank_data::DataError> for RunError {
    fn from(error: lowrank_data::DataError) -> Self {
        Self::from_error(&error).maybe_hint(error.hint())
    }
}

impl From<lowrank_data::TokenizerError> for RunError {
    fn from(error: lowrank_data::TokenizerError) -> Self {
        Self::from_error(&error).maybe_hint(error.hint())
    }
}

impl From<lowrank_model::ModelError> for RunError {
    fn from(error: lowrank_model::ModelError) -> Self {
        let inner = match &error {
            lowrank_model::ModelError::Format(format) => format.hint(),
            _ => None,
        };
        Self::from_error(&error)
            .maybe_hint(error.hint())
            .maybe_hint(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot open `a`")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn message_causes_and_hint_stand_on_their_lines() {
        let error =
            RunError::from_error(&Outer(std::io::Error::other("gone"))).hint("look elsewhere");
        assert_eq!(
            error.to_string(),
            "cannot open `a`\n  because: gone\nhint: look elsewhere"
        );
    }
}
