//! `lowrank eval` of generated text: texts that are there already, or that a model writes after the
//! prompts of a data set.

use std::path::Path;
use std::time::Instant;

use lowrank_data::{BadRows, ColumnSpec, FileFormat, Prompt, Table, Template, completed_of, nlg};
use lowrank_metrics::meteor::Meteor;
use lowrank_metrics::{Metric, Segment, bleu, cider, nist, ptb, pyter, rouge_l, sacrebleu, ter};
use serde_json::{Map, Value, json};

use super::meteor_tables::MeteorTables;
use super::texts::{Group, Output, pair, read_outputs, read_references};
use crate::args::{EvalArgs, ScoringArgs};
use crate::output::{self, TextTable, count};
use crate::session::{device, open_model};
use crate::sink::Sink;
use crate::{presets, settings, targets};
use lowrank_run::generation::Asked;
use lowrank_run::loaded::batch_size;
use lowrank_run::rows::header;
use lowrank_run::settings::RowSettings;
use lowrank_run::writer::{BATCH_SIZE, Writer};
use lowrank_run::{RunError, RunResult};

/// Scores a file of outputs.
pub fn score_files(args: &EvalArgs) -> RunResult {
    let (outputs, references) = match (&args.scoring.outputs, &args.scoring.references) {
        (Some(outputs), Some(references)) => (outputs, references),
        (Some(_), None) => {
            return Err(RunError::usage("--outputs has nothing to be scored by")
                .hint("pass --references FILE"));
        }
        (None, _) => {
            return Err(
                RunError::usage("--references has nothing to score").hint("pass --outputs FILE")
            );
        }
    };
    let scorer = Scorer::new(&args.scoring)?;
    let groups = read_references(references, args.data.data_format)?;
    let segments = pair(outputs, read_outputs(outputs)?, references, &groups)?;
    let empty = segments
        .iter()
        .filter(|s| s.output.trim().is_empty())
        .count();
    if empty > 0 && !args.common.is_quiet() {
        output::note(format_args!(
            "note: {empty} of {} outputs are empty",
            segments.len()
        ));
    }
    report(args, &scorer, &segments, &groups)
}

