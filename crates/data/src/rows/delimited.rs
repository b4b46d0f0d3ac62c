//! CSV and TSV. An own reader of some lines, because the usual ones take a quote that is never
//! closed for the rest of the file and say nothing; here it is an error with its line.

use std::path::Path;

use super::{Fields, Header, Parsed, Row};
use crate::error::{DataError, FileProblem, RowFault, RowFaultKind};

/// What separates fields, and whether quotes hide it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    separator: u8,
    quoting: bool,
}

pub(super) const CSV: Dialect = Dialect {
    separator: b',',
    quoting: true,
};
pub(super) const TSV: Dialect = Dialect {
    separator: b'\t',
    quoting: false,
};
/// What else stands between the fields of files that carry either name.
const OTHERS: [Dialect; 3] = [
    Dialect {
        separator: b';',
        quoting: true,
    },
    Dialect {
        separator: b'\t',
        quoting: true,
    },
    Dialect {
        separator: b'|',
        quoting: true,
    },
];

/// Records by which the separator is found.
const LOOKED_AT: usize = 50;

/// The most fields of a record that are kept; more are only counted, so that a line of separators
/// takes no memory.
const MOST_FIELDS: usize = 1 << 20;

/// GLUE's CoLA is published without a header: where a sentence is from, whether it is acceptable,
/// what its author marked it with, and the sentence.
const COLA: [&str; 4] = ["source", "label", "mark", "sentence"];

/// Parses all records; a row that has not as many fields as the header is a fault.
pub(super) fn parse(
    path: &Path,
    text: &str,
    expected: Dialect,
    header: Header,
) -> Result<Parsed, DataError> {
    let dialect = find_dialect(text, expected);
    let mut parsed = Parsed::default();
    let mut records = read_records(path, text, dialect, &mut parsed.blank_lines)?;
    if dialect.separator != expected.separator {
        parsed.notes.push(format!(
            "fields are separated by {}, not by {}",
            dialect.name(),
            expected.name()
        ));
    }
    parsed.columns = match header {
        Header::Absent => {
            parsed.is_cola = is_cola(&records);
            numbered(&records)
        }
        Header::Present if is_cola(&records) => {
            parsed.notes.push(format!(
                "no header, laid out as GLUE's CoLA: the columns are named {}",
                COLA.map(|name| format!("`{name}`")).join(", ")
            ));
            COLA.map(String::from).into()
        }
        Header::Present if records.is_empty() => Vec::new(),
        Header::Present if records[0].more > 0 => {
            return Err(DataError::Malformed {
                path: path.into(),
                line: records[0].line,
                problem: FileProblem::TooManyColumns {
                    found: MOST_FIELDS + records[0].more,
                    most: MOST_FIELDS,
                },
            });
        }
        Header::Present => {
            let names = records.remove(0).fields;
            names_of(names, &records)
        }
    };
    let width = parsed.columns.len();
    for record in records {
        let line = record.line;
        match checked(record, width) {
            Ok(fields) => parsed.rows.push(Row {
                line,
                fields: Fields::Text(fields),
            }),
            Err(kind) => parsed.faults.push(RowFault {
                line,
                column: None,
                kind,
            }),
        }
    }
    Ok(parsed)
}

/// The dialect that a file's name promises, unless another one alone parts its first records alike,
/// or it finds one column where another finds several in the header and in most records.
fn find_dialect(text: &str, expected: Dialect) -> Dialect {
    let promised = look(text, expected);
    if promised.fields > 1 && promised.alike == 1.0 {
        return expected;
    }
    let others = [CSV].into_iter().chain(OTHERS);
    let others = others.filter(|other| other.separator != expected.separator);
    let looks = others.map(|other| (look(text, other), other));
    let needed = if promised.fields > 1 { 1.0 } else { MOST };
    looks
        .filter(|(look, _)| look.fields > 1 && look.alike >= needed)
        // The first of equals: a comma parts more files than a bar.
        .reduce(|best, next| match next.0.beats(&best.0) {
            true => next,
            false => best,
        })
        .map_or(expected, |(_, dialect)| dialect)
}

/// The share of records that have as many fields as the header, from which a separator is believed.
const MOST: f64 = 0.8;

/// What a dialect makes of the first records.
struct Look {
    /// Fields of the first record; 0 where they cannot be read.
    fields: usize,
    /// The share of records with as many, from 0 to 1.
    alike: f64,
}

impl Look {
    fn beats(&self, other: &Self) -> bool {
        (self.alike, self.fields) > (other.alike, other.fields)
    }
}

fn look(text: &str, dialect: Dialect) -> Look {
    let mut reader = Reader::new(text, dialect);
    let mut found: Vec<usize> = Vec::new();
    while found.len() < LOOKED_AT {
        match reader.next_record() {
            Ok(Record::Fields(record)) => found.push(record.fields.len() + record.more),
            Ok(Record::Blank) => {}
            Ok(Record::End) => break,
            Err(_) => {
                return Look {
                    fields: 0,
                    alike: 0.0,
                };
            }
        }
    }
    let fields = found.first().copied().unwrap_or(0);
    let alike = found.iter().filter(|n| **n == fields).count();
    Look {
        fields,
        alike: alike as f64 / found.len().max(1) as f64,
    }
}

struct Filled {
    line: u64,
    fields: Vec<String>,
    /// Fields that were not kept.
    more: usize,
}

