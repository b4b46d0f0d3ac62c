//! How a language model's rows are laid out: a template around prompt and completion, and which
//! tokens count in the loss.

use std::fmt;
use std::str::FromStr;

use super::prompt::Prompt;
use crate::error::TokenizerError;
use crate::labels::IGNORE_INDEX;
use crate::tokenizer::Tokenizer;

const PROMPT: &str = "{prompt}";
const CONTEXT: &str = "{context}";
const COMPLETION: &str = "{completion}";
const EOS: &str = "{eos}";

/// The name of Stanford Alpaca's layout. Source: tatsu-lab/stanford_alpaca, `PROMPT_DICT` in
/// `train.py`.
const ALPACA: &str = "alpaca";
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. \
     Write a response that appropriately completes the request.\n\n\
     ### Instruction:\n{prompt}\n\n### Input:\n{context}\n\n### Response:";
const ALPACA_WITHOUT: &str = "Below is an instruction that describes a task. \
     Write a response that appropriately completes the request.\n\n\
     ### Instruction:\n{prompt}\n\n### Response:";

/// How prompt and completion stand in a row: text with `{prompt}`, `{completion}` and `{eos}`, or
/// the name `alpaca`. What stands from the blanks before `{completion}` on counts in the loss. What
/// a prompt is about stands where `{context}` is, or else on the line behind the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    written: String,
    /// Before the completion, where the prompt has a context.
    with_context: Vec<Piece>,
    /// Before the completion, where it has none.
    before: Vec<Piece>,
    /// From the completion on.
    after: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Prompt,
    Context,
    Completion,
    Eos,
}

/// A template that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "template `{template}`: expected `{{prompt}}` and then `{{completion}}`, each once, and at most one `{{context}}` before the completion"
)]
pub struct TemplateError {
    template: String,
}

/// The layout of the paper's own code: `BPE(context) <|endoftext|> BPE(" " + target)
/// <|endoftext|>`. Source: loralib `examples/NLG/src/gpt2_encode.py`.
impl Default for Template {
    fn default() -> Self {
        Template::from_str("{prompt}{eos} {completion}{eos}").expect("the template is sound")
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if text == ALPACA {
            return Ok(Template {
                written: text.into(),
                with_context: pieces(ALPACA_WITH_INPUT),
                before: pieces(ALPACA_WITHOUT),
                after: vec![Piece::Completion, Piece::Eos],
            });
        }
        let fault = || TemplateError {
            template: text.into(),
        };
        let once = |mark| text.matches(mark).count() == 1;
        let contexts = text.matches(CONTEXT).count();
        if !once(PROMPT) || !once(COMPLETION) || contexts > 1 {
            return Err(fault());
        }
        let at = text.find(COMPLETION).ok_or_else(fault)?;
        let start = text[..at].trim_end_matches(' ');
        let before = pieces(start);
        let after = pieces(&text[start.len()..]);
        if !before.contains(&Piece::Prompt) || after.contains(&Piece::Context) {
            return Err(fault());
        }
        Ok(Template {
            written: text.into(),
            with_context: match contexts {
                0 => behind_the_prompt(&before),
                _ => before.clone(),
            },
            before,
            after,
        })
    }
}

/// The pieces with the context on the line behind the prompt.
fn behind_the_prompt(pieces: &[Piece]) -> Vec<Piece> {
    let mut found = Vec::new();
    for piece in pieces {
        found.push(piece.clone());
        if *piece == Piece::Prompt {
            found.extend([Piece::Text("\n".into()), Piece::Context]);
        }
    }
    found
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn pieces(mut text: &str) -> Vec<Piece> {
    let marks = [
        (PROMPT, Piece::Prompt),
        (CONTEXT, Piece::Context),
        (COMPLETION, Piece::Completion),
        (EOS, Piece::Eos),
    ];
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let next = marks
            .iter()
            .filter_map(|(mark, piece)| Some((text.find(mark)?, mark, piece)))
            .min_by_key(|(at, ..)| *at);
        let Some((at, mark, piece)) = next else {
            pieces.push(Piece::Text(text.into()));
            break;
        };
        if at > 0 {
            pieces.push(Piece::Text(text[..at].into()));
        }
        pieces.push(piece.clone());
        text = &text[at + mark.len()..];
    }
    pieces
}

/// A row's tokens, and where its completion begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Laid {
    pub(crate) input_ids: Vec<u32>,
    /// The first token that counts in the loss.
    pub(crate) first_counted: usize,
}

impl Laid {
    /// Cuts to `most` tokens: the prompt loses its beginning first, then the completion its end.
    /// Returns how many tokens are lost.
    pub(crate) fn cut(&mut self, most: Option<usize>) -> usize {
        let over = self
            .input_ids
            .len()
            .saturating_sub(most.unwrap_or(usize::MAX));
        // One token stays before the completion, so that its first token is predicted by something.
        let from_prompt = over.min(self.first_counted.saturating_sub(1));
        self.input_ids.drain(..from_prompt);
        self.first_counted -= from_prompt;
        let length = self.input_ids.len() - (over - from_prompt);
        self.input_ids.truncate(length);
        over
    }

