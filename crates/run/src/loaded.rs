//! A model that is ready to predict: opened, with its adapter attached and its head known.

use std::path::Path;

use lowrank_data::{
    ColumnSpec, FileFormat, Header, LabelOrigin, Loaded, LongRows, Table, examples_from_table,
};
use lowrank_engine::{BaseFormat, Device};
use lowrank_model::{LoadReport, Model};
use lowrank_train::config::{DEFAULT_MAX_LENGTH, LARGEST_BATCH, Task};
use lowrank_train::evaluate::{PassSettings, evaluate};
use lowrank_train::metrics::Evaluation;
use serde_json::json;

use crate::adapter::AdapterSource;
use crate::base::{Base, Head, load_notes};
use crate::chat;
use crate::error::{RunError, RunResult};
use crate::fits::check_pass;
use crate::head::existing_head;
use crate::rows::{KnownLabels, load_rows, load_spec, unlabelled};
use crate::settings::{AdapterSettings, ModelSettings, RowSettings};

/// Rows a batch unless told otherwise.
pub const BATCH_SIZE: usize = 64;

/// The batch size asked for, or else `default`.
pub fn batch_size(asked: Option<usize>, default: usize) -> RunResult<usize> {
    match asked {
        Some(n) if (1..=LARGEST_BATCH).contains(&n) => Ok(n),
        Some(n) => Err(RunError::usage(format!(
            "the batch size is {n}, expected from 1 to {LARGEST_BATCH}"
        ))),
        None => Ok(default),
    }
}

/// A model that is ready to predict.
pub struct LoadedModel {
    /// Its directory.
    pub base: Base,
    /// The weights, with the adapter attached.
    pub model: Model,
    /// What it predicts.
    pub head: Head,
    /// Where the names of its labels come from.
    pub labels_from: LabelOrigin,
    /// Tokens a row at most.
    pub max_length: usize,
    /// How a language model's prompts are laid out, where the adapter's notes say it.
    pub template: Option<String>,
    /// The alpha of the adapter, if there is one.
    pub adapter_alpha: Option<f64>,
    /// What a user should know.
    pub notes: Vec<String>,
}

impl LoadedModel {
    /// Opens a model and, if one is named, an adapter. Without a model, the adapter's own note of
    /// its base is used.
    pub fn open(
        model: &ModelSettings,
        adapter: &AdapterSettings,
        data: &RowSettings,
        device: &Device,
    ) -> RunResult<Self> {
        let alpha = adapter.lora_alpha;
        let source = |path: &String| AdapterSource::open(path, alpha);
        let mut adapter = adapter.adapter.as_ref().map(source).transpose()?;
        let adapter_alpha = (adapter.as_ref()).and_then(|a| Some(a.config.lora()?.lora_alpha));
        let mut model = model.clone();
        if model.model.is_none() {
            let named = adapter.as_ref().and_then(|a| a.config.base_model());
            model.model = named.filter(|name| !name.is_empty()).map(str::to_owned);
        }
        let mut base = Base::open(&model)?;
        let tables = match &mut adapter {
            Some(adapter) => base.take_tables(adapter)?,
            None => Vec::new(),
        };
        if let Some(adapter) = &adapter {
            base.take_chat(adapter)?;
        }
        let head = existing_head(&base, data, adapter.as_ref())?;
        // An adapter that brings its head takes the place of the checkpoint's; that it brings all
        // of it is checked below.
        let brings_head = match &adapter {
            Some(adapter) => adapter.head(&base.config.model_type)?.is_some(),
            None => false,
        };
        let base = match brings_head {
            true => base.with_head_of_adapter(),
            false => base,
        };
        let adapter_notes = adapter.as_ref().and_then(|a| a.notes.as_ref());
        let labels_from = match (&data.labels, adapter_notes) {
            (Some(_), _) => LabelOrigin::Flag,
            (None, Some(_)) => LabelOrigin::Adapter,
            (None, None) => LabelOrigin::Head,
        };
        // What the adapter's notes say is no request: a model of fewer positions has its own limit.
        let noted = adapter_notes.map(|n| n.max_length.min(base.config.facts.max_positions));
        let are_blocks = data.long_rows == Some(LongRows::Blocks);
        let is_causal = head.task == Task::CausalLm;
        let default = match is_causal && (are_blocks || chat::format(&base, data)?.is_some()) {
            true => chat::MAX_LENGTH,
            false => DEFAULT_MAX_LENGTH,
        };
        let max_length = base.max_length_or(data.max_length.or(noted), default)?;
        let template = adapter_notes.and_then(|n| n.template.clone());
        let trained_over = adapter_notes.and_then(|n| n.base_format);
        let probe = base.probe(adapter_notes)?;
        let (mut loaded, report) = base.load(&head, 0, device)?;
        let mut notes = base.head.notes.clone();
        notes.extend(other_format(trained_over, device));
        notes.extend(tables);
        notes.extend(load_notes(&report));
        notes.extend(probe);
        let holders = match adapter {
            Some(adapter) => {
                attach(&base, &mut loaded, adapter, &mut notes)?;
                Holders::CheckpointAndAdapter
            }
            None => Holders::Checkpoint,
        };
        refuse_random(&loaded, &report, holders)?;
        Ok(Self {
            base,
            model: loaded,
            head,
            labels_from,
            max_length,
            template,
            adapter_alpha,
            notes,
        })
    }

