//! Predictions of token classification that can be laid beside the input: one label a word for rows
//! of words, spans of characters for texts, neighbours merged on request. Rows of ids have one
//! label a token.
//! Source: transformers `TokenClassificationPipeline`.

use std::collections::HashMap;
use std::path::Path;

use lowrank_data::{
    Cell, ColumnRole, DataError, FileFormat, Header, LoadSpec, Loaded, Row, Span, Table, Task,
    TextColumns, Tokenizer, examples_from_table, read_table, words_of,
};
use lowrank_train::entities::begins_and_kind;
use lowrank_train::metrics::argmax;
use serde_json::{Map, Value, json};

use super::{Aggregation, Source, by_label, floats, softmax};
use crate::base::Head;
use crate::error::{RunError, RunResult};
use crate::loaded::LoadedModel;
use crate::rows::{load_spec, unlabelled};
use crate::settings::RowSettings;

/// What a row's tokens belong to.
enum Beside {
    /// Nothing: the row is one of ids.
    Ids,
    /// Words, and the tokens of each, the first of them first; none of a word that was cut off.
    Words(Vec<String>, Vec<Vec<usize>>),
    /// A text, and where each token stands in it.
    Text(String, Vec<Option<Span>>),
}

/// Rows of token classification, and what their predictions are laid beside.
pub struct TokenRows {
    /// The rows, and what was read of them.
    pub loaded: Loaded,
    beside: Vec<Beside>,
}

/// Columns of a text, where a file has no column of words.
const TEXTS: [&str; 4] = ["text", "sentence", "content", "document"];

impl TokenRows {
    /// Reads the rows: a file of words, of texts or of ids, or texts themselves.
    pub fn read(source: &Source<'_>, data: &RowSettings, loaded: &LoadedModel) -> RunResult<Self> {
        let spec = |data: &RowSettings| {
            let task = loaded.head.task;
            load_spec(&loaded.base, data, task, None, loaded.max_length).map(unlabelled)
        };
        match source {
            Source::File(path) => {
                let (spec, device) = (spec(data)?, loaded.model.device());
                let table = device.install(|| read_table(Path::new(path), &spec))?;
                device.install(|| Self::from_table(&table, spec, loaded))
            }
            Source::Texts(texts) => {
                let lines: Vec<String> = (texts.iter())
                    .map(|text| json!({ "text": text }).to_string())
                    .collect();
                let table = Table::parse(
                    Path::new("the texts given"),
                    lines.join("\n").into_bytes(),
                    FileFormat::Jsonl,
                    Header::Present,
                )?;
                let data = RowSettings {
                    text_column: None,
                    text_pair_column: None,
                    ..data.clone()
                };
                Self::from_table(&table, spec(&data)?, loaded)
            }
        }
    }

    fn from_table(table: &Table, spec: LoadSpec, loaded: &LoadedModel) -> RunResult<Self> {
        let tokenizer = loaded.base.tokenizer.as_ref();
        let read = |spec: &LoadSpec| examples_from_table(table, spec, tokenizer.ok());
        // As a classifier reads texts: the same ids, and no words are asked for.
        let as_texts = |mut spec: LoadSpec, column: String| {
            spec.task = Task::SingleLabel;
            spec.columns.text = Some(column);
            (read(&spec), spec)
        };
        let (rows, spec) = match text_column(table, &spec) {
            Some(column) => as_texts(spec, column),
            None => match (read(&spec), first_text(table)) {
                (
                    Err(DataError::NoColumnFor {
                        role: ColumnRole::Words,
                        ..
                    }),
                    Some(column),
                ) => as_texts(spec, column),
                (rows, _) => (rows, spec),
            },
        };
        let loaded_rows = rows.map_err(|error| loaded.base.data_error(error))?;
        let by_line: HashMap<u64, &Row> = table.rows().iter().map(|r| (r.line, r)).collect();
        let beside = loaded_rows.examples.iter().map(|example| {
            let row = by_line.get(&example.line).copied();
            let (Some(row), Ok(tokenizer)) = (row, tokenizer) else {
                return Ok(Beside::Ids);
            };
            beside(
                table,
                row,
                &loaded_rows.report.columns.text,
                tokenizer,
                &spec,
            )
        });
        Ok(Self {
            beside: beside.collect::<RunResult<_>>()?,
            loaded: loaded_rows,
        })
    }

    /// Words that were cut off for length, in all rows.
    pub fn cut_words(&self) -> usize {
        let cut = |beside: &Beside| match beside {
            Beside::Words(_, tokens) => tokens.iter().filter(|t| t.is_empty()).count(),
            Beside::Ids | Beside::Text(..) => 0,
        };
        self.beside.iter().map(cut).sum()
    }

