//! A text that is shown token by token as it is generated.

use std::io::Write;

use lowrank_model::Generated;
use lowrank_run::RunResult;
use lowrank_run::writer::Writer;

use crate::output;

/// What is shown of a text so far.
pub struct Stream<'a> {
    writer: &'a Writer<'a>,
    tokens: Vec<u32>,
    /// Bytes of the text that are shown.
    shown: usize,
}

impl<'a> Stream<'a> {
    /// Nothing so far.
    pub fn new(writer: &'a Writer<'a>) -> Self {
        Stream {
            writer,
            tokens: Vec::new(),
            shown: 0,
        }
    }

    /// Shows what a token adds.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        let text = self.writer.text(&self.tokens).unwrap_or_default();
        // Half of a character becomes whole with the next token.
        if !text.ends_with('\u{fffd}') && text.is_char_boundary(self.shown) {
            output::print_generated(&text[self.shown..]);
            self.shown = text.len();
        }
        // A closed output ends the program elsewhere.
        let _ = std::io::stdout().flush();
    }

    /// Shows the rest and ends the line; returns the whole text.
    ///
    /// # Errors
    /// The tokens are no text.
    pub fn finish(self, generated: &Generated) -> RunResult<String> {
        let text = self.writer.text(&generated.tokens)?;
        let rest = text.get(self.shown..).unwrap_or_default();
        output::print_generated(&format!("{rest}\n"));
        Ok(text)
    }
}
