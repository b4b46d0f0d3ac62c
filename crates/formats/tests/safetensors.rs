//! Safetensors: bytes equal to Python's, every lie in a header refused, nothing left behind by a
//! write that fails.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;

use common::{fixture, for_each_damage, names, scratch};
use lowrank_formats::{
    Checkpoint, DType, FormatError, OutTensor, SafetensorsFault, TensorSpec, write_model,
    write_safetensors, write_safetensors_streaming,
};

fn pt() -> Vec<(String, String)> {
    vec![("format".into(), "pt".into())]
}

/// A file with this header and `data` zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn message(bytes: Vec<u8>) -> String {
    Checkpoint::from_bytes("x.safetensors", bytes)
        .expect_err("the file is broken")
        .to_string()
}

#[test]
fn what_python_wrote_is_written_back_to_the_same_bytes() {
    for name in ["every_dtype", "no_metadata", "empty"] {
        let path = fixture(&format!("safetensors/{name}.safetensors"));
        let checkpoint = Checkpoint::open_file(&path).unwrap();
        let data: Vec<Vec<u8>> = checkpoint
            .infos()
            .map(|info| checkpoint.read_bytes(&info.name).unwrap())
            .collect();
        // Given backwards, so that the order is the writer's doing.
        let tensors: Vec<OutTensor<'_>> = checkpoint
            .infos()
            .zip(&data)
            .map(|(info, bytes)| OutTensor {
                name: &info.name,
                dtype: info.dtype,
                shape: &info.shape,
                bytes: bytes.into(),
            })
            .collect();
        let reversed: Vec<OutTensor<'_>> = tensors.into_iter().rev().collect();
        let out = scratch("safetensors_same").join(format!("{name}.safetensors"));
        write_safetensors(&out, &reversed, checkpoint.metadata()).unwrap();
        assert_eq!(
            std::fs::read(&out).unwrap(),
            std::fs::read(&path).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn every_dtype_has_its_name_and_size() {
    let checkpoint =
        Checkpoint::open_file(&fixture("safetensors/every_dtype.safetensors")).unwrap();
    assert_eq!(checkpoint.infos().len(), 17 + 4);
    for info in checkpoint.infos() {
        let bytes = checkpoint.read_bytes(&info.name).unwrap();
        assert_eq!(bytes.len(), info.numel() * info.dtype.size_bytes());
        if info.name.starts_with("t.") && info.dtype != DType::Bool {
            assert_eq!(bytes, (0..16).collect::<Vec<u8>>(), "{}", info.name);
        }
    }
    assert_eq!(checkpoint.read_i64("t.int8").unwrap()[15], 15);
    assert_eq!(checkpoint.read_i64("t.int16").unwrap()[0], 256);
    let mut two = [0.0; 2];
    checkpoint.read_f32_range("t.float16", 1, &mut two).unwrap();
    assert_eq!(
        two,
        [
            half::f16::from_bits(0x0302).to_f32(),
            half::f16::from_bits(0x0504).to_f32()
        ]
    );
    let error = checkpoint.read_f32("t.int8", &mut [0.0; 16]).unwrap_err();
    let path = fixture("safetensors/every_dtype.safetensors");
    assert_eq!(
        error.to_string(),
        format!(
            "tensor `t.int8` in `{}` is stored as I8, expected F32, F16, BF16 or F64",
            path.display()
        )
    );
    let error = checkpoint.read_f32("t.float32", &mut [0.0; 5]).unwrap_err();
    assert!(
        error.to_string().ends_with("has 4 values, asked for 0..5"),
        "{error}"
    );
    let error = checkpoint
        .read_f32_range("t.float32", usize::MAX, &mut [0.0; 2])
        .unwrap_err();
    assert!(matches!(error, FormatError::OutOfRange { .. }));
    let error = checkpoint.read_bytes("t.flaot32").unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "the nearest name in it is `t.float32`"
    );
}

#[test]
fn every_lie_has_its_message() {
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let object = |parts: &[String]| format!("{{{}}}", parts.join(","));
    let a = tensor("a", "F32", "[2]", 0, 8);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![1, 2, 3], "it has 3 bytes, expected at least 8"),
        (
            u64::MAX.to_le_bytes().to_vec(),
            "its header is said to take 18446744073709551615 bytes, but only 0 follow",
        ),
        (
            file("[]", 0),
            "its header cannot be read: expected it to begin with `{` (header byte 1)",
        ),
        (
            file("{\"a\":", 0),
            "its header cannot be read: EOF while parsing a value (header byte 5)",
        ),
        (
            file(&object(&[tensor("a", "F32", "[-1]", 0, 8)]), 8),
            "its header cannot be read: invalid value: integer `-1`, expected u64 (header byte 31)",
        ),
        (
            file(&object(&[tensor("a", "F31", "[2]", 0, 8)]), 8),
            "tensor `a` has the unknown type `F31`",
        ),
        (
            file(&object(&[a.clone(), a.clone()]), 8),
            "tensor `a` is listed twice",
        ),
        (
            file(
                &object(&[tensor("a", "F32", "[4294967296,4294967296]", 0, 8)]),
                8,
            ),
            "tensor `a` has the absurd shape [4294967296, 4294967296]",
        ),
        (
            file(&object(&[tensor("a", "F32", "[3]", 0, 8)]), 8),
            "tensor `a` is F32 [3], which takes 12 bytes, but its data has 8",
        ),
        (
            file(&object(&[tensor("a", "F32", "[2]", 8, 0)]), 8),
            "tensor `a` has its data from byte 8 to 0",
        ),
        (
            file(&object(&[a.clone(), tensor("b", "F32", "[2]", 4, 12)]), 12),
            "the data of tensor `b` begins at byte 4, inside the tensor before it, which ends at 8",
        ),
        (
            file(&object(&[a.clone(), tensor("b", "F32", "[2]", 12, 20)]), 20),
            "the data of tensor `b` begins at byte 12, expected 8: the bytes between belong to no tensor",
        ),
        (
            file(&object(std::slice::from_ref(&a)), 7),
            "it has 69 bytes, but its header describes 70",
        ),
        (
            file(&object(std::slice::from_ref(&a)), 9),
            "it has 71 bytes, 1 more than its header describes",
        ),
        (
            file(r#"{"__metadata__":{"format":1}}"#, 0),
            "its header cannot be read: invalid type: integer `1`, expected a string (header byte 27)",
        ),
        (
            file("{\"a\u{0}\":1}", 0),
            "its header cannot be read: control character (\\u0000-\\u001F) found while parsing a string (header byte 4)",
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(
            message(bytes),
            format!("`x.safetensors` is not a valid safetensors file: {expected}")
        );
    }
    let not_text = file("{\"\u{1}\":1}", 0)
        .into_iter()
        .map(|b| if b == 1 { 0xff } else { b })
        .collect();
    assert!(message(not_text).contains("its header cannot be read"));
}

#[test]
fn a_deep_header_is_refused_without_deep_recursion() {
    let deep = format!("{{\"a\":{}", "[".repeat(1 << 20));
    assert!(message(file(&deep, 0)).contains("its header cannot be read"));
}

#[test]
fn damage_is_an_error_or_a_valid_file_but_never_a_panic() {
    let path = fixture("safetensors/every_dtype.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for_each_damage(&bytes, header, |damaged| {
        let whole = damaged.len() == bytes.len();
        match Checkpoint::from_bytes("x.safetensors", damaged) {
            // A flipped bit in a name is another valid name; then every tensor must be readable.
            Ok(checkpoint) => {
                assert!(whole, "a truncated file was accepted");
                for info in checkpoint.infos() {
                    checkpoint.read_bytes(&info.name).unwrap();
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    });
    assert!(refused > bytes.len());
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error() {
    let dir = scratch("safetensors_shrinks");
    let path = dir.join("x.safetensors");
    write_safetensors(
        &path,
        &[OutTensor::f32("a", &[4], &[1.0, 2.0, 3.0, 4.0])],
        &pt(),
    )
    .unwrap();
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len - 1)
        .unwrap();
    let error = checkpoint.read_f32("a", &mut [0.0; 4]).unwrap_err();
    assert!(
        error.to_string().contains("the file ends before byte"),
        "{error}"
    );
}

#[test]
fn a_streamed_file_equals_a_written_one_and_lies_of_the_caller_are_told() {
    let dir = scratch("safetensors_stream");
    let (a, b) = ([1.0f32, 2.0], [3.0f32]);
    write_safetensors(
        &dir.join("whole"),
        &[OutTensor::f32("b", &[1], &b), OutTensor::f32("a", &[2], &a)],
        &pt(),
    )
    .unwrap();
    let spec = |name: &str, len: usize| TensorSpec {
        name: name.into(),
        dtype: DType::F32,
        shape: vec![len],
    };
    let specs = [spec("b", 1), spec("a", 2)];
    let mut order = Vec::new();
    write_safetensors_streaming(&dir.join("stream"), &specs, &pt(), &mut |spec, out| {
        order.push(spec.name.clone());
        let values: &[f32] = if spec.name == "a" { &a } else { &b };
        values
            .iter()
            .try_for_each(|value| out.write_all(&value.to_le_bytes()))
    })
    .unwrap();
    assert_eq!(order, ["a", "b"]);
    assert_eq!(
        std::fs::read(dir.join("stream")).unwrap(),
        std::fs::read(dir.join("whole")).unwrap()
    );

    let before = std::fs::read(dir.join("whole")).unwrap();
    let short = write_safetensors_streaming(&dir.join("whole"), &specs, &pt(), &mut |_, out| {
        out.write_all(&[0; 3])
    });
    let path = dir.join("whole");
    assert_eq!(
        short.unwrap_err().to_string(),
        format!(
            "cannot write `{}`: tensor `a` takes 8 bytes, but 3 were given",
            path.display()
        )
    );
    let full = write_safetensors_streaming(&path, &specs, &pt(), &mut |_, _| {
        Err(std::io::ErrorKind::StorageFull.into())
    });
    assert_eq!(
        full.unwrap_err().hint().unwrap(),
        "free some space; nothing that was there before is lost"
    );
    let twice = write_safetensors(
        &path,
        &[OutTensor::f32("a", &[1], &b), OutTensor::f32("a", &[1], &b)],
        &pt(),
    );
    assert!(matches!(twice.unwrap_err(), FormatError::Unwritable { .. }));
    let wrong = write_safetensors(&path, &[OutTensor::f32("a", &[3], &b)], &pt());
    assert!(
        wrong
            .unwrap_err()
            .to_string()
            .contains("is F32 [3], but 4 bytes of it were given")
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(names(&dir), ["stream", "whole"]);
}

#[test]
fn a_large_model_is_split_into_shards_that_open_as_one() {
    let dir = scratch("safetensors_shards");
    let specs: Vec<TensorSpec> = (0..5)
        .map(|i| TensorSpec {
            name: format!("w{i}"),
            dtype: DType::F32,
            shape: vec![4],
        })
        .collect();
    let mut data = |spec: &TensorSpec, out: &mut dyn std::io::Write| {
        let value = spec.name[1..].parse::<f32>().unwrap();
        out.write_all(&[value; 4].map(f32::to_le_bytes).concat())
    };
    let files = write_model(&dir, &specs, 40, &mut data).unwrap();
    assert_eq!(files.len(), 4);
    assert_eq!(
        names(&dir),
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json"
        ]
    );
    let checkpoint = Checkpoint::open_dir(&dir).unwrap();
    assert_eq!(checkpoint.files().len(), 3);
    for i in 0..5 {
        assert_eq!(
            checkpoint.read_f32_vec(&format!("w{i}")).unwrap(),
            [i as f32; 4]
        );
    }
    let one = scratch("safetensors_one_shard");
    write_model(&one, &specs, u64::MAX, &mut data).unwrap();
    assert_eq!(names(&one), ["model.safetensors"]);
}

#[test]
fn an_oversized_header_is_refused_before_it_is_read() {
    let fault =
        lowrank_formats::safetensors::Header::json_len(200_000_000u64.to_le_bytes(), u64::MAX);
    assert_eq!(
        fault,
        Err(SafetensorsFault::HeaderTooLarge {
            header: 200_000_000
        })
    );
}