    /// The line of one row, from the logits of its tokens.
    pub fn line(
        &self,
        row: usize,
        head: &Head,
        logits: &[f32],
        asked: Option<Aggregation>,
    ) -> RunResult<Value> {
        let example = &self.loaded.examples[row];
        let mut line = Map::new();
        line.insert("line".to_owned(), json!(example.line));
        let logits: Vec<&[f32]> = logits.chunks_exact(head.num_labels).collect();
        match &self.beside[row] {
            Beside::Ids => {
                if asked.is_some_and(|asked| asked != Aggregation::None) {
                    return Err(RunError::usage(format!(
                        "line {}: a row of ids has no words to merge labels of",
                        example.line
                    ))
                    .hint("leave --aggregation-strategy out, or give rows of words or texts"));
                }
                line.insert("input_ids".to_owned(), json!(example.input_ids));
                add_labels(&mut line, head, logits.iter().map(|row| Some(*row)));
            }
            Beside::Words(words, tokens) => {
                line.insert("words".to_owned(), json!(words));
                let first = |tokens: &Vec<usize>| tokens.first().map(|at| logits[*at]);
                add_labels(&mut line, head, tokens.iter().map(first));
                let cut = tokens.iter().filter(|tokens| tokens.is_empty()).count();
                if cut > 0 {
                    line.insert("cut_words".to_owned(), json!(cut));
                }
                let strategy = asked.unwrap_or(Aggregation::None);
                if strategy != Aggregation::None {
                    let units = units_of_words(tokens, head, &logits, strategy);
                    let entities = merged(&units, head).into_iter().map(|entity| {
                        json!({
                            "label": entity.label, "score": entity.score,
                            "word": words[entity.start..entity.end].join(" "),
                            "start_word": entity.start, "end_word": entity.end,
                        })
                    });
                    line.insert("entities".to_owned(), entities.collect());
                }
            }
            Beside::Text(text, spans) => {
                let chars: Vec<char> = text.chars().collect();
                let strategy = asked.unwrap_or(Aggregation::First);
                let units = units_of_text(spans, head, &logits, strategy);
                let entities = match strategy {
                    Aggregation::None => single(&units, head),
                    _ => merged(&units, head),
                };
                let entities = entities.into_iter().map(|entity| {
                    let word: String = chars[entity.start..entity.end].iter().collect();
                    json!({
                        "label": entity.label, "score": entity.score, "word": word,
                        "start": entity.start, "end": entity.end,
                    })
                });
                line.insert("entities".to_owned(), entities.collect());
                if example.truncated_tokens > 0 {
                    let cut = example.truncated_tokens;
                    line.insert("truncated_tokens".to_owned(), json!(cut));
                }
            }
        }
        Ok(Value::Object(line))
    }
}

/// The named column, where it holds texts and no lists.
fn text_column(table: &Table, spec: &LoadSpec) -> Option<String> {
    let named = spec.columns.text.as_ref()?;
    let is_text = match table.get(table.rows().first()?, named)? {
        Cell::Json(Value::String(_)) => true,
        cell @ Cell::Text(_) => words_of(cell).is_none(),
        Cell::Json(_) => false,
    };
    is_text.then(|| named.clone())
}

/// The column of texts of a file.
fn first_text(table: &Table) -> Option<String> {
    let has = |name: &&str| table.columns().iter().any(|column| column == name);
    TEXTS.into_iter().find(has).map(str::to_owned)
}

fn beside(
    table: &Table,
    row: &Row,
    columns: &TextColumns,
    tokenizer: &Tokenizer,
    spec: &LoadSpec,
) -> RunResult<Beside> {
    match columns {
        TextColumns::Ids { .. } | TextColumns::Completion { .. } | TextColumns::Chat { .. } => {
            Ok(Beside::Ids)
        }
        TextColumns::Words { words } => {
            let Some(words) = table.get(row, words).and_then(words_of) else {
                return Ok(Beside::Ids);
            };
            let encoded = tokenizer.encode_words(&words, spec.max_length)?;
            let mut tokens = vec![Vec::new(); words.len()];
            for (at, word) in encoded.word_ids.iter().enumerate() {
                if let Some(tokens) = word.and_then(|word| tokens.get_mut(word as usize)) {
                    tokens.push(at);
                }
            }
            Ok(Beside::Words(words, tokens))
        }
        TextColumns::Text { text, .. } => {
            let text = match table.get(row, text) {
                Some(Cell::Json(Value::String(text))) => text.clone(),
                Some(Cell::Text(text)) => text.to_owned(),
                Some(Cell::Json(_)) | None => return Ok(Beside::Ids),
            };
            let spans = tokenizer.encode_spans(&text, spec.max_length)?.spans;
            Ok(Beside::Text(text, spans))
        }
    }
}

/// Labels, probabilities and logits, one for each word or token; null for those that were cut off.
fn add_labels<'l>(
    line: &mut Map<String, Value>,
    head: &Head,
    rows: impl Iterator<Item = Option<&'l [f32]>>,
) {
    let (mut labels, mut probabilities, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        labels.push(json!(row.map(|row| &head.labels[argmax(row)])));
        probabilities.push(row.map_or(Value::Null, |row| by_label(head, &softmax(row))));
        logits.push(row.map_or(Value::Null, floats));
    }
    line.insert("labels".to_owned(), json!(labels));
    line.insert("probabilities".to_owned(), json!(probabilities));
    line.insert("logits".to_owned(), json!(logits));
}

