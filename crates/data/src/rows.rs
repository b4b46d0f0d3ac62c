//! A data file as a table of raw rows: formats, headers, line numbers. Knows nothing of labels and
//! token ids.

mod delimited;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
mod plain;
mod python;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use lowrank_formats::files::{self, Ceiling, Regular};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, FileProblem, MAX_FAULTS_SHOWN, RowFault};
pub(crate) use python::parse_list;

/// How a data file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// One JSON object a line; one array of objects, or a document with one in its field `data`, is
    /// read too.
    Jsonl,
    /// Comma-separated, fields quoted with `"` where needed (RFC 4180).
    Csv,
    /// Tab-separated; quotes mean nothing.
    Tsv,
    /// Plain text, a line a row.
    Text,
    /// Apache Parquet (feature `parquet`).
    Parquet,
}

impl FileFormat {
    /// The format that a file's extension names.
    pub fn from_path(path: &Path) -> Result<Self, DataError> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let packed = match extension.to_ascii_lowercase().as_str() {
            "gz" | "tgz" => "gzip",
            "zip" => "zip",
            "zst" => "zstd",
            "bz2" => "bzip2",
            "xz" => "xz",
            _ => "",
        };
        match Self::from_name(extension) {
            Some(format) => Ok(format),
            None if packed.is_empty() => Err(DataError::UnknownFormat { path: path.into() }),
            None => Err(DataError::Malformed {
                path: path.into(),
                line: 1,
                problem: FileProblem::Compressed(packed),
            }),
        }
    }

    /// The format of this name (`jsonl`, `ndjson`, `json`, `csv`, `tsv`, `tab`, `txt`, `text`,
    /// `parquet`), in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "txt" | "text" => Some(Self::Text),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    /// The format's name, which is its usual extension.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Text => "text",
            Self::Parquet => "parquet",
        }
    }
}

/// Whether the first line of a CSV or TSV file names the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Header {
    /// It does.
    #[default]
    Present,
    /// It is a row already; columns are then named by their place: `0`, `1`, ….
    Absent,
}

/// A data file's rows, in file order.
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    format: FileFormat,
    header: Header,
    columns: Vec<String>,
    index: HashMap<String, usize>,
    duplicates: HashSet<String>,
    rows: Vec<Row>,
    faults: Vec<RowFault>,
    blank_lines: u64,
    notes: Vec<String>,
    is_cola: bool,
}

/// One row of a [`Table`].
#[derive(Debug, Clone)]
pub struct Row {
    /// The line where the row begins, counted from 1; for Parquet the number of the row.
    pub line: u64,
    fields: Fields,
}

impl Row {
    /// A row of typed values.
    pub(crate) fn from_object(line: u64, object: Map<String, Value>) -> Self {
        Self {
            line,
            fields: Fields::Object(object),
        }
    }
}

#[derive(Debug, Clone)]
enum Fields {
    Object(Map<String, Value>),
    Text(Vec<String>),
}

/// One value of a row.
#[derive(Debug, Clone, Copy)]
pub enum Cell<'a> {
    /// A typed value, from JSONL or Parquet.
    Json(&'a Value),
    /// A field of CSV or TSV, where all is text.
    Text(&'a str),
}

impl Cell<'_> {
    /// What the value is, for a message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Json(value) => match value {
                Value::Object(_) => "an object".into(),
                Value::Array(items) => format!("a list of {}", items.len()),
                Value::String(text) => format!("the text `{}`", crate::error::shorten(text)),
                Value::Null | Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
            },
            Self::Text(text) => format!("the text `{}`", crate::error::shorten(text)),
        }
    }
}

impl Table {
    /// Reads a file; `format` is told by its extension where not given. The whole file is held in
    /// memory.
    pub fn read(
        path: &Path,
        format: Option<FileFormat>,
        header: Header,
    ) -> Result<Self, DataError> {
        Self::read_lenient(path, format, header)?.without_faults()
    }

    /// Itself where every row could be read.
    fn without_faults(self) -> Result<Self, DataError> {
        match self.faults.is_empty() {
            true => Ok(self),
            false => Err(self.rows_error(&self.faults)),
        }
    }

    /// As [`Table::read`], but rows that cannot be read as their format are set aside: see
    /// [`Table::faults`].
    pub fn read_lenient(
        path: &Path,
        format: Option<FileFormat>,
        header: Header,
    ) -> Result<Self, DataError> {
        // That there is no file, or a folder, says more than a name without an extension.
        let named = || FileFormat::from_path(path);
        let unknown = |error| Regular::open(path).map_or_else(DataError::from, |_| error);
        let format = format.map_or_else(|| named().map_err(unknown), Ok)?;
        Self::parse_lenient(path, bytes_of(path)?, format, header)
    }

