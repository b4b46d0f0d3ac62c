//! `lowrank generate`: text after prompts, from the command line, a file, or as they are typed.

use std::io::{BufRead, Write};
use std::path::Path;

use lowrank_data::{
    ColumnSpec, DataError, Prompt, Table, Template, TemplateError, Tokenizer, nlg, prompts_of,
};
use lowrank_model::{Generate, Generated};
use lowrank_train::config::TaskKind;
use serde_json::{Value, json};

use super::eval::LoadedModel;
use super::predict::Sink;
use crate::args::{DataArgs, GenerateArgs, PrecisionArg};
use crate::errors::{CliError, CliResult};
use crate::generation::Asked;
use crate::session::{device, header};
use crate::unused::Unused;
use crate::{memory, output, presets, targets};

/// Prompts at a time unless told otherwise.
pub(super) const BATCH_SIZE: usize = 16;

/// Runs the command.
pub fn run(flags: GenerateArgs) -> CliResult {
    let file = flags.common.config.clone();
    let given = Unused::of(&flags, file.as_deref())?;
    let args = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    let asked = Asked::new(&args.decoding)?;
    targets::check_file(
        args.output_file.as_deref(),
        &[
            ("--prompt-file", args.prompt_file.as_deref()),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let device = device(&args.common, args.precision.unwrap_or(PrecisionArg::F32))?;
    let data = DataArgs {
        task: Some(TaskKind::CausalLm),
        ..DataArgs::default()
    };
    let mut loaded = LoadedModel::open(&args.model, &args.adapter, &data, &device)?;
    presets::check_family(&args.preset, &loaded.base.config.model_type)?;
    given.check_generate(&args, &loaded)?;
    if args.merge_adapter.unwrap_or(false) {
        loaded.model.merge_adapters()?;
    }
    let decoding = asked.beside(&loaded)?;
    if !args.common.is_quiet() {
        let notes = loaded.notes.iter().chain(&decoding.notes);
        notes.for_each(output::note);
    }
    let writer = Writer::new(&loaded, decoding.options, args.template.as_ref())?;
    if args.interactive.unwrap_or(false) {
        return writer.interactive();
    }
    let prompts = match (&args.prompt, &args.prompt_file) {
        (_, Some(path)) => read_prompts(path, &args)?,
        (Some(prompts), None) => prompts.iter().cloned().map(Prompt::from).collect(),
        (None, None) => {
            return Err(CliError::usage("no prompt given")
                .hint("pass --prompt TEXT, --prompt-file FILE, or --interactive"));
        }
    };
    let size = args.batch_size.unwrap_or(BATCH_SIZE);
    if size == 0 {
        return Err(CliError::usage("`batch_size` is 0, expected at least 1"));
    }
    let plain = args.prompt_file.is_none() && args.output_file.is_none() && !args.common.is_json();
    let mut sink = Sink::open(args.output_file.as_deref())?;
    for (i, prompts) in prompts.chunks(size).enumerate() {
        let found = writer.generate(prompts, i * size, &mut |_, _| {})?;
        for (prompt, generated) in prompts.iter().zip(&found) {
            if plain {
                let prompt = prompt.joined();
                let text = writer.text(&generated.tokens)?;
                output::print_generated(&format!("{prompt}{text}\n"));
            } else {
                sink.write(&writer.line(prompt, generated)?)?;
            }
        }
    }
    sink.commit()
}

fn template(text: Option<&String>) -> CliResult<Option<Template>> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|error: TemplateError| CliError::usage(error.to_string()))
}

/// The prompts of a file's rows.
fn read_prompts(path: &str, args: &GenerateArgs) -> CliResult<Vec<Prompt>> {
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
            CliError::from(error).into_usage()
        }
        error => error.into(),
    })
}

/// Everything between a prompt and its text.
pub(super) struct Writer<'a> {
    options: Generate,
    template: Option<Template>,
    loaded: &'a LoadedModel,
    tokenizer: &'a Tokenizer,
}

