//! What `adapter_config.json` may hold: every key of PEFT's LoRA configuration, its default, since
//! when it exists, and what it means for a reader that does not implement it.

use serde_json::{Map, Value, json};

/// The PEFT version whose fields a new configuration has, and which it names.
pub const PEFT_VERSION: &str = "0.21.2";

/// Which PEFT a written configuration must be readable by. Before 0.14 PEFT stopped at keys that it
/// did not know; from then on it drops them with a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeftCompat {
    /// Every key of [`PEFT_VERSION`], as that version itself writes.
    #[default]
    Current,
    /// The keys that PEFT 0.x knew, for the minor version given, and any later key that is not at
    /// its default.
    Minor(u32),
    /// The keys of PEFT 0.4, and any later key that is not at its default.
    Minimal,
}

impl PeftCompat {
    pub(super) fn newest_minor(self) -> u32 {
        match self {
            PeftCompat::Current => u32::MAX,
            PeftCompat::Minor(minor) => minor,
            PeftCompat::Minimal => 4,
        }
    }
}

/// What a key does, for a reader that does not implement it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A field of our own [`LoraConfig`](super::LoraConfig).
    Typed,
    /// Says how the adapter came about; the function of a finished adapter does not depend on it.
    Inert,
    /// Changes what the adapter computes unless it is at its default.
    Function,
}

/// One key of the configuration.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The minor version 0.x that brought it; 4 for all up to 0.4.
    pub(super) since: u32,
    pub(super) role: Role,
    default: Default,
}

/// Defaults, in a form that a table of constants can hold.
#[derive(Clone, Copy)]
enum Default {
    Null,
    False,
    Integer(i64),
    Text(&'static str),
    EmptyObject,
    /// Written by [`LoraConfig`](super::LoraConfig) itself.
    Ours,
}

impl Key {
    pub(super) fn default_value(&self) -> Value {
        match self.default {
            Default::Null | Default::Ours => Value::Null,
            Default::False => json!(false),
            Default::Integer(value) => json!(value),
            Default::Text(text) => json!(text),
            Default::EmptyObject => json!({}),
        }
    }
}

const fn typed(name: &'static str, since: u32) -> Key {
    Key {
        name,
        since,
        role: Role::Typed,
        default: Default::Ours,
    }
}

const fn inert(name: &'static str, since: u32, default: Default) -> Key {
    Key {
        name,
        since,
        role: Role::Inert,
        default,
    }
}

const fn function(name: &'static str, since: u32, default: Default) -> Key {
    Key {
        name,
        since,
        role: Role::Function,
        default,
    }
}

/// The keys in sorted order, as they stand in a file.
pub(super) const KEYS: [Key; 41] = [
    function("alora_invocation_tokens", 18, Default::Null),
    typed("alpha_pattern", 6),
    function("arrow_config", 18, Default::Null),
    inert("auto_mapping", 4, Default::Null),
    typed("base_model_name_or_path", 4),
    typed("bias", 4),
    inert("corda_config", 15, Default::Null),
    inert("ensure_weight_tying", 18, Default::False),
    inert("eva_config", 14, Default::Null),
    typed("exclude_modules", 14),
    typed("fan_in_fan_out", 4),
    typed("inference_mode", 4),
    typed("init_lora_weights", 4),
    function("kasa_config", 21, Default::Null),
    function("layer_replication", 10, Default::Null),
    typed("layers_pattern", 4),
    typed("layers_to_transform", 4),
    inert("loftq_config", 7, Default::EmptyObject),
    typed("lora_alpha", 4),
    function("lora_bias", 14, Default::False),
    typed("lora_dropout", 4),
    inert("lora_ga_config", 19, Default::Null),
    function("megatron_config", 7, Default::Null),
    inert("megatron_core", 7, Default::Text("megatron.core")),
    typed("modules_to_save", 4),
    function("monteclora_config", 20, Default::Null),
    typed("peft_type", 4),
    typed("peft_version", 18),
    inert("qalora_group_size", 16, Default::Integer(16)),
    typed("r", 4),
    typed("rank_pattern", 6),
    typed("revision", 4),
    typed("target_modules", 4),
    function("target_parameters", 17, Default::Null),
    typed("task_type", 4),
    typed("trainable_token_indices", 15),
    function("use_bdlora", 19, Default::Null),
    function("use_dora", 9, Default::False),
    function("use_qalora", 16, Default::False),
    typed("use_rslora", 8),
    inert("velora_config", 20, Default::Null),
];

/// Keys of old or foreign versions that may be met and mean nothing to a plain LoRA.
pub(super) const OBSOLETE: [&str; 2] = ["merge_weights", "runtime_config"];

/// Every key at its default; our own fields stand in their places and are to be overwritten.
pub(super) fn defaults() -> Map<String, Value> {
    KEYS.iter()
        .map(|key| (key.name.to_owned(), key.default_value()))
        .collect()
}

pub(super) fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether a value says nothing: absent, off or empty.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}
