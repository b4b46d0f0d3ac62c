//! `lowrank train`: from settings to an adapter, with a log, checkpoints, a report, and a table at
//! the end.

mod announce;
mod results;

use std::path::Path;

use lowrank_formats::{RunDir, files};
use lowrank_run::folder::{CONFIG_FILE, Existing};
use lowrank_run::machine::{Machine, isa_to_resume};
use lowrank_run::plan::plan_run;
use lowrank_run::result::result_name;
use lowrank_run::spec::{Host, Request, RunSpec, is_known};
use lowrank_run::train::{Advance, Prepared, TrainRun};
use lowrank_run::{RunError, RunResult, yaml};
use lowrank_train::config::DEFAULT_RUN;
use lowrank_train::rates::Arm;
use lowrank_train::trainer::{Event, Summary, Watch, headline_metric};

use crate::args::TrainArgs;
use crate::assets::with_default_assets;
use crate::progress::Progress;
use crate::{interrupt, output, presets, session, settings, source};
use results::Shown;

/// Runs the command.
pub fn run(flags: TrainArgs) -> RunResult {
    if flags.list_presets == Some(true) {
        match flags.common.is_json() {
            true => output::print_json(&presets::list_json()),
            false => output::print(presets::list_text()),
        }
        return Ok(());
    }
    let asked = gather(flags)?;
    let args = &asked.args;
    let run_path = args
        .output_dir
        .clone()
        .unwrap_or_else(|| DEFAULT_RUN.to_owned());
    let existing = existing(args);
    let host = Host {
        machine: machine(existing, Path::new(&run_path))?,
        hub: source::hub(args.model.online),
    };
    if args.dry_run == Some(true) {
        return show_settings(RunSpec::resolve(&asked.request, &host)?, existing);
    }
    let stop = interrupt::listen()?;
    existing.check(Path::new(&run_path), result_name(args.method.get()?))?;
    let spec = RunSpec::resolve(&asked.request, &host)?;
    session::say_warnings(&host.machine, &args.common);
    let metric = headline_metric(&spec.config);
    let progress = Progress::new(&args.common, metric);
    let mut prepared = Prepared::new(spec, existing)?;
    if let Some(aside) = &prepared.moved_aside
        && !args.common.is_quiet()
    {
        output::note(format_args!("the old run is now `{}`", aside.display()));
    }
    if let Some(preset) = presets::describe(&args.preset)? {
        progress.line(preset);
    }
    announce::announce(&progress, &prepared);
    if let Some(before) = prepared.evaluate_before(&stop)? {
        progress.line(format!(
            "before training: {} {} on {} rows",
            metric.name(),
            output::metric(metric, before.value(metric)),
            before.rows
        ));
    }
    let prepared = prepared.find_rate(&stop, &|arm: &Arm| progress.line(announce::arm(arm)))?;
    if let Some(found) = prepared.found_rate() {
        progress.line(format!("the learning rate is {found:e}"));
    }
    let on_event = |event: Event<'_>| progress.on_event(&event);
    let watch = Watch {
        stop: &stop,
        on_event: &on_event,
    };
    let mut run = prepared.start(watch)?;
    let summary = follow(&mut run, watch);
    progress.finish();
    let summary = summary?;
    if run.was_finished_before(&summary) {
        return results::show_written(run.folder(), &args.common);
    }
    let results = run.finish(summary)?;
    let shown = Shown { results: &results };
    shown.write_report()?;
    if args.common.is_json() {
        output::print_json(&results.to_json());
    } else if !args.common.is_quiet() {
        output::print(shown.to_text());
    }
    Ok(())
}

/// The processor, which a run that goes on uses as it did before.
fn machine(existing: Existing, run: &Path) -> RunResult<Machine> {
    let machine = session::machine()?;
    if existing != Existing::Resume {
        return Ok(machine);
    }
    let isa = isa_to_resume(run, session::forced_isa()?, machine.isa())?;
    Ok(machine.with_isa(isa))
}

