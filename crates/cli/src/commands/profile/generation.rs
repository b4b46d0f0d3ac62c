//! `lowrank profile --generate`: how fast tokens come after prompts, whole and op by op. The rows
//! are the prompts, the most probable token is taken each time, and nothing ends a sequence, so
//! that the work is the same for any weights.

use std::ops::ControlFlow;
use std::time::Instant;

use lowrank_data::Example;
use lowrank_engine::{Device, Profile};
use lowrank_model::{Generate, Generation, Model};
use serde_json::json;

use super::{at_least_one, median, op_json};
use crate::args::ProfileArgs;
use crate::output::{self, TextTable, bytes, count};
use lowrank_run::memory;
use lowrank_run::{RunError, RunResult};

/// New tokens of the round that is not counted: enough to meet every kernel and grow every buffer
/// once.
const WARM_UP: usize = 4;

/// What was measured over all rounds. Speeds are medians of them.
struct Timing {
    /// Of the first new tokens, which the whole prompts are read for.
    prompts_s: f64,
    /// Of each further token of all prompts.
    step_s: f64,
    /// New tokens over the whole time.
    tokens_per_s: f64,
    prompt_tokens: usize,
    rows: usize,
    /// New tokens a row.
    new: usize,
    rounds: usize,
    seconds: f64,
    tokens: Vec<Vec<u32>>,
    profile: Profile,
}

/// Generates after the first `--batch` rows, `--steps` times, and prints what it took.
pub(super) fn run(
    args: &ProfileArgs,
    model: &Model,
    examples: &[Example],
    new: usize,
) -> RunResult {
    let rows = at_least_one("batch", args.batch, 16)?.min(examples.len());
    let prompts: Vec<Vec<u32>> = examples[..rows]
        .iter()
        .map(|example| example.input_ids.clone())
        .collect();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let positions = model.config().facts.max_positions;
    if new == 0 || longest + new > positions {
        return Err(RunError::usage(format!(
            "`generate` is {new}, expected at least 1 and, after {longest} tokens of a prompt, at most {}",
            positions.saturating_sub(longest)
        )));
    }
    let rounds = at_least_one("steps", args.steps, 3)?;
    let timing = time_rounds(model, &prompts, new, rounds)?;
    let device = model.device();
    if args.common.is_json() {
        output::println(as_json(&timing, device));
    } else {
        print_tables(&timing, device);
    }
    Ok(())
}

fn time_rounds(
    model: &Model,
    prompts: &[Vec<u32>],
    new: usize,
    rounds: usize,
) -> RunResult<Timing> {
    let options = |max_new_tokens| Generate {
        max_new_tokens,
        ..Generate::default()
    };
    model.generate(prompts, &options(new.min(WARM_UP)))?;
    model.device().start_profile();
    let (mut firsts, mut wholes, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (started, mut seen, mut first) = (Instant::now(), 0, 0.0);
        let mut on_event = |_, event: Generation<'_>| {
            seen += usize::from(matches!(event, Generation::Token(_)));
            if seen == prompts.len() && first == 0.0 {
                first = started.elapsed().as_secs_f64();
            }
            ControlFlow::Continue(())
        };
        let generated = model.generate_with(prompts, &options(new), &mut on_event)?;
        wholes.push(started.elapsed().as_secs_f64());
        firsts.push(first);
        tokens = generated.into_iter().map(|row| row.tokens).collect();
    }
    let profile = model.device().end_profile().unwrap_or_default();
    let steps = (new - 1).max(1) as f64;
    let mut step_s: Vec<f64> = (wholes.iter().zip(&firsts))
        .map(|(whole, first)| (whole - first) / steps)
        .collect();
    let seconds = wholes.iter().sum();
    Ok(Timing {
        prompts_s: median(&mut firsts),
        step_s: median(&mut step_s),
        tokens_per_s: (prompts.len() * new) as f64 / median(&mut wholes),
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
        rows: prompts.len(),
        new,
        rounds,
        seconds,
        tokens,
        profile,
    })
}

impl Timing {
    fn decode_tokens_per_s(&self) -> f64 {
        self.rows as f64 / self.step_s
    }

    fn prompt_tokens_per_s(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompts_s
    }
}

fn as_json(timing: &Timing, device: &Device) -> serde_json::Value {
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

fn print_tables(timing: &Timing, device: &Device) {
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
