//! `lowrank train`: from settings to an adapter, with a log, checkpoints, a report, and a table at the end.

mod announce;
mod results;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::{FormatError, RunDir};
use lowrank_model::Model;
use lowrank_train::base::BaseId;
use lowrank_train::config::{DEFAULT_RUN, TrainConfig};
use lowrank_train::evaluate::{PassSettings, evaluate};
use lowrank_train::metrics::Evaluation;
use lowrank_train::trainer::{
    Event, Outcome, RunSetup, Summary, TrainData, Trainer, headline_metric,
};

use lowrank_run::build::{Built, build};
use lowrank_run::plan::{plan_run, refuse_too_much};
use lowrank_run::result::{Results, are_written, result_name, save_model};
use lowrank_run::spec::{Host, Request, RunSpec, is_known, to_settings};
use lowrank_run::{RunError, RunResult, memory, yaml};

use crate::args::TrainArgs;
use crate::assets::with_default_assets;
use crate::progress::Progress;
use crate::{interrupt, output, presets, session, settings, source, targets};
use results::Shown;

/// The resolved configuration in the run's folder.
const CONFIG_FILE: &str = "config.yaml";
/// The evaluation before training, kept for the table of a resumed run.
const BEFORE_FILE: &str = "before.json";

/// Runs the command.
pub fn run(flags: TrainArgs) -> RunResult {
    if flags.list_presets == Some(true) {
        if flags.common.is_json() {
            output::print_json(&presets::list_json());
        } else {
            output::print(presets::list_text());
        }
        return Ok(());
    }
    let asked = gather(flags)?;
    let args = &asked.args;
    let run_path = args
        .output_dir
        .clone()
        .unwrap_or_else(|| DEFAULT_RUN.to_owned());
    let host = Host {
        isa: session::instruction_set()?,
        hub: source::hub(args.model.online),
    };
    // A resumed run keeps the batch that was chosen for it.
    let resume = args.resume == Some(true);
    let choose = !(resume && files::is_file(&Path::new(&run_path).join(CONFIG_FILE)));
    let recompute = args.optimization.gradient_checkpointing;
    if args.dry_run == Some(true) {
        let mut resolved = RunSpec::resolve(&asked.request, &host)?;
        if resolved.config.memory.max_memory.is_some() {
            plan_run(&mut resolved, choose, recompute)?;
        }
        output::print(yaml::to_yaml(&to_settings(&resolved.config)));
        return Ok(());
    }
    let stop = interrupt::listen()?;
    refuse_existing(&run_path, args)?;
    let mut resolved = RunSpec::resolve(&asked.request, &host)?;
    let progress = Progress::new(args.common.is_quiet(), headline_metric(&resolved.config));
    let plan = plan_run(&mut resolved, choose, recompute)?;
    refuse_too_much(&plan, &resolved)?;
    // Program, tokenizer and rows: everything but the tensors that the plan counts.
    let fixed_bytes = memory::resident_bytes();
    let Built {
        mut model,
        notes,
        base_id,
    } = build(&resolved)?;
    // Only now: a request that fails before here leaves no folder that would be in the way of the next try.
    let run_dir = take_run_dir(&run_path, args)?;
    if let Some(preset) = presets::describe(&args.preset)? {
        progress.line(preset);
    }
    announce::announce(&progress, &resolved, &model, &notes, &plan);
    if !(resume && files::is_file(&run_dir.join(CONFIG_FILE))) {
        write_config(&run_dir, &resolved.config)?;
    }
    let reported = resolved.reported();
    let before = match reported {
        Some(rows) => {
            let found =
                evaluation_before(&run_dir, &model, &resolved.config, rows, &stop, &progress)?;
            Some(found.ok_or_else(|| stopped_before_training(&run_path))?)
        }
        None => None,
    };
    let job = Job {
        resolved: &resolved,
        base_id: &base_id,
        prefix_cache_bytes: plan.prefix_cache_bytes,
        run_dir: &run_dir,
        stop: &stop,
        progress: &progress,
        resume,
    };
    let outcome = train(&mut model, &job);
    progress.finish();
    let summary = finished(outcome?, &run_path)?;
    if summary.new_steps == 0 && are_written(&run_dir, &resolved.config) {
        return results::show_written(&run_dir, &args.common);
    }
    let saved = save_model(&run_dir, &resolved, &model, &base_id)?;
    // The rest is small: it is done even when told to stop.
    let after = match reported {
        Some(rows) => evaluate_quietly(&model, &resolved.config, &rows.examples, None)?,
        None => None,
    };
    let results = Results {
        run: &resolved,
        model: &model,
        plan: &plan,
        summary: &summary,
        before: before.as_ref(),
        after: after.as_ref(),
        saved: &saved,
        fixed_bytes,
    };
    let shown = Shown { results };
    shown.write(&run_dir)?;
    if args.common.is_json() {
        output::print_json(&shown.results.to_json());
    } else if !args.common.is_quiet() {
        output::print(shown.to_text(&run_dir));
    }
    Ok(())
}

/// What is trained, and how.
struct Job<'a> {
    resolved: &'a RunSpec,
    base_id: &'a BaseId,
    prefix_cache_bytes: u64,
    run_dir: &'a RunDir,
    stop: &'a AtomicBool,
    progress: &'a Progress,
    resume: bool,
}

