//! `generation_config.json`: which of its fields are obeyed, and what they mean together. Names and
//! meaning are those of transformers 5.24 (`GenerationConfig`, `GenerationMixin`). It knows neither
//! where the file lies nor flags.

use std::path::Path;

use lowrank_formats::{ConfigReader, FormatError};
use serde_json::Value;

use super::options::{BeamSearch, EarlyStopping, Generate, Sampling, Search};
use crate::error::ModelError;

/// New tokens where nothing says how many.
pub const DEFAULT_NEW_TOKENS: usize = 64;

/// `top_k` of transformers where a file asks for sampling and does not say it.
const SAMPLED_TOP_K: usize = 50;

/// What a value must be, and how it is read.
type Kind<T> = (&'static str, fn(&Value) -> Option<T>);

const WHOLE: Kind<usize> = ("an integer from 0 on", whole);
const NUMBER: Kind<f32> = ("a number", |value| Some(value.as_f64()? as f32));
const PRECISE: Kind<f64> = ("a number", Value::as_f64);
const FLAG: Kind<bool> = ("true or false", Value::as_bool);
const EARLY: Kind<EarlyStopping> = ("true, false or `\"never\"`", early_stopping);
const ID: Kind<u32> = ("a token id", token_id);
const IDS: Kind<Vec<u32>> = ("a token id or a list of them", ids);
const ANY_IDS: Kind<Vec<u32>> = ("a token id or a list of them", ids_that_can_be);
const WORDS: Kind<Vec<Vec<u32>>> = ("a list of lists of token ids", words);
const BIASES: Kind<Vec<(Vec<u32>, f32)>> = ("a list of [list of token ids, number]", biases);
const TEXTS: Kind<Vec<String>> = ("a text or a list of texts", texts);
const DECAY: Kind<(usize, f64)> = ("[a number of tokens, a factor]", decay);

/// The fields that are obeyed: the struct, its reader and its layers are one list.
macro_rules! obeyed {
    ($($(#[$doc:meta])+ $name:ident: $type:ty = $kind:expr,)*) => {
        /// The fields of a generation_config.json that are obeyed, by their names; what is not
        /// given is `None`.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct GenerationConfig {
            $($(#[$doc])+ pub $name: Option<$type>,)*
        }

        impl GenerationConfig {
            /// The names of the fields.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn of(reader: &ConfigReader<'_>) -> Self {
                Self {
                    $($name: {
                        let (expected, convert): Kind<$type> = $kind;
                        reader.optional(stringify!($name), expected, convert)
                    },)*
                }
            }

            fn or(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }
        }
    };
}

obeyed! {
    /// Tokens of the prompt and after it at most; `max_new_tokens` beside it wins.
    max_length: usize = WHOLE,
    /// New tokens at most.
    max_new_tokens: usize = WHOLE,
    /// No end before so many tokens with the prompt; `min_new_tokens` beside it wins.
    min_length: usize = WHOLE,
    /// No end before so many new tokens.
    min_new_tokens: usize = WHOLE,
    /// Draw in place of taking the best.
    do_sample: bool = FLAG,
    /// Sequences that are followed together; 1 is no beam search.
    num_beams: usize = WHOLE,
    /// When beam search ends.
    early_stopping: EarlyStopping = EARLY,
    /// The power of the length that a beam's score is divided by.
    length_penalty: f64 = PRECISE,
    /// What the logits are divided by; 0 takes the most probable token.
    temperature: f32 = NUMBER,
    /// The share of the entropy that is drawn from.
    top_h: f32 = NUMBER,
    /// How many tokens are drawn from; 0 is all.
    top_k: usize = WHOLE,
    /// The share of the probability that is drawn from.
    top_p: f32 = NUMBER,
    /// The least share of the most probable token's probability that is drawn.
    min_p: f32 = NUMBER,
    /// The share of typical tokens that is drawn from.
    typical_p: f32 = NUMBER,
    /// The least probability that is drawn.
    epsilon_cutoff: f32 = NUMBER,
    /// The same, falling with the entropy.
    eta_cutoff: f32 = NUMBER,
    /// How far a step leans away from what the model says without the prompt.
    guidance_scale: f32 = NUMBER,
    /// What is added to the score of a sequence of tokens.
    sequence_bias: Vec<(Vec<u32>, f32)> = BIASES,
    /// Above 1 the prompt's tokens become more probable.
    encoder_repetition_penalty: f32 = NUMBER,
    /// Above 1 tokens that are there become less probable.
    repetition_penalty: f32 = NUMBER,
    /// No sequence of so many tokens twice.
    no_repeat_ngram_size: usize = WHOLE,
    /// No sequence of so many tokens of the prompt.
    encoder_no_repeat_ngram_size: usize = WHOLE,
    /// Sequences of tokens that are never completed.
    bad_words_ids: Vec<Vec<u32>> = WORDS,
    /// The first new token after a prompt of one token.
    forced_bos_token_id: u32 = ID,
    /// The last token where the length ends a sequence.
    forced_eos_token_id: Vec<u32> = IDS,
    /// Whether scores that are not finite are replaced.
    remove_invalid_values: bool = FLAG,
    /// From how many tokens on an end becomes more probable, and by which factor a token.
    exponential_decay_length_penalty: (usize, f64) = DECAY,
    /// Tokens that are never generated.
    suppress_tokens: Vec<u32> = ANY_IDS,
    /// Tokens that are not generated first.
    begin_suppress_tokens: Vec<u32> = ANY_IDS,
    /// Whether scores are made logarithms of probabilities again.
    renormalize_logits: bool = FLAG,
    /// The tokens that end a sequence; an empty list is none.
    eos_token_id: Vec<u32> = ANY_IDS,
    /// The texts that end a sequence.
    stop_strings: Vec<String> = TEXTS,
}

/// When a field would count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    Sampling,
    Beams,
    /// One sequence is followed.
    NoBeams,
    /// Neither sampling nor beams.
    Greedy,
}

/// The fields that change what transformers generates and that are not obeyed here, and what
/// happens in their place.
const NOT_OBEYED: &[(&str, When, &str)] = &[
    (
        "stop_strings",
        When::Beams,
        "end tokens and lengths alone end a text of several beams",
    ),
    ("max_time", When::Always, "there is no limit of time"),
    (
        "num_return_sequences",
        When::Always,
        "one text is written for each prompt",
    ),
    (
        "num_beam_groups",
        When::Beams,
        "one group of beams is followed",
    ),
    (
        "diversity_penalty",
        When::Beams,
        "one group of beams is followed",
    ),
    ("constraints", When::Always, "nothing is required of a text"),
    (
        "force_words_ids",
        When::Always,
        "nothing is required of a text",
    ),
    (
        "penalty_alpha",
        When::Greedy,
        "the most probable token is taken",
    ),
    ("dola_layers", When::Always, "the last layer alone is asked"),
    (
        "watermarking_config",
        When::Always,
        "no watermark is put in",
    ),
    (
        "token_healing",
        When::Always,
        "the prompt's last token stays",
    ),
    (
        "assistant_ensemble_weight",
        When::Always,
        "this model alone is asked",
    ),
];

/// The fields that change nothing of what a decoder generates here: speed, forms of output,
/// encoders, tokens that are not needed.
const WITHOUT_EFFECT: &[&str] = &[
    "use_mtp",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "return_legacy_cache",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "speculation_type",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "low_memory",
    "prefill_chunk_size",
    "transformers_version",
    "generation_kwargs",
];

/// What a file says of generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationFile {
    /// The fields that are obeyed.
    pub config: GenerationConfig,
    /// The names and values of all fields that are not null, as they stand.
    fields: Vec<(String, Value)>,
}

/// A field and its value, to show them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value, cut where it is long.
    pub value: String,
    /// What happens in its place, where it is not obeyed.
    pub instead: &'static str,
}

