//! `lowrank export`: what was trained as a GGUF file, for llama.cpp and what is built on it.

use std::path::Path;

use lowrank_run::device::NumericChoices;
use lowrank_run::export::{
    ExportTo, Exported, OutType, VerifyExport, export_adapter, export_merged,
};
use lowrank_run::merge::Verify;
use lowrank_run::{RunError, RunResult, targets};
use serde_json::json;

use crate::args::ExportArgs;
use crate::output::{self, TextTable, bytes, count};
use crate::session::{device_of, open_model};
use crate::tables::{add_verified, verified_json};
use crate::{settings, unused};

/// Runs the command.
pub fn run(flags: ExportArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    unused::check_export(unused::given_args(&args), &args)?;
    if args.adapter.adapter.is_none() {
        return Err(RunError::usage("no adapter given")
            .hint("pass --adapter with the directory of an adapter or of a run"));
    }
    let path = args.output_file.as_deref().ok_or_else(|| {
        RunError::usage("no file to write to").hint("pass --output-file FILE.gguf")
    })?;
    if args.max_kl.is_some_and(|most| most < 0.0) {
        return Err(RunError::usage("`max_kl` is below 0, expected 0 or more"));
    }
    targets::check_file(
        Some(path),
        &[
            ("--model", args.model.model.as_deref()),
            ("--adapter", args.adapter.adapter.as_deref()),
            ("--data-file", args.data_file.as_deref()),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let data = args.data.settings()?;
    let numerics = NumericChoices::default().or_f32();
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let loaded = open_model(&args.model, &args.adapter, &data, &device)?;
    unused::check_merged(unused::given_args(&args), &loaded)?;
    if !args.common.is_quiet() {
        loaded.notes.iter().for_each(output::note);
    }
    let out = args.outtype.unwrap_or_default();
    let written = match args.to.unwrap_or(ExportTo::GgufAdapter) {
        ExportTo::GgufAdapter => export_adapter(&loaded, Path::new(path), out)?,
        ExportTo::Gguf => {
            let verify = args.verify.unwrap_or(false).then_some(());
            let verify = verify.map(|()| {
                Ok::<_, RunError>(VerifyExport {
                    rows: Verify::new(None, args.data_file.clone(), data)?,
                    max_kl: args.max_kl,
                })
            });
            export_merged(&loaded, Path::new(path), out, verify.transpose()?.as_ref())?
        }
    };
    show(&args, path, out, &written);
    Ok(())
}

fn show(args: &ExportArgs, path: &str, out: OutType, written: &Exported) {
    if args.common.is_json() {
        output::print_json(&json!({
            "output_file": path, "outtype": out, "tensors": written.tensors, "changed": written.changed,
            "bytes": written.bytes,
            "verify": written.verified.as_ref().map(verified_json),
        }));
        return;
    }
    if args.common.is_quiet() {
        return;
    }
    let mut table = TextTable::new(&[]);
    table
        .row(["tensors", &count(written.tensors as u64)])
        .row(["of them trained", &count(written.changed as u64)])
        .row(["size", &format!("{} in {path}", bytes(written.bytes))]);
    if let Some(v) = &written.verified {
        table.row(["mean divergence", &format!("{:.3e} nats", v.kl)]);
        add_verified(&mut table, v);
    }
    output::print(table);
}
