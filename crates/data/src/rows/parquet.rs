//! Parquet: each record as a JSON object.

use std::path::Path;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::{Fields, Parsed, Row};
use crate::error::{DataError, FileProblem};
use crate::panics::catch;

/// Reads all records; lines are record numbers, counted from 1.
pub(super) fn parse(path: &Path, bytes: Vec<u8>) -> Result<Parsed, DataError> {
    // The decoder is not written for hostile files and panics on some of them.
    let read = catch(|| read(bytes));
    let fault = |line, problem| DataError::Malformed {
        path: path.into(),
        line,
        problem: FileProblem::Parquet(problem),
    };
    match read {
        Some(Ok(parsed)) => Ok(parsed),
        Some(Err((line, error))) => Err(fault(line, error.to_string())),
        None => Err(fault(1, "its parts contradict each other".into())),
    }
}

fn read(bytes: Vec<u8>) -> Result<Parsed, (u64, ParquetError)> {
    let reader =
        SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(|error| (1, error))?;
    let schema = reader.metadata().file_metadata().schema();
    let columns = schema
        .get_fields()
        .iter()
        .map(|field| field.name().to_string())
        .collect();
    let records = reader.get_row_iter(None).map_err(|error| (1, error))?;
    let mut rows = Vec::new();
    for (line, record) in (1..).zip(records) {
        let record = record.map_err(|error| (line, error))?;
        let map: Map<String, Value> = record
            .get_column_iter()
            .map(|(name, field)| (name.clone(), field.to_json_value()))
            .collect();
        rows.push(Row {
            line,
            fields: Fields::Object(map),
        });
    }
    Ok(Parsed {
        columns,
        rows,
        ..Parsed::default()
    })
}
