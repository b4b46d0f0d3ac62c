//! The GPT-3 sizes of Brown et al. 2020, table 2.1, as configurations: what the LoRA paper plans with. Layers that see all
//! tokens and layers that see a window stand in turn, as in the paper; Hugging Face calls that `gpt_neo`.

use serde_json::{Value, json};

/// One row of the table.
struct Size {
    name: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
}

/// The printed XL row has 24 heads of 128 for a width of 2048, and the printed 13B row a width of 5140: neither fits its own
/// numbers, so that XL has 16 heads of 128 here and 13B a width of 40 x 128.
const SIZES: [Size; 8] = [
    Size {
        name: "gpt3-small",
        layers: 12,
        width: 768,
        heads: 12,
    },
    Size {
        name: "gpt3-medium",
        layers: 24,
        width: 1024,
        heads: 16,
    },
    Size {
        name: "gpt3-large",
        layers: 24,
        width: 1536,
        heads: 16,
    },
    Size {
        name: "gpt3-xl",
        layers: 24,
        width: 2048,
        heads: 16,
    },
    Size {
        name: "gpt3-2.7b",
        layers: 32,
        width: 2560,
        heads: 32,
    },
    Size {
        name: "gpt3-6.7b",
        layers: 32,
        width: 4096,
        heads: 32,
    },
    Size {
        name: "gpt3-13b",
        layers: 40,
        width: 5120,
        heads: 40,
    },
    Size {
        name: "gpt3-175b",
        layers: 96,
        width: 12288,
        heads: 96,
    },
];

/// The names of the built-in configurations, from the smallest to the largest.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    SIZES.iter().map(|size| size.name)
}

/// The `config.json` of a built-in configuration.
pub fn builtin_config(name: &str) -> Option<Value> {
    let size = SIZES.iter().find(|size| size.name == name)?;
    Some(json!({
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": size.width,
        "num_layers": size.layers,
        "num_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "attention_types": [[["global", "local"], size.layers / 2]],
        "window_size": 256,
        "activation_function": "gelu_new",
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "resid_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": true,
    }))
}