impl GenerationFile {
    /// Reads the bytes of a generation_config.json; `path` is for messages.
    ///
    /// Errors: this is no JSON object, or fields that are obeyed are of another kind; all of them
    /// are named.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| FormatError::Json {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            message: without_place(&error),
        })?;
        Self::from_value(path, &value)
    }

    /// Reads a parsed generation_config.json, or a config.json for the fields of generation that
    /// older files hold.
    ///
    /// Errors: as [`parse`](Self::parse).
    pub fn from_value(path: &Path, value: &Value) -> Result<Self, ModelError> {
        let mut config = GenerationConfig::from_value(path, value)?;
        if config.do_sample == Some(true) && config.top_k.is_none() {
            config.top_k = Some(SAMPLED_TOP_K);
        }
        let fields = value.as_object().into_iter().flatten();
        let given = fields.filter(|(_, value)| !value.is_null());
        Ok(GenerationFile {
            config,
            fields: given.map(|(k, v)| (k.clone(), v.clone())).collect(),
        })
    }

    /// The fields that are obeyed and that change what this search generates.
    pub fn taken(&self, search: &Search) -> Vec<Field> {
        let known = |name: &str| GenerationConfig::NAMES.contains(&name);
        let counts = |name: &str, value: &Value| {
            known(name) && when(name).counts(search) && !is_neutral(name, value)
        };
        let fields = self.fields.iter().filter(|(name, v)| counts(name, v));
        let mut taken: Vec<Field> = fields.map(|(name, v)| field(name, v, "")).collect();
        if !self.has("top_k") && self.config.top_k.is_some() && When::Sampling.counts(search) {
            taken.push(field("top_k", &SAMPLED_TOP_K.into(), ""));
        }
        taken
    }

    /// The fields that would change what this search generates and are not obeyed.
    pub fn not_obeyed(&self, search: &Search) -> Vec<Field> {
        let mut fields = Vec::new();
        for (name, value) in &self.fields {
            let known = NOT_OBEYED.iter().find(|(known, ..)| known == name);
            if let Some((_, when, instead)) = known
                && when.counts(search)
                && !is_neutral(name, value)
            {
                fields.push(field(name, value, instead));
            }
        }
        fields
    }

    /// Whether the file has the field, and not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(given, _)| given == name)
    }

    /// The fields that neither transformers nor this program knows.
    pub fn unknown(&self) -> Vec<&str> {
        let known = |name: &str| {
            GenerationConfig::NAMES.contains(&name)
                || WITHOUT_EFFECT.contains(&name)
                || NOT_OBEYED.iter().any(|(known, ..)| *known == name)
        };
        let names = self.fields.iter().map(|(name, _)| name.as_str());
        names
            .filter(|name| !known(name) && !name.starts_with('_'))
            .collect()
    }
}

