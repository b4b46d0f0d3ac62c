//! Parquet files, in a build with the feature `parquet`.
#![cfg(feature = "parquet")]

use std::path::Path;
use std::sync::Arc;

use lowrank_data::{
    FileFormat, Header, Label, LoadSpec, Table, Task, Tokenizer, examples_from_table,
};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

fn file() -> Vec<u8> {
    let schema = "message rows { REQUIRED BINARY sentence (UTF8); REQUIRED INT64 label; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = ["the film is slow", "good sense", "naïve café"].map(ByteArray::from);
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[0, 1, 1], None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn parse(bytes: Vec<u8>) -> Result<Table, lowrank_data::DataError> {
    Table::parse(
        Path::new("a.parquet"),
        bytes,
        FileFormat::Parquet,
        Header::Present,
    )
}

#[test]
fn rows_become_examples() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert-uncased");
    let tokenizer = Tokenizer::from_dir(&dir, None).unwrap();
    let table = parse(file()).unwrap();
    assert_eq!(table.columns(), ["sentence", "label"]);
    let loaded =
        examples_from_table(&table, &LoadSpec::new(Task::SingleLabel), Some(&tokenizer)).unwrap();
    let labels: Vec<&Label> = loaded
        .examples
        .iter()
        .map(|example| &example.label)
        .collect();
    assert_eq!(
        labels,
        [&Label::Class(0), &Label::Class(1), &Label::Class(1)]
    );
    assert_eq!(
        loaded.examples[2].input_ids,
        tokenizer
            .encode("naïve café", None, None)
            .unwrap()
            .input_ids
    );
}

#[test]
fn damaged_files_are_errors() {
    let good = file();
    assert!(
        parse(Vec::new())
            .unwrap_err()
            .to_string()
            .contains("not a readable Parquet file")
    );
    for n in 0..good.len() {
        let mut bad = good.clone();
        bad[n] ^= 0x55;
        let _ = parse(bad);
        let _ = parse(good[..n].to_vec());
    }
}
