//! How fast tokens come after prompts, whole and op by op. The rows are the prompts, the most
//! probable token is taken each time, and nothing ends a sequence, so that the work is the same for
//! any weights.

use std::time::Instant;

use lowrank_engine::Profile;
use lowrank_model::{Generate, Generation, Model, Next};

use super::{Subject, at_least_one, median};
use crate::error::{RunError, RunResult};

/// New tokens of the round that is not counted: enough to meet every kernel and grow every buffer
/// once.
const WARM_UP: usize = 4;

/// What was measured of generation over all rounds. Speeds are medians of them.
pub struct GenerationTiming {
    /// Of the first new tokens, which the whole prompts are read for.
    pub prompts_s: f64,
    /// Of each further token of all prompts.
    pub step_s: f64,
    /// New tokens over the whole time.
    pub tokens_per_s: f64,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Prompts.
    pub rows: usize,
    /// New tokens a row.
    pub new: usize,
    /// How often they were generated.
    pub rounds: usize,
    /// Of all rounds.
    pub seconds: f64,
    /// What was generated, a row each.
    pub tokens: Vec<Vec<u32>>,
    /// Where the time went.
    pub profile: Profile,
}

impl Subject {
    /// Times `new` tokens after the first rows, some rounds.
    ///
    /// # Errors
    /// A number is out of range.
    pub fn time_generation(&self, new: usize) -> RunResult<GenerationTiming> {
        let rows = at_least_one("batch", self.settings.batch, 16)?.min(self.examples.len());
        let prompts: Vec<Vec<u32>> = self.examples[..rows]
            .iter()
            .map(|example| example.input_ids.clone())
            .collect();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = self.model.config().facts.max_positions;
        if new == 0 || longest + new > positions {
            return Err(RunError::usage(format!(
                "`generate` is {new}, expected at least 1 and, after {longest} tokens of a prompt, at most {}",
                positions.saturating_sub(longest)
            )));
        }
        let rounds = at_least_one("steps", self.settings.steps, 3)?;
        time_rounds(&self.model, &prompts, new, rounds)
    }
}

fn time_rounds(
    model: &Model,
    prompts: &[Vec<u32>],
    new: usize,
    rounds: usize,
) -> RunResult<GenerationTiming> {
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
            Next::GoOn
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
    Ok(GenerationTiming {
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

impl GenerationTiming {
    /// New tokens a second after the first of each row.
    pub fn decode_tokens_per_s(&self) -> f64 {
        self.rows as f64 / self.step_s
    }

    /// Tokens of prompts a second.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompts_s
    }
}
