//! Finding a file's columns by their names, and those of labels by what they hold. Knows nothing of
//! what the user named.

use std::path::Path;

use lowrank_formats::nearest;

use super::names::{
    COMPLETIONS, CONTEXTS, CONVERSATIONS, HISTORIES, OTHER_SINGLES, SINGLES, SYSTEMS, TOOLS,
};
use super::{Beside, Columns, PromptColumns, TextColumns};
use crate::error::{ColumnRole, DataError, Naming};
use crate::labels::LabelMap;
use crate::labels::value::{bit_of_cell, is_gap};
use crate::rows::{Cell, FileFormat, Header, Table};

/// Columns of classes and of numbers, by the names that public data sets give them; in any case,
/// with blanks or hyphens for the low lines. The first two win over all others, of which only one
/// may be there.
const LABELS: [&str; 46] = [
    "label",
    "labels",
    "gold_label",
    "gold",
    "class",
    "classes",
    "class_label",
    "class_index",
    "target",
    "targets",
    "category",
    "categories",
    "topic",
    "topics",
    "sentiment",
    "airline_sentiment",
    "polarity",
    "score",
    "scores",
    "rating",
    "ratings",
    "stars",
    "star_rating",
    "overall",
    "intent",
    "emotion",
    "emotions",
    "stance",
    "is_spam",
    "spam",
    "toxicity",
    "is_toxic",
    "similarity",
    "similarity_score",
    "relatedness_score",
    "entailment_judgment",
    "is_duplicate",
    "quality",
    "acceptability",
    "coarse_label",
    "fine_label",
    "label_coarse",
    "label_fine",
    "tag",
    "genres",
    "y",
];
/// Whether a column has this name, but for case, blanks and hyphens.
fn is_called(column: &str, name: &str) -> bool {
    let plain = |c: char| match c {
        ' ' | '-' => '_',
        c => c.to_ascii_lowercase(),
    };
    column.chars().map(plain).eq(name.chars())
}

/// Columns of small whole numbers that are no labels.
const COUNTERS: [&str; 7] = ["id", "idx", "index", "", "guid", "row", "unnamed: 0"];
/// A file's columns.
pub(super) struct Finder<'a> {
    table: &'a Table,
    path: &'a Path,
    pub(super) columns: &'a [String],
    pub(super) format: FileFormat,
    pub(super) header: Header,
}

impl<'a> Finder<'a> {
    pub(super) fn new(table: &'a Table) -> Self {
        Self {
            table,
            path: table.path(),
            columns: table.columns(),
            format: table.format(),
            header: table.header(),
        }
    }

    /// A known pair of prompt and completion, or the prompt of a completion that was named.
    pub(super) fn completion(&self, named: Option<&str>) -> Option<(&'static str, &'static str)> {
        let fits = |completion: &str| named.map_or(self.has(completion), |name| name == completion);
        let mut pairs = COMPLETIONS.into_iter();
        pairs.find(|(prompt, completion)| self.has(prompt) && fits(completion))
    }

    /// A prompt that was found by its name, with what stands beside it.
    pub(super) fn around(&self, prompt: &str, completion: &str, beside: Beside) -> PromptColumns {
        let prompt_alone = PromptColumns {
            prompt: prompt.into(),
            ..PromptColumns::default()
        };
        let context = match beside {
            Beside::Nothing => return prompt_alone,
            Beside::Named(name) => Some(name),
            Beside::Found => CONTEXTS
                .into_iter()
                .find(|name| self.has(name) && ![prompt, completion].contains(name))
                .map(String::from),
        };
        PromptColumns {
            context,
            system: self.first(&SYSTEMS),
            history: self.first(&HISTORIES),
            ..prompt_alone
        }
    }

    /// A column of lists of turns.
    pub(super) fn turns(&self) -> Option<String> {
        let known = CONVERSATIONS.iter().filter_map(|name| self.first(&[name]));
        known.into_iter().find(|name| self.holds_turns(name))
    }

    /// Whether the first value of a column is a list of turns: objects with a speaker.
    pub(super) fn holds_turns(&self, column: &str) -> bool {
        let mut values = (self.table.rows().iter()).filter_map(|row| self.table.get(row, column));
        let first = values.next();
        first.is_some_and(|cell| crate::load::turns_of(&cell).is_some())
    }

    /// Chats in a column, with what belongs to them by its name.
    pub(super) fn chat(&self, turns: String) -> TextColumns {
        TextColumns::Chat {
            turns,
            system: self.first(&SYSTEMS),
            tools: self.first(&TOOLS),
        }
    }

