//! What the tokens so far and the settings forbid, force or make less probable, step by step.
//! Source: transformers 5.24 `generation/logits_process.py`, in the order of
//! `GenerationMixin._get_logits_processor`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::options::Generate;

/// The rules of a request, made once: ids are sorted and fit the vocabulary.
pub(super) struct Rules {
    options: Arc<Generate>,
    /// End tokens within the vocabulary.
    eos: Vec<u32>,
    /// What is added after a sequence of tokens: (the tokens before, the last one, how much).
    biases: Vec<Bias>,
    bad_words: Vec<Bias>,
    suppress: Vec<u32>,
    begin_suppress: Vec<u32>,
}

/// A sequence of tokens and what its last one gets.
struct Bias {
    before: Vec<u32>,
    last: u32,
    amount: f32,
}

/// Where a sequence stands.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    /// The prompt and what was generated.
    pub tokens: &'a [u32],
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// New tokens at most.
    pub room: usize,
}

impl At<'_> {
    fn new_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}

impl Rules {
    /// The rules for a vocabulary of this size, which the settings were found to fit.
    pub(super) fn of(options: &Arc<Generate>, vocab_size: usize) -> Self {
        let sorted = |ids: &[u32]| {
            let known = ids.iter().copied().filter(|&id| (id as usize) < vocab_size);
            let mut ids: Vec<u32> = known.collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let eos = sorted(&options.eos);
        let is_end = |word: &&Vec<u32>| matches!(word.as_slice(), [id] if eos.contains(id));
        let bad = options.bad_words.iter().filter(|word| !is_end(word));
        Rules {
            options: options.clone(),
            biases: biases(options.sequence_bias.iter().map(|(ids, by)| (ids, *by))),
            bad_words: biases(bad.map(|ids| (ids, f32::NEG_INFINITY))),
            suppress: sorted(&options.suppress),
            begin_suppress: sorted(&options.begin_suppress),
            eos,
        }
    }

    /// End tokens that can come.
    pub(super) fn num_ends(&self) -> usize {
        self.options.eos.len()
    }

    /// Whether scores that are not finite are replaced.
    pub(super) fn remove_invalid_values(&self) -> bool {
        self.options.remove_invalid_values
    }

    /// Whether scores are made logarithms of probabilities at the end.
    pub(super) fn renormalize_logits(&self) -> bool {
        self.options.renormalize_logits
    }

    /// Changes the scores `[V]` of what may follow.
    pub(super) fn apply(&self, at: At, scores: &mut [f32]) {
        let (options, tokens) = (&self.options, at.tokens);
        let prompt = &tokens[..at.prompt_len];
        add(&self.biases, tokens, scores);
        penalise(prompt, 1.0 / options.encoder_repetition_penalty, scores);
        penalise(tokens, options.repetition_penalty, scores);
        forbid_ngrams(tokens, tokens, options.no_repeat_ngram, scores);
        forbid_ngrams(prompt, tokens, options.encoder_no_repeat_ngram, scores);
        add(&self.bad_words, tokens, scores);
        if tokens.len() < options.min_length || at.new_tokens() < options.min_new_tokens {
            forbid(&self.eos, scores);
        }
        if let Some(bos) = options.forced_bos.filter(|_| tokens.len() == 1) {
            force(&[bos], scores);
        }
        if !options.forced_eos.is_empty() && at.new_tokens() + 1 == at.room {
            force(&options.forced_eos, scores);
        }
        if options.remove_invalid_values {
            scores.iter_mut().for_each(make_finite);
        }
        if let Some((start, factor)) = options.exponential_decay_length_penalty {
            self.favour_the_end(at.new_tokens().saturating_sub(start), factor, scores);
        }
        forbid(&self.suppress, scores);
        // After a forced first token the second one is the beginning.
        let begin = usize::from(at.prompt_len == 1 && options.forced_bos.is_some());
        if at.new_tokens() == begin {
            forbid(&self.begin_suppress, scores);
        }
    }

    fn favour_the_end(&self, steps: usize, factor: f64, scores: &mut [f32]) {
        if steps == 0 {
            return;
        }
        let growth = factor.powi(i32::try_from(steps).unwrap_or(i32::MAX)) - 1.0;
        // A growth beyond f32 must not make 0 · ∞.
        let growth = growth.min(f64::from(f32::MAX)) as f32;
        for &id in &self.eos {
            let score = &mut scores[id as usize];
            if score.is_finite() {
                *score += score.abs() * growth;
            }
        }
    }
}

/// Of sequences that stand twice the later one counts.
fn biases<'a>(sequences: impl Iterator<Item = (&'a Vec<u32>, f32)>) -> Vec<Bias> {
    let unique: BTreeMap<&Vec<u32>, f32> = sequences.collect();
    let bias = |(ids, amount): (&Vec<u32>, f32)| {
        let (&last, before) = ids.split_last()?;
        let before = before.to_vec();
        Some(Bias {
            before,
            last,
            amount,
        })
    };
    unique.into_iter().filter_map(bias).collect()
}

