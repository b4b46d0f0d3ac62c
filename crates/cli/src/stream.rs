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
        let text = self.writer.settled_text(&self.tokens).unwrap_or_default();
        if let Some(new) = text.get(self.shown..) {
            output::print_generated(new);
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
