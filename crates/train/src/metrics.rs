//! Quality metrics over predictions and targets, with scikit-learn's (and, for correlations,
//! scipy's) definitions.
//!
//! Undefined cases: a precision, recall or F1 with nothing to divide by is 0 (scikit-learn's
//! `zero_division=0`); Matthews with a constant side is 0; a correlation with a constant side, or
//! of fewer than two rows, is NaN (scipy); every metric of no rows is NaN. Nothing here knows
//! models or files. Sums are in f64.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Task;
use crate::entities::EntityScores;

/// A metric by which checkpoints can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean loss over the counted targets; lower is better.
    Loss,
    /// e to the mean loss of a language model; lower is better.
    Perplexity,
    /// Share of rows (tokens, for token classification) that are right; for several labels a row,
    /// all must be right. Of a language model, the share of the learned tokens that are the most
    /// probable ones.
    Accuracy,
    /// Share of the predicted entities that are right (token classification).
    Precision,
    /// Share of the entities that were found (token classification).
    Recall,
    /// F1 of class 1 where there are two classes, else the macro average; of entities, for token
    /// classification.
    F1,
    /// F1 averaged over the classes that occur in targets or predictions (over all labels, for
    /// several labels a row).
    F1Macro,
    /// F1 of the pooled counts.
    F1Micro,
    /// Matthews correlation, any number of classes.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation; ties share their mean rank.
    Spearman,
}

impl Metric {
    /// The name as written in configurations and metric rows.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::Perplexity => "perplexity",
            Metric::Accuracy => "accuracy",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::F1 => "f1",
            Metric::F1Macro => "f1_macro",
            Metric::F1Micro => "f1_micro",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
        }
    }

    /// Whether a larger value is the better one.
    pub fn greater_is_better(self) -> bool {
        !matches!(self, Metric::Loss | Metric::Perplexity)
    }

    /// The metrics that are defined for a task, the one shown first in front.
    pub fn of_task(task: Task) -> &'static [Metric] {
        match task {
            Task::SingleLabel => &[
                Metric::Accuracy,
                Metric::F1,
                Metric::F1Macro,
                Metric::F1Micro,
                Metric::Matthews,
                Metric::Loss,
            ],
            Task::MultiLabel => &[
                Metric::F1Micro,
                Metric::F1Macro,
                Metric::Accuracy,
                Metric::Loss,
            ],
            Task::CausalLm => &[Metric::Perplexity, Metric::Accuracy, Metric::Loss],
            Task::Regression => &[Metric::Pearson, Metric::Spearman, Metric::Loss],
            Task::TokenClassification => &[
                Metric::Accuracy,
                Metric::Precision,
                Metric::Recall,
                Metric::F1,
                Metric::F1Macro,
                Metric::F1Micro,
                Metric::Loss,
            ],
        }
    }

    /// Whether `new` is strictly better than `old`; NaN is never better, and anything is better
    /// than NaN.
    pub fn is_better(self, new: f64, old: f64) -> bool {
        if new.is_nan() {
            return false;
        }
        if old.is_nan() {
            return true;
        }
        if self.greater_is_better() {
            new > old
        } else {
            new < old
        }
    }
}

/// What one pass over a labelled data set gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Rows that were read.
    pub rows: u64,
    /// Targets that were counted (tokens, for token classification).
    pub targets: u64,
    /// Real tokens that went through the model.
    pub tokens: u64,
    /// The metrics of the task by name, `loss` among them; an undefined one is NaN, `null` in JSON.
    #[serde(with = "nan_as_null")]
    pub metrics: BTreeMap<String, f64>,
}

impl Evaluation {
    /// The value of a metric; NaN where it was not computed.
    pub fn value(&self, metric: Metric) -> f64 {
        self.metrics.get(metric.name()).copied().unwrap_or(f64::NAN)
    }
}

/// Collects predictions and targets batch by batch and computes the task's metrics at the end.
#[derive(Clone, Debug)]
pub struct MetricAccumulator {
    task: Task,
    num_labels: usize,
    rows: u64,
    targets: u64,
    tokens: u64,
    loss_sum: f64,
    hits: u64,
    classes: Vec<(u32, u32)>,
    values: Vec<(f64, f64)>,
    multi: Vec<(bool, bool)>,
    entities: EntityScores,
}

impl MetricAccumulator {
    /// An empty accumulator for a task with `num_labels` classes, labels or values.
    pub fn new(task: Task, num_labels: usize) -> Self {
        Self {
            task,
            num_labels,
            rows: 0,
            targets: 0,
            tokens: 0,
            loss_sum: 0.0,
            hits: 0,
            classes: Vec::new(),
            values: Vec::new(),
            multi: Vec::new(),
            entities: EntityScores::default(),
        }
    }

