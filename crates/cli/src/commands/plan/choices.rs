//! The batches that give the rows of one optimizer step, each priced in memory and work, and the one that a limit allows.

use lowrank_train::config::ByteSize;
use lowrank_train::fit::{BatchShape, TooLittle};
use lowrank_train::plan::DryRun;
use serde_json::{Value, json};

use crate::commands::train::{BESIDE, too_little};
use crate::errors::CliResult;
use crate::memory;
use crate::output::{TextTable, bytes};

/// One way to take the rows of a step.
struct Choice {
    shape: BatchShape,
    /// Of the tensors with the holes between them, and of this program.
    bytes: u64,
    flops_per_token: f64,
}

/// All ways, those that are taken first in front.
pub struct Choices {
    limit: u64,
    asked: Option<bool>,
    list: Vec<Choice>,
}

impl Choices {
    /// Plans each on a dry run of its own, made by `dry`, for steps of so many rows of so many tokens. Without recomputation
    /// comes first, as it is less work; `asked` leaves one of the two only.
    pub fn make(
        ByteSize(limit): ByteSize,
        (rows, length): (usize, usize),
        asked: Option<bool>,
        dry: &dyn Fn() -> CliResult<DryRun>,
    ) -> CliResult<Self> {
        let program = memory::resident_bytes().unwrap_or(0) + BESIDE;
        let price = |shape: BatchShape| -> CliResult<Choice> {
            let mut dry = dry()?;
            let needs = dry.train([vec![length; shape.batch_size]], shape.recompute)?;
            Ok(Choice {
                shape,
                bytes: program + dry.model().device().reserved_bytes(),
                flops_per_token: needs.flops_per_token(),
            })
        };
        let list = BatchShape::all(rows, asked).into_iter().map(price);
        Ok(Self {
            limit,
            asked,
            list: list.collect::<CliResult<_>>()?,
        })
    }

    /// The first way that fits.
    ///
    /// # Errors
    /// Not even one row fits.
    pub fn taken(&self) -> CliResult<BatchShape> {
        let least = self.list.iter().map(|choice| choice.bytes).min();
        let found = self.list.iter().find(|choice| self.fits(choice));
        found.map(|choice| choice.shape).ok_or_else(|| {
            let error = TooLittle {
                limit: self.limit,
                least: least.unwrap_or(0),
            };
            too_little(error, self.asked)
        })
    }

    fn fits(&self, choice: &Choice) -> bool {
        choice.bytes <= self.limit
    }

    pub fn to_json(&self) -> Value {
        let choice = |choice: &Choice| {
            json!({
                "per_device_batch_size": choice.shape.batch_size,
                "gradient_accumulation_steps": choice.shape.accumulation,
                "gradient_checkpointing": choice.shape.recompute,
                "bytes": choice.bytes,
                "flops_per_token": choice.flops_per_token,
                "fits": self.fits(choice),
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
        let taken = self.list.iter().position(|choice| self.fits(choice));
        for (i, choice) in self.list.iter().enumerate() {
            let mark = match (Some(i) == taken, self.fits(choice)) {
                (true, _) => " taken",
                (false, true) => "",
                (false, false) => " too much",
            };
            table.row([
                choice.shape.batch_size.to_string(),
                choice.shape.accumulation.to_string(),
                if choice.shape.recompute { "yes" } else { "no" }.to_owned(),
                format!("{}{mark}", bytes(choice.bytes)),
                format!("{:.1} MFLOP", choice.flops_per_token / 1e6),
            ]);
        }
        table.to_string()
    }
}
