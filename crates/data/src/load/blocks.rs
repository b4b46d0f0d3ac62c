//! Plain texts cut into rows, for continued pretraining.

use super::Example;
use super::collect::{Outcome, Read};
use crate::labels::{IGNORE_INDEX, Label};

/// A text's rows of at most `most` tokens. Each begins with the last token of the one before it,
/// which is not learned again, so that every token but the text's first is learned once, and from
/// what stands before it in the same text.
pub(super) fn blocks(example: Example, most: usize) -> Read {
    let Label::Tokens(labels) = &example.label else {
        return Read::one(Outcome::Kept(example));
    };
    let ids = &example.input_ids;
    let (mut outcomes, mut start) = (Vec::new(), 0_usize);
    loop {
        let end = start.saturating_add(most).min(ids.len());
        let mut labels = labels[start..end].to_vec();
        if let Some(first) = labels.first_mut() {
            *first = IGNORE_INDEX;
        }
        outcomes.push(Outcome::Kept(Example {
            input_ids: ids[start..end].to_vec(),
            token_type_ids: None,
            label: Label::Tokens(labels),
            line: example.line,
            truncated_tokens: 0,
        }));
        if end == ids.len() {
            return Read {
                outcomes,
                chat: None,
            };
        }
        start = (end - 1).max(start + 1);
    }
}
