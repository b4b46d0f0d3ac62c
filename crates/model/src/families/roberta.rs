//! RoBERTa (Liu et al. 2019) and XLM-R: BERT's encoder with positions that start after the padding index, no pooler, and
//! a two-layer head. Source: transformers `modeling_roberta.py`.

use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::{Activation, Tape, Var};
use lowrank_formats::ConfigReader;

use crate::config::Task;
use crate::error::ModelError;
use crate::families::bert::{self, BertConfig, Encoder, Rows};
use crate::families::{Family, Network};
use crate::loader::{Loader, Presence};
use crate::model::Batch;
use crate::modules::{Linear, ModuleMut, ModuleRef};
use crate::stored_head::HeadTensors;
use crate::stretch::Stretch;

/// The registry's line for `roberta`.
pub const FAMILY: Family = Family {
    model_type: "roberta",
    prefix: "roberta.",
    tokens: "roberta.embeddings.word_embeddings",
    heads: HeadTensors {
        sequence: &["classifier.out_proj.weight", "classifier.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    default_targets: &["query", "value"],
    default_saved: &[],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("RobertaForSequenceClassification")
        }
        Task::TokenClassification => Some("RobertaForTokenClassification"),
        Task::CausalLm => None,
    },
    facts: |reader| read_config(reader).facts(),
    fused: &[],
    dropouts: bert::DROPOUTS,
    ignored: bert::IGNORED,
    build: |config, task, num_labels, loader| {
        let config = read_config(&config.reader());
        Ok(Box::new(Roberta::build(&config, task, num_labels, loader)?))
    },
};

/// The registry's line for `xlm-roberta`: the same architecture and names.
pub const XLM_FAMILY: Family = Family {
    model_type: "xlm-roberta",
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("XLMRobertaForSequenceClassification")
        }
        Task::TokenClassification => Some("XLMRobertaForTokenClassification"),
        Task::CausalLm => None,
    },
    ..FAMILY
};

/// Positions start after the padding token's.
fn read_config(reader: &ConfigReader<'_>) -> BertConfig {
    BertConfig::read(reader, 1, |pad| pad as usize + 1)
}

/// RoBERTa with a classification head.
struct Roberta {
    encoder: Encoder,
    head: Head,
    classifier_dropout: f32,
    pad_token_id: u32,
}

enum Head {
    /// One row a sequence: dense, tanh, out_proj.
    Sequence(Box<SequenceHead>),
    /// One row a token.
    Token(Box<Linear>),
}

struct SequenceHead {
    dense: Linear,
    out_proj: Linear,
}

impl Roberta {
    fn build(
        config: &BertConfig,
        task: Task,
        num_labels: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let encoder = Encoder::build("roberta.", config, Some(config.pad_token_id), loader)?;
        let width = config.hidden_size;
        let mut linear = |path: &str, out| loader.linear(path, width, out, Presence::NewIfAbsent);
        let head = match task {
            Task::TokenClassification | Task::CausalLm => {
                Head::Token(Box::new(linear("classifier", num_labels)?))
            }
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                Head::Sequence(Box::new(SequenceHead {
                    dense: linear("classifier.dense", width)?,
                    out_proj: linear("classifier.out_proj", num_labels)?,
                }))
            }
        };
        let (classifier_dropout, pad_token_id) = (config.classifier_dropout, config.pad_token_id);
        Ok(Roberta {
            encoder,
            head,
            classifier_dropout,
            pad_token_id,
        })
    }

    /// Counts real tokens from the padding index on; a padding token inside a row has the padding index itself.
    /// Source: transformers `create_position_ids_from_input_ids`.
    fn positions(&self, batch: &Batch<'_>) -> Vec<u32> {
        let pad = self.pad_token_id;
        let mut positions = Vec::with_capacity(batch.input_ids.len());
        for range in batch.offsets.windows(2) {
            let mut next = pad;
            positions.extend(batch.input_ids[range[0]..range[1]].iter().map(|&id| {
                next += u32::from(id != pad);
                if id == pad { pad } else { next }
            }));
        }
        positions
    }
}

impl Network for Roberta {
    fn logits<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, stretch: Stretch) -> Var {
        let positions = self.positions(batch);
        let p = self.classifier_dropout;
        match &self.head {
            Head::Token(classifier) => {
                let x = self
                    .encoder
                    .forward(tape, batch, &positions, Rows::All, stretch);
                let x = dropout(tape, x, p);
                classifier.logits(tape, x)
            }
            Head::Sequence(head) => {
                let x = self
                    .encoder
                    .forward(tape, batch, &positions, Rows::First, stretch);
                let x = dropout(tape, x, p);
                let x = head.dense.forward_activation(tape, x, Activation::Tanh);
                let x = dropout(tape, x, p);
                head.out_proj.logits(tape, x)
            }
        }
    }

    fn prefix<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, layers: usize) -> Var {
        let positions = self.positions(batch);
        self.encoder.prefix(tape, batch, &positions, layers)
    }

    fn modules(&self) -> Vec<ModuleRef<'_>> {
        let mut modules = self.encoder.modules();
        match &self.head {
            Head::Token(classifier) => modules.push(ModuleRef::Linear(classifier)),
            Head::Sequence(head) => {
                modules.extend([&head.dense, &head.out_proj].map(ModuleRef::Linear));
            }
        }
        modules
    }

    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let mut modules = self.encoder.modules_mut();
        match &mut self.head {
            Head::Token(classifier) => modules.push(ModuleMut::Linear(classifier)),
            Head::Sequence(head) => {
                modules.extend([&mut head.dense, &mut head.out_proj].map(ModuleMut::Linear));
            }
        }
        modules
    }
}
