//! `lowrank convert`: a quantised model, or a GGUF file, written as a plain model directory.

use lowrank_run::RunResult;
use lowrank_run::convert::convert;
use lowrank_run::hub::find_model;
use serde_json::json;

use crate::args::{ConvertArgs, MergeDType};
use crate::output::{self, TextTable, bytes, count, names};
use crate::settings;

/// Runs the command.
pub fn run(flags: ConvertArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    let target = args.output.target()?;
    let model = find_model(&args.model.settings())?;
    target.check(&[
        ("--model", model.to_str()),
        ("--config", args.common.config.as_deref()),
    ])?;
    let dtype = args.dtype.unwrap_or(MergeDType::Bf16).to_format();
    let (written, beside) = convert(&model, &target, dtype)?;
    if args.common.is_json() {
        output::print_json(&json!({
            "output_dir": target.dir.display().to_string(), "dtype": dtype.name(), "tensors": written.tensors,
            "unpacked": written.unpacked, "bytes": written.bytes, "copied": beside.names, "left_out": beside.left_out,
        }));
    } else if !args.common.is_quiet() {
        let mut table = TextTable::new(&[]);
        table
            .row(["tensors", &count(written.tensors as u64)])
            .row(["unpacked", &count(written.unpacked as u64)])
            .row(["type", dtype.name()])
            .row([
                "size",
                &format!("{} in {}", bytes(written.bytes), target.dir.display()),
            ])
            .row(["copied from the model", &names(&beside.names)])
            .row(["left out", &names(&beside.left_out)]);
        output::print(table);
    }
    Ok(())
}
