//! The command line: one struct a command. A doc comment is the help; a field's name is the flag
//! and the key in a file.
//!
//! Every value is optional here: defaults are filled in by `resolve.rs`, so that a file, the flags
//! and a resumed run can be laid over each other first.

pub mod chat;
mod common;
pub mod generate;
pub mod others;
pub mod scoring;
pub mod train;

use std::any::TypeId;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use chat::ChatArgs;
pub use common::{AdapterArgs, CommonArgs, DataArgs, ModelArgs};
pub use generate::GenerateArgs;
pub use others::{
    CheckArgs, ConvertArgs, EvalArgs, ExportArgs, InspectArgs, MergeArgs, MergeDType, PlanArgs,
    PredictArgs, ProfileArgs,
};
pub use scoring::ScoringArgs;
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

/// Parses the command line; ends the program with clap's message where it cannot be parsed.
pub fn parse() -> Command {
    let matches = command_line().get_matches();
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => {
            let mut command = cli.command;
            if let Some(data) = command.data() {
                data.split_labels();
                let labels = data.labels.iter().flatten();
                if labels.into_iter().any(|name| name.trim().is_empty()) {
                    let fault =
                        "--labels: a label without a name; expected names such as `no,yes`\n";
                    Cli::command().error(ErrorKind::InvalidValue, fault).exit();
                }
            }
            command
        }
        Err(error) => error.exit(),
    }
}

/// With negative numbers as values: `--lr -1` is refused by its name, not as an unknown flag, and
/// `--labels -1 1` are names.
fn command_line() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_action().takes_values() {
            // A setting that is no number would be as one that was not given.
            true if arg.get_value_parser().type_id() == TypeId::of::<f64>() => {
                arg.allow_negative_numbers(true).value_parser(finite)
            }
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    })
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("expected a finite number".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter (or all weights, with --full) and write it with its log, checkpoints and
    /// report
    Train(Box<TrainArgs>),
    /// Measure a model, with or without an adapter, on labelled rows; or score generated texts
    Eval(Box<EvalArgs>),
    /// Predict labels, probabilities and logits, one JSON line a row
    Predict(Box<PredictArgs>),
    /// Write text after prompts, with or without an adapter
    Generate(Box<GenerateArgs>),
    /// Talk with a model, turn by turn, with the adapter on or off
    Chat(Box<ChatArgs>),
    /// Fold an adapter into its base and write a plain model directory
    Merge(Box<MergeArgs>),
    /// Write an adapter, or the base with it in its weights, as a GGUF file
    Export(Box<ExportArgs>),
    /// Write a quantised model, or a GGUF file, as a plain model directory
    Convert(Box<ConvertArgs>),
    /// Count parameters, bytes and operations of a run without running it; a config.json is enough
    Plan(Box<PlanArgs>),
    /// Show what is in a model, an adapter, a tensor file or a run
    Inspect(Box<InspectArgs>),
    /// Look at data and targets before training: what the model will see
    Check(Box<CheckArgs>),
    /// Time optimizer steps op by op, on your rows or random ones
    Profile(Box<ProfileArgs>),
}

impl Command {
    /// How the command's rows are read, where it reads some.
    fn data(&mut self) -> Option<&mut DataArgs> {
        match self {
            Self::Train(args) => Some(&mut args.data),
            Self::Eval(args) => Some(&mut args.data),
            Self::Predict(args) => Some(&mut args.data),
            Self::Merge(args) => Some(&mut args.data),
            Self::Export(args) => Some(&mut args.data),
            Self::Check(args) => Some(&mut args.data),
            Self::Profile(args) => Some(&mut args.data),
            Self::Generate(_)
            | Self::Chat(_)
            | Self::Convert(_)
            | Self::Plan(_)
            | Self::Inspect(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command_line().debug_assert();
    }

    #[test]
    fn negative_numbers_are_values() {
        let words = ["lowrank", "train", "--lr", "-1", "--labels", "-1", "1"];
        let matches = command_line().try_get_matches_from(words).unwrap();
        let Command::Train(args) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("not train")
        };
        assert_eq!(
            args.optimization.learning_rate,
            Some(lowrank_run::rates::AskedRate::Rate(-1.0))
        );
        assert_eq!(args.data.labels.unwrap(), ["-1", "1"]);
    }
}
