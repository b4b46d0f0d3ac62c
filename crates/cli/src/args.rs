//! The command line: one struct a command. A doc comment is the help; a field's name is the flag and the key in a file.
//!
//! Every value is optional here: defaults are filled in by `resolve.rs`, so that a file, the flags and a resumed run can
//! be laid over each other first.

pub mod common;
pub mod others;
pub mod train;

use clap::{Parser, Subcommand};

pub use common::{AdapterArgs, CommonArgs, DataArgs, ModelArgs, PrecisionArg};
pub use others::{
    BenchStepArgs, CheckArgs, EvalArgs, InspectArgs, MergeArgs, MergeDType, PlanArgs, PredictArgs,
};
pub use train::TrainArgs;

/// Fine-tune language models by low-rank adaptation (LoRA), fast and lean, on a CPU.
///
/// `lowrank train` with nothing else trains a small real model on a small real data set.
#[derive(Debug, Parser)]
#[command(
    name = "lowrank",
    version,
    max_term_width = 110,
    propagate_version = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter (or all weights, with --full) and write it with its log, checkpoints and report
    Train(Box<TrainArgs>),
    /// Measure a model, with or without an adapter, on labelled rows
    Eval(Box<EvalArgs>),
    /// Predict labels, probabilities and logits, one JSON line a row
    Predict(Box<PredictArgs>),
    /// Fold an adapter into its base and write a plain model directory
    Merge(Box<MergeArgs>),
    /// Count parameters, bytes and operations of a run without running it; a config.json is enough
    Plan(Box<PlanArgs>),
    /// Show what is in a model, an adapter, a tensor file or a run
    Inspect(Box<InspectArgs>),
    /// Look at data and targets before training: what the model will see
    Check(Box<CheckArgs>),
    /// Time one optimizer step on random rows
    #[command(hide = true)]
    BenchStep(Box<BenchStepArgs>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
