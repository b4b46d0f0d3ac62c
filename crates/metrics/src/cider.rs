//! CIDEr-D as coco-caption (and so e2e-metrics) computes it: n-grams up to 4 weighted by how few
//! segments have them in their references, the cosine of output and reference with clipped counts
//! and a Gaussian penalty on their difference in length, averaged over references and orders.
//! Source: Vedantam et al. 2015; coco-caption `cider_scorer.py`.

use std::collections::{HashMap, HashSet};

use crate::Segment;
use crate::ngrams::Coded;

/// Longest n-gram.
const ORDER: usize = 4;
/// Standard deviation of the penalty on lengths, in bigrams.
const SIGMA: f64 = 6.0;

/// The mean over segments whose texts [`crate::ptb`] has tokenised, times ten as published; NaN
/// without segments. Of one segment alone it is 0: what every segment has weighs nothing.
pub fn score(segments: &[Segment]) -> f64 {
    let corpus = Coded::all(segments, str::split_whitespace);
    let weights = Weights::of(&corpus);
    let of_segment = |coded: &Coded| {
        let output = weights.vector(&coded.output);
        let similarity = |reference: &Vec<u32>| similarity(&output, &weights.vector(reference));
        let sum: f64 = coded.references.iter().map(similarity).sum();
        10.0 * sum / coded.references.len() as f64
    };
    corpus.iter().map(of_segment).sum::<f64>() / corpus.len() as f64
}

/// How many segments have an n-gram in their references.
struct Weights<'a> {
    segments: HashMap<&'a [u32], u32>,
    log_total: f64,
}

impl<'a> Weights<'a> {
    fn of(corpus: &'a [Coded]) -> Self {
        let mut segments = HashMap::new();
        for coded in corpus {
            let texts = coded.references.iter();
            let grams = |n| texts.clone().flat_map(move |text| text.windows(n));
            let distinct: HashSet<&[u32]> = (1..=ORDER).flat_map(grams).collect();
            for gram in distinct {
                *segments.entry(gram).or_insert(0) += 1;
            }
        }
        let log_total = (corpus.len() as f64).ln();
        Self {
            segments,
            log_total,
        }
    }

    fn vector<'t>(&self, text: &'t [u32]) -> Vector<'t> {
        Vector {
            orders: std::array::from_fn(|i| self.order(text, i + 1)),
            bigrams: text.len().saturating_sub(1),
        }
    }

    fn order<'t>(&self, text: &'t [u32], n: usize) -> Order<'t> {
        let mut order = Order::default();
        for gram in text.windows(n) {
            let rarity = self.log_total - f64::from(*self.segments.get(gram).unwrap_or(&1)).ln();
            let next = order.weights.len();
            let place = *order.places.entry(gram).or_insert(next);
            if place == next {
                order.weights.push((gram, 0.0));
            }
            order.weights[place].1 += rarity;
        }
        order.norm = order.weights.iter().map(|(_, w)| w * w).sum::<f64>().sqrt();
        order
    }
}

/// A text as weighted n-grams.
struct Vector<'t> {
    orders: [Order<'t>; ORDER],
    bigrams: usize,
}

/// Its n-grams of one order, in the order in which they first occur.
#[derive(Default)]
struct Order<'t> {
    places: HashMap<&'t [u32], usize>,
    weights: Vec<(&'t [u32], f64)>,
    norm: f64,
}

/// The mean over orders.
fn similarity(output: &Vector, reference: &Vector) -> f64 {
    let difference = output.bigrams as f64 - reference.bigrams as f64;
    let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
    let cosine = |(output, reference): (&Order, &Order)| {
        let product = |&(gram, weight): &(&[u32], f64)| {
            let place = reference.places.get(gram);
            place.map_or(0.0, |&place| {
                let other = reference.weights[place].1;
                weight.min(other) * other
            })
        };
        let sum: f64 = output.weights.iter().map(product).sum();
        match output.norm * reference.norm {
            0.0 => sum,
            norms => sum / norms,
        }
    };
    let sum: f64 = output
        .orders
        .iter()
        .zip(&reference.orders)
        .map(cosine)
        .sum();
    penalty * sum / ORDER as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_score_ten_and_common_words_weigh_nothing() {
        let segments = [
            Segment::new("a b c d", ["a b c d"]),
            Segment::new("e f g h", ["e f g h"]),
        ];
        assert!((score(&segments) - 10.0).abs() < 1e-12);
        assert_eq!(score(&segments[..1]), 0.0);
    }

    #[test]
    fn lengths_that_differ_cost_by_their_bigrams() {
        // The first output shares 1 of 2 unigrams and no bigram: cosine 1/2 of one order in four; 1
        // bigram against 1. The second has its reference twice: clipped at the reference, cosines
        // 1/2 and 1/sqrt(5)... of orders 1 and 2.
        let segments = [
            Segment::new("a x", ["a b"]),
            Segment::new("e f e f", ["e f"]),
        ];
        let first = 0.25 * 0.5;
        let unigrams = 2.0 / (8.0f64.sqrt() * 2.0f64.sqrt());
        let bigrams = 1.0 / 5.0f64.sqrt();
        let second = 0.25 * (unigrams + bigrams) * (-4.0f64 / 72.0).exp();
        let expected = 10.0 * (first + second) / 2.0;
        assert!(
            (score(&segments) - expected).abs() < 1e-12,
            "{}",
            score(&segments)
        );
    }
}
