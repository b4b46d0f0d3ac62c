//! From the logits of one sequence to its next token: what is forbidden or made less probable, and the choice.
//! Source: transformers `generation/logits_process.py`, in its order.

use lowrank_kernels::fill_uniform;

use super::{Generate, Search};

/// What the tokens so far change.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    repetition_penalty: f32,
    no_repeat_ngram: usize,
}

impl Rules {
    pub(super) fn of(options: &Generate) -> Self {
        Rules {
            repetition_penalty: options.repetition_penalty,
            no_repeat_ngram: options.no_repeat_ngram,
        }
    }

    /// Changes the scores `[V]` of what may follow `tokens`.
    pub(super) fn apply(&self, tokens: &[u32], scores: &mut [f32]) {
        if self.repetition_penalty != 1.0 {
            let mut seen = tokens.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let score = &mut scores[id as usize];
                *score = if *score < 0.0 {
                    *score * self.repetition_penalty
                } else {
                    *score / self.repetition_penalty
                };
            }
        }
        let n = self.no_repeat_ngram;
        if n > 0 && tokens.len() + 1 >= n {
            let last = &tokens[tokens.len() + 1 - n..];
            for ngram in tokens.windows(n).filter(|ngram| ngram[..n - 1] == *last) {
                scores[ngram[n - 1] as usize] = f32::NEG_INFINITY;
            }
        }
    }
}

/// The next token; `at` is the prompt's number and the step, which a draw hangs on.
pub(super) fn choose(logits: &[f32], search: &Search, at: (usize, usize)) -> u32 {
    match *search {
        Search::Sample {
            temperature,
            top_k,
            top_p,
            seed,
        } => {
            let mut uniform = [0.0f32];
            let stream = ((at.0 as u64) << 32) | at.1 as u64;
            fill_uniform(seed, stream, 0.0, 1.0, &mut uniform);
            draw(logits, temperature, (top_k, top_p), uniform[0])
        }
        Search::Greedy | Search::Beam { .. } => argmax(logits),
    }
}

/// The first of the largest.
pub(super) fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best as u32
}

/// ln softmax of a row, in place.
pub(super) fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let shift = max + sum.ln() as f32;
    logits.iter_mut().for_each(|x| *x -= shift);
}

/// The token at which the probabilities, from the largest down, sum to `uniform` of all that is kept.
fn draw(
    logits: &[f32],
    temperature: f32,
    (top_k, top_p): (Option<usize>, f32),
    uniform: f32,
) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_score = |a: &u32, b: &u32| {
        let (a_score, b_score) = (logits[*a as usize], logits[*b as usize]);
        b_score.total_cmp(&a_score).then(a.cmp(b))
    };
    if let Some(k) = top_k.filter(|k| *k < order.len()) {
        order.select_nth_unstable_by(k - 1, by_score);
        // All that are as probable as the last one stay.
        let least = logits[order[k - 1] as usize];
        order = (0..logits.len() as u32)
            .filter(|&id| logits[id as usize] >= least)
            .collect();
    }
    order.sort_unstable_by(by_score);
    let largest = logits[order[0] as usize];
    let weight = |id: &u32| f64::from((logits[*id as usize] - largest) / temperature).exp();
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let all: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let mut count = 0;
    for weight in &weights {
        // A token stays if those before it do not reach the share yet.
        if count > 0 && kept >= f64::from(top_p) * all {
            break;
        }
        kept += weight;
        count += 1;
    }
    let mut rest = f64::from(uniform) * kept;
    for (id, weight) in order.iter().zip(&weights[..count]) {
        rest -= weight;
        if rest < 0.0 {
            return *id;
        }
    }
    order[count - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_become_less_probable_and_ngrams_impossible() {
        let rules = Rules {
            repetition_penalty: 2.0,
            no_repeat_ngram: 2,
        };
        let mut scores = [1.0, -1.0, 3.0, 4.0];
        rules.apply(&[0, 1, 3, 0], &mut scores);
        // 0 was followed by 1 before, so it is not again.
        assert_eq!(scores, [0.5, f32::NEG_INFINITY, 3.0, 2.0]);
        let mut scores = [1.0, 2.0];
        let once = Rules {
            repetition_penalty: 1.0,
            no_repeat_ngram: 1,
        };
        once.apply(&[1], &mut scores);
        assert_eq!(scores, [1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn draws_follow_the_probabilities_of_what_is_kept() {
        // Probabilities 0.1, 0.6, 0.3.
        let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let at = |top, uniform| draw(&logits, 1.0, top, uniform);
        let all = (None, 1.0);
        assert_eq!([0.59, 0.61, 0.95].map(|u| at(all, u)), [1, 2, 0]);
        // Of two tokens the first has two thirds.
        assert_eq!(
            [0.65, 0.68, 0.999].map(|u| at((Some(2), 1.0), u)),
            [1, 2, 2]
        );
        assert_eq!([0.65, 0.68].map(|u| at((None, 0.7), u)), [1, 2]);
        assert_eq!(at((None, 0.55), 0.999), 1);
        // A low temperature leaves the largest alone.
        assert_eq!(draw(&logits, 0.01, all, 0.999), 1);
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let mut x = [1.0, 2.0, -500.0, 2.0];
        log_softmax(&mut x);
        let sum: f32 = x.iter().map(|v| v.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(argmax(&x), 1);
    }
}
