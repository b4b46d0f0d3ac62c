//! A pretrained model in its directory: what it is before its weights are read, how they are read,
//! and what an adapter has to do with it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowrank_chat::Moment;
use lowrank_data::{
    DataError, NamedTemplate, Tokenizer, TokenizerError, TokenizerFamily, chat_templates,
};
use lowrank_engine::Device;
use lowrank_formats::{Checkpoint, FormatError, model_config_file};
use lowrank_model::{LoadOptions, LoadReport, Model, ModelConfig, ModelError, TokenTables};
use lowrank_train::base::BaseId;
use lowrank_train::config::{DEFAULT_MAX_LENGTH, OptimizationSettings, Task};
use lowrank_train::fingerprint;
use lowrank_train::trainer::OtherBase;

use crate::adapter::AdapterSource;
use crate::chat::{self, AdapterChat};
use crate::error::{RunError, RunResult};
use crate::fits::check_weights;
use crate::head::BaseHead;
use crate::hub::find_model;
use crate::notes::AdapterNotes;
use crate::settings::{ModelSettings, RowSettings};

/// An error of loading the model in `dir`, with the file that it is about.
pub fn load_error(error: ModelError, dir: &Path) -> RunError {
    let place = match error {
        ModelError::Weights { .. } => Checkpoint::open_model(dir).map(|c| c.path().to_owned()),
        _ => Ok(dir.to_owned()),
    };
    RunError::from(error).about(&place.unwrap_or_else(|_| dir.to_owned()))
}

/// A model, a directory or a GGUF file, with its configuration and tokenizer.
pub struct Base {
    /// As the user named it; written into adapters as the name of their base.
    pub name: String,
    /// The directory or file.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its tokenizer, or why there is none; rows that are tokenised already need none.
    pub tokenizer: Result<Tokenizer, TokenizerError>,
    /// What its tensors and its configuration say of the head.
    pub head: BaseHead,
    /// Tables of tokens that an adapter brings in the place of its own.
    tables: Option<TokenTables>,
    ignore_mismatched_sizes: bool,
    /// Whether the command has a flag to start a new head.
    starts_heads: bool,
    allow_other_base: bool,
    /// The chat template that an adapter brings, and how it was used.
    pub adapter_chat: Option<AdapterChat>,
    /// Its own chat templates, once they are asked for.
    chat_templates: OnceLock<Vec<NamedTemplate>>,
    /// What time it is for templates that ask: the same for all that is read.
    pub(crate) opened_at: Moment,
}

impl Base {
    /// Opens the directory or file; weights are not read yet.
    pub fn open(settings: &ModelSettings) -> RunResult<Self> {
        let dir = find_model(settings)?;
        let file = model_config_file(&dir);
        let config = ModelConfig::open(&dir).map_err(|e| RunError::from(e).about(&file))?;
        let family = TokenizerFamily::from_name(&config.model_type);
        let tokenizer = Tokenizer::of_model(&dir, family);
        let head = BaseHead::read(&dir, &config)?;
        Ok(Self {
            name: settings.model.clone().unwrap_or_default(),
            dir,
            config,
            tokenizer,
            head,
            tables: None,
            ignore_mismatched_sizes: false,
            starts_heads: false,
            allow_other_base: settings.allow_other_base.unwrap_or(false),
            adapter_chat: None,
            chat_templates: OnceLock::new(),
            opened_at: Moment::now(),
        })
    }

    /// The same for a command that may start a new head, and does so in the place of one of another
    /// shape where that is said.
    pub fn with_new_head(mut self, ignore_mismatched_sizes: Option<bool>) -> Self {
        self.starts_heads = true;
        self.ignore_mismatched_sizes = ignore_mismatched_sizes.unwrap_or(false);
        self
    }

    /// The same where the checkpoint's head gives way to that of an adapter.
    pub fn with_head_of_adapter(mut self) -> Self {
        self.ignore_mismatched_sizes = true;
        self
    }

    /// What was wrong with rows; where they need a tokenizer, why there is none, and what to do
    /// about that.
    pub fn data_error(&self, error: DataError) -> RunError {
        match (&error, &self.tokenizer) {
            (DataError::NoTokenizer { .. }, Err(reason)) => {
                // A folder whose file is broken needs no other file.
                let mend = "mend or replace that file, or give rows that are already tokenised (`input_ids`)";
                let hint = reason.hint().unwrap_or(mend.into());
                RunError::from(error).caused_by(Some(reason)).hint(hint)
            }
            _ => RunError::from(error),
        }
    }

