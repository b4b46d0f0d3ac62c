//! The passes of a tiny run on the dry device.

use lowrank_data::Cursor;
use lowrank_engine::{Device, Isa, MemoryReport};
use lowrank_model::ModelError;
use lowrank_train::config::{Task, TrainConfig};
use lowrank_train::frozen_cache::RowLengths;
use lowrank_train::plan::DryRun;

use crate::tiny::{Place, rows_of};

/// Tokens of each row of a tiny run.
pub fn lengths(task: Task) -> RowLengths {
    let [train, validation] =
        rows_of(task).map(|rows| rows.iter().map(|row| row.input_ids.len()).collect());
    RowLengths { train, validation }
}

/// The peak of all passes of a run.
pub fn planned_peak(place: Place, config: &TrainConfig) -> Result<MemoryReport, ModelError> {
    let device =
        Device::cpu_in(config.numerics, Isa::best(), place.threads).expect("threads start");
    let model = place.model(config, &Device::dry_like(&device));
    let mut dry = DryRun::of_model(model, &config.optimization);
    let lengths = lengths(config.data.task);
    dry.cache_frozen_layers(config, &lengths, place.prefix_cache_bytes);
    let recompute = config.optimization.gradient_checkpointing.into();
    let mut peak = MemoryReport::default();
    let mut note = |found: MemoryReport| {
        if found.total() > peak.total() {
            peak = found;
        }
    };
    for epoch in 0..config.passes(lengths.train.len()) {
        let mut cursor = Cursor { epoch, next_row: 0 };
        let (mut batching, mut batches) = (config.batching(lengths.train.len()), Vec::new());
        while cursor.epoch == epoch {
            let step: Vec<Vec<u32>> = batching.step(cursor).map(<[u32]>::to_vec).collect();
            cursor.advance(step.iter().map(Vec::len).sum(), lengths.train.len());
            batches.extend(step);
        }
        note(dry.train_rows(&batches, &lengths.train, recompute)?.peak);
        let evaluated: Vec<u32> = (0..lengths.validation.len() as u32).collect();
        let evaluated: Vec<_> = evaluated
            .chunks(config.evaluation.per_device_eval_batch_size)
            .map(<[u32]>::to_vec)
            .collect();
        note(dry.evaluate_rows(&evaluated, &lengths.validation)?.peak);
    }
    Ok(peak)
}