/// Writes texts after the prompts of a data set and scores them.
pub fn generate_and_score(args: &EvalArgs, path: &str) -> RunResult {
    // What can be wrong is found before the model is read.
    let asked = Asked::new(settings::to_map(&args.decoding))?;
    let scorer = Scorer::new(&args.scoring)?;
    targets::check_file(
        args.scoring.output_file.as_deref(),
        &[
            ("--data-file", Some(path)),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let rows = read_rows(args, path)?;
    let size = batch_size(args.per_device_eval_batch_size, BATCH_SIZE)?;
    let numerics = args.numerics.for_adapter(args.adapter.adapter.as_ref());
    let device = device(&args.common, numerics)?;
    let language = RowSettings::of_language();
    let loaded = open_model(&args.model, &args.adapter, &language, &device)?;
    presets::check_family(&args.preset, &loaded.base.config.model_type)?;
    let decoding = asked.beside(&loaded)?;
    if !args.common.is_quiet() {
        let notes = loaded.notes.iter().chain(&decoding.notes);
        notes.for_each(output::note);
    }
    // Rows are laid out as for the perplexity of the same rows, also where no notes say how.
    let default = loaded
        .template
        .is_none()
        .then(|| Template::default().to_string());
    let writer = Writer::new(
        &loaded,
        decoding.options,
        args.data.template.as_ref().or(default.as_ref()),
    )?;
    let mut sink = match &args.scoring.output_file {
        Some(file) => Some(Sink::open(Some(file))?),
        None => None,
    };
    let started = Instant::now();
    let (mut outputs, mut tokens) = (Vec::with_capacity(rows.len()), 0);
    let prompts: Vec<Prompt> = rows.iter().map(|row| row.prompt.clone()).collect();
    writer.write_each(&prompts, size, &mut |i, generated| {
        tokens += generated.tokens.len();
        let text = one_line(&writer.text(&generated.tokens)?);
        if let Some(sink) = &mut sink {
            sink.write(&text)?;
        }
        outputs.push(Output {
            line: rows[i].group.line,
            text,
        });
        Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    sink.map_or(Ok(()), Sink::commit)?;
    if !args.common.is_quiet() {
        let rate = count((tokens as f64 / seconds.max(1e-9)) as u64);
        output::note(format_args!(
            "{} texts, {} tokens, {rate} tokens per second",
            outputs.len(),
            count(tokens as u64)
        ));
    }
    let groups: Vec<Group> = rows.into_iter().map(|row| row.group).collect();
    let segments = pair("the model", outputs, path, &groups)?;
    report(args, &scorer, &segments, &groups)
}

/// A prompt, and what its text is scored by.
struct Scorable {
    prompt: Prompt,
    group: Group,
}

/// The rows of a data set of text generation, or those of any table of prompts and completions,
/// laid out as in training.
fn read_rows(args: &EvalArgs, path: &str) -> RunResult<Vec<Scorable>> {
    let (file, data) = (Path::new(path), &args.data);
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
        if let Some(rows) = completed_of(&table, &columns)? {
            let read = rows.into_iter().map(|row| Scorable {
                prompt: row.prompt,
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
        prompt: row.prompt.clone().into(),
        group: row.into(),
    });
    Ok(read.collect())
}

/// What stands before the first blank line, on one line: as the paper's decoding script cuts it.
fn one_line(text: &str) -> String {
    let text = text.trim();
    let end = text.find("\n\n").unwrap_or(text.len());
    text[..end].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Scores all segments and, where the data set tells them apart, those of seen and of unseen
/// categories.
fn report(args: &EvalArgs, scorer: &Scorer, segments: &[Segment], groups: &[Group]) -> RunResult {
    let mut parts = vec![("all", segments.to_vec())];
    for (name, seen) in [("seen", true), ("unseen", false)] {
        let of_part = groups
            .iter()
            .zip(segments)
            .filter(|(group, _)| group.seen == Some(seen));
        let part: Vec<Segment> = of_part.map(|(_, segment)| segment.clone()).collect();
        if !part.is_empty() && part.len() < segments.len() {
            parts.push((name, part));
        }
    }
    let mut scored = Vec::new();
    for (name, segments) in &parts {
        scored.push((*name, segments, scorer.score(segments)?));
    }
    let missing = scored[0].2.meteor_without.clone();
    if args.common.is_json() {
        output::print_json(&as_json(&scored));
    } else {
        output::print(as_table(scorer, &scored));
    }
    let missing = missing.filter(|missing| !missing.is_empty() && !args.common.is_quiet());
    if let Some(missing) = missing {
        output::note(format_args!(
            "note: METEOR was computed without {}, so it is not the published METEOR\nhint: pass --meteor-dir DIR with METEOR 1.5, such as the folder `meteor` of the Python package pycocoevalcap 1.2",
            missing.join(", ")
        ));
    }
    Ok(())
}

type Part<'a> = (&'a str, &'a Vec<Segment>, Scores);

fn references(segments: &[Segment]) -> usize {
    segments
        .iter()
        .map(|segment| segment.references.len())
        .sum()
}

fn as_json(parts: &[Part]) -> Value {
    let part = |(_, segments, scores): &Part| {
        let values = scores.values.iter();
        let values: Map<String, Value> = values
            .map(|(metric, value)| (metric.name().to_owned(), json!(value)))
            .collect();
        let mut part = json!({
            "segments": segments.len(),
            "references": references(segments),
            "scores": values,
        });
        if let Some(missing) = &scores.meteor_without {
            part["meteor_without"] = json!(missing);
        }
        part
    };
    let mut whole = part(&parts[0]);
    for other in &parts[1..] {
        whole[other.0] = part(other);
    }
    whole
}

fn as_table(scorer: &Scorer, parts: &[Part]) -> TextTable {
    let names: Vec<&str> = parts.iter().map(|(name, ..)| *name).collect();
    let mut table = match parts {
        [_] => TextTable::new(&[]),
        _ => TextTable::new(&[&["metric"], names.as_slice()].concat()),
    };
    for (i, metric) in scorer.metrics.iter().enumerate() {
        let incomplete = parts[0]
            .2
            .meteor_without
            .as_ref()
            .is_some_and(|missing| !missing.is_empty());
        let label = match metric {
            Metric::Meteor if incomplete => "METEOR 1.5 (incomplete)",
            metric => metric.label(),
        };
        let value = |part: &Part| format!("{:.4}", part.2.values[i].1);
        table.row(
            [label.to_owned()]
                .into_iter()
                .chain(parts.iter().map(value)),
        );
    }
    let numbers = |name: &str, number: fn(&[Segment]) -> usize| {
        let values = parts
            .iter()
            .map(move |(_, segments, _)| count(number(segments) as u64));
        [name.to_owned()]
            .into_iter()
            .chain(values)
            .collect::<Vec<_>>()
    };
    table.row(numbers("segments", <[Segment]>::len));
    table.row(numbers("references", references));
    table
}

/// The metrics asked for, and METEOR's tables.
struct Scorer {
    metrics: Vec<Metric>,
    tables: Option<MeteorTables>,
}

/// The scores of some segments.
struct Scores {
    values: Vec<(Metric, f64)>,
    /// What METEOR was computed without, if it was.
    meteor_without: Option<Vec<&'static str>>,
}

impl Scorer {
    fn new(args: &ScoringArgs) -> RunResult<Self> {
        let metrics = match &args.metrics {
            None => Metric::ALL.to_vec(),
            Some(names) => names
                .iter()
                .map(|name| named(name))
                .collect::<RunResult<_>>()?,
        };
        let from_environment = || {
            std::env::var("LOWRANK_METEOR_DIR")
                .ok()
                .filter(|dir| !dir.is_empty())
        };
        let dir = args.meteor_dir.clone().or_else(from_environment);
        let dir = dir.filter(|_| metrics.contains(&Metric::Meteor));
        let tables = dir.as_deref().map(MeteorTables::open).transpose()?;
        Ok(Self { metrics, tables })
    }

    fn score(&self, segments: &[Segment]) -> RunResult<Scores> {
        let tokenised = match self
            .metrics
            .iter()
            .any(|metric| metric.takes_treebank_tokens())
        {
            true => ptb::tokenize_all(segments),
            false => Vec::new(),
        };
        let mut scores = Scores {
            values: Vec::new(),
            meteor_without: None,
        };
        for &metric in &self.metrics {
            let value = match metric {
                Metric::Bleu => bleu::score(segments),
                Metric::Nist => nist::score(segments),
                Metric::Meteor => {
                    let mut meteor = Meteor::new(&tokenised);
                    if let Some(tables) = &self.tables {
                        tables.fill(&mut meteor)?;
                    }
                    scores.meteor_without = Some(meteor.missing());
                    meteor.score()
                }
                Metric::RougeL => rouge_l::score(&tokenised),
                Metric::Cider => cider::score(&tokenised),
                Metric::Ter => ter::score(segments),
                Metric::PaperTer => pyter::score(segments),
                Metric::SacreBleu => sacrebleu::score(segments),
            };
            scores.values.push((metric, value));
        }
        Ok(scores)
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
