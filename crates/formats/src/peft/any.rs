//! `adapter_config.json` of any method: LoRA's is PEFT's, BitFit's is our own, as PEFT has none.
//! Knows no model.

use std::path::Path;

use serde_json::{Value, json};

use super::adapter::{AdapterFile, KEY_PREFIX};
use super::config::{LoraConfig, TASK_TYPES, TaskType, config_path};
use crate::Result;
use crate::config::ConfigReader;
use crate::files::{self, Ceiling};
use crate::method::Method;
use crate::pyjson::{parse, to_python_json};

/// `peft_type` of [`BitFitConfig`].
const BITFIT: &str = "BITFIT";

/// The configuration of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterConfig {
    /// PEFT's, of LoRA.
    Lora(Box<LoraConfig>),
    /// Ours, of BitFit.
    BitFit(BitFitConfig),
}

/// Trained biases, and a trained head. Their tensors stand in the adapter's file under their names
/// in the model, so that PyTorch's `load_state_dict(..., strict=False)` takes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BitFitConfig {
    /// The base model, as the trainer named it.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
    /// What the model is for.
    pub task_type: Option<TaskType>,
    /// Modules that are trained whole, each by a part of its path: the head.
    pub modules_to_save: Vec<String>,
}

impl AdapterConfig {
    /// Reads the configuration of an adapter: its folder, or the file itself.
    pub fn read(path: &Path) -> Result<AdapterConfig> {
        let path = config_path(path)?;
        let bytes = files::read(&path, Ceiling::JSON)?;
        let value = parse(&path, &bytes)?;
        if value.get("peft_type").and_then(Value::as_str) == Some(BITFIT) {
            return BitFitConfig::from_value(&path, &value).map(AdapterConfig::BitFit);
        }
        LoraConfig::from_bytes(&path, bytes).map(AdapterConfig::from)
    }

    /// Reads the tensors of an adapter with this configuration, under PEFT's keys.
    pub fn read_tensors(&self, dir: &Path) -> Result<AdapterFile> {
        match self {
            AdapterConfig::Lora(_) => AdapterFile::read(dir),
            AdapterConfig::BitFit(_) => AdapterFile::read_parameters(dir),
        }
    }

    /// The name in the adapter's file of a tensor under PEFT's key.
    pub(super) fn name_in_file<'a>(&self, key: &'a str) -> &'a str {
        match self {
            AdapterConfig::Lora(_) => key,
            AdapterConfig::BitFit(_) => key.strip_prefix(KEY_PREFIX).unwrap_or(key),
        }
    }

    /// The configuration's bytes in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            AdapterConfig::Lora(config) => config.to_bytes(),
            AdapterConfig::BitFit(config) => config.to_bytes(),
        }
    }

    /// What it trains.
    pub fn method(&self) -> Method {
        match self {
            AdapterConfig::Lora(_) => Method::Lora,
            AdapterConfig::BitFit(_) => Method::BitFit,
        }
    }

    /// LoRA's configuration, if it is that.
    pub fn lora(&self) -> Option<&LoraConfig> {
        match self {
            AdapterConfig::Lora(config) => Some(config),
            AdapterConfig::BitFit(_) => None,
        }
    }

    /// What the model is for.
    pub fn task_type(&self) -> Option<TaskType> {
        match self {
            AdapterConfig::Lora(config) => config.task_type,
            AdapterConfig::BitFit(config) => config.task_type,
        }
    }

    /// The base model, as the trainer named it.
    pub fn base_model(&self) -> Option<&str> {
        match self {
            AdapterConfig::Lora(config) => config.base_model_name_or_path.as_deref(),
            AdapterConfig::BitFit(config) => config.base_model_name_or_path.as_deref(),
        }
    }

    /// Names the base model.
    pub fn set_base_model(&mut self, name: &str) {
        let place = match self {
            AdapterConfig::Lora(config) => &mut config.base_model_name_or_path,
            AdapterConfig::BitFit(config) => &mut config.base_model_name_or_path,
        };
        *place = Some(name.to_owned());
    }
}

impl From<LoraConfig> for AdapterConfig {
    fn from(config: LoraConfig) -> Self {
        AdapterConfig::Lora(Box::new(config))
    }
}

impl From<BitFitConfig> for AdapterConfig {
    fn from(config: BitFitConfig) -> Self {
        AdapterConfig::BitFit(config)
    }
}

impl BitFitConfig {
    fn from_value(path: &Path, value: &Value) -> Result<BitFitConfig> {
        let reader = ConfigReader::new(path, value);
        let config = BitFitConfig {
            base_model_name_or_path: reader.opt_string("base_model_name_or_path"),
            revision: reader.opt_string("revision"),
            task_type: reader
                .has("task_type")
                .then(|| reader.choice("task_type", &TASK_TYPES)),
            modules_to_save: reader.opt_strings("modules_to_save").unwrap_or_default(),
        };
        reader.finish()?;
        Ok(config)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let value = json!({
            "base_model_name_or_path": self.base_model_name_or_path,
            "modules_to_save": self.modules_to_save,
            "peft_type": BITFIT,
            "revision": self.revision,
            "task_type": self.task_type.map(TaskType::name),
        });
        to_python_json(&value).into_bytes()
    }
}
