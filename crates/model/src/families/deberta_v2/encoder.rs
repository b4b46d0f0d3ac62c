//! What DeBERTa v1 and v2 share: embeddings, post-norm layers over disentangled attention, pooler
//! and classifier. How a layer projects its queries, keys, values and positions is each version's
//! own: [`Projections`].

use std::sync::Arc;

use lowrank_engine::ops::activation::activation;
use lowrank_engine::ops::attention::{AttentionForm, AttentionMask, Positions};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::gather::gather;
use lowrank_engine::{Activation, Var};

use crate::error::ModelError;
use crate::families::deberta_v2::DebertaConfig;
use crate::families::deberta_v2::positions::RelativeRows;
use crate::families::residual::Residual;
use crate::families::{FamilyConfig, Network};
use crate::load::{Loader, Presence};
use crate::modules::{Convolution, Embedding, LayerNorm, Linear};
use crate::pass::{AttentionContext, Batch, Block, LayerRange, Pass, Queries};

/// The projections of one layer's attention.
pub(crate) trait Projections: Copy + Send + Sync + 'static {
    /// Loads them; `path` is that of the module that holds them.
    fn build(
        path: &str,
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError>;

    /// Queries of the rows `read` (all if absent), keys and values of x [M, D].
    fn content(&self, pass: &mut Pass<'_, '_>, x: Var, read: Option<&[usize]>) -> [Var; 3];

    /// Keys and queries of relative positions from their table [R, D], where the model has these
    /// terms.
    fn positions(&self, pass: &mut Pass<'_, '_>, table: Var) -> [Option<Var>; 2];
}

/// x, or the rows of it that are read.
pub(crate) fn rows_of(pass: &mut Pass<'_, '_>, x: &Var, read: Option<&[usize]>) -> Var {
    match read {
        None => x.clone(),
        Some(rows) => gather(pass, x, rows),
    }
}

/// DeBERTa with a classification head.
pub(crate) struct Classifier<P> {
    embeddings: Embeddings,
    layers: Vec<Layer<P>>,
    relative: Option<RelativeTable>,
    conv: Option<ConvLayer>,
    pooler: Option<Pooler>,
    classifier: Linear,
    classifier_dropout: f32,
}

impl<P: Projections> Classifier<P> {
    pub(crate) fn build(
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let (facts, dropouts) = (&config.facts, &config.dropouts);
        let (width, eps) = (facts.hidden_size, own.layer_norm_eps);
        let embeddings = Embeddings::build(own, config, loader)?;
        let layers = (0..facts.num_hidden_layers)
            .map(|i| Layer::build(&format!("deberta.encoder.layer.{i}"), own, config, loader))
            .collect::<Result<_, _>>()?;
        let relative = own
            .relative
            .map(|rows| RelativeTable::build(rows, own, width, loader))
            .transpose()?;
        let conv = match own.conv {
            None => None,
            Some((taps, activation)) => Some(ConvLayer {
                conv: loader.convolution("deberta.encoder.conv.conv", width, taps)?,
                activation,
                norm: loader.layer_norm("deberta.encoder.conv.LayerNorm", width, eps)?,
                dropout: dropouts.hidden,
            }),
        };
        let (task, labels) = (loader.task(), loader.num_labels());
        let mut linear = |path: &str, out| loader.linear(path, [width, out], Presence::NewIfAbsent);
        let (pooler, classifier_dropout) = match task.is_per_token() {
            true => (None, dropouts.hidden),
            false => {
                let pooler = Pooler {
                    dense: linear("pooler.dense", width)?,
                    activation: own.pooler_hidden_act,
                    dropout: dropouts.pooler.unwrap_or(0.0),
                };
                (Some(pooler), dropouts.before_classifier())
            }
        };
        Ok(Box::new(Classifier::<P> {
            embeddings,
            layers,
            relative,
            conv,
            pooler,
            classifier: linear("classifier", labels)?,
            classifier_dropout,
        }))
    }
}