    /// Parses a file's content; `path` is only for messages. Never panics, whatever the bytes.
    pub fn parse(
        path: &Path,
        bytes: Vec<u8>,
        format: FileFormat,
        header: Header,
    ) -> Result<Self, DataError> {
        Self::parse_lenient(path, bytes, format, header)?.without_faults()
    }

    /// As [`Table::parse`], but rows that cannot be read as their format are set aside: see
    /// [`Table::faults`].
    pub fn parse_lenient(
        path: &Path,
        bytes: Vec<u8>,
        format: FileFormat,
        header: Header,
    ) -> Result<Self, DataError> {
        let is_table = matches!(format, FileFormat::Csv | FileFormat::Tsv);
        if header == Header::Absent && !is_table {
            return Err(DataError::HeaderAbsent {
                path: path.into(),
                format: format.name(),
            });
        }
        if format == FileFormat::Parquet {
            #[cfg(feature = "parquet")]
            return Self::new(path, format, parquet::parse(path, bytes)?);
            #[cfg(not(feature = "parquet"))]
            return Err(DataError::ParquetNotBuilt { path: path.into() });
        }
        let text = unix_lines(text_of(path, &bytes)?);
        let parsed = match format {
            FileFormat::Jsonl => jsonl::parse(path, &text)?,
            FileFormat::Csv => delimited::parse(path, &text, delimited::CSV, header)?,
            FileFormat::Tsv => delimited::parse(path, &text, delimited::TSV, header)?,
            FileFormat::Text | FileFormat::Parquet => plain::parse(&text),
        };
        let table = Self::new(path, format, parsed)?;
        Ok(Self { header, ..table })
    }

    /// A table of rows that were made elsewhere.
    pub(crate) fn from_rows(
        path: &Path,
        format: FileFormat,
        columns: &[&str],
        rows: Vec<Row>,
    ) -> Result<Self, DataError> {
        let parsed = Parsed {
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows,
            ..Parsed::default()
        };
        Self::new(path, format, parsed)
    }

    fn new(path: &Path, format: FileFormat, parsed: Parsed) -> Result<Self, DataError> {
        let mut index = HashMap::with_capacity(parsed.columns.len());
        let mut duplicates = HashSet::new();
        for (i, name) in parsed.columns.iter().enumerate() {
            if index.contains_key(name) {
                duplicates.insert(name.clone());
            } else {
                index.insert(name.clone(), i);
            }
        }
        if parsed.rows.is_empty() && parsed.faults.is_empty() {
            let is_table = matches!(format, FileFormat::Csv | FileFormat::Tsv);
            return Err(DataError::Empty {
                path: path.into(),
                header_only: is_table && !parsed.columns.is_empty(),
            });
        }
        if parsed.rows.len() > u32::MAX as usize {
            return Err(DataError::TooManyRows {
                path: path.into(),
                rows: parsed.rows.len(),
            });
        }
        let table = Self {
            path: path.into(),
            format,
            header: Header::Present,
            columns: parsed.columns,
            index,
            duplicates,
            rows: parsed.rows,
            faults: parsed.faults,
            blank_lines: parsed.blank_lines,
            notes: parsed.notes,
            is_cola: parsed.is_cola,
        };
        match table.rows.is_empty() {
            true => Err(table.rows_error(&table.faults)),
            false => Ok(table),
        }
    }

    /// The error of a table with these faults among its rows.
    pub(crate) fn rows_error(&self, faults: &[RowFault]) -> DataError {
        DataError::Rows {
            path: self.path.clone(),
            total: faults.len(),
            rows: self.row_count(),
            faults: faults.iter().take(MAX_FAULTS_SHOWN).cloned().collect(),
        }
    }

    /// The same without some rows: those for which `keep` is false, in file order.
    pub(crate) fn keeping(&self, keep: &[bool]) -> Self {
        let kept = self.rows.iter().zip(keep).filter(|(_, keep)| **keep);
        Self {
            rows: kept.map(|(row, _)| row.clone()).collect(),
            ..self.clone_without_rows()
        }
    }

    fn clone_without_rows(&self) -> Self {
        Self {
            path: self.path.clone(),
            format: self.format,
            header: self.header,
            columns: self.columns.clone(),
            index: self.index.clone(),
            duplicates: self.duplicates.clone(),
            rows: Vec::new(),
            faults: self.faults.clone(),
            blank_lines: self.blank_lines,
            notes: self.notes.clone(),
            is_cola: self.is_cola,
        }
    }

    /// Rows in the file, those among them that cannot be read.
    pub fn row_count(&self) -> usize {
        self.rows.len() + self.faults.len()
    }

    /// Rows that cannot be read as their format, in file order; none unless they were allowed.
    pub fn faults(&self) -> &[RowFault] {
        &self.faults
    }

    /// What was found about the file's form that its name does not say, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The same with one note more.
    pub(crate) fn noting(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }

