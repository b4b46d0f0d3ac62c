//! The fields of `adapter_config.json` one by one: from JSON with their faults, and to JSON as PEFT
//! writes them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{
    InitLoraWeights, LayersToTransform, LoraConfig, NamePattern, TargetModules, TokenIndices,
};
use crate::Result;
use crate::config::{ConfigReader, shown};
use crate::error::FormatError;

pub(super) fn check_peft_type(path: &Path, object: &Map<String, Value>) -> Result<()> {
    let found = match object.get("peft_type") {
        Some(Value::String(name)) if name == "LORA" => return Ok(()),
        Some(value) => value.as_str().map_or_else(|| shown(value), str::to_owned),
        None if object.contains_key("fine_tune_type") => "an mlx-lm adapter".into(),
        None => "none: `peft_type` is missing".into(),
    };
    Err(FormatError::NotLora {
        path: path.to_owned(),
        found,
    })
}

pub(super) fn check_layers(reader: &ConfigReader<'_>, config: &LoraConfig) {
    let is_regex = matches!(
        config.target_modules,
        Some(TargetModules::Regex(_) | TargetModules::AllLinear)
    );
    let layers = config.layers_to_transform.is_some();
    let has_pattern = config
        .layers_pattern
        .as_ref()
        .is_some_and(|names| !names.is_empty());
    if is_regex && layers {
        reader.fault(
            "layers_to_transform",
            "cannot be used when `target_modules` is a pattern",
        );
    }
    if is_regex && config.layers_pattern.is_some() {
        reader.fault(
            "layers_pattern",
            "cannot be used when `target_modules` is a pattern",
        );
    }
    if has_pattern && !layers {
        reader.fault("layers_pattern", "needs `layers_to_transform` beside it");
    }
}

pub(super) fn read_token_indices(reader: &ConfigReader<'_>) -> Option<TokenIndices> {
    let key = "trainable_token_indices";
    let list = |value: &Value| -> Option<Vec<u32>> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        value.as_array()?.iter().map(id).collect()
    };
    let found = match reader.raw(key)? {
        Value::Null => return None,
        Value::Object(map) => {
            let of = map
                .iter()
                .map(|(name, value)| Some((name.clone(), list(value)?)));
            of.collect::<Option<_>>().map(TokenIndices::ByModule)
        }
        value => list(value).map(TokenIndices::Input),
    };
    if found.is_none() {
        let expected = "expected a list of token ids, or one for each table by its name";
        reader.fault(
            key,
            format!("{expected}, found {}", shown(reader.raw(key)?)),
        );
    }
    found
}

pub(super) fn token_indices_value(indices: Option<&TokenIndices>) -> Value {
    match indices {
        None => Value::Null,
        Some(TokenIndices::Input(ids)) => json!(ids),
        Some(TokenIndices::ByModule(tables)) => {
            let of = tables.iter().map(|(name, ids)| (name.clone(), json!(ids)));
            Value::Object(of.collect())
        }
    }
}

pub(super) fn read_targets(reader: &ConfigReader<'_>) -> Option<TargetModules> {
    read_names(reader, "target_modules").map(|names| match names {
        NamePattern::List(names) => TargetModules::List(names),
        NamePattern::Regex(pattern) if pattern.to_lowercase() == "all-linear" => {
            TargetModules::AllLinear
        }
        NamePattern::Regex(pattern) => TargetModules::Regex(pattern),
    })
}

pub(super) fn read_names(reader: &ConfigReader<'_>, key: &str) -> Option<NamePattern> {
    match reader.raw(key) {
        Some(Value::String(pattern)) => Some(NamePattern::Regex(pattern.clone())),
        _ => reader.opt_strings(key).map(NamePattern::List),
    }
}

pub(super) fn read_layers(reader: &ConfigReader<'_>) -> Option<LayersToTransform> {
    const KEY: &str = "layers_to_transform";
    let value = reader.raw(KEY).filter(|value| !value.is_null())?;
    let layers = match value {
        Value::Array(items) => items
            .iter()
            .map(Value::as_i64)
            .collect::<Option<Vec<i64>>>()
            .map(LayersToTransform::Many),
        _ => value.as_i64().map(LayersToTransform::One),
    };
    if layers.is_none() {
        reader.fault(
            KEY,
            format!(
                "expected an integer or a list of them, found `{}`",
                shown(value)
            ),
        );
    }
    layers
}

