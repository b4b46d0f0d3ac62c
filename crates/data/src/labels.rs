//! Labels: what a task expects of them, the map from names to classes, and reading them from a
//! cell. Knows nothing of files and tokens.

pub(crate) mod census;
pub(crate) mod several;
mod summary;
pub(crate) mod value;

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{LabelMapError, RowFaultKind};
use crate::rows::Cell;

pub use lowrank_formats::Task;
pub(crate) use summary::Naming;
pub use summary::{ClassCount, LabelBalance, LabelLayout, LabelOddity, LabelSummary};

/// A token label that counts for nothing, as in PyTorch and transformers.
pub const IGNORE_INDEX: i64 = -100;

/// The label of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// None, where labels are not needed.
    None,
    /// A class.
    Class(u32),
    /// 0 or 1 for each class.
    Multi(Vec<f32>),
    /// A finite number.
    Value(f32),
    /// A class or [`IGNORE_INDEX`] for each token.
    Tokens(Vec<i64>),
}

/// The names of the classes, in order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct LabelMap {
    names: Vec<String>,
    index: HashMap<String, u32>,
    all_numbers: bool,
    /// The classes of false and of true, where names say them in any case.
    truths: Option<[u32; 2]>,
}

/// Where the names of classes come from that rows are read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelOrigin {
    /// The rows that a run trains on.
    #[default]
    TrainingRows,
    /// The user named them.
    Flag,
    /// An adapter's notes.
    Adapter,
    /// The head of the checkpoint, which is to be trained on.
    TrainedHead,
    /// The head of the checkpoint, which stays as it is.
    Head,
}

impl LabelOrigin {
    /// Which names are meant, and what changes them.
    pub(crate) fn explain(self) -> &'static str {
        match self {
            Self::TrainingRows => {
                "the classes are those of the training rows; --labels names them all"
            }
            Self::Flag => "the classes are those that --labels names",
            Self::Adapter => {
                "the classes are those that the adapter was trained on; --labels gives its outputs other names"
            }
            Self::TrainedHead => {
                "the classes are those of the checkpoint's head (`id2label` in its config.json); --labels names yours, with --ignore-mismatched-sizes where their number is another"
            }
            Self::Head => {
                "the classes are those of the checkpoint's head (`id2label` in its config.json); --labels gives its outputs other names"
            }
        }
    }
}

/// What becomes of rows without a label where labels are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnlabelledRows {
    /// The file is refused, and the rows are named.
    #[default]
    Error,
    /// They are left out and counted.
    Drop,
}

impl TryFrom<Vec<String>> for LabelMap {
    type Error = LabelMapError;
    fn try_from(names: Vec<String>) -> Result<Self, LabelMapError> {
        Self::new(names)
    }
}

impl From<LabelMap> for Vec<String> {
    fn from(map: LabelMap) -> Self {
        map.names
    }
}

impl LabelMap {
    /// A map from names in order; they must differ.
    pub fn new(names: Vec<String>) -> Result<Self, LabelMapError> {
        if names.is_empty() {
            return Err(LabelMapError::Empty);
        }
        let mut index = HashMap::with_capacity(names.len());
        for (name, class) in names.iter().zip(0..) {
            if index.insert(name.clone(), class).is_some() {
                return Err(LabelMapError::Duplicate { name: name.clone() });
            }
        }
        let all_numbers = names.iter().all(|name| name.parse::<i64>().is_ok());
        let class_of = |word: &str| {
            let mut classes = names.iter().zip(0u32..);
            classes.find_map(|(name, class)| name.eq_ignore_ascii_case(word).then_some(class))
        };
        let truths = class_of("false").zip(class_of("true"));
        Ok(Self {
            truths: truths.map(|(no, yes)| [no, yes]),
            names,
            index,
            all_numbers,
        })
    }

