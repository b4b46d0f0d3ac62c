//! The fields of config.json, made of a GGUF file's keys and the shapes of its tensors, an
//! architecture each. Names and defaults are transformers'; what a family does with them is its
//! reader's business.

mod decoders;
mod rope;

use serde_json::{Map, Value, json};

use super::super::Gguf;
use crate::Result;
pub(super) use decoders::{
    gemma, gemma2, gemma3, granite, llama, olmo2, phi3, qwen2, qwen3, smollm3,
};

/// The keys that an architecture's settings stand under.
pub(super) struct Fields<'a> {
    gguf: &'a Gguf,
    architecture: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(gguf: &'a Gguf, architecture: &'static str) -> Fields<'a> {
        Fields { gguf, architecture }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let number = self.gguf.unsigned(&key)?;
        let fits = |number| {
            usize::try_from(number)
                .map_err(|_| self.gguf.wrong_key(&key, "a smaller number", "too large"))
        };
        number.map(fits).transpose()
    }

    /// A number that must be there.
    fn needed(&self, name: &str) -> Result<usize> {
        let missing = || self.gguf.wrong_key(&self.key(name), "a number", "missing");
        self.number(name)?.ok_or_else(missing)
    }

    /// A number with a fraction, as its f32 is written.
    fn float(&self, name: &str) -> Result<Option<f64>> {
        let number = self.gguf.float(&self.key(name))?;
        Ok(number.map(|n| shortest(n as f32)))
    }

    fn needed_float(&self, name: &str) -> Result<f64> {
        let missing = || self.gguf.wrong_key(&self.key(name), "a number", "missing");
        self.float(name)?.ok_or_else(missing)
    }

    /// Heads of queries.
    pub(super) fn heads(&self) -> Result<usize> {
        self.needed("attention.head_count")
    }

    /// Heads of keys and values.
    pub(super) fn key_value_heads(&self) -> Result<usize> {
        let own = self.number("attention.head_count_kv")?;
        own.map_or_else(|| self.heads(), Ok)
    }

    /// The rows of a table, which must be there.
    fn rows(&self, tensor: &str) -> Result<usize> {
        let found = self.gguf.tensors().iter().find(|t| t.name == tensor);
        let rows = found.and_then(|tensor| tensor.shape.first());
        rows.copied().ok_or_else(|| {
            let expected = "a tensor of the model";
            self.gguf.wrong_key(tensor, expected, "missing")
        })
    }

    /// Refuses a setting that no family here has, unless it has the value that changes nothing.
    fn refuse_unless(&self, name: &str, neutral: f64) -> Result<()> {
        match self.float(name)? {
            Some(found) if found != neutral => {
                let (expected, found) = (neutral.to_string(), format!("the number {found}"));
                Err(self.gguf.wrong_key(&self.key(name), &expected, &found))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The values of a small vector of f32, if it is there.
    fn vector(&self, tensor: &str) -> Result<Option<Vec<f64>>> {
        let found = self.gguf.tensors().iter().find(|t| t.name == tensor);
        let values = found.map(|tensor| self.gguf.vector(tensor)).transpose()?;
        Ok(values.map(|values| values.into_iter().map(shortest).collect()))
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors().iter().any(|t| t.name == tensor)
    }

    /// The ids of tokens that config.json has beside the model's own settings.
    fn token_ids(&self, fields: &mut Map<String, Value>, roles: &[(&str, &str)]) -> Result<()> {
        for (role, key) in roles {
            if let Some(id) = self.gguf.unsigned(&format!("tokenizer.ggml.{key}"))? {
                fields.insert(format!("{role}_token_id"), json!(id));
            }
        }
        Ok(())
    }
}

/// The shortest decimal that is this f32: 1e-5, not 9.99999974737875e-6.
fn shortest(n: f32) -> f64 {
    n.to_string().parse().unwrap_or(f64::from(n))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("each caller gives an object"),
    }
}

const BOS_AND_EOS: [(&str, &str); 2] = [("bos", "bos_token_id"), ("eos", "eos_token_id")];

pub(super) fn gpt2(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = object(json!({
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": fields.rows("token_embd.weight")?,
        "n_positions": fields.rows("position_embd.weight")?,
        "n_embd": fields.needed("embedding_length")?,
        "n_layer": fields.needed("block_count")?,
        "n_head": fields.heads()?,
        "n_inner": fields.needed("feed_forward_length")?,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": fields.needed_float("attention.layer_norm_epsilon")?,
        "tie_word_embeddings": !fields.has("output.weight"),
    }));
    fields.token_ids(&mut config, &BOS_AND_EOS)?;
    Ok(config)
}

pub(super) fn bert(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = object(json!({
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": fields.rows("token_embd.weight")?,
        "hidden_size": fields.needed("embedding_length")?,
        "num_hidden_layers": fields.needed("block_count")?,
        "num_attention_heads": fields.heads()?,
        "intermediate_size": fields.needed("feed_forward_length")?,
        "hidden_act": "gelu",
        "max_position_embeddings": fields.rows("position_embd.weight")?,
        "type_vocab_size": fields.rows("token_types.weight")?,
        "layer_norm_eps": fields.needed_float("attention.layer_norm_epsilon")?,
    }));
    fields.token_ids(&mut config, &[("pad", "padding_token_id")])?;
    Ok(config)
}
