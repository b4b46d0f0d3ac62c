//! What the labels of a run mean: the task, the names of the classes and who named them, and what
//! is said about them.

use std::path::Path;

use lowrank_data::{
    LabelColumns, LabelMap, LabelOddity, LabelOrigin, LoadReport, LoadSpec, Loaded, Table,
    guess_task, read_table,
};
use lowrank_engine::Device;
use lowrank_train::config::Task;

use crate::adapter::AdapterSource;
use crate::base::Base;
use crate::error::{RunError, RunResult};
use crate::rows::{KnownLabels, load_spec};
use crate::settings::RowSettings;
use crate::text::count;

/// Names of columns that one line shows.
const COLUMNS_SHOWN: usize = 12;

/// What is predicted, and why where nobody has said it.
pub struct TaskChoice {
    /// The task.
    pub task: Task,
    /// What in the rows shows it, in words that follow on "since".
    pub reason: Option<String>,
}

impl TaskChoice {
    /// By the flag, the adapter's notes, the model's head; a model without one leaves it to the
    /// rows.
    pub fn new(
        base: &Base,
        data: &RowSettings,
        adapter: Option<&AdapterSource>,
        table: &Table,
    ) -> RunResult<Self> {
        let noted = adapter.and_then(|a| a.notes.as_ref()).map(|n| n.task);
        let said = data.task.or(noted);
        let task = said.unwrap_or_else(|| base.task());
        let is_open = said.is_none()
            && adapter.is_none()
            && task == Task::SingleLabel
            && base.head.stored.is_none();
        if is_open {
            let spec = load_spec(base, data, task, None, 0)?;
            if let Some(guess) = guess_task(table, &spec.columns) {
                return Ok(Self {
                    task: guess.task,
                    reason: Some(guess.reason),
                });
            }
        }
        Ok(Self { task, reason: None })
    }

    /// The choice in a line, where nobody has made it.
    pub fn line(&self) -> Option<String> {
        let reason = self.reason.as_ref()?;
        let otherwise = match self.task {
            Task::SingleLabel => "multi_label",
            Task::MultiLabel | Task::Regression | Task::TokenClassification | Task::CausalLm => {
                "single_label"
            }
        };
        Some(format!(
            "{}, since {reason}; --task {otherwise} where it is not meant",
            self.task.name()
        ))
    }
}

/// The rows of a file, as the task is to be told from them.
pub fn table_of(
    base: &Base,
    data: &RowSettings,
    noted: Option<Task>,
    path: &str,
    device: &Device,
) -> RunResult<Table> {
    let task = data.task.or(noted).unwrap_or_else(|| base.task());
    let spec: LoadSpec = load_spec(base, data, task, None, 0)?;
    Ok(device.install(|| read_table(Path::new(path), &spec))?)
}

/// Label names that do not come from the rows: flags, the adapter's notes, a head's real names.
pub fn known_labels(
    base: &Base,
    data: &RowSettings,
    adapter: Option<&AdapterSource>,
) -> Option<KnownLabels> {
    let of = |origin| move |names: Vec<String>| KnownLabels { names, origin };
    let notes = || {
        let labels = adapter?.notes.as_ref()?.labels.clone();
        (!labels.is_empty()).then_some(labels)
    };
    let config = || {
        // A head that may give way to another does not bind the rows to its names.
        let names = base.head_names().filter(|_| !base.may_replace_head())?;
        (!is_placeholder(names)).then(|| names.to_vec())
    };
    data.labels
        .clone()
        .map(of(LabelOrigin::Flag))
        .or_else(|| notes().map(of(LabelOrigin::Adapter)))
        .or_else(|| config().map(of(LabelOrigin::TrainedHead)))
}