pub(super) fn read_layers_pattern(reader: &ConfigReader<'_>) -> Option<Vec<String>> {
    match reader.raw("layers_pattern") {
        // PEFT takes an empty text for no pattern.
        Some(Value::String(pattern)) if pattern.is_empty() => Some(Vec::new()),
        Some(Value::String(pattern)) => Some(vec![pattern.clone()]),
        _ => reader.opt_strings("layers_pattern"),
    }
}

pub(super) fn read_pattern<T>(
    reader: &ConfigReader<'_>,
    key: &str,
    expected: &str,
    convert: impl Fn(&Value) -> Option<T>,
) -> Vec<(String, T)> {
    let Some(value) = reader.raw(key).filter(|value| !value.is_null()) else {
        return Vec::new();
    };
    let Some(map) = value.as_object() else {
        reader.fault(key, format!("expected an object, found `{}`", shown(value)));
        return Vec::new();
    };
    let mut entries = Vec::with_capacity(map.len());
    for (name, value) in map {
        match convert(value) {
            Some(converted) => entries.push((name.clone(), converted)),
            None => reader.fault(
                &format!("{key}.{name}"),
                format!("expected {expected}, found `{}`", shown(value)),
            ),
        }
    }
    entries
}

pub(super) fn read_init(reader: &ConfigReader<'_>) -> InitLoraWeights {
    match reader.raw("init_lora_weights") {
        None | Some(Value::Bool(true)) => InitLoraWeights::Default,
        Some(Value::Bool(false)) => InitLoraWeights::Random,
        Some(Value::String(name)) if name.to_lowercase() == "gaussian" => InitLoraWeights::Gaussian,
        Some(Value::String(name)) => InitLoraWeights::Other(name.clone()),
        Some(other) => {
            let found = shown(other);
            reader.fault(
                "init_lora_weights",
                format!("expected true, false or the name of a method, found `{found}`"),
            );
            InitLoraWeights::Default
        }
    }
}

/// Methods that begin by changing the base, so that the adapter alone does not give back the model.
pub(super) fn changes_base(method: &str) -> bool {
    let method = method.to_lowercase();
    method.starts_with("pissa")
        || matches!(method.as_str(), "olora" | "corda" | "loftq" | "lora_ga")
}

/// Each name once, in order: PEFT appends the head's names again at every save.
pub(super) fn unique(names: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    names
        .into_iter()
        .filter(|name| seen.insert(name.clone()))
        .collect()
}

/// PEFT declares alpha as an integer, but writes whatever was given: whole numbers without a point.
pub(super) fn alpha_value(alpha: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if alpha.fract() == 0.0 && alpha.abs() < EXACT {
        json!(alpha as i64)
    } else {
        json!(alpha)
    }
}

pub(super) fn targets_value(targets: Option<&TargetModules>) -> Value {
    match targets {
        None => Value::Null,
        Some(TargetModules::List(names)) => json!(names),
        Some(TargetModules::Regex(pattern)) => json!(pattern),
        Some(TargetModules::AllLinear) => json!("all-linear"),
    }
}

pub(super) fn names_value(names: Option<&NamePattern>) -> Value {
    match names {
        None => Value::Null,
        Some(NamePattern::List(names)) => json!(names),
        Some(NamePattern::Regex(pattern)) => json!(pattern),
    }
}

pub(super) fn layers_value(layers: Option<&LayersToTransform>) -> Value {
    match layers {
        None => Value::Null,
        Some(LayersToTransform::One(index)) => json!(index),
        Some(LayersToTransform::Many(indices)) => json!(indices),
    }
}

pub(super) fn init_value(init: &InitLoraWeights) -> Value {
    match init {
        InitLoraWeights::Default => json!(true),
        InitLoraWeights::Random => json!(false),
        InitLoraWeights::Gaussian => json!("gaussian"),
        InitLoraWeights::Other(name) => json!(name),
    }
}
