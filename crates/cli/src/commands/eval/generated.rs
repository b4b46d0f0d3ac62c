//! `lowrank eval` of generated text: texts that are there already, or that a model writes after the
//! prompts of a data set.

use std::time::Instant;

use lowrank_data::Template;
use lowrank_metrics::{Metric, Segment};
use lowrank_run::generation::Asked;
use lowrank_run::loaded::batch_size;
use lowrank_run::scoring::{
    Group, Part, Scorer, Tally, pair, read_outputs, read_references, read_scorable, write_texts,
};
use lowrank_run::settings::RowSettings;
use lowrank_run::writer::{AskedLayout, BATCH_SIZE, Writer};
use lowrank_run::{RunError, RunResult, targets};
use serde_json::json;

use crate::args::{EvalArgs, ScoringArgs};
use crate::output::{self, TextTable, count};
use crate::session::{decoding, device_of, open_model};
use crate::sink::Sink;
use crate::{presets, settings};

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
    let scorer = scorer(&args.scoring)?;
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
    let mut tally = Tally::default();
    if let Some(judge) = args.scoring.judged_by() {
        let mut sink = results_file(args)?;
        for (segment, group) in segments.iter().zip(&groups) {
            let line = tally.judge(judge, group, &segment.output);
            sink.as_mut().map_or(Ok(()), |sink| sink.write(&line))?;
        }
        sink.map_or(Ok(()), Sink::commit)?;
    }
    report(
        args,
        &scorer,
        &Scored {
            segments,
            groups,
            tally,
        },
    )
}

/// The file for what is written, if there is to be one.
fn results_file(args: &EvalArgs) -> RunResult<Option<Sink>> {
    let file = args.scoring.output_file.as_deref();
    file.map(|file| Sink::open(Some(file))).transpose()
}

/// Writes texts after the prompts of a data set and scores them.
pub fn generate_and_score(args: &EvalArgs, path: &str) -> RunResult {
    // What can be wrong is found before the model is read.
    let asked = Asked::new(settings::to_map(&args.decoding))?;
    let scorer = scorer(&args.scoring)?;
    targets::check_file(
        args.scoring.output_file.as_deref(),
        &[
            ("--data-file", Some(path)),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let size = batch_size(args.per_device_eval_batch_size, BATCH_SIZE)?;
    let numerics = args
        .numerics
        .for_adapter(args.adapter.adapter.as_ref())
        .without_int8()?;
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let language = RowSettings::of_language();
    let loaded = open_model(&args.model, &args.adapter, &language, &device)?;
    presets::check_family(&args.preset, &loaded.base.config.model_type)?;
    let options = decoding(asked, &loaded, &args.common)?;
    // Rows are laid out as for the perplexity of the same rows, also where no notes say how.
    let is_chat = args.data.chat_template.is_some() || loaded.base.adapter_chat.is_some();
    let default = loaded.template.is_none() && !is_chat;
    let default = default.then(|| Template::default().to_string());
    let layout = AskedLayout {
        template: args.data.template.clone().or(default),
        chat_template: args.data.chat_template.clone(),
        system: None,
    };
    let writer = Writer::new(&loaded, options, &layout)?;
    let rows = read_scorable(path, &args.data.settings()?, writer.chat_format())?;
    let mut sink = results_file(args)?;
    let mut tally = Tally::default();
    let started = Instant::now();
    let mut tokens = 0;
    let outputs = write_texts(&writer, &rows, size, &mut |written| {
        tokens += written.tokens;
        let line = match args.scoring.judged_by() {
            Some(judge) => {
                let group = &rows[written.row].group;
                tally.judge(judge, group, written.whole).to_string()
            }
            None => written.text.to_owned(),
        };
        sink.as_mut().map_or(Ok(()), |sink| sink.write(&line))
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
    report(
        args,
        &scorer,
        &Scored {
            segments,
            groups,
            tally,
        },
    )
}

/// Texts, what they are scored by, and how many are right.
struct Scored {
    segments: Vec<Segment>,
    groups: Vec<Group>,
    tally: Tally,
}

/// The metrics that are asked for, with METEOR's tables from the flag or the environment.
fn scorer(args: &ScoringArgs) -> RunResult<Scorer> {
    if args.scorer.is_some() && args.metrics.is_none() {
        return Scorer::new(Some(&[]), None);
    }
    let from_environment = || {
        let dir = std::env::var("LOWRANK_METEOR_DIR").ok();
        dir.filter(|dir| !dir.is_empty())
    };
    let meteor_dir = args.meteor_dir.clone().or_else(from_environment);
    Scorer::new(args.metrics.as_deref(), meteor_dir.as_deref())
}

/// Scores the segments and shows the scores.
fn report(args: &EvalArgs, scorer: &Scorer, scored: &Scored) -> RunResult {
    let parts = scorer.score(&scored.segments, &scored.groups)?;
    let judge = args.scoring.judged_by();
    let tally = &scored.tally;
    if args.common.is_json() {
        let mut whole = parts[0].to_json();
        for part in &parts[1..] {
            whole[part.name] = part.to_json();
        }
        if let Some(judge) = judge {
            let (right, share) = (tally.right, tally.share());
            whole["answers"] = json!({ "scorer": judge.name(), "right": right, "share": share });
        }
        output::print_json(&whole);
    } else {
        let mut table = as_table(&parts);
        if let Some(judge) = judge {
            let share = format!("{:.4}", tally.share());
            table.row([judge.label(), &share]);
            table.row(["right answers", &count(tally.right as u64)]);
        }
        output::print(table);
    }
    let missing = lacking(&parts[0]).filter(|_| !args.common.is_quiet());
    if let Some(missing) = missing {
        output::note(format_args!(
            "note: METEOR was computed without {}, so it is not the published METEOR\nhint: pass --meteor-dir DIR with METEOR 1.5, such as the folder `meteor` of the Python package pycocoevalcap 1.2",
            missing.join(", ")
        ));
    }
    Ok(())
}

/// What METEOR lacked, if it lacked something.
fn lacking(part: &Part) -> Option<&Vec<&'static str>> {
    let missing = part.meteor_without.as_ref();
    missing.filter(|missing| !missing.is_empty())
}

fn as_table(parts: &[Part]) -> TextTable {
    let mut table = match parts {
        [_] => TextTable::new(&[]),
        _ => {
            let names = parts.iter().map(|part| part.name);
            TextTable::new(&std::iter::once("metric").chain(names).collect::<Vec<_>>())
        }
    };
    let mut row = |name: &str, value: &dyn Fn(&Part) -> String| {
        table.row([name.to_owned()].into_iter().chain(parts.iter().map(value)));
    };
    for (i, (metric, _)) in parts[0].scores.iter().enumerate() {
        let label = match metric {
            Metric::Meteor if lacking(&parts[0]).is_some() => "METEOR 1.5 (incomplete)",
            metric => metric.label(),
        };
        row(label, &|part| format!("{:.4}", part.scores[i].1));
    }
    row("segments", &|part| count(part.segments as u64));
    row("references", &|part| count(part.references as u64));
    table
}
