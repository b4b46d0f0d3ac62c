//! Properties: no reader panics on any bytes; batches hold exactly what the examples hold.

use std::path::Path;

use lowrank_data::{
    BadRows, BatchLabels, Batching, Cursor, Example, FileFormat, Header, IGNORE_INDEX, Label,
    LabelMap, LabelNeed, LoadSpec, LongRows, Order, PackedBatch, Padding, Table, Task, Tokenizer,
    batches, examples_from_table, pack,
};
use proptest::prelude::*;

/// Bytes that often look like the format they are given to.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"{\"text\": \"a\", \"label\": 1}\n".to_vec()),
        Just(b"{\"input_ids\": [1, 2], \"labels\": [0, 1]}\n".to_vec()),
        Just(b"{\"tokens\": [\"a\"], \"tags\": [1e999]}".to_vec()),
        Just(b"text,label\n".to_vec()),
        Just(b"text\tlabel\n".to_vec()),
        Just("\u{feff}é\r\n".as_bytes().to_vec()),
        Just(b"\"".to_vec()),
        Just(b",".to_vec()),
        Just(b"['a' 'b']".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"\0".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"[[[[{\"".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..12),
        "[ -~]{0,12}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert-uncased"),
        None,
    )
    .unwrap()
}

proptest! {
    // Failing cases are printed; files of them are not written beside the tests.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_reader_panics(bytes in bytes(), absent in any::<bool>()) {
        let header = if absent { Header::Absent } else { Header::Present };
        for format in [FileFormat::Jsonl, FileFormat::Csv, FileFormat::Tsv, FileFormat::Text, FileFormat::Parquet] {
            match Table::parse_lenient(Path::new("x"), bytes.clone(), format, header) {
                Err(error) => prop_assert!(!error.to_string().is_empty()),
                Ok(table) => {
                    prop_assert!(!table.rows().is_empty());
                    for task in [Task::SingleLabel, Task::MultiLabel, Task::Regression, Task::TokenClassification] {
                        for need in [LabelNeed::Required, LabelNeed::IfPresent, LabelNeed::Ignored] {
                            let mut spec = LoadSpec::new(task);
                            (spec.need, spec.vocab_size, spec.max_length) = (need, Some(3), Some(2));
                            (spec.bad_rows, spec.max_bad_rows) = (BadRows::Skip, 1.0);
                            let _ = examples_from_table(&table, &spec, None).map_err(|error| error.hint());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn csv_reads_what_was_written(rows in proptest::collection::vec(proptest::collection::vec("[a-c\",\n\r\té ]{0,6}", 3), 1..8)) {
        let quote = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
        let line = |fields: &Vec<String>| fields.iter().map(quote).collect::<Vec<_>>().join(",");
        let text = format!("x,y,z\r\n{}", rows.iter().map(line).collect::<Vec<_>>().join("\r\n"));
        let table = Table::parse(Path::new("x"), text.into_bytes(), FileFormat::Csv, Header::Present).unwrap();
        prop_assert_eq!(table.rows().len(), rows.len());
        for (row, fields) in table.rows().iter().zip(&rows) {
            let json = table.to_json(row);
            for (name, field) in ["x", "y", "z"].iter().zip(fields) {
                prop_assert_eq!(json[*name].as_str().unwrap(), field);
            }
        }
    }

    #[test]
    fn batches_hold_what_the_examples_hold(lengths in proptest::collection::vec(1usize..9, 1..40), size in 1usize..10, seed in any::<u64>()) {
        let examples: Vec<Example> = lengths.iter().enumerate().map(|(i, n)| Example {
            input_ids: vec![i as u32; *n],
            token_type_ids: (i % 2 == 0).then(|| vec![1; *n]),
            label: Label::Tokens(vec![if i % 3 == 0 { IGNORE_INDEX } else { i as i64 }; *n]),
            line: i as u64,
            truncated_tokens: 0,
        }).collect();
        let order = Order { seed, shuffle: true };
        let mut run = Batching::new(order, examples.len(), size, 2);
        let (mut seen, mut made) = (Vec::new(), 0);
        let mut cursor = Cursor { epoch: 3, next_row: 0 };
        while cursor.epoch == 3 {
            // A run that goes on here, or one of another number of batches a step, has the same
            // batches.
            let next = Batching::new(order, examples.len(), size, 1).step(cursor).next().map(<[u32]>::to_vec);
            let step: Vec<Vec<u32>> = run.step(cursor).map(<[u32]>::to_vec).collect();
            prop_assert_eq!(step.first(), next.as_ref());
            prop_assert!(step.len() <= 2);
            for rows in &step {
            let batch = PackedBatch::from_rows(&examples, rows);
            made += 1;
            let tokens: usize = rows.iter().map(|row| lengths[*row as usize]).sum();
            prop_assert_eq!(tokens, batch.total_tokens());
            let BatchLabels::Tokens(labels) = &batch.labels else { panic!() };
            for (i, row) in batch.rows.iter().enumerate() {
                let range = batch.offsets[i]..batch.offsets[i + 1];
                prop_assert_eq!(&batch.input_ids[range.clone()], &examples[*row].input_ids[..]);
                prop_assert_eq!(&batch.token_type_ids[range.clone()], &vec![u32::from(row % 2 == 0); range.len()][..]);
                prop_assert_eq!(Label::Tokens(labels[range].to_vec()), examples[*row].label.clone());
            }
            seen.extend(batch.rows.iter().copied());
            cursor.advance(batch.len(), examples.len());
            }
        }
        prop_assert_eq!(cursor, Cursor { epoch: 4, next_row: 0 });
        prop_assert_eq!(made, batches(examples.len(), size).len());
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..examples.len()).collect::<Vec<_>>());
        let padding = Padding::of(&lengths, size);
        prop_assert!(padding.share() >= 0.0 && padding.share() < 1.0);
    }

    #[test]
    fn truncation_never_exceeds_the_limit(a in "\\PC{0,40}", b in proptest::option::of("\\PC{0,40}"), limit in 4usize..20) {
        let encoded = tokenizer().encode(&a, b.as_deref(), Some(limit)).unwrap();
        prop_assert!(encoded.input_ids.len() <= limit);
        prop_assert!(encoded.truncated_tokens == 0 || encoded.input_ids.len() == limit);
    }
}

#[test]
fn labels_of_each_kind_are_packed() {
    let example = |label: Label| Example {
        input_ids: vec![1, 2],
        token_type_ids: None,
        label,
        line: 1,
        truncated_tokens: 0,
    };
    let packed = |labels: [Label; 2]| {
        let examples = labels.map(example);
        pack(&[&examples[0], &examples[1]], &[7, 3])
    };
    let batch = packed([Label::Class(2), Label::Class(0)]);
    assert_eq!(
        (batch.labels, batch.rows, batch.offsets),
        (BatchLabels::Class(vec![2, 0]), vec![7, 3], vec![0, 2, 4])
    );
    let multi = packed([Label::Multi(vec![0.0, 1.0]), Label::Multi(vec![1.0, 1.0])]);
    assert_eq!(
        multi.labels,
        BatchLabels::Multi {
            values: vec![0.0, 1.0, 1.0, 1.0],
            width: 2
        }
    );
    assert_eq!(
        packed([Label::Value(0.5), Label::Value(-1.0)]).labels,
        BatchLabels::Value(vec![0.5, -1.0])
    );
    assert_eq!(packed([Label::None, Label::None]).labels, BatchLabels::None);
    assert!(pack(&[], &[]).is_empty());
}

/// The order of rows is a promise over versions: these numbers must never change.
#[test]
fn the_order_is_stable_for_ever() {
    let order = |seed, epoch| {
        Order {
            seed,
            shuffle: true,
        }
        .epoch(epoch, 10)
    };
    assert_eq!([order(0, 0), order(0, 1), order(42, 7)], GOLDEN_ORDERS);
}

const GOLDEN_ORDERS: [[u32; 10]; 3] = [
    [4, 6, 7, 2, 0, 1, 9, 8, 3, 5],
    [7, 4, 5, 9, 8, 0, 3, 2, 1, 6],
    [1, 7, 9, 3, 6, 4, 5, 8, 0, 2],
];

#[test]
fn loading_does_not_depend_on_the_number_of_threads() {
    let text: String = (0..500)
        .map(|i| format!("{{\"text\": \"film {i} is slow\", \"label\": {}}}\n", i % 3))
        .collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let table = Table::parse(
                Path::new("x"),
                text.clone().into_bytes(),
                FileFormat::Jsonl,
                Header::Present,
            )
            .unwrap();
            let mut spec = LoadSpec::new(Task::SingleLabel);
            spec.long_rows = LongRows::Truncate;
            spec.max_length = Some(6);
            spec.labels = Some(LabelMap::new(vec!["0".into(), "1".into(), "2".into()]).unwrap());
            examples_from_table(&table, &spec, Some(&tokenizer()))
                .unwrap()
                .examples
        })
    };
    assert_eq!(run(1), run(3));
}
