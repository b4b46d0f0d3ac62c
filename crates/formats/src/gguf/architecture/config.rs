//! The fields of config.json, made of a GGUF file's keys and the shapes of its tensors, an
//! architecture each. Names and defaults are transformers'; what a family does with them is its
//! reader's business.

use serde_json::{Map, Value, json};

use super::super::Gguf;
use crate::Result;

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
    fn float(&self, name: &str) -> Result<Option<Value>> {
        let number = self.gguf.float(&self.key(name))?;
        // The shortest decimal that is this f32: 1e-5, not 9.99999974737875e-6.
        let shortest = |n: f64| (n as f32).to_string().parse::<f64>().unwrap_or(n);
        Ok(number.map(|n| json!(shortest(n))))
    }

    fn needed_float(&self, name: &str) -> Result<Value> {
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

/// What llama and its relatives share.
fn decoder(fields: &Fields<'_>, class: &str, model_type: &str) -> Result<Map<String, Value>> {
    let (width, heads) = (fields.needed("embedding_length")?, fields.heads()?);
    let head_dim = match fields.number("attention.key_length")? {
        Some(own) => own,
        None => width / heads.max(1),
    };
    let mut config = object(json!({
        "model_type": model_type,
        "architectures": [class],
        "vocab_size": fields.rows("token_embd.weight")?,
        "hidden_size": width,
        "intermediate_size": fields.needed("feed_forward_length")?,
        "num_hidden_layers": fields.needed("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.key_value_heads()?,
        "head_dim": head_dim,
        "max_position_embeddings": fields.needed("context_length")?,
        "rms_norm_eps": fields.needed_float("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": !fields.has("output.weight"),
    }));
    if let Some(theta) = fields.float("rope.freq_base")? {
        config.insert("rope_theta".to_owned(), theta);
    }
    fields.token_ids(&mut config, &BOS_AND_EOS)?;
    fields.token_ids(&mut config, &[("pad", "padding_token_id")])?;
    refuse_scaling(fields)?;
    Ok(config)
}

/// Positions that are stretched stand in keys that no family here reads yet.
fn refuse_scaling(fields: &Fields<'_>) -> Result<()> {
    let key = fields.key("rope.scaling.type");
    match fields.gguf.text(&key)? {
        None | Some("none") => {}
        Some(found) => {
            let found = format!("the text `{found}`");
            return Err(fields.gguf.wrong_key(&key, "`none`", &found));
        }
    }
    match fields.has("rope_freqs.weight") {
        false => Ok(()),
        true => Err(fields.gguf.wrong_key(
            "rope_freqs.weight",
            "no table of stretched positions",
            "a tensor",
        )),
    }
}

pub(super) fn llama(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "LlamaForCausalLM", "llama")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    Ok(config)
}

pub(super) fn gemma3(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Gemma3ForCausalLM", "gemma3_text")?;
    config.insert("hidden_activation".to_owned(), json!("gelu_pytorch_tanh"));
    if let Some(window) = fields.number("attention.sliding_window")? {
        config.insert("sliding_window".to_owned(), json!(window));
    }
    Ok(config)
}
