//! Which learning rates are tried, for how long, and which of them is taken. It knows neither
//! models nor files.
//!
//! The trials begin around the rate that would be taken otherwise, and go on in the direction in
//! which the loss falls. The two best go on. What is too large often leads for the first steps, and
//! its loss jumps: a rate under which the validation loss rises is taken only if there is no other.
//! Source: Jamieson & Talwalkar 2016 (successive halving); that the rate is what matters is from
//! "Learning Rate Matters: Vanilla LoRA May Suffice" (arXiv 2602.04998).

use serde::{Deserialize, Serialize};

/// How many times each rate is the one below.
const FACTOR: f64 = 3.0;

/// Rates that are tried at most.
const MOST_ARMS: usize = 4;

/// Rates that go on.
const FINALISTS: usize = 2;

/// The shares of a run's steps after which rates are judged: all of them after the first, the best
/// ones after the others too. With as many rates as may be, and as the steps of the one that is
/// taken are the run's own, 4 · 5 % + 2 · 10 % - 15 % of the run are made in vain.
const SHARES: [f64; 3] = [0.05, 0.1, 0.15];

/// From one judgement to the next, a validation loss that has grown by this factor has risen. Small
/// tasks on MiniLM-L6 had rises of at most 0.2 % under rates that were the best in the end, and of
/// 2 to 30 % under those three times as large.
const RISE: f64 = 1.01;

/// Losses that differ by less than this factor tell nothing: of such rates the largest is better,
/// since it leaves a plateau first, as long as its loss does not rise.
const TIE: f64 = 1.005;

/// A rate that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// The rate.
    pub learning_rate: f64,
    /// The validation losses, a judgement each; null where training diverged.
    pub losses: Vec<Option<f64>>,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Arm {
    /// Whether its loss rose from one judgement to the next, or training diverged.
    fn rises(&self) -> bool {
        let mut pairs = self.losses.windows(2);
        self.last().is_none()
            || pairs.any(|pair| matches!(pair, [Some(a), Some(b)] if *b > RISE * a))
    }

    /// The first loss, with the rate.
    fn first(&self) -> Option<(f64, f64)> {
        Some(((*self.losses.first()?)?, self.learning_rate))
    }

    /// The last loss, with the rate.
    fn last(&self) -> Option<(f64, f64)> {
        Some(((*self.losses.last()?)?, self.learning_rate))
    }
}

/// Trials of learning rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// The rate around which they lie: that of a run without trials.
    pub centre: f64,
    /// Steps after which rates are judged.
    pub steps: [u64; 3],
    /// The rates in the order in which they were tried.
    pub arms: Vec<Arm>,
}

/// How trials go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// With this rate, up to so many steps.
    Try {
        /// The rate.
        learning_rate: f64,
        /// Steps from the run's beginning on.
        steps: u64,
    },
    /// This rate is found.
    Found(f64),
    /// Training diverges with each.
    NoneTrains,
}

impl Search {
    /// Trials for a run of so many steps.
    pub fn new(centre: f64, total: u64) -> Self {
        let steps = |share: f64| ((total as f64 * share).ceil() as u64).max(1);
        Search {
            centre,
            steps: SHARES.map(steps),
            arms: Vec::new(),
        }
    }

    /// What is to be done next.
    pub fn next(&self) -> Next {
        let first = self.steps[0];
        let at = |learning_rate: f64, steps| Next::Try {
            learning_rate: rounded(learning_rate),
            steps,
        };
        let start = [self.centre, self.centre / FACTOR, self.centre * FACTOR];
        if let Some(rate) = start.get(self.arms.len()) {
            return at(*rate, first);
        }
        if let Some(rate) = self.beyond().filter(|_| self.arms.len() < MOST_ARMS) {
            return at(rate, first);
        }
        let ranked = self.ranked();
        let mut stable = Vec::new();
        for (place, arm) in ranked.iter().enumerate() {
            if place >= FINALISTS && !stable.is_empty() {
                break;
            }
            match self.steps.get(arm.losses.len()) {
                _ if arm.rises() => {}
                Some(steps) => {
                    return Next::Try {
                        learning_rate: arm.learning_rate,
                        steps: *steps,
                    };
                }
                None => stable.extend(arm.last()),
            }
        }
        if stable.is_empty() {
            stable.extend(ranked.iter().filter_map(|arm| arm.last()));
        }
        let found = in_order(stable).into_iter().next();
        found.map_or(Next::NoneTrains, |(_, rate)| Next::Found(rate))
    }

    /// The rate beyond the one with the smallest loss, where that is the smallest or the largest
    /// rate and clearly better than the others.
    fn beyond(&self) -> Option<f64> {
        let firsts = self.arms.iter().filter_map(Arm::first);
        let (loss, best) = firsts.min_by(|a, b| a.0.total_cmp(&b.0))?;
        let mut others = self.arms.iter().filter(|arm| arm.learning_rate != best);
        let is_worse = |arm: &Arm| arm.first().is_none_or(|(other, _)| other > TIE * loss);
        if !others.all(is_worse) {
            return None;
        }
        let rates = || self.arms.iter().map(|arm| arm.learning_rate);
        if rates().all(|rate| rate <= best) {
            return Some(best * FACTOR);
        }
        rates().all(|rate| rate >= best).then_some(best / FACTOR)
    }

