//! What several commands do first: open a model directory, choose the device, find an adapter and what it says about its
//! labels, read rows.

use std::path::{Path, PathBuf};

use lowrank_data::{
    BadRows, ColumnSpec, DEFAULT_MAX_BAD_ROWS, DataError, Header, LabelMap, LabelNeed, LabelOrigin,
    LoadSpec, Loaded, Table, Template, TemplateError, Tokenizer, TokenizerError, TokenizerFamily,
    examples_from_table, read_table,
};
use lowrank_engine::{DType, Device, Isa};
use lowrank_formats::files;
use lowrank_formats::peft::{AdapterFile, KEY_PREFIX, LoraConfig, Loralib};
use lowrank_formats::{Checkpoint, FormatError};
use lowrank_model::{
    LoadOptions, LoadReport, Model, ModelConfig, ModelError, StoredHead, TokenTables,
};
use lowrank_train::base::BaseId;
use lowrank_train::config::{DataSettings, LARGEST_THREADS, OptimizationSettings, TaskKind};
use lowrank_train::fingerprint;
use lowrank_train::trainer::OtherBase;

use crate::args::common::NewHeadArgs;
use crate::args::{CommonArgs, DataArgs, ModelArgs, PrecisionArg};
use crate::errors::{CliError, CliResult};
use crate::fits::check_weights;
use crate::head::BaseHead;
use crate::notes::AdapterNotes;
use crate::output;
use crate::places;
use crate::source::find_model;

/// An error of loading the model in `dir`, with the file that it is about.
pub fn load_error(error: ModelError, dir: &Path) -> CliError {
    let place = match error {
        ModelError::Weights { .. } => Checkpoint::open_dir(dir).map(|c| c.path().to_owned()),
        _ => Ok(dir.to_owned()),
    };
    CliError::from(error).about(&place.unwrap_or_else(|_| dir.to_owned()))
}

/// Rows are cut to this many tokens unless told otherwise.
pub const DEFAULT_MAX_LENGTH: usize = 128;

/// A model directory with its configuration and tokenizer.
pub struct Base {
    /// As the user named it; written into adapters as the name of their base.
    pub name: String,
    /// Where it is.
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
}

impl Base {
    /// Opens the directory; weights are not read yet.
    pub fn open(args: &ModelArgs) -> CliResult<Self> {
        let dir = find_model(args)?;
        let file = dir.join("config.json");
        let config = ModelConfig::read(&file).map_err(|e| CliError::from(e).about(&file))?;
        let family = TokenizerFamily::from_name(&config.model_type);
        let tokenizer = Tokenizer::from_dir(&dir, family);
        let head = BaseHead::read(&dir, &config)?;
        Ok(Self {
            name: args.model.clone().unwrap_or_default(),
            dir,
            config,
            tokenizer,
            head,
            tables: None,
            ignore_mismatched_sizes: false,
            starts_heads: false,
            allow_other_base: args.allow_other_base.unwrap_or(false),
        })
    }

    /// The same for a command that may start a new head, and does so in the place of one of another shape where that is said.
    pub fn with_new_head(mut self, flags: &NewHeadArgs) -> Self {
        self.starts_heads = true;
        self.ignore_mismatched_sizes = flags.ignore_mismatched_sizes.unwrap_or(false);
        self
    }

    /// The same where the checkpoint's head gives way to that of an adapter.
    pub fn with_head_of_adapter(mut self) -> Self {
        self.ignore_mismatched_sizes = true;
        self
    }

    /// What was wrong with rows; where they need a tokenizer, why there is none, and what to do about that.
    pub fn data_error(&self, error: DataError) -> CliError {
        match (&error, &self.tokenizer) {
            (DataError::NoTokenizer { .. }, Err(reason)) => {
                // A folder whose file is broken needs no other file.
                let mend = "mend or replace that file, or give rows that are already tokenised (`input_ids`)";
                let hint = reason.hint().unwrap_or(mend.into());
                CliError::from(error).caused_by(Some(reason)).hint(hint)
            }
            _ => CliError::from(error),
        }
    }

