//! The table of tokens and the output's table as targets: low-rank terms of either, and rows of
//! them that are trained in their place. PEFT's forms: `lora_embedding_A` [r, V] and
//! `lora_embedding_B` [D, r] of the input, `lora_A` [r, D] and `lora_B` [V, r] of the output,
//! `trainable_tokens_delta` [K, D]. Where one table is both, a term belongs to one end of it, rows
//! to both.
//! Source: PEFT 0.21.2, `lora.Embedding`, `TrainableTokensWrapper`, `_set_trainable`.

use std::collections::{BTreeMap, BTreeSet};

use lowrank_engine::host;
use lowrank_engine::ops::embedding::table_rows;
use lowrank_engine::ops::trained_rows::TrainedRows;
use lowrank_formats::peft::{
    InitLoraWeights, KEY_PREFIX, LoraConfig, TOKEN_ROWS, TokenIndices, is_named,
};

use super::parts::Piece;
use super::{Attach, Terms, initial_values};
use crate::error::ModelError;
use crate::modules::{Module, Modules, name_hash};
use crate::trained::SavedRows;

/// Rows to train by the path of their table, in the file's order.
pub(super) type RowsByTable = BTreeMap<String, Vec<u32>>;

/// The rows that a configuration names; `input` is the path of the table of tokens.
///
/// # Errors
/// A table that is not there, is trained otherwise too or is the same as another; a row past the
/// end or there twice.
pub(super) fn resolve_rows(
    config: &LoraConfig,
    modules: &Modules,
    input: &str,
    others: [&BTreeSet<String>; 2],
) -> Result<RowsByTable, ModelError> {
    let tables: Vec<(&str, &[u32])> = match &config.trainable_token_indices {
        None => return Ok(RowsByTable::new()),
        Some(TokenIndices::Input(ids)) => vec![(input, ids)],
        Some(TokenIndices::ByModule(tables)) => {
            tables.iter().map(|(name, ids)| (&**name, &**ids)).collect()
        }
    };
    let (mut found, mut faults) = (RowsByTable::new(), Vec::new());
    for (name, ids) in tables {
        match rows_of(name, ids, modules, input) {
            Ok((path, _)) if others.iter().any(|paths| paths.contains(&path)) => {
                faults.push(format!(
                    "`{path}` is among the targets or the modules saved too"
                ));
            }
            Ok((path, ids)) => {
                found.insert(path, ids);
            }
            Err(fault) => faults.push(fault),
        }
    }
    ModelError::of_patterns("trainable_token_indices", faults)?;
    Ok(found)
}

/// The path of a table, by its end, and the rows, checked.
fn rows_of(
    name: &str,
    ids: &[u32],
    modules: &Modules,
    input: &str,
) -> Result<(String, Vec<u32>), String> {
    let mut tables = modules.tables(input);
    let Some((module, [rows, _])) = tables.find(|(module, _)| is_named(&module.path, name)) else {
        let known: Vec<_> = (modules.tables(input))
            .map(|(module, _)| format!("`{}`", module.path))
            .collect();
        return Err(format!(
            "`{name}`: expected a table of tokens, {}",
            known.join(" or ")
        ));
    };
    if module.is_other_end() {
        return Err(format!(
            "`{name}` is the table of tokens too (`tie_word_embeddings`): name the ids alone, they count for both"
        ));
    }
    if ids.is_empty() {
        return Err(format!("`{name}`: expected ids, found none"));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(format!(
            "{id} is past the table's end, which has {rows} rows"
        ));
    }
    let mut seen = BTreeSet::new();
    match ids.iter().find(|id| !seen.insert(**id)) {
        Some(id) => Err(format!("{id} is there twice")),
        None => Ok((module.path.clone(), ids.to_vec())),
    }
}

impl Attach<'_> {
    /// Trains some rows of a table in their place.
    pub(super) fn train_rows(&mut self, table: &mut Module, ids: &[u32]) {
        let path = &table.path;
        let width = table.parameters[0].shape[1];
        let values = table_rows(
            &self.device,
            table.parameters[0].as_table(),
            ids,
            self.trainables,
        );
        let key = format!("{KEY_PREFIX}{path}{TOKEN_ROWS}");
        let shape = [ids.len(), width];
        let id = self.trainables.add(&self.device, key, &shape, &values);
        self.report.rows.push(SavedRows {
            path: path.clone(),
            rows: ids.len(),
            parameters: (ids.len() * width) as u64,
        });
        table.rows = Some(TrainedRows::new(ids, id));
    }

    /// Adapts the table of tokens [V, D]. A is kept as rows of the vocabulary, which lookups read.
    pub(super) fn adapt_table(
        &mut self,
        table: &mut Module,
        shape @ [rows, width]: [usize; 2],
    ) -> Result<(), ModelError> {
        let path = table.path.clone();
        let (rank, alpha) = (self.matcher.rank(&path)?, self.matcher.alpha(&path)?);
        let terms = Terms {
            names: ["lora_embedding_A", "lora_embedding_B"],
            shapes: [[rows, rank], [width, rank]],
            values: match self.device.is_dry() {
                true => Default::default(),
                false => self.embedding_values(&path, shape, rank)?,
            },
            dropout: 0.0,
        };
        table.adapter = Some(self.add_terms(&path, terms)?);
        self.report_piece(Piece {
            path,
            shape,
            rank,
            alpha,
        });
        Ok(())
    }

    /// Initial A [V, r] and B [D, r] of the input's table.
    fn embedding_values(
        &self,
        path: &str,
        [rows, width]: [usize; 2],
        rank: usize,
    ) -> Result<[Vec<f32>; 2], ModelError> {
        let (mut a, mut b) = (vec![0.0; rows * rank], vec![0.0; width * rank]);
        let normal = |name: &str, values: &mut [f32]| {
            let stream = name_hash(&format!("{path}.{name}"));
            host::fill_normal(self.seed, stream, 0.0, 1.0, values);
        };
        match &self.config.init_lora_weights {
            InitLoraWeights::Default | InitLoraWeights::Gaussian => {}
            InitLoraWeights::Random => normal("lora_embedding_A", &mut a),
            InitLoraWeights::Other(_) => {
                // Refused by name there.
                initial_values(&self.config.init_lora_weights, 0, path, [1, 1], 1)?;
            }
        }
        normal("lora_embedding_B", &mut b);
        Ok([a, b])
    }
}
