//! Flags that several commands share.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use lowrank_data::{BadRows, LongRows, LossOn, NlgFormat, UnlabelledRows};
use lowrank_engine::{Arithmetic, BaseFormat, DType};
use lowrank_run::device::{Choice, NumericChoices};
use lowrank_run::settings::{AdapterSettings, ModelSettings, RowSettings, typed};
use lowrank_run::{RunError, RunResult};
use lowrank_train::config::{ModulePattern, Task};
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::settings::to_map;
use crate::source;

/// Output and threads.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CommonArgs {
    /// YAML file of settings: each flag's name with underscores, `learning_rate: 0.001`; flags win
    /// over the file
    #[arg(long, value_name = "FILE", help_heading = "General")]
    #[serde(skip)]
    pub config: Option<String>,
    /// Threads; all cores without it. Results do not depend on it
    #[arg(long, value_name = "N", help_heading = "General")]
    pub threads: Option<usize>,
    /// Print nothing but errors and what was asked for
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "General")]
    pub quiet: Option<bool>,
    /// Print JSON for programs instead of text for people
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "General")]
    pub json: Option<bool>,
}

impl CommonArgs {
    /// Whether only errors and results are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet.unwrap_or(false)
    }

    /// Whether results are wanted as JSON.
    pub fn is_json(&self) -> bool {
        self.json.unwrap_or(false)
    }
}

/// How values are stored and multiplied.
#[derive(Args, Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NumericArgs {
    /// How activations are stored, and by default weights and products with them: f32, bf16, or
    /// auto, which is what this machine was measured to be fast in (`inspect --machine`), but f32
    /// where weights are trained or measured without an adapter [default: auto, f32 in generate and
    /// predict]
    #[arg(long, value_parser = named::<Choice<DType>>, value_name = "PRECISION", help_heading = "Model")]
    pub precision: Option<Choice<DType>>,
    /// How frozen weights are stored: f32, bf16 (half the memory), int8 (a quarter, multiplied as
    /// integers, in training only), q8_0, q4_0 or nf4 (blocks of 8 or 4 bits, decoded as they are
    /// multiplied), stored (the blocks of a GGUF file), or auto, which is stored for a GGUF file
    /// and else goes with --precision [default: auto]
    #[arg(long, value_parser = named::<Choice<BaseFormat>>, value_name = "FORMAT", help_heading = "Model")]
    pub base_format: Option<Choice<BaseFormat>>,
    /// What multiplies: f32, bf16 (sums are f32), or auto, which is bf16 with --precision bf16, and
    /// what is fast where that is auto too [default: auto]
    #[arg(long, value_parser = named::<Choice<Arithmetic>>, value_name = "ARITHMETIC", help_heading = "Model")]
    pub arithmetic: Option<Choice<Arithmetic>>,
}

impl NumericArgs {
    /// As the run library takes them.
    pub fn choices(self) -> NumericChoices {
        NumericChoices {
            precision: self.precision,
            base_format: self.base_format,
            arithmetic: self.arithmetic,
        }
    }

    /// The same for a model that has an adapter, or for one that has none.
    pub fn for_adapter<T>(self, adapter: Option<T>) -> NumericChoices {
        match adapter {
            Some(_) => self.choices(),
            None => self.choices().without_adapter(),
        }
    }
}

/// Which pretrained model.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelArgs {
    /// Pretrained model: a Hugging Face directory, a GGUF file, or an id like `org/name` that is in
    /// the local cache
    #[arg(long, short, value_name = "DIR|ID", help_heading = "Model")]
    pub model: Option<String>,
    /// Revision of a model id [default: main]
    #[arg(long, value_name = "REVISION", help_heading = "Model")]
    pub revision: Option<String>,
    /// Allow the network: download a model id that is not in the cache (needs a build with the
    /// feature `hub`)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    pub online: Option<bool>,
    /// Use an adapter although it was trained on other weights than the model's
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    pub allow_other_base: Option<bool>,
}

impl ModelArgs {
    /// Which model, and where ids are looked up.
    pub fn settings(&self) -> ModelSettings {
        ModelSettings {
            model: self.model.clone(),
            revision: self.revision.clone(),
            allow_other_base: self.allow_other_base,
            hub: source::hub(self.online),
        }
    }
}

