//! GGUF files: what is in them is read, and whatever lies is refused in a sentence, without an
//! allocation of that size.

mod common;
#[path = "common/gguf_file.rs"]
mod gguf_file;

use gguf_file::{File, key, tensor, text};
use lowrank_formats::gguf::{Gguf, Value};

trait Refused {
    fn refusal(&self) -> String;
}

impl Refused for File {
    fn refusal(&self) -> String {
        refusal(self.bytes())
    }
}

fn refusal(bytes: Vec<u8>) -> String {
    let error = Gguf::from_bytes("x.gguf", bytes).expect_err("the file must be refused");
    let text = error.to_string();
    text.strip_prefix("cannot read `x.gguf` as a GGUF file: ")
        .unwrap_or(&text)
        .to_owned()
}

#[test]
fn keys_and_tensors_are_read() {
    for version in [2, 3] {
        let file = File {
            version,
            ..File::sound()
        };
        let gguf = Gguf::from_bytes("x.gguf", file.bytes()).unwrap();
        assert_eq!(gguf.text("general.architecture").unwrap(), Some("gpt2"));
        assert_eq!(
            gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap(),
            ["a", "bc"]
        );
        let [table, norm] = gguf.tensors() else {
            panic!("{:?}", gguf.tensors())
        };
        assert_eq!(
            (table.name.as_str(), &table.shape[..]),
            ("table", &[2, 32][..])
        );
        assert_eq!((table.format.name, table.bytes), ("Q8_0", 68));
        assert_eq!((norm.format.name, norm.bytes, norm.numel()), ("F32", 12, 3));
        assert_eq!(norm.offset - table.offset, 96);
    }
}

#[test]
fn every_type_of_value_is_read() {
    let one = |kind: u32, bytes: &[u8]| {
        let file = File::of(&[key("k", kind, bytes)], &[], 0);
        let gguf = Gguf::from_bytes("x.gguf", file.bytes()).unwrap();
        gguf.metadata().get("k").unwrap().clone()
    };
    assert_eq!(one(0, &[200]), Value::Unsigned(200));
    assert_eq!(one(1, &[200]), Value::Signed(-56));
    assert_eq!(one(2, &[1, 2]), Value::Unsigned(0x201));
    assert_eq!(one(3, &[0xff, 0xff]), Value::Signed(-1));
    assert_eq!(one(4, &7u32.to_le_bytes()), Value::Unsigned(7));
    assert_eq!(one(5, &(-7i32).to_le_bytes()), Value::Signed(-7));
    assert_eq!(one(6, &0.5f32.to_le_bytes()), Value::Float(0.5));
    assert_eq!(one(7, &[1]), Value::Bool(true));
    assert_eq!(one(8, &text("ü")), Value::Text("ü".into()));
    assert_eq!(one(10, &u64::MAX.to_le_bytes()), Value::Unsigned(u64::MAX));
    assert_eq!(one(11, &i64::MIN.to_le_bytes()), Value::Signed(i64::MIN));
    assert_eq!(one(12, &1e300f64.to_le_bytes()), Value::Float(1e300));
    let list = [
        5u32.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        (-3i32).to_le_bytes().to_vec(),
        4i32.to_le_bytes().to_vec(),
    ];
    let file = File::of(&[key("k", 9, &list.concat())], &[], 0);
    let gguf = Gguf::from_bytes("x.gguf", file.bytes()).unwrap();
    assert_eq!(gguf.numbers("k").unwrap().unwrap(), [-3.0, 4.0]);
    assert_eq!(gguf.numbers("other").unwrap(), None);
    assert!(
        gguf.texts("k")
            .unwrap_err()
            .to_string()
            .contains("a list of i32")
    );
    assert!(
        gguf.text("k")
            .unwrap_err()
            .to_string()
            .contains("`k` is a list of 2 values")
    );
}

