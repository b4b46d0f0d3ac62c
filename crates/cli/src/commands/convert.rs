//! `lowrank convert`: a quantised model, or a GGUF file, written as a plain model directory.

use std::path::Path;

use lowrank_formats::{PendingDir, convert};
use serde_json::json;

use crate::args::{ConvertArgs, MergeDType};
use crate::output::{self, TextTable, bytes, count};
use crate::{settings, targets};
use lowrank_run::hub::find_model;
use lowrank_run::result::MAX_SHARD_BYTES;
use lowrank_run::side_files;
use lowrank_run::{RunError, RunResult};

/// Runs the command.
pub fn run(flags: ConvertArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    let target = args.output_dir.as_deref().map(Path::new).ok_or_else(|| {
        RunError::usage("no output directory given").hint("pass --output-dir DIR")
    })?;
    let model = find_model(&args.model.settings())?;
    let inputs = [
        ("--model", model.to_str()),
        ("--config", args.common.config.as_deref()),
    ];
    targets::check_folder(target, args.overwrite, &inputs)?;
    let dtype = args.dtype.unwrap_or(MergeDType::Bf16).to_format();
    let pending = PendingDir::create(target)?;
    let beside = side_files::copy(&model, pending.path())?;
    let written = convert(&model, pending.path(), dtype, MAX_SHARD_BYTES)?;
    targets::write_manifest(pending.path())?;
    match args.overwrite {
        Some(true) => pending.commit_replacing()?,
        Some(false) | None => pending.commit()?,
    }
    if args.common.is_json() {
        output::print_json(&json!({
            "output_dir": target.display().to_string(), "dtype": dtype.name(), "tensors": written.tensors,
            "unpacked": written.unpacked, "bytes": written.bytes, "copied": beside.names, "left_out": beside.left_out,
        }));
    } else if !args.common.is_quiet() {
        let names = |names: &[String]| match names.is_empty() {
            true => "nothing".to_owned(),
            false => names.join(", "),
        };
        let mut table = TextTable::new(&[]);
        table
            .row(["tensors", &count(written.tensors as u64)])
            .row(["unpacked", &count(written.unpacked as u64)])
            .row(["type", dtype.name()])
            .row([
                "size",
                &format!("{} in {}", bytes(written.bytes), target.display()),
            ])
            .row(["copied from the model", &names(&beside.names)])
            .row(["left out", &names(&beside.left_out)]);
        output::print(table);
    }
    Ok(())
}
