//! What is predicted: the one list that files, rows, heads and runs go by.

use serde::{Deserialize, Serialize};

use crate::peft::TaskType;

/// What is predicted, and so the loss, the metrics and the form of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One of several classes for a sequence; cross-entropy.
    SingleLabel,
    /// Any of several classes for a sequence; binary cross-entropy.
    MultiLabel,
    /// A number for a sequence; mean squared error.
    Regression,
    /// One of several classes for each word or token; cross-entropy.
    TokenClassification,
    /// The next token of the vocabulary; cross-entropy.
    CausalLm,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 5] = [
        Task::SingleLabel,
        Task::MultiLabel,
        Task::Regression,
        Task::TokenClassification,
        Task::CausalLm,
    ];

    /// The name as written in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Task::SingleLabel => "single_label",
            Task::MultiLabel => "multi_label",
            Task::Regression => "regression",
            Task::TokenClassification => "token_classification",
            Task::CausalLm => "causal_lm",
        }
    }

    /// transformers' `problem_type`, or `token_classification` or `causal_lm`.
    pub fn problem_type(self) -> &'static str {
        match self {
            Task::SingleLabel => "single_label_classification",
            Task::MultiLabel => "multi_label_classification",
            Task::Regression | Task::TokenClassification | Task::CausalLm => self.name(),
        }
    }

    /// PEFT's `task_type`.
    pub fn peft_type(self) -> TaskType {
        match self {
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                TaskType::SequenceClassification
            }
            Task::TokenClassification => TaskType::TokenClassification,
            Task::CausalLm => TaskType::CausalLm,
        }
    }

    /// Whether there is a label for each token, not for a sequence.
    pub fn is_per_token(self) -> bool {
        match self {
            Task::TokenClassification | Task::CausalLm => true,
            Task::SingleLabel | Task::MultiLabel | Task::Regression => false,
        }
    }

    /// Whether labels have names.
    pub fn has_label_names(self) -> bool {
        match self {
            Task::SingleLabel | Task::MultiLabel | Task::TokenClassification => true,
            Task::Regression | Task::CausalLm => false,
        }
    }
}
