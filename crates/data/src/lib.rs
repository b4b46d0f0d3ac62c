//! From data files to padding-free batches: rows (JSONL, CSV, TSV, Parquet) → examples → token ids
//! → batches, with an order of rows that is stable for ever and a cursor into it. Stands alone:
//! knows nothing of models and devices.
//!
//! All outside input is checked here once: what comes out of [`load_examples`] holds only ids and
//! labels in range.
//!
//! ```no_run
//! use lowrank_data::{Batching, Cursor, LoadSpec, Order, PackedBatch};
//! use lowrank_data::{Task, Tokenizer, load_examples};
//! use std::path::Path;
//!
//! let tokenizer = Tokenizer::from_dir(Path::new("model"), None)?;
//! let mut spec = LoadSpec::new(Task::SingleLabel);
//! spec.max_length = Some(128);
//! let train = load_examples(Path::new("train.tsv"), &spec, Some(&tokenizer))?;
//! let order = Order { seed: 1, shuffle: true };
//! let mut batching = Batching::new(order, train.examples.len(), 32, 1);
//! for rows in batching.step(Cursor::default()) {
//!     let batch = PackedBatch::from_rows(&train.examples, rows);
//!     assert_eq!(batch.offsets.len(), rows.len() + 1);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod check;

mod batch;
mod columns;
mod error;
mod labels;
mod load;
pub mod nlg;
mod order;
mod panics;
mod rows;
mod tokenizer;

pub use batch::{BatchLabels, Batching, PackedBatch, Padding, batches, pack};
pub use columns::{ColumnSpec, Columns, LabelColumns, NO_COLUMN, PromptColumns, TextColumns};
pub use error::{
    ColumnRole, DataError, FileProblem, LabelMapError, MAX_FAULTS_SHOWN, Naming, RowFault,
    RowFaultKind, TokenizerError,
};
pub use labels::{
    ClassCount, IGNORE_INDEX, Label, LabelBalance, LabelLayout, LabelMap, LabelOddity, LabelOrigin,
    LabelSummary, Task, UnlabelledRows,
};
pub use load::{
    AskedChat, BadRows, ChatFormat, ChatReport, ChatUse, Completed, DEFAULT_MAX_BAD_ROWS, DataForm,
    Example, LabelNeed, LoadReport, LoadSpec, Loaded, LongRows, Prompt, TaskGuess, Template,
    TemplateError, asked_chats_of, completed_of, examples_from_table, guess_task, load_examples,
    prompts_of, read_table, reads_chats, words_of,
};
pub use lowrank_chat::LossOn;
pub use nlg::{NlgFormat, PromptRow};
pub use order::{Cursor, Order};
pub use rows::{Cell, FileFormat, Header, Row, Table};
pub use tokenizer::{
    CHAT_TEMPLATE_FILE, Encoded, EncodedSpans, EncodedWords, NamedTemplate, PlainSpans, Span,
    Tokenizer, TokenizerFamily, chat_templates,
};