    /// The label of each token: itself where it counts.
    pub(crate) fn labels(&self) -> Vec<i64> {
        let label = |(i, id): (usize, &u32)| {
            if i < self.first_counted {
                IGNORE_INDEX
            } else {
                (*id).into()
            }
        };
        self.input_ids.iter().enumerate().map(label).collect()
    }
}

impl Template {
    /// A prompt with its completion.
    pub(crate) fn pair(
        &self,
        prompt: &Prompt,
        completion: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Laid, TokenizerError> {
        let mut input_ids = self.prompt(prompt, tokenizer)?;
        let first_counted = input_ids.len();
        let row = Parts { prompt, completion };
        encode(&self.after, &row, tokenizer, &mut input_ids)?;
        Ok(Laid {
            input_ids,
            first_counted,
        })
    }

    /// The tokens up to the completion: what a model is given to go on with.
    pub fn prompt(
        &self,
        prompt: &Prompt,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, TokenizerError> {
        let before = match prompt.context.is_empty() {
            true => &self.before,
            false => &self.with_context,
        };
        let row = Parts {
            prompt,
            completion: "",
        };
        let mut input_ids = tokenizer.leading_tokens()?;
        encode(before, &row, tokenizer, &mut input_ids)?;
        Ok(input_ids)
    }

    /// A text that counts as a whole, with the end token behind it if the template ends with one.
    pub(crate) fn text(&self, text: &str, tokenizer: &Tokenizer) -> Result<Laid, TokenizerError> {
        let mut pieces = vec![Piece::Prompt];
        pieces.extend(
            self.after
                .last()
                .filter(|last| **last == Piece::Eos)
                .cloned(),
        );
        let mut input_ids = tokenizer.leading_tokens()?;
        let row = Parts {
            prompt: &Prompt::from(text.to_owned()),
            completion: "",
        };
        encode(&pieces, &row, tokenizer, &mut input_ids)?;
        Ok(Laid {
            input_ids,
            first_counted: 0,
        })
    }
}

/// What a row puts into a template.
struct Parts<'a> {
    prompt: &'a Prompt,
    completion: &'a str,
}

/// Texts between end tokens are encoded as one.
fn encode(
    pieces: &[Piece],
    row: &Parts<'_>,
    tokenizer: &Tokenizer,
    ids: &mut Vec<u32>,
) -> Result<(), TokenizerError> {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Prompt => text.push_str(&row.prompt.text),
            Piece::Context => text.push_str(&row.prompt.context),
            Piece::Completion => text.push_str(row.completion),
            Piece::Eos => {
                ids.extend(tokenizer.encode_plain(&std::mem::take(&mut text))?);
                ids.push(tokenizer.eos_id().ok_or(TokenizerError::NoEosToken)?);
            }
        }
    }
    ids.extend(tokenizer.encode_plain(&text)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_split_before_the_blanks_of_the_completion() {
        let template = Template::default();
        assert_eq!(template.before, [Piece::Prompt, Piece::Eos]);
        assert_eq!(
            template.after,
            [Piece::Text(" ".into()), Piece::Completion, Piece::Eos]
        );
        let template: Template = "Q: {prompt}\nA:{completion}".parse().unwrap();
        assert_eq!(
            template.before,
            [
                Piece::Text("Q: ".into()),
                Piece::Prompt,
                Piece::Text("\nA:".into())
            ]
        );
        for wrong in [
            "",
            "{prompt}",
            "{completion}{prompt}",
            "{prompt}{prompt}{completion}",
            "{prompt}{completion}{context}",
            "{context}{prompt}{context}{completion}",
        ] {
            let error = Template::from_str(wrong).unwrap_err().to_string();
            assert!(error.contains("{completion}`, each once"), "{error}");
        }
        let template: Template = "{context}\nQ: {prompt}\nA: {completion}".parse().unwrap();
        assert_eq!(template.before, template.with_context);
        assert_eq!(template.before[0], Piece::Context);
    }

    #[test]
    fn cutting_spares_the_completion() {
        let laid = |n: u32, first_counted| Laid {
            input_ids: (0..n).collect(),
            first_counted,
        };
        let mut row = laid(10, 6);
        assert_eq!(row.cut(Some(7)), 3);
        assert_eq!((row.input_ids[0], row.first_counted), (3, 3));
        assert_eq!(row.labels(), [-100, -100, -100, 6, 7, 8, 9]);
        let mut row = laid(10, 6);
        assert_eq!(row.cut(Some(3)), 7);
        assert_eq!(row.input_ids, [5, 6, 7]);
        assert_eq!(row.labels(), [-100, 6, 7]);
        let mut row = laid(4, 2);
        assert_eq!((row.cut(None), row.cut(Some(4))), (0, 0));
    }
}