/// Whether a new head may be started.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NewHeadArgs {
    /// Start a new head where the checkpoint's has another number of labels
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    pub ignore_mismatched_sizes: Option<bool>,
}

/// Which adapter.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterArgs {
    /// Adapter directory or file, or the directory of a run; the bare model without it
    #[arg(long, short, value_name = "PATH", help_heading = "Model")]
    pub adapter: Option<String>,
    /// Numerator of the scaling alpha/r, for a loralib checkpoint, which does not hold it
    #[arg(long, value_name = "ALPHA", help_heading = "Model")]
    pub lora_alpha: Option<f64>,
    /// Of `train`, which starts new heads; refused here, where a new head would answer at random
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub ignore_mismatched_sizes: Option<bool>,
}

impl AdapterArgs {
    /// Which adapter.
    ///
    /// # Errors
    /// A new head is asked for, which only `train` starts.
    pub fn settings(&self) -> RunResult<AdapterSettings> {
        if self.ignore_mismatched_sizes == Some(true) {
            return Err(RunError::usage(
                "--ignore-mismatched-sizes starts a new head, whose answers would be random",
            )
            .hint("only `lowrank train` starts one; leave the flag out here"));
        }
        Ok(AdapterSettings {
            adapter: self.adapter.clone(),
            lora_alpha: self.lora_alpha,
        })
    }
}

/// How rows are read.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DataArgs {
    /// What is predicted: single_label, multi_label, regression, token_classification or
    /// causal_lm [default: from the model or the labels]
    #[arg(long, value_parser = named::<Task>, help_heading = "Data")]
    pub task: Option<Task>,
    /// Names of the labels in the order of their class numbers; a single value is cut at its
    /// commas, of several each is a whole name [default: from the model or the training rows]
    #[arg(long, num_args = 1.., value_name = "NAME", help_heading = "Data")]
    pub labels: Option<Vec<String>>,
    /// Column of the text, or of a language model's prompt [default: found by its name: text,
    /// sentence, prompt, ...]
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    pub text_column: Option<String>,
    /// Column of the second text, for tasks on pairs, or of a language model's completion
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    pub text_pair_column: Option<String>,
    /// Column of what a language model's prompt is about, which becomes part of the prompt none
    /// leaves out all that stands beside the prompt [default: input or context, where prompt and
    /// completion are found by their names]
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    pub context_column: Option<String>,
    /// Column of the label [default: label, or the one column that is named as labels are: score,
    /// class, stars, ...]
    #[arg(long, value_name = "COLUMN", help_heading = "Data")]
    pub label_column: Option<String>,
    /// Columns of 0 and 1, each of which is a label of multi_label [default: all of them, where no
    /// column holds labels]
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "COLUMN", help_heading = "Data")]
    #[serde(with = "one_or_many")]
    pub label_columns: Option<Vec<String>>,
    /// Rows without a label, where labels are needed: error, or drop, which leaves them out and
    /// counts them [default: error]
    #[arg(long, value_parser = named::<UnlabelledRows>, value_name = "WHAT", help_heading = "Data")]
    pub unlabelled: Option<UnlabelledRows>,
    /// The first line of a .csv or .tsv file is a row, not the names of its columns: columns are
    /// then named 0, 1, ...
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Data")]
    pub no_header: Option<bool>,
    /// Tokens a row at most [default: 128; 2048 for chats and blocks]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    pub max_length: Option<usize>,
    /// What becomes of a longer row: truncate cuts it (a chat loses its first turns, then its end),
    /// drop leaves it out, error refuses it, blocks makes several rows of a plain text
    /// [default: truncate]
    #[arg(long, value_parser = named::<LongRows>, value_name = "WHAT", help_heading = "Data")]
    pub long_rows: Option<LongRows>,
    /// What becomes of a row that cannot be used: error refuses the file, skip leaves it out and
    /// says so [default: error]
    #[arg(long, value_parser = named::<BadRows>, value_name = "WHAT", help_heading = "Data")]
    pub bad_rows: Option<BadRows>,
    /// The largest share of a file's rows that --bad-rows skip may leave out, from 0 to 1; one row
    /// always may be [default: 0.01]
    #[arg(long, value_name = "SHARE", help_heading = "Data")]
    pub max_bad_rows: Option<f64>,
    /// Which data set of text generation a file is of: e2e, webnlg, dart or references [default: by
    /// how it begins]
    #[arg(long, value_parser = named::<NlgFormat>, value_name = "NAME", help_heading = "Data")]
    pub data_format: Option<NlgFormat>,
    /// How a language model's prompt and completion are laid out; the loss is on the completion and
    /// what follows [default: {prompt}{eos} {completion}{eos}]
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    pub template: Option<String>,
    /// The chat template of a language model's chats, instructions and questions: a file, chatml,
    /// llama3, gemma, plain, or none [default: the adapter's or the model's own]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub chat_template: Option<String>,
    /// Which part of a chat is learned: assistant (each of its turns), last-assistant, or all
    /// [default: assistant]
    #[arg(long, value_parser = named::<LossOn>, value_name = "PART", help_heading = "Data")]
    pub loss_on: Option<LossOn>,
}

