//! How texts are generated: flags over the model's generation_config.json over its config.json, as
//! transformers layers them. What was taken from a file is said, and so is what is not obeyed.

use std::path::Path;

use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::{FormatError, model_config_file, read_model_config};
use lowrank_model::{Generate, GenerationConfig, GenerationFile, ModelError, Search, SettingFault};
use serde_json::{Map, Value};

use crate::error::{RunError, RunResult};
use crate::loaded::LoadedModel;

/// The file beside a model.
const FILE: &str = "generation_config.json";

/// What turns the file off.
const NO_FILE: &str = "none";

/// Flags that ask for draws, and the values with which they would change nothing.
const DRAWN: [(&str, &[f64]); 8] = [
    ("temperature", &[0.0, 1.0]),
    ("top_k", &[0.0]),
    ("top_p", &[1.0]),
    ("min_p", &[0.0]),
    ("top_h", &[1.0]),
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
];

/// What the flags ask for, checked before anything is read.
pub struct Asked {
    config: GenerationConfig,
    /// The flags that were given, as settings.
    given: Map<String, Value>,
    seed: u64,
    file: Option<String>,
}

/// How a model generates, and what a user should know of it.
pub struct Decoding {
    /// The settings.
    pub options: Generate,
    /// What was taken from files and what is not obeyed, a line each.
    pub notes: Vec<String>,
}

/// A file's fields, and what it is called.
struct Source {
    name: String,
    file: GenerationFile,
    /// Whether it is the model's config.json, which holds other things too.
    is_legacy: bool,
}

impl Asked {
    /// The settings of decoding by name, and beside them `generation_config` (a file, or `none`)
    /// and `seed`.
    ///
    /// # Errors
    /// A value is out of range or of the wrong kind, or settings contradict each other.
    pub fn new(mut given: Map<String, Value>) -> RunResult<Self> {
        given.retain(|_, value| !value.is_null());
        let file = given.shift_remove("generation_config");
        let seed = given.shift_remove("seed");
        let value = Value::Object(given.clone());
        let mut config = GenerationConfig::from_value(Path::new("flags"), &value)
            .map_err(|error| flag_fault(&error))?;
        config.do_sample = draws(&given)?;
        let seed = seed.and_then(|seed| seed.as_u64()).unwrap_or(1);
        // End tokens come later.
        let mut options = config.clone().options(seed);
        options.eos.push(0);
        refuse(options.faults(), |_| String::new())?;
        Ok(Self {
            config,
            given,
            seed,
            file: file.and_then(|file| file.as_str().map(str::to_owned)),
        })
    }

    /// The flags over what the model's files say.
    ///
    /// # Errors
    /// A file cannot be read, or a setting is out of range or does not fit the model.
    pub fn beside(self, loaded: &LoadedModel) -> RunResult<Decoding> {
        let source = self.source(loaded)?;
        let mut notes = Vec::new();
        let mut config = match &source {
            Some(source) => self.config.clone().over(source.file.config.clone()),
            None => self.config.clone(),
        };
        self.check_temperature(source.as_ref())?;
        if config.eos_token_id.is_none() {
            config.eos_token_id = end_tokens(loaded, source.as_ref(), &mut notes);
        }
        let options = config.options(self.seed);
        let mut faults = options.faults();
        faults.extend(options.misfits(loaded.base.config.facts.vocab_size));
        refuse(faults, |name| match &source {
            Some(source) if !self.given.contains_key(name) && source.file.has(name) => {
                format!(" (in {})", source.name)
            }
            _ => String::new(),
        })?;
        self.check_beams(&options.search)?;
        if let Some(source) = &source {
            notes.splice(0..0, self.describe(source, &options.search));
            if !source.is_legacy {
                notes.extend(hidden(loaded, source, &options.search));
            }
        }
        Ok(Decoding { options, notes })
    }

