//! The pre-flight as plain text, and what in it is worth a warning.

use super::{CheckReport, FileCheck, LabelBalance, LossCheck, Pairs, Run, classes_seen, unread};
use crate::columns::{Columns, LabelColumns};
use crate::error::name_list;
use crate::labels::LabelOddity;
use crate::load::{DataForm, LoadReport};

/// A class this frequent makes accuracy say little.
const DOMINANT_SHARE: f64 = 0.9;
/// Above this share of unknown tokens the tokenizer is hardly the right one.
const UNKNOWN_SHARE: f64 = 0.02;

impl CheckReport {
    /// The report as plain text, with marks around what is learned.
    pub fn render(&self) -> String {
        self.render_with(&Run::marked)
    }

    /// The report as plain text, in which `show` says how what is learned is told from what is not.
    pub fn render_with(&self, show: &dyn Fn(&Run) -> String) -> String {
        let mut text = String::new();
        for file in &self.files {
            render_file(file, self.batch_size, &mut text);
            render_samples(file, show, &mut text);
            text.push('\n');
        }
        if self.warnings.is_empty() {
            text.push_str("no warnings\n");
        } else {
            text.push_str(&format!("warnings ({})\n", self.warnings.len()));
            for warning in &self.warnings {
                text.push_str(&format!("  {warning}\n"));
            }
        }
        text
    }
}

fn render_file(file: &FileCheck, batch_size: usize, text: &mut String) {
    text.push_str(&format!("{}\n", file.name));
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<12}{value}\n"));
    render_load(&file.load, &mut line);
    render_tokens(file, batch_size, &mut line);
    match &file.loss {
        None => line("labels", labels(&file.labels)),
        Some(loss) => line("loss", loss_text(loss, &file.load)),
    }
    if let Some(chats) = &file.load.chats {
        let turns = format!(
            "{} of the assistant in {}",
            chats.turns,
            plural(chats.chats, "chat")
        );
        line(
            "turns",
            format!("{turns}; {} without anything learned", chats.empty_turns),
        );
    }
    line(
        "duplicates",
        format!(
            "{}, {} with another label",
            plural(file.duplicates.count, "row"),
            file.conflicts.count
        ),
    );
}

/// What was read: the file, its columns, and what was said of it.
fn render_load(load: &LoadReport, line: &mut impl FnMut(&str, String)) {
    line(
        "file",
        format!(
            "{} ({}, {})",
            load.path.display(),
            load.format.name(),
            plural(load.rows, "row")
        ),
    );
    for note in &load.notes {
        line("note", note.replace('\n', "\n              "));
    }
    if let Some(form) = load.form {
        line("form", form.describe().to_owned());
    }
    line("columns", columns(&load.columns));
    if !load.ignored_columns.is_empty() {
        line("not read", some_of(&load.ignored_columns));
    }
}

/// How long rows are, what is cut off, and what padding would cost.
fn render_tokens(file: &FileCheck, batch_size: usize, line: &mut impl FnMut(&str, String)) {
    let (load, lengths) = (&file.load, &file.lengths);
    let (min, median, p95, max) = (lengths.min, lengths.median, lengths.p95, lengths.max);
    line(
        "tokens",
        format!(
            "min {min}, median {median}, 95 % {p95}, max {max}; {} in all",
            load.tokens
        ),
    );
    line(
        "cut",
        format!(
            "{} by {}; {} dropped",
            plural(load.truncated_rows, "row"),
            plural(load.truncated_tokens as usize, "token"),
            plural(load.dropped_rows, "row")
        ),
    );
    let padded = (file.padding.padded_tokens - file.padding.tokens) as usize;
    line(
        "padding",
        format!(
            "none; padding batches of {batch_size} to their longest row would add {} ({:.1} % of the work)",
            plural(padded, "token"),
            100.0 * file.padding_share
        ),
    );
    line(
        "unknown",
        format!(
            "{} ({:.2} %)",
            plural(file.unknown_tokens as usize, "token"),
            100.0 * file.unknown_share
        ),
    );
}

