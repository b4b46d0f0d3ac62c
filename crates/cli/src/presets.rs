//! Recipes by name: `--preset paper/gpt2-medium-e2e`. A preset is a file of settings that the program brings along; a file
//! of the user and flags win over it. Which numbers they hold is the table's business.

mod table;

use clap::Args;
use lowrank_formats::nearest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::errors::{CliError, CliResult};
use crate::output::{TextTable, count};
use crate::settings;

/// Whose numbers a preset holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// The paper's tables.
    Paper,
    /// The scripts that were released with it, which differ.
    Scripts,
}

impl Follows {
    fn name(self) -> &'static str {
        match self {
            Follows::Paper => "the paper",
            Follows::Scripts => "the scripts",
        }
    }
}

/// One recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preset {
    /// Its name.
    pub name: String,
    /// The model types that it is made for.
    pub families: &'static [&'static str],
    /// Whose numbers it holds.
    pub follows: Follows,
    /// Where they stand.
    pub source: &'static str,
    /// Where the other source differs, or what neither says.
    pub note: &'static str,
    /// Values of A and B at the size that it is made for.
    pub parameters: u64,
    /// The settings, under the names of flags; a command takes those that it knows.
    pub settings: Map<String, Value>,
}

/// Which preset.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PresetArgs {
    /// Start from a recipe of the LoRA paper, such as paper/gpt2-medium-e2e; files and flags win over it
    #[arg(long, value_name = "NAME", help_heading = "General")]
    pub preset: Option<String>,
}

/// A setting that makes another one meaningless: who gives the second does not want the preset's first.
const OVERRIDDEN: [(&str, &str); 1] = [("warmup_steps", "warmup_ratio")];

impl Preset {
    /// The preset of a name.
    ///
    /// # Errors
    /// There is none of this name; the message names the nearest.
    pub fn find(name: &str) -> CliResult<Self> {
        let all = table::all();
        if let Some(preset) = all.iter().find(|preset| preset.name == name) {
            return Ok(preset.clone());
        }
        let names = || all.iter().map(|preset| preset.name.as_str());
        let near: Vec<&str> = match nearest(name, names()) {
            Some(near) => vec![near],
            None => names()
                .filter(|known| shared(name, known) == words(name).count())
                .take(4)
                .collect(),
        };
        let error = CliError::usage(format!("there is no preset `{name}`"));
        Err(if near.is_empty() {
            error.hint("`lowrank train --list-presets` names them all")
        } else {
            error.hint(format!("did you mean {}?", quoted(&near)))
        })
    }

    /// Refuses a model of another family.
    ///
    /// # Errors
    /// The model's type is not one that the preset is made for.
    pub fn check_family(&self, model_type: &str) -> CliResult {
        if self.families.contains(&model_type) {
            return Ok(());
        }
        let wanted: Vec<_> = self.families.iter().map(|f| format!("`{f}`")).collect();
        Err(CliError::usage(format!(
            "preset `{}` is made for {} models, but the model is `{model_type}`",
            self.name,
            wanted.join(" and ")
        ))
        .hint(
            "pass --model with such a model, or a preset that fits: `lowrank train --list-presets`",
        ))
    }

    /// One sentence for people.
    pub fn describe(&self) -> String {
        format!(
            "preset {}: follows {} ({}); {}",
            self.name,
            self.follows.name(),
            self.source,
            self.note
        )
    }
}

/// Flags over the file they name, over the preset that either of them names.
///
/// # Errors
/// The file cannot be used, or no preset has the name.
pub fn with_preset<T>(flags: T, file: Option<&str>, name: fn(&T) -> &PresetArgs) -> CliResult<T>
where
    T: Args + Serialize + DeserializeOwned,
{
    let args = settings::with_file(flags, file)?;
    let Some(preset) = &name(&args).preset else {
        return Ok(args);
    };
    let mut below = Preset::find(preset)?.settings;
    settings::keep_known::<T>(&mut below);
    let given = settings::to_map(&args);
    for (first, second) in OVERRIDDEN {
        let is_given = |key| given.get(key).is_some_and(|value| !value.is_null());
        if is_given(second) && !is_given(first) {
            below.shift_remove(first);
        }
    }
    settings::overlay(below, &args)
}

/// Refuses a preset that is not for this model.
///
/// # Errors
/// As [`Preset::check_family`].
pub fn check_family(args: &PresetArgs, model_type: &str) -> CliResult {
    match &args.preset {
        None => Ok(()),
        Some(name) => Preset::find(name)?.check_family(model_type),
    }
}

/// What a user should know of the preset, if there is one.
pub fn describe(args: &PresetArgs) -> CliResult<Option<String>> {
    let preset = args.preset.as_deref().map(Preset::find).transpose()?;
    Ok(preset.map(|preset| preset.describe()))
}

/// Every preset as a table.
pub fn list_text() -> String {
    let mut rows = TextTable::new(&["preset", "for", "adapter values", "follows", "source"]);
    let all = table::all();
    for preset in &all {
        rows.row([
            preset.name.clone(),
            preset.families.join(", "),
            count(preset.parameters),
            preset.follows.name().to_owned(),
            preset.source.to_owned(),
        ]);
    }
    let mut notes: Vec<(&str, Vec<&str>)> = Vec::new();
    for preset in &all {
        let block = preset.name.rsplit_once('-').map_or("", |(block, _)| block);
        match notes.iter_mut().find(|(note, _)| *note == preset.note) {
            Some((_, blocks)) if blocks.contains(&block) => {}
            Some((_, blocks)) => blocks.push(block),
            None => notes.push((preset.note, vec![block])),
        }
    }
    let notes: String = notes
        .iter()
        .map(|(note, blocks)| format!("{}-*: {note}\n", blocks.join("-*, ")))
        .collect();
    format!("{rows}\n{notes}")
}

/// Every preset with its settings.
pub fn list_json() -> Value {
    json!(table::all())
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(['/', '-', '_', ' ']).filter(|w| !w.is_empty())
}

/// How many of the words of `asked` stand in `known`.
fn shared(asked: &str, known: &str) -> usize {
    words(asked).filter(|word| known.contains(word)).count()
}

fn quoted(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" or ")
}

#[cfg(test)]
mod tests;