    /// The same with the labels' names, by which entities are known; their scores are NaN without.
    pub fn with_labels(mut self, labels: &[String]) -> Self {
        self.entities = EntityScores::new(labels);
        self
    }

    /// Counts a batch: its rows, its real tokens, the sum of its losses and over how many targets
    /// that sum runs.
    pub fn add_batch(&mut self, rows: usize, tokens: usize, loss_sum: f64, targets: usize) {
        self.rows += rows as u64;
        self.tokens += tokens as u64;
        self.targets += targets as u64;
        self.loss_sum += loss_sum;
    }

    /// Counts tokens that a language model takes for the most probable.
    pub fn add_hits(&mut self, hits: usize) {
        self.hits += hits as u64;
    }

    /// One classified row or token: the logits and the true class.
    pub fn add_class(&mut self, logits: &[f32], target: u32) {
        self.classes.push((argmax(logits) as u32, target));
    }

    /// One sequence of classified tokens: the logits of each and its true class; those without are
    /// left out.
    pub fn add_sequence<'l>(&mut self, tokens: impl Iterator<Item = (&'l [f32], u32)>) {
        let first = self.classes.len();
        tokens.for_each(|(logits, target)| self.add_class(logits, target));
        self.entities.add(&self.classes[first..]);
    }

    /// One row with several labels: a label is predicted where its logit is above 0 (probability
    /// above 0.5).
    pub fn add_multi(&mut self, logits: &[f32], targets: &[f32]) {
        let pairs = logits.iter().zip(targets);
        self.multi.extend(pairs.map(|(&x, &y)| (x > 0.0, y > 0.5)));
    }

    /// One regression row.
    pub fn add_value(&mut self, prediction: f32, target: f32) {
        self.values.push((f64::from(prediction), f64::from(target)));
    }

    /// The metrics over everything that was added.
    pub fn finish(&self) -> Evaluation {
        let metrics = Metric::of_task(self.task)
            .iter()
            .map(|&metric| (metric.name().to_owned(), self.compute(metric)))
            .collect();
        Evaluation {
            rows: self.rows,
            targets: self.targets,
            tokens: self.tokens,
            metrics,
        }
    }

    fn compute(&self, metric: Metric) -> f64 {
        let several = self.task == Task::MultiLabel;
        match metric {
            Metric::Loss | Metric::Perplexity if self.targets == 0 => f64::NAN,
            Metric::Perplexity => (self.loss_sum / self.targets as f64).exp(),
            Metric::Loss => self.loss_sum / self.targets as f64,
            Metric::Accuracy if self.task == Task::CausalLm => {
                self.hits as f64 / self.targets as f64
            }
            Metric::Accuracy if several => subset_accuracy(&self.multi, self.num_labels),
            Metric::Accuracy => accuracy(&self.classes),
            Metric::Precision => self.entities.precision(),
            Metric::Recall => self.entities.recall(),
            Metric::F1 if self.task == Task::TokenClassification => self.entities.f1(),
            Metric::F1 if self.num_labels == 2 => f1_of_class(&self.classes, 1),
            Metric::F1 => f1_macro(&self.classes),
            Metric::F1Macro if several => multi_label_f1_macro(&self.multi, self.num_labels),
            Metric::F1Macro => f1_macro(&self.classes),
            Metric::F1Micro if several => multi_label_f1_micro(&self.multi),
            // Every wrong row is one false positive and one false negative, so the pooled F1 is the
            // accuracy.
            Metric::F1Micro => accuracy(&self.classes),
            Metric::Matthews => matthews(&self.classes),
            Metric::Pearson => pearson(&self.values),
            Metric::Spearman => spearman(&self.values),
        }
    }
}

/// Index of the largest value, the first of equals (numpy's and torch's rule on the CPU); NaN
/// counts as largest, as there.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &v) in values.iter().enumerate().skip(1) {
        let current = values[best];
        if v > current || (v.is_nan() && !current.is_nan()) {
            best = i;
        }
    }
    best
}

/// Share of pairs whose two sides agree.
pub fn accuracy(pairs: &[(u32, u32)]) -> f64 {
    let hits = pairs.iter().filter(|(p, t)| p == t).count();
    hits as f64 / pairs.len() as f64
}

/// F1 of one class from (prediction, target) pairs; 0 where it is undefined.
pub fn f1_of_class(pairs: &[(u32, u32)], class: u32) -> f64 {
    if pairs.is_empty() {
        return f64::NAN;
    }
    f1_from_counts(&count(pairs.iter().map(|&(p, t)| (p == class, t == class))))
}

