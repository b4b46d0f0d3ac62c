//! Any bytes as the safetensors file of a quantised model: an error, or tensors that can be read,
//! also in parts. The first byte says how it is packed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_formats::Checkpoint;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    let Some((&way, rest)) = bytes.split_first() else { return };
    let settings = match way & 15 {
        0 => json!({ "quant_method": "bitsandbytes" }),
        1 => json!({ "quant_method": "fp8", "weight_block_size": [2, 3] }),
        2 => json!({ "quant_method": "compressed-tensors" }),
        3 => json!({ "quant_method": "gptq", "bits": 4, "group_size": 8 }),
        4 => json!({ "quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2" }),
        5 => json!({ "quant_method": "gptq", "bits": 3, "group_size": 32 }),
        6 => json!({ "quant_method": "mxfp4" }),
        _ => json!({ "quant_method": "awq", "bits": 4, "group_size": 8 }),
    };
    let config = json!({ "model_type": if way & 16 == 0 { "llama" } else { "gpt2" }, "quantization_config": settings });
    let opened = Checkpoint::from_bytes("fuzz.safetensors", rest.to_vec());
    let checkpoint = match opened.and_then(|checkpoint| checkpoint.unpacked(&config)) {
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
});
