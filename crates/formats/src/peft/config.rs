//! `adapter_config.json`: the fields of a LoRA adapter, read with all faults reported at once, and
//! written back to the same bytes. Knows no model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::adapter::committed_path;
use super::fields::{
    alpha_value, changes_base, check_layers, check_peft_type, init_value, layers_value,
    names_value, read_init, read_layers, read_layers_pattern, read_names, read_pattern,
    read_targets, read_token_indices, targets_value, token_indices_value, unique,
};
use super::schema::{self, KEYS, OBSOLETE, PEFT_VERSION, PeftCompat, Role, is_off};
use crate::Result;
use crate::config::{ConfigReader, shown};
use crate::error::{Fault, FormatError};
use crate::files::{self, Ceiling, write_atomic};
use crate::pyjson::{parse, to_python_json};

/// The name of the configuration in an adapter's folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Larger ranks are taken for a mistake.
const LARGEST_RANK: usize = 1 << 20;

/// `target_modules`: which linear layers are adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Names: a whole module path, or its end after a dot.
    List(Vec<String>),
    /// A Python regular expression for the whole module path.
    Regex(String),
    /// `all-linear`: every linear layer but the output.
    AllLinear,
}

/// A field that is a name or several: a string and a list mean different things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    /// Names: a whole module path, or its end after a dot.
    List(Vec<String>),
    /// A Python regular expression for the whole module path.
    Regex(String),
}

/// `layers_to_transform`: one layer, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayersToTransform {
    /// Only this layer.
    One(i64),
    /// These layers; an empty list means all.
    Many(Vec<i64>),
}

impl LayersToTransform {
    /// The layers; nothing if all of them are meant.
    pub fn indices(&self) -> &[i64] {
        match self {
            LayersToTransform::One(index) => std::slice::from_ref(index),
            LayersToTransform::Many(indices) => indices,
        }
    }
}

/// `trainable_token_indices`: which rows of tables are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenIndices {
    /// Of the table of tokens, and of the output's where it is the same.
    Input(Vec<u32>),
    /// By the name of a table.
    ByModule(Vec<(String, Vec<u32>)>),
}

/// `bias`: which bias vectors of the base model are trained and saved too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// All of them.
    All,
    /// Those of the adapted layers.
    LoraOnly,
}

const BIASES: [(&str, Bias); 3] = [
    ("none", Bias::None),
    ("all", Bias::All),
    ("lora_only", Bias::LoraOnly),
];

/// `init_lora_weights`: how a new adapter starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: A uniform as a linear layer's weight, B zero.
    Default,
    /// `false`: A and B both uniform as a linear layer's weight, so that a new adapter does change
    /// the model.
    Random,
    /// `"gaussian"`: A normal with deviation 1/r, B zero.
    Gaussian,
    /// Another of PEFT's methods (`"pissa"`, `"olora"`, …), which we keep but do not perform.
    Other(String),
}

/// `task_type`: what the model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskType {
    /// Sequence classification or regression.
    SequenceClassification,
    /// Sequence to sequence.
    SequenceToSequence,
    /// Next-token prediction.
    CausalLm,
    /// One label a token.
    TokenClassification,
    /// Extractive question answering.
    QuestionAnswering,
    /// Hidden states.
    FeatureExtraction,
}

pub(super) const TASK_TYPES: [(&str, TaskType); 6] = [
    ("SEQ_CLS", TaskType::SequenceClassification),
    ("SEQ_2_SEQ_LM", TaskType::SequenceToSequence),
    ("CAUSAL_LM", TaskType::CausalLm),
    ("TOKEN_CLS", TaskType::TokenClassification),
    ("QUESTION_ANS", TaskType::QuestionAnswering),
    ("FEATURE_EXTRACTION", TaskType::FeatureExtraction),
];

impl TaskType {
    /// PEFT's word for it.
    pub fn name(self) -> &'static str {
        word(self, &TASK_TYPES)
    }
}

