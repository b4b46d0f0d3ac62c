//! What the tensors and settings of each architecture are called in GGUF and in transformers, and
//! in which order rows stand there.
//! Source: llama.cpp `convert_hf_to_gguf.py`; gguf-py 0.19 `tensor_mapping.py`. To add one: a line
//! in [`ARCHITECTURES`].

mod config;

use serde_json::{Map, Value};

use super::{Gguf, GgufFault, GgufTensor};
use crate::Result;
use crate::checkpoint::values::{RowOrder, stored_row};
use crate::suggest::nearest;
use config::Fields;

/// How a tensor's rows or values differ from transformers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Not at all.
    Same,
    /// Columns are rows: GPT-2's `Conv1D`.
    Transposed,
    /// Of each head, rows of its two halves in turn.
    Heads(HeadCount),
    /// Each value is one more: Gemma's norms.
    LessOne,
}

/// Which count of heads a tensor's rows have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadCount {
    /// Of queries.
    Queries,
    /// Of keys and values.
    Keys,
}

/// A tensor's or module's name in GGUF, in transformers, and what differs.
type Line = (&'static str, &'static str, View);

/// What is known of one architecture.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Modules outside of layers.
    outside: &'static [Line],
    /// The path of the list of layers in transformers; `blk` in GGUF.
    layers: &'static str,
    /// Modules of a layer.
    inside: &'static [&'static [Line]],
    /// The fields of config.json.
    config: fn(&Fields<'_>) -> Result<Map<String, Value>>,
}

const SAME: View = View::Same;
const TURNED: View = View::Transposed;
const LESS: View = View::LessOne;
const QUERIES: View = View::Heads(HeadCount::Queries);
const KEYS: View = View::Heads(HeadCount::Keys);

const LLAMA_OUTSIDE: &[Line] = &[
    ("token_embd", "model.embed_tokens", SAME),
    ("output_norm", "model.norm", SAME),
    ("output", "lm_head", SAME),
];
const GEMMA_OUTSIDE: &[Line] = &[
    ("token_embd", "model.embed_tokens", SAME),
    ("output_norm", "model.norm", LESS),
    ("output", "lm_head", SAME),
];
const LLAMA_NORMS: &[Line] = &[
    ("attn_norm", "input_layernorm", SAME),
    ("ffn_norm", "post_attention_layernorm", SAME),
];
const ATTENTION: &[Line] = &[
    ("attn_q", "self_attn.q_proj", SAME),
    ("attn_k", "self_attn.k_proj", SAME),
    ("attn_v", "self_attn.v_proj", SAME),
    ("attn_output", "self_attn.o_proj", SAME),
];
/// Of the architectures that llama.cpp rotates by neighbours.
const PERMUTED_ATTENTION: &[Line] = &[
    ("attn_q", "self_attn.q_proj", QUERIES),
    ("attn_k", "self_attn.k_proj", KEYS),
    ("attn_v", "self_attn.v_proj", SAME),
    ("attn_output", "self_attn.o_proj", SAME),
];
const HEAD_NORMS: &[Line] = &[
    ("attn_q_norm", "self_attn.q_norm", SAME),
    ("attn_k_norm", "self_attn.k_norm", SAME),
];
const MLP: &[Line] = &[
    ("ffn_gate", "mlp.gate_proj", SAME),
    ("ffn_up", "mlp.up_proj", SAME),
    ("ffn_down", "mlp.down_proj", SAME),
];
const FUSED: &[Line] = &[
    ("attn_qkv", "self_attn.qkv_proj", SAME),
    ("attn_output", "self_attn.o_proj", SAME),
    ("ffn_up", "mlp.gate_up_proj", SAME),
    ("ffn_down", "mlp.down_proj", SAME),
];
const OLMO2_NORMS: &[Line] = &[
    ("post_attention_norm", "post_attention_layernorm", SAME),
    ("post_ffw_norm", "post_feedforward_layernorm", SAME),
];
const GEMMA_NORMS: &[Line] = &[
    ("attn_norm", "input_layernorm", LESS),
    ("ffn_norm", "post_attention_layernorm", LESS),
];
const GEMMA3_HEAD_NORMS: &[Line] = &[
    ("attn_q_norm", "self_attn.q_norm", LESS),
    ("attn_k_norm", "self_attn.k_norm", LESS),
];
/// Of Gemma 2 too.
const GEMMA3_NORMS: &[Line] = &[
    ("attn_norm", "input_layernorm", LESS),
    ("post_attention_norm", "post_attention_layernorm", LESS),
    ("ffn_norm", "pre_feedforward_layernorm", LESS),
    ("post_ffw_norm", "post_feedforward_layernorm", LESS),
];
const GPT2: &[Line] = &[
    ("attn_norm", "ln_1", SAME),
    ("attn_qkv", "attn.c_attn", TURNED),
    ("attn_output", "attn.c_proj", TURNED),
    ("ffn_norm", "ln_2", SAME),
    ("ffn_up", "mlp.c_fc", TURNED),
    ("ffn_down", "mlp.c_proj", TURNED),
];
const BERT: &[Line] = &[
    ("attn_q", "attention.self.query", SAME),
    ("attn_k", "attention.self.key", SAME),
    ("attn_v", "attention.self.value", SAME),
    ("attn_output", "attention.output.dense", SAME),
    ("attn_output_norm", "attention.output.LayerNorm", SAME),
    ("ffn_up", "intermediate.dense", SAME),
    ("ffn_down", "output.dense", SAME),
    ("layer_output_norm", "output.LayerNorm", SAME),
];

