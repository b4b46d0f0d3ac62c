//! Metrics of generated text: each compares outputs with what people wrote for the same input, and each gives the number
//! that the evaluation it is named after publishes, to its last digit.
//!
//! One file a metric, beside the tokeniser that its evaluation uses: `mteval` for [`bleu`], [`nist`] and [`sacrebleu`],
//! [`ptb`] for [`rouge_l`], [`cider`] and [`meteor`]. Token sequences and references in, scores out: nothing here knows
//! models or opens files. Sums are in f64 and in the order of the segments, so that the same texts give the same bits.

pub mod bleu;
pub mod cider;
pub mod meteor;
pub mod mteval;
mod ngrams;
pub mod nist;
pub mod ptb;
pub mod pyter;
pub mod rouge_l;
pub mod sacrebleu;
pub mod ter;

/// One output beside what people wrote for the same input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The text to judge.
    pub output: String,
    /// The texts to judge it by, at least one.
    pub references: Vec<String>,
}

impl Segment {
    /// A segment of these texts.
    pub fn new<S: Into<String>>(
        output: impl Into<String>,
        references: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            output: output.into(),
            references: references.into_iter().map(Into::into).collect(),
        }
    }

    /// The same segment with `f` applied to each text.
    pub fn map(&self, mut f: impl FnMut(&str) -> String) -> Self {
        Self {
            output: f(&self.output),
            references: self.references.iter().map(|text| f(text)).collect(),
        }
    }
}
