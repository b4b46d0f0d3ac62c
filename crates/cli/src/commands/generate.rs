//! `lowrank generate`: text after prompts, from the command line, a file, or as they are typed.

use std::io::{BufRead, Write};
use std::path::Path;

use lowrank_data::{
    ColumnSpec, DataError, Prompt, Table, Template, TemplateError, Tokenizer, nlg, prompts_of,
};
use lowrank_model::{Generate, Generated, Search};
use lowrank_train::config::TaskKind;
use serde_json::{Value, json};

use super::eval::LoadedModel;
use super::predict::Sink;
use crate::args::{DataArgs, DecodingArgs, GenerateArgs, PrecisionArg};
use crate::errors::{CliError, CliResult};
use crate::session::{device, header};
use crate::{output, presets, targets};

/// Prompts at a time unless told otherwise.
pub(super) const BATCH_SIZE: usize = 16;

/// Runs the command.
pub fn run(flags: GenerateArgs) -> CliResult {
    let file = flags.common.config.clone();
    let args = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    let options = decoding(&args.decoding)?;
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
    if args.merge_adapter.unwrap_or(false) {
        loaded.model.merge_adapters()?;
    }
    if !args.common.is_quiet() {
        loaded.notes.iter().for_each(output::note);
    }
    let writer = Writer::new(&loaded, options, args.template.as_ref())?;
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

/// The settings, checked before anything is read; the end tokens are the model's.
pub(super) fn decoding(args: &DecodingArgs) -> CliResult<Generate> {
    let samples = args.do_sample.unwrap_or(false)
        || args.temperature.is_some()
        || args.top_k.is_some()
        || args.top_p.is_some();
    let search = match args.num_beams {
        Some(beams) => Search::Beam {
            beams,
            length_penalty: args.length_penalty.unwrap_or(1.0),
            early_stopping: args.early_stopping.unwrap_or(false),
        },
        None if samples => Search::Sample {
            temperature: args.temperature.unwrap_or(1.0),
            top_k: args.top_k,
            top_p: args.top_p.unwrap_or(1.0),
            seed: args.seed.unwrap_or(1),
        },
        None if args.length_penalty.is_some() || args.early_stopping.is_some() => {
            return Err(CliError::usage(
                "`length_penalty` and `early_stopping` are settings of beam search",
            )
            .hint("pass --num-beams too"));
        }
        None => Search::Greedy,
    };
    let options = Generate {
        search,
        max_new_tokens: args.max_new_tokens.unwrap_or(64),
        repetition_penalty: args.repetition_penalty.unwrap_or(1.0),
        no_repeat_ngram: args.no_repeat_ngram_size.unwrap_or(0),
        ..Generate::default()
    };
    let faults = options.faults();
    if faults.is_empty() {
        return Ok(options);
    }
    let lines: Vec<String> = faults
        .into_iter()
        .map(|(name, expected, found)| format!("`{name}` is {found}, expected {expected}"))
        .collect();
    Err(CliError::usage(lines.join("\n  ")))
}

fn template(text: Option<&String>) -> CliResult<Option<Template>> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|error: TemplateError| CliError::usage(error.to_string()))
}

/// What ends a text: config.json says it, else the tokenizer.
fn end_tokens(loaded: &LoadedModel, tokenizer: &Tokenizer) -> Vec<u32> {
    let reader = loaded.base.config.reader();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let named: Vec<u32> = match reader.raw("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    };
    if named.is_empty() {
        tokenizer.eos_id().into_iter().collect()
    } else {
        named
    }
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
            options: Generate {
                eos: end_tokens(loaded, tokenizer),
                ..options
            },
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
        let options = Generate {
            first_prompt: first,
            ..self.options.clone()
        };
        Ok(self.loaded.model.generate(&ids, &options, on_token)?)
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