/// One under LLaMA's names.
const fn decoder(
    name: &'static str,
    inside: &'static [&'static [Line]],
    config: fn(&Fields<'_>) -> Result<Map<String, Value>>,
) -> Architecture {
    Architecture {
        name,
        outside: LLAMA_OUTSIDE,
        layers: "model.layers",
        inside,
        config,
    }
}

/// Every architecture that is known. That there is code that computes it is the model's business.
static ARCHITECTURES: [Architecture; 12] = [
    Architecture {
        name: "gpt2",
        outside: &[
            ("token_embd", "transformer.wte", SAME),
            ("position_embd", "transformer.wpe", SAME),
            ("output_norm", "transformer.ln_f", SAME),
            ("output", "lm_head", SAME),
        ],
        layers: "transformer.h",
        inside: &[GPT2],
        config: config::gpt2,
    },
    Architecture {
        name: "bert",
        outside: &[
            ("token_embd", "bert.embeddings.word_embeddings", SAME),
            ("token_types", "bert.embeddings.token_type_embeddings", SAME),
            ("position_embd", "bert.embeddings.position_embeddings", SAME),
            ("token_embd_norm", "bert.embeddings.LayerNorm", SAME),
        ],
        layers: "bert.encoder.layer",
        inside: &[BERT],
        config: config::bert,
    },
    decoder(
        "llama",
        &[LLAMA_NORMS, PERMUTED_ATTENTION, MLP],
        config::llama,
    ),
    decoder("qwen2", &[LLAMA_NORMS, ATTENTION, MLP], config::qwen2),
    decoder(
        "qwen3",
        &[LLAMA_NORMS, ATTENTION, HEAD_NORMS, MLP],
        config::qwen3,
    ),
    decoder("phi3", &[LLAMA_NORMS, FUSED], config::phi3),
    decoder(
        "granite",
        &[LLAMA_NORMS, PERMUTED_ATTENTION, MLP],
        config::granite,
    ),
    decoder(
        "smollm3",
        &[LLAMA_NORMS, PERMUTED_ATTENTION, MLP],
        config::smollm3,
    ),
    decoder(
        "olmo2",
        &[OLMO2_NORMS, ATTENTION, HEAD_NORMS, MLP],
        config::olmo2,
    ),
    Architecture {
        outside: GEMMA_OUTSIDE,
        ..decoder("gemma", &[GEMMA_NORMS, ATTENTION, MLP], config::gemma)
    },
    Architecture {
        outside: GEMMA_OUTSIDE,
        ..decoder("gemma2", &[GEMMA3_NORMS, ATTENTION, MLP], config::gemma2)
    },
    Architecture {
        outside: GEMMA_OUTSIDE,
        ..decoder(
            "gemma3",
            &[GEMMA3_NORMS, GEMMA3_HEAD_NORMS, ATTENTION, MLP],
            config::gemma3,
        )
    },
];

/// Tensors that hold settings, which config.json has: factors of rotations.
const SETTINGS: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// How rows or values of a tensor stand in a GGUF file, where they are transformers' otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As there.
    Same,
    /// Columns are rows: GPT-2's `Conv1D`.
    Transposed,
    /// Of each of so many heads, rows of its two halves in turn.
    HalvesInTurn(usize),
    /// Each value is one more: Gemma's norms.
    OneMore,
}

impl Stored {
    /// The values of a matrix, or of a vector as a matrix of one column, as a file has them. Panics
    /// if the length disagrees.
    pub fn stored(self, values: Vec<f32>, [rows, cols]: [usize; 2]) -> Vec<f32> {
        assert_eq!(values.len(), rows * cols, "a matrix [{rows}, {cols}]");
        match self {
            Stored::Same => values,
            Stored::OneMore => values.iter().map(|value| value + 1.0).collect(),
            Stored::Transposed => {
                let value = |at: usize| values[at % rows * cols + at / rows];
                (0..values.len()).map(value).collect()
            }
            Stored::HalvesInTurn(heads) => {
                let mut stored = vec![0.0; values.len()];
                for (row, values) in values.chunks_exact(cols).enumerate() {
                    let place = stored_row(row, rows / heads);
                    stored[place * cols..][..cols].copy_from_slice(values);
                }
                stored
            }
        }
    }
}

