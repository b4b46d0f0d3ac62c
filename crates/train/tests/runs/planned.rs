//! The passes of a tiny run on the dry device.

use lowrank_data::{BatchPlan, Order};
use lowrank_engine::{Device, MemoryReport};
use lowrank_model::ModelError;
use lowrank_train::config::{TaskKind, TrainConfig};
use lowrank_train::plan::DryRun;
use lowrank_train::prefix_cache::RowLengths;

use crate::tiny::{Place, rows_of};

/// Tokens of each row of a tiny run.
pub fn lengths(task: TaskKind) -> RowLengths {
    let [train, validation] =
        rows_of(task).map(|rows| rows.iter().map(|row| row.input_ids.len()).collect());
    RowLengths { train, validation }
}

/// The peak of all passes of a run.
pub fn planned_peak(place: Place, config: &TrainConfig) -> Result<MemoryReport, ModelError> {
    let model = place.model(config, &Device::dry_in(config.precision.into()));
    let mut dry = DryRun::of_model(model, &config.optimization);
    let lengths = lengths(config.data.task);
    dry.keep_prefixes(config, &lengths, place.prefix_cache_bytes);
    let o = &config.optimization;
    let order = Order {
        seed: o.seed,
        shuffle: o.shuffle,
    };
    let mut peak = MemoryReport::default();
    let mut note = |found: MemoryReport| {
        if found.total() > peak.total() {
            peak = found;
        }
    };
    for epoch in 0..config.passes(lengths.train.len()) {
        let plan = BatchPlan::new(&order, epoch, lengths.train.len(), o.per_device_batch_size);
        let batches: Vec<Vec<u32>> = plan.batches().map(<[u32]>::to_vec).collect();
        note(
            dry.train_rows(&batches, &lengths.train, o.gradient_checkpointing)?
                .peak,
        );
        let evaluated: Vec<u32> = (0..lengths.validation.len() as u32).collect();
        let evaluated: Vec<_> = evaluated
            .chunks(config.evaluation.per_device_eval_batch_size)
            .map(<[u32]>::to_vec)
            .collect();
        note(dry.evaluate_rows(&evaluated, &lengths.validation)?.peak);
    }
    Ok(peak)
}
