//! Settings as they are asked for, under the names of flags. What is absent is decided by the
//! model, the adapter and the rows.

use lowrank_data::{BadRows, LongRows, LossOn, NlgFormat, UnlabelledRows};
use lowrank_train::config::Task;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{RunError, RunResult};
use crate::hub::Hub;

/// Settings by name, as a file, flags or a request give them. Null is as absent.
pub type Settings = Map<String, Value>;

/// The settings that a struct has fields for.
///
/// # Errors
/// A value is of another kind than its setting.
pub fn typed<T: DeserializeOwned>(settings: &Settings) -> RunResult<T> {
    serde_json::from_value(Value::Object(settings.clone())).map_err(|error| misfit(&error))
}

/// Defaults with the settings that are given in their place.
///
/// # Errors
/// As [`typed`]; the message names the setting.
pub fn laid_over<T: Serialize + DeserializeOwned>(defaults: &T, given: &Settings) -> RunResult<T> {
    let defaults = serde_json::to_value(defaults).map_err(|error| misfit(&error))?;
    let with = |named: &dyn Fn(&str) -> bool| {
        let mut all = defaults.clone();
        for (name, value) in all.as_object_mut().into_iter().flatten() {
            let given = given.get(name).filter(|given| !given.is_null());
            if let Some(given) = given.filter(|_| named(name)) {
                *value = given.clone();
            }
        }
        serde_json::from_value::<T>(all)
    };
    with(&|_| true).map_err(|error| {
        for name in given.keys() {
            if let Err(error) = with(&|other| other == name) {
                return RunError::usage(format!("`{name}`: {error}"));
            }
        }
        misfit(&error)
    })
}

fn misfit(error: &serde_json::Error) -> RunError {
    RunError::usage(format!("the settings do not fit together: {error}"))
}

/// Which pretrained model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSettings {
    /// A Hugging Face directory, or an id like `org/name`.
    pub model: Option<String>,
    /// Revision of an id; `main` where absent.
    pub revision: Option<String>,
    /// Whether an adapter may be used that was trained on other weights.
    pub allow_other_base: Option<bool>,
    /// Where ids are looked up.
    #[serde(skip)]
    pub hub: Hub,
}

/// Which adapter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterSettings {
    /// Adapter directory or file, or the directory of a run; the bare model where absent.
    pub adapter: Option<String>,
    /// Numerator of the scaling alpha/r, for a loralib checkpoint, which does not hold it.
    pub lora_alpha: Option<f64>,
}

/// How rows are read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RowSettings {
    /// What is predicted; by the model or the labels where absent.
    pub task: Option<Task>,
    /// Names of the labels in the order of their class numbers; by the model or the rows where
    /// absent.
    pub labels: Option<Vec<String>>,
    /// Column of the text, or of a language model's prompt; found by its name where absent.
    pub text_column: Option<String>,
    /// Column of the second text, or of a language model's completion.
    pub text_pair_column: Option<String>,
    /// Column of what a language model's prompt is about.
    pub context_column: Option<String>,
    /// Column of the label; found by its name where absent.
    pub label_column: Option<String>,
    /// Columns of 0 and 1, each of which is a label.
    pub label_columns: Option<Vec<String>>,
    /// What becomes of rows without a label; an error where absent.
    pub unlabelled: Option<UnlabelledRows>,
    /// Whether the first line of a table is a row; it names the columns where absent.
    pub no_header: Option<bool>,
    /// Tokens a row at most; where absent 128, or 2,048 for chats and blocks of plain text.
    pub max_length: Option<usize>,
    /// What becomes of a longer row; it is cut where absent.
    pub long_rows: Option<LongRows>,
    /// What becomes of a row that cannot be used; the file is refused where absent.
    pub bad_rows: Option<BadRows>,
    /// The largest share of a file's rows that may be left out as unusable.
    pub max_bad_rows: Option<f64>,
    /// Which data set of text generation a file is of; told by how it begins where absent.
    pub data_format: Option<NlgFormat>,
    /// How a language model's prompt and completion are laid out.
    pub template: Option<String>,
    /// The chat template: a file, or its name; the adapter's or the model's own where absent.
    pub chat_template: Option<String>,
    /// Which part of a chat is learned; the assistant's turns where absent.
    pub loss_on: Option<LossOn>,
    /// What time it is for chat templates; now where absent.
    pub chat_time: Option<String>,
}

impl RowSettings {
    /// Rows for a language model, all else open.
    pub fn of_language() -> Self {
        Self {
            task: Some(Task::CausalLm),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use lowrank_train::config::LoraSettings;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_given_wins_and_what_cannot_be_is_named() {
        let defaults = LoraSettings::of("bert");
        let given = |value: Value| value.as_object().cloned().unwrap_or_default();
        let asked = given(json!({ "r": 2, "lora_alpha": 1, "bias": null, "seed": 7 }));
        let laid = laid_over(&defaults, &asked).unwrap();
        let wanted = LoraSettings {
            r: 2,
            lora_alpha: 1.0,
            ..defaults.clone()
        };
        assert_eq!(laid, wanted);
        let error = laid_over(&defaults, &given(json!({ "r": 2, "use_rslora": "maybe" })));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("`use_rslora`: invalid type"), "{error}");
    }
}
