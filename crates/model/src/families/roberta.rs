//! RoBERTa (Liu et al. 2019) and XLM-R: BERT's encoder with positions that start after the padding
//! index, no pooler, and a two-layer head. Source: transformers `modeling_roberta.py`.

use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::{Activation, Var};

use crate::error::ModelError;
use crate::families::bert::{self, Encoder, EncoderConfig, Rows};
use crate::families::{Architecture, Classes, Family, FamilyConfig, HeadTensors, Network};
use crate::load::{Loader, Naming, Presence};
use crate::modules::Linear;
use crate::pass::{Batch, LayerRange, Pass};

/// The registry's line for `roberta`.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "roberta",
        prefix: "roberta.",
        tokens: "roberta.embeddings.word_embeddings",
    },
    heads: HeadTensors {
        sequence: &["classifier.out_proj.weight", "classifier.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    classes: Classes {
        sequence: "RobertaForSequenceClassification",
        tokens: Some("RobertaForTokenClassification"),
        causal_lm: None,
    },
    // Positions start after the padding token's.
    read: |reader| bert::read(reader, 1, |pad| pad as usize + 1, RobertaConfig),
    ..bert::FAMILY
};

/// The registry's line for `xlm-roberta`: the same architecture and names.
pub const XLM_FAMILY: Family = Family {
    naming: Naming {
        model_type: "xlm-roberta",
        ..FAMILY.naming
    },
    classes: Classes {
        sequence: "XLMRobertaForSequenceClassification",
        tokens: Some("XLMRobertaForTokenClassification"),
        causal_lm: None,
    },
    ..FAMILY
};

#[derive(Debug)]
struct RobertaConfig(EncoderConfig);

impl Architecture for RobertaConfig {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let (width, pad_token_id) = (config.facts.hidden_size, self.0.pad_token_id);
        let encoder = Encoder::build("roberta.", config, &self.0, Some(pad_token_id), loader)?;
        let (task, labels) = (loader.task(), loader.num_labels());
        let mut linear = |path: &str, out| loader.linear(path, [width, out], Presence::NewIfAbsent);
        let head = match task.is_per_token() {
            true => Head::Token(linear("classifier", labels)?),
            false => Head::Sequence {
                dense: linear("classifier.dense", width)?,
                out_proj: linear("classifier.out_proj", labels)?,
            },
        };
        Ok(Box::new(Roberta {
            encoder,
            head,
            classifier_dropout: config.dropouts.before_classifier(),
            pad_token_id,
        }))
    }
}

/// RoBERTa with a classification head.
struct Roberta {
    encoder: Encoder,
    head: Head,
    classifier_dropout: f32,
    pad_token_id: u32,
}

#[derive(Clone, Copy)]
enum Head {
    /// One row a sequence: dense, tanh, out_proj.
    Sequence { dense: Linear, out_proj: Linear },
    /// One row a token.
    Token(Linear),
}

impl Roberta {
    /// Counts real tokens from the padding index on; a padding token inside a row has the padding
    /// index itself.
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
    fn hidden(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let rows = match self.head {
            Head::Token(_) => Rows::All,
            Head::Sequence { .. } => Rows::First,
        };
        (self.encoder).forward(pass, batch, &self.positions(batch), rows, range)
    }

    fn classify(&self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let p = self.classifier_dropout;
        let x = dropout(pass, x, p);
        match self.head {
            Head::Token(classifier) => classifier.logits(pass, x),
            Head::Sequence { dense, out_proj } => {
                let x = dense.forward_activation(pass, x, Activation::Tanh);
                let x = dropout(pass, x, p);
                out_proj.logits(pass, x)
            }
        }
    }
}
