//! BLEU as e2e-metrics computes it (its port of mteval-v13a): lower-cased, the closest reference
//! length, n-grams up to 4, no smoothing to speak of. Source: Papineni et al. 2002; e2e-metrics
//! `pymteval.py`.

use crate::Segment;
use crate::mteval::lowercased;
use crate::ngrams::hits;

/// Longest n-gram.
const ORDER: usize = 4;
/// Stands for no hits, and for no n-grams at all, so that the score is always defined.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// The corpus score, 0 to 1; NaN without segments.
pub fn score(segments: &[Segment]) -> f64 {
    if segments.is_empty() {
        return f64::NAN;
    }
    let (mut found, mut total) = ([0u64; ORDER], [0i64; ORDER]);
    let mut reference_length = 0;
    for coded in lowercased(segments) {
        for n in 0..ORDER {
            found[n] += hits(&coded.output, &coded.references, n + 1).count() as u64;
            // Below 0 for a text shorter than the n-gram: e2e-metrics counts it so.
            total[n] += coded.output.len() as i64 - n as i64;
        }
        reference_length += coded.closest_reference_length();
    }
    let log_precision =
        |n: usize| ((found[n] as f64).max(TINY) / (total[n] as f64).max(SMALL)).ln();
    let precision = ((0..ORDER).map(log_precision).sum::<f64>() / ORDER as f64).exp();
    brevity_penalty(total[0], reference_length) * precision
}

fn brevity_penalty(length: i64, reference_length: usize) -> f64 {
    if length > reference_length as i64 {
        return 1.0;
    }
    let length = if length == 0 { 1e-5 } else { length as f64 };
    (1.0 - reference_length as f64 / length).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_one_reference_is_perfect_and_case_does_not_count() {
        let segment = Segment::new("A cat sat on the Mat.", ["no", "a CAT sat on the mat."]);
        assert_eq!(score(&[segment]), 1.0);
    }

    #[test]
    fn by_hand() {
        // 7 tokens, 6 of them hits; 4 of 6 pairs, 2 of 5 triples, 1 of 4 fours; the closest
        // reference has 8 tokens.
        let output = "the cat sat on a big mat";
        let references = ["the cat sat on the big mat today", "a mat was sat upon"];
        let precision = (1.0f64 * (4.0 / 6.0) * (2.0 / 5.0) * (1.0 / 4.0)).powf(0.25);
        let expected = (1.0f64 - 8.0 / 7.0).exp() * precision;
        let found = score(&[Segment::new(output, references)]);
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    #[test]
    fn nothing_in_common_is_nearly_nothing() {
        let found = score(&[Segment::new("a b c d e", ["v w x y z"])]);
        assert!(found > 0.0 && found < 1e-12, "{found}");
        assert!(score(&[]).is_nan());
    }
}