impl Bias {
    /// PEFT's word for it.
    pub fn name(self) -> &'static str {
        word(self, &BIASES)
    }
}

fn word<T: PartialEq + Copy>(value: T, words: &[(&'static str, T)]) -> &'static str {
    // Each table lists every variant of its type; a test sees to that.
    words
        .iter()
        .find(|(_, other)| *other == value)
        .map_or("", |(word, _)| *word)
}

/// The configuration of a LoRA adapter. Fields have PEFT's names and defaults.
///
/// What was read from a file and not changed is written back byte for byte; keys without a field
/// here are kept as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// The rank of the adapters.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Share of the adapter's inputs set to zero in training, 0 to 1.
    pub lora_dropout: f64,
    /// Which layers are adapted; none leaves it to the model's family.
    pub target_modules: Option<TargetModules>,
    /// Layers that are not adapted although they match.
    pub exclude_modules: Option<NamePattern>,
    /// Layers by number to which the adapters are limited.
    pub layers_to_transform: Option<LayersToTransform>,
    /// Names of the module lists that those numbers count, as regular expressions.
    pub layers_pattern: Option<Vec<String>>,
    /// Ranks by module, as (pattern, rank); the first match counts. Files hold them sorted by
    /// pattern.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas by module, as (pattern, alpha); the first match counts. Files hold them sorted by
    /// pattern.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Which bias vectors are trained and saved too.
    pub bias: Bias,
    /// Scaling alpha/√r instead of alpha/r.
    pub use_rslora: bool,
    /// How a new adapter starts.
    pub init_lora_weights: InitLoraWeights,
    /// Modules trained in full and saved with the adapter, each once.
    pub modules_to_save: Option<Vec<String>>,
    /// Rows of the tables of tokens that are trained in their place.
    pub trainable_token_indices: Option<TokenIndices>,
    /// What the model is for.
    pub task_type: Option<TaskType>,
    /// The base model, as the trainer named it.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
    /// The base layer stores its weight transposed (GPT-2).
    pub fan_in_fan_out: bool,
    /// True in every saved file.
    pub inference_mode: bool,
    /// The PEFT version that wrote the file, or whose fields it has.
    pub peft_version: Option<String>,
    /// The rest of the file.
    pub kept: Kept,
}

/// What a configuration file held besides the fields of [`LoraConfig`], so that nothing is lost
/// when it is written again.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Every key of the file, or every default; our own fields are written over it.
    keys: Map<String, Value>,
    /// The file as it was.
    original: Option<Vec<u8>>,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept {
            keys: schema::defaults(),
            original: None,
        }
    }
}

impl Default for LoraConfig {
    fn default() -> LoraConfig {
        LoraConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            bias: Bias::None,
            use_rslora: false,
            init_lora_weights: InitLoraWeights::Default,
            modules_to_save: None,
            trainable_token_indices: None,
            task_type: None,
            base_model_name_or_path: None,
            revision: None,
            fan_in_fan_out: false,
            inference_mode: true,
            peft_version: Some(PEFT_VERSION.into()),
            kept: Kept::default(),
        }
    }
}

impl LoraConfig {
    /// Reads the configuration of an adapter: its folder, or the file itself.
    pub fn read(path: &Path) -> Result<LoraConfig> {
        let path = config_path(path)?;
        let bytes = files::read(&path, Ceiling::JSON)?;
        LoraConfig::from_bytes(&path, bytes)
    }

