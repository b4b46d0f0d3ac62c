//! Any bytes as the pickle inside a legacy PyTorch file, behind the right magic: the opcodes are
//! reached at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_formats::Checkpoint;

const HEAD: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

fuzz_target!(|bytes: &[u8]| {
    let file = [HEAD, bytes].concat();
    match Checkpoint::from_bytes("fuzz.bin", file) {
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
});
