//! The pre-flight: what the model will see of a data set, and what is odd about it. Counts and
//! shows; changes nothing.

mod render;
mod spans;
mod unread;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::batch::Padding;
use crate::columns::{Columns, TextColumns};
pub use crate::labels::{ClassCount, LabelBalance};
use crate::labels::{IGNORE_INDEX, Label, LabelMap};
use crate::load::{Example, LoadReport, Loaded};
use crate::order::Order;
use crate::rows::{Cell, Row, Table};
use crate::tokenizer::Tokenizer;
pub use spans::Run;

/// How many lines a finding names; it always says how many there are in all.
const LINES_SHOWN: usize = 5;

/// A file to look at, and what was loaded from it.
#[derive(Debug, Clone, Copy)]
pub struct CheckFile<'a> {
    /// What it is for: `train`, `validation`, ….
    pub name: &'a str,
    /// Its rows.
    pub table: &'a Table,
    /// Its examples.
    pub loaded: &'a Loaded,
}

/// What to count with.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Rows a batch, for the count of padding; at least 1.
    pub batch_size: usize,
    /// Rows to show decoded.
    pub samples: usize,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// Rows a batch, in the count of padding.
    pub batch_size: usize,
    /// Each file by itself.
    pub files: Vec<FileCheck>,
    /// Texts that stand in two files.
    pub leaks: Vec<Leak>,
    /// What a user should look at, one sentence each; empty if nothing is odd.
    pub warnings: Vec<String>,
}

/// One file.
#[derive(Debug, Clone, Serialize)]
pub struct FileCheck {
    /// What it is for.
    pub name: String,
    /// How it was loaded: columns, rows cut and dropped.
    pub load: LoadReport,
    /// Columns that are not read, and hold texts.
    pub unread_texts: Vec<String>,
    /// Tokens a row.
    pub lengths: Lengths,
    /// What the labels are.
    pub labels: LabelBalance,
    /// Rows whose text stands earlier in the file.
    pub duplicates: Pairs,
    /// Those of them with another label.
    pub conflicts: Pairs,
    /// Rows without any text.
    pub empty_texts: Lines,
    /// Rows of which no label counts (token classification).
    pub unsupervised: Lines,
    /// What of the rows a language model is trained on; absent for other tasks.
    pub loss: Option<LossCheck>,
    /// Tokens that the vocabulary does not know.
    pub unknown_tokens: u64,
    /// Their share of all tokens, from 0 to 1.
    pub unknown_share: f64,
    /// What padding each shuffled batch to its longest row would cost.
    pub padding: Padding,
    /// The share of that which would be padding, from 0 to 1: work that packed batches do not do.
    pub padding_share: f64,
    /// The first rows, as the model sees them.
    pub samples: Vec<Sample>,
}

/// What of the rows a language model is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LossCheck {
    /// Tokens that count in the loss.
    pub tokens: u64,
    /// Rows of tokens: a file's row may give several, one for each turn of a chat.
    pub rows: usize,
    /// Rows whose last counted token is the end token, or another special one, as ends a turn of a
    /// chat: only from them a model learns to stop.
    pub rows_with_end: usize,
    /// Rows that lost it because they were cut.
    pub rows_without_end_cut: usize,
}

fn loss(loaded: &Loaded, tokenizer: Option<&Tokenizer>) -> Option<LossCheck> {
    // Without a map of classes, labels of tokens are tokens.
    if loaded.label_map.is_some() {
        return None;
    }
    let mut check = LossCheck {
        tokens: 0,
        rows: loaded.examples.len(),
        rows_with_end: 0,
        rows_without_end_cut: 0,
    };
    let mut is_causal = false;
    for example in loaded.examples.iter() {
        if let Label::Tokens(labels) = &example.label {
            is_causal = true;
            let counted = labels.iter().filter_map(|label| u32::try_from(*label).ok());
            let counted: Vec<u32> = counted.collect();
            check.tokens += counted.len() as u64;
            let ends = tokenizer.is_some_and(|tokenizer| ends(&counted, tokenizer));
            check.rows_with_end += usize::from(ends);
            check.rows_without_end_cut += usize::from(!ends && example.truncated_tokens > 0);
        }
    }
    is_causal.then_some(check)
}