#[test]
fn other_files_and_versions_are_refused_by_name() {
    assert!(refusal(b"GGML....".to_vec()).contains("it begins with `GGML`"));
    assert!(refusal(b"GG".to_vec()).contains("the beginning takes 4 bytes"));
    let mut big = b"GGUF".to_vec();
    big.extend(3u32.to_be_bytes());
    big.extend([0; 64]);
    assert!(refusal(big).contains("big-endian"));
    for version in [0, 1, 4] {
        let file = File {
            version,
            ..File::sound()
        };
        assert!(
            file.refusal()
                .contains(&format!("version {version}, expected 2 or 3"))
        );
    }
}

#[test]
fn a_file_that_is_named_so_and_is_none_is_said_to_be_none() {
    let name = format!("lowrank-{}.gguf", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, "{\"model_type\": \"llama\"").unwrap();
    assert!(lowrank_formats::gguf::is_gguf(&path).unwrap());
    let error = lowrank_formats::read_model_config(&path)
        .unwrap_err()
        .to_string();
    assert!(error.contains("GGUF") && !error.contains("JSON"), "{error}");
}

#[test]
fn counts_and_lengths_that_lie_are_refused() {
    for lie in [1 << 40, u64::MAX] {
        let keys = File {
            keys: lie,
            ..File::sound()
        };
        assert!(
            keys.refusal().contains("keys, but its"),
            "{}",
            keys.refusal()
        );
        let tensors = File {
            tensors: lie,
            ..File::sound()
        };
        assert!(
            tensors.refusal().contains("tensors, but its"),
            "{}",
            tensors.refusal()
        );
        let list = [8u32.to_le_bytes().to_vec(), lie.to_le_bytes().to_vec()].concat();
        let file = File::of(&[key("k", 9, &list)], &[], 0);
        assert!(file.refusal().contains("k takes"), "{}", file.refusal());
        let file = File::of(&[key("k", 8, &lie.to_le_bytes())], &[], 0);
        assert!(file.refusal().contains("k takes"), "{}", file.refusal());
        let file = File::of(&[lie.to_le_bytes().to_vec(), vec![0; 16]], &[], 0);
        assert!(file.refusal().contains("a key takes"), "{}", file.refusal());
        let file = File::of(&[], &[tensor("t", &[32, lie, lie, lie], 8, 0)], 64);
        assert!(
            file.refusal().contains("absurd shape"),
            "{}",
            file.refusal()
        );
        let file = File::of(&[], &[tensor("t", &[32], 8, lie & !31)], 64);
        assert!(
            file.refusal().contains("tensor `t` takes 34 bytes"),
            "{}",
            file.refusal()
        );
    }
    let huge = File::of(&[], &[tensor("t", &[1 << 63], 0, 0)], 64);
    assert!(huge.refusal().contains("absurd shape"));
    let large = File::of(&[], &[tensor("t", &[32, 1 << 40], 8, 0)], 64);
    assert!(
        large.refusal().contains("tensor `t` takes"),
        "{}",
        large.refusal()
    );
    let none = File::of(&[], &[tensor("t", &[32, 0], 8, 0)], 64);
    assert!(none.refusal().contains("absurd shape"));
}

#[test]
fn tensors_that_do_not_fit_each_other_or_the_format_are_refused() {
    let overlap = [tensor("a", &[32], 8, 0), tensor("b", &[32], 8, 32)];
    assert!(
        File::of(&[], &overlap, 96)
            .refusal()
            .contains("`b` begins at byte 32 of the data, inside `a`")
    );
    let odd = File::of(&[], &[tensor("a", &[32], 8, 8)], 96);
    assert!(odd.refusal().contains("expected a multiple of 32"));
    let row = File::of(&[], &[tensor("a", &[33], 8, 0)], 96);
    assert!(
        row.refusal()
            .contains("rows of 33 values, which Q8_0 cannot hold")
    );
    let kind = File::of(&[], &[tensor("a", &[32], 4, 0)], 96);
    assert!(kind.refusal().contains("unknown type 4"));
    let deep = File::of(&[], &[tensor("a", &[1; 5], 0, 0)], 96);
    assert!(deep.refusal().contains("5 dimensions, expected at most 4"));
    let twice = [tensor("a", &[1], 0, 0), tensor("a", &[1], 0, 32)];
    assert!(
        File::of(&[], &twice, 96)
            .refusal()
            .contains("tensor `a` stands twice")
    );
    let keys = [key("k", 0, &[1]), key("k", 0, &[1])];
    assert!(
        File::of(&keys, &[], 0)
            .refusal()
            .contains("the key `k` stands twice")
    );
}