fn add(biases: &[Bias], tokens: &[u32], scores: &mut [f32]) {
    for bias in biases.iter().filter(|bias| tokens.ends_with(&bias.before)) {
        scores[bias.last as usize] += bias.amount;
    }
}

fn penalise(tokens: &[u32], penalty: f32, scores: &mut [f32]) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = tokens.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        let score = &mut scores[id as usize];
        *score = match *score < 0.0 {
            true => *score * penalty,
            false => *score / penalty,
        };
    }
}

/// Forbids what would complete, at the end of `tokens`, a sequence of `n` tokens that stands in
/// `text`.
fn forbid_ngrams(text: &[u32], tokens: &[u32], n: usize, scores: &mut [f32]) {
    if n == 0 || tokens.len() + 1 < n {
        return;
    }
    let last = &tokens[tokens.len() + 1 - n..];
    for ngram in text.windows(n).filter(|ngram| ngram[..n - 1] == *last) {
        scores[ngram[n - 1] as usize] = f32::NEG_INFINITY;
    }
}

fn forbid(ids: &[u32], scores: &mut [f32]) {
    for &id in ids {
        scores[id as usize] = f32::NEG_INFINITY;
    }
}

fn force(ids: &[u32], scores: &mut [f32]) {
    scores.fill(f32::NEG_INFINITY);
    for &id in ids {
        scores[id as usize] = 0.0;
    }
}

fn make_finite(score: &mut f32) {
    *score = match *score {
        x if x.is_nan() => 0.0,
        x => x.clamp(f32::MIN, f32::MAX),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(options: &Generate, at: At, scores: &[f32]) -> Vec<f32> {
        let mut scores = scores.to_vec();
        Rules::of(&Arc::new(options.clone()), scores.len()).apply(at, &mut scores);
        scores
    }

    fn after(tokens: &[u32], prompt_len: usize) -> At<'_> {
        At {
            tokens,
            prompt_len,
            room: 8,
        }
    }

    #[test]
    fn repetitions_become_less_probable_and_ngrams_impossible() {
        let options = Generate {
            repetition_penalty: 2.0,
            no_repeat_ngram: 2,
            ..Generate::default()
        };
        let scores = apply(&options, after(&[0, 1, 3, 0], 2), &[1.0, -1.0, 3.0, 4.0]);
        // 0 was followed by 1 before, so it is not again.
        assert_eq!(scores, [0.5, f32::NEG_INFINITY, 3.0, 2.0]);
        let once = Generate {
            no_repeat_ngram: 1,
            ..Generate::default()
        };
        let scores = apply(&once, after(&[1], 1), &[1.0, 2.0]);
        assert_eq!(scores, [1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn numbers_that_overflow_stay_numbers() {
        let options = Generate {
            eos: vec![0, 1],
            exponential_decay_length_penalty: Some((0, 1e30)),
            ..Generate::default()
        };
        let scores = apply(&options, after(&[1; 60], 1), &[0.0, -1.0, 1.0]);
        assert!(scores.iter().all(|score| !score.is_nan()), "{scores:?}");
        let clean = Generate {
            remove_invalid_values: true,
            ..Generate::default()
        };
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let scores = apply(&clean, after(&[1], 1), &odd);
        assert_eq!(scores, [0.0, f32::MAX, f32::MIN]);
    }
}
