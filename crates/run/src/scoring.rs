//! Generated texts and their scores: texts that are there already, or that a model writes after the
//! prompts of a data set.

mod meteor_tables;
mod texts;

use std::path::Path;

use lowrank_data::{
    BadRows, ChatFormat, ColumnSpec, FileFormat, Table, asked_chats_of, completed_of, nlg,
};
use lowrank_metrics::meteor::Meteor;
use lowrank_metrics::{
    AnswerScorer, Metric, Segment, bleu, cider, nist, ptb, pyter, rouge_l, sacrebleu, ter,
};
use serde_json::{Map, Value, json};

use crate::error::{RunError, RunResult};
use crate::rows::header;
use crate::settings::RowSettings;
use crate::writer::{Question, Writer};
use meteor_tables::MeteorTables;
pub use texts::{Group, Output, pair, read_outputs, read_references};

/// A prompt, and what its text is scored by.
pub struct Scorable {
    /// What is asked.
    pub question: Question,
    /// What people wrote.
    pub group: Group,
}

/// The rows of a data set of text generation, or those of any table of prompts and completions,
/// laid out as in training; chats up to their last answer, where `chats` says how they are laid
/// out.
///
/// # Errors
/// The file cannot be read, or a row cannot be used; none may be left out.
pub fn read_scorable(
    path: &str,
    data: &RowSettings,
    chats: Option<&ChatFormat>,
) -> RunResult<Vec<Scorable>> {
    let file = Path::new(path);
    if data.bad_rows == Some(BadRows::Skip) {
        return Err(RunError::usage(
            "`bad_rows: skip` is not for texts that are to be scored: each needs its references",
        ));
    }
    let columns = ColumnSpec {
        text: data.text_column.clone(),
        text_pair: data.text_pair_column.clone(),
        context: data.context_column.clone(),
        ..ColumnSpec::default()
    };
    let is_set = columns == ColumnSpec::default() && nlg::detect(file).is_some();
    if data.data_format.is_none() && !is_set && FileFormat::from_path(file).is_ok() {
        let table = Table::read(file, None, header(data.no_header))?;
        let chats = chats.map(|format| asked_chats_of(&table, &columns, format));
        if let Some(chats) = chats.transpose()?.flatten() {
            let read = chats.into_iter().map(|asked| Scorable {
                question: Question::Chat(asked.chat),
                group: Group {
                    line: asked.line,
                    references: vec![asked.answer],
                    seen: None,
                },
            });
            return Ok(read.collect());
        }
        if let Some(rows) = completed_of(&table, &columns)? {
            let read = rows.into_iter().map(|row| Scorable {
                question: row.prompt.into(),
                group: Group {
                    line: row.line,
                    references: vec![row.completion],
                    seen: None,
                },
            });
            return Ok(read.collect());
        }
    }
    let rows = nlg::read_prompts(file, data.data_format)?;
    let read = rows.into_iter().map(|row| Scorable {
        question: Question::Prompt(row.prompt.clone().into()),
        group: row.into(),
    });
    Ok(read.collect())
}

/// A text that a model wrote.
pub struct Written<'a> {
    /// Which row, from 0 on.
    pub row: usize,
    /// The text, on one line.
    pub text: &'a str,
    /// The text as it was written.
    pub whole: &'a str,
    /// Tokens that were generated for it.
    pub tokens: usize,
}

/// Writes a text after each prompt, `batch_size` of them together, and hands each out before the
/// next.
///
/// # Errors
/// As [`Writer::write_each`].
pub fn write_texts(
    writer: &Writer<'_>,
    rows: &[Scorable],
    batch_size: usize,
    on_text: &mut dyn FnMut(&Written<'_>) -> RunResult,
) -> RunResult<Vec<Output>> {
    let mut outputs = Vec::with_capacity(rows.len());
    let prompts: Vec<Question> = rows.iter().map(|row| row.question.clone()).collect();
    writer.write_each(&prompts, batch_size, &mut |i, generated| {
        let whole = writer.text(&generated.tokens)?;
        let text = one_line(&whole);
        let tokens = generated.tokens.len();
        on_text(&Written {
            row: i,
            text: &text,
            whole: &whole,
            tokens,
        })?;
        let line = rows[i].group.line;
        outputs.push(Output { line, text });
        Ok(())
    })?;
    Ok(outputs)
}

/// What stands before the first blank line, on one line: as the paper's decoding script cuts it.
fn one_line(text: &str) -> String {
    let text = text.trim();
    let end = text.find("\n\n").unwrap_or(text.len());
    text[..end].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How many answers were right.
#[derive(Debug, Default)]
pub struct Tally {
    /// Those that are.
    pub right: usize,
    /// All of them.
    pub answers: usize,
}

impl Tally {
    /// Counts a text, and says of it what `eval` writes: its line, what of it was compared, and
    /// whether that is right.
    pub fn judge(&mut self, scorer: AnswerScorer, group: &Group, text: &str) -> Value {
        let is_right = scorer.is_right(text, &group.references);
        self.answers += 1;
        self.right += usize::from(is_right);
        let expected = group.references.iter();
        let expected: Vec<Option<String>> = expected.map(|text| scorer.answer(text)).collect();
        json!({
            "line": group.line,
            "text": text,
            "answer": scorer.answer(text),
            "expected": expected,
            "right": is_right,
        })
    }

    /// The share of them; NaN where there are none.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.answers as f64
    }
}

/// The scores of all segments, or of a part of a data set.
pub struct Part {
    /// `all`, `seen` or `unseen`.
    pub name: &'static str,
    /// Its segments.
    pub segments: usize,
    /// Their references.
    pub references: usize,
    /// The scores, in the order of the metrics.
    pub scores: Vec<(Metric, f64)>,
    /// What METEOR was computed without, if it was.
    pub meteor_without: Option<Vec<&'static str>>,
}

impl Part {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        let values = self.scores.iter();
        let values: Map<String, Value> = values
            .map(|(metric, value)| (metric.name().to_owned(), json!(value)))
            .collect();
        let mut part = json!({
            "segments": self.segments,
            "references": self.references,
            "scores": values,
        });
        if let Some(missing) = &self.meteor_without {
            part["meteor_without"] = json!(missing);
        }
        part
    }
}

