//! Texts that end what is generated. transformers ends at the same token (`StopStringCriteria`);
//! what it leaves in the text, the end itself, is taken off here.

use lowrank_data::Tokenizer;

/// Tokens before those of an end that are decoded with them: some tokenizers decode the first token
/// of a text otherwise.
const BEFORE: usize = 8;

/// The texts that end what is generated; none of them is empty.
pub(super) struct Stops {
    texts: Vec<String>,
    /// Tokens that hold any of them, a byte each at least.
    tokens: usize,
}

impl Stops {
    pub(super) fn new(texts: Vec<String>) -> Self {
        let longest = texts.iter().map(String::len).max().unwrap_or_default();
        Stops {
            texts,
            tokens: longest + BEFORE,
        }
    }

    /// Whether one of the texts stands in the last of these new tokens. It is asked after each of
    /// them.
    pub(super) fn end(&self, tokens: &[u32], tokenizer: &Tokenizer) -> bool {
        if self.texts.is_empty() {
            return false;
        }
        let last = &tokens[tokens.len().saturating_sub(self.tokens)..];
        let text = tokenizer.decode(last);
        text.is_ok_and(|text| self.start_in(&text).is_some())
    }

    /// Where the first of the texts begins in a text.
    pub(super) fn start_in(&self, text: &str) -> Option<usize> {
        let found = self.texts.iter().filter_map(|stop| text.find(stop));
        found.min()
    }

    /// Bytes of a text behind which one of the texts may begin that is not whole yet.
    pub(super) fn settled(&self, text: &str) -> usize {
        let begun = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).rev();
            let mut begun = ends.filter(|&at| at > 0 && text.ends_with(&stop[..at]));
            begun.next().unwrap_or_default()
        };
        text.len() - self.texts.iter().map(begun).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_before_the_first_end_and_a_begun_end_is_held_back() {
        let stops = Stops::new(vec!["\n\nUser".to_owned(), "é!".to_owned()]);
        assert_eq!(stops.start_in("a\n\nUser é!"), Some(1));
        assert_eq!(stops.start_in("aé! \n\nUser"), Some(1));
        assert_eq!(stops.start_in("a\nUser"), None);
        let settled = |text: &str| text[..stops.settled(text)].to_owned();
        assert_eq!(settled("a\n"), "a");
        assert_eq!(settled("a\n\nUse"), "a");
        assert_eq!(settled("a\n\nUses"), "a\n\nUses");
        assert_eq!(settled("aé"), "a");
        assert_eq!(Stops::new(Vec::new()).settled("a"), 1);
    }
}