/// The names of the outputs: known ones, else those of the rows. Numbers are the numbers of a
/// pretrained head's outputs, so that `1` is output 1 whatever the file lacks; a head with stand-in
/// names and more outputs than classes keeps them.
pub fn choose_labels(
    base: &Base,
    task: Task,
    known: Option<KnownLabels>,
    learned: Option<&LabelMap>,
) -> KnownLabels {
    let of_rows = |names| KnownLabels {
        names,
        origin: LabelOrigin::TrainingRows,
    };
    if !task.has_label_names() {
        return of_rows(Vec::new());
    }
    if let Some(known) = known {
        return known;
    }
    let names = learned.map(|map| map.names().to_vec()).unwrap_or_default();
    // A head that only the configuration speaks of is started anew.
    let Some(head) = base.head_names().filter(|_| base.head.stored.is_some()) else {
        return of_rows(names);
    };
    let of_head = |names| KnownLabels {
        names,
        origin: LabelOrigin::TrainedHead,
    };
    if base.may_replace_head() {
        let map = LabelMap::new(head.to_vec()).ok();
        let fits = |name: &String| map.as_ref().is_some_and(|map| map.class(name).is_some());
        let replaced = names.len() > head.len() || !names.iter().all(fits);
        return if replaced {
            of_rows(names)
        } else {
            of_head(head.to_vec())
        };
    }
    match learned {
        Some(map) if map.is_of_numbers() => {
            of_head((0..head.len()).map(|i| i.to_string()).collect())
        }
        Some(_) | None if head.len() > names.len() => of_head(head.to_vec()),
        Some(_) | None => of_rows(names),
    }
}

/// With a single class there is nothing to learn; the file and column that hold it are named.
pub fn refuse_single_class(task: Task, known: &KnownLabels, report: &LoadReport) -> RunResult {
    let one_of_several = matches!(task, Task::SingleLabel | Task::TokenClassification);
    let [only] = known.names.as_slice() else {
        return Ok(());
    };
    if !one_of_several {
        return Ok(());
    }
    let column = match &report.columns.label {
        Some(LabelColumns::One(name)) => format!(", column `{name}`"),
        Some(LabelColumns::Each(_)) | None => String::new(),
    };
    let left_out = match report.unlabelled_rows {
        0 => String::new(),
        rows => format!(" ({} rows without a label left out)", count(rows as u64)),
    };
    let file = report.path.display();
    let number = match only.parse::<f64>() {
        Ok(_) => "; --task regression predicts numbers",
        Err(_) => "",
    };
    Err(RunError::usage(format!(
        "`{file}`{column}: a single class, `{only}`{left_out}; labels: expected at least two"
    ))
    .hint(format!(
        "if the file lacks a class, name all with --labels, as in --labels {only} OTHER; --label-column names another column{number}"
    )))
}

/// transformers' names for labels that nobody has named.
fn is_placeholder(names: &[String]) -> bool {
    names
        .iter()
        .enumerate()
        .all(|(i, name)| *name == format!("LABEL_{i}"))
}

/// What was learned from a file, in one line: labels with counts, the columns taken, the columns
/// not read.
pub fn line(report: &LoadReport) -> String {
    let mut parts = Vec::new();
    if let Some(label) = &report.columns.label {
        let (plural, columns) = match label {
            LabelColumns::One(name) => ("", quoted(std::slice::from_ref(name))),
            LabelColumns::Each(names) => ("s", quoted(names)),
        };
        let mut labels = format!(
            "labels: {} (column{plural} {columns}, {}",
            report.labels.counts(),
            report.labels.layout_name()
        );
        if report.unlabelled_rows > 0 {
            let rows = count(report.unlabelled_rows as u64);
            labels.push_str(&format!(", {rows} rows without a label left out"));
        }
        parts.push(format!("{labels})"));
    }
    parts.push(report.columns.text.describe());
    parts.push(match report.ignored_columns.as_slice() {
        [] => "every column read".to_owned(),
        names => format!("not read: {}", quoted(names)),
    });
    parts.join("; ")
}

fn quoted(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(COLUMNS_SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let mut text = shown.join(", ");
    if names.len() > COLUMNS_SHOWN {
        text.push_str(&format!(" and {} more", names.len() - COLUMNS_SHOWN));
    }
    text
}

/// What is odd about the labels of several files, each oddity once.
pub fn warnings(files: &[(&str, &Loaded)]) -> Vec<String> {
    let mut seen: Vec<&LabelOddity> = Vec::new();
    let mut found = Vec::new();
    for (name, loaded) in files {
        for oddity in &loaded.report.labels.oddities {
            if !seen.contains(&oddity) {
                seen.push(oddity);
                found.push(format!("warning: {name}: {oddity}"));
            }
        }
    }
    found
}