impl Architecture {
    /// That of a `model_type` of transformers.
    pub fn of_model_type(model_type: &str) -> Option<&'static Architecture> {
        let name = match model_type {
            "mistral" => "llama",
            "gemma3_text" => "gemma3",
            other => other,
        };
        ARCHITECTURES.iter().find(|known| known.name == name)
    }

    /// The tensor of a module's weight, by transformers' path of the module, and how it is stored;
    /// `heads` are the counts of queries' and of keys'.
    pub fn weight_of(&self, module: &str, heads: [usize; 2]) -> Option<(String, Stored)> {
        let inside = || {
            let (layer, name) =
                (module.strip_prefix(self.layers)?.strip_prefix('.')?).split_once('.')?;
            let layer: u32 = layer.parse().ok()?;
            let mut lines = self.inside.iter().copied().flatten();
            let (own, _, view) = lines.find(|(_, other, _)| *other == name)?;
            Some((format!("blk.{layer}.{own}.weight"), *view))
        };
        let outside = || {
            let line = self.outside.iter().find(|(_, other, _)| *other == module);
            line.map(|(own, _, view)| (format!("{own}.weight"), *view))
        };
        let (name, view) = outside().or_else(inside)?;
        Some((name, stored_as(view, heads)))
    }

    /// Whether a tensor is no parameter of the model, since [`Gguf::config`] says what it holds.
    pub(crate) fn is_setting(&self, tensor: &str) -> bool {
        SETTINGS.contains(&tensor)
    }

    /// transformers' name of a tensor, and what differs. One that is not known keeps its name.
    pub(crate) fn name_and_view(&self, tensor: &str) -> (String, View) {
        let found = |lists: &[&[Line]], name: &str, before: &str| {
            let (module, end) = name.rsplit_once('.')?;
            let mut lines = lists.iter().copied().flatten();
            let (_, other, view) = lines.find(|(own, ..)| *own == module)?;
            Some((format!("{before}{other}.{end}"), view_of(*view, end)))
        };
        let inside = || {
            let (layer, name) = tensor.strip_prefix("blk.")?.split_once('.')?;
            let before = format!("{}.{}.", self.layers, layer.parse::<u32>().ok()?);
            found(self.inside, name, &before)
        };
        found(&[self.outside], tensor, "")
            .or_else(inside)
            .unwrap_or_else(|| (tensor.to_owned(), View::Same))
    }
}

fn stored_as(view: View, [queries, keys]: [usize; 2]) -> Stored {
    match view {
        View::Same => Stored::Same,
        View::Transposed => Stored::Transposed,
        View::LessOne => Stored::OneMore,
        View::Heads(HeadCount::Queries) => Stored::HalvesInTurn(queries),
        View::Heads(HeadCount::Keys) => Stored::HalvesInTurn(keys),
    }
}

/// Vectors have no columns to be turned; rows of queries and keys have a bias each.
fn view_of(view: View, end: &str) -> View {
    match view {
        View::Transposed | View::LessOne if end != "weight" => View::Same,
        view => view,
    }
}

impl Gguf {
    /// The architecture of its model.
    ///
    /// # Errors
    /// It names none, or one that is not known.
    pub fn architecture(&self) -> Result<&'static Architecture> {
        let key = "general.architecture";
        let found = self.text(key)?;
        let found = found.ok_or_else(|| self.wrong_key(key, "the name of one", "missing"))?;
        let names = || ARCHITECTURES.iter().map(|known| known.name);
        let known = ARCHITECTURES.iter().find(|known| known.name == found);
        known.ok_or_else(|| {
            self.fault(GgufFault::Architecture {
                found: found.to_owned(),
                known: names()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", "),
                nearest: nearest(found, names()),
            })
        })
    }

    /// What `config.json` of the same model says, made of the keys and of the tensors' shapes.
    ///
    /// # Errors
    /// An architecture that is not known; keys that are missing or hold something else.
    pub fn config(&self) -> Result<Value> {
        let architecture = self.architecture()?;
        let fields = Fields::new(self, architecture.name);
        Ok(Value::Object((architecture.config)(&fields)?))
    }

    /// The order of rows of queries or keys.
    pub(crate) fn halves_in_turn(&self, tensor: &GgufTensor, count: HeadCount) -> Result<RowOrder> {
        let fields = Fields::new(self, self.architecture()?.name);
        let heads = match count {
            HeadCount::Queries => fields.heads()?,
            HeadCount::Keys => fields.key_value_heads()?,
        };
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if heads > 0 && rows.is_multiple_of(2 * heads) {
            return Ok(RowOrder::HalvesInTurn { heads });
        }
        Err(self.wrong_key(
            "attention.head_count",
            &format!(
                "one that divides the {rows} rows of `{}` evenly",
                tensor.name
            ),
            &format!("the number {heads}"),
        ))
    }
}