impl DataArgs {
    /// How rows are read.
    ///
    /// # Errors
    /// None: the fields are the same.
    pub fn settings(&self) -> RunResult<RowSettings> {
        typed(&to_map(self))
    }

    /// The names of `--labels a,b` as a list. Names with commas stay whole where several values are
    /// given. A comma at the end is no name; two in a row are a name that lacks, which moves no
    /// other to its place.
    pub fn split_labels(&mut self) {
        let Some([single]) = self.labels.as_deref() else {
            return;
        };
        if let Ok(list) = serde_json::from_str::<Vec<String>>(single) {
            self.labels = Some(list);
        } else if single.contains(',') {
            let inner = single.trim_end();
            let names = inner.strip_suffix(',').unwrap_or(inner).split(',');
            let names = names.map(str::trim);
            self.labels = Some(names.map(str::to_owned).collect());
        }
    }
}

/// A value by its name in configurations; the message of a wrong one lists the right ones.
pub fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let from: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    T::deserialize(from).map_err(|error| error.to_string())
}

/// Modules as written by users: names, or one regular expression, or `all-linear`.
///
/// A single value of letters, digits, `_`, `-` and `.` is a name; commas separate names; anything
/// else is a regular expression over whole module paths, as a string is for PEFT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Modules(pub ModulePattern);

impl FromStr for Modules {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ',' | ' ');
        if text == "all-linear" || !text.chars().all(plain) {
            return Ok(Modules(ModulePattern::Text(text.to_owned())));
        }
        let names = text.split([',', ' ']).filter(|name| !name.is_empty());
        Ok(Modules(ModulePattern::Names(
            names.map(str::to_owned).collect(),
        )))
    }
}

impl<'de> Deserialize<'de> for Modules {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let error = "expected a name, a list of names, a regular expression or `all-linear`";
        match ModulePattern::deserialize(from).map_err(|_| serde::de::Error::custom(error))? {
            ModulePattern::Text(text) => Ok(text
                .parse()
                .unwrap_or_else(|never: std::convert::Infallible| match never {})),
            names @ ModulePattern::Names(_) => Ok(Modules(names)),
        }
    }
}

/// Several values of a flag as one pattern, for serde: `--target-modules query value`.
pub mod one_pattern {
    use super::{Deserializer, ModulePattern, Modules, Serialize, Serializer, one_or_many};

    /// Writes the values as one pattern.
    pub fn serialize<S: Serializer>(
        values: &Option<Vec<Modules>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let joined = |values: &Vec<Modules>| match values.as_slice() {
            [Modules(single)] => single.clone(),
            values => {
                let names = values.iter().flat_map(|Modules(pattern)| match pattern {
                    ModulePattern::Text(text) => vec![text.clone()],
                    ModulePattern::Names(names) => names.clone(),
                });
                ModulePattern::Names(names.collect())
            }
        };
        values.as_ref().map(joined).serialize(to)
    }

    /// Reads a list or one value.
    pub fn deserialize<'de, D>(from: D) -> Result<Option<Vec<Modules>>, D::Error>
    where
        D: Deserializer<'de>,
    {
        one_or_many::deserialize(from)
    }
}

/// One `KEY=VALUE` of a pattern flag; in files a map.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyValue<T>(pub String, pub T);

impl<T: FromStr> FromStr for KeyValue<T>
where
    T::Err: fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.rsplit_once('=').ok_or("expected KEY=VALUE")?;
        let value = value
            .parse()
            .map_err(|error| format!("`{value}`: {error}"))?;
        Ok(KeyValue(key.to_owned(), value))
    }
}

