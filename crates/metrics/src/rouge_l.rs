//! ROUGE-L as coco-caption (and so e2e-metrics) computes it: an F score, beta 1.2, of the best
//! precision and the best recall that the longest common subsequence has with any reference,
//! averaged over segments. Source: Lin and Hovy 2004; coco-caption `rouge.py`.

use crate::Segment;

/// Weight of recall against precision.
const BETA: f64 = 1.2;

/// The mean over segments whose texts [`crate::ptb`] has tokenised, 0 to 1; NaN without segments.
pub fn score(segments: &[Segment]) -> f64 {
    let sum: f64 = segments.iter().map(of_segment).sum();
    sum / segments.len() as f64
}

/// As in coco-caption, an empty text is one empty token.
fn of_segment(segment: &Segment) -> f64 {
    let output: Vec<&str> = segment.output.split(' ').collect();
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in &segment.references {
        let reference: Vec<&str> = reference.split(' ').collect();
        let common = longest_common_subsequence(&output, &reference) as f64;
        precision = precision.max(common / output.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

fn longest_common_subsequence(a: &[&str], b: &[&str]) -> usize {
    // lengths[j]: of the words of `a` so far and the first j of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut before = 0;
        for (j, other) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if word == other {
                before + 1
            } else {
                above.max(lengths[j])
            };
            before = above;
        }
    }
    lengths[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsequences_may_have_gaps() {
        let length = |a: &str, b: &str| {
            let (a, b): (Vec<_>, Vec<_>) = (a.split(' ').collect(), b.split(' ').collect());
            longest_common_subsequence(&a, &b)
        };
        assert_eq!(length("a b c d e", "b x d e y"), 3);
        assert_eq!(length("a b", "b a"), 1);
        assert_eq!(length("a a a", "a"), 1);
    }

    #[test]
    fn best_precision_and_best_recall_may_be_of_two_references() {
        // Precision 3/4 with the first, recall 2/2 with the second.
        let segment = Segment::new("a b c d", ["a b c x y z", "a b"]);
        let expected = 2.44 * 0.75 / (1.0 + 1.44 * 0.75);
        assert!((score(&[segment]) - expected).abs() < 1e-12);
        assert_eq!(score(&[Segment::new("a", ["b"])]), 0.0);
    }
}
