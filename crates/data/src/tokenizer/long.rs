//! Texts far longer than a row may be: a piece of them that gives the very tokens that are kept of
//! the whole. Tokenising costs a hundred times a text's size in memory, so that a text of megabytes
//! is not given to the library as it is.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::utils::truncation::TruncationDirection;

use super::Tokenizer;
use crate::error::TokenizerError;

/// Texts of so many bytes are tokenised as they are.
const WHOLE: usize = 256 << 10;
/// No more bytes than these are given to the library at once.
const MOST: usize = 4 << 20;

/// Which part of a long text is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What stands first.
    Beginning,
    /// What stands last.
    End,
}

impl Tokenizer {
    /// A part of `text` with more than `tokens` tokens, and the first or last `tokens` of them the
    /// same as those of the whole text. The text itself where it is not long, or where no part is
    /// known to be so and it is no longer than 4 MiB.
    ///
    /// # Errors
    /// A text above that of which no part will do: without blanks, or with a tokenizer that does
    /// not part texts at them.
    pub(crate) fn part<'t>(
        &self,
        text: &'t str,
        tokens: usize,
        part: Part,
    ) -> Result<&'t str, TokenizerError> {
        if text.len() <= WHOLE {
            return Ok(text);
        }
        if self.parts_alike(part) {
            // A token that was added to the vocabulary may hold blanks, and so may be cut: it is at
            // most so many ordinary ones.
            let added = self.inner.get_added_vocabulary().get_vocab();
            let longest = added.keys().map(String::len).max().unwrap_or(0);
            let enough = tokens.saturating_add(4 * longest + 64);
            let mut bytes = WHOLE;
            while bytes < text.len() && bytes <= MOST {
                let Some(piece) = cut_at_blank(text, bytes, part) else {
                    break;
                };
                if self.encode_plain(piece)?.len() >= enough {
                    return Ok(piece);
                }
                bytes *= 4;
            }
        }
        refuse_long(text)?;
        Ok(text)
    }

    /// Whether a text that is cut before a blank between letters gives the tokens that it would
    /// give in the whole: its words are tokenised each by itself, and nothing is put before a text
    /// that begins with a blank.
    fn parts_alike(&self, part: Part) -> bool {
        let words = self.inner.get_pre_tokenizer().is_some_and(splits_at_blanks);
        let changes = || self.inner.get_normalizer().is_some_and(changes_the_start);
        words && (part == Part::Beginning || !changes())
    }

    /// The part of a classifier's text that stays where it is cut.
    pub(crate) fn kept_part(&self) -> Part {
        match self.direction {
            TruncationDirection::Left => Part::End,
            TruncationDirection::Right => Part::Beginning,
        }
    }
}

/// The error of a text that cannot be tokenised in parts and is too long as a whole.
pub(crate) fn refuse_long(text: &str) -> Result<(), TokenizerError> {
    match text.len() <= MOST {
        true => Ok(()),
        false => Err(TokenizerError::LongText {
            bytes: text.len(),
            most: MOST,
        }),
    }
}

fn splits_at_blanks(by: &PreTokenizerWrapper) -> bool {
    match by {
        PreTokenizerWrapper::BertPreTokenizer(_)
        | PreTokenizerWrapper::Whitespace(_)
        | PreTokenizerWrapper::WhitespaceSplit(_) => true,
        PreTokenizerWrapper::ByteLevel(by) => by.use_regex,
        PreTokenizerWrapper::Metaspace(by) => by.split,
        PreTokenizerWrapper::Sequence(all) => all.as_ref().iter().any(splits_at_blanks),
        PreTokenizerWrapper::Delimiter(_)
        | PreTokenizerWrapper::Split(_)
        | PreTokenizerWrapper::Punctuation(_)
        | PreTokenizerWrapper::Digits(_)
        | PreTokenizerWrapper::UnicodeScripts(_)
        | PreTokenizerWrapper::FixedLength(_) => false,
    }
}

fn changes_the_start(by: &NormalizerWrapper) -> bool {
    match by {
        NormalizerWrapper::Prepend(_) | NormalizerWrapper::StripNormalizer(_) => true,
        NormalizerWrapper::Sequence(all) => all.as_ref().iter().any(changes_the_start),
        _ => false,
    }
}

/// About `bytes` of a text from one side, cut before a single blank between two letters or digits
/// of ASCII, where no rule of spelling, accents or blanks reaches across.
fn cut_at_blank(text: &str, bytes: usize, part: Part) -> Option<&str> {
    let all = text.as_bytes();
    let is_cut = |at: usize| {
        all[at] == b' '
            && all[at - 1].is_ascii_alphanumeric()
            && all[at + 1].is_ascii_alphanumeric()
    };
    let last = all.len() - 1;
    match part {
        Part::Beginning => {
            let at = (1..bytes.min(last)).rev().find(|at| is_cut(*at))?;
            Some(&text[..at])
        }
        Part::End => {
            let first = all.len().saturating_sub(bytes).max(1);
            let at = (first..last).find(|at| is_cut(*at))?;
            Some(&text[at..])
        }
    }
}