/// Whether tokens end with a special one. Templates put a line's end behind those of turns.
fn ends(tokens: &[u32], tokenizer: &Tokenizer) -> bool {
    match tokens {
        [.., last] if tokenizer.is_special(*last) => true,
        [.., before, last] if tokenizer.is_special(*before) => tokenizer
            .decode(&[*last])
            .is_ok_and(|text| text.trim().is_empty()),
        _ => false,
    }
}

/// Tokens a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest row.
    pub min: usize,
    /// Half of the rows are no longer.
    pub median: usize,
    /// 95 in 100 rows are no longer.
    pub p95: usize,
    /// The longest row.
    pub max: usize,
    /// On average.
    pub mean: f64,
}

impl Lengths {
    /// Of a list of lengths; all 0 for an empty one.
    pub fn of(lengths: &[usize]) -> Self {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        // The nearest-rank definition: always a length that occurs.
        let rank = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        let total: usize = sorted.iter().sum();
        Self {
            min: sorted.first().copied().unwrap_or(0),
            median: rank(0.5),
            p95: rank(0.95),
            max: sorted.last().copied().unwrap_or(0),
            mean: total as f64 / sorted.len().max(1) as f64,
        }
    }
}

/// Pairs of lines: the first use of a text, and a later one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Pairs {
    /// How many later lines there are.
    pub count: usize,
    /// The first few pairs of lines.
    pub lines: Vec<(u64, u64)>,
}

impl Pairs {
    fn add(&mut self, first: u64, later: u64) {
        self.count += 1;
        if self.lines.len() < LINES_SHOWN {
            self.lines.push((first, later));
        }
    }
}

/// Lines with something in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lines {
    /// How many.
    pub count: usize,
    /// The first few.
    pub lines: Vec<u64>,
}

impl Lines {
    /// The lines that are named, and how many more there are.
    pub(crate) fn describe(&self) -> String {
        let shown = self.lines.iter().map(|line| format!("line {line}"));
        render::more(shown.collect(), self.count)
    }

    pub(crate) fn add(&mut self, line: u64) {
        self.count += 1;
        if self.lines.len() < LINES_SHOWN {
            self.lines.push(line);
        }
    }
}

/// Texts that stand in two files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// The earlier file.
    pub first: String,
    /// The later one.
    pub second: String,
    /// Rows of the second whose text stands in the first, with the lines in both.
    pub rows: Pairs,
}

/// A row as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Its line.
    pub line: u64,
    /// Its tokens.
    pub tokens: usize,
    /// Tokens that were cut off.
    pub truncated_tokens: u32,
    /// Decoded, special tokens visible; the ids if there is no tokenizer.
    pub text: String,
    /// Its label by name.
    pub label: String,
    /// What of a language model's row is learned, and what is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
}

/// Looks at files together. Rows that were dropped as too long still count as duplicates and leaks.
pub fn check(
    files: &[CheckFile],
    tokenizer: Option<&Tokenizer>,
    options: &CheckOptions,
) -> CheckReport {
    let keys: Vec<Vec<String>> = files
        .iter()
        .map(|file| keys_of(file.table, &file.loaded.report.columns))
        .collect();
    let checked: Vec<FileCheck> = files
        .iter()
        .zip(&keys)
        .map(|(file, keys)| check_file(file, keys, tokenizer, options))
        .collect();
    let mut leaks = Vec::new();
    for (i, first) in files.iter().enumerate() {
        for (j, second) in files.iter().enumerate().skip(i + 1) {
            leaks.extend(leak(first, &keys[i], second, &keys[j]));
        }
    }
    let mut report = CheckReport {
        batch_size: options.batch_size.max(1),
        files: checked,
        leaks,
        warnings: Vec::new(),
    };
    report.warnings = render::warnings(&report);
    report
}

