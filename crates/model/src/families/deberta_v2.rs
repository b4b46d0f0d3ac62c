//! DeBERTa-v2 and -v3 (He et al. 2020, 2021) and mDeBERTa: attention with tables of relative
//! positions, shared projections or own, a convolution after the first layer, a context pooler.
//! Source: transformers `modeling_deberta_v2.py`. D = hidden size, M = tokens of the batch, B =
//! sequences. What DeBERTa v1 does alike is in `encoder` and `config`.

mod config;
mod encoder;
mod positions;

use lowrank_engine::Var;

use crate::error::ModelError;
use crate::families::{Architecture, Classes, Family, FamilyConfig, HeadTensors, Network};
use crate::load::{Loader, Naming, Presence};
use crate::modules::Linear;
use crate::pass::Pass;
pub(crate) use config::{DebertaConfig, Parts};
pub(crate) use encoder::{Classifier, Projections, rows_of};

/// The registry's line.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "deberta-v2",
        prefix: "deberta.",
        tokens: "deberta.embeddings.word_embeddings",
    },
    heads: HeadTensors {
        sequence: &["classifier.weight", "pooler.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    classes: Classes {
        sequence: "DebertaV2ForSequenceClassification",
        tokens: Some("DebertaV2ForTokenClassification"),
        causal_lm: None,
    },
    default_targets: &["query_proj", "value_proj"],
    // Pretrained checkpoints have no pooler, and PEFT forgets the new one.
    default_saved: &["pooler"],
    fused: &[],
    ignored: &["position_ids"],
    read: |reader| Parts::read_v2(reader).with(DebertaV2),
};

#[derive(Debug)]
struct DebertaV2(DebertaConfig);

impl Architecture for DebertaV2 {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        Classifier::<SeparateProjections>::build(&self.0, config, loader)
    }
}

/// Queries, keys and values from a layer each; positions through the same layers, or through layers
/// of their own.
#[derive(Clone, Copy)]
struct SeparateProjections {
    query_proj: Linear,
    key_proj: Linear,
    value_proj: Linear,
    /// Of relative positions to keys, where they are not shared.
    pos_key_proj: Option<Linear>,
    /// Of relative positions to queries, where they are not shared.
    pos_query_proj: Option<Linear>,
    /// Whether there are scores of content to position, and of position to content.
    terms: [bool; 2],
}

impl Projections for SeparateProjections {
    fn build(
        path: &str,
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let width = config.facts.hidden_size;
        let mut linear = |name: &str| {
            loader.linear(
                &format!("{path}.{name}"),
                [width, width],
                Presence::Required,
            )
        };
        let terms = own.terms();
        let apart = terms.map(|term| term && !own.share_att_key);
        Ok(SeparateProjections {
            query_proj: linear("query_proj")?,
            key_proj: linear("key_proj")?,
            value_proj: linear("value_proj")?,
            pos_key_proj: apart[0].then(|| linear("pos_key_proj")).transpose()?,
            pos_query_proj: apart[1].then(|| linear("pos_query_proj")).transpose()?,
            terms,
        })
    }

    fn content(&self, pass: &mut Pass<'_, '_>, x: Var, read: Option<&[usize]>) -> [Var; 3] {
        let x_read = rows_of(pass, &x, read);
        [
            self.query_proj.forward(pass, x_read),
            self.key_proj.forward(pass, x.clone()),
            self.value_proj.forward(pass, x),
        ]
    }

    fn positions(&self, pass: &mut Pass<'_, '_>, table: Var) -> [Option<Var>; 2] {
        let keys = self.pos_key_proj.unwrap_or(self.key_proj);
        let queries = self.pos_query_proj.unwrap_or(self.query_proj);
        // Shared layers have just been used for the tokens, with other dropout masks.
        pass.second_use(|pass| {
            [
                self.terms[0].then(|| keys.forward(pass, table.clone())),
                self.terms[1].then(|| queries.forward(pass, table)),
            ]
        })
    }
}
