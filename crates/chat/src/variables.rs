//! What a template may read besides the chat: special tokens, switches, and what time it is.

use std::collections::BTreeMap;

use jiff::ZonedDateTime;
use serde_json::{Map, Value};

/// A point in time, in a time zone. It is noted as text, so that a run that goes on has the time of
/// its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment(ZonedDateTime);

impl Moment {
    /// Now, in the system's time zone.
    pub fn now() -> Self {
        Moment(ZonedDateTime::now())
    }

    /// A moment that was noted. `None` where it is none.
    pub fn parse(noted: &str) -> Option<Self> {
        noted.parse().ok().map(Moment)
    }

    /// As C's strftime; `None` where the format is not known.
    pub(crate) fn format(&self, format: &str) -> Option<String> {
        jiff::fmt::strtime::format(format, &self.0).ok()
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a template may read besides the chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Variables {
    /// Special tokens by name: `bos_token`, `eos_token`, …, as `special_tokens_map` in
    /// transformers.
    pub special_tokens: BTreeMap<String, String>,
    /// Switches of a template, such as `enable_thinking`.
    pub switches: Map<String, Value>,
    /// What `strftime_now` says.
    pub now: Moment,
}

impl Default for Variables {
    /// No special tokens, no switches, now.
    fn default() -> Self {
        Variables {
            special_tokens: BTreeMap::new(),
            switches: Map::new(),
            now: Moment::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_comes_back_as_it_was_noted() {
        let moment = Moment::parse("2026-11-05T07:08:09+01:00[+01:00]").unwrap();
        assert_eq!(Moment::parse(&moment.to_string()), Some(moment.clone()));
        assert_eq!(moment.format("%d %b %Y").unwrap(), "05 Nov 2026");
        assert_eq!(
            moment.format("%Y-%m-%d %H:%M:%S %B %A").unwrap(),
            "2026-11-05 07:08:09 November Thursday"
        );
        assert_eq!(Moment::parse("yesterday"), None);
    }
}
