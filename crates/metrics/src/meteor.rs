//! METEOR 1.5 for English as coco-caption (and so e2e-metrics) runs it: `-l en -norm`. Words match
//! exactly, by their stem, as WordNet synonyms, or as paraphrases; the score is a mean of precision
//! and recall, less a penalty for fragments. Source: Denkowski and Lavie 2014; METEOR 1.5.
//!
//! Function words, synonyms and paraphrases need METEOR's tables. Without them their stages do not
//! run, and the score is not the published METEOR: [`Meteor::missing`] says what a report must say.

mod align;
mod normalize;
mod tables;

use std::collections::HashMap;
use std::io::{self, BufRead};

use rust_stemmers::{Algorithm, Stemmer};

use crate::Segment;
use align::{Candidates, Match, chunks};
use tables::{Paraphrases, Words};

/// Matchers in their order.
const STAGES: usize = 4;
const EXACT: usize = 0;
const STEM: usize = 1;
const SYNONYM: usize = 2;
const PARAPHRASE: usize = 3;
/// What a match of each stage is worth.
const WEIGHTS: [f64; STAGES] = [1.0, 0.6, 0.8, 0.6];
/// Weight of recall against precision, form and height of the penalty, weight of content words:
/// tuned by METEOR's authors to rankings by people (task `rank`).
const ALPHA: f64 = 0.85;
const BETA: f64 = 0.2;
const GAMMA: f64 = 0.6;
const DELTA: f64 = 0.75;

/// A table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A line is not what it should be.
    #[error("line {0}: {1}")]
    Line(usize, &'static str),
}

/// METEOR of one corpus. Tables are read after the texts, so that only what these can need is kept.
pub struct Meteor {
    /// Outputs and references as numbers of words.
    segments: Vec<(Vec<u32>, Vec<Vec<u32>>)>,
    words: Words,
    /// The number of each word's stem.
    stems: Vec<u32>,
    is_function: Option<Vec<bool>>,
    synsets: Option<Vec<Vec<u32>>>,
    paraphrases: Option<Paraphrases>,
}

impl Meteor {
    /// Of segments whose texts [`crate::ptb`] has tokenised.
    pub fn new(segments: &[Segment]) -> Self {
        let mut words = Words::new();
        let mut number = |text: &String| {
            let number = |word: String| {
                let next = words.len() as u32;
                *words.entry(word.to_lowercase()).or_insert(next)
            };
            normalize::words(text)
                .into_iter()
                .map(number)
                .collect::<Vec<u32>>()
        };
        let segments = segments
            .iter()
            .map(|s| {
                (
                    number(&s.output),
                    s.references.iter().map(&mut number).collect(),
                )
            })
            .collect();
        Self {
            segments,
            stems: stems(&words),
            words,
            is_function: None,
            synsets: None,
            paraphrases: None,
        }
    }

    /// Reads the list of function words, which weigh less (`function/english.words` in METEOR's
    /// jar).
    pub fn read_function_words(&mut self, list: impl BufRead) -> Result<(), TableError> {
        self.is_function = Some(tables::function_words(list, &self.words)?);
        Ok(())
    }

    /// Reads WordNet's synsets and irregular forms (`synonym/english.synsets`,
    /// `synonym/english.exceptions` in the jar).
    pub fn read_synonyms(
        &mut self,
        synsets: impl BufRead,
        exceptions: impl BufRead,
    ) -> Result<(), TableError> {
        self.synsets = Some(tables::synsets(synsets, exceptions, &self.words)?);
        Ok(())
    }

    /// Reads the table of paraphrases (`data/paraphrase-en.gz` beside the jar, unpacked).
    pub fn read_paraphrases(&mut self, table: impl BufRead) -> Result<(), TableError> {
        self.paraphrases = Some(tables::paraphrases(table, &self.words)?);
        Ok(())
    }