    /// Notes the loss of a rate that was tried; none where training diverged.
    pub fn note(&mut self, learning_rate: f64, loss: Option<f64>, seconds: f64) {
        let loss = loss.filter(|loss| loss.is_finite());
        let known = |arm: &&mut Arm| arm.learning_rate == learning_rate;
        match self.arms.iter_mut().find(known) {
            Some(arm) => {
                arm.losses.push(loss);
                arm.seconds += seconds;
            }
            None => self.arms.push(Arm {
                learning_rate,
                losses: vec![loss],
                seconds,
            }),
        }
    }

    /// The arms by their first losses, the best first; those that diverged are left out.
    fn ranked(&self) -> Vec<&Arm> {
        let firsts = in_order(self.arms.iter().filter_map(Arm::first).collect());
        let arm = |(_, rate): (f64, f64)| self.arms.iter().find(|arm| arm.learning_rate == rate);
        firsts.into_iter().filter_map(arm).collect()
    }
}

/// Losses with their rates, the best first: those that tie with the smallest loss from the largest
/// rate down, then the others by their losses.
fn in_order(mut losses: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let smallest = losses
        .iter()
        .map(|(loss, _)| *loss)
        .fold(f64::MAX, f64::min);
    let is_tie = |(loss, _): &(f64, f64)| *loss <= TIE * smallest;
    losses.sort_by(|a, b| match (is_tie(a), is_tie(b)) {
        (true, true) => b.1.total_cmp(&a.1),
        _ => a.0.total_cmp(&b.0),
    });
    losses
}

/// Two digits, as people write rates.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is tried of a run of 100 steps where a rate has this loss after so many steps, and what
    /// is found.
    fn tried(loss: impl Fn(f64, u64) -> Option<f64>) -> (Vec<(f64, u64)>, Option<f64>) {
        let (mut search, mut tried) = (Search::new(1e-3, 100), Vec::new());
        loop {
            match search.next() {
                Next::Try {
                    learning_rate,
                    steps,
                } => {
                    tried.push((learning_rate, steps));
                    search.note(learning_rate, loss(learning_rate, steps), 1.0);
                }
                Next::Found(rate) => return (tried, Some(rate)),
                Next::NoneTrains => return (tried, None),
            }
        }
    }

    #[test]
    fn trials_follow_the_falling_loss_and_the_two_best_go_on() {
        let around = |best: f64| move |rate: f64, _| Some((rate / best).ln().abs());
        let start = [(1e-3, 5), (3.3e-4, 5), (3e-3, 5)];
        let with = |more: &[(f64, u64)]| [&start[..], more].concat();
        let to_end = |rates: [f64; 2]| rates.map(|rate| [(rate, 10), (rate, 15)]).concat();
        let (all, found) = tried(around(9e-4));
        assert_eq!((all, found), (with(&to_end([1e-3, 3.3e-4])), Some(1e-3)));
        let (all, found) = tried(around(1e-2));
        let more = [vec![(9e-3, 5)], to_end([9e-3, 3e-3])].concat();
        assert_eq!((all, found), (with(&more), Some(9e-3)));
        let (all, found) = tried(around(1e-5));
        let more = [vec![(1.1e-4, 5)], to_end([1.1e-4, 3.3e-4])].concat();
        assert_eq!((all, found), (with(&more), Some(1.1e-4)));
    }

    #[test]
    fn a_rate_under_which_the_loss_jumps_is_not_taken() {
        // As three times the best rate does on small tasks: ahead, but not steadily.
        let (all, found) = tried(|rate, steps| match (rate > 5e-3, steps) {
            (true, 10) => Some(0.6061),
            (true, _) => Some(0.4479),
            (false, _) => Some(0.5 + 1e-4 / rate),
        });
        assert_eq!(found, Some(3e-3));
        assert_eq!(all[3..], [(9e-3, 5), (9e-3, 10), (3e-3, 10), (3e-3, 15)]);
        // What diverges gives its place to the next one if there is no other.
        let (all, found) = tried(|rate, steps| (rate < 2e-3 || steps < 15).then(|| 1.0 / rate));
        assert_eq!(found, Some(1e-3));
        let last: Vec<f64> = all
            .iter()
            .filter(|(_, steps)| *steps == 15)
            .map(|(rate, _)| *rate)
            .collect();
        assert_eq!(last, [9e-3, 3e-3, 1e-3]);
        // Where all rise, the best is taken all the same; where all diverge, none is.
        let (_, found) = tried(|rate, steps| Some(rate.recip() * steps as f64));
        assert_eq!(found, Some(9e-3));
        assert_eq!(tried(|_, _| None).1, None);
        assert_eq!(tried(|_, _| Some(f64::NAN)).0.len(), 3);
        // On a plateau the largest of the first three is taken, as long as its loss does not rise.
        assert_eq!(tried(|_, _| Some(1.0)).1, Some(3e-3));
        let (all, found) =
            tried(|rate, steps| Some(if rate > 2e-3 && steps > 10 { 1.2 } else { 1.0 }));
        assert_eq!((all.len(), found), (7, Some(1e-3)));
    }

    #[test]
    fn trials_are_shares_of_the_run() {
        let steps = |total| Search::new(1e-3, total).steps;
        assert_eq!([1, 10, 100].map(steps), [[1, 1, 1], [1, 1, 2], [5, 10, 15]]);
    }
}
