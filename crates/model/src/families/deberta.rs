//! DeBERTa v1 (He et al. 2020): one projection for queries, keys and values, fused head by head,
//! with biases of its own, and layers for relative positions. All else is as in `deberta_v2`.
//! Source: transformers `modeling_deberta.py`.

use lowrank_engine::Var;
use lowrank_engine::ops::head_part::{HeadPart, head_part};

use crate::error::ModelError;
use crate::families::deberta_v2::{self, Classifier, DebertaConfig, Parts, Projections, rows_of};
use crate::families::{Architecture, Classes, Family, FamilyConfig, Network};
use crate::load::{LinearSpec, Loader, Naming};
use crate::modules::{Bias, Linear};
use crate::pass::Pass;

/// The registry's line.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "deberta",
        ..deberta_v2::FAMILY.naming
    },
    classes: Classes {
        sequence: "DebertaForSequenceClassification",
        tokens: Some("DebertaForTokenClassification"),
        causal_lm: None,
    },
    default_targets: &["in_proj"],
    read: |reader| Parts::read_v1(reader).with(Deberta),
    ..deberta_v2::FAMILY
};

#[derive(Debug)]
struct Deberta(DebertaConfig);

impl Architecture for Deberta {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        Classifier::<FusedProjections>::build(&self.0, config, loader)
    }
}

/// Parts of a head in the fused projection: query, key, value.
const PARTS: usize = 3;

#[derive(Clone, Copy)]
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
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (width, head_dim) = (config.facts.hidden_size, config.facts.head_dim);
        // Parameters of a module come before its children's.
        let mut bias = |name: &str| loader.bias(&format!("{path}.{name}"), width);
        let (q_bias, v_bias) = (bias("q_bias")?, bias("v_bias")?);
        let mut linear = |name: &str, out, has_bias| {
            let path = format!("{path}.{name}");
            loader.linear_of(LinearSpec {
                has_bias,
                ..loader.spec(&path, [width, out])
            })
        };
        let [c2p, p2c] = own.terms();
        Ok(FusedProjections {
            in_proj: linear("in_proj", PARTS * width, false)?,
            q_bias,
            v_bias,
            pos_proj: c2p.then(|| linear("pos_proj", width, false)).transpose()?,
            pos_q_proj: p2c.then(|| linear("pos_q_proj", width, true)).transpose()?,
            head_dim,
        })
    }

    fn content(&self, pass: &mut Pass<'_, '_>, x: Var, read: Option<&[usize]>) -> [Var; 3] {
        let fused = self.in_proj.forward(pass, x);
        let k = head_part(pass, &fused, self.part(1), None);
        let [q_bias, v_bias] = [self.q_bias, self.v_bias].map(|bias| bias.value(pass.modules));
        let v = head_part(pass, &fused, self.part(2), Some(v_bias));
        let read = rows_of(pass, &fused, read);
        drop(fused);
        let q = head_part(pass, &read, self.part(0), Some(q_bias));
        [q, k, v]
    }

    fn positions(&self, pass: &mut Pass<'_, '_>, table: Var) -> [Option<Var>; 2] {
        [self.pos_proj, self.pos_q_proj].map(|linear| Some(linear?.forward(pass, table.clone())))
    }
}