/// F1 averaged over the classes that occur on either side.
pub fn f1_macro(pairs: &[(u32, u32)]) -> f64 {
    if pairs.is_empty() {
        return f64::NAN;
    }
    let mut classes: Vec<u32> = pairs.iter().flat_map(|&(p, t)| [p, t]).collect();
    classes.sort_unstable();
    classes.dedup();
    let sum: f64 = classes.iter().map(|&c| f1_of_class(pairs, c)).sum();
    sum / classes.len() as f64
}

/// Matthews correlation of any number of classes; 0 where a side is constant.
///
/// Source: scikit-learn `matthews_corrcoef` (Gorodkin 2004).
pub fn matthews(pairs: &[(u32, u32)]) -> f64 {
    if pairs.is_empty() {
        return f64::NAN;
    }
    let mut predicted: BTreeMap<u32, f64> = BTreeMap::new();
    let mut actual: BTreeMap<u32, f64> = BTreeMap::new();
    let mut correct = 0.0;
    for &(p, t) in pairs {
        *predicted.entry(p).or_default() += 1.0;
        *actual.entry(t).or_default() += 1.0;
        correct += f64::from(u8::from(p == t));
    }
    let n = pairs.len() as f64;
    let dot: f64 = actual
        .iter()
        .map(|(class, &t)| t * predicted.get(class).copied().unwrap_or(0.0))
        .sum();
    let covariance = correct * n - dot;
    let spread_predicted = n * n - predicted.values().map(|v| v * v).sum::<f64>();
    let spread_actual = n * n - actual.values().map(|v| v * v).sum::<f64>();
    if spread_predicted == 0.0 || spread_actual == 0.0 {
        return 0.0;
    }
    covariance / (spread_predicted * spread_actual).sqrt()
}

/// Pearson correlation of the two sides; NaN where a side is constant or there are fewer than two
/// pairs.
pub fn pearson(pairs: &[(f64, f64)]) -> f64 {
    if pairs.len() < 2 {
        return f64::NAN;
    }
    let n = pairs.len() as f64;
    let mean_x = pairs.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = pairs.iter().map(|p| p.1).sum::<f64>() / n;
    let constant = |f: fn(&(f64, f64)) -> f64| pairs.iter().all(|p| f(p) == f(&pairs[0]));
    if constant(|p| p.0) || constant(|p| p.1) {
        return f64::NAN;
    }
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for &(x, y) in pairs {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xx += dx * dx;
        yy += dy * dy;
        xy += dx * dy;
    }
    (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0)
}

/// Spearman correlation: Pearson of the ranks, ties sharing their mean rank; NaN as for Pearson,
/// and with any NaN.
pub fn spearman(pairs: &[(f64, f64)]) -> f64 {
    if pairs.iter().any(|p| p.0.is_nan() || p.1.is_nan()) {
        return f64::NAN;
    }
    let x = ranks(pairs.iter().map(|p| p.0));
    let y = ranks(pairs.iter().map(|p| p.1));
    pearson(&x.into_iter().zip(y).collect::<Vec<_>>())
}

fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        // `==` and not `total_cmp`: -0.0 and 0.0 are a tie.
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        // Ranks count from 1; the mean of start+1 ..= end.
        let mean = (start + 1 + end) as f64 / 2.0;
        for &i in &order[start..end] {
            ranks[i] = mean;
        }
        start = end;
    }
    ranks
}

struct Counts {
    true_positive: u64,
    false_positive: u64,
    false_negative: u64,
}

fn count(pairs: impl Iterator<Item = (bool, bool)>) -> Counts {
    let mut counts = Counts {
        true_positive: 0,
        false_positive: 0,
        false_negative: 0,
    };
    for pair in pairs {
        match pair {
            (true, true) => counts.true_positive += 1,
            (true, false) => counts.false_positive += 1,
            (false, true) => counts.false_negative += 1,
            (false, false) => {}
        }
    }
    counts
}

fn f1_from_counts(c: &Counts) -> f64 {
    let denominator = 2 * c.true_positive + c.false_positive + c.false_negative;
    if denominator == 0 {
        return 0.0;
    }
    2.0 * c.true_positive as f64 / denominator as f64
}

fn subset_accuracy(cells: &[(bool, bool)], num_labels: usize) -> f64 {
    let rows = cells.chunks_exact(num_labels.max(1));
    let total = rows.len();
    let hits = rows.filter(|row| row.iter().all(|(p, t)| p == t)).count();
    hits as f64 / total as f64
}

fn multi_label_f1_micro(cells: &[(bool, bool)]) -> f64 {
    if cells.is_empty() {
        return f64::NAN;
    }
    f1_from_counts(&count(cells.iter().copied()))
}

fn multi_label_f1_macro(cells: &[(bool, bool)], num_labels: usize) -> f64 {
    if cells.is_empty() || num_labels == 0 {
        return f64::NAN;
    }
    let of_label = |label: usize| {
        let column = cells.iter().copied().skip(label).step_by(num_labels);
        f1_from_counts(&count(column))
    };
    (0..num_labels).map(of_label).sum::<f64>() / num_labels as f64
}

