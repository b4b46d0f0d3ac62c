//! A data file as a table of raw rows: formats, headers, line numbers. Knows nothing of labels and token ids.

mod delimited;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, FileProblem};

/// How a data file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, fields quoted with `"` where needed (RFC 4180).
    Csv,
    /// Tab-separated; quotes mean nothing.
    Tsv,
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
        Self::from_name(extension).ok_or_else(|| DataError::UnknownFormat { path: path.into() })
    }

    /// The format of this name (`jsonl`, `ndjson`, `json`, `csv`, `tsv`, `tab`, `parquet`), in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
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
    /// It is a row already; columns are then named `0`, `1`, ….
    Absent,
}

/// A data file's rows, in file order.
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    format: FileFormat,
    columns: Vec<String>,
    index: HashMap<String, usize>,
    rows: Vec<Row>,
    blank_lines: u64,
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
    /// Reads a file; `format` is told by its extension where not given. The whole file is held in memory.
    pub fn read(
        path: &Path,
        format: Option<FileFormat>,
        header: Header,
    ) -> Result<Self, DataError> {
        if path.is_dir() {
            return Err(DataError::Read {
                path: path.into(),
                source: std::io::Error::new(
                    std::io::ErrorKind::IsADirectory,
                    "it is a folder, expected a file of rows",
                ),
            });
        }
        let format = format.map_or_else(|| FileFormat::from_path(path), Ok)?;
        let bytes = std::fs::read(path).map_err(|source| DataError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, bytes, format, header)
    }

    /// Parses a file's content; `path` is only for messages. Never panics, whatever the bytes.
    pub fn parse(
        path: &Path,
        bytes: Vec<u8>,
        format: FileFormat,
        header: Header,
    ) -> Result<Self, DataError> {
        let parsed = match format {
            FileFormat::Jsonl => jsonl::parse(path, text_of(path, &bytes)?)?,
            FileFormat::Csv => {
                delimited::parse(path, text_of(path, &bytes)?, delimited::CSV, header)?
            }
            FileFormat::Tsv => {
                delimited::parse(path, text_of(path, &bytes)?, delimited::TSV, header)?
            }
            #[cfg(feature = "parquet")]
            FileFormat::Parquet => parquet::parse(path, bytes)?,
            #[cfg(not(feature = "parquet"))]
            FileFormat::Parquet => return Err(DataError::ParquetNotBuilt { path: path.into() }),
        };
        Self::new(path, format, parsed)
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
            blank_lines: 0,
        };
        Self::new(path, format, parsed)
    }

    fn new(path: &Path, format: FileFormat, parsed: Parsed) -> Result<Self, DataError> {
        let mut index = HashMap::with_capacity(parsed.columns.len());
        for (i, name) in parsed.columns.iter().enumerate() {
            if index.insert(name.clone(), i).is_some() {
                return Err(DataError::DuplicateColumn {
                    path: path.into(),
                    name: name.clone(),
                    times: parsed.columns.iter().filter(|other| *other == name).count(),
                });
            }
        }
        if parsed.rows.is_empty() {
            return Err(DataError::Empty {
                path: path.into(),
                header_only: !parsed.columns.is_empty(),
            });
        }
        if parsed.rows.len() > u32::MAX as usize {
            return Err(DataError::TooManyRows {
                path: path.into(),
                rows: parsed.rows.len(),
            });
        }
        Ok(Self {
            path: path.into(),
            format,
            columns: parsed.columns,
            index,
            rows: parsed.rows,
            blank_lines: parsed.blank_lines,
        })
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

    /// A row as a JSON object, for showing it or carrying it through; the fields of CSV and TSV are strings.
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
struct Parsed {
    columns: Vec<String>,
    rows: Vec<Row>,
    blank_lines: u64,
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
        // The text markers among them could open an ordinary line; binary content follows only in the real thing.
        if !bytes.starts_with(start) {
            continue;
        }
        if !start.is_ascii() || std::str::from_utf8(bytes).is_err() {
            return Err(malformed(1, problem));
        }
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
        malformed(line, FileProblem::NotUtf8)
    })
}