    /// The map in a `config.json`'s `id2label`: an object of `"0"` to `"n-1"`.
    pub fn from_id2label(id2label: &Value) -> Result<Self, LabelMapError> {
        let fault = |problem: String| LabelMapError::Id2Label(problem);
        let object = id2label
            .as_object()
            .ok_or_else(|| fault("expected an object".into()))?;
        let mut names = vec![None; object.len()];
        for (id, name) in object {
            let slot = id
                .parse::<usize>()
                .ok()
                .and_then(|id| names.get_mut(id))
                .ok_or_else(|| {
                    fault(format!(
                        "key `{id}`: expected the numbers from 0 to {}",
                        object.len().saturating_sub(1)
                    ))
                })?;
            let name = name
                .as_str()
                .ok_or_else(|| fault(format!("key `{id}`: expected a name")))?;
            *slot = Some(name.to_string());
        }
        let names: Option<Vec<String>> = names.into_iter().collect();
        Self::new(names.ok_or_else(|| fault("a key stands twice in different spellings".into()))?)
    }

    /// A map learned from the names found in data: numbers in order of size, or else names in
    /// alphabetical order. Where 0 occurs, numbers that do not occur are classes too, so that a
    /// number is its class whatever a file lacks; not where most would be missing (Sentiment140
    /// writes 0 and 4 for two classes).
    pub fn learn<'a>(found: impl IntoIterator<Item = &'a str>) -> Result<Self, LabelMapError> {
        let found: BTreeSet<&str> = found.into_iter().collect();
        let mut names: Vec<String> = found.into_iter().map(str::to_string).collect();
        let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
        if let Some(numbers) = numbers {
            let mut pairs: Vec<(i64, String)> = numbers.into_iter().zip(names).collect();
            pairs.sort();
            let (first, last) = (pairs.first().map(|p| p.0), pairs.last().map_or(0, |p| p.0));
            let plain = pairs
                .iter()
                .all(|(number, name)| number.to_string() == *name);
            names = match usize::try_from(last) {
                Ok(last) if first == Some(0) && plain && last < 2 * pairs.len() => {
                    (0..=last).map(|number| number.to_string()).collect()
                }
                Ok(_) | Err(_) => pairs.into_iter().map(|(_, name)| name).collect(),
            };
        }
        Self::new(names)
    }

    /// The names, in order of the class numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of classes; at least one.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the names are only transformers' stand-ins `LABEL_0`, `LABEL_1`, ….
    pub fn is_placeholder(&self) -> bool {
        self.names
            .iter()
            .enumerate()
            .all(|(i, name)| *name == format!("LABEL_{i}"))
    }

    /// Whether a class has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Whether all names are whole numbers.
    pub fn is_of_numbers(&self) -> bool {
        self.all_numbers
    }

    /// The class of a label: by name, or by number where the names are not numbers themselves.
    /// `true` and `false` in any case are one thing, and stand for 1 and 0 where two classes have
    /// other names.
    pub fn class(&self, label: &str) -> Option<u32> {
        if let Some(class) = self.index.get(label) {
            return Some(*class);
        }
        if let Some(truth) = value::truth_of(label) {
            return self.class_of_truth(truth);
        }
        let number = label.parse::<u32>().ok().filter(|_| !self.all_numbers)?;
        // With `true` as class 0 of two, the number 1 would say two things.
        if self.names.len() == 2 && self.truths == Some([1, 0]) {
            return None;
        }
        ((number as usize) < self.names.len()).then_some(number)
    }

    fn class_of_truth(&self, truth: bool) -> Option<u32> {
        if let Some(truths) = self.truths {
            return Some(truths[usize::from(truth)]);
        }
        match (self.names.len(), self.all_numbers) {
            (2, true) => self.index.get(if truth { "1" } else { "0" }).copied(),
            (2, false) => Some(truth.into()),
            _ => None,
        }
    }
}

pub(crate) fn wrong(cell: &Cell, expected: &'static str) -> RowFaultKind {
    RowFaultKind::WrongType {
        expected,
        found: cell.describe(),
    }
}
