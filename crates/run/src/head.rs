//! Which head a model has, and what it is called: tensors say it first, then config.json, flags and
//! an adapter's notes. Only `train` starts a new one.

use lowrank_formats::peft::TaskType;
use lowrank_formats::{Checkpoint, FormatError};
use lowrank_model::{HeadKind, ModelConfig, StoredHead};
use lowrank_train::config::Task;

use crate::adapter::AdapterSource;
use crate::base::{Base, Head};
use crate::error::{RunError, RunResult};
use crate::notes::AdapterNotes;
use crate::settings::RowSettings;

/// What a checkpoint and its config.json say of the head.
#[derive(Debug, Default)]
pub struct BaseHead {
    /// The head among the tensors.
    pub stored: Option<StoredHead>,
    /// The task of that head, or the one that the configuration speaks of.
    task: Option<Task>,
    /// Names of the head's outputs, where there is a head or config.json names labels.
    names: Option<Vec<String>>,
    /// What contradicts, one sentence each.
    pub notes: Vec<String>,
}

impl BaseHead {
    /// Reads the names of the checkpoint's tensors. A directory without weights has none.
    pub fn read(dir: &std::path::Path, config: &ModelConfig) -> RunResult<Self> {
        let stored = match Checkpoint::open_model(dir) {
            Err(FormatError::NothingFound { .. }) => None,
            opened => StoredHead::find(&opened?, &config.model_type)?,
        };
        let mut notes = config.labels.notes.clone();
        let width = stored.as_ref().map(|head| head.width);
        let named = width.or(config.labels.count()).filter(|n| *n > 0);
        let names = named.map(|width| {
            let found = config.labels.names(width);
            notes.extend(found.notes);
            found.names
        });
        let task = stored
            .as_ref()
            .map(|head| stored_task(head, config, &mut notes));
        Ok(Self {
            stored,
            task,
            names,
            notes,
        })
    }
}

impl BaseHead {
    /// The task of the head that is there, else the one that the configuration speaks of.
    pub fn task(&self, config: &ModelConfig) -> Task {
        self.task.unwrap_or_else(|| task_of(config))
    }

    /// The outputs of the head that is there, else of the one that the configuration speaks of.
    pub fn width(&self, config: &ModelConfig) -> Option<usize> {
        let named = || {
            config
                .labels
                .count()
                .filter(|_| is_named(config, "Classification"))
        };
        self.stored.as_ref().map(|head| head.width).or_else(named)
    }
}

fn is_named(config: &ModelConfig, end: &str) -> bool {
    config.architectures.iter().any(|name| name.ends_with(end))
}

/// The task of a head that is there.
fn stored_task(head: &StoredHead, config: &ModelConfig, notes: &mut Vec<String>) -> Task {
    let says_tokens = is_named(config, "ForTokenClassification");
    let says_sequence = is_named(config, "ForSequenceClassification");
    let is_of_tokens = match head.kind {
        HeadKind::Sequence => false,
        HeadKind::Tokens => true,
        HeadKind::LikelySequence => says_tokens,
        HeadKind::LikelyTokens => !says_sequence,
    };
    let contradicted = match is_of_tokens {
        true if says_sequence => Some(("a sequence", "each token")),
        false if says_tokens => Some(("each token", "a sequence")),
        true | false => None,
    };
    if let Some((said, found)) = contradicted {
        notes.push(format!(
            "config.json: `architectures` speaks of a head for {said}, but `{}` is one for {found}; the tensors count",
            head.tensor
        ));
    }
    if is_of_tokens {
        return Task::TokenClassification;
    }
    sequence_task(Some(head.width), config, notes)
}

/// The task of a head for sequences with that many outputs.
fn sequence_task(width: Option<usize>, config: &ModelConfig, notes: &mut Vec<String>) -> Task {
    match config.problem_type.as_deref() {
        Some("regression") => Task::Regression,
        Some("multi_label_classification") => Task::MultiLabel,
        other => {
            // transformers' rule: a head with one output is a regression.
            let default = match width {
                Some(1) => Task::Regression,
                Some(_) | None => Task::SingleLabel,
            };
            let is_known = other == Some("single_label_classification");
            if let Some(name) = other.filter(|_| !is_known || width == Some(1)) {
                notes.push(format!(
                    "config.json: `problem_type` is `{name}`, which is not that of this head; it is taken for {}",
                    default.name()
                ));
            }
            default
        }
    }
}

/// The task that a configuration speaks of, where no tensor says it.
pub fn task_of(config: &ModelConfig) -> Task {
    if is_named(config, "ForTokenClassification") {
        return Task::TokenClassification;
    }
    if is_named(config, "LMHeadModel") || is_named(config, "ForCausalLM") {
        return Task::CausalLm;
    }
    let width = (config.labels.count()).filter(|_| is_named(config, "Classification"));
    sequence_task(width, config, &mut Vec::new())
}

