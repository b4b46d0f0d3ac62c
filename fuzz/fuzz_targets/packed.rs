//! Any bytes as the safetensors file of a quantised model, in each way that it can be packed: an
//! error, or tensors that can be read, also in parts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_formats::Checkpoint;
use serde_json::{Value, json};

fuzz_target!(|bytes: &[u8]| {
    if Checkpoint::from_bytes("fuzz.safetensors", bytes.to_vec()).is_err() {
        return;
    }
    for settings in [
        json!({ "quant_method": "bitsandbytes" }),
        json!({ "quant_method": "fp8", "weight_block_size": [2, 3] }),
        json!({ "quant_method": "compressed-tensors" }),
        json!({ "quant_method": "gptq", "bits": 4, "group_size": 8 }),
        json!({ "quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2" }),
        json!({ "quant_method": "gptq", "bits": 3, "group_size": 32 }),
        json!({ "quant_method": "gptq", "bits": 2, "group_size": 16 }),
        json!({ "quant_method": "awq", "bits": 4, "group_size": 8 }),
        json!({ "quant_method": "mxfp4" }),
    ] {
        for model_type in ["llama", "gpt2"] {
            unpack(bytes, &json!({ "model_type": model_type, "quantization_config": settings }));
        }
    }
});

fn unpack(bytes: &[u8], config: &Value) {
    let opened = Checkpoint::from_bytes("fuzz.safetensors", bytes.to_vec());
    let checkpoint = match opened.and_then(|checkpoint| checkpoint.unpacked(config)) {
        Err(error) => return drop((error.to_string(), error.hint())),
        Ok(checkpoint) => checkpoint,
    };
    for info in checkpoint.infos().filter(|info| info.packed.is_some()) {
        let whole = checkpoint.read_f32_vec(&info.name).expect("an accepted tensor is readable");
        let start = whole.len() / 3;
        let mut part = vec![0.0; whole.len() - start];
        checkpoint.read_f32_range(&info.name, start, &mut part).expect("so is a part of it");
        assert!(part.iter().zip(&whole[start..]).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
