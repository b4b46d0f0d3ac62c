//! Corpus BLEU as sacreBLEU computes it by default: case kept, `13a` tokens, the closest reference
//! length, n-grams up to 4, exponential smoothing (signature
//! `case:mixed|eff:no|tok:13a|smooth:exp`). Source: Post 2018; sacrebleu 2.6.

use crate::Segment;
use crate::mteval::tokenize;
use crate::ngrams::{Coded, hits};

/// Longest n-gram.
const ORDER: usize = 4;

/// The corpus score in per cent, 0 to 100; NaN without segments.
pub fn score(segments: &[Segment]) -> f64 {
    if segments.is_empty() {
        return f64::NAN;
    }
    let texts: Vec<Segment> = segments
        .iter()
        .map(|segment| segment.map(|text| tokenize(text.trim_end())))
        .collect();
    let (mut found, mut total) = ([0u64; ORDER], [0u64; ORDER]);
    let (mut length, mut reference_length) = (0, 0);
    for coded in Coded::all(&texts, str::split_whitespace) {
        for n in 0..ORDER {
            found[n] += hits(&coded.output, &coded.references, n + 1).count() as u64;
            total[n] += coded.output.len().saturating_sub(n) as u64;
        }
        length += coded.output.len();
        reference_length += coded.closest_reference_length();
    }
    100.0 * brevity_penalty(length, reference_length) * precision(&found, &total)
}

fn brevity_penalty(length: usize, reference_length: usize) -> f64 {
    match length {
        0 => 0.0,
        _ if length >= reference_length => 1.0,
        _ => (1.0 - reference_length as f64 / length as f64).exp(),
    }
}

/// The geometric mean of the precisions; the first order without a hit counts half a hit, the next
/// a quarter, and so on.
fn precision(found: &[u64; ORDER], total: &[u64; ORDER]) -> f64 {
    if found.iter().all(|&n| n == 0) || total.contains(&0) {
        return 0.0;
    }
    let mut halves = 1.0;
    let mut log_sum = 0.0;
    for (&found, &total) in found.iter().zip(total) {
        let found = match found {
            0 => {
                halves *= 0.5;
                halves
            }
            found => found as f64,
        };
        log_sum += (found / total as f64).ln();
    }
    (log_sum / ORDER as f64).exp()
}
