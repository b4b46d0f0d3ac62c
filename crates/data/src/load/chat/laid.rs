//! A chat's rows as tokens, whose labels say what is learned; chats that are too long lose whole
//! turns.

use std::collections::BTreeSet;

use lowrank_chat::{Chat, ChatPart, ChatRow, LossOn, SpanSource, left_out, rows};

use super::{ChatFormat, no_chat};
use crate::error::{RowFault, RowFaultKind};
use crate::labels::{IGNORE_INDEX, Label};
use crate::load::Example;
use crate::load::collect::{Outcome, Read};
use crate::load::prompt::fault;
use crate::load::row::RowReader;
use crate::rows::Row;
use crate::tokenizer::Tokenizer;

/// How a chat was laid out.
pub(crate) struct ReadChat {
    /// Its line.
    pub(super) line: u64,
    /// How it was told what is learned.
    pub(super) source: SpanSource,
    /// What of it the template leaves out.
    pub(super) left_out: Vec<ChatPart>,
    /// Turns of which something is to be learned.
    pub(super) turns: usize,
    /// Those of them of which nothing is.
    pub(super) empty_turns: usize,
    /// Whether whole turns were cut off.
    pub(super) is_shortened: bool,
    /// Whether an answer that is learned says nothing.
    pub(super) is_silent: bool,
}

/// One chat of a file on its way to rows of tokens.
pub(super) struct Laying<'a> {
    pub(super) reader: &'a RowReader<'a>,
    pub(super) row: &'a Row,
    pub(super) column: &'a str,
    pub(super) format: &'a ChatFormat,
    pub(super) tokenizer: &'a Tokenizer,
}

impl Laying<'_> {
    /// The chat's rows.
    pub(super) fn read(&self, chat: &Chat) -> Result<Read, RowFault> {
        let laid = self.rows(chat, self.format.loss_on)?;
        let (template, variables) = (&self.format.template, &self.format.variables);
        let mut found = ReadChat {
            line: self.row.line,
            source: laid.first().map_or(SpanSource::Whole, |row| row.source),
            left_out: left_out(template, chat, variables, &laid),
            turns: laid.iter().map(|row| row.spans.len()).sum(),
            empty_turns: 0,
            is_shortened: false,
            is_silent: chat.answers().any(|at| chat.is_silent(at)),
        };
        let mut outcomes = Vec::with_capacity(laid.len());
        for laid in laid {
            let whole = self.tokens(laid)?;
            let length = whole.input_ids.len();
            if let Some(too_long) = self.reader.too_long(self.row, self.column, length)? {
                outcomes.push(too_long);
                continue;
            }
            let turns = whole.row.spans.len();
            let mut kept = vec![whole];
            if let Some(most) = self.reader.cut_at().filter(|most| length > *most) {
                if let Some(shorter) = self.shortened(chat, &kept[0].row, most)? {
                    found.is_shortened = true;
                    kept = shorter;
                }
                kept.iter_mut().for_each(|tokens| tokens.cut(most));
            }
            let learned: usize = kept.iter().map(Tokens::learned_turns).sum();
            found.empty_turns += turns.saturating_sub(learned);
            let left: usize = kept.iter().map(|tokens| tokens.input_ids.len()).sum();
            let mut cut = length.saturating_sub(left);
            outcomes.extend(kept.into_iter().map(|tokens| {
                let cut = std::mem::take(&mut cut);
                Outcome::Kept(tokens.into_example(self.row.line, cut))
            }));
        }
        Ok(Read {
            outcomes,
            chat: Some(found),
        })
    }

    fn rows(&self, chat: &Chat, loss_on: LossOn) -> Result<Vec<ChatRow>, RowFault> {
        rows(&self.format.template, chat, &self.format.variables, loss_on)
            .map_err(|error| no_chat(self.row, self.column, &error))
    }

    fn tokens(&self, row: ChatRow) -> Result<Tokens, RowFault> {
        let refused = |kind| fault(self.row, self.column, kind);
        let tokens = Tokens::of(self.tokenizer, row)
            .map_err(|error| refused(RowFaultKind::Tokenize(error)))?;
        if tokens.input_ids.is_empty() {
            return Err(refused(RowFaultKind::NoTokens("tokens")));
        }
        (self.reader.check_vocabulary(&tokens.input_ids)).map_err(refused)?;
        Ok(tokens)
    }

    /// The rows of what a row lays out without its first turns, of which as few go as must for the
    /// rest to have at most `most` tokens; where the last turn alone has more, that. Nothing where
    /// there is no earlier turn. What the system says stays.
    fn shortened(
        &self,
        chat: &Chat,
        row: &ChatRow,
        most: usize,
    ) -> Result<Option<Vec<Tokens>>, RowFault> {
        let chat = chat.first(row.messages);
        let loss_on = match row.source {
            SpanSource::TurnByTurn => LossOn::LastAssistant,
            SpanSource::Marks | SpanSource::Prefixes | SpanSource::Whole => self.format.loss_on,
        };
        let starts = later_starts(&chat);
        let lead = leading(&chat);
        let without = |start: usize| -> Result<Vec<Tokens>, RowFault> {
            let rows = self.rows(&chat.without(lead..start), loss_on)?;
            rows.into_iter().map(|row| self.tokens(row)).collect()
        };
        // The more turns go, the shorter the rest is.
        let Some(last) = starts.len().checked_sub(1) else {
            return Ok(None);
        };
        let (mut low, mut high, mut fits) = (0, last, None);
        while low < high {
            let middle = (low + high) / 2;
            let rest = without(starts[middle])?;
            match rest.iter().all(|tokens| tokens.input_ids.len() <= most) {
                true => (high, fits) = (middle, Some(rest)),
                false => low = middle + 1,
            }
        }
        // What fits is of `high`, where the search ends; nothing did where that is the last.
        fits.map_or_else(|| without(starts[last]), Ok).map(Some)
    }
}

