//! Flags of commands that would not be obeyed where they stand, each with the reason.

use clap::Args;
use lowrank_run::RunResult;
use lowrank_run::export::ExportTo;
use lowrank_run::loaded::LoadedModel;
use lowrank_run::unused::{COLUMNS, LORA, Unused, without_lora};
use lowrank_train::config::{Method, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::args::{
    EvalArgs, ExportArgs, GenerateArgs, MergeArgs, PlanArgs, PredictArgs, ProfileArgs,
};
use crate::settings;

/// What the flags and the file that they name give; a preset's settings are not the user's.
///
/// # Errors
/// As [`settings::with_file`].
pub fn given<T>(flags: &T, file: Option<&str>) -> RunResult<Unused>
where
    T: Args + Clone + Serialize + DeserializeOwned,
{
    Ok(given_args(&settings::with_file(flags.clone(), file)?))
}

/// The same of what was read already.
pub fn given_args<T: Serialize>(args: &T) -> Unused {
    Unused::of(&settings::to_map(args))
}

/// Those of `predict`.
pub fn check_predict(mut unused: Unused, args: &PredictArgs, loaded: &LoadedModel) -> RunResult {
    if args.text.is_some() {
        unused.note(&["data_file"], "--text gives the rows");
        unused.note(&COLUMNS, "--text has no columns");
        let of_files = [("no_header", json!(false)), ("bad_rows", json!("error"))];
        unused.note_unless(of_files, "--text is no file");
    }
    unused.data(loaded.head.task);
    unused.alpha(loaded);
    unused.finish()
}

/// Those of `generate`.
pub fn check_generate(mut unused: Unused, args: &GenerateArgs, loaded: &LoadedModel) -> RunResult {
    if args.prompt_file.is_none() {
        let why = "it needs --prompt-file";
        unused.note(&["text_column", "context_column", "data_format"], why);
        unused.note_unless([("no_header", json!(false))], why);
    } else {
        unused.note(&["prompt"], "--prompt-file gives the prompts");
    }
    if args.interactive == Some(true) {
        let why = "--interactive reads prompts and writes tokens one by one";
        unused.note(&["prompt", "prompt_file", "batch_size", "output_file"], why);
    }
    if loaded.adapter_alpha.is_none() && args.adapter.adapter.is_none() {
        let why = "no adapter is given";
        unused.note_unless([("merge_adapter", json!(false))], why);
    }
    unused.alpha(loaded);
    unused.finish()
}

/// Those of `chat`.
pub fn check_chat(mut unused: Unused, loaded: &LoadedModel) -> RunResult {
    unused.alpha(loaded);
    unused.finish()
}

/// Those of `eval`.
pub fn check_eval(mut unused: Unused, args: &EvalArgs) -> RunResult {
    let decoding = settings::to_map(&args.decoding);
    let decoding: Vec<&str> = decoding.keys().map(String::as_str).collect();
    let scores = args.scoring.outputs.is_some() || args.scoring.references.is_some();
    let generates = args.scoring.generate.unwrap_or(false);
    if scores {
        let why = "--outputs are scored as they are, without a model";
        unused.note(
            &[
                "model",
                "adapter",
                "data_file",
                "max_length",
                "task",
                "labels",
            ],
            why,
        );
        unused.note(&["precision", "base_format", "arithmetic"], why);
        unused.note(&COLUMNS, why);
        unused.note(&decoding, why);
        unused.note_unless([("generate", json!(false))], why);
        if args.scoring.scorer.is_none() {
            unused.note(&["output_file"], why);
        }
    } else if generates {
        let (texts, labels) = COLUMNS.split_at(3);
        let why = "--generate reads prompts and what is to follow";
        unused.note(&["labels", "max_length"], why);
        unused.note(labels, why);
        if args.data.data_format.is_some() {
            unused.note(texts, "--data-format says where the texts stand");
        }
        if args.data.task.is_some_and(|task| task != Task::CausalLm) {
            unused.note(&["task"], "--generate needs a language model");
        }
    } else {
        let why = "it needs --generate";
        unused.note(&decoding, why);
        unused.note(&["output_file", "metrics", "meteor_dir", "scorer"], why);
    }
    unused.finish()
}

/// Those of `eval` on labelled rows, whose task is known.
pub fn check_rows(mut unused: Unused, loaded: &LoadedModel) -> RunResult {
    unused.data(loaded.head.task);
    unused.alpha(loaded);
    unused.finish()
}

/// Those of `merge`.
pub fn check_merge(mut unused: Unused, args: &MergeArgs) -> RunResult {
    if !args.verify.unwrap_or(false) {
        unused.note(&["tolerance", "data_file"], "it needs --verify");
    }
    if args.data_file.is_none() {
        unused.note(&COLUMNS, "it needs --data-file");
    }
    unused.finish()
}

/// Those of `export`.
pub fn check_export(mut unused: Unused, args: &ExportArgs) -> RunResult {
    if args.to.unwrap_or(ExportTo::GgufAdapter) == ExportTo::GgufAdapter {
        let why = "an adapter by itself is always read back";
        unused.note(&["verify", "max_kl", "data_file"], why);
    } else if !args.verify.unwrap_or(false) {
        unused.note(&["max_kl", "data_file"], "it needs --verify");
    }
    if args.data_file.is_none() {
        unused.note(&COLUMNS, "it needs --data-file");
    }
    unused.finish()
}

/// Those of `merge` that depend on the adapter.
pub fn check_merged(mut unused: Unused, loaded: &LoadedModel) -> RunResult {
    unused.alpha(loaded);
    unused.finish()
}

/// Those of `plan`.
pub fn check_plan(mut unused: Unused, args: &PlanArgs, task: Task) -> RunResult {
    if !task.has_label_names() && args.num_labels != Some(1) {
        let why = format!("the head of the task {} is known", task.name());
        unused.note(&["num_labels"], &why);
    }
    unused.note(&["prefix_cache"], "a plan counts both ways");
    unused.finish()
}

/// Those of `profile`.
pub fn check_profile(mut unused: Unused, args: &ProfileArgs) -> RunResult {
    if args.train_file.is_some() {
        unused.note(&["seq"], "the rows of --train-file are as long as they are");
    } else {
        unused.note(&COLUMNS, "it needs --train-file");
    }
    let method = args.method.get()?;
    if method == Method::Full {
        unused.nothing_frozen(json!("auto"));
    }
    if method != Method::Lora {
        unused.note(&LORA, without_lora(method));
    }
    if args.all == Some(true) {
        let why = "with --all it is each of them in turn";
        unused.note(&["precision", "base_format", "arithmetic"], why);
        unused.note(&["generate", "workers"], "--all times training steps");
    }
    if args.workers.is_some() {
        let why = "tasks are timed on one thread";
        unused.note(&["threads"], why);
        unused.note(&["generate"], "--workers times training steps");
    }
    if args.generate.is_some() {
        let why = "tokens are generated without an adapter and without training";
        unused.note(&LORA, why);
        unused.note(&["gradient_checkpointing"], why);
    }
    unused.finish()
}