/// `KEY=VALUE` pairs as a map, for serde.
pub mod pairs {
    use std::collections::BTreeMap;

    use super::{Deserialize, Deserializer, KeyValue, Serialize, Serializer};

    /// Writes the pairs as a map, or null.
    pub fn serialize<T: Serialize, S: Serializer>(
        pairs: &Option<Vec<KeyValue<T>>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match pairs {
            None => to.serialize_none(),
            Some(pairs) => to.collect_map(pairs.iter().map(|KeyValue(k, v)| (k, v))),
        }
    }

    /// Reads the pairs from a map, or null.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<Vec<KeyValue<T>>>, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let map = Option::<BTreeMap<String, T>>::deserialize(from)?;
        Ok(map.map(|m| m.into_iter().map(|(k, v)| KeyValue(k, v)).collect()))
    }
}

/// A list in a file may also be one value: `layers_to_transform: 3`.
pub mod one_or_many {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        Many(Vec<T>),
        One(T),
    }

    /// Writes the list.
    pub fn serialize<T: Serialize, S: Serializer>(
        list: &Option<Vec<T>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        list.serialize(to)
    }

    /// Reads a list or one value.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<Vec<T>>, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(
            Option::<OneOrMany<T>>::deserialize(from)?.map(|value| match value {
                OneOrMany::Many(list) => list,
                OneOrMany::One(one) => vec![one],
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_rows_is_a_setting() {
        let flags = to_map(&DataArgs::default());
        let settings = to_map(&RowSettings::default());
        assert!(flags.keys().all(|name| settings.contains_key(name)));
        let args = DataArgs {
            label_columns: Some(vec!["a".to_owned()]),
            max_bad_rows: Some(0.5),
            ..DataArgs::default()
        };
        let settings = args.settings().expect("the fields are the same");
        assert_eq!(settings.label_columns, args.label_columns);
        assert_eq!(settings.max_bad_rows, args.max_bad_rows);
    }

    #[test]
    fn module_patterns_are_names_or_expressions() {
        let parse = |s: &str| s.parse::<Modules>().map(|m| m.0).unwrap();
        let names = |n: &[&str]| ModulePattern::Names(n.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(parse("query"), names(&["query"]));
        assert_eq!(parse("query,value"), names(&["query", "value"]));
        assert_eq!(
            parse("attention.self.query"),
            names(&["attention.self.query"])
        );
        assert_eq!(
            parse("all-linear"),
            ModulePattern::Text("all-linear".to_owned())
        );
        let regex = r".*layer\.[0-9]{1,2}\.attention\.self\.query";
        assert_eq!(parse(regex), ModulePattern::Text(regex.to_owned()));
    }

    #[test]
    fn labels_are_cut_at_commas_only_where_one_value_is_given() {
        let labels = |values: &[&str]| {
            let mut args = DataArgs {
                labels: Some(values.iter().map(|v| (*v).to_owned()).collect()),
                ..DataArgs::default()
            };
            args.split_labels();
            args.labels.unwrap()
        };
        assert_eq!(labels(&["no, yes"]), ["no", "yes"]);
        assert_eq!(labels(&["no, yes, "]), ["no", "yes"]);
        assert_eq!(labels(&["no,,yes"]), ["no", "", "yes"]);
        assert_eq!(
            labels(&["Arts, Culture", "News"]),
            ["Arts, Culture", "News"]
        );
        assert_eq!(
            labels(&["[\"Arts, Culture\", \"News\"]"]),
            ["Arts, Culture", "News"]
        );
        assert_eq!(labels(&["only"]), ["only"]);
    }

    #[test]
    fn pairs_split_at_the_last_equals_sign() {
        let pair: KeyValue<usize> = "layer.(0|1)=4".parse().unwrap();
        assert_eq!(pair, KeyValue("layer.(0|1)".to_owned(), 4));
        assert!("4".parse::<KeyValue<usize>>().is_err());
        assert!("a=x".parse::<KeyValue<usize>>().is_err());
    }

    #[test]
    fn a_wrong_name_lists_the_right_ones() {
        let error = named::<Task>("classification").unwrap_err();
        assert!(
            error.contains("single_label") && error.contains("token_classification"),
            "{error}"
        );
    }
}
