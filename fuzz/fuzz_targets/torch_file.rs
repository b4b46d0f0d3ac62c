//! Any bytes as a PyTorch file (zip, legacy, or neither): an error, or a state dict whose every
//! tensor can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_formats::Checkpoint;
use lowrank_formats::torch::TorchFile;

fuzz_target!(|bytes: &[u8]| {
    match Checkpoint::from_bytes("fuzz.bin", bytes.to_vec()) {
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
    if let Ok(file) = TorchFile::from_bytes("fuzz.bin", bytes.to_vec()) {
        for (key, value) in file.root().items().take(100) {
            let _ = (
                key.as_str(),
                value.kind(),
                value.as_tensor(),
                value.elements().count(),
            );
        }
    }
});
