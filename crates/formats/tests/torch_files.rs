//! PyTorch files, zip and legacy: every kind of tensor is read as torch has it, and nothing that
//! could run code is accepted.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;

use common::{fixture, for_each_damage, json, scratch};
use lowrank_formats::torch::TorchFile;
use lowrank_formats::{Checkpoint, DType, FormatError, TorchFault};
use serde_json::Value;

/// Compares every tensor of a checkpoint with what Python wrote down.
fn check_tensors(checkpoint: &Checkpoint, expected: &Value) {
    let expected = expected.as_object().unwrap();
    let found: Vec<&str> = checkpoint.infos().map(|info| info.name.as_str()).collect();
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    assert_eq!(found, names);
    for (name, tensor) in expected {
        let info = checkpoint.info(name).unwrap();
        assert_eq!(
            info.dtype.name(),
            tensor["dtype"].as_str().unwrap(),
            "{name}"
        );
        let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
        assert_eq!(info.shape, shape, "{name}");
        if info.dtype.is_float() {
            let values: Vec<f64> = serde_json::from_value(tensor["values"].clone()).unwrap();
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            assert_eq!(checkpoint.read_f32_vec(name).unwrap(), values, "{name}");
            check_ranges(checkpoint, name, &values);
        } else {
            let values: Vec<i64> = serde_json::from_value(tensor["values"].clone()).unwrap();
            assert_eq!(checkpoint.read_i64(name).unwrap(), values, "{name}");
        }
    }
}

/// Every range of a small tensor, which for a view means every place of its strides.
fn check_ranges(checkpoint: &Checkpoint, name: &str, values: &[f32]) {
    for start in 0..=values.len() {
        for end in start..=values.len() {
            let mut part = vec![0.0; end - start];
            checkpoint.read_f32_range(name, start, &mut part).unwrap();
            assert_eq!(part, &values[start..end], "{name} {start}..{end}");
        }
    }
}

#[test]
fn every_kind_of_tensor_is_read_as_torch_has_it() {
    let expected = json("torch/expected.json");
    for name in [
        "zip.bin",
        "zip_protocol4.bin",
        "legacy.bin",
        "nested.pt",
        "nested_legacy.pt",
    ] {
        let checkpoint = Checkpoint::open_file(&fixture("torch").join(name)).unwrap();
        check_tensors(&checkpoint, &expected["state_dict"]);
    }
    let checkpoint = Checkpoint::open_file(&fixture("torch/module.bin")).unwrap();
    check_tensors(&checkpoint, &expected["module"]);
    let checkpoint = Checkpoint::open_file(&fixture("torch/zip_v3.bin")).unwrap();
    assert_eq!(checkpoint.info("wide").unwrap().dtype, DType::U16);
    assert_eq!(checkpoint.read_i64("wide").unwrap(), [1, 65535]);
}

#[test]
fn a_state_dict_in_another_dict_is_found_and_never_guessed() {
    let names = |name: &str| -> Vec<String> {
        let checkpoint = Checkpoint::open_file(&fixture("torch").join(name)).unwrap();
        checkpoint.infos().map(|info| info.name.clone()).collect()
    };
    // Counters beside it are tensors too; the optimizer's moments are no model.
    assert_eq!(names("deep.pt"), ["a", "b"]);
    assert_eq!(names("other_key.pt"), ["a", "b"]);
    let text = refusal("torch/two_dicts.pt").to_string();
    assert!(text.contains("`first` (dict), `second` (dict)"), "{text}");
}

#[test]
fn the_values_beside_the_tensors_can_be_looked_through() {
    for name in ["nested.pt", "nested_legacy.pt"] {
        let file = TorchFile::open(&fixture("torch").join(name)).unwrap();
        let root = file.root();
        let args = root.get("args").unwrap();
        assert_eq!(args.kind(), "argparse.Namespace");
        assert_eq!(args.get("arch").unwrap().as_str(), Some("roberta"));
        assert_eq!(args.get("encoder_layers").unwrap().as_i64(), Some(4));
        assert_eq!(args.get("dropout").unwrap().as_f64(), Some(0.1));
        assert_eq!(args.get("share").unwrap().as_bool(), Some(true));
        assert!(args.get("none").unwrap().is_none());
        let langs: Vec<_> = args
            .get("langs")
            .unwrap()
            .elements()
            .filter_map(|v| v.as_str())
            .collect();
        assert_eq!(langs, ["a", "b"]);
        assert!(args.get("missing").is_none());
        assert_eq!(root.get("size").unwrap().elements().count(), 2);
        assert_eq!(root.get("names").unwrap().kind(), "set");
        assert_eq!(root.get("names").unwrap().elements().count(), 2);
        assert_eq!(root.get("big").unwrap().kind(), "int");
        assert_eq!(root.get("big").unwrap().as_i64(), None);
        assert_eq!(root.get("raw").unwrap().kind(), "bytes");
        assert_eq!(root.get("dtype").unwrap().kind(), "type");
        assert_eq!(root.get("device").unwrap().as_str(), Some("cpu"));
        let tensor = root.get("model").unwrap().get("inner").unwrap().as_tensor();
        assert_eq!(tensor, Some((DType::F32, [2, 3].as_slice())));
    }
}

