//! Our notes beside an adapter's own files, which stay as PEFT writes them: whole and understood,
//! or an error, as an adapter whose notes are dropped predicts under other names.

use std::path::Path;

use lowrank_engine::BaseFormat;
use lowrank_formats::RunDir;
use lowrank_formats::files::{self, Ceiling, write_atomic};
use lowrank_train::base::BaseId;
use lowrank_train::checkpoint::{CheckpointError, RunState, STATE_FILE};
use lowrank_train::config::Task;
use lowrank_train::seal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::ChatNotes;
use crate::error::{RunError, RunResult};
use crate::probe::Probe;
use crate::rows::template_of;

/// The name of the file.
const NOTES_FILE: &str = "lowrank.json";

/// What an adapter was trained for and on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterNotes {
    /// What the adapter predicts.
    pub task: Task,
    /// Names of the labels.
    pub labels: Vec<String>,
    /// Rows were cut to this many tokens.
    pub max_length: usize,
    /// The base as it was named.
    pub base_model: String,
    /// SHA-256 of the files of the base's weights, as older versions noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_sha256: Option<String>,
    /// What the base was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseId>,
    /// The blocks that the base's weights were put into when they were read; none where they were
    /// as the base has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_format: Option<BaseFormat>,
    /// How a language model's prompts and completions were laid out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// How its chats were laid out, where it was trained on some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatNotes>,
    /// What the base made of a probe text and a probe chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

impl AdapterNotes {
    /// Writes them into a directory.
    pub fn write(&self, dir: &Path) -> RunResult {
        let json = seal::seal(self).map_err(|error| RunError::from_error(&error))?;
        Ok(write_atomic(&dir.join(NOTES_FILE), &json)?)
    }

    /// Those of a directory, or of the run state of a checkpoint; none where another program wrote
    /// the adapter.
    ///
    /// # Errors
    /// They are damaged, or missing where a run has written them.
    pub fn read(dir: &Path) -> RunResult<Option<Self>> {
        let file = dir.join(NOTES_FILE);
        match files::read_if_there(&file, Ceiling::JSON)? {
            Some(bytes) => Self::parse(&bytes)
                .map(Some)
                .map_err(|reason| unusable(&file, &reason)),
            None => match Self::of_state(dir)? {
                None if dir.parent().is_some_and(RunDir::is_run) => {
                    Err(unusable(&file, "it is missing, but the run wrote it"))
                }
                notes => Ok(notes),
            },
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let opened = seal::open(bytes).map_err(|error| error.to_string())?;
        let notes: Self = serde_json::from_value(Value::Object(opened.object))
            .map_err(|error| error.to_string())?;
        if notes.max_length == 0 {
            return Err("`max_length` is 0, expected at least 1".to_owned());
        }
        if notes.task.has_label_names() == notes.labels.is_empty() {
            let (task, n) = (notes.task.name(), notes.labels.len());
            return Err(format!("`task` is {task}, with {n} names of labels"));
        }
        Ok(notes)
    }

    /// What the state of a checkpoint says, if the folder is one.
    fn of_state(dir: &Path) -> RunResult<Option<Self>> {
        let Some(bytes) = files::read_if_there(&dir.join(STATE_FILE), Ceiling::JSON)? else {
            return Ok(None);
        };
        // Other programs keep files of that name too.
        let is_ours = files::exists(&dir.join("state.safetensors"))
            || serde_json::from_slice::<Value>(&bytes).is_ok_and(|v| v.get("layout").is_some());
        if !is_ours {
            return Ok(None);
        }
        let state = RunState::read(dir).map_err(|error| match error {
            CheckpointError::Invalid { .. } => {
                RunError::from_error(&error).hint("name another checkpoint of the run")
            }
            error => RunError::from_error(&error),
        })?;
        let template = template_of(&state.config.data);
        Ok(Some(Self {
            task: state.config.data.task,
            labels: state.config.data.labels,
            max_length: state.config.data.max_length,
            base_model: state.config.model,
            base_sha256: None,
            base: state.base,
            base_format: quantised(state.config.numerics.base_format),
            template,
            // The template of a run that is under way is found as the run finds it.
            chat: None,
            probe: None,
        }))
    }
}

/// The format, where weights lose something by it that an adapter learns to mend.
pub(crate) fn quantised(format: BaseFormat) -> Option<BaseFormat> {
    matches!(
        format,
        BaseFormat::Nf4 | BaseFormat::Q4_0 | BaseFormat::Q8_0
    )
    .then_some(format)
}

fn unusable(file: &Path, reason: &str) -> RunError {
    RunError::failure(format!(
        "the adapter's notes in `{}` cannot be used: {reason}",
        file.display()
    ))
    .hint(
        "put the file back as it was; or copy adapter_config.json and adapter_model.safetensors to a folder of their own, and pass --task, --labels and --max-length",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> AdapterNotes {
        AdapterNotes {
            task: Task::SingleLabel,
            labels: vec!["high".to_owned(), "low".to_owned()],
            max_length: 64,
            base_model: "lab/model".to_owned(),
            base_sha256: None,
            base: Some(BaseId::default()),
            base_format: None,
            template: None,
            chat: None,
            probe: None,
        }
    }

    #[test]
    fn notes_come_back_and_every_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(AdapterNotes::read(dir.path()).unwrap(), None);
        notes().write(dir.path()).unwrap();
        assert_eq!(AdapterNotes::read(dir.path()).unwrap(), Some(notes()));
        let file = dir.path().join(NOTES_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        let damaged = [
            text.replace("high", "hibh"),
            text.replace("64", "65"),
            text.replace("\"checksum\"", "\"checksun\""),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ];
        for damaged in damaged {
            std::fs::write(&file, &damaged).unwrap();
            let error = AdapterNotes::read(dir.path()).unwrap_err().to_string();
            assert!(
                error.contains(NOTES_FILE) && error.contains("hint: "),
                "{error}"
            );
        }
    }

    #[test]
    fn notes_of_older_versions_are_read_strictly() {
        let old = r#"{"task": "single_label", "labels": ["a", "b"], "max_length": 64, "base_model": "m", "base_sha256": "00"}"#;
        assert!(AdapterNotes::parse(old.as_bytes()).is_ok());
        for (from, to) in [
            ("max_length", "max_lengtl"),
            ("64", "0"),
            ("64", "\"64\""),
            ("[\"a\", \"b\"]", "[]"),
            ("[\"a\", \"b\"]", "null"),
            ("single_label", "single_lable"),
            ("base_sha256", "base_sha255"),
        ] {
            let damaged = old.replace(from, to);
            assert!(
                AdapterNotes::parse(damaged.as_bytes()).is_err(),
                "{damaged}"
            );
        }
    }
}
