//! From the logits of one sequence to its next token: what is forbidden or made less probable, and the choice.
//! Source: transformers `generation/logits_process.py`, in its order.

use std::cmp::Ordering;

use lowrank_kernels::{Isa, argmax, fill_uniform};

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
pub(super) fn choose(isa: Isa, logits: &[f32], search: &Search, at: (usize, usize)) -> u32 {
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
        Search::Greedy | Search::Beam { .. } => argmax(isa, logits) as u32,
    }
}

/// The token at which the probabilities, from the largest down, sum to `uniform` of all that is kept.
fn draw(
    logits: &[f32],
    temperature: f32,
    (top_k, top_p): (Option<usize>, f32),
    uniform: f32,
) -> u32 {
    let mut order = Falling::new(logits, top_k);
    let largest = logits[order.at(0) as usize];
    let weight = |id: u32| f64::from((logits[id as usize] - largest) / temperature).exp();
    let all: f64 = order.ids.iter().map(|id| weight(*id)).sum();
    let (mut kept, mut count) = (all, order.ids.len());
    if top_p < 1.0 {
        (kept, count) = (0.0, 0);
        // A token stays if those before it do not reach the share yet.
        while count == 0 || (count < order.ids.len() && kept < f64::from(top_p) * all) {
            kept += weight(order.at(count));
            count += 1;
        }
    }
    let mut rest = f64::from(uniform) * kept;
    for place in 0..count {
        let id = order.at(place);
        rest -= weight(id);
        if rest < 0.0 {
            return id;
        }
    }
    order.at(count - 1)
}

/// Tokens from the largest score down; of equals, the smaller one first. Sorted as far as is asked for: a draw seldom needs
/// more than a few of a vocabulary.
struct Falling<'a> {
    logits: &'a [f32],
    ids: Vec<u32>,
    sorted: usize,
}

impl<'a> Falling<'a> {
    /// All tokens, or the `top_k` largest and those that equal the last of them.
    fn new(logits: &'a [f32], top_k: Option<usize>) -> Self {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        if let Some(k) = top_k.filter(|k| *k < ids.len()) {
            ids.select_nth_unstable_by(k - 1, by_score(logits));
            let least = logits[ids[k - 1] as usize];
            ids = (0..logits.len() as u32)
                .filter(|&id| logits[id as usize] >= least)
                .collect();
        }
        Falling {
            logits,
            ids,
            sorted: 0,
        }
    }

    /// The token at this place.
    fn at(&mut self, place: usize) -> u32 {
        if place >= self.sorted {
            let rest = &mut self.ids[self.sorted..];
            let count = (place + 1 - self.sorted)
                .max(3 * self.sorted)
                .max(64)
                .min(rest.len());
            rest.select_nth_unstable_by(count - 1, by_score(self.logits));
            rest[..count].sort_unstable_by(by_score(self.logits));
            self.sorted += count;
        }
        self.ids[place]
    }
}

fn by_score(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    |a, b| {
        let (a_score, b_score) = (logits[*a as usize], logits[*b as usize]);
        b_score.total_cmp(&a_score).then(a.cmp(b))
    }
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
    fn places_are_those_of_a_whole_sort() {
        let mut logits = vec![0.0f32; 1000];
        fill_uniform(3, 0, 0.0, 1.0, &mut logits);
        logits[700] = logits[20];
        let mut want: Vec<u32> = (0..1000).collect();
        want.sort_by(by_score(&logits));
        let mut order = Falling::new(&logits, None);
        for place in [0, 5, 63, 64, 300, 2, 999] {
            assert_eq!(order.at(place), want[place], "place {place}");
        }
        assert_eq!(Falling::new(&logits, Some(10)).at(9), want[9]);
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
}