    /// Takes the tables of tokens that an adapter brings, and the tokenizer beside them. Returns what a user should know.
    pub fn take_tables(&mut self, adapter: &mut AdapterSource) -> CliResult<Vec<String>> {
        let Some(tables) = adapter.take_tables(&self.config)? else {
            return Ok(Vec::new());
        };
        let (rows, own) = (tables.rows(), self.config.facts.vocab_size);
        let names: Vec<String> = tables.names().map(|name| format!("`{name}`")).collect();
        let mut notes = vec![format!(
            "in the place of the model's {own} tokens, the adapter's {rows}: {}",
            names.join(", ")
        )];
        self.config.set_vocab_size(rows)?;
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
    fn id(&self, device: &Device) -> CliResult<BaseId> {
        Ok(BaseId::of(&self.dir, device.threads())?)
    }

    /// SHA-256 of the weights' files, as older versions noted it.
    fn weights_hash(&self) -> CliResult<String> {
        let files = Checkpoint::open_dir(&self.dir)?;
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
    pub fn check_adapter(&self, adapter: &AdapterSource, device: &Device) -> CliResult {
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
        Err(CliError::failure(format!(
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
            task: head.task.into(),
            num_labels: head.num_labels,
            seed,
            ignore_mismatched_sizes: self.ignore_mismatched_sizes,
        }
    }

    /// Reads the weights.
    pub fn load(&self, head: &Head, seed: u64, device: &Device) -> CliResult<(Model, LoadReport)> {
        check_weights(self, head, device)?;
        let options = self.load_options(head, seed);
        let (config, tables) = (self.config.clone(), self.tables.as_ref());
        let loaded = Model::load_with_tables(&self.dir, config, tables, &options, device);
        loaded.map_err(|error| self.explain(error))
    }

    /// The error with what can be done about it in a command that may start a new head.
    fn explain(&self, error: ModelError) -> CliError {
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

    /// The model as shapes. A directory without weights, from which one can train from scratch, has all that it takes.
    pub fn shape(&self, head: &Head) -> CliResult<Model> {
        self.shape_in(head, &Device::dry())
    }

    /// The same on a dry device of another precision.
    pub fn shape_in(&self, head: &Head, dry: &Device) -> CliResult<Model> {
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
    pub fn set_dropouts(&mut self, settings: &OptimizationSettings) -> CliResult {
        if let Some(p) = settings.dropout {
            self.config.set_dropout(p)?;
        }
        if let Some(p) = settings.classifier_dropout {
            self.config.set_classifier_dropout(p)?;
        }
        Ok(())
    }

    /// The limit of tokens a row: what was asked for, if the model can take it.
    pub fn max_length(&self, asked: Option<usize>) -> CliResult<usize> {
        let most = self.config.facts.max_positions;
        match asked {
            None => Ok(DEFAULT_MAX_LENGTH.min(most)),
            Some(length) if length <= most => Ok(length),
            Some(length) => Err(CliError::usage(format!(
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
    pub task: TaskKind,
    /// Its outputs.
    pub num_labels: usize,
    /// Names of the outputs; none for regression.
    pub labels: Vec<String>,
}

/// The processor with the threads asked for. `LOWRANK_ISA` chooses another instruction set than the best, for comparisons.
pub fn device(common: &CommonArgs, precision: PrecisionArg) -> CliResult<Device> {
    let isa = instruction_set()?;
    let threads = common.threads;
    if let Some(n) = threads.filter(|n| !(1..=LARGEST_THREADS).contains(n)) {
        return Err(CliError::usage(format!(
            "`threads` is {n}, expected from 1 to {LARGEST_THREADS}"
        )));
    }
    let threads = threads.unwrap_or(0);
    Device::cpu_in(precision_on(isa, precision), isa, threads).map_err(|error| {
        CliError::failure("cannot start threads, or reserve address space for tensors")
            .caused_by(Some(&error))
            .hint(
                "pass --threads 1, or raise the limits of this process (`ulimit -v`, `ulimit -u`)",
            )
    })
}

/// The storage that a choice means on an instruction set.
fn precision_on(isa: Isa, precision: PrecisionArg) -> DType {
    match precision {
        PrecisionArg::Auto if isa.multiplies_bf16() => DType::Bf16,
        PrecisionArg::Auto | PrecisionArg::F32 => DType::F32,
        PrecisionArg::Bf16 => DType::Bf16,
    }
}

/// The device that counts what [`device`] would use.
pub fn dry_device(precision: PrecisionArg) -> CliResult<Device> {
    Ok(Device::dry_in(precision_on(instruction_set()?, precision)))
}

fn instruction_set() -> CliResult<Isa> {
    match std::env::var("LOWRANK_ISA") {
        Err(_) => Ok(Isa::best()),
        Ok(name) => {
            let found = Isa::from_name(&name).filter(|isa| isa.is_available());
            found.ok_or_else(|| {
                let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
                CliError::usage(format!(
                    "LOWRANK_ISA is `{name}`, expected one of {}",
                    names.join(", ")
                ))
            })
        }
    }
}

/// The template that a language model's rows were laid out by.
pub fn template_of(data: &DataSettings) -> Option<String> {
    (data.task == TaskKind::CausalLm).then(|| {
        let default = || Template::default().to_string();
        data.template.clone().unwrap_or_else(default)
    })
}

/// An adapter on disk.
pub struct AdapterSource {
    /// Its configuration.
    pub config: LoraConfig,
    /// Its tensors.
    pub tensors: AdapterFile,
    /// Our notes, where there are some.
    pub notes: Option<AdapterNotes>,
    /// Its folder; none for a loralib file.
    pub dir: Option<PathBuf>,
}

impl AdapterSource {
    /// Opens a PEFT directory, a run, a checkpoint of a run, or a loralib file (whose alpha is `alpha`, as it holds none).
    pub fn open(path: &str, alpha: Option<f64>) -> CliResult<Self> {
        let given = Path::new(path);
        let in_run = given.join("adapter");
        let dir = if !files::is_file(&given.join("adapter_config.json")) && files::is_dir(&in_run) {
            in_run
        } else {
            given.to_owned()
        };
        if files::is_dir(&dir) {
            let config = LoraConfig::read(&dir).map_err(|error| match error {
                FormatError::NothingFound { .. } => places::no_adapter_in(given),
                error => error.into(),
            })?;
            return Ok(Self {
                config,
                tensors: AdapterFile::read(&dir)?,
                notes: AdapterNotes::read(&dir)?,
                dir: Some(dir),
            });
        }
        if !files::is_file(&dir) {
            return Err(CliError::usage(format!("there is no adapter `{path}`"))
                .hint("pass --adapter with a directory that holds adapter_config.json, a run, or a loralib .bin file"));
        }
        let checkpoint = Checkpoint::open_file(&dir)?;
        if !Loralib::is_loralib(&checkpoint) {
            return Err(
                CliError::usage(format!("`{path}` is not a loralib checkpoint"))
                    .hint("pass --adapter with the directory that holds adapter_config.json"),
            );
        }
        let loralib = Loralib::read(&dir)?;
        let alpha = alpha.ok_or_else(|| {
            CliError::usage(format!(
                "`{path}` is a loralib checkpoint, which does not hold its alpha"
            ))
            .hint("pass --lora-alpha with the value it was trained with")
        })?;
        Ok(Self {
            config: loralib.config(alpha),
            tensors: loralib.tensors,
            notes: None,
            dir: None,
        })
    }

    /// Takes the tables of tokens out of the tensors, if the adapter brings some.
    pub fn take_tables(&mut self, config: &ModelConfig) -> CliResult<Option<TokenTables>> {
        let tensors = std::mem::take(&mut self.tensors);
        let place = tensors.path().to_owned();
        let (tensors, tables) = TokenTables::take(tensors, &self.config, config)
            .map_err(|error| CliError::from(error).about(&place))?;
        self.tensors = tensors;
        Ok(tables)
    }

    /// The head among the tensors, as one of a model of this type.
    pub fn head(&self, model_type: &str) -> CliResult<Option<StoredHead>> {
        let shape = |name: &str| {
            let tensor = self.tensors.get(&format!("{KEY_PREFIX}{name}"))?;
            Some(tensor.shape.clone())
        };
        Ok(StoredHead::find_among(model_type, &shape)?)
    }
}

/// Names of classes, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLabels {
    /// The names in order.
    pub names: Vec<String>,
    /// Who named them.
    pub origin: LabelOrigin,
}

/// How a file of rows is read.
pub fn load_spec(
    base: &Base,
    data: &DataArgs,
    task: TaskKind,
    labels: Option<&KnownLabels>,
    max_length: usize,
) -> CliResult<LoadSpec> {
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
                CliError::usage(error.to_string())
                    .hint("an example: --template 'Question: {prompt} Answer: {completion}{eos}'")
            })?,
        },
        vocab_size: Some(base.config.facts.vocab_size),
        type_vocab_size: Some(base.config.facts.type_vocab_size),
        ..LoadSpec::new(task.into())
    })
}

/// Whether a table begins with the names of its columns.
pub fn header(no_header: Option<bool>) -> Header {
    match no_header {
        Some(true) => Header::Absent,
        Some(false) | None => Header::Present,
    }
}

/// The share of rows that may be left out.
fn max_bad_rows(bad_rows: Option<BadRows>, share: Option<f64>) -> CliResult<f64> {
    match share {
        Some(share) if !(0.0..=1.0).contains(&share) => Err(CliError::usage(format!(
            "`max_bad_rows` is {share}, expected a share from 0 to 1"
        ))),
        Some(_) if bad_rows != Some(BadRows::Skip) => Err(CliError::usage(
            "`max_bad_rows` is a setting of `bad_rows: skip`",
        )
        .hint("pass --bad-rows skip too")),
        share => Ok(share.unwrap_or(DEFAULT_MAX_BAD_ROWS)),
    }
}

/// Reads a file of rows on the device's threads.
pub fn load_rows(path: &str, spec: &LoadSpec, base: &Base, device: &Device) -> CliResult<Loaded> {
    let table = device.install(|| read_table(Path::new(path), spec))?;
    rows_of(&table, spec, base, device)
}

/// The examples of rows that were read.
pub fn rows_of(table: &Table, spec: &LoadSpec, base: &Base, device: &Device) -> CliResult<Loaded> {
    let tokenizer = base.tokenizer.as_ref();
    let loaded = device.install(|| examples_from_table(table, spec, tokenizer.ok()));
    loaded.map_err(|error| base.data_error(error))
}

/// Says on standard error what a user should know of rows that were read.
pub fn say_notes(path: &str, loaded: &Loaded, common: &CommonArgs) {
    if !common.is_quiet() {
        let notes = loaded.report.notes.iter();
        notes.for_each(|note| output::note(format_args!("{path}: {note}")));
    }
}

/// The same without needing labels.
pub fn unlabelled(spec: LoadSpec) -> LoadSpec {
    LoadSpec {
        need: LabelNeed::Ignored,
        ..spec
    }
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