impl<P: Projections> Network for Classifier<P> {
    /// A layer's projections are those of the table of relative positions too, which all sequences
    /// read.
    fn keeps_rows_apart(&self) -> bool {
        false
    }

    fn hidden<'m>(&self, pass: &mut Pass<'_, 'm>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let lengths = batch.offsets.windows(2).map(|range| range[1] - range[0]);
        let longest = lengths.max().unwrap_or(0);
        let relative = self.relative.as_ref().map(|t| t.of_length(longest));
        let queries = (self.pooler.is_some()).then(|| Queries::firsts(batch.offsets));
        let context = AttentionContext::of_batch(batch.offsets.into(), queries);
        let embed = |pass: &mut Pass<'_, 'm>| self.embeddings.forward(pass, batch);
        range.run(pass, self.layers.len(), &context, embed, |i| LayerRun {
            layer: self.layers[i],
            relative: relative.clone(),
            conv: self.conv.filter(|_| i == 0),
        })
    }

    fn classify(&self, pass: &mut Pass<'_, '_>, mut x: Var) -> Var {
        if let Some(pooler) = self.pooler {
            x = dropout(pass, x, pooler.dropout);
            x = (pooler.dense).forward_activation(pass, x, pooler.activation);
        }
        let x = dropout(pass, x, self.classifier_dropout);
        self.classifier.logits(pass, x)
    }
}

/// The first token's hidden state through a layer.
#[derive(Clone, Copy)]
struct Pooler {
    dense: Linear,
    activation: Activation,
    dropout: f32,
}

/// Tokens, and what is added to them.
struct Embeddings {
    words: Embedding,
    positions: Option<Embedding>,
    token_types: Option<Embedding>,
    /// From the width of the tables to D, where they differ.
    projection: Option<Linear>,
    norm: LayerNorm,
    dropout: f32,
}

impl Embeddings {
    fn build(
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (facts, inner) = (&config.facts, own.embedding_size);
        let width = facts.hidden_size;
        let mut table = |name: &str, rows, padding| {
            let path = format!("deberta.embeddings.{name}");
            loader.embedding(&path, [rows, inner], padding)
        };
        let words = table("word_embeddings", facts.vocab_size, facts.pad_token_id)?;
        let positions = (own.position_biased_input)
            .then(|| table("position_embeddings", facts.max_positions, None))
            .transpose()?;
        let token_types = (own.type_vocab_size > 0)
            .then(|| table("token_type_embeddings", own.type_vocab_size, None))
            .transpose()?;
        let spec = loader.spec("deberta.embeddings.embed_proj", [inner, width]);
        let projection = (inner != width)
            .then(|| loader.linear_of(spec.unbiased()))
            .transpose()?;
        let path = "deberta.embeddings.LayerNorm";
        Ok(Embeddings {
            words,
            positions,
            token_types,
            projection,
            norm: loader.layer_norm(path, width, own.layer_norm_eps)?,
            dropout: config.dropouts.hidden,
        })
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>) -> Var {
        let positions = batch.positions();
        let zeros = vec![0; batch.tokens()];
        let mut tables = vec![self.words.lookup(pass, batch.input_ids)];
        tables.extend(self.positions.map(|t| t.lookup(pass, &positions)));
        tables.extend(self.token_types.map(|table| {
            let types = batch.token_type_ids.filter(|_| table.rows > 1);
            table.lookup(pass, types.unwrap_or(&zeros))
        }));
        let mut x = embedding(pass, &tables);
        if let Some(projection) = self.projection {
            x = projection.forward(pass, x);
        }
        let x = self.norm.forward(pass, x);
        dropout(pass, x, self.dropout)
    }
}

/// The table of relative positions, shared by all layers.
struct RelativeTable {
    table: Embedding,
    norm: Option<LayerNorm>,
    rows: RelativeRows,
}