    /// The error of a language model's file; conversations are named, because they are often what
    /// is there instead.
    pub(super) fn none_causal(&self, role: ColumnRole) -> DataError {
        match self.first(&CONVERSATIONS) {
            Some(column) => DataError::Conversations {
                path: self.path.into(),
                column,
            },
            None => self.none(role),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column == name)
    }

    pub(super) fn first(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find(|name| self.has(name))
            .map(|name| name.to_string())
    }

    /// The one text of a row by its name, in any case: the usual names in their order, then others
    /// of which one alone is there.
    pub(super) fn text(&self) -> Option<String> {
        let called =
            |name: &&'static str| self.columns.iter().find(|column| is_called(column, name));
        if let Some(column) = SINGLES.iter().find_map(called) {
            return Some(column.clone());
        }
        let mut others = OTHER_SINGLES.iter().filter_map(called);
        let column = others.next()?;
        others.next().is_none().then(|| column.clone())
    }

    /// The column of labels by its name: `label` before all others, of which only one may be there.
    pub(super) fn label(&self, taken: &Columns) -> Result<Option<String>, DataError> {
        let free = taken.ignored(self.table);
        let of_name = |name: &&str| free.iter().find(|column| is_called(column, name));
        let (first, others) = LABELS.split_at(2);
        if let Some(column) = first.iter().find_map(of_name) {
            return Ok(Some(column.clone()));
        }
        let is_known = |column: &&String| others.iter().any(|name| is_called(column, name));
        let found: Vec<String> = free.iter().filter(is_known).cloned().collect();
        match found.as_slice() {
            [] => Ok(None),
            [column] => Ok(Some(column.clone())),
            [..] => Err(DataError::SeveralColumnsFor {
                path: self.path.into(),
                role: ColumnRole::Label,
                columns: found,
            }),
        }
    }

    /// One column for each label: those of the classes' names, or all columns of 0 and 1 where none
    /// has the name of a label's column and holds something else.
    pub(super) fn column_each(
        &self,
        taken: &Columns,
        known: Option<&LabelMap>,
    ) -> Option<Vec<String>> {
        let free = taken.ignored(self.table);
        if let Some(known) = known {
            let all = known.names().iter().all(|name| free.contains(name));
            return (all && known.len() > 1).then(|| known.names().to_vec());
        }
        let is_counter = |name: &str| COUNTERS.contains(&name.to_lowercase().as_str());
        let bits = |column: &&String| !is_counter(column) && self.holds_bits(column);
        let columns: Vec<String> = free.iter().filter(bits).cloned().collect();
        let is_named = |column: &&String| LABELS.iter().any(|name| is_called(column, name));
        let mut named = free.iter().filter(is_named);
        let first = ["label", "labels"];
        let others = named.any(|name| {
            !columns.contains(name) || first.iter().any(|first| is_called(name, first))
        });
        (columns.len() > 1 && !others).then_some(columns)
    }

    /// Whether a column holds 0 and 1 and nothing else but gaps. One odd row of a hundred does not
    /// hide it.
    pub(super) fn holds_bits(&self, column: &str) -> bool {
        let (mut bits, mut others) = (0usize, 0usize);
        for row in self.table.rows() {
            match self.table.get(row, column) {
                Some(cell) if bit_of_cell(cell).is_some() => bits += 1,
                Some(Cell::Text(text)) if is_gap(text) => {}
                Some(_) => others += 1,
                None => {}
            }
            if others > 10 && others > bits {
                return false;
            }
        }
        bits > 100 * others
    }

    pub(super) fn ids(&self, input_ids: String) -> TextColumns {
        TextColumns::Ids {
            input_ids,
            token_type_ids: self.first(&["token_type_ids"]),
            attention_mask: self.first(&["attention_mask"]),
        }
    }

    pub(super) fn named(&self, name: &str, role: ColumnRole) -> Result<String, DataError> {
        if self.has(name) {
            return Ok(name.to_string());
        }
        Err(DataError::MissingColumn {
            path: self.path.into(),
            column: name.to_string(),
            role,
            columns: self.columns.to_vec(),
            nearest: nearest(name, self.columns).map(str::to_owned),
            naming: self.naming(),
        })
    }

    pub(super) fn none(&self, role: ColumnRole) -> DataError {
        DataError::NoColumnFor {
            path: self.path.into(),
            role,
            columns: self.columns.to_vec(),
            naming: self.naming(),
        }
    }

    /// Where the columns have their names from.
    pub(super) fn naming(&self) -> Naming {
        match (self.format, self.header) {
            (FileFormat::Csv | FileFormat::Tsv, Header::Present) => Naming::FirstLine,
            (FileFormat::Csv | FileFormat::Tsv, Header::Absent) => Naming::Place,
            (FileFormat::Jsonl | FileFormat::Text | FileFormat::Parquet, _) => Naming::Rows,
        }
    }
}