fn loss_text(loss: &LossCheck, load: &LoadReport) -> String {
    format!(
        "on {} ({:.1} % of all); {} of {} end with an end token",
        plural(loss.tokens as usize, "token"),
        100.0 * loss.tokens as f64 / load.tokens.max(1) as f64,
        loss.rows_with_end,
        plural(loss.rows, "row"),
    )
}

fn render_samples(file: &FileCheck, show: &dyn Fn(&Run) -> String, text: &mut String) {
    for sample in &file.samples {
        let cut = match sample.truncated_tokens {
            0 => String::new(),
            n => format!(", {n} cut off"),
        };
        let label = match sample.runs.is_empty() {
            true => format!(", label {}", sample.label),
            false => String::new(),
        };
        text.push_str(&format!(
            "  line {} ({} tokens{cut}){label}\n",
            sample.line, sample.tokens
        ));
        let shown = match sample.runs.is_empty() {
            true => sample.text.clone(),
            false => sample.runs.iter().map(show).collect(),
        };
        text.push_str(&format!("    {}\n", shown.replace('\n', "\\n")));
    }
}

fn columns(columns: &Columns) -> String {
    let text = columns.text.describe();
    let label = match &columns.label {
        None => "no label".into(),
        Some(LabelColumns::One(label)) => format!("label `{label}`"),
        Some(LabelColumns::Each(labels)) => format!("labels {}", name_list(labels)),
    };
    format!("{text}, {label}")
}

fn labels(balance: &LabelBalance) -> String {
    match balance {
        LabelBalance::None => "none".into(),
        LabelBalance::Classes { counts, total } => {
            const SHOWN: usize = 20;
            let share = |count: u64| 100.0 * count as f64 / (*total).max(1) as f64;
            let shown = counts.iter().take(SHOWN);
            let mut text = shown
                .map(|class| {
                    format!(
                        "{} {} ({:.1} %)",
                        class.name,
                        class.count,
                        share(class.count)
                    )
                })
                .collect::<Vec<_>>()
                .join(", ");
            if counts.len() > SHOWN {
                text.push_str(&format!(" and {} more classes", counts.len() - SHOWN));
            }
            text
        }
        LabelBalance::Numbers {
            min,
            mean,
            std,
            max,
        } => {
            format!("min {min:.4}, mean {mean:.4}, standard deviation {std:.4}, max {max:.4}")
        }
    }
}

/// Names, the first twenty of them.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = names.iter().take(SHOWN).cloned().collect();
    more(shown, names.len())
}