/// What makes two rows the same: their texts without blanks around them, or their ids.
fn keys_of(table: &Table, columns: &Columns) -> Vec<String> {
    let part = |row: &Row, column: &str| match table.get(row, column) {
        Some(Cell::Text(text)) => text.trim().to_string(),
        Some(Cell::Json(value)) => match value.as_str() {
            Some(text) => text.trim().to_string(),
            None => value.to_string(),
        },
        None => String::new(),
    };
    let key = |row: &Row| match &columns.text {
        TextColumns::Text { text, pair: None } => part(row, text),
        TextColumns::Text {
            text,
            pair: Some(pair),
        } => format!("{}\u{1f}{}", part(row, text), part(row, pair)),
        TextColumns::Completion { prompt, completion } => {
            let parts = prompt.all().chain([completion]);
            let parts: Vec<String> = parts.map(|column| part(row, column)).collect();
            parts.join("\u{1f}")
        }
        TextColumns::Chat { turns, .. } => part(row, turns),
        TextColumns::Words { words } => part(row, words),
        TextColumns::Ids { input_ids, .. } => part(row, input_ids),
    };
    table.rows().iter().map(key).collect()
}

fn check_file(
    file: &CheckFile,
    keys: &[String],
    tokenizer: Option<&Tokenizer>,
    options: &CheckOptions,
) -> FileCheck {
    let loaded = file.loaded;
    let lengths = loaded.lengths();
    let repeats = repeats(file, keys);
    let mut unsupervised = Lines::default();
    for example in loaded.examples.iter() {
        if let Label::Tokens(labels) = &example.label
            && labels.iter().all(|label| *label == IGNORE_INDEX)
        {
            unsupervised.add(example.line);
        }
    }
    let unknown_tokens = tokenizer.and_then(Tokenizer::unk_id).map_or(0, |unk| {
        loaded
            .examples
            .iter()
            .flat_map(|example| &example.input_ids)
            .filter(|id| **id == unk)
            .count() as u64
    });
    let shuffled = Order {
        seed: 0,
        shuffle: true,
    }
    .epoch(0, lengths.len());
    let shuffled: Vec<usize> = shuffled
        .into_iter()
        .map(|row| lengths[row as usize])
        .collect();
    let padding = Padding::of(&shuffled, options.batch_size.max(1));
    FileCheck {
        name: file.name.to_string(),
        load: loaded.report.clone(),
        unread_texts: unread::texts(file.table, &loaded.report.columns),
        lengths: Lengths::of(&lengths),
        labels: loaded.report.labels.balance.clone(),
        duplicates: repeats.duplicates,
        conflicts: repeats.conflicts,
        empty_texts: repeats.empty_texts,
        unsupervised,
        loss: loss(loaded, tokenizer),
        unknown_tokens,
        unknown_share: unknown_tokens as f64 / loaded.report.tokens.max(1) as f64,
        padding,
        padding_share: padding.share(),
        samples: loaded
            .examples
            .iter()
            .take(options.samples)
            .map(|example| sample(example, loaded.label_map.as_ref(), tokenizer))
            .collect(),
    }
}

/// What looking at the texts alone finds.
struct Repeats {
    duplicates: Pairs,
    conflicts: Pairs,
    empty_texts: Lines,
}

fn repeats(file: &CheckFile, keys: &[String]) -> Repeats {
    let by_line: HashMap<u64, &Example> = file
        .loaded
        .examples
        .iter()
        .map(|example| (example.line, example))
        .collect();
    let mut first_use: HashMap<&str, u64> = HashMap::new();
    let (mut duplicates, mut conflicts, mut empty_texts) =
        (Pairs::default(), Pairs::default(), Lines::default());
    for (row, key) in file.table.rows().iter().zip(keys) {
        if key.trim_matches('\u{1f}').is_empty() {
            empty_texts.add(row.line);
        }
        let first = *first_use.entry(key).or_insert(row.line);
        if first == row.line {
            continue;
        }
        duplicates.add(first, row.line);
        if let (Some(one), Some(other)) = (by_line.get(&first), by_line.get(&row.line))
            && one.label != other.label
        {
            conflicts.add(first, row.line);
        }
    }
    Repeats {
        duplicates,
        conflicts,
        empty_texts,
    }
}

