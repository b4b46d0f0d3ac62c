//! Files that lie about how much they hold: each is refused, and the refusal costs no memory. The
//! one test of this binary counts every allocation, so that it must stay alone.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;
#[path = "common/gguf_file.rs"]
mod gguf_file;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use gguf_file::{File, key, tensor, text};
use lowrank_formats::Checkpoint;
use lowrank_formats::gguf::Gguf;
use serde_json::json;

/// The system's allocator, which notes the largest block and the most bytes at a time.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that a refusal may hold at a time, beside the file itself: the buffer of a header is 64
/// KiB.
const MOST: usize = 512 << 10;

/// What `open` says, which must fail; its memory is counted.
fn refusal<T>(what: &str, open: impl FnOnce() -> Result<T, String>) -> String {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let Err(message) = open() else {
        panic!("{what}: the file must be refused");
    };
    let used = PEAK.load(Relaxed) - before;
    assert!(used <= MOST, "{what}: {used} bytes for `{message}`");
    message
}

fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn list(kind: u32, len: u64, values: &[u8]) -> Vec<u8> {
    [kind.to_le_bytes().to_vec(), u64s(&[len]), values.to_vec()].concat()
}

fn gguf(what: &str, file: &File) -> String {
    let bytes = file.bytes();
    refusal(what, || {
        Gguf::from_bytes("x.gguf", bytes).map_err(|error| error.to_string())
    })
}

fn counts_texts_and_lists() {
    for lie in [1 << 32, 1 << 40, 1 << 63, u64::MAX] {
        let sound = File::sound();
        let more_keys = File {
            keys: lie,
            ..sound.clone()
        };
        assert!(gguf("keys", &more_keys).contains("keys, but its"));
        let more_tensors = File {
            tensors: lie,
            ..sound
        };
        assert!(gguf("tensors", &more_tensors).contains("tensors, but its"));
        for kind in 0..=12 {
            let file = File::of(&[key("k", 9, &list(kind, lie, &[0; 64]))], &[], 0);
            let expected = if kind == 9 {
                "a list of lists"
            } else {
                "k takes"
            };
            let found = gguf(&format!("a list of type {kind}"), &file);
            assert!(found.contains(expected), "{kind}: {found}");
        }
        // Of a text, of a key, of a text inside a list, of a tensor's name.
        let of_text = File::of(&[key("k", 8, &u64s(&[lie]))], &[], 0);
        assert!(gguf("a text", &of_text).contains("k takes"));
        let of_key = File::of(&[u64s(&[lie, 0, 0])], &[], 0);
        assert!(gguf("a key", &of_key).contains("a key takes"));
        let inside = list(8, 2, &[text("a"), u64s(&[lie])].concat());
        let of_element = File::of(&[key("k", 9, &inside)], &[], 0);
        assert!(gguf("a text of a list", &of_element).contains("k takes"));
        let of_name = File::of(&[], &[u64s(&[lie, 0, 0, 0])], 0);
        assert!(gguf("a name", &of_name).contains("the name of a tensor takes"));
    }
    // A file whose lists would fit but for the last.
    let lists = |count: u64| -> Vec<Vec<u8>> {
        let value = |i: u64| list(8, if i + 1 == count { 1 << 50 } else { 1 }, &text("a"));
        (0..count)
            .map(|i| key(&format!("k{i}"), 9, &value(i)))
            .collect()
    };
    assert!(gguf("the last list", &File::of(&lists(100), &[], 0)).contains("k99 takes"));
}

fn types_and_nests() {
    for kind in [13, 255, u32::MAX] {
        let file = File::of(&[key("k", kind, &[0; 64])], &[], 0);
        assert!(gguf("a type", &file).contains(&format!("`k` is of type {kind}")));
        let file = File::of(&[key("k", 9, &list(kind, 1, &[0; 64]))], &[], 0);
        assert!(gguf("a list's type", &file).contains(&format!("`k` is of type {kind}")));
        let file = File::of(
            &[],
            &[tensor("t", &[32], kind + (kind == 13) as u32 * 200, 0)],
            64,
        );
        assert!(gguf("a tensor's type", &file).contains("of the unknown type"));
    }
    // Lists of lists, a thousand deep.
    let deep = (0..1000).fold(vec![0; 8], |inner, _| list(9, 1, &inner));
    let file = File::of(&[key("k", 9, &deep)], &[], 0);
    assert!(gguf("lists of lists", &file).contains("`k` is a list of lists"));
}

fn shapes_and_offsets() {
    let huge = [1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX - 31];
    for lie in huge {
        for shape in [
            vec![lie],
            vec![32, lie],
            vec![lie, lie],
            vec![32, lie, lie, lie],
        ] {
            let file = File::of(&[], &[tensor("t", &shape, 8, 0)], 64);
            let found = gguf(&format!("{shape:?}"), &file);
            let is_named = found.contains("absurd shape") || found.contains("tensor `t` takes");
            assert!(is_named || found.contains("rows of"), "{shape:?}: {found}");
        }
        let file = File::of(&[], &[tensor("t", &[32], 8, lie & !31)], 64);
        assert!(gguf("an offset", &file).contains("tensor `t` takes 34 bytes"));
    }
    for dimensions in [5, 1 << 20, u32::MAX] {
        let entry = [text("t"), dimensions.to_le_bytes().to_vec(), vec![1; 64]].concat();
        let found = gguf("dimensions", &File::of(&[], &[entry], 64));
        assert!(found.contains("dimensions, expected at most 4"), "{found}");
    }
    let alignment = File::of(
        &[key("general.alignment", 10, &u64s(&[1 << 63]))],
        &[tensor("t", &[32], 8, 0)],
        64,
    );
    assert!(gguf("an alignment", &alignment).contains("expected a power of two"));
}

