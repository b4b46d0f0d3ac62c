//! The data sets of the paper's text generation (E2E, WebNLG, DART) in the shapes that they are
//! published in: rows of a prompt, linearised as in the paper's own code, and its references. One
//! file a data set; here is what they share. Source of the linearisations: microsoft/LoRA,
//! `examples/NLG/src/format_converting_*.py`.

mod dart;
mod e2e;
mod references;
mod webnlg;
mod webnlg_xml;

use std::fmt;
use std::path::Path;

use lowrank_formats::files::Regular;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use lowrank_formats::nearest;

use crate::error::{DataError, FileProblem, MAX_FAULTS_SHOWN, RowFault, RowFaultKind};
use crate::rows::{Cell, FileFormat, Header, Row, Table, bytes_of, text_of, unix_lines};

/// A data set's kind of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NlgFormat {
    /// E2E: JSONL with `mr` and `refs`, the published CSV `mr,ref`, or the paper's lines
    /// `meaning||text`.
    E2e,
    /// WebNLG 2017: the published XML, JSONL with `triples` and `texts`, or the JSON with
    /// `entries`.
    Webnlg,
    /// DART: the published JSON array, or JSONL with `triples` and `texts`.
    Dart,
    /// JSONL with `prompt` and a list of `references`.
    References,
}

impl NlgFormat {
    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::E2e => "e2e",
            Self::Webnlg => "webnlg",
            Self::Dart => "dart",
            Self::References => "references",
        }
    }

    /// Its shapes, for a message.
    fn shapes(self) -> &'static str {
        match self {
            Self::E2e => {
                "JSONL with `mr` and `refs`, CSV with `mr` and `ref`, or lines `meaning||text`"
            }
            Self::Webnlg => {
                "XML whose root is `benchmark`, JSONL with `triples` and `texts`, or one JSON object with `entries`"
            }
            Self::Dart => {
                "a JSON array of objects with `tripleset` and `annotations`, or JSONL with `triples` and `texts`"
            }
            Self::References => "JSONL with `prompt` and `references`",
        }
    }
}

impl fmt::Display for NlgFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a text is to be generated from, and how people wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptRow {
    /// The line where it begins, counted from 1.
    pub line: u64,
    /// The linearised meaning.
    pub prompt: String,
    /// The texts, at least one, in the file's order.
    pub references: Vec<String>,
    /// The line of each text.
    pub reference_lines: Vec<u64>,
    /// WebNLG's category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Whether WebNLG's training set has that category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<bool>,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One object a line.
    Lines,
    /// One array of objects.
    Array,
    /// One object.
    Object,
    /// Comma-separated.
    Csv,
    /// `meaning||text`.
    Bars,
    /// A document of elements.
    Xml,
}

/// Bytes at a file's beginning by which its shape is told.
const HEAD: u64 = 1 << 16;

/// The kind of a file's rows, told by how it begins; nothing where it is no data set that is known
/// here, or cannot be read.
pub fn detect(path: &Path) -> Option<NlgFormat> {
    let head = head(path)?;
    let first = head.lines().find(|line| !line.trim().is_empty())?;
    let key = |name: &str| first.contains(&format!("\"{name}\""));
    match shape(path, &head) {
        Shape::Lines if key("mr") && key("refs") => Some(NlgFormat::E2e),
        Shape::Lines if key("prompt") && key("references") && !key("completion") => {
            Some(NlgFormat::References)
        }
        Shape::Lines if key("triples") && key("texts") && (key("category") || key("seen")) => {
            Some(NlgFormat::Webnlg)
        }
        Shape::Lines if key("triples") && key("texts") => Some(NlgFormat::Dart),
        Shape::Array if head.contains("\"tripleset\"") => Some(NlgFormat::Dart),
        Shape::Object if head.contains("\"entries\"") => Some(NlgFormat::Webnlg),
        Shape::Csv if e2e::is_header(first) => Some(NlgFormat::E2e),
        Shape::Bars if first.contains(e2e::BARS) => Some(NlgFormat::E2e),
        Shape::Xml if head.contains("<benchmark") => Some(NlgFormat::Webnlg),
        _ => None,
    }
}

