//! The processor that a run computes on: instruction set, threads, and how weights and activations are stored.

use lowrank_engine::{Device, Isa};
use lowrank_train::config::{LARGEST_THREADS, Precision};
use serde::{Deserialize, Serialize};

use crate::error::{RunError, RunResult};

/// How weights and activations are to be stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionChoice {
    /// bf16 where the processor multiplies it faster, else f32.
    Auto,
    /// The reference.
    F32,
    /// bf16 operands, f32 sums.
    Bf16,
}

impl PrecisionChoice {
    /// What a setting means for a model that is adapted, or is not. Without adapters a model is trained whole or measured as it
    /// is in its file: that is worth f32, unless asked otherwise.
    pub fn of(asked: Option<Self>, adapted: bool) -> Self {
        match asked {
            None | Some(Self::Auto) if !adapted => Self::F32,
            None => Self::Auto,
            Some(choice) => choice,
        }
    }

    /// The storage that a choice means on an instruction set.
    pub fn on(self, isa: Isa) -> Precision {
        match self {
            Self::Auto if isa.multiplies_bf16() => Precision::Bf16,
            Self::Auto | Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// The processor with the threads asked for, all cores where absent.
///
/// # Errors
/// The number of threads is out of range, or the system refuses threads or address space.
pub fn device(isa: Isa, precision: Precision, threads: Option<usize>) -> RunResult<Device> {
    if let Some(n) = threads.filter(|n| !(1..=LARGEST_THREADS).contains(n)) {
        return Err(RunError::usage(format!(
            "`threads` is {n}, expected from 1 to {LARGEST_THREADS}"
        )));
    }
    let threads = threads.unwrap_or(0);
    Device::cpu_in(precision.into(), isa, threads).map_err(|error| {
        RunError::failure("cannot start threads, or reserve address space for tensors")
            .caused_by(Some(&error))
            .hint(
                "pass --threads 1, or raise the limits of this process (`ulimit -v`, `ulimit -u`)",
            )
    })
}
