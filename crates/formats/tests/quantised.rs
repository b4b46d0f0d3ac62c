//! Blocks of every GGUF type that is read decode to the bits of gguf-py. The numbers are made by
//! `tools/golden/quantised_blocks.py`.

mod common;

use std::path::PathBuf;

use lowrank_formats::Checkpoint;
use lowrank_formats::quantised::BLOCK_FORMATS;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/quantised")
        .join(name)
}

#[test]
fn every_block_decodes_to_the_bits_of_gguf_py() {
    let numbers = Checkpoint::open_file(&golden("blocks.safetensors")).unwrap();
    let mut read = Vec::new();
    for format in BLOCK_FORMATS.iter().filter(|format| format.is_read()) {
        if format.name == "F64" {
            continue;
        }
        let blocks = numbers
            .read_bytes(&format!("{}.blocks", format.name))
            .unwrap();
        let expected = numbers
            .read_f32_vec(&format!("{}.values", format.name))
            .unwrap();
        assert_eq!(
            blocks.len() / format.bytes * format.values,
            expected.len(),
            "{}",
            format.name
        );
        let mut values = vec![f32::NAN; expected.len()];
        format.decode(&blocks, &mut values);
        for (at, (found, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{}, value {at}: expected {expected:e}, found {found:e}",
                format.name
            );
        }
        read.push(format.name);
    }
    let all = "F32 F16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS BF16 MXFP4";
    assert_eq!(read.join(" "), all);
}