    /// The chat templates of the model.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn chat_templates(&self) -> RunResult<&[NamedTemplate]> {
        if let Some(known) = self.chat_templates.get() {
            return Ok(known);
        }
        let found = chat_templates(&self.dir).map_err(|error| RunError::from_error(&error))?;
        Ok(self.chat_templates.get_or_init(|| found))
    }

    /// Takes the chat template that an adapter brings.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take_chat(&mut self, adapter: &AdapterSource) -> RunResult {
        let notes = adapter.notes.as_ref().and_then(|notes| notes.chat.clone());
        if let Some(dir) = &adapter.dir {
            self.adapter_chat = AdapterChat::read(dir, notes)?;
        }
        Ok(())
    }

    /// What is said where this model makes other tokens of texts or chats than the one that an
    /// adapter was trained on.
    ///
    /// # Errors
    /// The chat template cannot be read.
    pub fn probe(&self, notes: Option<&AdapterNotes>) -> RunResult<Vec<String>> {
        let then = notes.and_then(|notes| notes.probe.as_ref());
        let (Some(then), Ok(tokenizer)) = (then, &self.tokenizer) else {
            return Ok(Vec::new());
        };
        let format = match then.chat {
            Some(_) => chat::format(self, &RowSettings::of_language())?,
            None => None,
        };
        Ok(then.told_of(tokenizer, format.as_ref()))
    }

    /// Takes the tables of tokens that an adapter brings, and the tokenizer beside them. Returns
    /// what a user should know.
    pub fn take_tables(&mut self, adapter: &mut AdapterSource) -> RunResult<Vec<String>> {
        let Some(tables) = adapter.take_tables(&self.config)? else {
            return Ok(Vec::new());
        };
        let (rows, own) = (tables.rows(), self.config.facts.vocab_size);
        let names: Vec<String> = tables.names().map(|name| format!("`{name}`")).collect();
        let mut notes = vec![format!(
            "in the place of the model's {own} tokens, the adapter's {rows}: {}",
            names.join(", ")
        )];
        self.config.facts.vocab_size = rows;
        self.tables = Some(tables);
        let family = TokenizerFamily::from_name(&self.config.model_type);
        let beside = adapter
            .dir
            .as_deref()
            .map(|dir| Tokenizer::from_dir(dir, family));
        match beside {
            None | Some(Err(TokenizerError::NotFound { .. })) => {}
            Some(tokenizer) => {
                notes.push("the tokenizer is the adapter's too".to_owned());
                self.tokenizer = tokenizer;
            }
        }
        Ok(notes)
    }

    /// What an adapter or a run on this base notes of it; read on the device's threads.
    fn id(&self, device: &Device) -> RunResult<BaseId> {
        Ok(BaseId::of(&self.dir, device.threads())?)
    }

    /// SHA-256 of the weights' files, as older versions noted it.
    fn weights_hash(&self) -> RunResult<String> {
        let files = Checkpoint::open_model(&self.dir)?;
        Ok(fingerprint::of_files(files.files())?)
    }

    /// What to do where the base is another than a run's or an adapter's.
    pub fn other_base(&self) -> OtherBase {
        match self.allow_other_base {
            true => OtherBase::Allow,
            false => OtherBase::Refuse,
        }
    }

    /// Refuses an adapter whose notes name another base. Adapters of other programs name none.
    pub fn check_adapter(&self, adapter: &AdapterSource, device: &Device) -> RunResult {
        let Some(notes) = adapter.notes.as_ref().filter(|_| !self.allow_other_base) else {
            return Ok(());
        };
        let differences = match (&notes.base, &notes.base_sha256) {
            (Some(base), _) => base.differences(&self.id(device)?),
            (None, Some(hash)) if *hash != self.weights_hash()? => {
                vec!["weights: their files have another SHA-256".to_owned()]
            }
            (None, _) => Vec::new(),
        };
        if differences.is_empty() {
            return Ok(());
        }
        Err(RunError::failure(format!(
            "the adapter was trained on other weights or settings than those of `{}`\n  {}",
            self.name,
            differences.join("\n  ")
        ))
        .hint(format!(
            "{}; --allow-other-base uses it all the same, where the weights are the same in another type",
            match self.is_named(&notes.base_model) {
                true => format!("`{}` was changed since", notes.base_model),
                false => self.base_hint(Some(&notes.base_model)),
            }
        )))
    }

    /// The head to load.
    pub fn load_options(&self, head: &Head, seed: u64) -> LoadOptions {
        LoadOptions {
            task: head.task,
            num_labels: head.num_labels,
            seed,
            ignore_mismatched_sizes: self.ignore_mismatched_sizes,
        }
    }

    /// Reads the weights.
    pub fn load(&self, head: &Head, seed: u64, device: &Device) -> RunResult<(Model, LoadReport)> {
        check_weights(self, head, device)?;
        let options = self.load_options(head, seed);
        let (config, tables) = (self.config.clone(), self.tables.as_ref());
        let loaded = Model::load_with_tables(&self.dir, config, tables, &options, device);
        loaded.map_err(|error| self.explain(error))
    }

    /// The error with what can be done about it in a command that may start a new head.
    fn explain(&self, error: ModelError) -> RunError {
        let head_differs = matches!(
            error,
            ModelError::Weights {
                head_only: true,
                ..
            }
        );
        let error = load_error(error, &self.dir);
        if head_differs && self.starts_heads {
            return error.hint("the checkpoint's head was made for other labels; --labels names those, --ignore-mismatched-sizes starts a new head");
        }
        error
    }

    /// The model as shapes. A directory without weights, from which one can train from scratch, has
    /// all that it takes.
    pub fn shape(&self, head: &Head) -> RunResult<Model> {
        self.shape_in(head, &Device::dry())
    }

    /// The same on another dry device.
    pub fn shape_in(&self, head: &Head, dry: &Device) -> RunResult<Model> {
        let options = self.load_options(head, 0);
        let (config, tables) = (self.config.clone(), self.tables.as_ref());
        match Model::load_with_tables(&self.dir, config, tables, &options, dry) {
            Err(ModelError::Format(FormatError::NothingFound { .. })) => {
                Ok(Model::from_config(self.config.clone(), &options, dry)?)
            }
            loaded => Ok(loaded.map_err(|error| self.explain(error))?.0),
        }
    }

    /// Puts a run's dropout in the place of the configuration's own.
    pub fn set_dropouts(&mut self, settings: &OptimizationSettings) -> RunResult {
        if let Some(p) = settings.dropout {
            self.config.set_dropout(p)?;
        }
        if let Some(p) = settings.classifier_dropout {
            self.config.set_classifier_dropout(p)?;
        }
        Ok(())
    }

    /// The limit of tokens a row: what was asked for, if the model can take it.
    pub fn max_length(&self, asked: Option<usize>) -> RunResult<usize> {
        self.max_length_or(asked, DEFAULT_MAX_LENGTH)
    }

    /// The same with another limit where none was asked for.
    pub fn max_length_or(&self, asked: Option<usize>, default: usize) -> RunResult<usize> {
        let most = self.config.facts.max_positions;
        match asked {
            None => Ok(default.min(most)),
            Some(length) if length <= most => Ok(length),
            Some(length) => Err(RunError::usage(format!(
                "`max_length` is {length}, but the model has {most} positions"
            ))
            .hint(format!("pass --max-length {most} or less"))),
        }
    }

    /// Whether a new head may take the place of the checkpoint's.
    pub fn may_replace_head(&self) -> bool {
        self.ignore_mismatched_sizes
    }
}

/// What the head predicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The task.
    pub task: Task,
    /// Its outputs.
    pub num_labels: usize,
    /// Names of the outputs; none for regression.
    pub labels: Vec<String>,
}

/// What loading found that a user should know, one sentence each.
pub fn load_notes(report: &LoadReport) -> Vec<String> {
    let list = |names: &[String]| {
        let shown: Vec<_> = names.iter().take(4).map(|n| format!("`{n}`")).collect();
        let more = names.len().saturating_sub(4);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{}{more}", shown.join(", "))
    };
    let mut notes = Vec::new();
    if !report.left_out.is_empty() {
        notes.push(format!(
            "left out of the checkpoint's names: {}",
            list(&report.left_out)
        ));
    }
    if !report.new.is_empty() {
        notes.push(format!("new, not in the checkpoint: {}", list(&report.new)));
    }
    if !report.mismatched.is_empty() {
        notes.push(format!(
            "started anew, of another shape in the checkpoint: {}",
            list(&report.mismatched)
        ));
    }
    if !report.unused.is_empty() {
        notes.push(format!(
            "in the checkpoint, not used: {}",
            list(&report.unused)
        ));
    }
    notes
}
