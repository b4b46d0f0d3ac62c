//! `lowrank profile`: some optimizer steps of a model (or tokens that it generates), timed whole
//! and op by op, beside what the machine's own product reaches. `cargo xtask bench` compares with
//! the same command.

use std::time::Instant;

use lowrank_engine::{Device, OpTime};
use lowrank_run::RunResult;
use lowrank_run::device::{device, one_for_many};
use lowrank_run::profile::{ProfileSettings, StepTiming, Subject, product_flops_per_second};
use serde_json::json;

use crate::args::ProfileArgs;
use crate::output::{self, TextTable, bytes, count};
use crate::{session, settings, unused};

mod all;
mod generation;
mod workers;

/// Runs the command.
pub fn run(flags: ProfileArgs) -> RunResult {
    let begin = Instant::now();
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    unused::check_profile(unused::given_args(&args), &args)?;
    let method = args.method.get()?;
    let machine = session::machine()?;
    let model = args.model.model.as_deref();
    let numerics = args.numerics.choices().for_training(method, model)?;
    let settings = ProfileSettings {
        model: args.model.settings(),
        model_config: args.model_config,
        ignore_mismatched_sizes: args.new_head.ignore_mismatched_sizes,
        train_file: args.train_file,
        data: args.data.settings()?,
        lora: settings::to_map(&args.lora),
        method,
        batch: args.batch,
        seq: args.seq,
        steps: args.steps,
        generate: args.generate,
        dropout: args.dropout,
        gradient_checkpointing: args.gradient_checkpointing.unwrap_or(false),
    };
    if args.all == Some(true) {
        return all::run(&settings, &machine, &args.common);
    }
    let numerics = numerics.on(&machine)?;
    session::say_warnings(&machine, &args.common);
    if let Some(n) = args.workers {
        let device = one_for_many(machine.isa(), numerics, n)?;
        workers::show(
            &Subject::open(settings, &device)?.schedule(n)?,
            &args.common,
        );
        return Ok(());
    }
    let device = device(machine.isa(), numerics, args.common.threads)?;
    let mut subject = Subject::open(settings, &device)?;
    if let Some(new) = args.generate {
        generation::show(&subject.time_generation(new)?, &device, &args.common);
        return Ok(());
    }
    let timing = subject.time_steps(begin)?;
    let peak = product_flops_per_second(&device);
    if args.common.is_json() {
        output::println(as_json(&timing, peak, &device));
    } else {
        output::print(op_table(&timing, peak));
        output::print(whole_table(&timing, peak, &device));
    }
    Ok(())
}

fn op_json(row: OpTime) -> serde_json::Value {
    json!({
        "op": row.op,
        "phase": row.phase.name(),
        "calls": row.calls,
        "seconds": row.time.as_secs_f64(),
        "flops": row.flops,
    })
}

fn as_json(timing: &StepTiming, peak: f64, device: &Device) -> serde_json::Value {
    json!({
        "tokens_per_s": timing.tokens_per_s,
        "median_s": timing.step_s,
        "steps": timing.steps,
        "tokens": timing.tokens,
        "first_step_s": timing.first_step_s,
        "loss": timing.loss,
        "gflop_per_token": timing.flops_per_token() / 1e9,
        "gemm_peak_gflop_per_s": peak / 1e9,
        "share_of_peak": timing.share_of(peak),
        "peak_rss_bytes": timing.peak_rss_bytes,
        "counted_peak_bytes": device.peak_memory().total(),
        "precision": device.numerics().activations,
        "base_format": device.numerics().weights,
        "arithmetic": device.numerics().arithmetic,
        "isa": device.name(),
        "threads": device.threads(),
        "seconds": timing.seconds,
        "ops": timing.profile.longest_first().into_iter().map(op_json).collect::<Vec<_>>(),
    })
}

/// Op by op.
fn op_table(timing: &StepTiming, peak: f64) -> TextTable {
    let per_step = |seconds: f64| format!("{:.2}", 1e3 * seconds / timing.steps as f64);
    let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / timing.seconds);
    let mut ops = TextTable::new(&[
        "op",
        "ms a step",
        "of the step",
        "calls",
        "GFLOP/s",
        "of the peak",
    ]);
    for row in timing.profile.longest_first() {
        let seconds = row.time.as_secs_f64();
        let rate = row.flops as f64 / seconds.max(1e-12);
        let counted = |text: String| if row.flops > 0 { text } else { String::new() };
        ops.row([
            format!("{} ({})", row.op, row.phase.name()),
            per_step(seconds),
            share(seconds),
            count(row.calls / timing.steps as u64),
            counted(format!("{:.0}", rate / 1e9)),
            counted(format!("{:.0}%", 100.0 * rate / peak)),
        ]);
    }
    let outside = timing.seconds - timing.profile.total().as_secs_f64();
    ops.row(["outside ops".to_owned(), per_step(outside), share(outside)]);
    ops
}

/// As a whole.
fn whole_table(timing: &StepTiming, peak: f64, device: &Device) -> TextTable {
    let mut whole = TextTable::new(&[]);
    whole.row(["tokens per second", &count(timing.tokens_per_s as u64)]);
    whole.row(["a step", &format!("{:.1} ms", 1e3 * timing.step_s)]);
    whole.row([
        "to the end of the first step",
        &format!("{:.2} s", timing.first_step_s),
    ]);
    whole.row([
        "operations a token",
        &format!("{:.3} GFLOP", timing.flops_per_token() / 1e9),
    ]);
    whole.row([
        "peak of this machine's product",
        &format!("{:.0} GFLOP/s", peak / 1e9),
    ]);
    whole.row([
        "share of the peak",
        &format!("{:.0}%", 100.0 * timing.share_of(peak)),
    ]);
    whole.row(["loss of the last step", &format!("{:.4}", timing.loss)]);
    whole.row([
        "counted memory at the peak",
        &bytes(device.peak_memory().total()),
    ]);
    if let Some(resident) = timing.peak_rss_bytes {
        whole.row(["resident memory at the peak", &bytes(resident)]);
    }
    whole.row([
        "on",
        &format!(
            "{}, {}, {} threads",
            device.numerics(),
            device.name(),
            device.threads()
        ),
    ]);
    whole
}