/// Prints the settings of a run that is not made.
fn show_settings(mut spec: RunSpec, existing: Existing) -> RunResult {
    if spec.config.memory.max_memory.is_some() {
        plan_run(&mut spec, existing)?;
    }
    output::print(yaml::to_yaml(&spec.to_settings()));
    Ok(())
}

/// Drives the run to its end.
fn follow(run: &mut TrainRun, watch: Watch<'_>) -> RunResult<Summary> {
    loop {
        if let Advance::Finished(summary) = run.advance(watch)? {
            return Ok(*summary);
        }
    }
}

fn existing(args: &TrainArgs) -> Existing {
    match (args.resume, args.overwrite) {
        (Some(true), _) => Existing::Resume,
        (_, Some(true)) => Existing::MoveAside,
        (None | Some(false), None | Some(false)) => Existing::Refuse,
    }
}

/// Flags over the file they name, over the run that is resumed, over the repository's own model and
/// data.
fn gather(flags: TrainArgs) -> RunResult<Asked> {
    let no_shuffle = flags.optimization.no_shuffle;
    let file = flags.common.config.clone();
    let given = settings::with_file(flags.clone(), file.as_deref())?;
    let mut flags = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    if no_shuffle {
        flags.optimization.shuffle = Some(false);
    }
    if flags.resume == Some(true) && flags.overwrite == Some(true) {
        return Err(RunError::usage(
            "`resume` and `overwrite` exclude each other",
        ));
    }
    if flags.resume == Some(true) {
        let run = flags
            .output_dir
            .clone()
            .unwrap_or_else(|| DEFAULT_RUN.to_owned());
        if !RunDir::is_run(Path::new(&run)) {
            return Err(
                RunError::usage(format!("there is no run to resume in `{run}`"))
                    .hint("pass --output-dir with the directory of the run, or leave out --resume"),
            );
        }
        flags = with_settings_of(&run, flags)?;
        flags.output_dir = Some(run);
    }
    let args = with_default_assets(flags)?;
    let of_run = |args: &TrainArgs| {
        let mut settings = settings::to_map(args);
        settings.retain(|name, _| is_known(name));
        settings
    };
    let request = Request {
        settings: of_run(&args),
        // A run that goes on keeps the settings that it was started with.
        given: match args.resume {
            Some(true) => Default::default(),
            Some(false) | None => of_run(&given),
        },
    };
    Ok(Asked { args, request })
}

/// What is asked of the command.
struct Asked {
    /// Flags over the file they name, over a preset, the run that is resumed, and the repository's
    /// own model and data.
    args: TrainArgs,
    /// The same for the run.
    request: Request,
}

/// The flags laid over the settings of the run that they go on with.
fn with_settings_of(run: &str, flags: TrainArgs) -> RunResult<TrainArgs> {
    let config = Path::new(run).join(CONFIG_FILE);
    if files::is_named(&config) {
        let mut of_run = settings::read_file::<TrainArgs>(&config)?;
        if of_run.is_empty() {
            let message = format!("`{}` holds no settings: it was damaged", config.display());
            return Err(RunError::usage(message)
                .hint("put the file back as it was, or start anew with --overwrite"));
        }
        of_run.shift_remove("output_dir");
        lowrank_train::config::keep_old_prompts(&mut of_run);
        lowrank_train::config::keep_old_method(&mut of_run);
        return settings::overlay(of_run, &flags);
    }
    // A run that was killed before it wrote its configuration has nothing to go on from but the
    // flags.
    if flags.train_file.is_none() && run != DEFAULT_RUN {
        return Err(RunError::usage(format!(
            "the run in `{run}` has no `{CONFIG_FILE}`: it was stopped before it had settings, or lost the file"
        ))
        .hint("give its settings again beside --resume, or start anew with --overwrite"));
    }
    Ok(flags)
}