/// JSON has no NaN: it is written as `null` and read back as NaN.
mod nan_as_null {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<String, f64>, to: S) -> Result<S::Ok, S::Error> {
        let finite = |v: f64| v.is_finite().then_some(v);
        let map: BTreeMap<&String, Option<f64>> =
            map.iter().map(|(k, &v)| (k, finite(v))).collect();
        map.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let map = BTreeMap::<String, Option<f64>>::deserialize(from)?;
        Ok(map
            .into_iter()
            .map(|(k, v)| (k, v.unwrap_or(f64::NAN)))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by tests/make_expected.py with scikit-learn and scipy.
    const EXPECTED: &str = include_str!("../tests/metrics.json");

    fn close(got: f64, want: &serde_json::Value, what: &str) {
        match want.as_f64() {
            None => assert!(got.is_nan(), "{what}: {got} against NaN"),
            Some(want) => assert!((got - want).abs() <= 1e-12, "{what}: {got} against {want}"),
        }
    }

    fn classes(v: &serde_json::Value) -> Vec<u32> {
        v.as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_u64().unwrap() as u32)
            .collect()
    }

    #[test]
    fn equals_the_reference_implementations() {
        let all: serde_json::Value = serde_json::from_str(EXPECTED).unwrap();
        for case in all["classes"].as_array().unwrap() {
            let pairs: Vec<(u32, u32)> = classes(&case["p"])
                .into_iter()
                .zip(classes(&case["t"]))
                .collect();
            close(accuracy(&pairs), &case["accuracy"], "accuracy");
            close(f1_of_class(&pairs, 1), &case["f1_1"], "f1");
            close(f1_macro(&pairs), &case["f1_macro"], "f1_macro");
            close(accuracy(&pairs), &case["f1_micro"], "f1_micro");
            close(matthews(&pairs), &case["matthews"], "matthews");
        }
        for case in all["values"].as_array().unwrap() {
            let f = |k: &str| -> Vec<f64> {
                case[k]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|x| x.as_f64().unwrap())
                    .collect()
            };
            let pairs: Vec<(f64, f64)> = f("p").into_iter().zip(f("t")).collect();
            close(pearson(&pairs), &case["pearson"], "pearson");
            close(spearman(&pairs), &case["spearman"], "spearman");
        }
        for case in all["multi"].as_array().unwrap() {
            let n = case["labels"].as_u64().unwrap() as usize;
            let mut m = MetricAccumulator::new(Task::MultiLabel, n);
            for (p, t) in classes(&case["p"])
                .chunks(n)
                .zip(classes(&case["t"]).chunks(n))
            {
                let logits: Vec<f32> = p.iter().map(|&x| x as f32 - 0.5).collect();
                let targets: Vec<f32> = t.iter().map(|&x| x as f32).collect();
                m.add_multi(&logits, &targets);
            }
            let e = m.finish();
            close(
                e.value(Metric::Accuracy),
                &case["accuracy"],
                "subset accuracy",
            );
            close(e.value(Metric::F1Micro), &case["f1_micro"], "f1_micro");
            close(e.value(Metric::F1Macro), &case["f1_macro"], "f1_macro");
        }
    }

    #[test]
    fn nothing_gives_nan_and_nan_is_never_better() {
        let e = MetricAccumulator::new(Task::SingleLabel, 2).finish();
        assert!(e.metrics.values().all(|v| v.is_nan()));
        assert!(!Metric::Accuracy.is_better(f64::NAN, 0.1));
        assert!(Metric::Accuracy.is_better(0.1, f64::NAN));
        assert!(Metric::Loss.is_better(0.1, 0.2));
        assert!(!Metric::Accuracy.is_better(0.2, 0.2));
    }

    #[test]
    fn loss_is_the_mean_over_counted_targets() {
        let mut m = MetricAccumulator::new(Task::TokenClassification, 3);
        m.add_batch(2, 10, 3.0, 4);
        m.add_batch(1, 5, 1.0, 4);
        let e = m.finish();
        assert_eq!((e.rows, e.tokens, e.targets), (3, 15, 8));
        assert_eq!(e.value(Metric::Loss), 0.5);
    }

    #[test]
    fn argmax_takes_the_first_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 2]), 0);
        assert_eq!(argmax(&[1.0, f32::NAN, 3.0]), 1);
    }

    #[test]
    fn undefined_metrics_survive_json() {
        let e = MetricAccumulator::new(Task::Regression, 1).finish();
        let text = serde_json::to_string(&e).unwrap();
        assert!(text.contains("null"), "{text}");
        let back: Evaluation = serde_json::from_str(&text).unwrap();
        assert!(back.value(Metric::Pearson).is_nan());
    }
}
