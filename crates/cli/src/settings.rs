//! Lays flags over a file of settings. Every fault of the file is reported at once, each with its
//! line and, for an unknown key, the nearest known one.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::nearest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use lowrank_run::yaml::{self, Entry};
use lowrank_run::{RunError, RunResult};

/// The flags laid over the file they name; the flags alone where they name none.
///
/// # Errors
/// The file cannot be read, is not YAML, or holds keys or values that the command does not know.
pub fn with_file<T: Args + Serialize + DeserializeOwned>(
    flags: T,
    file: Option<&str>,
) -> RunResult<T> {
    match file {
        None => Ok(flags),
        Some(file) => overlay(read_file::<T>(Path::new(file))?, &flags),
    }
}

/// The settings of a file for a command, checked key by key.
///
/// # Errors
/// As [`with_file`].
pub fn read_file<T: Args + Serialize + DeserializeOwned>(
    path: &Path,
) -> RunResult<Map<String, Value>> {
    let shown = path.display();
    let text = files::read_text(path, Ceiling::SETTINGS)
        .map_err(|error| RunError::from(error).into_usage())?;
    let entries = yaml::parse(&text).map_err(|error| {
        RunError::usage(format!("`{shown}`, line {}: {}", error.line, error.message))
    })?;
    check_entries::<T>(entries).map_err(|faults| {
        let n = faults.len();
        let what = if n == 1 { "a setting" } else { "settings" };
        let list: String = faults.iter().map(|f| format!("\n  {f}")).collect();
        RunError::usage(format!("`{shown}` holds {what} that cannot be used{list}"))
    })
}

/// Flags laid over settings: a flag that was given wins.
///
/// # Errors
/// The two do not fit together, which the checks of the settings exclude.
pub fn overlay<T: Serialize + DeserializeOwned>(
    mut settings: Map<String, Value>,
    flags: &T,
) -> RunResult<T> {
    for (key, value) in to_map(flags) {
        if !value.is_null() {
            settings.insert(key, value);
        }
    }
    let skipped = serde_json::from_value(Value::Object(settings));
    skipped.map_err(|error| RunError::usage(format!("the settings do not fit together: {error}")))
}

/// Takes away the settings that a command does not have.
pub fn keep_known<T: Args + Serialize + DeserializeOwned>(settings: &mut Map<String, Value>) {
    let names = known_names::<T>();
    settings.retain(|key, _| names.contains_key(key));
}

/// Flags as settings; what was not given is null.
pub fn to_map<T: Serialize>(flags: &T) -> Map<String, Value> {
    match serde_json::to_value(flags) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => Map::new(),
    }
}

/// Every name a setting may have, with the name it has in the structs.
fn known_names<T: Args + Serialize + DeserializeOwned>() -> BTreeMap<String, String> {
    let command = T::augment_args(clap::Command::new("settings"));
    // Flags that exist on the command line alone (`--config`, `--no-shuffle`) are not among the
    // serialised fields.
    let fields = serde_json::from_value::<T>(Value::Object(Map::new())).map(|empty| to_map(&empty));
    let fields = fields.unwrap_or_default();
    let mut names = BTreeMap::new();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        if !fields.contains_key(id) {
            continue;
        }
        names.insert(id.to_owned(), id.to_owned());
        for alias in arg.get_all_aliases().unwrap_or_default() {
            names.insert(alias.replace('-', "_"), id.to_owned());
        }
    }
    names
}

fn check_entries<T: Args + Serialize + DeserializeOwned>(
    entries: Vec<Entry>,
) -> Result<Map<String, Value>, Vec<String>> {
    let names = known_names::<T>();
    let mut settings = Map::new();
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    for entry in &entries {
        let key = entry.key.replace('-', "_");
        let Some(id) = names.get(&key) else {
            let near = nearest(&key, names.keys().map(String::as_str));
            let near = near
                .map(|n| format!("; did you mean `{n}`?"))
                .unwrap_or_default();
            faults.push(format!(
                "line {}: unknown key `{}`{near}",
                entry.line, entry.key
            ));
            continue;
        };
        if let Some(first) = lines.insert(id, entry.line) {
            faults.push(format!(
                "line {}: `{}` is already set in line {first}",
                entry.line, entry.key
            ));
            continue;
        }
        match fitting_value::<T>(id, entry) {
            Ok(value) => {
                settings.insert(id.clone(), value);
            }
            Err(message) => faults.push(format!("line {}: `{}`: {message}", entry.line, entry.key)),
        }
    }
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(faults)
    }
}

