//! The tokens of the Penn Treebank as Stanford's tokeniser (CoreNLP 3.4.1, `-lowerCase`) cuts them,
//! without punctuation: what coco-caption, and so e2e-metrics, gives to ROUGE-L, CIDEr and METEOR.
//!
//! The original is a generated lexer: at each place the rule that matches most characters wins, of
//! equals the first. Here the rules are compiled to one automaton with the same choice. `rules`
//! holds them; this file walks the text.

mod rules;

use std::sync::LazyLock;

use regex_automata::hybrid::dfa::DFA;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use crate::Segment;
use rules::{Action, RULES};

/// What coco-caption drops, as far as it can still occur: brackets are lower-cased before, to
/// `-lrb-`, and stay.
const PUNCTUATION: [&str; 12] = [
    "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", ";",
];

/// The lexer, built once; it fills its states as they are met.
static LEXER: LazyLock<DFA> = LazyLock::new(|| {
    let patterns: Vec<String> = RULES
        .iter()
        .map(|rule| rules::expand(rule.pattern))
        .collect();
    DFA::builder()
        .configure(
            DFA::config()
                .match_kind(MatchKind::All)
                .skip_cache_capacity_check(true),
        )
        .syntax(syntax::Config::new().unicode(true).utf8(true))
        .build_many(&patterns)
        .expect("fixed patterns")
});

/// The tokens of one text, lower-cased, with one blank between them.
pub fn tokenize(text: &str) -> String {
    lines([text]).swap_remove(0)
}

/// The tokens of each text. As in the original, the texts are the lines of one file: whether a full
/// stop belongs to a letter (`Serie A.`) can depend on the first word of the next line. A line's
/// end inside a text is a blank.
pub fn lines<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut file = String::new();
    for text in texts {
        file.extend(text.chars().map(|c| if c == '\n' { ' ' } else { c }));
        file.push('\n');
    }
    let mut cache = LEXER.create_cache();
    let mut tokens = Tokens::default();
    let mut rest = file.as_str();
    while let Some(first) = rest.chars().next() {
        let input = Input::new(rest).anchored(Anchored::Yes);
        let found = LEXER.try_search_fwd(&mut cache, &input);
        let read = match found.expect("the automaton never gives up or quits") {
            Some(found) => {
                let action = &RULES[found.pattern()].action;
                tokens.act(action, &rest[..found.offset()])
            }
            // The original deletes what no rule knows.
            None => first.len_utf8(),
        };
        rest = &rest[read..];
    }
    tokens.lines
}

/// The segments with their texts tokenised: all outputs as one file, all references as another.
pub fn tokenize_all(segments: &[Segment]) -> Vec<Segment> {
    let outputs = lines(segments.iter().map(|s| s.output.as_str()));
    let references = segments.iter().flat_map(|s| &s.references);
    let mut references = lines(references.map(String::as_str)).into_iter();
    let segments = segments.iter().zip(outputs);
    segments
        .map(|(segment, output)| Segment {
            output,
            references: references.by_ref().take(segment.references.len()).collect(),
        })
        .collect()
}

/// The lines of tokens written so far, and the one being written.
#[derive(Default)]
struct Tokens {
    lines: Vec<String>,
    line: String,
}

impl Tokens {
    /// Writes what a rule makes of the text that it matched; gives how many bytes of it are done.
    fn act(&mut self, action: &Action, text: &str) -> usize {
        let end = match *action {
            Action::Token => text.len(),
            Action::First(end) => end,
            Action::Before(following) => {
                let cut = text.char_indices().rev().nth(following - 1);
                cut.map_or(0, |(at, _)| at)
            }
            Action::BeforeApostrophe => {
                let is_apostrophe = |c| matches!(c, '\'' | '’' | '\u{92}' | '&');
                text.rfind(is_apostrophe).unwrap_or(text.len())
            }
            Action::BeforeNot => text.rfind(['n', 'N']).unwrap_or(text.len()),
            Action::As(token) => {
                self.push(token);
                return text.len();
            }
            Action::NextLine => {
                self.lines.push(std::mem::take(&mut self.line));
                return text.len();
            }
            Action::Drop => return text.len(),
        };
        self.push(&text[..end]);
        end
    }

