//! The flags of `eval` for generated text.

use clap::Args;
use lowrank_metrics::AnswerScorer;
use serde::{Deserialize, Serialize};

/// How generated texts are made and scored.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScoringArgs {
    /// Write a text after each prompt of the rows and score it by their references
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Generated text")]
    pub generate: Option<bool>,
    /// File for the texts that are written, one a line
    #[arg(long, short, value_name = "FILE", help_heading = "Generated text")]
    pub output_file: Option<String>,
    /// Score texts that are there already, without a model: one a line, or JSON lines with `text`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "adapter", "data_file", "generate"], help_heading = "Generated text")]
    pub outputs: Option<String>,
    /// What to score them by: one reference a line with a blank line after each group, JSON lines
    /// with `references`, or a data set of text generation
    #[arg(long, value_name = "FILE", help_heading = "Generated text")]
    pub references: Option<String>,
    /// Judge each text by itself: exact (the text that is expected) or gsm8k (its final number);
    /// the lines of --output-file then say what was compared and whether it is right
    #[arg(long, value_parser = scorer, value_name = "NAME", help_heading = "Generated text")]
    pub scorer: Option<String>,
    /// Metrics: bleu, nist, meteor, rouge_l, cider, ter, paper_ter, sacrebleu [default: all, or
    /// none beside --scorer]
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "NAME", help_heading = "Generated text")]
    pub metrics: Option<Vec<String>>,
    /// Folder of METEOR 1.5 with its tables, such as that of the Python package pycocoevalcap
    /// [default: LOWRANK_METEOR_DIR]
    #[arg(long, value_name = "DIR", help_heading = "Generated text")]
    pub meteor_dir: Option<String>,
}

fn scorer(name: &str) -> Result<String, String> {
    let names = AnswerScorer::ALL.map(AnswerScorer::name);
    match names.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("expected one of {}", names.join(", "))),
    }
}

impl ScoringArgs {
    /// How each text is judged, if it is.
    pub fn judged_by(&self) -> Option<AnswerScorer> {
        let name = self.scorer.as_deref()?;
        AnswerScorer::ALL
            .into_iter()
            .find(|scorer| scorer.name() == name)
    }
}
