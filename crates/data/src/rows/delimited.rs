//! CSV and TSV. An own reader of some lines, because the usual ones take a quote that is never closed for the rest of
//! the file and say nothing; here it is an error with its line.

use std::path::Path;

use super::{Fields, Header, Parsed, Row};
use crate::error::{DataError, FileProblem, MAX_FAULTS_SHOWN, RowFault, RowFaultKind};

/// What separates fields, and whether quotes hide it.
#[derive(Clone, Copy)]
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

/// Parses all records; every row must have as many fields as the header.
pub(super) fn parse(
    path: &Path,
    text: &str,
    dialect: Dialect,
    header: Header,
) -> Result<Parsed, DataError> {
    let mut reader = Reader {
        text,
        at: 0,
        line: 1,
        dialect,
    };
    let mut records: Vec<(u64, Vec<String>)> = Vec::new();
    let mut blank_lines = 0;
    loop {
        match reader.next_record() {
            Ok(Record::Fields { line, fields }) => records.push((line, fields)),
            Ok(Record::Blank) => blank_lines += 1,
            Ok(Record::End) => break,
            Err((line, problem)) => {
                return Err(DataError::Malformed {
                    path: path.into(),
                    line,
                    problem,
                });
            }
        }
    }
    let mut records = records.into_iter().peekable();
    let columns: Vec<String> = match header {
        Header::Present => match records.next() {
            Some((_, names)) => names.iter().map(|name| name.trim().to_string()).collect(),
            None => Vec::new(),
        },
        Header::Absent => {
            let n = records.peek().map_or(0, |(_, fields)| fields.len());
            (0..n).map(|i| i.to_string()).collect()
        }
    };
    let rows: Vec<Row> = records
        .map(|(line, fields)| Row {
            line,
            fields: Fields::Text(fields),
        })
        .collect();
    refuse_ragged(path, &rows, columns.len())?;
    Ok(Parsed {
        columns,
        rows,
        blank_lines,
    })
}

fn refuse_ragged(path: &Path, rows: &[Row], expected: usize) -> Result<(), DataError> {
    let mut ragged = rows.iter().filter_map(|row| match &row.fields {
        Fields::Text(fields) if fields.len() != expected => Some(RowFault {
            line: row.line,
            column: None,
            kind: RowFaultKind::Ragged {
                expected,
                found: fields.len(),
            },
        }),
        Fields::Text(_) | Fields::Object(_) => None,
    });
    let faults: Vec<RowFault> = ragged.by_ref().take(MAX_FAULTS_SHOWN).collect();
    if faults.is_empty() {
        return Ok(());
    }
    let total = faults.len() + ragged.count();
    Err(DataError::Rows {
        path: path.into(),
        total,
        rows: rows.len(),
        faults,
    })
}

enum Record {
    Fields { line: u64, fields: Vec<String> },
    Blank,
    End,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u64,
    dialect: Dialect,
}

impl Reader<'_> {
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
        let mut fields = Vec::new();
        loop {
            let (field, more) = self.next_field(fields.len() + 1)?;
            fields.push(field);
            if !more {
                return Ok(Record::Fields { line, fields });
            }
        }
    }

    /// The next field, and whether another follows in the same record. Stands behind its separator or line end then.
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
