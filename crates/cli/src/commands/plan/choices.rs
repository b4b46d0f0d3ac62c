//! The batches that give the rows of one optimizer step, each priced in memory and work, and the
//! one that a limit allows.

use lowrank_train::config::ByteSize;
use lowrank_train::fit::{BatchShape, Price, largest_batch};
use lowrank_train::plan::DryRun;
use serde_json::{Value, json};

use crate::output::{TextTable, bytes};
use lowrank_run::memory::{self, BESIDE};
use lowrank_run::plan::too_little;
use lowrank_run::{RunError, RunResult};

/// All ways, without recomputation first and large batches first, with their prices.
pub struct Choices {
    limit: u64,
    asked: Option<bool>,
    list: Vec<(BatchShape, Price)>,
}

impl Choices {
    /// Plans each on a dry run of its own, made by `dry`, for steps of so many rows of so many
    /// tokens. Without recomputation comes first, as it is less work; `asked` leaves one of the two
    /// only.
    pub fn make(
        ByteSize(limit): ByteSize,
        rows: usize,
        length: usize,
        asked: Option<bool>,
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

    pub fn to_json(&self) -> Value {
        let choice = |(shape, price): &(BatchShape, Price)| {
            json!({
                "per_device_batch_size": shape.batch_size,
                "gradient_accumulation_steps": shape.accumulation,
                "gradient_checkpointing": shape.recompute,
                "bytes": price.bytes,
                "flops_per_token": price.flops_per_token,
                "fits": price.bytes <= self.limit,
            })
        };
        self.list.iter().map(choice).collect()
    }

    pub fn to_text(&self) -> String {
        let limit = format!("memory, of {}", bytes(self.limit));
        let mut table = TextTable::new(&[
            "rows a batch",
            "batches a step",
            "recomputed",
            &limit,
            "a token",
        ]);
        let taken = self.taken().ok();
        for (shape, price) in &self.list {
            let mark = match (Some(*shape) == taken, price.bytes <= self.limit) {
                (true, _) => " taken",
                (false, true) => "",
                (false, false) => " too much",
            };
            table.row([
                shape.batch_size.to_string(),
                shape.accumulation.to_string(),
                if shape.recompute { "yes" } else { "no" }.to_owned(),
                format!("{}{mark}", bytes(price.bytes)),
                format!("{:.1} MFLOP", price.flops_per_token / 1e6),
            ]);
        }
        table.to_string()
    }
}