/// How many messages of the system a chat begins with.
fn leading(chat: &Chat) -> usize {
    let all = 0..chat.messages().len();
    all.take_while(|&at| chat.is_system(at)).count()
}

/// Where the turns after the first begin, each with what a user says, that have a message behind
/// them which may be learned.
fn later_starts(chat: &Chat) -> Vec<usize> {
    let messages = chat.messages();
    let last = chat.answers().next_back().unwrap_or_default();
    let later = leading(chat) + 1..last;
    let is_user = |at: &usize| messages[*at].get("role").is_some_and(|role| role == "user");
    later.filter(is_user).collect()
}

/// A row as text and as tokens, with the turn that each token is learned of.
struct Tokens {
    row: ChatRow,
    input_ids: Vec<u32>,
    turns: Vec<Option<usize>>,
}

impl Tokens {
    /// A token is learned that has a character of a span, as transformers' masks of assistant
    /// tokens have it; the first never is, since nothing predicts it.
    fn of(tokenizer: &Tokenizer, row: ChatRow) -> Result<Self, String> {
        let tokens = tokenizer
            .encode_plain_spans(&row.text)
            .map_err(|error| error.to_string())?;
        let mut learned = vec![None; row.text.chars().count()];
        let mut spans = row.spans.iter().enumerate().peekable();
        for (at, (byte, _)) in row.text.char_indices().enumerate() {
            while spans.next_if(|(_, span)| span.end <= byte).is_some() {}
            let span = spans.peek().filter(|(_, span)| span.start <= byte);
            learned[at] = span.map(|(turn, _)| *turn);
        }
        let turn = |place: &std::ops::Range<usize>| {
            let characters = learned.get(place.clone()).unwrap_or_default();
            characters.iter().find_map(|turn| *turn)
        };
        let mut turns: Vec<Option<usize>> = tokens.spans.iter().map(turn).collect();
        if let Some(first) = turns.first_mut() {
            *first = None;
        }
        Ok(Tokens {
            row,
            input_ids: tokens.input_ids,
            turns,
        })
    }

    /// Turns of which a token is learned.
    fn learned_turns(&self) -> usize {
        let turns: BTreeSet<&usize> = self.turns.iter().flatten().collect();
        turns.len()
    }

    fn cut(&mut self, most: usize) {
        self.input_ids.truncate(most);
        self.turns.truncate(most);
    }

    fn into_example(self, line: u64, cut: usize) -> Example {
        let labels = self.input_ids.iter().zip(&self.turns);
        let labels = labels.map(|(id, turn)| turn.map_or(IGNORE_INDEX, |_| i64::from(*id)));
        Example {
            label: Label::Tokens(labels.collect()),
            truncated_tokens: u32::try_from(cut).unwrap_or(u32::MAX),
            input_ids: self.input_ids,
            token_type_ids: None,
            line,
        }
    }
}
