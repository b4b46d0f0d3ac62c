//! NIST as e2e-metrics computes it: n-grams up to 5, each worth the information that its last token
//! adds in the references, lower-cased. Source: Doddington 2002; e2e-metrics `pymteval.py`.

use std::collections::HashMap;

use crate::Segment;
use crate::mteval::lowercased;
use crate::ngrams::{Coded, hits};

/// Longest n-gram.
const ORDER: usize = 5;

/// The corpus score, from 0 up; NaN without segments.
pub fn score(segments: &[Segment]) -> f64 {
    if segments.is_empty() {
        return f64::NAN;
    }
    let corpus = lowercased(segments);
    let information = Information::of(&corpus);
    let (mut sum, mut total) = ([0.0; ORDER], [0i64; ORDER]);
    for coded in &corpus {
        for n in 0..ORDER {
            let hits = hits(&coded.output, &coded.references, n + 1);
            sum[n] += hits.map(|gram| information.of_gram(gram)).sum::<f64>();
            total[n] += coded.output.len() as i64 - n as i64;
        }
    }
    let mean = |n: usize| {
        if total[n] > 0 {
            sum[n] / total[n] as f64
        } else {
            0.0
        }
    };
    let score = (0..ORDER).map(mean).sum::<f64>();
    score * length_penalty(total[0] as f64, information.tokens, &corpus)
}

/// 1 for outputs that are not shorter than the references on average, 0.5 at two thirds of their
/// length.
fn length_penalty(length: f64, reference_tokens: u64, corpus: &[Coded]) -> f64 {
    let references: usize = corpus.iter().map(|coded| coded.references.len()).sum();
    let mean_length = reference_tokens as f64 * corpus.len() as f64 / references as f64;
    let ratio = length / mean_length;
    if ratio >= 1.0 {
        return 1.0;
    }
    if ratio <= 0.0 {
        return 0.0;
    }
    let beta = 0.5f64.ln() / 1.5f64.ln().powi(2);
    (beta * ratio.ln().powi(2)).exp()
}

/// How often each n-gram stands in all references together.
struct Information<'a> {
    counts: HashMap<&'a [u32], u64>,
    tokens: u64,
}

impl<'a> Information<'a> {
    fn of(corpus: &'a [Coded]) -> Self {
        let mut counts = HashMap::new();
        let mut tokens = 0;
        for reference in corpus.iter().flat_map(|coded| &coded.references) {
            tokens += reference.len() as u64;
            for n in 1..=ORDER {
                for gram in reference.windows(n) {
                    *counts.entry(gram).or_insert(0) += 1;
                }
            }
        }
        Self { counts, tokens }
    }

    /// Bits by which the last token was less than certain, given those before it.
    fn of_gram(&self, gram: &[u32]) -> f64 {
        let count = |gram: &[u32]| match gram {
            [] => self.tokens,
            gram => self.counts.get(gram).copied().unwrap_or(0),
        };
        match count(gram) {
            0 => 0.0,
            whole => (count(&gram[..gram.len() - 1]) as f64 / whole as f64).log2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // In "a b a c" (4 tokens), a: 1 bit, b and c: 2 bits; "a b" after a (twice): 1 bit; "b a":
        // 0; "a c": 1.
        let segment = Segment::new("a b a c", ["a b a c"]);
        let unigrams = (1.0 + 2.0 + 1.0 + 2.0) / 4.0;
        let bigrams = (1.0 + 0.0 + 1.0) / 3.0;
        let found = score(&[segment]);
        assert!((found - (unigrams + bigrams)).abs() < 1e-12, "{found}");
    }

    #[test]
    fn short_outputs_pay() {
        let whole = score(&[Segment::new("a b c", ["a b c"])]);
        let short = score(&[Segment::new("a b", ["a b c"])]);
        // Two thirds of the length halve the score; of the unigrams, two of two are found as
        // before.
        assert!(
            (short - 0.5 * 3.0f64.log2()).abs() < 1e-12,
            "{short} {whole}"
        );
        assert_eq!(score(&[Segment::new("", ["a b c"])]), 0.0);
    }
}
