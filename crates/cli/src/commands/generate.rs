//! `lowrank generate`: text after prompts, from the command line, a file, or as they are typed.

use std::io::BufRead;
use std::path::Path;

use lowrank_data::{ColumnSpec, DataError, Prompt, Table, nlg, prompts_of};
use lowrank_model::Generated;
use lowrank_run::generation::Asked;
use lowrank_run::rows::header;
use lowrank_run::settings::RowSettings;
use lowrank_run::writer::{AskedLayout, BATCH_SIZE, Question, Writer};
use lowrank_run::{RunError, RunResult, targets};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::session::{decoding, device_of, open_model};
use crate::sink::Sink;
use crate::stream::Stream;
use crate::{errors, output, presets, settings, unused};

/// Runs the command.
pub fn run(flags: GenerateArgs) -> RunResult {
    let file = flags.common.config.clone();
    let given = unused::given(&flags, file.as_deref())?;
    let args = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    let asked = Asked::new(settings::to_map(&args.decoding))?;
    targets::check_file(
        args.output_file.as_deref(),
        &[
            ("--prompt-file", args.prompt_file.as_deref()),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let numerics = args.numerics.choices().without_int8()?.or_f32();
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let rows = RowSettings::of_language();
    let mut loaded = open_model(&args.model, &args.adapter, &rows, &device)?;
    presets::check_family(&args.preset, &loaded.base.config.model_type)?;
    unused::check_generate(given, &args, &loaded)?;
    if args.merge_adapter.unwrap_or(false) {
        loaded.model.merge_adapters()?;
    }
    let options = decoding(asked, &loaded, &args.common)?;
    let layout = AskedLayout {
        template: args.template.clone(),
        chat_template: args.chat_template.clone(),
        system: args.system.clone(),
    };
    let writer = Writer::new(&loaded, options, &layout)?;
    if writer.is_chat() && !args.common.is_quiet() {
        output::note(
            "prompts are laid out by the chat template; --chat-template none takes them as they are",
        );
    }
    if args.interactive.unwrap_or(false) {
        return interactive(&writer);
    }
    let prompts = match (&args.prompt, &args.prompt_file) {
        (_, Some(path)) => read_prompts(path, &args)?,
        (Some(prompts), None) => prompts.iter().cloned().map(Prompt::from).collect(),
        (None, None) => {
            return Err(RunError::usage("no prompt given")
                .hint("pass --prompt TEXT, --prompt-file FILE, or --interactive"));
        }
    };
    let size = args.batch_size.unwrap_or(BATCH_SIZE);
    if size == 0 {
        return Err(RunError::usage("`batch_size` is 0, expected at least 1"));
    }
    let plain = args.prompt_file.is_none() && args.output_file.is_none() && !args.common.is_json();
    let mut sink = Sink::open(args.output_file.as_deref())?;
    let questions: Vec<Question> = prompts.iter().cloned().map(Question::from).collect();
    writer.write_each(&questions, size, &mut |i, generated| {
        let prompt = &prompts[i];
        if plain {
            let (prompt, text) = (prompt.joined(), writer.text(&generated.tokens)?);
            // A chat's answer does not go on with the prompt's own words.
            let between = if writer.is_chat() { "\n" } else { "" };
            output::print_generated(&format!("{prompt}{between}{text}\n"));
            return Ok(());
        }
        sink.write(&line(&writer, prompt, generated)?)
    })?;
    sink.commit()
}

/// The prompts of a file's rows.
fn read_prompts(path: &str, args: &GenerateArgs) -> RunResult<Vec<Prompt>> {
    let columns = ColumnSpec {
        text: args.text_column.clone(),
        context: args.context_column.clone(),
        ..ColumnSpec::default()
    };
    let open = columns == ColumnSpec::default();
    let found = open.then(|| nlg::detect(Path::new(path)));
    if let Some(format) = args.data_format.or(found.flatten()) {
        let rows = nlg::read_prompts(Path::new(path), Some(format))?;
        return Ok(rows.into_iter().map(|row| row.prompt.into()).collect());
    }
    let table = Table::read(Path::new(path), None, header(args.no_header))?;
    prompts_of(&table, &columns).map_err(|error| match error {
        DataError::MissingColumn { .. } | DataError::NoColumnFor { .. } => {
            RunError::from(error).into_usage()
        }
        error => error.into(),
    })
}

fn line(writer: &Writer<'_>, prompt: &Prompt, generated: &Generated) -> RunResult<Value> {
    let tokens = &generated.tokens;
    let mut line = json!({
        "prompt": prompt.joined(),
        "text": writer.text(tokens)?,
        "tokens": tokens,
        "ended": writer.ended(tokens),
    });
    if let Some(score) = generated.score {
        line["score"] = json!(score);
    }
    Ok(line)
}

fn interactive(writer: &Writer<'_>) -> RunResult {
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let prompt = line.map_err(|error| RunError::from_error(&error))?;
        if prompt.is_empty() {
            continue;
        }
        let mut stream = Stream::new(writer);
        match writer.write(&prompt.into(), number, &mut |token| stream.push(token)) {
            Ok(found) => {
                stream.finish(&found)?;
            }
            Err(error) => output::note(errors::shown(&error)),
        }
    }
    Ok(())
}
