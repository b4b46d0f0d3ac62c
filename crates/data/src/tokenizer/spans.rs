//! A text's tokens with their places in it, for predictions that are laid beside the text.

use tokenizers::models::ModelWrapper;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{EncodeInput, InputSequence};

use super::{Encoded, Tokenizer, guarded};
use crate::error::TokenizerError;

/// Where a token stands in its text, in characters (Unicode code points, as Python counts them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its first character.
    pub start: usize,
    /// One past its last.
    pub end: usize,
    /// Whether it goes on with the word of the token before it.
    pub is_continuation: bool,
}

/// A text as a model takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSpans {
    /// The tokens.
    pub encoded: Encoded,
    /// The place of each; `None` for special tokens.
    pub spans: Vec<Option<Span>>,
}

impl Tokenizer {
    /// Encodes a text as [`Tokenizer::encode`] does, and says where each token stands. Which tokens
    /// go on with a word is told as transformers' `TokenClassificationPipeline` does: by the prefix
    /// of a vocabulary that has one, else by the blanks.
    pub fn encode_spans(
        &self,
        text: &str,
        max_length: Option<usize>,
    ) -> Result<EncodedSpans, TokenizerError> {
        let input = EncodeInput::Single(InputSequence::from(text));
        self.growth.check(text).map_err(TokenizerError::Encode)?;
        let plain = guarded(|| self.inner.encode_char_offsets(input, false))?;
        // Taken here: what adds the special tokens would trim the blanks of a byte-level BPE a
        // second time.
        let places = plain.get_offsets().to_vec();
        let (encoded, encoding) = self.finish(&self.inner, plain, None, max_length)?;
        let cut_before = match self.direction {
            TruncationDirection::Left => encoded.truncated_tokens,
            TruncationDirection::Right => 0,
        };
        let mut places = places.into_iter().skip(cut_before);
        let blanks: Vec<bool> = text.chars().map(|c| c == ' ').collect();
        let is_blank = |place: usize| blanks.get(place).copied().unwrap_or(false);
        let prefix = self.continuing_prefix();
        let special = encoding.get_special_tokens_mask();
        let tokens = encoding.get_tokens().iter().zip(encoding.get_ids());
        let mut spans = Vec::with_capacity(encoding.len());
        for (at, (token, id)) in tokens.enumerate() {
            if special[at] == 1 {
                spans.push(None);
                continue;
            }
            let Some((start, end)) = places.next() else {
                spans.push(None);
                continue;
            };
            let goes_on = match &prefix {
                Some(prefix) => token.starts_with(prefix.as_str()),
                None => start > 0 && !is_blank(start - 1) && !is_blank(start),
            };
            spans.push(Some(Span {
                start,
                end,
                is_continuation: goes_on && Some(*id) != self.unk_id,
            }));
        }
        Ok(EncodedSpans { encoded, spans })
    }

    /// What a token that goes on with a word begins with, in a vocabulary that marks it.
    fn continuing_prefix(&self) -> Option<String> {
        let prefix = match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => Some(model.continuing_subword_prefix.clone()),
            ModelWrapper::BPE(model) => model.get_continuing_subword_prefix().clone(),
            ModelWrapper::WordLevel(_) | ModelWrapper::Unigram(_) => None,
        };
        prefix.filter(|prefix| !prefix.is_empty())
    }
}