fn head(path: &Path) -> Option<String> {
    // What cannot be read is said where the rows are read.
    let file = Regular::open(path).ok()?;
    let mut bytes = vec![0; file.len().min(HEAD) as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_start_matches('\u{feff}').to_owned())
}

fn shape(path: &Path, text: &str) -> Shape {
    let text = text.trim_start();
    let is_line = |line: &str| serde_json::from_str::<Map<String, Value>>(line).is_ok();
    let named = |format| FileFormat::from_path(path).is_ok_and(|f| f == format);
    match text.chars().next() {
        Some('[') => Shape::Array,
        // One object on one line may still be the whole of a document.
        Some('{') if text.starts_with("{\"entries\"") => Shape::Object,
        Some('{') if text.lines().next().is_some_and(is_line) => Shape::Lines,
        Some('{') if text.lines().next().is_some_and(|line| line.trim() == "{") => Shape::Object,
        Some('{') => Shape::Lines,
        Some('<') => Shape::Xml,
        _ if named(FileFormat::Csv) => Shape::Csv,
        _ if named(FileFormat::Jsonl) => Shape::Lines,
        _ => Shape::Bars,
    }
}

/// Reads a file's prompts with their references; the kind is told by its beginning where not given.
/// Meanings without any text are left out, as in the paper's code. Where each line is one text (CSV
/// and lines of E2E), those of one meaning come together, in the order of its first appearance.
///
/// # Errors
/// The file cannot be read, is of no such kind, or some of its rows cannot be used: each fault with
/// its line and field.
pub fn read_prompts(path: &Path, format: Option<NlgFormat>) -> Result<Vec<PromptRow>, DataError> {
    let bytes = bytes_of(path)?;
    let text = &*unix_lines(text_of(path, &bytes)?);
    if text.trim().is_empty() {
        return Err(empty(path));
    }
    let format = format.or_else(|| detect(path)).ok_or_else(|| {
        let problem = FileProblem::NoNlgData;
        malformed(path, problem)
    })?;
    let source = Source { path, text };
    let rows = match (format, shape(path, text)) {
        (NlgFormat::E2e, Shape::Lines) => e2e::grouped(&source),
        (NlgFormat::E2e, Shape::Csv) => e2e::csv(&source),
        (NlgFormat::E2e, Shape::Bars) => e2e::lines(&source),
        (NlgFormat::Webnlg, Shape::Lines) => webnlg::lines(&source),
        (NlgFormat::Webnlg, Shape::Object) => webnlg::entries(&source),
        (NlgFormat::Webnlg, Shape::Xml) => webnlg_xml::entries(&source),
        (NlgFormat::Dart, Shape::Lines) => dart::lines(&source),
        (NlgFormat::Dart, Shape::Array) => dart::array(&source),
        (NlgFormat::References, Shape::Lines) => references::lines(&source),
        _ => Err(malformed(
            path,
            FileProblem::OtherNlgData {
                format: format.name(),
                shapes: format.shapes(),
            },
        )),
    }?;
    let rows: Vec<_> = rows
        .into_iter()
        .filter(|row| !row.references.is_empty())
        .collect();
    if rows.is_empty() {
        return Err(empty(path));
    }
    Ok(rows)
}

fn empty(path: &Path) -> DataError {
    DataError::Empty {
        path: path.into(),
        header_only: false,
    }
}

