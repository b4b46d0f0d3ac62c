//! Any bytes as a GGUF file: an error, or a file whose every key and tensor can be read. The bytes
//! are taken as they are, and once more behind a sound beginning, which the fuzzer would hardly
//! find by itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_formats::Checkpoint;
use lowrank_formats::gguf::{Gguf, Value, ValueKind};

fuzz_target!(|bytes: &[u8]| {
    open(bytes.to_vec());
    if let Some((counts, rest)) = bytes.split_at_checked(2) {
        let mut framed = b"GGUF\x03\0\0\0".to_vec();
        framed.extend(u64::from(counts[0] & 7).to_le_bytes());
        framed.extend(u64::from(counts[1] & 15).to_le_bytes());
        framed.extend_from_slice(rest);
        open(framed);
    }
});

fn open(bytes: Vec<u8>) {
    let len = bytes.len();
    let gguf = match Gguf::from_bytes("fuzz.gguf", bytes.clone()) {
        Err(error) => return drop((error.to_string(), error.hint())),
        Ok(gguf) => gguf,
    };
    for (key, value) in gguf.metadata().iter() {
        let Value::List(list) = value else { continue };
        match list.kind {
            ValueKind::Text => drop(gguf.texts(key)),
            _ => drop(gguf.numbers(key)),
        }
    }
    let _ = gguf.config();
    let checkpoint = Checkpoint::from_bytes("fuzz.gguf", bytes).expect("it was opened before");
    for info in checkpoint.infos() {
        assert!(info.stored_bytes() <= len as u64);
        if info.dtype.is_float() {
            let _ = checkpoint.read_f32_vec(&info.name);
        }
    }
}
