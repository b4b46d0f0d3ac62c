//! Recipes by name, such as `paper/gpt2-medium-e2e`. A preset is a file of settings that the
//! program brings along, laid below what is asked for. Which numbers they hold is the table's
//! business.

mod table;

pub use table::{SFT, all};

use lowrank_formats::nearest;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{RunError, RunResult};

/// Whose numbers a preset holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// The paper's tables.
    Paper,
    /// The scripts that were released with it, which differ.
    Scripts,
    /// What published comparisons agree on.
    Evidence,
}

impl Follows {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Follows::Paper => "the paper",
            Follows::Scripts => "the scripts",
            Follows::Evidence => "published comparisons",
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
    /// Values of A and B at the size that it is made for; nothing where it is for any.
    pub parameters: Option<u64>,
    /// The settings, under the names of flags; a command takes those that it knows.
    pub settings: Map<String, Value>,
}

/// A setting that makes another one meaningless: who gives the second does not want the preset's
/// first.
const OVERRIDDEN: [(&str, &str); 1] = [("warmup_steps", "warmup_ratio")];

impl Preset {
    /// The preset of a name.
    ///
    /// # Errors
    /// There is none of this name; the message names the nearest.
    pub fn find(name: &str) -> RunResult<Self> {
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
        let error = RunError::usage(format!("there is no preset `{name}`"));
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
    pub fn check_family(&self, model_type: &str) -> RunResult {
        if self.families.contains(&model_type) {
            return Ok(());
        }
        let wanted: Vec<_> = self.families.iter().map(|f| format!("`{f}`")).collect();
        Err(RunError::usage(format!(
            "preset `{}` is made for {} models, but the model is `{model_type}`",
            self.name,
            wanted.join(" and ")
        ))
        .hint(
            "pass --model with such a model, or a preset that fits: `lowrank train --list-presets`",
        ))
    }

    /// Its settings, as they lie below those that are given.
    pub fn below(&self, given: &Map<String, Value>) -> Map<String, Value> {
        let mut below = self.settings.clone();
        for (first, second) in OVERRIDDEN {
            let is_given = |key| given.get(key).is_some_and(|value| !value.is_null());
            if is_given(second) && !is_given(first) {
                below.shift_remove(first);
            }
        }
        below
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