impl When {
    fn counts(self, search: &Search) -> bool {
        let (sampling, beams) = match search {
            Search::Greedy => (false, false),
            Search::Sample(_) => (true, false),
            Search::Beam(form) => (form.sampling.is_some(), true),
        };
        match self {
            When::Always => true,
            When::Sampling => sampling,
            When::Beams => beams,
            When::NoBeams => !beams,
            When::Greedy => !sampling && !beams,
        }
    }
}

/// When an obeyed field counts.
fn when(name: &str) -> When {
    match name {
        "temperature" | "top_h" | "top_k" | "top_p" | "min_p" | "typical_p" | "epsilon_cutoff"
        | "eta_cutoff" => When::Sampling,
        "early_stopping" | "length_penalty" => When::Beams,
        "stop_strings" => When::NoBeams,
        _ => When::Always,
    }
}

/// Whether a field says what is so without it.
fn is_neutral(name: &str, value: &Value) -> bool {
    let number = value.as_f64();
    match name {
        "do_sample"
        | "early_stopping"
        | "remove_invalid_values"
        | "renormalize_logits"
        | "token_healing" => *value == Value::Bool(false),
        "min_length"
        | "min_new_tokens"
        | "no_repeat_ngram_size"
        | "encoder_no_repeat_ngram_size"
        | "epsilon_cutoff"
        | "eta_cutoff"
        | "min_p"
        | "diversity_penalty"
        | "penalty_alpha" => number == Some(0.0),
        "num_beams"
        | "length_penalty"
        | "temperature"
        | "top_p"
        | "typical_p"
        | "repetition_penalty"
        | "encoder_repetition_penalty"
        | "guidance_scale"
        | "num_return_sequences"
        | "num_beam_groups" => number == Some(1.0),
        _ => match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Null => true,
            Value::Bool(_) | Value::Number(_) => false,
        },
    }
}

fn field(name: &str, value: &Value, instead: &'static str) -> Field {
    const LONGEST: usize = 48;
    let text = value.to_string();
    let value = match value {
        Value::Array(list) if text.len() > LONGEST => format!("({} entries)", list.len()),
        _ if text.chars().count() > LONGEST => text.chars().take(LONGEST).collect::<String>() + "…",
        _ => text,
    };
    Field {
        name: name.to_owned(),
        value,
        instead,
    }
}

impl GenerationConfig {
    /// Reads the fields that stand in an object; others are not looked at.
    ///
    /// Errors: as [`GenerationFile::parse`].
    pub fn from_value(path: &Path, value: &Value) -> Result<Self, ModelError> {
        let reader = ConfigReader::new(path, value);
        let config = GenerationConfig::of(&reader);
        reader.finish()?;
        Ok(config)
    }

    /// The same over what lies below: a field given here wins, and so does one that the other's
    /// twin would hide.
    pub fn over(self, mut below: Self) -> Self {
        if self.max_length.is_some() {
            below.max_new_tokens = None;
        }
        if self.min_length.is_some() {
            below.min_new_tokens = None;
        }
        self.or(below)
    }

