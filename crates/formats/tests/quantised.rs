//! Blocks of every GGUF type that is read decode to the bits of gguf-py. The numbers are made by
//! `tools/golden/quantised_blocks.py`.

mod common;

use std::path::PathBuf;

use lowrank_formats::Checkpoint;
use lowrank_formats::quantised::{BLOCK_FORMATS, BlockFormat, encode};

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

/// The numbers are made by `tools/golden/encoders.py`.
#[test]
fn values_are_put_into_the_blocks_of_gguf_py_and_bitsandbytes() {
    let numbers = Checkpoint::open_file(&golden("encoded.safetensors")).unwrap();
    let values = numbers.read_f32_vec("values").unwrap();
    let of = |name: &str| {
        let format = BlockFormat::from_name(name).unwrap();
        format.parts(&numbers.read_bytes(name).unwrap())
    };
    assert_eq!(encode::q8_0(&values), of("Q8_0"));
    assert_eq!(encode::q4_0(&values), of("Q4_0"));
    for name in ["Q8_0", "Q4_0"] {
        let bytes = encode::bytes(BlockFormat::from_name(name).unwrap(), &values).unwrap();
        assert_eq!(bytes, numbers.read_bytes(name).unwrap(), "{name}");
    }
    let map = numbers.read_f32_vec("NF4.map").unwrap();
    let parts = encode::nf4(&values, &map.try_into().expect("sixteen values"));
    let codes = numbers.read_bytes("NF4.codes").unwrap();
    let codes: Vec<u8> = codes
        .iter()
        .flat_map(|both| [both >> 4, both & 15])
        .collect();
    let maxima = numbers.read_f32_vec("NF4.absmax").unwrap();
    let maxima: Vec<u32> = maxima.iter().map(|v| v.to_bits()).collect();
    assert_eq!((parts.codes, parts.scales), (codes, maxima));
}

/// The forms of Hugging Face directories, made by `tools/golden/packed_models.py`, and what
/// `inspect` calls them.
const FORMS: [(&str, &[&str]); 15] = [
    ("bnb-nf4", &["NF4"]),
    ("bnb-nf4-double", &["NF4"]),
    ("bnb-fp4", &["FP4"]),
    ("bnb-fp4-double-gpt2", &["FP4"]),
    ("bnb-int8", &["LLM.int8"]),
    ("fp8", &["FP8 (e4m3)", "FP8 (e5m2)"]),
    ("compressed-tensors", &["FP8 (e4m3)", "pack-quantized"]),
    ("gptq-v1", &["GPTQ"]),
    ("gptq-v1-act-order", &["GPTQ"]),
    ("gptq-v2", &["GPTQ"]),
    ("gptq-v1-2bit", &["GPTQ"]),
    ("gptq-v1-3bit", &["GPTQ"]),
    ("gptq-v2-3bit-act-order", &["GPTQ"]),
    ("awq", &["AWQ"]),
    ("mxfp4", &["MXFP4"]),
];

/// The first value that differs in its bits. Of FP4's second zero bitsandbytes gives either sign,
/// as its kernel has it.
fn check_bits(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_zero = name.starts_with("bnb-fp4") && *found == 0.0 && *expected == 0.0;
        let same = is_zero || found.to_bits() == expected.to_bits();
        assert!(
            same,
            "{name}, value {at}: expected {expected:e}, found {found:e}"
        );
    }
}

#[test]
fn packed_tensors_decode_to_the_bits_of_the_programs_that_packed_them() {
    for (form, formats) in FORMS {
        let dir = golden("packed").join(form);
        let checkpoint = Checkpoint::open_model(&dir).unwrap();
        let expected = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
        let mut found_formats = std::collections::BTreeSet::new();
        for info in expected.infos() {
            let place = format!("{form} {}", info.name);
            let wanted = expected.read_f32_vec(&info.name).unwrap();
            let listed = checkpoint
                .info(&info.name)
                .unwrap_or_else(|| panic!("{place}"));
            assert_eq!(listed.shape, info.shape, "{place}");
            found_formats.insert(listed.packed.expect("it is packed").format);
            check_bits(
                &place,
                &checkpoint.read_f32_vec(&info.name).unwrap(),
                &wanted,
            );
            // Any stretch, also one that begins and ends inside rows, blocks and bytes.
            for start in [
                1,
                31.min(wanted.len() - 1),
                wanted.len() / 2,
                wanted.len() - 2,
            ] {
                for len in [1, 2, 67] {
                    let len = len.min(wanted.len() - start);
                    let mut part = vec![f32::NAN; len];
                    checkpoint
                        .read_f32_range(&info.name, start, &mut part)
                        .unwrap();
                    check_bits(
                        &format!("{place} from {start}"),
                        &part,
                        &wanted[start..][..len],
                    );
                }
            }
        }
        assert_eq!(
            found_formats.into_iter().collect::<Vec<_>>(),
            formats,
            "{form}"
        );
        let packed = checkpoint
            .infos()
            .filter(|info| info.packed.is_some())
            .count();
        assert_eq!(packed, expected.infos().len(), "{form}");
    }
}

