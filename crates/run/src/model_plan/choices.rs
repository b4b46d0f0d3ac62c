//! The batches that give the rows of one optimizer step, each priced in memory and work, and the
//! one that a limit allows.

use lowrank_model::Recompute;
use lowrank_train::config::ByteSize;
use lowrank_train::fit::{BatchShape, Price, largest_batch};
use lowrank_train::plan::DryRun;

use crate::error::{RunError, RunResult};
use crate::memory::{self, BESIDE};
use crate::plan::too_little;

/// All ways, without recomputation first and large batches first, with their prices.
pub struct Choices {
    /// Bytes that the process may take.
    pub limit: u64,
    asked: Option<Recompute>,
    /// The ways.
    pub list: Vec<(BatchShape, Price)>,
}

impl Choices {
    /// Plans each on a dry run of its own, made by `dry`, for steps of so many rows of so many
    /// tokens. Without recomputation comes first, as it is less work; `asked` leaves one of the two
    /// only.
    pub fn make(
        ByteSize(limit): ByteSize,
        rows: usize,
        length: usize,
        asked: Option<Recompute>,
        dry: &dyn Fn(BatchShape) -> RunResult<DryRun>,
    ) -> RunResult<Self> {
        let program = memory::resident_bytes().unwrap_or(0) + BESIDE;
        let price = |shape: BatchShape| -> RunResult<(BatchShape, Price)> {
            let mut dry = dry(shape)?;
            let needs = dry.train([vec![length; shape.batch_size]], shape.recompute)?;
            let price = Price {
                bytes: program + dry.model().device().reserved_bytes(),
                flops_per_token: needs.flops_per_token(),
                tokens_per_batch: needs.tokens as f64,
            };
            Ok((shape, price))
        };
        let list = BatchShape::all(rows, asked).into_iter().map(price);
        Ok(Self {
            limit,
            asked,
            list: list.collect::<RunResult<_>>()?,
        })
    }

    /// The way that a run would take.
    ///
    /// # Errors
    /// Not even one row fits.
    pub fn taken(&self) -> RunResult<BatchShape> {
        let shapes: Vec<BatchShape> = self.list.iter().map(|(shape, _)| *shape).collect();
        let price = |shape| {
            let found = self.list.iter().find(|(other, _)| *other == shape);
            found
                .map(|(_, price)| *price)
                .ok_or_else(|| RunError::failure("a batch without a price"))
        };
        largest_batch(&shapes, self.limit, price)?.map_err(|error| too_little(error, self.asked))
    }
}
