//! The networks that are frozen: one of each attention and block, wider than a panel and across the
//! edges of tiles.

use std::path::Path;

use lowrank_engine::Device;
use lowrank_formats::peft::{BitFitConfig, InitLoraWeights, LoraConfig, TargetModules};
use lowrank_model::{LoadOptions, Model, ModelConfig, Task};
use serde_json::{Value, json};

/// What trains.
#[derive(Clone, Copy)]
pub enum Training {
    /// Adapters in every linear layer, neither of their factors zero.
    Lora,
    /// All weights.
    Full,
    /// The biases and the head.
    BitFit,
}

impl Training {
    pub fn name(self) -> &'static str {
        match self {
            Training::Lora => "lora",
            Training::Full => "full",
            Training::BitFit => "bitfit",
        }
    }
}

/// A family with a task.
pub struct Network {
    pub name: &'static str,
    pub task: Task,
    /// The family's own fields, beside [`Network::config`]'s.
    own: fn() -> Value,
}

pub const NETWORKS: &[Network] = &[
    Network {
        name: "bert",
        task: Task::SingleLabel,
        own: || bert_like("bert", 2),
    },
    Network {
        name: "roberta",
        task: Task::SingleLabel,
        own: || bert_like("roberta", 1),
    },
    Network {
        name: "deberta-v2",
        task: Task::SingleLabel,
        own: || {
            let mut own = bert_like("deberta-v2", 0);
            let deberta = json!({
                "relative_attention": true, "position_buckets": 16, "max_relative_positions": -1,
                "norm_rel_ebd": "layer_norm", "share_att_key": true, "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": false, "pooler_hidden_act": "gelu", "pooler_dropout": 0.1,
                "pooler_hidden_size": 48, "layer_norm_eps": 1e-7,
            });
            extend(&mut own, deberta);
            own
        },
    },
    Network {
        name: "gpt2",
        task: Task::CausalLm,
        own: || {
            json!({
                "model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 128,
                "n_inner": 112, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
            })
        },
    },
    Network {
        name: "opt",
        task: Task::CausalLm,
        own: || {
            json!({
                "model_type": "opt", "hidden_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 3, "ffn_dim": 112, "max_position_embeddings": 128,
                "word_embed_proj_dim": 48, "activation_function": "relu", "dropout": 0.1,
                "attention_dropout": 0.1, "do_layer_norm_before": true,
            })
        },
    },
];

fn bert_like(model_type: &str, types: usize) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 112, "max_position_embeddings": 130,
        "type_vocab_size": types, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    })
}

fn extend(value: &mut Value, more: Value) {
    let (Value::Object(value), Value::Object(more)) = (value, more) else {
        panic!("both are objects");
    };
    value.extend(more);
}

impl Network {
    /// The whole config.json. 101 tokens, of which none divides a tile.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "vocab_size": 101, "initializer_range": 0.2, "pad_token_id": 1, "bos_token_id": 0,
            "eos_token_id": 2,
        });
        extend(&mut config, (self.own)());
        config
    }

    /// The model with new random weights, ready to train.
    pub fn model(&self, training: Training, device: &Device) -> Model {
        let config = ModelConfig::from_value(Path::new(self.name), self.config())
            .expect("the configuration is sound");
        let options = LoadOptions {
            task: self.task,
            num_labels: 3,
            seed: 5,
            ignore_mismatched_sizes: false,
        };
        let mut model = Model::from_config(config, &options, device).expect("the model is made");
        match training {
            Training::Lora => {
                let config = LoraConfig {
                    r: 5,
                    lora_alpha: 9.0,
                    lora_dropout: 0.1,
                    target_modules: Some(TargetModules::AllLinear),
                    init_lora_weights: InitLoraWeights::Random,
                    ..LoraConfig::default()
                };
                model.attach_lora(&config, 6).expect("adapters attach");
            }
            Training::Full => {
                model.train_all().expect("all weights train");
            }
            Training::BitFit => {
                let config = BitFitConfig::default();
                model.train_biases(&config).expect("the biases train");
            }
        }
        model
    }
}