    fn source(&self, loaded: &LoadedModel) -> RunResult<Option<Source>> {
        let beside = loaded.base.dir.join(FILE);
        let (name, path, bytes) = match self.file.as_deref() {
            Some(NO_FILE) => return Ok(None),
            Some(file) => {
                let path = Path::new(file);
                (
                    format!("`{file}`"),
                    path,
                    files::read(path, Ceiling::JSON).map(Some),
                )
            }
            None => {
                let bytes = files::read_if_there(&beside, Ceiling::JSON);
                (FILE.to_owned(), beside.as_path(), bytes)
            }
        };
        let Some(bytes) = bytes.map_err(|error| way_out(error.into()))? else {
            return legacy(loaded).map(Some);
        };
        let file = GenerationFile::parse(path, &bytes).map_err(way_out)?;
        Ok(Some(Source {
            name,
            file,
            is_legacy: false,
        }))
    }

    /// Who asks for draws by a flag does not mean the 0 of a file.
    fn check_temperature(&self, source: Option<&Source>) -> RunResult {
        let asks = self.config.do_sample == Some(true) && self.config.temperature.is_none();
        match source {
            Some(source) if asks && source.file.config.temperature == Some(0.0) => {
                Err(RunError::usage(format!(
                    "the flags ask for draws, but `temperature` is 0 in {}, which takes the most probable token",
                    source.name
                ))
                .hint("pass --temperature too"))
            }
            _ => Ok(()),
        }
    }

    fn check_beams(&self, search: &Search) -> RunResult {
        let beams = ["length_penalty", "early_stopping"];
        let asks = beams.iter().any(|name| self.given.contains_key(*name));
        if asks && !self.given.contains_key("num_beams") && !matches!(search, Search::Beam(_)) {
            return Err(RunError::usage(
                "`length_penalty` and `early_stopping` are settings of beam search",
            )
            .hint("pass --num-beams too"));
        }
        if self.given.contains_key("stop_strings") && matches!(search, Search::Beam(_)) {
            return Err(RunError::usage(
                "`stop_strings` ends one sequence, but beam search follows several",
            )
            .hint("pass --num-beams 1, or leave --stop-strings out"));
        }
        Ok(())
    }

    fn describe(&self, source: &Source, search: &Search) -> Vec<String> {
        let twin = |name: &str| match name {
            "max_length" => self.given.contains_key("max_new_tokens"),
            "min_length" => self.given.contains_key("min_new_tokens"),
            "do_sample" => self.config.do_sample.is_some(),
            _ => false,
        };
        let taken: Vec<String> = source
            .file
            .taken(search)
            .into_iter()
            .filter(|field| !self.given.contains_key(&field.name) && !twin(&field.name))
            .map(|field| format!("{} {}", field.name, field.value))
            .collect();
        let mut notes = Vec::new();
        // Every config.json names end tokens.
        let is_usual = |field: &String| source.is_legacy && field.starts_with("eos_token_id");
        if !taken.iter().all(is_usual) {
            notes.push(format!("taken from {}: {}", source.name, taken.join(", ")));
        }
        for field in source.file.not_obeyed(search) {
            notes.push(format!(
                "warning: {}: `{}` {} is not obeyed: {}",
                source.name, field.name, field.value, field.instead
            ));
        }
        let unknown = source.file.unknown();
        if !source.is_legacy && !unknown.is_empty() {
            let shown: Vec<String> = unknown
                .iter()
                .take(8)
                .map(|name| {
                    let cut: String = name.chars().take(40).collect();
                    format!("`{}`", cut.escape_debug())
                })
                .collect();
            let more = match unknown.len() - shown.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            notes.push(format!(
                "{}: fields that are not known and change nothing: {}{more}",
                source.name,
                shown.join(", ")
            ));
        }
        notes
    }
}