    /// Adds the token, renamed and in lower case, unless it is punctuation.
    fn push(&mut self, token: &str) {
        let name = match token {
            // Contractions get a plain apostrophe, other words keep theirs.
            "’s" | "’m" | "’d" | "’re" | "’ve" | "’ll" | "n’t" => {
                token.replace('’', "'")
            }
            "[" => "-lsb-".to_owned(),
            "]" => "-rsb-".to_owned(),
            "{" => "-lcb-".to_owned(),
            "}" => "-rcb-".to_owned(),
            // Blanks inside a token, as in telephone numbers, part no tokens.
            token => token
                .replace('\u{ad}', "")
                .replace(' ', "\u{a0}")
                .replace('(', "-lrb-")
                .replace(')', "-rrb-")
                .replace("&amp;", "&")
                .replace("&apos;", "'")
                .to_lowercase(),
        };
        if name.is_empty() || PUNCTUATION.contains(&name.as_str()) {
            return;
        }
        if !self.line.is_empty() {
            self.line.push(' ');
        }
        self.line.push_str(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our own sentences; the tokens are those that CoreNLP 3.4.1 and coco-caption's list of
    /// punctuation give.
    #[test]
    fn tokens_of_the_original() {
        let cases = [
            (
                "It's a £20-£25 \"café\" (cheap)...",
                "it 's a # 20 # 25 café -lrb- cheap -rrb-",
            ),
            (
                "I don't, can't; won't: cannot!",
                "i do n't ca n't wo n't can not",
            ),
            (
                "Mr. Smith lives in the U.S. The end.",
                "mr. smith lives in the u.s. the end",
            ),
            (
                "family-friendly and/or 3.5/5, 5 - star",
                "family-friendly and/or 3.5 / 5 5 star",
            ),
            ("Really?! Wow!!! No?", "really ?! wow !!! no"),
            ("AT&amp;T &lt;br&gt; a&b", "at&t < br > a & b"),
            (
                "O'Brien's rock'n'roll o'clock y'all",
                "o'brien 's rock 'n' roll o'clock y' all",
            ),
            ("a—b 10:30 50% 12.5m v1.0", "a b 10:30 50 % 12.5 m v1 .0"),
            ("x.y a..b <b> :-) 1½", "x.y a. b <b> :--rrb- 1 1/2"),
            ("Hall’s “don’t” 😀 ok", "hall 's do n't ok"),
            ("it&apos;s don&apos;t", "it 's do n't"),
            ("", ""),
        ];
        for (text, tokens) in cases {
            assert_eq!(tokenize(text), tokens, "{text}");
        }
    }

    #[test]
    fn a_letter_before_a_full_stop_depends_on_the_next_line() {
        assert_eq!(lines(["Serie A.", "The end."]), ["serie a", "the end"]);
        assert_eq!(lines(["Serie A.", "Rome won."]), ["serie a.", "rome won"]);
        assert_eq!(lines(["two\nlines", ""]), ["two lines", ""]);
    }

    /// Whatever the text, the lexer goes on; half of its rules look at what follows them.
    #[test]
    fn any_text_ends() {
        let pieces = [
            "n", "'", "t", "s", ".", " ", "A", "The", "5", "-", "&apos;", "&amp;", "’", "\u{ad}",
            "é", "\u{301}", "no", "(", "#", "@", "x.y", "<", ">", "/", "\n", "😀", "½", ":", ",",
            "am",
        ];
        let mut state = 7u32;
        for _ in 0..3000 {
            let mut text = String::new();
            for _ in 0..12 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push_str(pieces[(state >> 16) as usize % pieces.len()]);
            }
            assert_eq!(lines([text.as_str(), "end"]).len(), 2, "{text}");
        }
    }

    #[test]
    fn parts_of_odd_texts() {
        let odd = "\u{0}\u{fffd}<&'' ''``--..((\u{301}x 'n 's n't \u{10ffff}";
        for start in 0..odd.len() {
            if odd.is_char_boundary(start) {
                tokenize(&odd[start..]);
            }
        }
    }
}