fn refusal(name: &str) -> FormatError {
    Checkpoint::open_file(&fixture(name)).expect_err("the file must be refused")
}

#[test]
fn every_name_that_could_run_code_is_refused_by_its_name() {
    let cases = [
        ("system", "posix.system"),
        ("eval", "__builtin__.eval"),
        ("import", "__builtin__.__import__"),
        ("getattr", "__builtin__.getattr"),
        ("foreign", "__main__.Foreign"),
        ("load_from_bytes", "torch.storage._load_from_bytes"),
    ];
    for (file, global) in cases {
        for suffix in ["", "_legacy"] {
            let error = refusal(&format!("malicious/{file}{suffix}.bin"));
            let text = error.to_string();
            assert!(
                text.contains(&format!("the pickle asks for `{global}` at byte")),
                "{text}"
            );
            assert_eq!(
                error.hint().unwrap(),
                "reading it would mean running code from the file; if you trust it, convert it with Python to safetensors"
            );
        }
    }
}

#[test]
fn files_that_are_something_else_are_told_apart() {
    let cases = [
        (
            "malicious/plain_pickle.bin",
            "it does not begin with PyTorch's magic number",
        ),
        (
            "malicious/not_torch.zip",
            "its archive is damaged: it has no `data.pkl`",
        ),
        (
            "malicious/compressed.bin",
            "its archive is damaged: entry `archive/data.pkl` is compressed or encrypted, expected it stored plainly",
        ),
        (
            "torch/script.pt",
            "it is a TorchScript program, expected a state dict",
        ),
        (
            "torch/no_state_dict.pt",
            "it holds no state dict; at the top there is a dict with `epoch` (int), `inner` (dict)",
        ),
    ];
    for (name, expected) in cases {
        let text = refusal(name).to_string();
        assert!(text.ends_with(expected), "{text}");
    }
}

#[test]
fn other_content_is_named_by_its_first_bytes() {
    let dir = scratch("torch_other");
    let cases: [(&str, &[u8], &str); 3] = [
        ("empty.bin", b"", "nothing: it is empty"),
        ("page.bin", b"<html>hello", "`<html>he`"),
        (
            "pointer.bin",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "`version https://git-lfs`",
        ),
    ];
    for (name, bytes, found) in cases {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(
            Checkpoint::open_file(&path).unwrap_err().to_string(),
            format!(
                "`{}` is neither a safetensors file nor a PyTorch file (it starts with {found})",
                path.display()
            )
        );
    }
    let tar: Vec<u8> = [vec![b'a'; 257], b"ustar  ".to_vec(), vec![0; 300]].concat();
    let error = TorchFile::from_bytes("old.pt", tar).unwrap_err();
    assert!(matches!(
        error,
        FormatError::Torch {
            fault: TorchFault::Tar,
            ..
        }
    ));
}

#[test]
fn damage_is_an_error_or_a_valid_file_but_never_a_panic() {
    for name in [
        "torch/zip.bin",
        "torch/zip_protocol4.bin",
        "torch/legacy.bin",
        "torch/nested_legacy.pt",
    ] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let (mut refused, mut accepted) = (0, 0);
        for_each_damage(&bytes, bytes.len(), |damaged| {
            let Ok(checkpoint) = Checkpoint::from_bytes("x.bin", damaged) else {
                refused += 1;
                return;
            };
            accepted += 1;
            for info in checkpoint.infos() {
                checkpoint.read_bytes(&info.name).unwrap();
            }
        });
        assert!(
            refused > accepted / 4,
            "{name}: {refused} refused, {accepted} accepted"
        );
    }
}

