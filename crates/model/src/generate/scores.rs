//! The choice of one sequence's next token, and what makes a choice impossible.

use lowrank_engine::host::{Host, fill_uniform};

use super::options::{Sampling, Search};
use super::warp::{Falling, Weights, warp};

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum NoChoice {
    /// The model gives this for a token.
    NotFinite {
        /// NaN or an infinity.
        value: f32,
        /// The token.
        token: usize,
    },
    /// The settings forbid every token.
    NothingLeft,
}

impl NoChoice {
    /// What is said of the prompt of this number, from 1 on, after so many new tokens.
    pub(super) fn message(self, prompt: usize, new_tokens: usize) -> String {
        let place = format!("prompt {prompt}, new token {}", new_tokens + 1);
        match self {
            NoChoice::NotFinite { value, token } => format!(
                "{place}: the model's logit of token id {token} is {value}, expected finite numbers: \
                 weights or adapter are damaged or overflow"
            ),
            NoChoice::NothingLeft => format!(
                "{place}: the settings forbid every token of the vocabulary \
                 (`suppress_tokens`, `bad_words_ids`, n-gram limits or minimum lengths)"
            ),
        }
    }
}

/// Finds the first logit that is no finite number.
pub(super) fn check_finite(host: Host, logits: &[f32]) -> Result<(), NoChoice> {
    if host.all_finite(logits) {
        return Ok(());
    }
    match logits.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(token) => Err(NoChoice::NotFinite {
            value: logits[token],
            token,
        }),
    }
}

/// The next token by scores `[V]` that the rules have changed; a draw hangs on the prompt's number
/// and the step.
pub(super) fn choose(
    host: Host,
    scores: &mut [f32],
    search: &Search,
    number: usize,
    step: usize,
) -> Result<u32, NoChoice> {
    let best = host.argmax(scores);
    if scores[best] == f32::NEG_INFINITY {
        return Err(NoChoice::NothingLeft);
    }
    match search {
        Search::Sample(sampling) => {
            let mut uniform = [0.0f32];
            let stream = ((number as u64) << 32) | step as u64;
            fill_uniform(sampling.seed, stream, 0.0, 1.0, &mut uniform);
            Ok(draw(scores, sampling, uniform[0]))
        }
        Search::Greedy | Search::Beam(_) => Ok(best as u32),
    }
}

/// The token at which the probabilities, from the largest down, sum to `uniform` of all that is
/// kept.
fn draw(scores: &mut [f32], sampling: &Sampling, uniform: f32) -> u32 {
    // Probabilities do not change, and a small temperature divides differences, which stay finite.
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score -= largest);
    warp(sampling, 1, scores);
    let weights = Weights::of(scores);
    let mut order = Falling::new(scores, None);
    let mut rest = f64::from(uniform) * weights.sum();
    for place in 0..order.len() {
        let id = order.at(place);
        rest -= weights.weight(scores[id as usize]);
        if rest < 0.0 {
            return id;
        }
    }
    order.at(order.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_probabilities_of_what_is_kept() {
        // Probabilities 0.1, 0.6, 0.3.
        let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let at = |sampling: Sampling, uniform| draw(&mut logits.clone(), &sampling, uniform);
        let all = Sampling::default();
        assert_eq!([0.59, 0.61, 0.95].map(|u| at(all, u)), [1, 2, 0]);
        // Of two tokens the first has two thirds.
        let top_k = Sampling {
            top_k: Some(2),
            ..all
        };
        assert_eq!([0.65, 0.68, 0.999].map(|u| at(top_k, u)), [1, 2, 2]);
        let top_p = |top_p| Sampling { top_p, ..all };
        assert_eq!([0.65, 0.68].map(|u| at(top_p(0.7), u)), [1, 2]);
        assert_eq!([0.55, 0.0].map(|p| at(top_p(p), 0.999)), [1, 1]);
        // A low temperature leaves the largest alone.
        for temperature in [0.01, 1e-40] {
            let cold = Sampling { temperature, ..all };
            assert_eq!(at(cold, 0.999), 1);
        }
    }

    #[test]
    fn what_is_no_number_is_named_and_nothing_left_too() {
        let mut logits = vec![0.5f32; 200];
        assert_eq!(check_finite(Host::default(), &logits), Ok(()));
        logits[130] = f32::NAN;
        let fault = check_finite(Host::default(), &logits).expect_err("NaN is refused");
        let message = fault.message(3, 0);
        assert!(message.contains("prompt 3, new token 1"), "{message}");
        assert!(message.contains("token id 130 is NaN"), "{message}");
        let mut none = [f32::NEG_INFINITY; 3];
        let chosen = choose(Host::default(), &mut none, &Search::Greedy, 0, 0);
        assert_eq!(chosen, Err(NoChoice::NothingLeft));
    }
}