/// Whether the flags ask for draws; `None` where they say nothing of it.
fn draws(given: &Map<String, Value>) -> RunResult<Option<bool>> {
    let value = |name: &str| given.get(name).and_then(Value::as_f64);
    let asks = DRAWN.iter().any(|(name, _)| given.contains_key(*name));
    let changes = DRAWN
        .iter()
        .find(|(name, neutral)| value(name).is_some_and(|x| !neutral.contains(&x)));
    let said = given.get("do_sample").and_then(Value::as_bool);
    match (said, changes) {
        _ if value("temperature") == Some(0.0) => Ok(Some(false)),
        (Some(false), Some((name, _))) => Err(RunError::usage(format!(
            "`{name}` counts where tokens are drawn, but `do_sample` is false"
        ))
        .hint(format!(
            "leave --{} or --do-sample=false out",
            name.replace('_', "-")
        ))),
        (Some(draws), _) => Ok(Some(draws)),
        (None, _) => Ok(asks.then_some(true)),
    }
}

/// Fields of generation that older files hold, where there is no generation_config.json.
fn legacy(loaded: &LoadedModel) -> RunResult<Source> {
    let path = model_config_file(&loaded.base.dir);
    let config = read_model_config(&loaded.base.dir)?;
    let file = GenerationFile::from_value(&path, &config).map_err(way_out)?;
    Ok(Source {
        name: "config.json".to_owned(),
        file,
        is_legacy: true,
    })
}

/// What ends a text where neither flags nor the file say it: config.json, else the tokenizer.
fn end_tokens(
    loaded: &LoadedModel,
    source: Option<&Source>,
    notes: &mut Vec<String>,
) -> Option<Vec<u32>> {
    let of_config = legacy(loaded).ok().and_then(|s| s.file.config.eos_token_id);
    let found = of_config.or_else(|| Some(vec![loaded.base.tokenizer.as_ref().ok()?.eos_id()?]));
    if let (Some(source), Some(ids)) = (source.filter(|s| !s.is_legacy), &found) {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        notes.push(format!(
            "{} names no end token: texts end at {}, where transformers goes on",
            source.name,
            ids.join(", ")
        ));
    }
    found
}

/// Fields of generation in config.json, which do not count beside a generation_config.json.
fn hidden(loaded: &LoadedModel, source: &Source, search: &Search) -> Option<String> {
    let file = legacy(loaded).ok()?.file;
    let fields = file.taken(search).into_iter().map(|field| field.name);
    let fields: Vec<String> = fields
        .filter(|name| name != "eos_token_id")
        .map(|name| format!("`{name}`"))
        .collect();
    (!fields.is_empty()).then(|| {
        format!(
            "config.json: {} does not count beside {}, as in transformers",
            fields.join(", "),
            source.name
        )
    })
}

/// A flag of another kind than its field.
fn flag_fault(error: &ModelError) -> RunError {
    match error {
        ModelError::Format(FormatError::Config { faults, .. }) => {
            let lines: Vec<String> = faults
                .iter()
                .map(|fault| format!("--{}: {}", fault.place.replace('_', "-"), fault.message))
                .collect();
            RunError::usage(lines.join("\n  "))
        }
        other => RunError::from_error(other),
    }
}

fn way_out(error: ModelError) -> RunError {
    RunError::from(error).maybe_hint(Some(
        "--generation-config none generates without it".to_owned(),
    ))
}

fn refuse(faults: Vec<SettingFault>, place: impl Fn(&str) -> String) -> RunResult {
    if faults.is_empty() {
        return Ok(());
    }
    let first = faults[0].name;
    let is_in_file = faults.iter().any(|fault| !place(fault.name).is_empty());
    let lines: Vec<String> = faults
        .iter()
        .map(|fault| {
            let place = place(fault.name);
            format!(
                "`{}` is {}{place}, expected {}",
                fault.name, fault.found, fault.expected
            )
        })
        .collect();
    let error = RunError::usage(lines.join("\n  "));
    Err(error.maybe_hint(is_in_file.then(|| {
        format!(
            "pass --{}, or --generation-config none to generate without the file",
            first.replace('_', "-")
        )
    })))
}