fn train(model: &mut Model, job: &Job<'_>) -> RunResult<Outcome> {
    let resolved = job.resolved;
    let on_event = |event: Event<'_>| job.progress.on_event(&event);
    let setup = RunSetup {
        config: &resolved.config,
        data: TrainData {
            train: &resolved.train.examples,
            validation: resolved.validation.as_ref().map(|v| v.examples.as_slice()),
        },
        run: job.run_dir.path(),
        base: (job.base_id, resolved.base.other_base()),
        prefix_cache_bytes: job.prefix_cache_bytes,
        stop: job.stop,
        on_event: &on_event,
    };
    let mut trainer = Trainer::new(model, setup)?;
    if job.resume {
        trainer.resume()?;
    }
    Ok(trainer.run()?)
}

fn finished(outcome: Outcome, run: &str) -> RunResult<Summary> {
    match outcome {
        Outcome::Finished(summary) => Ok(*summary),
        Outcome::Interrupted { step, checkpoint } => {
            let saved = format!(
                "stopped after step {step}, saved `{}`",
                checkpoint.display()
            );
            let hint = format!("go on with `lowrank train --resume --output-dir {run}`");
            Err(RunError::interrupted(saved).hint(hint))
        }
    }
}

/// Flags over the file they name, over the run that is resumed, over the repository's own model and data.
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
    /// Flags over the file they name, over a preset, the run that is resumed, and the repository's own model and data.
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
        return settings::overlay(of_run, &flags);
    }
    // A run that was killed before it wrote its configuration has nothing to go on from but the flags.
    if flags.train_file.is_none() && run != DEFAULT_RUN {
        return Err(RunError::usage(format!(
            "the run in `{run}` has no `{CONFIG_FILE}`: it was stopped before it had settings, or lost the file"
        ))
        .hint("give its settings again beside --resume, or start anew with --overwrite"));
    }
    Ok(flags)
}

fn refuse_existing(path: &str, args: &TrainArgs) -> RunResult {
    let path = Path::new(path);
    if args.resume == Some(true) || args.overwrite == Some(true) {
        return Ok(());
    }
    if !RunDir::is_run(path) {
        return targets::check_run_folder(path, result_name(args.full == Some(true)));
    }
    Err(run_exists(&FormatError::RunExists {
        path: path.to_owned(),
    }))
}

fn run_exists(error: &FormatError) -> RunError {
    RunError::from_error(error).hint(
        "--resume goes on with it, --overwrite moves it aside, --output-dir takes another folder",
    )
}

fn take_run_dir(path: &str, args: &TrainArgs) -> RunResult<RunDir> {
    let path = Path::new(path);
    if args.resume == Some(true) {
        return Ok(RunDir::open(path)?);
    }
    if args.overwrite == Some(true) {
        let (run, aside) = RunDir::create_moving_old(path)?;
        if let Some(aside) = aside.filter(|_| !args.common.is_quiet()) {
            output::note(format_args!("the old run is now `{}`", aside.display()));
        }
        return Ok(run);
    }
    targets::check_run_folder(path, result_name(args.full == Some(true)))?;
    RunDir::create(path).map_err(|error| match &error {
        FormatError::RunExists { .. } => run_exists(&error),
        _ => RunError::from(error),
    })
}

fn write_config(run: &RunDir, config: &TrainConfig) -> RunResult {
    let text = yaml::to_yaml(&to_settings(config));
    Ok(lowrank_formats::write_atomic(
        &run.join(CONFIG_FILE),
        text.as_bytes(),
    )?)
}

fn stopped_before_training(run: &str) -> RunError {
    RunError::interrupted("stopped before the first step; nothing was trained").hint(format!(
        "start again with `lowrank train --resume --output-dir {run}`"
    ))
}

/// The evaluation of the untrained model: read back where a resumed run has made it already.
fn evaluation_before(
    run: &RunDir,
    model: &Model,
    config: &TrainConfig,
    rows: &lowrank_data::Loaded,
    stop: &AtomicBool,
    progress: &Progress,
) -> RunResult<Option<Evaluation>> {
    let path = run.join(BEFORE_FILE);
    if let Some(bytes) = files::read_if_there(&path, Ceiling::JSON)?
        && let Ok(evaluation) = serde_json::from_slice(&bytes)
    {
        return Ok(Some(evaluation));
    }
    let Some(evaluation) = evaluate_quietly(model, config, &rows.examples, Some(stop))? else {
        return Ok(None);
    };
    let metric = headline_metric(config);
    let shown = output::metric(metric, evaluation.value(metric));
    progress.line(format!(
        "before training: {} {shown} on {} rows",
        metric.name(),
        evaluation.rows
    ));
    let json = serde_json::to_vec(&evaluation).map_err(|error| RunError::from_error(&error))?;
    lowrank_formats::write_atomic(&path, &json)?;
    Ok(Some(evaluation))
}

fn evaluate_quietly(
    model: &Model,
    config: &TrainConfig,
    rows: &[lowrank_data::Example],
    stop: Option<&AtomicBool>,
) -> RunResult<Option<Evaluation>> {
    let settings = PassSettings {
        labels: &config.data.labels,
        batch_size: config.evaluation.per_device_eval_batch_size,
        stop,
        progress: &|_, _| {},
    };
    Ok(evaluate(model, rows, &settings)?)
}
