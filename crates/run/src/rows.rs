//! Files of rows: how they are read for a model, and what they give.

use std::path::Path;

use lowrank_data::{
    BadRows, ColumnSpec, DEFAULT_MAX_BAD_ROWS, DataError, Example, Header, Label, LabelMap,
    LabelNeed, LabelOrigin, LoadSpec, Loaded, LongRows, Table, Template, TemplateError,
    examples_from_table, read_table, reads_chats,
};
use lowrank_engine::Device;
use lowrank_train::config::{DataSettings, Task};
use lowrank_train::evaluate::counted_targets;

use crate::base::Base;
use crate::chat;
use crate::error::{RunError, RunResult};
use crate::settings::RowSettings;
use crate::text::count;

/// Names of classes, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLabels {
    /// The names in order.
    pub names: Vec<String>,
    /// Who named them.
    pub origin: LabelOrigin,
}

/// The template that a language model's rows were laid out by.
pub fn template_of(data: &DataSettings) -> Option<String> {
    (data.task == Task::CausalLm).then(|| {
        let default = || Template::default().to_string();
        data.template.clone().unwrap_or_else(default)
    })
}

/// How a file of rows is read.
pub fn load_spec(
    base: &Base,
    data: &RowSettings,
    task: Task,
    labels: Option<&KnownLabels>,
    max_length: usize,
) -> RunResult<LoadSpec> {
    Ok(LoadSpec {
        columns: ColumnSpec {
            text: data.text_column.clone(),
            text_pair: data.text_pair_column.clone(),
            context: data.context_column.clone(),
            label: data.label_column.clone(),
            labels: data.label_columns.clone().unwrap_or_default(),
        },
        labels: labels
            .filter(|known| !known.names.is_empty())
            .map(|known| LabelMap::new(known.names.clone()))
            .transpose()
            .map_err(DataError::from)?,
        labels_from: labels.map(|known| known.origin).unwrap_or_default(),
        unlabelled: data.unlabelled.unwrap_or_default(),
        max_length: Some(max_length),
        header: header(data.no_header),
        long_rows: data.long_rows.unwrap_or_default(),
        bad_rows: data.bad_rows.unwrap_or_default(),
        max_bad_rows: max_bad_rows(data.bad_rows, data.max_bad_rows)?,
        nlg: data.data_format,
        template: match &data.template {
            None => Template::default(),
            Some(text) => text.parse().map_err(|error: TemplateError| {
                RunError::usage(error.to_string())
                    .hint("an example: --template 'Question: {prompt} Answer: {completion}{eos}'")
            })?,
        },
        chat: match task {
            Task::CausalLm => chat::format(base, data)?,
            _ => None,
        },
        vocab_size: Some(base.config.facts.vocab_size),
        type_vocab_size: Some(base.config.facts.type_vocab_size),
        ..LoadSpec::new(task)
    })
}

/// Tokens that rows of a table may have: as asked for or noted, else by what the rows are.
///
/// # Errors
/// More than the model has positions; the rows cannot be what the settings say.
pub fn max_length(
    base: &Base,
    data: &RowSettings,
    task: Task,
    table: &Table,
    noted: Option<usize>,
) -> RunResult<usize> {
    let asked = data.max_length.or(noted);
    let is_long = || -> RunResult<bool> {
        let are_blocks = data.long_rows == Some(LongRows::Blocks);
        Ok(are_blocks || reads_chats(table, &load_spec(base, data, task, None, 0)?)?)
    };
    if asked.is_none() && is_long()? {
        return base.max_length_or(asked, chat::MAX_LENGTH);
    }
    base.max_length(asked)
}

/// Whether a table begins with the names of its columns.
pub fn header(no_header: Option<bool>) -> Header {
    match no_header {
        Some(true) => Header::Absent,
        Some(false) | None => Header::Present,
    }
}

/// The share of rows that may be left out.
fn max_bad_rows(bad_rows: Option<BadRows>, share: Option<f64>) -> RunResult<f64> {
    match share {
        Some(share) if !(0.0..=1.0).contains(&share) => Err(RunError::usage(format!(
            "`max_bad_rows` is {share}, expected a share from 0 to 1"
        ))),
        Some(_) if bad_rows != Some(BadRows::Skip) => Err(RunError::usage(
            "`max_bad_rows` is a setting of `bad_rows: skip`",
        )
        .hint("pass --bad-rows skip too")),
        share => Ok(share.unwrap_or(DEFAULT_MAX_BAD_ROWS)),
    }
}

/// Reads a file of rows on the device's threads.
pub fn load_rows(path: &str, spec: &LoadSpec, base: &Base, device: &Device) -> RunResult<Loaded> {
    let table = device.install(|| read_table(Path::new(path), spec))?;
    rows_of(&table, spec, base, device)
}

/// The examples of rows that were read.
pub fn rows_of(table: &Table, spec: &LoadSpec, base: &Base, device: &Device) -> RunResult<Loaded> {
    let tokenizer = base.tokenizer.as_ref();
    let loaded = device.install(|| examples_from_table(table, spec, tokenizer.ok()));
    loaded.map_err(|error| base.data_error(error))
}

/// The same without needing labels.
pub fn unlabelled(spec: LoadSpec) -> LoadSpec {
    LoadSpec {
        need: LabelNeed::Ignored,
        ..spec
    }
}

/// What is said where an adapter has fewer parameters than a language model's rows have tokens that
/// are learned: it may not hold what is in them. Source: Schulman et al. 2025, "LoRA Without
/// Regret".
pub fn capacity_note(trained: u64, rows: &[Example]) -> Option<String> {
    let is_text = |row: &Example| matches!(row.label, Label::Tokens(_));
    let learned: u64 = rows.iter().map(|row| counted_targets(row) as u64).sum();
    (rows.iter().all(is_text) && trained < learned).then(|| {
        format!(
            "{} parameters are trained on {} learned tokens: with fewer parameters than tokens a larger --r or more of \
             --target-modules may reach a lower loss",
            count(trained),
            count(learned)
        )
    })
}

#[cfg(test)]
mod tests {
    use lowrank_data::IGNORE_INDEX;

    use super::*;

    #[test]
    fn fewer_parameters_than_learned_tokens_are_said() {
        let row = |label| Example {
            input_ids: vec![1, 2, 3],
            token_type_ids: None,
            label,
            line: 1,
            truncated_tokens: 0,
        };
        let rows = vec![row(Label::Tokens(vec![IGNORE_INDEX, 2, 3])); 3];
        let note = capacity_note(5, &rows).unwrap();
        assert!(
            note.starts_with("5 parameters are trained on 6 learned tokens"),
            "{note}"
        );
        assert_eq!(capacity_note(6, &rows), None);
        assert_eq!(capacity_note(5, &vec![row(Label::Class(1)); 9]), None);
    }
}