/// A file's rows as a table of `prompt` and `completion`, one row a reference, in the order of the
/// file's lines.
///
/// # Errors
/// As [`read_prompts`].
pub(crate) fn read_table(path: &Path, format: NlgFormat) -> Result<Table, DataError> {
    let mut rows: Vec<Row> = Vec::new();
    for row in read_prompts(path, Some(format))? {
        for (line, text) in row.reference_lines.iter().zip(&row.references) {
            let fields = [("prompt", &row.prompt), ("completion", text)];
            let fields = fields.map(|(key, text)| (key.to_owned(), Value::String(text.clone())));
            rows.push(Row::from_object(*line, Map::from_iter(fields)));
        }
    }
    rows.sort_by_key(|row| row.line);
    let note = format!(
        "read as a data set of `{format}`: each of its texts is a row of `prompt` and `completion`"
    );
    let table = Table::from_rows(path, FileFormat::Jsonl, &["prompt", "completion"], rows)?;
    Ok(table.noting(note))
}

fn malformed(path: &Path, problem: FileProblem) -> DataError {
    DataError::Malformed {
        path: path.into(),
        line: 1,
        problem,
    }
}

/// A file that was read.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// As a table, one object a line or one record of CSV a row.
    fn table(&self, format: FileFormat) -> Result<Table, DataError> {
        let bytes = self.text.as_bytes().to_vec();
        Table::parse(self.path, bytes, format, Header::Present)
    }

    /// Reads each row of a table.
    fn each_row(
        &self,
        format: FileFormat,
        read: impl Fn(&Fields<'_>) -> Result<PromptRow, RowFault>,
    ) -> Result<Vec<PromptRow>, DataError> {
        let table = self.table(format)?;
        let rows = table.rows().iter().map(|row| {
            let object = table.to_json(row);
            read(&Fields {
                line: row.line,
                at: String::new(),
                object: &object,
            })
        });
        self.all(rows.collect())
    }

    /// Reads each of a document's values, with the line where it begins.
    fn each_value(
        &self,
        values: &[&RawValue],
        read: impl Fn(u64, &Value) -> Result<PromptRow, RowFault>,
    ) -> Result<Vec<PromptRow>, DataError> {
        let (mut line, mut seen) = (1, 0);
        let rows = values.iter().map(|raw| {
            // A borrowed value is a piece of the text, so that its distance from the beginning is
            // its place.
            let at = (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
            let between = self.text.get(seen..at).unwrap_or_default();
            line += between.matches('\n').count() as u64;
            seen = at.max(seen);
            let value = serde_json::from_str(raw.get()).unwrap_or(Value::Null);
            read(line, &value)
        });
        self.all(rows.collect())
    }

    /// All rows, or all faults.
    fn all(&self, rows: Vec<Result<PromptRow, RowFault>>) -> Result<Vec<PromptRow>, DataError> {
        let total = rows.iter().filter(|row| row.is_err()).count();
        if total == 0 {
            return Ok(rows.into_iter().filter_map(Result::ok).collect());
        }
        Err(DataError::Rows {
            path: self.path.into(),
            total,
            rows: rows.len(),
            faults: rows
                .into_iter()
                .filter_map(Result::err)
                .take(MAX_FAULTS_SHOWN)
                .collect(),
        })
    }

    /// A document that is no JSON.
    fn not_json(&self, error: &serde_json::Error) -> DataError {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        self.fault(RowFault {
            line: error.line() as u64,
            column: None,
            kind: RowFaultKind::NotJson {
                message: format!("{message} at column {}", error.column()),
                python_constant: false,
            },
        })
    }

    /// The one fault of a document as a whole.
    fn fault(&self, fault: RowFault) -> DataError {
        DataError::Rows {
            path: self.path.into(),
            total: 1,
            rows: 1,
            faults: vec![fault],
        }
    }
}

/// The fields of an object, and where it stands.
struct Fields<'a> {
    line: u64,
    /// The object's place in its row, with a dot behind it; nothing for the row itself.
    at: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object that `value` is.
    fn of(line: u64, at: String, value: &'a Value) -> Result<Self, RowFault> {
        match value {
            Value::Object(object) => Ok(Self { line, at, object }),
            other => {
                let place = at.trim_end_matches('.').to_owned();
                Err(wrong(line, place, "an object", other))
            }
        }
    }

    fn place(&self, name: &str) -> String {
        format!("{}{name}", self.at)
    }

    fn get(&self, name: &str) -> Result<&'a Value, RowFault> {
        let found = self.object.get(name).filter(|value| !value.is_null());
        found.ok_or_else(|| RowFault {
            line: self.line,
            column: Some(self.place(name)),
            kind: RowFaultKind::Missing {
                nearest: nearest(name, self.object.keys()).map(str::to_owned),
            },
        })
    }

    /// Text that is not blank, without blanks around it.
    fn text(&self, name: &str) -> Result<&'a str, RowFault> {
        text(self.line, self.place(name), self.get(name)?)
    }

    fn list(&self, name: &str) -> Result<&'a [Value], RowFault> {
        match self.get(name)? {
            Value::Array(items) => Ok(items),
            other => Err(wrong(self.line, self.place(name), "a list", other)),
        }
    }

    /// A list of texts.
    fn texts(&self, name: &str) -> Result<Vec<String>, RowFault> {
        let items = self.list(name)?.iter().enumerate();
        let place = |i| format!("{}[{i}]", self.place(name));
        items
            .map(|(i, item)| text(self.line, place(i), item).map(str::to_owned))
            .collect()
    }

    /// The triples of a list of lists as one text: `subject : relation : object | …`.
    fn triples(&self, name: &str, relation: fn(&str) -> String) -> Result<String, RowFault> {
        let mut linear = Vec::new();
        for (i, triple) in self.list(name)?.iter().enumerate() {
            let place = format!("{}[{i}]", self.place(name));
            let Value::Array(parts) = triple else {
                return Err(wrong(self.line, place, "a list of three texts", triple));
            };
            let [subject, predicate, object] = parts.as_slice() else {
                return Err(wrong(self.line, place, "a list of three texts", triple));
            };
            let part = |value| text(self.line, place.clone(), value);
            linear.push(triple_text(
                part(subject)?,
                &relation(part(predicate)?),
                part(object)?,
            ));
        }
        self.linear(name, linear)
    }

    fn linear(&self, name: &str, triples: Vec<String>) -> Result<String, RowFault> {
        if triples.is_empty() {
            let none = Value::Array(Vec::new());
            return Err(wrong(
                self.line,
                self.place(name),
                "at least one triple",
                &none,
            ));
        }
        Ok(triples.join(" | "))
    }

    /// The row of a prompt whose references all stand in this object's line.
    fn row(&self, prompt: String, references: Vec<String>) -> PromptRow {
        PromptRow {
            line: self.line,
            prompt,
            reference_lines: vec![self.line; references.len()],
            references,
            category: None,
            seen: None,
        }
    }
}

fn triple_text(subject: &str, relation: &str, object: &str) -> String {
    format!("{subject} : {relation} : {object}")
}

fn text(line: u64, place: String, value: &Value) -> Result<&str, RowFault> {
    match value.as_str().map(str::trim) {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) | None => Err(wrong(line, place, "text", value)),
    }
}

fn wrong(line: u64, place: String, expected: &'static str, found: &Value) -> RowFault {
    RowFault {
        line,
        column: (!place.is_empty()).then_some(place),
        kind: RowFaultKind::WrongType {
            expected,
            found: Cell::Json(found).describe(),
        },
    }
}

/// Puts the references of equal prompts together, in the order of first appearance.
fn group(rows: Vec<PromptRow>) -> Vec<PromptRow> {
    let mut places = std::collections::HashMap::new();
    let mut grouped: Vec<PromptRow> = Vec::new();
    for row in rows {
        match places.get(&row.prompt) {
            None => {
                places.insert(row.prompt.clone(), grouped.len());
                grouped.push(row);
            }
            Some(&place) => {
                grouped[place].references.extend(row.references);
                grouped[place].reference_lines.extend(row.reference_lines);
            }
        }
    }
    grouped
}
