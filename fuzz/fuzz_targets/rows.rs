//! Any bytes as a data file of each format: an error or rows, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lowrank_data::{BadRows, FileFormat, Header, LoadSpec, Table, Task, examples_from_table};

fuzz_target!(|bytes: &[u8]| {
    for format in [FileFormat::Jsonl, FileFormat::Csv, FileFormat::Tsv, FileFormat::Text] {
        let Ok(table) = Table::parse_lenient(Path::new("rows"), bytes.to_vec(), format, Header::Present) else { continue };
        let tasks = [Task::SingleLabel, Task::MultiLabel, Task::Regression, Task::TokenClassification, Task::CausalLm];
        for task in tasks {
            let mut spec = LoadSpec::new(task);
            (spec.bad_rows, spec.max_bad_rows) = (BadRows::Skip, 1.0);
            let _ = examples_from_table(&table, &spec, None);
        }
    }
});