/// A legacy file around one pickle that is written by hand.
fn legacy_with(value: &[u8], keys: &[u8], data: &[u8]) -> Vec<u8> {
    let magic: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
    let version: &[u8] = b"\x80\x02M\xe9\x03.";
    let machine: &[u8] = b"\x80\x02}.";
    [magic, version, machine, value, keys, data].concat()
}

/// `{"w": _rebuild_tensor_v2(FloatStorage "0" of `len`, offset, size, stride)}`.
fn pickled_tensor(len: u8, offset: u8, size: &[u8], stride: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK".to_vec();
    pickle.extend([len]);
    pickle.extend(b"tQK");
    pickle.extend([offset]);
    for dimensions in [size, stride] {
        pickle.push(b'(');
        for &dimension in dimensions {
            pickle.extend([b'K', dimension]);
        }
        pickle.push(b't');
    }
    pickle.extend(b"\x89}tRs.");
    pickle
}

fn legacy_tensor(stored: u64, pickle: Vec<u8>) -> Result<Checkpoint, FormatError> {
    let data = [stored.to_le_bytes().to_vec(), vec![0; stored as usize * 4]].concat();
    Checkpoint::from_bytes(
        "x.bin",
        legacy_with(&pickle, b"\x80\x02]X\x01\x00\x00\x000a.", &data),
    )
}

#[test]
fn a_tensor_may_not_reach_outside_its_storage() {
    assert!(legacy_tensor(6, pickled_tensor(6, 0, &[2, 3], &[3, 1])).is_ok());
    assert!(legacy_tensor(6, pickled_tensor(6, 5, &[1], &[1])).is_ok());
    assert!(legacy_tensor(6, pickled_tensor(6, 200, &[0], &[1])).is_ok());
    let cases = [
        (
            pickled_tensor(6, 0, &[7], &[1]),
            "its values reach to 7, but its storage has 6",
        ),
        (
            pickled_tensor(6, 6, &[1], &[1]),
            "its values reach to 7, but its storage has 6",
        ),
        (
            pickled_tensor(6, 0, &[2, 3], &[4, 1]),
            "its values reach to 7, but its storage has 6",
        ),
        (
            pickled_tensor(5, 0, &[2], &[1]),
            "its storage `0` is said to have 5 values, but 24 bytes of it are in the file",
        ),
        (
            pickled_tensor(6, 0, &[255, 255, 255], &[0, 0, 0]),
            "the shape [255, 255, 255] with strides [0, 0, 0] is absurd",
        ),
        (
            pickled_tensor(6, 0, &[255; 9], &[0; 9]),
            "with strides [0, 0, 0, 0, 0, 0, 0, 0, 0] is absurd",
        ),
        (
            pickled_tensor(6, 0, &[2, 3], &[1]),
            "a tensor's storage, offset, size or stride is not what it should be",
        ),
    ];
    for (pickle, expected) in cases {
        let text = legacy_tensor(6, pickle).expect_err(expected).to_string();
        assert!(text.ends_with(expected), "{text}");
    }
}

