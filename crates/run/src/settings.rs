//! Settings as they are asked for, under the names of flags. What is absent is decided by the model, the adapter and the rows.

use lowrank_data::{BadRows, LongRows, NlgFormat, UnlabelledRows};
use lowrank_train::config::TaskKind;
use serde::{Deserialize, Serialize};

use crate::hub::Hub;

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
    pub task: Option<TaskKind>,
    /// Names of the labels in the order of their class numbers; by the model or the rows where absent.
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
    /// Tokens a row at most; 128 where absent.
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
}

impl RowSettings {
    /// Rows for a language model, all else open.
    pub fn of_language() -> Self {
        Self {
            task: Some(TaskKind::CausalLm),
            ..Self::default()
        }
    }
}
