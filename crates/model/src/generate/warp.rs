//! From scores to what is drawn from: temperature and the filters that leave only some tokens.
//! Source: transformers 5.24 `generation/logits_process.py`, in the order of
//! `GenerationMixin._get_logits_processor`.

use std::cmp::Ordering;

use super::options::Sampling;

/// Divides by the temperature and sets what is not drawn to -∞. At least `keep` tokens stay, where
/// so many are there. The scores `[V]` are finite or -∞, not all of them -∞.
pub(super) fn warp(sampling: &Sampling, keep: usize, scores: &mut [f32]) {
    if sampling.temperature != 1.0 {
        scores.iter_mut().for_each(|s| *s /= sampling.temperature);
    }
    if let Some(share) = sampling.top_h {
        top_h(share, scores);
    }
    if let Some(k) = sampling.top_k {
        let least = nth_largest(scores, k.max(keep));
        keep_where(scores, |score| score >= least);
    }
    if sampling.top_p < 1.0 {
        top_p(sampling.top_p, keep, scores);
    }
    if sampling.min_p > 0.0 {
        min_p(sampling.min_p, keep, scores);
    }
    if sampling.typical_p < 1.0 {
        typical(sampling.typical_p, keep, scores);
    }
    if sampling.epsilon_cutoff > 0.0 {
        cut_off(f64::from(sampling.epsilon_cutoff), keep, scores);
    }
    if sampling.eta_cutoff > 0.0 {
        let eta = f64::from(sampling.eta_cutoff);
        let bound = eta.min(eta.sqrt() * (-Weights::of(scores).entropy()).exp());
        cut_off(bound, keep, scores);
    }
}

/// The most probable tokens that `top_h` looks at.
const TOP_H_TOKENS: usize = 100;

fn top_h(share: f32, scores: &mut [f32]) {
    let mut order = Falling::new(scores, Some(TOP_H_TOKENS));
    let count = order.len().min(TOP_H_TOKENS);
    let largest: Vec<u32> = (0..count).map(|place| order.at(place)).collect();
    let top: Vec<f32> = largest.iter().map(|&id| scores[id as usize]).collect();
    let weights = Weights::of(&top);
    let limit = weights.entropy() * f64::from(share);
    let mut sum = 0.0;
    let mut stay = vec![false; scores.len()];
    for (place, &id) in largest.iter().enumerate() {
        let p = weights.probability(top[place]);
        sum += if p > 0.0 { -p * p.ln() } else { 0.0 };
        if place > 0 && sum > limit {
            break;
        }
        stay[id as usize] = true;
    }
    let mut stays = stay.into_iter();
    keep_where(scores, |_| stays.next() == Some(true));
}

fn top_p(share: f32, keep: usize, scores: &mut [f32]) {
    let weights = Weights::of(scores);
    let mut order = Falling::new(scores, None);
    let (mut sum, mut stay) = (0.0, vec![false; scores.len()]);
    // A token stays if those before it do not reach the share yet.
    for place in 0..order.len() {
        if place >= keep.max(1) && sum >= f64::from(share) * weights.sum {
            break;
        }
        let id = order.at(place) as usize;
        sum += weights.weight(scores[id]);
        stay[id] = true;
    }
    let mut stays = stay.into_iter();
    keep_where(scores, |_| stays.next() == Some(true));
}

/// Leaves the tokens of at least this share of the largest probability, and the `keep` largest.
fn min_p(share: f32, keep: usize, scores: &mut [f32]) {
    let (weights, least) = (Weights::of(scores), nth_largest(scores, keep));
    keep_where(scores, |score| {
        weights.weight(score) >= f64::from(share) || score >= least
    });
}

fn typical(mass: f32, keep: usize, scores: &mut [f32]) {
    let weights = Weights::of(scores);
    let entropy = weights.entropy();
    let distance = |score: f32| (-weights.log_probability(score) - entropy).abs();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| distance(scores[a]).total_cmp(&distance(scores[b])));
    let (mut sum, mut last) = (0.0, 0);
    for (place, &id) in order.iter().enumerate() {
        last = place;
        sum += weights.probability(scores[id]);
        if sum >= f64::from(mass) {
            break;
        }
    }
    let farthest = distance(scores[order[last]]);
    let mut stay: Vec<bool> = scores.iter().map(|s| distance(*s) <= farthest).collect();
    order.iter().take(keep).for_each(|&id| stay[id] = true);
    let mut stays = stay.into_iter();
    keep_where(scores, |_| stays.next() == Some(true));
}

