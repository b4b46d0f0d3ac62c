//! The columns that int8 weights keep beside: found on the first rows that a run trains on, and how
//! a checkpoint holds them.

use std::collections::BTreeMap;

use lowrank_data::{Cursor, Example, PackedBatch};
use lowrank_engine::{Gradients, Outliers};
use lowrank_model::{Model, ModelError, PassOptions};

use crate::config::TrainConfig;
use crate::evaluate::{model_batch, model_targets};

/// Finds them on the first micro-batch of a run, where weights are int8 and they are not known yet:
/// a function of the base, what trains before the first step, and the rows.
///
/// # Errors
/// The batch does not fit the model.
pub fn find(
    model: &mut Model,
    config: &TrainConfig,
    rows: &[Example],
    gradients: &mut Gradients,
) -> Result<(), ModelError> {
    if !model.wants_outliers() || rows.is_empty() {
        return Ok(());
    }
    let mut batching = config.batching(rows.len());
    let mut first = batching.step(Cursor::default());
    let batch = first.find_map(|numbers| {
        let batch = PackedBatch::from_rows(rows, numbers);
        model_targets(&batch).is_some().then_some(batch)
    });
    let Some(batch) = batch else {
        return Ok(());
    };
    if let Some(targets) = model_targets(&batch) {
        let options = PassOptions {
            grad_scale: 1.0,
            recompute: config.optimization.gradient_checkpointing.into(),
            ..PassOptions::default()
        };
        model.find_outliers(&model_batch(&batch), targets, &options, gradients)?;
        gradients.clear();
    }
    Ok(())
}

/// As a checkpoint holds them.
pub(crate) fn recorded(model: &Model) -> BTreeMap<String, [Vec<u32>; 2]> {
    let all = model.outliers().into_iter();
    all.map(|(name, of)| (name, [of.inputs, of.gradients]))
        .collect()
}

/// Sets those of a checkpoint.
///
/// # Errors
/// They are not those of this model.
pub(crate) fn restore(
    model: &mut Model,
    recorded: &BTreeMap<String, [Vec<u32>; 2]>,
) -> Result<(), ModelError> {
    let outliers = |[inputs, gradients]: &[Vec<u32>; 2]| Outliers {
        inputs: inputs.clone(),
        gradients: gradients.clone(),
    };
    let all = recorded
        .iter()
        .map(|(name, of)| (name.clone(), outliers(of)));
    model.set_outliers(&all.collect())
}