    /// Reads labelled rows.
    ///
    /// # Errors
    /// A row cannot be used, or a batch of `batch_size` cannot be held.
    pub fn labelled_rows(
        &self,
        path: &str,
        data: &RowSettings,
        batch_size: usize,
    ) -> RunResult<Loaded> {
        let (base, head, device) = (&self.base, &self.head, self.model.device());
        let known = KnownLabels {
            names: head.labels.clone(),
            origin: self.labels_from,
        };
        let spec = load_spec(base, data, head.task, Some(&known), self.max_length)?;
        let rows = load_rows(path, &spec, base, device)?;
        check_pass(base, head, &rows.examples, batch_size, device)?;
        Ok(rows)
    }

    /// Measures the model on labelled rows.
    ///
    /// # Errors
    /// A row does not fit the model.
    pub fn evaluate(&self, rows: &Loaded, batch_size: usize) -> RunResult<Evaluation> {
        let pass = PassSettings {
            labels: &self.head.labels,
            batch_size,
            stop: None,
            progress: &|_, _| {},
        };
        let evaluation = evaluate(&self.model, &rows.examples, &pass)?;
        evaluation.ok_or_else(|| RunError::interrupted("stopped"))
    }

    /// Rows of texts that are not in a file; for token classification, words are parted by blanks.
    pub fn examples_of_texts(&self, texts: &[String], data: &RowSettings) -> RunResult<Loaded> {
        let mut spec = unlabelled(load_spec(
            &self.base,
            data,
            self.head.task,
            None,
            self.max_length,
        )?);
        let words = self.head.task == Task::TokenClassification;
        let row = |text: &String| match words {
            true => json!({ "tokens": text.split_whitespace().collect::<Vec<_>>() }),
            false => json!({ "text": text }),
        };
        let lines: Vec<String> = texts.iter().map(|text| row(text).to_string()).collect();
        let bytes = lines.join("\n").into_bytes();
        let table = Table::parse(
            Path::new("the texts given"),
            bytes,
            FileFormat::Jsonl,
            Header::Present,
        )?;
        spec.columns = ColumnSpec::default();
        let tokenizer = self.base.tokenizer.as_ref();
        let loaded = examples_from_table(&table, &spec, tokenizer.ok());
        loaded.map_err(|error| self.base.data_error(error))
    }
}

/// What to know where an adapter was trained over other weights than those it runs over.
fn other_format(trained_over: Option<BaseFormat>, device: &Device) -> Option<String> {
    let (trained, found) = (trained_over?, device.numerics().weights);
    (trained != found).then(|| {
        let (trained, found) = (trained.name(), found.name());
        format!("the adapter was trained over {trained} weights and mends what they lose; these are {found}, so that results are others")
    })
}

/// Attaches an adapter; `notes` then says no more what it brings.
fn attach(
    base: &Base,
    model: &mut Model,
    adapter: AdapterSource,
    notes: &mut Vec<String>,
) -> RunResult {
    base.check_adapter(&adapter, model.device())?;
    let place = adapter.tensors.path().to_owned();
    let named = adapter.config.base_model();
    let attached = model
        .attach_tensors(&adapter.config, adapter.tensors)
        .map_err(|error| base.misfit(error, named, &place))?;
    notes.extend(attached.notes.iter().cloned());
    // The head that was new without the adapter, or had another shape, is the adapter's.
    notes.retain(|note| !note.starts_with("new,"));
    for note in notes {
        if let Some(rest) = note.strip_prefix("started anew,") {
            *note = format!("the adapter's,{rest}");
        }
    }
    Ok(())
}

/// What may hold a model's values.
enum Holders {
    Checkpoint,
    CheckpointAndAdapter,
}

/// Values that neither the checkpoint nor the adapter holds would be random, and so would be every
/// prediction.
fn refuse_random(model: &Model, report: &LoadReport, holders: Holders) -> RunResult {
    let held = |name: &String| {
        let key = format!("base_model.model.{name}");
        model.trainables().iter().any(|(_, t)| t.name == key)
    };
    let random: Vec<_> = report.new.iter().filter(|name| !held(name)).collect();
    let Some(first) = random.first() else {
        return Ok(());
    };
    let more = match random.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more tensors"),
    };
    let (holder, hint) = match holders {
        Holders::CheckpointAndAdapter => (
            "neither the checkpoint nor the adapter holds",
            "train the adapter with these modules in `modules_to_save` (PEFT adds the head for `task_type` SEQ_CLS and TOKEN_CLS)",
        ),
        Holders::Checkpoint => (
            "the checkpoint does not hold",
            "pass --adapter with an adapter that holds them; `lowrank train` trains one",
        ),
    };
    let message = format!("{holder} `{first}`{more}: predictions would be random");
    Err(RunError::failure(message).hint(hint))
}