/// Leaves the tokens of at least this probability, and the `keep` largest.
fn cut_off(bound: f64, keep: usize, scores: &mut [f32]) {
    let (weights, least) = (Weights::of(scores), nth_largest(scores, keep));
    keep_where(scores, |score| {
        weights.probability(score) >= bound || score >= least
    });
}

fn keep_where(scores: &mut [f32], mut stays: impl FnMut(f32) -> bool) {
    for score in scores {
        if !stays(*score) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// The `n`th largest score; the smallest where there are not so many.
fn nth_largest(scores: &[f32], n: usize) -> f32 {
    let mut sorted = scores.to_vec();
    let place = n.clamp(1, sorted.len()) - 1;
    *sorted
        .select_nth_unstable_by(place, |a, b| b.total_cmp(a))
        .1
}

/// Probabilities that are in proportion to the exponentials of scores, summed in f64.
pub(super) struct Weights {
    largest: f64,
    sum: f64,
    /// The sum of weight · logarithm of the weight.
    weighted: f64,
}

impl Weights {
    pub(super) fn of(scores: &[f32]) -> Self {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let largest = f64::from(largest);
        let (mut sum, mut weighted) = (0.0, 0.0);
        for score in scores.iter().filter(|score| **score != f32::NEG_INFINITY) {
            let log = f64::from(*score) - largest;
            let weight = log.exp();
            sum += weight;
            weighted += weight * log;
        }
        Weights {
            largest,
            sum,
            weighted,
        }
    }

    /// In proportion to the probability; 1 for the most probable.
    pub(super) fn weight(&self, score: f32) -> f64 {
        (f64::from(score) - self.largest).exp()
    }

    /// Of all weights.
    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    fn probability(&self, score: f32) -> f64 {
        self.weight(score) / self.sum
    }

    fn log_probability(&self, score: f32) -> f64 {
        f64::from(score) - self.largest - self.sum.ln()
    }

    /// Of the whole distribution, in nats.
    fn entropy(&self) -> f64 {
        self.sum.ln() - self.weighted / self.sum
    }
}

/// Tokens from the largest score down; of equals, the smaller one first. Sorted as far as is asked
/// for: a draw seldom needs more than a few of a vocabulary.
pub(super) struct Falling<'a> {
    scores: &'a [f32],
    ids: Vec<u32>,
    sorted: usize,
}

impl<'a> Falling<'a> {
    /// All tokens that are not forbidden, or the `top_k` largest and those that equal the last of
    /// them.
    pub(super) fn new(scores: &'a [f32], top_k: Option<usize>) -> Self {
        let least = top_k.map_or(f32::MIN, |k| nth_largest(scores, k).max(f32::MIN));
        let stays = |id: &u32| scores[*id as usize] >= least;
        Falling {
            scores,
            ids: (0..scores.len() as u32).filter(stays).collect(),
            sorted: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The token at this place.
    pub(super) fn at(&mut self, place: usize) -> u32 {
        if place >= self.sorted {
            let rest = &mut self.ids[self.sorted..];
            let count = (place + 1 - self.sorted)
                .max(3 * self.sorted)
                .max(64)
                .min(rest.len());
            rest.select_nth_unstable_by(count - 1, by_score(self.scores));
            rest[..count].sort_unstable_by(by_score(self.scores));
            self.sorted += count;
        }
        self.ids[place]
    }
}

fn by_score(scores: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    |a, b| {
        let (a_score, b_score) = (scores[*a as usize], scores[*b as usize]);
        b_score.total_cmp(&a_score).then(a.cmp(b))
    }
}

#[cfg(test)]
mod tests {
    use lowrank_engine::host::fill_uniform;

    use super::*;

    #[test]
    fn places_are_those_of_a_whole_sort() {
        let mut scores = vec![0.0f32; 1000];
        fill_uniform(3, 0, 0.0, 1.0, &mut scores);
        scores[700] = scores[20];
        let mut want: Vec<u32> = (0..1000).collect();
        want.sort_by(by_score(&scores));
        let mut order = Falling::new(&scores, None);
        for place in [0, 5, 63, 64, 300, 2, 999] {
            assert_eq!(order.at(place), want[place], "place {place}");
        }
        assert_eq!(Falling::new(&scores, Some(10)).at(9), want[9]);
    }
}