    /// What the score is computed without; empty for the published METEOR.
    pub fn missing(&self) -> Vec<&'static str> {
        let tables = [
            ("function words", self.is_function.is_some()),
            ("synonyms", self.synsets.is_some()),
            ("paraphrases", self.paraphrases.is_some()),
        ];
        let missing = tables.into_iter().filter(|(_, is_there)| !is_there);
        missing.map(|(name, _)| name).collect()
    }

    /// The corpus score, 0 to 1: of the counts of all segments together. NaN without segments.
    pub fn score(&self) -> f64 {
        if self.segments.is_empty() {
            return f64::NAN;
        }
        let mut sum = Counts::default();
        self.best_counts().for_each(|counts| sum.add(&counts));
        sum.score()
    }

    /// The score of each segment.
    pub fn segment_scores(&self) -> Vec<f64> {
        self.best_counts().map(|counts| counts.score()).collect()
    }

    /// The counts of each segment with the reference that gives the highest score, of equals the
    /// first.
    fn best_counts(&self) -> impl Iterator<Item = Counts> {
        self.segments.iter().map(|(output, references)| {
            let mut best: Option<(f64, Counts)> = None;
            for reference in references {
                let counts = self.counts(output, reference);
                let score = counts.score();
                if best.as_ref().is_none_or(|(highest, _)| score > *highest) {
                    best = Some((score, counts));
                }
            }
            best.map(|(_, counts)| counts).unwrap_or_default()
        })
    }

    fn counts(&self, output: &[u32], reference: &[u32]) -> Counts {
        let matches = self.candidates(output, reference).align();
        let is_function = |word: u32| {
            let list = self.is_function.as_ref();
            list.is_some_and(|list| list[word as usize])
        };
        let mut counts = Counts {
            chunks: chunks(&matches) as f64,
            ..Counts::default()
        };
        let count_words = |side: &mut Side, words: &[u32]| {
            side.length = words.len() as f64;
            side.functions = words.iter().filter(|&&word| is_function(word)).count() as f64;
        };
        count_words(&mut counts.output, output);
        count_words(&mut counts.reference, reference);
        for found in &matches {
            let count = |side: &mut Side, words: &[u32]| {
                for &word in words {
                    side.matches[usize::from(is_function(word))][found.stage] += 1.0;
                }
            };
            let span = found.output_start..found.output_start + found.output_length;
            count(&mut counts.output, &output[span]);
            count(
                &mut counts.reference,
                &reference[found.start..found.start + found.length],
            );
        }
        counts
    }

    /// Every match that some stage allows.
    fn candidates(&self, output: &[u32], reference: &[u32]) -> Candidates {
        let mut candidates = Candidates::new(reference.len(), output.len());
        let mut single = |stage, is_match: &dyn Fn(u32, u32) -> bool| {
            for (start, &word) in reference.iter().enumerate() {
                for (output_start, &other) in output.iter().enumerate() {
                    if is_match(word, other) {
                        candidates.push(Match {
                            stage,
                            start,
                            length: 1,
                            output_start,
                            output_length: 1,
                        });
                    }
                }
            }
        };
        single(EXACT, &|a, b| a == b);
        if output == reference {
            return candidates;
        }
        let stem = |word: u32| self.stems[word as usize];
        single(STEM, &|a, b| a != b && stem(a) == stem(b));
        if let Some(sets) = &self.synsets {
            let sets = |word: u32| &sets[word as usize];
            single(SYNONYM, &|a, b| a != b && have_common(sets(a), sets(b)));
        }
        if let Some(table) = &self.paraphrases {
            paraphrased(table, reference, output, |found| candidates.push(found));
            // The table is used in both directions.
            paraphrased(table, output, reference, |found| {
                candidates.push(Match {
                    start: found.output_start,
                    length: found.output_length,
                    output_start: found.start,
                    output_length: found.length,
                    ..found
                });
            });
        }
        candidates
    }
}

/// The number of each word's stem.
fn stems(words: &Words) -> Vec<u32> {
    let stemmer = Stemmer::create(Algorithm::English);
    let mut numbers = HashMap::new();
    let mut stems = vec![0; words.len()];
    for (word, &number) in words {
        let next = numbers.len() as u32;
        stems[number as usize] = *numbers
            .entry(stemmer.stem(word).into_owned())
            .or_insert(next);
    }
    stems
}

/// Whether two sorted lists share an element.
fn have_common(a: &[u32], b: &[u32]) -> bool {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
        }
    }
    false
}

/// Spans of `sources` that the table lets stand for spans of `targets`: by start, length, entry and
/// place.
fn paraphrased(
    table: &Paraphrases,
    sources: &[u32],
    targets: &[u32],
    mut found: impl FnMut(Match),
) {
    for start in 0..sources.len() {
        let longest = table.longest.min(sources.len() - start);
        for length in 1..=longest {
            let phrases = table.by_source.get(&sources[start..start + length]);
            for phrase in phrases.into_iter().flatten() {
                for (output_start, span) in targets.windows(phrase.len().max(1)).enumerate() {
                    if span == phrase.as_slice() {
                        found(Match {
                            stage: PARAPHRASE,
                            start,
                            length,
                            output_start,
                            output_length: phrase.len(),
                        });
                    }
                }
            }
        }
    }
}

/// The words of one side.
#[derive(Clone, Default)]
struct Side {
    length: f64,
    functions: f64,
    /// Matched content words, then function words, by stage.
    matches: [[f64; STAGES]; 2],
}

impl Side {
    fn add(&mut self, other: &Self) {
        self.length += other.length;
        self.functions += other.functions;
        let sums = self.matches.iter_mut().flatten();
        sums.zip(other.matches.iter().flatten())
            .for_each(|(sum, n)| *sum += n);
    }

    fn matched(&self) -> f64 {
        self.matches.iter().flatten().sum()
    }

    /// The share of the weight of its words that is matched.
    fn share(&self) -> f64 {
        let weight = DELTA * (self.length - self.functions) + (1.0 - DELTA) * self.functions;
        let kinds = self.matches.iter().zip([DELTA, 1.0 - DELTA]);
        let matched = kinds.flat_map(|(matches, kind)| {
            matches
                .iter()
                .zip(WEIGHTS)
                .map(move |(matches, stage)| matches * stage * kind)
        });
        matched.sum::<f64>() / weight
    }
}

/// What a score is made of.
#[derive(Clone, Default)]
struct Counts {
    output: Side,
    reference: Side,
    chunks: f64,
}

impl Counts {
    /// A copy of its reference is in no fragments, so it adds none.
    fn add(&mut self, other: &Self) {
        self.output.add(&other.output);
        self.reference.add(&other.reference);
        if !other.is_copy() {
            self.chunks += other.chunks;
        }
    }

    fn is_copy(&self) -> bool {
        self.output.matched() == self.output.length
            && self.reference.matched() == self.reference.length
            && self.chunks == 1.0
    }

    fn score(&self) -> f64 {
        let (output, reference) = (&self.output, &self.reference);
        let mean = 1.0 / ((1.0 - ALPHA) / output.share() + ALPHA / reference.share());
        let fragments = match self.is_copy() {
            true => 0.0,
            false => self.chunks / ((output.matched() + reference.matched()) / 2.0),
        };
        let score = mean * (1.0 - GAMMA * fragments.powf(BETA));
        // Without a match there is nothing to divide by.
        if score.is_nan() { 0.0 } else { score.max(0.0) }
    }
}

#[cfg(test)]
mod tests;