#[test]
fn odd_values_are_refused() {
    let nested = [
        9u32.to_le_bytes().to_vec(),
        1u64.to_le_bytes().to_vec(),
        vec![0; 32],
    ]
    .concat();
    assert!(
        File::of(&[key("k", 9, &nested)], &[], 0)
            .refusal()
            .contains("`k` is a list of lists")
    );
    assert!(
        File::of(&[key("k", 13, &[0; 8])], &[], 0)
            .refusal()
            .contains("`k` is of type 13")
    );
    assert!(
        File::of(&[key("k", 7, &[2])], &[], 0)
            .refusal()
            .contains("a truth value of 2")
    );
    let bad = [1u64.to_le_bytes().to_vec(), vec![0xff]].concat();
    assert!(
        File::of(&[key("k", 8, &bad)], &[], 0)
            .refusal()
            .contains("k at byte 45 is not UTF-8")
    );
    for alignment in [0u32, 3, 48] {
        let keys = [key("general.alignment", 4, &alignment.to_le_bytes())];
        let file = File::of(&keys, &[tensor("a", &[1], 0, 0)], 64);
        assert!(file.refusal().contains("expected a power of two"));
    }
}

#[test]
fn no_damage_makes_it_panic_and_what_is_taken_can_be_read() {
    let sound = File::sound().bytes();
    common::for_each_damage(&sound, sound.len(), |damaged| {
        match Gguf::from_bytes("x.gguf", damaged) {
            Err(error) => drop((error.to_string(), error.hint())),
            Ok(gguf) => {
                let _ = gguf.texts("tokenizer.ggml.tokens");
                assert!(gguf.tensors().iter().all(|t| t.bytes <= sound.len() as u64));
            }
        }
    });
}

fn part(number: u16, count: u16, name: &str) -> Vec<u8> {
    let keys = [
        key("split.no", 2, &number.to_le_bytes()),
        key("split.count", 2, &count.to_le_bytes()),
        key("split.tensors.count", 5, &2i32.to_le_bytes()),
    ];
    File::of(&keys, &[tensor(name, &[32], 8, 0)], 64).bytes()
}

#[test]
fn a_split_file_is_opened_whole_whichever_part_is_named() {
    let dir = common::scratch("gguf_split");
    let (one, two) = (
        dir.join("m-00001-of-00002.gguf"),
        dir.join("m-00002-of-00002.gguf"),
    );
    std::fs::write(&one, part(0, 2, "a")).unwrap();
    let missing = Gguf::open(&one).unwrap_err().to_string();
    assert!(
        missing.contains("one of 2 parts, and `m-00002-of-00002.gguf` is missing"),
        "{missing}"
    );
    std::fs::write(&two, part(1, 2, "b")).unwrap();
    for path in [&one, &two] {
        let gguf = Gguf::open(path).unwrap();
        let places: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|t| (t.name.as_str(), t.file))
            .collect();
        assert_eq!(places, [("a", 0), ("b", 1)]);
        assert_eq!(gguf.files(), [one.clone(), two.clone()]);
    }
    // The first part once more in the place of the second, another count, a name that lies, a name
    // without number.
    for (bytes, expected) in [
        (part(0, 2, "b"), "said to be part 1, expected 2"),
        (part(1, 9, "b"), "said to be one of 9 parts, expected 2"),
        (part(1, 2, "a"), "tensor `a` stands twice"),
    ] {
        std::fs::write(&two, bytes).unwrap();
        let error = Gguf::open(&one).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let third = dir.join("m-00003-of-00002.gguf");
    std::fs::write(&third, part(2, 2, "c")).unwrap();
    assert!(
        Gguf::open(&third)
            .unwrap_err()
            .to_string()
            .contains("part 3 of 2")
    );
    let whole = dir.join("m.gguf");
    std::fs::write(&whole, part(0, 2, "a")).unwrap();
    assert!(
        Gguf::open(&whole)
            .unwrap_err()
            .to_string()
            .contains("it is one of 2 parts")
    );
}
