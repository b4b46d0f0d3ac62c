//! `lowrank profile --generate`: how fast tokens come after prompts, whole and op by op.

use lowrank_engine::Device;
use lowrank_run::memory;
use lowrank_run::profile::GenerationTiming;
use serde_json::json;

use super::op_json;
use crate::args::CommonArgs;
use crate::output::{self, TextTable, bytes, count};

/// Shows what was measured.
pub(super) fn show(timing: &GenerationTiming, device: &Device, common: &CommonArgs) {
    if common.is_json() {
        output::println(as_json(timing, device));
    } else {
        print_tables(timing, device);
    }
}

fn as_json(timing: &GenerationTiming, device: &Device) -> serde_json::Value {
    json!({
        "tokens_per_s": timing.tokens_per_s,
        "decode_tokens_per_s": timing.decode_tokens_per_s(),
        "prompt_tokens_per_s": timing.prompt_tokens_per_s(),
        "step_ms": 1e3 * timing.step_s,
        "rows": timing.rows,
        "new_tokens": timing.new,
        "rounds": timing.rounds,
        "peak_rss_bytes": memory::peak_resident_bytes(),
        "precision": device.numerics().activations,
        "base_format": device.numerics().weights,
        "arithmetic": device.numerics().arithmetic,
        "isa": device.name(),
        "threads": device.threads(),
        "seconds": timing.seconds,
        "tokens": timing.tokens,
        "ops": timing.profile.longest_first().into_iter().map(op_json).collect::<Vec<_>>(),
    })
}

fn print_tables(timing: &GenerationTiming, device: &Device) {
    let passes = (timing.rounds * timing.new) as f64;
    let per_token = |seconds: f64| format!("{:.3}", 1e3 * seconds / passes);
    let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / timing.seconds);
    let mut ops = TextTable::new(&["op", "ms a token", "of the time", "calls"]);
    for row in timing.profile.longest_first() {
        let seconds = row.time.as_secs_f64();
        let calls = format!("{:.1}", row.calls as f64 / passes);
        ops.row([row.op.to_owned(), per_token(seconds), share(seconds), calls]);
    }
    let outside = timing.seconds - timing.profile.total().as_secs_f64();
    ops.row(["outside ops".to_owned(), per_token(outside), share(outside)]);
    output::print(ops);
    let per_second = |speed: f64| count(speed as u64);
    let mut whole = TextTable::new(&[]);
    whole.row([
        "tokens per second, prompts included",
        &per_second(timing.tokens_per_s),
    ]);
    whole.row([
        "tokens per second after the first",
        &per_second(timing.decode_tokens_per_s()),
    ]);
    whole.row([
        "tokens of prompts per second",
        &per_second(timing.prompt_tokens_per_s()),
    ]);
    whole.row(["a token", &format!("{:.2} ms", 1e3 * timing.step_s)]);
    if let Some(resident) = memory::peak_resident_bytes() {
        whole.row(["resident memory at the peak", &bytes(resident)]);
    }
    let (numerics, isa) = (device.numerics(), device.name());
    let threads = device.threads();
    whole.row(["on", &format!("{numerics}, {isa}, {threads} threads")]);
    output::print(whole);
}
