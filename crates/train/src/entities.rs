//! Entities in sequences of tags and how many were found: seqeval's scores in its default mode,
//! which is that of the CoNLL script and takes IOB1, IOB2, IOE and IOBES as they come. Knows names
//! of labels, not models.
//! Source: seqeval 1.2.2, `get_entities`, `end_of_chunk`, `start_of_chunk`.

use std::collections::BTreeSet;

/// A label's name taken apart: `B-PER` is the mark B of the kind PER.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag {
    mark: char,
    kind: String,
}

impl Tag {
    /// Nothing outside of sequences: what stands before the first tag and after the last.
    fn outside() -> Self {
        Tag::new("O")
    }

    fn new(label: &str) -> Self {
        let mut rest = label.chars();
        let mark = rest.next().unwrap_or('O');
        let rest = rest.as_str();
        let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
        let kind = if kind.is_empty() { "_" } else { kind };
        Tag {
            mark,
            kind: kind.to_owned(),
        }
    }

    fn ends_before(&self, next: &Tag) -> bool {
        let closes = matches!(self.mark, 'E' | 'S')
            || (matches!(self.mark, 'B' | 'I') && matches!(next.mark, 'B' | 'S' | 'O'));
        closes || (!matches!(self.mark, 'O' | '.') && self.kind != next.kind)
    }

    fn starts_after(&self, before: &Tag) -> bool {
        let opens = matches!(self.mark, 'B' | 'S')
            || (matches!(before.mark, 'E' | 'S' | 'O') && matches!(self.mark, 'E' | 'I'));
        opens || (!matches!(self.mark, 'O' | '.') && before.kind != self.kind)
    }
}

/// How many entities there are, were predicted, and were predicted rightly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    actual: u64,
    predicted: u64,
    correct: u64,
}

/// Counts entities sequence by sequence.
#[derive(Debug, Clone, Default)]
pub struct EntityScores {
    tags: Vec<Tag>,
    counts: Counts,
    sequences: u64,
}

/// An entity: its kind, its first and its last place.
type Entity<'a> = (&'a str, usize, usize);

impl EntityScores {
    /// Scores of tags whose names by class are `labels`.
    pub fn new(labels: &[String]) -> Self {
        EntityScores {
            tags: labels.iter().map(|label| Tag::new(label)).collect(),
            ..EntityScores::default()
        }
    }

    /// Adds one sequence of (prediction, target). Classes without a name count as outside.
    pub fn add(&mut self, sequence: &[(u32, u32)]) {
        let predicted: BTreeSet<_> = self.entities(sequence.iter().map(|pair| pair.0)).collect();
        let actual: BTreeSet<_> = self.entities(sequence.iter().map(|pair| pair.1)).collect();
        let correct = predicted.intersection(&actual).count() as u64;
        let (predicted, actual) = (predicted.len() as u64, actual.len() as u64);
        self.counts.predicted += predicted;
        self.counts.actual += actual;
        self.counts.correct += correct;
        self.sequences += 1;
    }

    /// Share of the predicted entities that are right; 0 of none, NaN without names or sequences.
    pub fn precision(&self) -> f64 {
        self.share(self.counts.predicted)
    }

    /// Share of the entities that were found; 0 of none, NaN without names or sequences.
    pub fn recall(&self) -> f64 {
        self.share(self.counts.actual)
    }

    /// Their harmonic mean; 0 where both are, NaN without names or sequences.
    pub fn f1(&self) -> f64 {
        let (precision, recall) = (self.precision(), self.recall());
        if precision + recall == 0.0 {
            return 0.0;
        }
        2.0 * precision * recall / (precision + recall)
    }

    fn share(&self, of: u64) -> f64 {
        if self.tags.is_empty() || self.sequences == 0 {
            return f64::NAN;
        }
        if of == 0 {
            return 0.0;
        }
        self.counts.correct as f64 / of as f64
    }

    fn entities(&self, classes: impl Iterator<Item = u32>) -> impl Iterator<Item = Entity<'_>> {
        let outside = Tag::outside();
        let tags: Vec<Option<&Tag>> = classes
            .map(|class| self.tags.get(class as usize))
            .chain([None])
            .collect();
        let (mut found, mut start) = (Vec::new(), 0);
        let mut before: Option<&Tag> = None;
        for (place, tag) in tags.into_iter().enumerate() {
            let (last, next) = (before.unwrap_or(&outside), tag.unwrap_or(&outside));
            if let Some(entity) = before
                && last.ends_before(next)
            {
                found.push((entity.kind.as_str(), start, place - 1));
            }
            if next.starts_after(last) {
                start = place;
            }
            before = tag;
        }
        found.into_iter()
    }
}

/// The kind of each label in the sense of `B-` and `I-`, for those who merge neighbours: whether it
/// begins an entity, and the entity's kind. Source: transformers
/// `TokenClassificationPipeline.get_tag`.
pub fn begins_and_kind(label: &str) -> (bool, &str) {
    match label.split_once('-') {
        Some(("B", kind)) => (true, kind),
        Some(("I", kind)) => (false, kind),
        Some(_) | None => (false, label),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    // Made by tests/make_expected.py with seqeval.
    const EXPECTED: &str = include_str!("../tests/seqeval.json");

    #[test]
    fn equals_seqeval_on_random_tags_of_every_scheme() {
        let cases: Vec<Value> = serde_json::from_str(EXPECTED).unwrap();
        assert!(cases.len() >= 40, "{}", cases.len());
        for case in &cases {
            let rows = |key: &str| -> Vec<Vec<String>> {
                serde_json::from_value(case[key].clone()).unwrap()
            };
            let (predicted, actual) = (rows("p"), rows("t"));
            let names: BTreeMap<&String, u32> = (predicted.iter().chain(&actual).flatten())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .zip(0..)
                .collect();
            let labels: Vec<String> = names.keys().map(|name| (*name).clone()).collect();
            let mut scores = EntityScores::new(&labels);
            for (p, t) in predicted.iter().zip(&actual) {
                let pairs: Vec<(u32, u32)> =
                    p.iter().zip(t).map(|(p, t)| (names[p], names[t])).collect();
                scores.add(&pairs);
            }
            for (name, found) in [
                ("precision", scores.precision()),
                ("recall", scores.recall()),
                ("f1", scores.f1()),
            ] {
                let expected = case[name].as_f64().unwrap();
                assert!(
                    (found - expected).abs() <= 1e-12,
                    "{name} of {}: {found} against {expected}",
                    case["scheme"]
                );
            }
        }
    }

    #[test]
    fn without_names_or_rows_there_is_no_score() {
        let mut unnamed = EntityScores::new(&[]);
        unnamed.add(&[(0, 0)]);
        assert!(unnamed.f1().is_nan());
        let names = ["O".to_owned(), "B-PER".to_owned()];
        assert!(EntityScores::new(&names).precision().is_nan());
        let mut none = EntityScores::new(&names);
        none.add(&[(0, 0), (0, 0)]);
        assert_eq!(none.f1(), 0.0);
    }
}
