//! Metrics of generated text: each compares outputs with what people wrote for the same input, and
//! each gives the number that the evaluation it is named after publishes, to its last digit.
//!
//! One file a metric, beside the tokeniser that its evaluation uses: `mteval` for [`bleu`],
//! [`nist`] and [`sacrebleu`], [`ptb`] for [`rouge_l`], [`cider`] and [`meteor`]. Token sequences
//! and references in, scores out: nothing here knows models or opens files. Sums are in f64 and in
//! the order of the segments, so that the same texts give the same bits.

mod answers;
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

pub use answers::AnswerScorer;

/// A metric of generated text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// [`bleu`].
    Bleu,
    /// [`nist`].
    Nist,
    /// [`meteor`].
    Meteor,
    /// [`rouge_l`].
    RougeL,
    /// [`cider`].
    Cider,
    /// [`ter`].
    Ter,
    /// [`pyter`].
    PaperTer,
    /// [`sacrebleu`].
    SacreBleu,
}

impl Metric {
    /// All of them, those of e2e-metrics first and in its order.
    pub const ALL: [Metric; 8] = [
        Metric::Bleu,
        Metric::Nist,
        Metric::Meteor,
        Metric::RougeL,
        Metric::Cider,
        Metric::Ter,
        Metric::PaperTer,
        Metric::SacreBleu,
    ];

    /// The name in settings and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Bleu => "bleu",
            Metric::Nist => "nist",
            Metric::Meteor => "meteor",
            Metric::RougeL => "rouge_l",
            Metric::Cider => "cider",
            Metric::Ter => "ter",
            Metric::PaperTer => "paper_ter",
            Metric::SacreBleu => "sacrebleu",
        }
    }

    /// The name for people, with the evaluation that it is of.
    pub fn label(self) -> &'static str {
        match self {
            Metric::Bleu => "BLEU (e2e-metrics)",
            Metric::Nist => "NIST (e2e-metrics)",
            Metric::Meteor => "METEOR 1.5",
            Metric::RougeL => "ROUGE-L",
            Metric::Cider => "CIDEr",
            Metric::Ter => "TER (sacreBLEU, %)",
            Metric::PaperTer => "TER (the paper's)",
            Metric::SacreBleu => "BLEU (sacreBLEU, %)",
        }
    }

    /// Whether it is given the tokens of [`ptb`] in place of the texts.
    pub fn takes_treebank_tokens(self) -> bool {
        matches!(self, Metric::Meteor | Metric::RougeL | Metric::Cider)
    }
}

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