impl Base {
    /// Whether the checkpoint holds a classification head, or its configuration says that it was
    /// made for one.
    pub fn has_head(&self) -> bool {
        self.head.stored.is_some() || is_named(&self.config, "Classification")
    }

    /// The names of the outputs of the head that the checkpoint holds, or that its configuration
    /// speaks of.
    pub fn head_names(&self) -> Option<&[String]> {
        self.head.names.as_deref().filter(|_| self.has_head())
    }

    /// The task of the head that the checkpoint holds, else the one that the configuration speaks
    /// of.
    pub fn task(&self) -> Task {
        self.head.task(&self.config)
    }
}

/// The head of a model that is not being trained: by flags, by the adapter's notes and tensors, by
/// the checkpoint's tensors, by its configuration.
///
/// # Errors
/// There is no head, or names and tensors contradict each other.
pub fn existing_head(
    base: &Base,
    data: &RowSettings,
    adapter: Option<&AdapterSource>,
) -> RunResult<Head> {
    let notes = adapter.and_then(|a| a.notes.as_ref());
    let of_adapter = adapter.and_then(|a| a.config.task_type());
    let is_causal = match data.task.or(notes.map(|n| n.task)) {
        Some(task) => task == Task::CausalLm,
        None => match of_adapter {
            Some(task_type) => task_type == TaskType::CausalLm,
            None => base.task() == Task::CausalLm,
        },
    };
    if is_causal {
        return Ok(Head {
            task: Task::CausalLm,
            num_labels: 0,
            labels: Vec::new(),
        });
    }
    let in_adapter = adapter
        .map(|adapter| adapter.head(&base.config.model_type))
        .transpose()?
        .flatten();
    let stored = base.head.stored.as_ref();
    let nowhere = StoredHead {
        kind: HeadKind::LikelySequence,
        width: named_outputs(base, data, notes),
        tensor: "",
    };
    let found = match in_adapter.as_ref().or(stored) {
        Some(found) => found,
        None if adapter.is_none() => return Err(no_head(base)),
        // The adapter may be one for another model: it is attached, and then what nobody holds is
        // refused.
        None => &nowhere,
    };
    let task = data
        .task
        .or(notes.map(|n| n.task))
        .unwrap_or_else(|| match of_adapter {
            Some(TaskType::TokenClassification) => Task::TokenClassification,
            Some(TaskType::SequenceClassification) => {
                sequence_task(Some(found.width), &base.config, &mut Vec::new())
            }
            _ => match &in_adapter {
                Some(head) => stored_task(head, &base.config, &mut Vec::new()),
                None => base.task(),
            },
        });
    let labels = match task.has_label_names() {
        false => Vec::new(),
        true => names_of_outputs(base, data, adapter, found)?,
    };
    Ok(Head {
        task,
        num_labels: found.width,
        labels,
    })
}

/// One name for each output of a head, or what contradicts.
fn names_of_outputs(
    base: &Base,
    data: &RowSettings,
    adapter: Option<&AdapterSource>,
    head: &StoredHead,
) -> RunResult<Vec<String>> {
    let notes = adapter.and_then(|a| a.notes.as_ref());
    let noted = notes.map(|n| &n.labels).filter(|labels| !labels.is_empty());
    let (names, from) = match (&data.labels, noted) {
        (Some(names), _) => (names.clone(), "--labels"),
        (None, Some(names)) => (names.clone(), "the adapter's lowrank.json"),
        (None, None) => (base.config.labels.names(head.width).names, "config.json"),
    };
    if names.len() == head.width {
        return Ok(names);
    }
    Err(RunError::usage(format!(
        "{} label names in {from} for a head with {} outputs (`{}`)",
        names.len(),
        head.width,
        head.tensor
    ))
    .hint(format!(
        "pass --labels with {} names, in the order of the outputs",
        head.width
    )))
}

/// The outputs of a head that no tensor is known of.
fn named_outputs(base: &Base, data: &RowSettings, notes: Option<&AdapterNotes>) -> usize {
    let flags = data.labels.as_ref().map(Vec::len);
    let noted = notes.map(|n| n.labels.len()).filter(|n| *n > 0);
    let named = flags.or(noted).or(base.config.labels.count());
    named.unwrap_or(2).max(1)
}

fn no_head(base: &Base) -> RunError {
    // Where there are no weights at all, that is the cause.
    if let Err(error) = Checkpoint::open_model(&base.dir) {
        return error.into();
    }
    let said = match base.config.architectures.first() {
        Some(name) if name.ends_with("Classification") => {
            format!(", though config.json names `{name}`")
        }
        Some(_) | None => String::new(),
    };
    RunError::usage(format!(
        "`{}` has no classification head among its tensors{said}, and no adapter is given",
        base.name
    ))
    .hint("pass --adapter with the directory of an adapter or of a run; `lowrank train` starts a new head")
}
