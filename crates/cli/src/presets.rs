//! The flag `--preset`: a recipe laid below the user's file and flags; and the list of all.

use clap::Args;
use lowrank_run::RunResult;
use lowrank_run::presets::{self, Preset};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::output::{TextTable, count};
use crate::settings;

/// Which preset.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PresetArgs {
    /// Start from a recipe of the LoRA paper, such as paper/gpt2-medium-e2e; files and flags win
    /// over it
    #[arg(long, value_name = "NAME", help_heading = "General")]
    pub preset: Option<String>,
}

/// Flags over the file they name, over the preset that either of them names.
///
/// # Errors
/// The file cannot be used, or no preset has the name.
pub fn with_preset<T>(flags: T, file: Option<&str>, name: fn(&T) -> &PresetArgs) -> RunResult<T>
where
    T: Args + Serialize + DeserializeOwned,
{
    let args = settings::with_file(flags, file)?;
    let Some(preset) = &name(&args).preset else {
        return Ok(args);
    };
    let mut below = Preset::find(preset)?.below(&settings::to_map(&args));
    settings::keep_known::<T>(&mut below);
    settings::overlay(below, &args)
}

/// Refuses a preset that is not for this model.
///
/// # Errors
/// As [`Preset::check_family`].
pub fn check_family(args: &PresetArgs, model_type: &str) -> RunResult {
    match &args.preset {
        None => Ok(()),
        Some(name) => Preset::find(name)?.check_family(model_type),
    }
}

/// What a user should know of the preset, if there is one.
pub fn describe(args: &PresetArgs) -> RunResult<Option<String>> {
    let preset = args.preset.as_deref().map(Preset::find).transpose()?;
    Ok(preset.map(|preset| preset.describe()))
}

/// Every preset as a table.
pub fn list_text() -> String {
    let mut rows = TextTable::new(&["preset", "for", "adapter values", "follows", "source"]);
    let all = presets::all();
    for preset in &all {
        rows.row([
            preset.name.clone(),
            preset.families.join(", "),
            preset.parameters.map_or("by size".to_owned(), count),
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
    json!(presets::all())
}

#[cfg(test)]
mod tests;