#[test]
fn stretches_of_blocks_are_those_of_the_whole() {
    let file = Checkpoint::open_model(&golden("gpt2.gguf")).unwrap();
    for info in file.infos() {
        let whole = file.read_f32_vec(&info.name).unwrap();
        for start in [0, 1, 33, 255, whole.len() - 1] {
            let start = start.min(whole.len() - 1);
            for len in [1, 40, 700] {
                let len = len.min(whole.len() - start);
                let mut part = vec![f32::NAN; len];
                file.read_f32_range(&info.name, start, &mut part).unwrap();
                check_bits(
                    &format!("{} from {start}", info.name),
                    &part,
                    &whole[start..][..len],
                );
            }
        }
    }
}

/// A copy of a form with one tensor or setting changed.
fn damaged(form: &str, change: impl Fn(&mut serde_json::Value, &mut Vec<u8>)) -> String {
    let dir = common::scratch(&format!("damaged_{:?}", std::thread::current().id()));
    let from = golden("packed").join(form);
    let mut config =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let mut weights = std::fs::read(from.join("model.safetensors")).unwrap();
    change(&mut config, &mut weights);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    match Checkpoint::open_model(&dir) {
        Ok(checkpoint) => {
            for info in checkpoint.infos().filter(|info| info.dtype.is_float()) {
                let _ = checkpoint.read_f32_vec(&info.name);
            }
            "taken".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// The same text of the header in another word of the same length.
fn renamed(weights: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = weights
        .windows(from.len())
        .position(|part| part == from.as_bytes())
        .unwrap();
    weights[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let method = |name: &'static str| {
        damaged("awq", move |config, _| {
            config["quantization_config"]["quant_method"] = name.into()
        })
    };
    assert!(method("hqq").contains("`quant_method` is `hqq`, expected one of `bitsandbytes`"));
    let bits = damaged("gptq-v1", |config, _| {
        config["quantization_config"]["bits"] = 5.into()
    });
    assert!(
        bits.contains("`bits` is 5, expected one of [2, 3, 4, 8]"),
        "{bits}"
    );
    let other = damaged("gptq-v1", |config, _| {
        config["quantization_config"]["bits"] = 8.into()
    });
    assert!(other.contains("has the shape"), "{other}");
    for (form, from, to, expected) in [
        (
            "awq",
            "a.scales",
            "a.scalez",
            "`a.scales` of the quantised model",
        ),
        (
            "gptq-v1",
            "a.qzeros",
            "a.qzeroz",
            "`a.qzeros` of the quantised model",
        ),
        (
            "bnb-nf4",
            "0.up.weight.absmax",
            "0.up.weight.absmix",
            "is missing beside the packed values",
        ),
        (
            "bnb-int8",
            "a.weight\"",
            "z.weight\"",
            "`a.weight` of the quantised model",
        ),
        (
            "mxfp4",
            "experts.down_proj_scales",
            "experts.down_proj_scalez",
            "is missing beside the packed values",
        ),
        (
            "compressed-tensors",
            "a.weight_shape",
            "a.weight_shope",
            "is missing beside",
        ),
    ] {
        let found = damaged(form, |_, weights| renamed(weights, from, to));
        assert!(found.contains(expected), "{form}: {found}");
    }
    let lying = damaged("bnb-nf4", |_, weights| {
        renamed(weights, "\"shape\": [7, 50]", "\"shape\": [7, 99]")
    });
    assert!(lying.contains("has 175 values, expected 347"), "{lying}");
}

#[test]
fn no_damage_to_packed_tensors_makes_them_panic() {
    for (form, _) in FORMS {
        let len = std::fs::metadata(golden("packed").join(form).join("model.safetensors"))
            .unwrap()
            .len();
        for at in (0..len as usize).step_by(1 + len as usize / 60) {
            damaged(form, |_, weights| weights[at] ^= 1 << (at % 8));
        }
    }
}
