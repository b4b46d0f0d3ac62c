//! DeBERTa-v2 and -v3 (He et al. 2020, 2021) and mDeBERTa: attention with tables of relative positions, shared projections
//! or own, a convolution after the first layer, a context pooler. Source: transformers `modeling_deberta_v2.py`.
//! D = hidden size, M = tokens of the batch, B = sequences. What DeBERTa v1 does alike is in `encoder` and `config`.

mod config;
mod encoder;
mod positions;

use lowrank_engine::{Tape, Var};

use crate::config::Task;
use crate::error::ModelError;
use crate::families::Family;
use crate::loader::{Loader, Presence};
use crate::modules::{Linear, ModuleMut, ModuleRef};
use crate::stored_head::HeadTensors;
pub(crate) use config::{DROPOUTS, DebertaConfig};
pub(crate) use encoder::{Classifier, Projections, rows_of};

/// The registry's line.
pub const FAMILY: Family = Family {
    model_type: "deberta-v2",
    prefix: "deberta.",
    tokens: "deberta.embeddings.word_embeddings",
    heads: HeadTensors {
        sequence: &["classifier.weight", "pooler.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    default_targets: &["query_proj", "value_proj"],
    // Pretrained checkpoints have no pooler, and PEFT forgets the new one.
    default_saved: &["pooler"],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("DebertaV2ForSequenceClassification")
        }
        Task::TokenClassification => Some("DebertaV2ForTokenClassification"),
        Task::CausalLm => None,
    },
    facts: |reader| DebertaConfig::read_v2(reader).facts(),
    fused: &[],
    dropouts: DROPOUTS,
    ignored: &["position_ids"],
    build: |config, task, num_labels, loader| {
        let config = DebertaConfig::read_v2(&config.reader());
        Ok(Box::new(Classifier::<SeparateProjections>::build(
            &config, task, num_labels, loader,
        )?))
    },
};

/// Queries, keys and values from a layer each; positions through the same layers, or through layers of their own.
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
        config: &DebertaConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let mut linear =
            |name: &str| loader.linear(&format!("{path}.{name}"), width, width, Presence::Required);
        let terms = config.terms();
        let own = terms.map(|term| term && !config.share_att_key);
        Ok(SeparateProjections {
            query_proj: linear("query_proj")?,
            key_proj: linear("key_proj")?,
            value_proj: linear("value_proj")?,
            pos_key_proj: own[0].then(|| linear("pos_key_proj")).transpose()?,
            pos_query_proj: own[1].then(|| linear("pos_query_proj")).transpose()?,
            terms,
        })
    }

    fn content<'m>(&'m self, tape: &mut Tape<'m>, x: Var, read: Option<&[usize]>) -> [Var; 3] {
        let x_read = rows_of(tape, &x, read);
        [
            self.query_proj.forward(tape, x_read),
            self.key_proj.forward(tape, x.clone()),
            self.value_proj.forward(tape, x),
        ]
    }

    fn positions<'m>(&'m self, tape: &mut Tape<'m>, table: Var) -> [Option<Var>; 2] {
        let keys = self.pos_key_proj.as_ref().unwrap_or(&self.key_proj);
        let queries = self.pos_query_proj.as_ref().unwrap_or(&self.query_proj);
        // Shared layers have just been used for the tokens, with other dropout masks.
        tape.second_use(|tape| {
            [
                self.terms[0].then(|| keys.forward(tape, table.clone())),
                self.terms[1].then(|| queries.forward(tape, table)),
            ]
        })
    }

    fn modules(&self) -> Vec<ModuleRef<'_>> {
        let all = [&self.query_proj, &self.key_proj, &self.value_proj].into_iter();
        let all = all.chain(&self.pos_key_proj).chain(&self.pos_query_proj);
        all.map(ModuleRef::Linear).collect()
    }

    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let all = [
            &mut self.query_proj,
            &mut self.key_proj,
            &mut self.value_proj,
        ];
        let all = all.into_iter().chain(&mut self.pos_key_proj);
        let all = all.chain(&mut self.pos_query_proj);
        all.map(ModuleMut::Linear).collect()
    }
}