/// Metrics, and METEOR's tables.
pub struct Scorer {
    metrics: Vec<Metric>,
    tables: Option<MeteorTables>,
}

impl Scorer {
    /// The metrics of these names, all where absent; `meteor_dir` holds METEOR's tables.
    ///
    /// # Errors
    /// There is no such metric, or the folder has no table.
    pub fn new(metrics: Option<&[String]>, meteor_dir: Option<&str>) -> RunResult<Self> {
        let metrics = match metrics {
            None => Metric::ALL.to_vec(),
            Some(names) => {
                let metrics = names.iter().map(|name| named(name));
                metrics.collect::<RunResult<_>>()?
            }
        };
        let dir = meteor_dir.filter(|_| metrics.contains(&Metric::Meteor));
        let tables = dir.map(MeteorTables::open).transpose()?;
        Ok(Self { metrics, tables })
    }

    /// Scores all segments and, where the data set tells them apart, those of seen and of unseen
    /// categories.
    ///
    /// # Errors
    /// A table of METEOR cannot be read.
    pub fn score(&self, segments: &[Segment], groups: &[Group]) -> RunResult<Vec<Part>> {
        let mut parts = vec![self.part("all", segments)?];
        for (name, seen) in [("seen", true), ("unseen", false)] {
            let of_part = groups
                .iter()
                .zip(segments)
                .filter(|(group, _)| group.seen == Some(seen));
            let part: Vec<Segment> = of_part.map(|(_, segment)| segment.clone()).collect();
            if !part.is_empty() && part.len() < segments.len() {
                parts.push(self.part(name, &part)?);
            }
        }
        Ok(parts)
    }

    fn part(&self, name: &'static str, segments: &[Segment]) -> RunResult<Part> {
        let tokenised = match self
            .metrics
            .iter()
            .any(|metric| metric.takes_treebank_tokens())
        {
            true => ptb::tokenize_all(segments),
            false => Vec::new(),
        };
        let (mut scores, mut meteor_without) = (Vec::new(), None);
        for &metric in &self.metrics {
            let value = match metric {
                Metric::Bleu => bleu::score(segments),
                Metric::Nist => nist::score(segments),
                Metric::Meteor => {
                    let mut meteor = Meteor::new(&tokenised);
                    if let Some(tables) = &self.tables {
                        tables.fill(&mut meteor)?;
                    }
                    meteor_without = Some(meteor.missing());
                    meteor.score()
                }
                Metric::RougeL => rouge_l::score(&tokenised),
                Metric::Cider => cider::score(&tokenised),
                Metric::Ter => ter::score(segments),
                Metric::PaperTer => pyter::score(segments),
                Metric::SacreBleu => sacrebleu::score(segments),
            };
            scores.push((metric, value));
        }
        let references = segments.iter().map(|segment| segment.references.len());
        Ok(Part {
            name,
            segments: segments.len(),
            references: references.sum(),
            scores,
            meteor_without,
        })
    }
}

fn named(name: &str) -> RunResult<Metric> {
    let found = Metric::ALL
        .into_iter()
        .find(|metric| metric.name() == name.replace('-', "_"));
    found.ok_or_else(|| {
        let names = Metric::ALL.map(Metric::name);
        let near = lowrank_formats::nearest(name, names);
        let hint = near.map(|near| format!("did you mean `{near}`?"));
        RunError::usage(format!(
            "no metric `{name}`; expected some of {}",
            names.join(", ")
        ))
        .maybe_hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_text_ends_at_a_blank_line() {
        assert_eq!(one_line(" a b\nc \n\nd"), "a b c");
        assert_eq!(one_line("\n\na"), "a");
        assert_eq!(one_line(""), "");
    }
}