#[test]
fn malformed_pickles_have_their_messages() {
    let case = |body: &[u8]| {
        let bytes = legacy_with(body, b"", b"");
        let text = Checkpoint::from_bytes("x.bin", bytes)
            .expect_err("malformed")
            .to_string();
        text.trim_start_matches("cannot read `x.bin` as a PyTorch file: ")
            .to_owned()
    };
    assert_eq!(
        case(b""),
        "the pickle ends at byte 25 in the middle of an opcode"
    );
    assert_eq!(
        case(b"\x80\x09."),
        "the pickle is malformed at byte 27: protocol 9 is unknown, expected at most 5"
    );
    assert_eq!(
        case(b"."),
        "the pickle is malformed at byte 26: an opcode needs a value, the stack has none"
    );
    assert_eq!(
        case(b"h\x05."),
        "the pickle is malformed at byte 27: memo entry 5 was never stored"
    );
    assert_eq!(
        case(b"X\xff\xff\xff\xffabc"),
        "the pickle ends at byte 33 in the middle of text"
    );
    assert_eq!(
        case(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"),
        "the pickle ends at byte 34 in the middle of text"
    );
    assert_eq!(
        case(b"X\x01\x00\x00\x00\xff."),
        "the pickle is malformed at byte 31: text is not UTF-8"
    );
    assert_eq!(
        case(b"(ios\nsystem\n."),
        "the pickle uses opcode `INST` at byte 26, which is not among those that only build data"
    );
    assert_eq!(
        case(b"P1\n."),
        "the pickle uses opcode `PERSID` at byte 25, which is not among those that only build data"
    );
    assert_eq!(
        case(b"\xff."),
        "the pickle uses opcode 0xff at byte 25, which is not among those that only build data"
    );
    assert_eq!(
        case(b"K\x01)R."),
        "the pickle is malformed at byte 29: something other than an allowed name is called"
    );
    assert_eq!(
        case(b"K\x01a."),
        "the pickle is malformed at byte 28: an opcode needs a value, the stack has none"
    );
    assert_eq!(
        case(b"}(K\x01u."),
        "the pickle is malformed at byte 30: a dict has a key without a value"
    );
    assert_eq!(
        case(b"K\x01Q."),
        "the pickle is malformed at byte 28: arguments are not a tuple"
    );
    assert_eq!(
        case(b")Q."),
        "the pickle is malformed at byte 27: a persistent id is not that of a tensor storage"
    );
    assert_eq!(
        case(b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93."),
        "the pickle asks for `os.system` at byte 43, which is not among the names that only hold data"
    );
    assert_eq!(
        case(b"ctorch\nFloatStorage\n)\x81."),
        "the pickle is malformed at byte 47: an object of something other than an allowed class is made"
    );
}

#[test]
fn small_pickles_cannot_ask_for_large_memory() {
    // One tuple of 100,000 values, copied by a call again and again.
    let mut pickle = b"\x80\x02(".to_vec();
    pickle.extend([b'N'; 100_000]);
    pickle.extend(b"tq\x00\x85q\x01");
    for _ in 0..10_000 {
        pickle.extend(b"ctorch\nSize\nh\x01R0");
    }
    pickle.extend(b".");
    let error = Checkpoint::from_bytes("x.bin", legacy_with(&pickle, b"", b"")).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("the pickle builds more than 4194304 objects"),
        "{error}"
    );
}

#[test]
fn a_cycle_and_deep_nesting_are_harmless() {
    // A list that holds itself, and 100,000 lists in each other.
    let cycle = b"\x80\x02]q\x00h\x00a.";
    let text = Checkpoint::from_bytes("x.bin", legacy_with(cycle, b"\x80\x02].", b""))
        .unwrap_err()
        .to_string();
    assert!(
        text.ends_with("it holds no state dict; at the top there is a value of type list"),
        "{text}"
    );
    let deep = [
        b"\x80\x02".to_vec(),
        vec![b']'; 100_000],
        vec![b'a'; 99_999],
        b".".to_vec(),
    ]
    .concat();
    assert!(Checkpoint::from_bytes("x.bin", legacy_with(&deep, b"\x80\x02].", b"")).is_err());
}

/// The pickles that come before the value in a file of before PyTorch 1.6.
const LEGACY_HEAD: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

/// `BINUNICODE` of a text, stored under memo number 0.
fn long_text(len: u32) -> Vec<u8> {
    let mut pickle = b"\x80\x02X".to_vec();
    pickle.extend(len.to_le_bytes());
    pickle.extend(vec![b'a'; len as usize]);
    pickle.extend(b"q\x00");
    pickle
}

#[test]
fn one_long_text_that_is_asked_for_again_and_again_stays_one() {
    // Copied each time, these would take 100 GB.
    let devices = [
        long_text(5_000_000),
        b"ctorch\ndevice\nh\x00\x85R".repeat(20_000),
        b"}.".to_vec(),
    ];
    let keys = [
        long_text(5_000_000),
        b"ctorch\nFloatStorage\nq\x01".to_vec(),
        b"(X\x07\x00\x00\x00storageh\x01h\x00X\x03\x00\x00\x00cpuK\x01tQ".repeat(20_000),
        b"}.".to_vec(),
    ];
    for value in [devices.concat(), keys.concat()] {
        let file = [LEGACY_HEAD, &value, b"\x80\x02]."].concat();
        // Whether it is refused or holds nothing of use does not matter: it comes back.
        drop(TorchFile::from_bytes("long.bin", file));
    }
}

#[test]
fn steps_that_cost_a_few_bytes_each_have_an_end_too() {
    for step in [b"2".as_slice(), b"(", b"h\x00", b"\x94"] {
        let steps = step.repeat((1 << 24) + 2);
        let file = [LEGACY_HEAD, b"\x80\x02}q\x00", &steps, b"."].concat();
        let error = TorchFile::from_bytes("steps.bin", file).unwrap_err();
        assert!(error.to_string().contains("builds more than"), "{error}");
    }
}
