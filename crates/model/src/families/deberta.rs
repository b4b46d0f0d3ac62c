//! DeBERTa v1 (He et al. 2020): one projection for queries, keys and values, fused head by head, with biases of its own, and
//! layers for relative positions. All else is as in `deberta_v2`. Source: transformers `modeling_deberta.py`.

use lowrank_engine::ops::head_part::{HeadPart, head_part};
use lowrank_engine::{Tape, Var};

use crate::config::Task;
use crate::error::ModelError;
use crate::families::Family;
use crate::families::deberta_v2::{Classifier, DROPOUTS, DebertaConfig, Projections, rows_of};
use crate::loader::{LinearSpec, Loader, Presence};
use crate::modules::{Bias, Layout, Linear, ModuleMut, ModuleRef};
use crate::stored_head::HeadTensors;

/// The registry's line.
pub const FAMILY: Family = Family {
    model_type: "deberta",
    prefix: "deberta.",
    tokens: "deberta.embeddings.word_embeddings",
    heads: HeadTensors {
        sequence: &["classifier.weight", "pooler.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    default_targets: &["in_proj"],
    // Pretrained checkpoints have no pooler, and PEFT forgets the new one.
    default_saved: &["pooler"],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("DebertaForSequenceClassification")
        }
        Task::TokenClassification => Some("DebertaForTokenClassification"),
        Task::CausalLm => None,
    },
    facts: |reader| DebertaConfig::read_v1(reader).facts(),
    fused: &[],
    dropouts: DROPOUTS,
    ignored: &["position_ids"],
    build: |config, task, num_labels, loader| {
        let config = DebertaConfig::read_v1(&config.reader());
        Ok(Box::new(Classifier::<FusedProjections>::build(
            &config, task, num_labels, loader,
        )?))
    },
};

/// Parts of a head in the fused projection: query, key, value.
const PARTS: usize = 3;

struct FusedProjections {
    in_proj: Linear,
    q_bias: Bias,
    v_bias: Bias,
    /// Of relative positions to keys.
    pos_proj: Option<Linear>,
    /// Of relative positions to queries.
    pos_q_proj: Option<Linear>,
    head_dim: usize,
}

impl FusedProjections {
    fn part(&self, part: usize) -> HeadPart {
        HeadPart {
            head_dim: self.head_dim,
            parts: PARTS,
            part,
        }
    }
}

impl Projections for FusedProjections {
    fn build(
        path: &str,
        config: &DebertaConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let mut linear = |name: &str, out_features, has_bias| {
            loader.linear_of(LinearSpec {
                path: &format!("{path}.{name}"),
                in_features: width,
                out_features,
                presence: Presence::Required,
                has_bias,
                layout: Layout::Linear,
                std: config.initializer_range,
            })
        };
        let [c2p, p2c] = config.terms();
        let in_proj = linear("in_proj", PARTS * width, false)?;
        let pos_proj = c2p.then(|| linear("pos_proj", width, false)).transpose()?;
        let pos_q_proj = p2c.then(|| linear("pos_q_proj", width, true)).transpose()?;
        let mut bias = |name: &str| loader.bias(&format!("{path}.{name}"), width);
        Ok(FusedProjections {
            in_proj,
            q_bias: bias("q_bias")?,
            v_bias: bias("v_bias")?,
            pos_proj,
            pos_q_proj,
            head_dim: config.head_dim(),
        })
    }

    fn content<'m>(&'m self, tape: &mut Tape<'m>, x: Var, read: Option<&[usize]>) -> [Var; 3] {
        let fused = self.in_proj.forward(tape, x);
        let k = head_part(tape, &fused, self.part(1), None);
        let v = head_part(tape, &fused, self.part(2), Some(&self.v_bias.value));
        let read = rows_of(tape, &fused, read);
        drop(fused);
        let q = head_part(tape, &read, self.part(0), Some(&self.q_bias.value));
        [q, k, v]
    }

    fn positions<'m>(&'m self, tape: &mut Tape<'m>, table: Var) -> [Option<Var>; 2] {
        let mut of = |linear: &'m Option<Linear>| {
            let linear = linear.as_ref()?;
            Some(linear.forward(tape, table.clone()))
        };
        [of(&self.pos_proj), of(&self.pos_q_proj)]
    }

    // Parameters of a module come before its children's.
    fn modules(&self) -> Vec<ModuleRef<'_>> {
        let biases = [&self.q_bias, &self.v_bias].into_iter();
        let linears = [&self.in_proj].into_iter();
        let linears = linears.chain(&self.pos_proj).chain(&self.pos_q_proj);
        let biases = biases.map(ModuleRef::Bias);
        biases.chain(linears.map(ModuleRef::Linear)).collect()
    }

    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let biases = [&mut self.q_bias, &mut self.v_bias].into_iter();
        let linears = [&mut self.in_proj].into_iter();
        let linears = linears.chain(&mut self.pos_proj);
        let linears = linears.chain(&mut self.pos_q_proj);
        let biases = biases.map(ModuleMut::Bias);
        biases.chain(linears.map(ModuleMut::Linear)).collect()
    }
}