impl RelativeTable {
    fn build(
        rows: RelativeRows,
        own: &DebertaConfig,
        width: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let path = "deberta.encoder.rel_embeddings";
        let table = loader.embedding(path, [rows.table_rows(), width], None)?;
        let eps = own.layer_norm_eps;
        let norm = (own.norm_rel_ebd)
            .then(|| loader.layer_norm("deberta.encoder.LayerNorm", width, eps))
            .transpose()?;
        Ok(RelativeTable { table, norm, rows })
    }

    /// The part that a batch reads.
    fn of_length(&self, longest: usize) -> Relative {
        let (ids, places) = self.rows.of_length(longest);
        Relative {
            table: self.table,
            norm: self.norm,
            ids: ids.into(),
            places: places.into(),
        }
    }
}

/// The rows of the table that one batch reads.
#[derive(Clone)]
struct Relative {
    table: Embedding,
    norm: Option<LayerNorm>,
    ids: Arc<[u32]>,
    /// Of each distance its place among the rows.
    places: Arc<[u32]>,
}

impl Relative {
    /// The rows [R, D], normalised. Each layer makes its own: dropout differs, and a layer that is
    /// run again has no other input than x.
    fn forward(&self, pass: &mut Pass<'_, '_>, p: f32) -> Var {
        let table = self.table.lookup(pass, &self.ids);
        let mut x = embedding(pass, &[table]);
        if let Some(norm) = self.norm {
            x = norm.forward(pass, x);
        }
        dropout(pass, x, p)
    }
}

/// The convolution over the embeddings, added to what the first layer gives.
#[derive(Clone, Copy)]
struct ConvLayer {
    conv: Convolution,
    activation: Activation,
    norm: LayerNorm,
    dropout: f32,
}

/// One layer.
#[derive(Clone, Copy)]
struct Layer<P> {
    projections: P,
    attention: AttentionForm,
    residual: Residual,
}

impl<P: Projections> Layer<P> {
    fn build(
        path: &str,
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (facts, dropouts) = (&config.facts, &config.dropouts);
        let (activation, dropout) = (own.hidden_act, dropouts.hidden);
        let eps = own.layer_norm_eps;
        Ok(Layer {
            projections: P::build(&format!("{path}.attention.self"), own, config, loader)?,
            attention: AttentionForm {
                scale: 1.0 / ((facts.head_dim * own.scale_factor()) as f32).sqrt(),
                ..facts.attention(AttentionMask::Full, dropouts.attention)
            },
            residual: Residual::of_bert(path, facts, eps, activation, dropout, loader)?,
        })
    }
}

/// One layer over one batch: what a recomputed block has to remember.
struct LayerRun<P> {
    layer: Layer<P>,
    relative: Option<Relative>,
    conv: Option<ConvLayer>,
}

impl<P: Projections> Block for LayerRun<P> {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var {
        let Layer {
            projections,
            attention,
            residual,
        } = self.layer;
        let x_read = context.select(pass, &x);
        let embedded = self.conv.map(|_| x.clone());
        let qkv = projections.content(pass, x, context.queries());
        let y = match &self.relative {
            None => context.attend(pass, qkv, &attention),
            Some(relative) => {
                let table = relative.forward(pass, residual.dropout);
                let [keys, queries] = projections.positions(pass, table);
                let positions = Positions {
                    rows: relative.places.clone(),
                    keys,
                    queries,
                };
                context.attend_disentangled(pass, qkv, positions, &attention)
            }
        };
        let x = residual.after_attention(pass, y, x_read);
        let Some((conv, embedded)) = self.conv.zip(embedded) else {
            return x;
        };
        let (offsets, read) = (context.offsets(), context.queries());
        let h = (conv.conv).forward(pass, &embedded, offsets, read);
        let h = dropout(pass, h, conv.dropout);
        let h = activation(pass, h, conv.activation);
        (conv.norm).forward_sum(pass, [h, x], 0.0)
    }
}