/// The value as its type, or as the text that was written where the setting is text
/// (`labels: [0, 1]`).
fn fitting_value<T: DeserializeOwned>(id: &str, entry: &Entry) -> Result<Value, String> {
    let fits = |value: &Value| {
        let single = Map::from_iter([(id.to_owned(), value.clone())]);
        serde_json::from_value::<T>(Value::Object(single)).map(|_| value.clone())
    };
    fits(&entry.value)
        .or_else(|error| fits(&entry.as_text).map_err(|_| error))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use lowrank_engine::{Arithmetic, DType};
    use lowrank_run::rates::AskedRate;
    use lowrank_run::settings::laid_over;
    use lowrank_run::spec::to_settings;
    use lowrank_train::config::{
        ByteSize, InitLora, NumericSettings, PrefixCacheLimit, Task, TrainConfig,
    };

    use super::*;
    use crate::args::TrainArgs;

    fn settings(text: &str) -> Result<Map<String, Value>, Vec<String>> {
        check_entries::<TrainArgs>(yaml::parse(text).unwrap())
    }

    #[test]
    fn flags_win_and_aliases_count() {
        let file = settings(
            "batch_size: 4\nlr: 0.5\nlabels: [0, 1]\nrank_pattern: {a: 2}\ntarget-modules: query\n",
        )
        .unwrap();
        assert_eq!(file["per_device_batch_size"], 4);
        let mut flags = TrainArgs::default();
        flags.optimization.learning_rate = Some(AskedRate::Rate(0.25));
        let merged = overlay(file, &flags).unwrap();
        assert_eq!(
            merged.optimization.learning_rate,
            Some(AskedRate::Rate(0.25))
        );
        assert_eq!(merged.optimization.per_device_batch_size, Some(4));
        assert_eq!(
            merged.data.labels.as_deref(),
            Some(["0".to_owned(), "1".to_owned()].as_slice())
        );
        assert_eq!(merged.lora.rank_pattern.unwrap()[0].1, 2);
        assert_eq!(merged.lora.target_modules.unwrap().len(), 1);
    }

    #[test]
    fn a_printed_configuration_reads_back_equal() {
        let mut config = TrainConfig::of("some/model", "bert", Task::SingleLabel, "train.tsv");
        config.data.labels = ["no", "yes", "0"].map(str::to_owned).to_vec();
        config.data.text_column = Some("a b".to_owned());
        config.lora.rank_pattern.insert("layer.0".to_owned(), 4);
        config.lora.init_lora_weights = InitLora::Random;
        config.optimization.learning_rate = 3e-4;
        config.memory.max_memory = Some(ByteSize(2_000_000_000));
        config.memory.prefix_cache = PrefixCacheLimit::Off;
        config.numerics = NumericSettings::new(DType::Bf16, None, Some(Arithmetic::F32));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, yaml::to_yaml(&to_settings(&config))).unwrap();
        let map = read_file::<TrainArgs>(&file).unwrap();
        let back = to_map(&overlay(map, &TrainArgs::default()).unwrap());
        let defaults = TrainConfig::of("", "gpt2", Task::CausalLm, "");
        assert_eq!(laid_over(&defaults, &back).unwrap(), config);
    }

    #[test]
    fn every_fault_has_its_line() {
        let faults = settings(
            "learning_rat: 1\nr: eight\nno_shuffle: true\nshuffle: maybe\nr: 8\n"
                .replace("\nr: 8", "")
                .as_str(),
        )
        .unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert_eq!(
            faults[0],
            "line 1: unknown key `learning_rat`; did you mean `learning_rate`?"
        );
        assert!(
            faults[1].starts_with("line 2: `r`: invalid type"),
            "{faults:?}"
        );
        assert!(
            faults[2].starts_with("line 3: unknown key `no_shuffle`"),
            "{faults:?}"
        );
        assert!(faults[3].starts_with("line 4: `shuffle`"), "{faults:?}");
        let twice = settings("lr: 1\nlearning_rate: 2\n").unwrap_err();
        assert_eq!(twice, ["line 2: `learning_rate` is already set in line 1"]);
    }
}