fn read_records(
    path: &Path,
    text: &str,
    dialect: Dialect,
    blank_lines: &mut u64,
) -> Result<Vec<Filled>, DataError> {
    let mut reader = Reader::new(text, dialect);
    let mut records = Vec::new();
    loop {
        match reader.next_record() {
            Ok(Record::Fields(record)) => records.push(record),
            Ok(Record::Blank) => *blank_lines += 1,
            Ok(Record::End) => return Ok(records),
            Err((line, problem)) => {
                return Err(DataError::Malformed {
                    path: path.into(),
                    line,
                    problem,
                });
            }
        }
    }
}

fn numbered(records: &[Filled]) -> Vec<String> {
    let n = records.first().map_or(0, |record| record.fields.len());
    (0..n).map(|i| i.to_string()).collect()
}

/// The names of a header. Columns at its end that have no name and hold nothing are no columns;
/// others without a name, such as the row numbers that pandas writes, are called as pandas calls
/// them.
fn names_of(header: Vec<String>, records: &[Filled]) -> Vec<String> {
    let mut names: Vec<String> = header.iter().map(|name| name.trim().to_string()).collect();
    let filled = |record: &Filled| {
        let last = record.fields.iter().rposition(|field| !field.is_empty());
        last.map_or(0, |last| last + 1)
    };
    let widest = records.iter().map(filled).max().unwrap_or(0);
    while names.len() > widest.max(1) && names.last().is_some_and(String::is_empty) {
        names.pop();
    }
    for (i, name) in names.iter_mut().enumerate() {
        if name.is_empty() {
            *name = format!("Unnamed: {i}");
        }
    }
    names
}

fn is_cola(records: &[Filled]) -> bool {
    let is_row = |record: &Filled| match record.fields.as_slice() {
        [source, label, mark, sentence] => {
            let code = !source.is_empty() && !source.contains(char::is_whitespace);
            code && ["0", "1"].contains(&label.as_str())
                && ["", "*"].contains(&mark.as_str())
                && !sentence.trim().is_empty()
        }
        _ => false,
    };
    !records.is_empty() && records.iter().all(is_row)
}

/// A record's fields, as many as there are columns; empty ones behind the last column are
/// separators too many.
fn checked(record: Filled, width: usize) -> Result<Vec<String>, RowFaultKind> {
    let Filled {
        mut fields, more, ..
    } = record;
    if fields.iter().any(|field| field.contains('\0')) {
        return Err(RowFaultKind::NulByte);
    }
    let found = fields.len() + more;
    while fields.len() > width && fields.last().is_some_and(String::is_empty) {
        fields.pop();
    }
    if fields.len() != width || more > 0 {
        return Err(RowFaultKind::Ragged {
            expected: width,
            found,
        });
    }
    Ok(fields)
}

impl Dialect {
    fn name(self) -> &'static str {
        match self.separator {
            b'\t' => "tabs",
            b';' => "`;`",
            b'|' => "`|`",
            _ => "`,`",
        }
    }
}

enum Record {
    Fields(Filled),
    Blank,
    End,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u64,
    dialect: Dialect,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, dialect: Dialect) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
            dialect,
        }
    }

    /// The next record, however many lines it covers.
    fn next_record(&mut self) -> Result<Record, (u64, FileProblem)> {
        let rest = &self.text.as_bytes()[self.at..];
        if rest.is_empty() {
            return Ok(Record::End);
        }
        for end in [&b"\n"[..], b"\r\n"] {
            if rest.starts_with(end) {
                self.at += end.len();
                self.line += 1;
                return Ok(Record::Blank);
            }
        }
        let line = self.line;
        let mut record = Filled {
            line,
            fields: Vec::new(),
            more: 0,
        };
        loop {
            let (field, more) = self.next_field(record.fields.len() + record.more + 1)?;
            if record.fields.len() < MOST_FIELDS {
                record.fields.push(field);
            } else {
                record.more += 1;
            }
            if !more {
                return Ok(Record::Fields(record));
            }
        }
    }

    /// The next field, and whether another follows in the same record. Stands behind its separator
    /// or line end then.
    fn next_field(&mut self, number: usize) -> Result<(String, bool), (u64, FileProblem)> {
        let bytes = self.text.as_bytes();
        let mut field = String::new();
        if self.dialect.quoting && bytes.get(self.at) == Some(&b'"') {
            self.at += 1;
            self.quoted_part(number, &mut field)?;
        }
        // Separators are ASCII, so all cuts are at character boundaries.
        let start = self.at;
        let end = bytes[start..]
            .iter()
            .position(|byte| *byte == self.dialect.separator || *byte == b'\n')
            .map_or(bytes.len(), |found| start + found);
        let mut tail = &self.text[start..end];
        let more = bytes.get(end) == Some(&self.dialect.separator);
        if !more {
            tail = tail.strip_suffix('\r').unwrap_or(tail);
            self.line += u64::from(end < bytes.len());
        }
        field.push_str(tail);
        self.at = (end + 1).min(bytes.len());
        // A separator as the last byte of the file has one more, empty field behind it.
        Ok((field, more))
    }

    /// Reads up to the closing quote; a doubled quote is one.
    fn quoted_part(&mut self, number: usize, field: &mut String) -> Result<(), (u64, FileProblem)> {
        let opened_at = self.line;
        loop {
            let rest = &self.text[self.at..];
            let Some(quote) = rest.find('"') else {
                return Err((opened_at, FileProblem::OpenQuote { field: number }));
            };
            let part = &rest[..quote];
            self.line += part.bytes().filter(|byte| *byte == b'\n').count() as u64;
            field.push_str(part);
            self.at += quote + 1;
            if self.text.as_bytes().get(self.at) != Some(&b'"') {
                return Ok(());
            }
            field.push('"');
            self.at += 1;
        }
    }
}
