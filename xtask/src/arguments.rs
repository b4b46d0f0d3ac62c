//! Reads `--name value` pairs and plain words; anything unknown is an error.

use std::str::FromStr;

/// The words after a command, taken one by one.
pub struct Arguments {
    words: Vec<String>,
}

impl Arguments {
    /// Wraps the words.
    pub fn new(words: &[String]) -> Self {
        Self {
            words: words.to_vec(),
        }
    }

    /// The value after `name`, if it is given.
    pub fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.words.iter().position(|word| word == name) else {
            return Ok(None);
        };
        if at + 1 == self.words.len() {
            return Err(format!("{name} needs a value"));
        }
        self.words.remove(at);
        Ok(Some(self.words.remove(at)))
    }

    /// The number after `name`, or `default`.
    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        match self.value(name)? {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("{name}: expected a number, found `{text}`")),
        }
    }

    /// The next plain word.
    pub fn word(&mut self) -> Option<String> {
        let at = self.words.iter().position(|word| !word.starts_with('-'))?;
        Some(self.words.remove(at))
    }

    /// Refuses what was not taken.
    pub fn finish(self) -> Result<(), String> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(format!(
                "`{word}` is not expected here (see `cargo xtask help`)"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Arguments {
        Arguments::new(
            &text
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn values_words_and_numbers() {
        let mut a = arguments("--python p3 bert --steps 4");
        assert_eq!(a.value("--python").unwrap().as_deref(), Some("p3"));
        assert_eq!(a.number("--steps", 9), Ok(4));
        assert_eq!(a.number("--batch", 9), Ok(9));
        assert_eq!(a.word().as_deref(), Some("bert"));
        a.finish().unwrap();
    }

    #[test]
    fn what_is_unknown_or_unfinished_is_refused() {
        assert!(
            arguments("--speed 3")
                .finish()
                .unwrap_err()
                .contains("`--speed`")
        );
        assert!(arguments("--steps").number("--steps", 1).is_err());
        assert!(
            arguments("--steps x")
                .number("--steps", 1)
                .unwrap_err()
                .contains("`x`")
        );
    }
}
