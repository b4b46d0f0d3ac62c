//! What became of the chats of a file.

use std::collections::BTreeMap;

use lowrank_chat::{ChatPart, LossOn, SpanSource};
use serde::{Deserialize, Serialize};

use crate::check::Lines;
use crate::load::collect::Read;

/// What became of the chats of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChatReport {
    /// Chats that were laid out.
    pub chats: usize,
    /// How many of them were told in which way what is learned.
    pub sources: BTreeMap<SpanSource, usize>,
    /// Turns of which something is to be learned.
    pub turns: usize,
    /// Those of them of which nothing is: they are empty, or were cut off.
    pub empty_turns: usize,
    /// Chats with such turns.
    pub with_empty_turns: Lines,
    /// Chats that lost their first turns, being too long.
    pub shortened: Lines,
    /// Chats with an answer that says nothing: it is learned as it stands.
    #[serde(default)]
    pub silent: Lines,
    /// Chats with a part that the template leaves out.
    pub left_out: BTreeMap<ChatPart, Lines>,
}

impl ChatReport {
    /// What became of the chats of these rows; nothing where there are none.
    pub(in crate::load) fn of(read: &[Read]) -> Option<Self> {
        let mut report = ChatReport::default();
        for chat in read.iter().filter_map(|read| read.chat.as_ref()) {
            report.chats += 1;
            *report.sources.entry(chat.source).or_default() += 1;
            report.turns += chat.turns;
            report.empty_turns += chat.empty_turns;
            if chat.empty_turns > 0 {
                report.with_empty_turns.add(chat.line);
            }
            if chat.is_shortened {
                report.shortened.add(chat.line);
            }
            if chat.is_silent {
                report.silent.add(chat.line);
            }
            for part in &chat.left_out {
                report.left_out.entry(*part).or_default().add(chat.line);
            }
        }
        (report.chats > 0).then_some(report)
    }

    /// How the rows were made, in a sentence.
    pub(in crate::load) fn note(&self, loss_on: LossOn) -> String {
        let ways = self.sources.iter().map(|(source, chats)| {
            let way = match source {
                SpanSource::Marks => "told by the template's generation blocks",
                SpanSource::Prefixes => "told by what a turn adds",
                SpanSource::TurnByTurn => {
                    "one row for each turn, since the template lays out earlier turns otherwise once others follow"
                }
                SpanSource::Whole => "all of it learned",
            };
            format!("{chats} {way}")
        });
        let ways: Vec<String> = ways.collect();
        let on = match loss_on {
            LossOn::Assistant => "the loss is on the assistant's turns",
            LossOn::LastAssistant => "the loss is on the assistant's last turn",
            LossOn::All => "the loss is on all of the text",
        };
        format!(
            "laid out by the chat template, {on}: chats {}",
            ways.join("; ")
        )
    }

    /// What a user should look at, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let chats = |lines: &Lines, hold: &str| {
            let noun = if lines.count == 1 { "chat" } else { "chats" };
            format!("{} {noun} {hold}", lines.count)
        };
        let left_out = self.left_out.iter().map(|(part, lines)| {
            let hold = if lines.count == 1 { "holds" } else { "hold" };
            format!(
                "{}, which the chat template leaves out: {}",
                chats(lines, &format!("{hold} {}", part.name())),
                lines.describe()
            )
        });
        let mut found: Vec<String> = left_out.collect();
        if self.empty_turns > 0 {
            found.push(format!(
                "nothing is learned of {} of the assistant's {} turns, which are empty or were cut off: {}",
                self.empty_turns,
                self.turns,
                self.with_empty_turns.describe()
            ));
        }
        if self.silent.count > 0 {
            let hold = if self.silent.count == 1 {
                "holds"
            } else {
                "hold"
            };
            let hold = format!("{hold} an answer without words");
            found.push(format!(
                "{}, of which ending the turn at once is learned: {}",
                chats(&self.silent, &hold),
                self.silent.describe()
            ));
        }
        if self.shortened.count > 0 {
            found.push(format!(
                "{}: {}",
                chats(&self.shortened, "lost their first turns, being too long"),
                self.shortened.describe()
            ));
        }
        found
    }
}