impl<'a> Writer<'a> {
    /// `asked` is the layout of prompts that was asked for; without it that of the adapter's notes.
    pub fn new(
        loaded: &'a LoadedModel,
        options: Generate,
        asked: Option<&String>,
    ) -> CliResult<Self> {
        let tokenizer = loaded.base.tokenizer.as_ref().map_err(|error| {
            CliError::failure(format!("`{}` has no tokenizer", loaded.base.name))
                .caused_by(Some(error))
        })?;
        Ok(Self {
            options,
            template: template(asked.or(loaded.template.as_ref()))?,
            loaded,
            tokenizer,
        })
    }

    /// `first` is the number of the first prompt in the whole list: draws hang on it.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        first: usize,
        on_token: &mut (dyn FnMut(usize, u32) + Send),
    ) -> CliResult<Vec<Generated>> {
        let ids = prompts
            .iter()
            .map(|prompt| self.encode(prompt))
            .collect::<CliResult<Vec<_>>>()?;
        self.check_memory(&ids)?;
        let options = Generate {
            first_prompt: first,
            ..self.options.clone()
        };
        Ok(self.loaded.model.generate(&ids, &options, on_token)?)
    }

    /// Refuses what no memory is there for, before it is asked for.
    fn check_memory(&self, ids: &[Vec<u32>]) -> CliResult {
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let needed = self.loaded.model.generation_bytes(&lengths, &self.options);
        match memory::available_bytes() {
            Some(left) if needed > left => Err(CliError::failure(format!(
                "to generate after {} prompts at a time takes at least {} beside the model, but {} are left",
                ids.len(),
                output::bytes(needed),
                output::bytes(left)
            ))
            .hint("lower --num-beams or --batch-size")),
            Some(_) | None => Ok(()),
        }
    }

    fn encode(&self, prompt: &Prompt) -> CliResult<Vec<u32>> {
        let ids = match &self.template {
            Some(template) => template.prompt(prompt, self.tokenizer),
            None => self.tokenizer.leading_tokens().and_then(|mut ids| {
                ids.extend(self.tokenizer.encode_plain(&prompt.joined())?);
                Ok(ids)
            }),
        };
        ids.map_err(|error| CliError::from_error(&error))
    }

    /// The text of new tokens, without the end token.
    pub fn text(&self, tokens: &[u32]) -> CliResult<String> {
        let end = tokens
            .last()
            .filter(|token| self.options.eos.contains(token));
        let tokens = &tokens[..tokens.len() - usize::from(end.is_some())];
        let decoded = self.tokenizer.decode(tokens);
        decoded.map_err(|error| CliError::from_error(&error))
    }

    fn line(&self, prompt: &Prompt, generated: &Generated) -> CliResult<Value> {
        let tokens = &generated.tokens;
        let ended = tokens
            .last()
            .is_some_and(|last| self.options.eos.contains(last));
        let mut line = json!({
            "prompt": prompt.joined(),
            "text": self.text(tokens)?,
            "tokens": tokens,
            "ended": ended,
        });
        if let Some(score) = generated.score {
            line["score"] = json!(score);
        }
        Ok(line)
    }

    fn interactive(&self) -> CliResult {
        for (number, line) in std::io::stdin().lock().lines().enumerate() {
            let prompt = line.map_err(|error| CliError::from_error(&error))?;
            if prompt.is_empty() {
                continue;
            }
            let (mut tokens, mut shown) = (Vec::new(), 0);
            let mut stream = |_: usize, token: u32| {
                tokens.push(token);
                let text = self.text(&tokens).unwrap_or_default();
                // Half of a character becomes whole with the next token.
                if !text.ends_with('\u{fffd}') && text.is_char_boundary(shown) {
                    output::print_generated(&text[shown..]);
                    shown = text.len();
                }
                // A closed output ends the program elsewhere.
                let _ = std::io::stdout().flush();
            };
            match self.generate(&[prompt.into()], number, &mut stream) {
                Ok(found) => {
                    let text = self.text(&found[0].tokens)?;
                    let rest = text.get(shown..).unwrap_or_default();
                    output::print_generated(&format!("{rest}\n"));
                }
                Err(error) => output::note(error),
            }
        }
        Ok(())
    }
}