    /// Whether the first line names the columns.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Where text and label stand in a table without a header, where its form says it: a single
    /// column, or GLUE's CoLA.
    pub(crate) fn by_place(&self) -> Option<(&'static str, &'static str)> {
        match (self.header, self.columns.len()) {
            (Header::Absent, 1) => Some(("0", "")),
            (Header::Absent, _) if self.is_cola => Some(("3", "1")),
            (Header::Absent | Header::Present, _) => None,
        }
    }

    /// How often a name stands in the header.
    pub(crate) fn times_named(&self, name: &str) -> usize {
        match self.duplicates.contains(name) {
            true => self.columns.iter().filter(|other| *other == name).count(),
            false => 1,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is written.
    pub fn format(&self) -> FileFormat {
        self.format
    }

    /// The columns: the header's, or every key of any row in order of appearance.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The rows, in file order; at least one.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Lines that held nothing, and were passed over.
    pub fn blank_lines(&self) -> u64 {
        self.blank_lines
    }

    /// Keeps the first `n` rows only; at least one.
    pub fn truncate(&mut self, n: usize) {
        self.rows.truncate(n.max(1));
    }

    /// A row's value in a column; `None` where it has none, or `null`.
    pub fn get<'a>(&self, row: &'a Row, column: &str) -> Option<Cell<'a>> {
        match &row.fields {
            Fields::Object(map) => map
                .get(column)
                .filter(|value| !value.is_null())
                .map(Cell::Json),
            Fields::Text(fields) => fields
                .get(*self.index.get(column)?)
                .map(|text| Cell::Text(text)),
        }
    }

    /// A row as a JSON object, for showing it or carrying it through; the fields of CSV and TSV are
    /// strings.
    pub fn to_json(&self, row: &Row) -> Map<String, Value> {
        match &row.fields {
            Fields::Object(map) => map.clone(),
            Fields::Text(fields) => self
                .columns
                .iter()
                .zip(fields)
                .map(|(name, text)| (name.clone(), Value::String(text.clone())))
                .collect(),
        }
    }

    /// The keys of one row.
    pub(crate) fn keys<'a>(&'a self, row: &'a Row) -> Vec<&'a String> {
        match &row.fields {
            Fields::Object(map) => map.keys().collect(),
            Fields::Text(_) => self.columns.iter().collect(),
        }
    }
}

/// What a format's parser hands over.
#[derive(Default)]
struct Parsed {
    columns: Vec<String>,
    rows: Vec<Row>,
    faults: Vec<RowFault>,
    blank_lines: u64,
    notes: Vec<String>,
    /// Columns named by their place that are laid out as GLUE's CoLA.
    is_cola: bool,
}

/// The content of a file of rows. A pipe is refused: rows may have to be read twice.
pub(crate) fn bytes_of(path: &Path) -> Result<Vec<u8>, DataError> {
    Ok(files::read(path, Ceiling::DATA)?)
}

/// The text with line feeds for line ends, where it is an old one that has carriage returns alone.
pub(crate) fn unix_lines(text: &str) -> Cow<'_, str> {
    match text.contains('\r') && !text.contains('\n') {
        true => Cow::Owned(text.replace('\r', "\n")),
        false => Cow::Borrowed(text),
    }
}

/// The text of a file, without a byte order mark.
pub(crate) fn text_of<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, DataError> {
    let malformed = |line, problem| DataError::Malformed {
        path: path.into(),
        line,
        problem,
    };
    let magic: [(&[u8], FileProblem); 7] = [
        (b"\xff\xfe", FileProblem::Utf16),
        (b"\xfe\xff", FileProblem::Utf16),
        (b"\x1f\x8b", FileProblem::Compressed("gzip")),
        (b"PK\x03\x04", FileProblem::Compressed("zip")),
        (b"\x28\xb5\x2f\xfd", FileProblem::Compressed("zstd")),
        (b"BZh", FileProblem::Compressed("bzip2")),
        (b"PAR1", FileProblem::Compressed("Parquet")),
    ];
    for (start, problem) in magic {
        // The text markers among them could open an ordinary line; binary content follows only in
        // the real thing.
        if !bytes.starts_with(start) {
            continue;
        }
        if !start.is_ascii() || std::str::from_utf8(bytes).is_err() {
            return Err(malformed(1, problem));
        }
    }
    if is_utf16_without_mark(bytes) {
        return Err(malformed(1, FileProblem::Utf16));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
        malformed(line, FileProblem::NotUtf8)
    })
}

/// Whether every other byte of the beginning is 0, as in UTF-16 of a Latin script.
fn is_utf16_without_mark(bytes: &[u8]) -> bool {
    let begin = &bytes[..bytes.len().min(64) / 2 * 2];
    let zeros = |first: usize| {
        begin
            .iter()
            .skip(first)
            .step_by(2)
            .filter(|b| **b == 0)
            .count()
    };
    let half = begin.len() / 2;
    half > 1 && (zeros(0) == half && zeros(1) == 0 || zeros(1) == half && zeros(0) == 0)
}
