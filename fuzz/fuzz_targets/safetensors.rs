//! Any bytes as a safetensors file: an error, or a file whose every tensor can be read. The bytes
//! are taken as they are, and once more as a header with its true length before them, which the
//! fuzzer would hardly find by itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_formats::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    open(bytes.to_vec());
    let split = bytes
        .iter()
        .rposition(|&byte| byte == b'}')
        .map_or(bytes.len(), |at| at + 1);
    let mut framed = (split as u64).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    open(framed);
});

fn open(bytes: Vec<u8>) {
    match Checkpoint::from_bytes("fuzz.safetensors", bytes) {
        Err(error) => drop((error.to_string(), error.hint())),
        Ok(checkpoint) => {
            for info in checkpoint.infos() {
                let bytes = checkpoint
                    .read_bytes(&info.name)
                    .expect("an accepted tensor is readable");
                assert_eq!(bytes.len(), info.numel() * info.dtype.size_bytes());
            }
        }
    }
}
