//! `lowrank merge`: an adapter folded into its base, written as a plain model directory.

use std::path::Path;

use lowrank_run::device::NumericChoices;
use lowrank_run::merge::{Merged, Verify, merge};
use lowrank_run::{RunError, RunResult};
use serde_json::json;

use crate::args::{MergeArgs, MergeDType};
use crate::output::{self, TextTable, bytes, count, names};
use crate::session::{device_of, open_model};
use crate::tables::{add_verified, verified_json};
use crate::{settings, unused};

/// Runs the command.
pub fn run(flags: MergeArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    unused::check_merge(unused::given_args(&args), &args)?;
    let data = args.data.settings()?;
    let verify = Verify::new(args.tolerance, args.data_file.clone(), data.clone())?;
    if args.adapter.adapter.is_none() {
        return Err(RunError::usage("no adapter given")
            .hint("pass --adapter with the directory of an adapter or of a run"));
    }
    let target = args.output.target()?;
    target.check(&[
        ("--model", args.model.model.as_deref()),
        ("--adapter", args.adapter.adapter.as_deref()),
        ("--data-file", args.data_file.as_deref()),
        ("--config", args.common.config.as_deref()),
    ])?;
    let numerics = NumericChoices {
        base_format: args.base_format,
        ..NumericChoices::default()
    };
    let numerics = numerics.without_int8()?.or_f32();
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let loaded = open_model(&args.model, &args.adapter, &data, &device)?;
    if !args.common.is_quiet() {
        loaded.notes.iter().for_each(output::note);
    }
    unused::check_merged(unused::given_args(&args), &loaded)?;
    let verify = Some(&verify).filter(|_| args.verify.unwrap_or(false));
    let dtype = args.dtype.map(MergeDType::to_format);
    let merged = merge(&loaded, &target, dtype, verify)?;
    show(&args, target.dir, &merged);
    Ok(())
}

fn show(args: &MergeArgs, target: &Path, written: &Merged) {
    let Merged {
        report,
        beside,
        verified,
    } = written;
    if args.common.is_json() {
        output::print_json(&json!({
            "output_dir": target.display().to_string(), "merged_layers": report.merged, "tensors": report.tensors,
            "bytes": report.bytes, "copied": beside.names, "left_out": beside.left_out,
            "verify": verified.as_ref().map(verified_json),
        }));
        return;
    }
    if args.common.is_quiet() {
        return;
    }
    let mut table = TextTable::new(&[]);
    table
        .row(["merged layers", &count(report.merged as u64)])
        .row(["tensors", &count(report.tensors as u64)])
        .row([
            "size",
            &format!("{} in {}", bytes(report.bytes), target.display()),
        ])
        .row(["copied from the base", &names(&beside.names)])
        .row(["left out", &names(&beside.left_out)]);
    if let Some(v) = verified {
        add_verified(&mut table, v);
    }
    output::print(table);
}