    /// Parses the bytes of the file `path`.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<LoraConfig> {
        let value = parse(path, &bytes)?;
        let mut config = LoraConfig::from_value(path, &value)?;
        config.kept.original = Some(bytes);
        Ok(config)
    }

    /// Takes the fields from parsed JSON; keys that are missing have PEFT's defaults.
    pub fn from_value(path: &Path, value: &Value) -> Result<LoraConfig> {
        if let Some(object) = value.as_object() {
            check_peft_type(path, object)?;
        }
        let reader = ConfigReader::new(path, value);
        let default = LoraConfig::default();
        let config = LoraConfig {
            r: reader.usize_or("r", default.r, 1..=LARGEST_RANK),
            lora_alpha: reader.f64_or(
                "lora_alpha",
                default.lora_alpha,
                f64::NEG_INFINITY..=f64::INFINITY,
            ),
            lora_dropout: reader.f64_or("lora_dropout", 0.0, 0.0..=1.0),
            target_modules: read_targets(&reader),
            exclude_modules: read_names(&reader, "exclude_modules"),
            layers_to_transform: read_layers(&reader),
            layers_pattern: read_layers_pattern(&reader),
            rank_pattern: read_pattern(&reader, "rank_pattern", "an integer from 1 on", |value| {
                let rank = usize::try_from(value.as_u64()?).ok()?;
                (1..=LARGEST_RANK).contains(&rank).then_some(rank)
            }),
            alpha_pattern: read_pattern(&reader, "alpha_pattern", "a number", Value::as_f64),
            bias: reader.choice_or("bias", Bias::None, &BIASES),
            use_rslora: reader.bool_or("use_rslora", false),
            init_lora_weights: read_init(&reader),
            modules_to_save: reader.opt_strings("modules_to_save").map(unique),
            trainable_token_indices: read_token_indices(&reader),
            task_type: reader
                .has("task_type")
                .then(|| reader.choice("task_type", &TASK_TYPES)),
            base_model_name_or_path: reader.opt_string("base_model_name_or_path"),
            revision: reader.opt_string("revision"),
            fan_in_fan_out: reader.bool_or("fan_in_fan_out", false),
            inference_mode: reader.bool_or("inference_mode", false),
            peft_version: reader.opt_string("peft_version"),
            kept: Kept {
                keys: value.as_object().cloned().unwrap_or_default(),
                original: None,
            },
        };
        check_layers(&reader, &config);
        reader.finish()?;
        Ok(config)
    }

    /// The configuration's bytes in a file: those it was read from if nothing was changed, else as
    /// PEFT writes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        if let Some(original) = &self.kept.original
            && self.changed_keys().is_empty()
        {
            return original.clone();
        }
        to_python_json(&Value::Object(self.to_map())).into_bytes()
    }

    /// The bytes of a file that PEFT of another version is to read.
    pub fn to_bytes_for(&self, compat: PeftCompat) -> Vec<u8> {
        if compat == PeftCompat::Current {
            return self.to_bytes();
        }
        let newest = compat.newest_minor();
        let defaults = LoraConfig::default().to_map();
        let mut map = self.to_map();
        map.retain(|name, value| match schema::key(name) {
            Some(key) if key.since > newest => {
                name != "peft_version" && defaults.get(name) != Some(value)
            }
            _ => true,
        });
        to_python_json(&Value::Object(map)).into_bytes()
    }

    /// Writes `adapter_config.json` into a folder that exists, atomically. To save an adapter with
    /// its tensors, use [`write_adapter`](super::write_adapter), which keeps the two files
    /// together.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_atomic(&dir.join(ADAPTER_CONFIG), &self.to_bytes())
    }

    /// A key of the file that has no field here.
    pub fn raw(&self, key: &str) -> Option<&Value> {
        self.kept.keys.get(key)
    }

    /// What is set that we do not perform and that changes what the adapter computes: the key, and
    /// its value.
    pub fn unsupported_fields(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = KEYS
            .iter()
            .filter(|key| key.role == Role::Function)
            .filter_map(|key| {
                let value = self
                    .kept
                    .keys
                    .get(key.name)
                    .filter(|value| !is_off(value))?;
                Some(Fault {
                    place: key.name.to_owned(),
                    message: format!("`{}` is not supported", shown(value)),
                })
            })
            .collect();
        if let InitLoraWeights::Other(method) = &self.init_lora_weights
            && changes_base(method)
        {
            faults.push(Fault {
                place: "init_lora_weights".into(),
                message: format!(
                    "`{method}` changes the base model's weights, which is not supported"
                ),
            });
        }
        if self
            .kept
            .keys
            .get("enable_lora")
            .is_some_and(|value| !is_off(value))
        {
            faults.push(Fault {
                place: "enable_lora".into(),
                message: "fused layers of PEFT before 0.3 are not supported".into(),
            });
        }
        faults
    }

    /// Keys that no PEFT up to [`PEFT_VERSION`] has and that are set to something: of a newer
    /// version, or of nobody's.
    pub fn unknown_fields(&self) -> Vec<&str> {
        self.kept
            .keys
            .iter()
            .filter(|(name, value)| {
                schema::key(name).is_none()
                    && !OBSOLETE.contains(&name.as_str())
                    && name.as_str() != "enable_lora"
                    && !is_off(value)
            })
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// All keys, our fields written over what was there.
    fn to_map(&self) -> Map<String, Value> {
        let mut map = self.kept.keys.clone();
        for (name, value) in self.changed_keys() {
            map.insert(name.to_owned(), value);
        }
        map
    }

    /// Our fields that differ from the keys they were read from; all of them in a new
    /// configuration.
    fn changed_keys(&self) -> Vec<(&'static str, Value)> {
        let typed = self.typed_values();
        if self.kept.original.is_none()
            && self.kept.keys.get("peft_type").is_none_or(Value::is_null)
        {
            return typed;
        }
        // Read again rather than remembered: the keys are the only state, so the two cannot drift
        // apart.
        match LoraConfig::from_value(
            Path::new(ADAPTER_CONFIG),
            &Value::Object(self.kept.keys.clone()),
        ) {
            Ok(before) => typed
                .into_iter()
                .zip(before.typed_values())
                .filter(|(now, before)| now != before)
                .map(|(now, _)| now)
                .collect(),
            Err(_) => typed,
        }
    }

    fn typed_values(&self) -> Vec<(&'static str, Value)> {
        let ranks = self.rank_pattern.iter();
        let alphas = self.alpha_pattern.iter();
        vec![
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("lora_alpha", alpha_value(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            (
                "target_modules",
                targets_value(self.target_modules.as_ref()),
            ),
            (
                "exclude_modules",
                names_value(self.exclude_modules.as_ref()),
            ),
            (
                "layers_to_transform",
                layers_value(self.layers_to_transform.as_ref()),
            ),
            ("layers_pattern", json!(self.layers_pattern)),
            (
                "rank_pattern",
                ranks
                    .map(|(name, rank)| (name.clone(), json!(rank)))
                    .collect(),
            ),
            (
                "alpha_pattern",
                alphas
                    .map(|(name, alpha)| (name.clone(), alpha_value(*alpha)))
                    .collect(),
            ),
            ("bias", json!(self.bias.name())),
            ("use_rslora", json!(self.use_rslora)),
            ("init_lora_weights", init_value(&self.init_lora_weights)),
            ("modules_to_save", json!(self.modules_to_save)),
            (
                "trainable_token_indices",
                token_indices_value(self.trainable_token_indices.as_ref()),
            ),
            ("task_type", json!(self.task_type.map(TaskType::name))),
            (
                "base_model_name_or_path",
                json!(self.base_model_name_or_path),
            ),
            ("revision", json!(self.revision)),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("inference_mode", json!(self.inference_mode)),
            ("peft_version", json!(self.peft_version)),
        ]
    }
}

/// The configuration file of a folder, or the file itself.
pub(super) fn config_path(path: &Path) -> Result<PathBuf> {
    if !files::is_dir(path) {
        return Ok(path.to_owned());
    }
    let file = committed_path(path, ADAPTER_CONFIG);
    if files::exists(&file) {
        return Ok(file);
    }
    Err(FormatError::NothingFound {
        dir: path.to_owned(),
        expected: vec![ADAPTER_CONFIG.into()],
    })
}
