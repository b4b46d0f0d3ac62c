//! What int8 weights would do to a model's results on a user's own rows.

use lowrank_data::{Example, PackedBatch};
use lowrank_engine::{BaseFormat, DType, Gradients, Isa};
use lowrank_model::{Int8Error, PassOptions};
use lowrank_train::config::NumericSettings;
use lowrank_train::evaluate::{model_batch, model_targets};

use crate::base::{Base, Head};
use crate::device::device;
use crate::error::{RunError, RunResult};

/// The error on the first of some rows, in f32: their columns beside are found on them too.
///
/// # Errors
/// The weights cannot be read, or no row has a target.
pub fn int8_error(
    base: &Base,
    head: &Head,
    rows: &[Example],
    isa: Isa,
    threads: Option<usize>,
) -> RunResult<Int8Error> {
    let model = |format: BaseFormat| {
        let numerics = NumericSettings::new(DType::F32, Some(format), None);
        let (model, _) = base.load(head, 0, &device(isa, numerics, threads)?)?;
        Ok::<_, RunError>(model)
    };
    let numbers: Vec<u32> = (0..rows.len() as u32).collect();
    let batch = PackedBatch::from_rows(rows, &numbers);
    let targets = model_targets(&batch).ok_or_else(|| {
        RunError::usage("--base-format int8 is measured on rows with labels, and there are none")
    })?;
    let (exact, mut int8) = (model(BaseFormat::F32)?, model(BaseFormat::Int8)?);
    let mut gradients = Gradients::zeros(int8.device(), int8.trainables());
    let (batch, options) = (model_batch(&batch), PassOptions::default());
    int8.find_outliers(&batch, targets, &options, &mut gradients)?;
    Ok(int8.int8_error(&exact, &batch)?)
}
