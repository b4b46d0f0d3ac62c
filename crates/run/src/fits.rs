//! Whether what a plan counts can be had at all: refused before anything is read or laid out, with
//! the plan's figures. What the machine could have but others hold now is not this file's business.

use lowrank_data::{Example, batches};
use lowrank_engine::{Device, MemoryReport, Purpose};
use lowrank_model::Model;
use lowrank_train::plan::{DryRun, heaviest};

use crate::base::{Base, Head};
use crate::error::{RunError, RunResult};
use crate::memory::{self, BESIDE};
use crate::text::{bytes, count};

/// What is about to be laid out.
pub struct Need<'a> {
    /// In words, with its verb: `the run needs`.
    pub what: &'a str,
    /// Bytes of the arena, holes between tensors included.
    pub reserved: u64,
    /// Bytes by purpose.
    pub peak: MemoryReport,
    /// What to do.
    pub hint: String,
}

impl Need<'_> {
    /// Refuses what neither the machine nor the address space of this process holds.
    ///
    /// # Errors
    /// It does not fit.
    pub fn check(&self, device: &Device) -> RunResult {
        let beside = memory::resident_bytes().unwrap_or(0) + BESIDE;
        let whole = self.reserved.saturating_add(beside);
        let machine = memory::machine_bytes().filter(|&limit| whole > limit);
        let space = device.address_space_bytes();
        let space = space.filter(|&limit| self.reserved > limit);
        let limit = match (machine, space) {
            (Some(limit), _) => format!("this machine has {} of memory and swap", bytes(limit)),
            (None, Some(limit)) => format!(
                "this process may have {} of address space for tensors",
                bytes(limit)
            ),
            (None, None) => return Ok(()),
        };
        let mut parts: Vec<_> = Purpose::ALL
            .iter()
            .map(|&purpose| (self.peak.of(purpose), purpose))
            .filter(|(n, _)| *n > 0)
            .collect();
        parts.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        let parts: Vec<_> = parts
            .iter()
            .take(3)
            .map(|(n, purpose)| format!("{}: {}", purpose.name().replace('_', " "), bytes(*n)))
            .collect();
        Err(RunError::usage(format!(
            "{} {} ({}), but {limit}",
            self.what,
            bytes(whole),
            parts.join(", ")
        ))
        .hint(&self.hint))
    }
}

/// Refuses weights that cannot be held.
pub fn check_weights(base: &Base, head: &Head, device: &Device) -> RunResult {
    check_model(&base.shape_in(head, &Device::dry_like(device))?, device)
}

/// The same for a model of shapes.
pub fn check_model(dry: &Model, device: &Device) -> RunResult {
    let need = Need {
        what: "the weights need",
        reserved: dry.device().reserved_bytes(),
        peak: dry.device().peak_memory(),
        hint: "take a smaller model, or a machine with more memory; --base-format bf16 halves the frozen weights".to_owned(),
    };
    need.check(device)
}

/// Refuses a pass over rows in batches of `size` that cannot be held.
pub fn check_pass(
    base: &Base,
    head: &Head,
    examples: &[Example],
    size: usize,
    device: &Device,
) -> RunResult {
    let lengths: Vec<usize> = examples.iter().map(|e| e.input_ids.len()).collect();
    let rows = batches(lengths.len(), size).map(|range| range.map(|row| row as u32).collect());
    let of_rows = |batch: &Vec<u32>| batch.iter().map(|&row| lengths[row as usize]).collect();
    let heaviest: Vec<Vec<usize>> = heaviest(rows.collect(), &lengths, 2)
        .iter()
        .map(of_rows)
        .collect();
    let dry = base.shape_in(head, &Device::dry_like(device))?;
    let settings = Default::default();
    let mut dry = DryRun::of_model(dry, &settings);
    let needs = dry.evaluate(heaviest)?;
    let rows = count(size.min(examples.len()) as u64);
    let need = Need {
        what: &format!("a batch of {rows} rows needs"),
        reserved: dry.model().device().reserved_bytes(),
        peak: needs.peak,
        hint: "lower --per-device-eval-batch-size (or --batch-size), or --max-length".to_owned(),
    };
    need.check(device)
}
