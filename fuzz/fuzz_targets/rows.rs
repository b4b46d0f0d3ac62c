//! Any bytes as a data file of each format: an error or rows, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lowrank_data::{FileFormat, Header, LoadSpec, Table, Task, examples_from_table};

fuzz_target!(|bytes: &[u8]| {
    for format in [FileFormat::Jsonl, FileFormat::Csv, FileFormat::Tsv] {
        let Ok(table) = Table::parse(Path::new("rows"), bytes.to_vec(), format, Header::Present) else { continue };
        for task in [Task::SingleLabel, Task::MultiLabel, Task::Regression, Task::TokenClassification] {
            let _ = examples_from_table(&table, &LoadSpec::new(task), None);
        }
    }
});