fn leak(
    first: &CheckFile,
    first_keys: &[String],
    second: &CheckFile,
    second_keys: &[String],
) -> Option<Leak> {
    let mut lines: HashMap<&str, u64> = HashMap::new();
    for (row, key) in first.table.rows().iter().zip(first_keys) {
        lines.entry(key).or_insert(row.line);
    }
    let mut rows = Pairs::default();
    for (row, key) in second.table.rows().iter().zip(second_keys) {
        if let Some(line) = lines.get(key.as_str()) {
            rows.add(*line, row.line);
        }
    }
    (rows.count > 0).then(|| Leak {
        first: first.name.to_string(),
        second: second.name.to_string(),
        rows,
    })
}

fn sample(example: &Example, map: Option<&LabelMap>, tokenizer: Option<&Tokenizer>) -> Sample {
    let text = tokenizer
        .and_then(|tokenizer| tokenizer.decode(&example.input_ids).ok())
        .unwrap_or_else(|| format!("{:?}", example.input_ids));
    Sample {
        line: example.line,
        tokens: example.input_ids.len(),
        truncated_tokens: example.truncated_tokens,
        text,
        label: label_text(example, map, tokenizer),
        runs: match map {
            Some(_) => Vec::new(),
            None => spans::runs(example, tokenizer),
        },
    }
}

fn label_text(example: &Example, map: Option<&LabelMap>, tokenizer: Option<&Tokenizer>) -> String {
    let name = |class: usize| match map.and_then(|map| map.names().get(class)) {
        Some(name) => name.clone(),
        None => class.to_string(),
    };
    match &example.label {
        Label::None => "-".into(),
        Label::Class(class) => name(*class as usize),
        Label::Multi(values) => {
            let on = values.iter().enumerate().filter(|(_, value)| **value > 0.0);
            on.map(|(class, _)| name(class))
                .collect::<Vec<_>>()
                .join(" | ")
        }
        Label::Value(value) => value.to_string(),
        Label::Tokens(labels) if map.is_none() => counted_text(labels, tokenizer),
        Label::Tokens(labels) => {
            let counted = example
                .input_ids
                .iter()
                .zip(labels)
                .filter_map(|(id, label)| {
                    let class = usize::try_from(*label).ok()?;
                    let token = tokenizer
                        .and_then(|t| t.token(*id))
                        .unwrap_or_else(|| id.to_string());
                    Some(format!("{token}/{}", name(class)))
                });
            counted.collect::<Vec<_>>().join(" ")
        }
    }
}

/// The runs of tokens that count in a language model's loss, decoded.
fn counted_text(labels: &[i64], tokenizer: Option<&Tokenizer>) -> String {
    let runs = labels.split(|label| *label == IGNORE_INDEX);
    let text = |run: &[i64]| {
        let ids: Vec<u32> = run
            .iter()
            .filter_map(|id| u32::try_from(*id).ok())
            .collect();
        let decoded = tokenizer.and_then(|tokenizer| tokenizer.decode(&ids).ok());
        format!("«{}»", decoded.unwrap_or_else(|| format!("{ids:?}")))
    };
    let runs: Vec<String> = runs.filter(|run| !run.is_empty()).map(text).collect();
    runs.join(" … ")
}

/// The classes that occur in a file, for the warning on files that differ.
fn classes_seen(file: &FileCheck) -> HashSet<&str> {
    match &file.labels {
        LabelBalance::Classes { counts, .. } => counts
            .iter()
            .filter(|class| class.count > 0)
            .map(|class| class.name.as_str())
            .collect(),
        LabelBalance::None | LabelBalance::Numbers { .. } => HashSet::new(),
    }
}