fn plural(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// What a user should look at.
pub(super) fn warnings(report: &CheckReport) -> Vec<String> {
    let mut found = Vec::new();
    for file in &report.files {
        file_warnings(file, &mut found);
    }
    for leak in &report.leaks {
        found.push(format!(
            "{}: {} also stand{} in {}: {}",
            leak.second,
            plural(leak.rows.count, "row"),
            if leak.rows.count == 1 { "s" } else { "" },
            leak.first,
            pairs(&leak.rows)
        ));
    }
    if let Some((first, others)) = report.files.split_first() {
        let known = classes_seen(first);
        for file in others {
            let mut unseen: Vec<&str> = classes_seen(file).difference(&known).copied().collect();
            unseen.sort_unstable();
            if !unseen.is_empty() && !known.is_empty() {
                found.push(format!(
                    "{}: classes without a row in {}: {}",
                    file.name,
                    first.name,
                    unseen.join(", ")
                ));
            }
        }
    }
    found
}

fn file_warnings(file: &FileCheck, found: &mut Vec<String>) {
    let load = &file.load;
    let mut warn = |text: String| found.push(format!("{}: {text}", file.name));
    for column in &file.unread_texts {
        warn(format!(
            "column `{column}` holds texts and is not read: {}",
            unread::way(&load.columns)
        ));
    }
    load_warnings(load, &mut warn);
    if file.empty_texts.count > 0 {
        warn(format!(
            "{} without text: {}",
            plural(file.empty_texts.count, "row"),
            file.empty_texts.describe()
        ));
    }
    if let Some(loss) = &file.loss {
        loss_warnings(loss, &mut warn);
    }
    if file.unsupervised.count > 0 {
        warn(format!(
            "{} without any label that counts: {}",
            plural(file.unsupervised.count, "row"),
            file.unsupervised.describe()
        ));
    }
    if file.duplicates.count > 0 {
        warn(format!(
            "{} with the text of an earlier one: {}",
            plural(file.duplicates.count, "row"),
            pairs(&file.duplicates)
        ));
    }
    if file.conflicts.count > 0 {
        warn(format!(
            "{} with the text of an earlier one and another label: {}",
            plural(file.conflicts.count, "row"),
            pairs(&file.conflicts)
        ));
    }
    if file.unknown_share > UNKNOWN_SHARE {
        warn(format!(
            "{:.1} % of the tokens are unknown to the vocabulary",
            100.0 * file.unknown_share
        ));
    }
    label_warnings(file, found);
}

/// Rows that were left out or cut, and parts of chats.
fn load_warnings(load: &LoadReport, warn: &mut impl FnMut(String)) {
    if load.bad_rows > 0 {
        warn(format!(
            "{} of {} rows cannot be used and are left out",
            load.bad_rows, load.rows
        ));
    }
    if load.dropped_rows > 0 {
        warn(format!(
            "{} of {} rows are too long and left out",
            load.dropped_rows, load.rows
        ));
    }
    if load.truncated_rows > 0 {
        let lost = 100.0 * load.truncated_tokens as f64
            / (load.tokens + load.truncated_tokens).max(1) as f64;
        warn(format!(
            "{} of {} rows are cut, {lost:.1} % of all tokens are lost{}",
            load.truncated_rows,
            load.rows,
            match load.form {
                Some(DataForm::Text) => ": --long-rows blocks makes more rows of them",
                _ => "",
            }
        ));
    }
    let chats = load.chats.as_ref();
    (chats.iter().flat_map(|chats| chats.warnings())).for_each(warn);
}

fn loss_warnings(loss: &LossCheck, warn: &mut impl FnMut(String)) {
    if loss.rows_with_end == 0 {
        warn("no row ends with an end token: the model will not learn to stop".into());
    }
    if loss.rows_without_end_cut > 0 {
        warn(format!(
            "{} lost the end of the last turn where they were cut: a larger --max-length keeps it",
            plural(loss.rows_without_end_cut, "row")
        ));
    }
}

fn label_warnings(file: &FileCheck, found: &mut Vec<String>) {
    let mut warn = |text: String| found.push(format!("{}: {text}", file.name));
    if file.load.unlabelled_rows > 0 {
        warn(format!(
            "{} of {} rows have no label and are left out",
            file.load.unlabelled_rows, file.load.rows
        ));
    }
    for oddity in &file.load.labels.oddities {
        // Classes without a row are named below, whatever they are called.
        if !matches!(oddity, LabelOddity::Holes { .. }) {
            warn(oddity.to_string());
        }
    }
    if let LabelBalance::Classes { counts, total } = &file.labels {
        let empty: Vec<&str> = counts
            .iter()
            .filter(|class| class.count == 0)
            .map(|class| class.name.as_str())
            .collect();
        if !empty.is_empty() {
            let shown = empty
                .iter()
                .take(10)
                .copied()
                .collect::<Vec<_>>()
                .join(", ");
            warn(format!(
                "{} without a row: {shown}",
                if empty.len() == 1 {
                    "1 class".into()
                } else {
                    format!("{} classes", empty.len())
                }
            ));
        }
        if let Some(class) = counts.iter().max_by_key(|class| class.count)
            && counts.len() > 1
            && class.count as f64 > DOMINANT_SHARE * *total as f64
        {
            warn(format!(
                "{:.1} % of the labels are `{}`",
                100.0 * class.count as f64 / (*total).max(1) as f64,
                class.name
            ));
        }
    }
    if let LabelBalance::Numbers { min, max, .. } = &file.labels
        && min == max
    {
        warn(format!("all targets are {min}"));
    }
}

fn pairs(pairs: &Pairs) -> String {
    let shown = pairs
        .lines
        .iter()
        .map(|(first, later)| format!("line {later} = line {first}"));
    more(shown.collect(), pairs.count)
}

pub(super) fn more(shown: Vec<String>, count: usize) -> String {
    let mut text = shown.join(", ");
    if count > shown.len() {
        text.push_str(&format!(" and {} more", count - shown.len()));
    }
    text
}