    /// What is generated by these fields; draws hang on `seed`.
    pub fn options(self, seed: u64) -> Generate {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_h: self.top_h,
            top_k: self.top_k.filter(|k| *k != 0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            typical_p: self.typical_p.unwrap_or(1.0),
            epsilon_cutoff: self.epsilon_cutoff.unwrap_or(0.0),
            eta_cutoff: self.eta_cutoff.unwrap_or(0.0),
            seed,
        };
        // A temperature of 0 is the limit in which the most probable token is drawn.
        let draws = self.do_sample == Some(true) && sampling.temperature != 0.0;
        let sampling = draws.then_some(sampling);
        let search = match (self.num_beams.unwrap_or(1), sampling) {
            (1, None) => Search::Greedy,
            (1, Some(sampling)) => Search::Sample(sampling),
            (beams, sampling) => Search::Beam(BeamSearch {
                beams,
                length_penalty: self.length_penalty.unwrap_or(1.0),
                early_stopping: self.early_stopping.unwrap_or(EarlyStopping::Heuristic),
                sampling,
            }),
        };
        let (max_new_tokens, max_length) = match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => (new, usize::MAX),
            (None, Some(all)) => (usize::MAX, all),
            (None, None) => (DEFAULT_NEW_TOKENS, usize::MAX),
        };
        let min_length = self.min_length.filter(|_| self.min_new_tokens.is_none());
        Generate {
            search,
            max_new_tokens,
            max_length,
            min_new_tokens: self.min_new_tokens.unwrap_or(0),
            min_length: min_length.unwrap_or(0),
            eos: self.eos_token_id.unwrap_or_default(),
            stop_strings: self.stop_strings.unwrap_or_default(),
            guidance_scale: self.guidance_scale.unwrap_or(1.0),
            sequence_bias: self.sequence_bias.unwrap_or_default(),
            encoder_repetition_penalty: self.encoder_repetition_penalty.unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            no_repeat_ngram: self.no_repeat_ngram_size.unwrap_or(0),
            encoder_no_repeat_ngram: self.encoder_no_repeat_ngram_size.unwrap_or(0),
            bad_words: self.bad_words_ids.unwrap_or_default(),
            forced_bos: self.forced_bos_token_id,
            forced_eos: self.forced_eos_token_id.unwrap_or_default(),
            remove_invalid_values: self.remove_invalid_values.unwrap_or(false),
            exponential_decay_length_penalty: self.exponential_decay_length_penalty,
            suppress: self.suppress_tokens.unwrap_or_default(),
            begin_suppress: self.begin_suppress_tokens.unwrap_or_default(),
            renormalize_logits: self.renormalize_logits.unwrap_or(false),
            ..Generate::default()
        }
    }
}

/// The parser's words without the line and column, which stand beside them.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" at line ");
    words.map_or(text.as_str(), |(words, _)| words).to_owned()
}

fn whole(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn early_stopping(value: &Value) -> Option<EarlyStopping> {
    match value {
        Value::Bool(true) => Some(EarlyStopping::Always),
        Value::Bool(false) => Some(EarlyStopping::Heuristic),
        Value::String(word) if word == "never" => Some(EarlyStopping::Never),
        _ => None,
    }
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Array(list) => list.iter().map(token_id).collect(),
        _ => Some(vec![token_id(value)?]),
    }
}

/// Negative ids, by which some files say none, are left out: no token has them.
fn ids_that_can_be(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| match value.as_i64() {
        Some(id) if id < 0 => Some(None),
        _ => token_id(value).map(Some),
    };
    let found: Option<Vec<Option<u32>>> = match value {
        Value::Array(list) => list.iter().map(id).collect(),
        _ => Some(vec![id(value)?]),
    };
    Some(found?.into_iter().flatten().collect())
}

fn words(value: &Value) -> Option<Vec<Vec<u32>>> {
    let word = |value: &Value| ids(value).filter(|ids| value.is_array() && !ids.is_empty());
    value.as_array()?.iter().map(word).collect()
}

fn biases(value: &Value) -> Option<Vec<(Vec<u32>, f32)>> {
    let bias = |value: &Value| match value.as_array()?.as_slice() {
        [word @ Value::Array(list), amount] if !list.is_empty() => {
            Some((ids(word)?, amount.as_f64()? as f32))
        }
        _ => None,
    };
    value.as_array()?.iter().map(bias).collect()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        _ => Some(vec![text(value)?]),
    }
}

fn decay(value: &Value) -> Option<(usize, f64)> {
    match value.as_array()?.as_slice() {
        [start, factor] => Some((whole(start)?, factor.as_f64()?)),
        _ => None,
    }
}