/// A word or a token: its places, its class and how probable that is; no class where it was cut
/// off.
struct Unit {
    start: usize,
    end: usize,
    class: Option<(usize, f64)>,
}

/// A word's class from the probabilities of its tokens.
fn class_of(tokens: &[Vec<f64>], strategy: Aggregation) -> Option<(usize, f64)> {
    let largest = |row: &[f64]| {
        let mut best = 0;
        for (class, p) in row.iter().enumerate() {
            if *p > row[best] {
                best = class;
            }
        }
        (best, row[best])
    };
    let first = tokens.first()?;
    match strategy {
        Aggregation::None | Aggregation::Simple | Aggregation::First => Some(largest(first)),
        Aggregation::Max => {
            let mut best = largest(first);
            for row in &tokens[1..] {
                let next = largest(row);
                if next.1 > best.1 {
                    best = next;
                }
            }
            Some(best)
        }
        Aggregation::Average => {
            let mut mean = vec![0.0; first.len()];
            for row in tokens {
                mean.iter_mut().zip(row).for_each(|(sum, p)| *sum += p);
            }
            mean.iter_mut().for_each(|sum| *sum /= tokens.len() as f64);
            Some(largest(&mean))
        }
    }
}

fn units_of_words(
    words: &[Vec<usize>],
    head: &Head,
    logits: &[&[f32]],
    strategy: Aggregation,
) -> Vec<Unit> {
    debug_assert!(logits.iter().all(|row| row.len() == head.num_labels));
    let unit = |(place, tokens): (usize, &Vec<usize>)| {
        let rows: Vec<Vec<f64>> = tokens.iter().map(|at| softmax(logits[*at])).collect();
        Unit {
            start: place,
            end: place + 1,
            class: class_of(&rows, strategy),
        }
    };
    words.iter().enumerate().map(unit).collect()
}

fn units_of_text(
    spans: &[Option<Span>],
    head: &Head,
    logits: &[&[f32]],
    strategy: Aggregation,
) -> Vec<Unit> {
    debug_assert!(logits.iter().all(|row| row.len() == head.num_labels));
    let by_word = !matches!(strategy, Aggregation::None | Aggregation::Simple);
    let mut words: Vec<(usize, usize, Vec<Vec<f64>>)> = Vec::new();
    for (span, row) in spans.iter().zip(logits) {
        let Some(span) = span else { continue };
        match words.last_mut() {
            Some((_, end, rows)) if by_word && span.is_continuation => {
                *end = span.end;
                rows.push(softmax(row));
            }
            Some(_) | None => words.push((span.start, span.end, vec![softmax(row)])),
        }
    }
    let unit = |(start, end, rows): (usize, usize, Vec<Vec<f64>>)| Unit {
        start,
        end,
        class: class_of(&rows, strategy),
    };
    words.into_iter().map(unit).collect()
}

/// A stretch of the input with one label.
struct Entity<'h> {
    label: &'h str,
    score: f64,
    start: usize,
    end: usize,
}

/// What stands outside of every entity.
const OUTSIDE: &str = "O";

/// Each unit by itself, but those outside.
fn single<'h>(units: &[Unit], head: &'h Head) -> Vec<Entity<'h>> {
    let entities = units.iter().filter_map(|unit| {
        let (class, score) = unit.class?;
        Some(Entity {
            label: &head.labels[class],
            score,
            start: unit.start,
            end: unit.end,
        })
    });
    entities.filter(|entity| entity.label != OUTSIDE).collect()
}

/// Neighbours of one kind together, a new one wherever a label begins with `B-`; scores are means
/// over the units.
fn merged<'h>(units: &[Unit], head: &'h Head) -> Vec<Entity<'h>> {
    let mut entities: Vec<(Entity<'h>, usize)> = Vec::new();
    let mut is_open = false;
    for unit in units {
        let Some((class, score)) = unit.class else {
            is_open = false;
            continue;
        };
        let (begins, label) = begins_and_kind(&head.labels[class]);
        match entities.last_mut() {
            Some((entity, count)) if is_open && !begins && entity.label == label => {
                entity.score += score;
                entity.end = unit.end;
                *count += 1;
            }
            Some(_) | None => {
                let entity = Entity {
                    label,
                    score,
                    start: unit.start,
                    end: unit.end,
                };
                entities.push((entity, 1));
            }
        }
        is_open = true;
    }
    let mean = |(entity, count): (Entity<'h>, usize)| Entity {
        score: entity.score / count as f64,
        ..entity
    };
    let all = entities.into_iter().map(mean);
    all.filter(|entity| entity.label != OUTSIDE).collect()
}