fn splits(dir: &std::path::Path) {
    let part = |number: u16, count: u16| {
        let keys = [
            key("split.no", 2, &number.to_le_bytes()),
            key("split.count", 2, &count.to_le_bytes()),
            key("split.tensors.count", 10, &u64s(&[1 << 60])),
        ];
        File::of(&keys, &[tensor(&format!("t{number}"), &[32], 8, 0)], 64).bytes()
    };
    let open = |name: &str| {
        let path = dir.join(name);
        refusal(name, || {
            Gguf::open(&path).map_err(|error| error.to_string())
        })
    };
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.join(name), bytes).unwrap();
    // Parts that name each other in a circle: each says that it is the other one.
    write("a-00001-of-00002.gguf", part(1, 2));
    write("a-00002-of-00002.gguf", part(0, 2));
    assert!(open("a-00001-of-00002.gguf").contains("said to be part 2, expected 1"));
    // One file under both names.
    write("b-00001-of-00002.gguf", part(0, 2));
    write("b-00002-of-00002.gguf", part(0, 2));
    assert!(open("b-00002-of-00002.gguf").contains("said to be part 1, expected 2"));
    // A count of parts, and one of tensors, that nobody has.
    write("c-00001-of-99999.gguf", part(0, 9999));
    assert!(open("c-00001-of-99999.gguf").contains("`c-00002-of-99999.gguf` is missing"));
    write("d-00001-of-00001.gguf", part(0, 1));
    assert!(open("d-00001-of-00001.gguf").contains("hold 1 tensors, expected 1152921504606846976"));
    for name in ["e-00000-of-00001.gguf", "e-00009-of-00003.gguf"] {
        write(name, part(0, 1));
        assert!(open(name).contains("its name says part"));
    }
}

/// A safetensors file of these tensors, whose bytes are zero.
fn safetensors(tensors: &[(&str, &str, &[u64], u64)]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] });
        header.insert((*name).to_owned(), entry);
        end += bytes;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end as usize, 0);
    file
}

/// Parts of packed tensors that stand for far more values than they hold.
fn packed() {
    let state = |text: &str| {
        let name = "w.quant_state.bitsandbytes__nf4";
        let mut file = safetensors(&[
            ("w", "U8", &[16, 1], 16),
            ("w.absmax", "F32", &[1], 4),
            ("w.quant_map", "F32", &[16], 64),
            (name, "U8", &[text.len() as u64], text.len() as u64),
        ]);
        let start = file.len() - text.len();
        file[start..].copy_from_slice(text.as_bytes());
        file
    };
    let of = |shape: &str, block: &str| {
        state(&format!(
            r#"{{"blocksize": {block}, "shape": {shape}, "dtype": "float32"}}"#
        ))
    };
    let shape = |dtype: &str| {
        let mut file = safetensors(&[
            ("m.weight_packed", dtype, &[1, 1], 4),
            ("m.weight_scale", "F32", &[1], 4),
            ("m.weight_shape", "I64", &[2], 16),
        ]);
        let start = file.len() - 16;
        file[start..].copy_from_slice(&u64s(&[1, 1 << 62]));
        file
    };
    let columns = safetensors(&[
        ("m.qweight", "I32", &[0, 1 << 40], 0),
        ("m.scales", "F16", &[1, 1], 2),
        ("m.qzeros", "I32", &[1, 1], 4),
    ]);
    let experts = safetensors(&[
        ("w_blocks", "U8", &[1 << 40, 0, 1 << 40, 16], 0),
        ("w_scales", "U8", &[1 << 40, 0, 1 << 40], 0),
    ]);
    let bits = json!({ "quant_method": "gptq", "bits": 3, "group_size": 1i64 << 62 });
    let method = |name: &str| json!({ "quant_method": name });
    for (what, file, settings, expected) in [
        (
            "a shape",
            of("[9223372036854775807, 4]", "64"),
            method("bitsandbytes"),
            "no usable `shape`",
        ),
        (
            "a large shape",
            of("[1099511627776, 2]", "64"),
            method("bitsandbytes"),
            "has 16 values, expected",
        ),
        (
            "a block",
            of("[4, 8]", "9223372036854775808"),
            method("bitsandbytes"),
            "",
        ),
        (
            "a small block",
            of("[4, 8]", "1"),
            method("bitsandbytes"),
            "has 1 values, expected 32",
        ),
        (
            "columns",
            shape("I32"),
            method("compressed-tensors"),
            "which is no packed",
        ),
        ("words", columns, bits, "expected two dimensions"),
        ("experts", experts, method("mxfp4"), "has the shape"),
    ] {
        let config = json!({ "quantization_config": settings });
        let opened = Checkpoint::from_bytes("x.safetensors", file).expect("a sound file");
        let open = || opened.unpacked(&config).map_err(|error| error.to_string());
        if expected.is_empty() {
            // One block for all values: taken, and no more than that is read.
            assert!(
                open().is_ok_and(|file| file.read_f32_vec("w").is_ok()),
                "{what}"
            );
            continue;
        }
        let found = refusal(what, open);
        assert!(found.contains(expected), "{what}: {found}");
    }
}

#[test]
fn lengths_that_lie_are_refused_without_memory_for_them() {
    counts_texts_and_lists();
    types_and_nests();
    shapes_and_offsets();
    splits(&common::scratch("hostile_splits"));
    packed();
}
