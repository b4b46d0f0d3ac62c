//! Answers that are right or wrong, each by itself: equal texts, or equal final numbers.

/// How an answer is compared with the one that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerScorer {
    /// The texts are equal but for blanks around them.
    Exact,
    /// The final numbers are equal, as in GSM8K: behind the last `####`, else behind the last "the
    /// answer is", else the last number of the text. Commas, `$` and a point at the end do not
    /// count. Source: openai/grade-school-math `dataset.py` (the first way); PEFT's MetaMathQA (the
    /// second); lm-evaluation-harness' `flexible-extract` (the third).
    Gsm8k,
}

impl AnswerScorer {
    /// All of them.
    pub const ALL: [AnswerScorer; 2] = [AnswerScorer::Exact, AnswerScorer::Gsm8k];

    /// The name in settings and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            AnswerScorer::Exact => "exact",
            AnswerScorer::Gsm8k => "gsm8k",
        }
    }

    /// The name in a table.
    pub fn label(self) -> &'static str {
        match self {
            AnswerScorer::Exact => "exact match",
            AnswerScorer::Gsm8k => "final number (GSM8K)",
        }
    }

    /// What of a text is compared; nothing where it holds no answer.
    pub fn answer(self, text: &str) -> Option<String> {
        match self {
            AnswerScorer::Exact => Some(text.trim().to_owned()),
            AnswerScorer::Gsm8k => final_number(text),
        }
    }

    /// Whether a text answers as one of those that are expected. A text without an answer is wrong.
    pub fn is_right(self, text: &str, expected: &[String]) -> bool {
        let answer = self.answer(text);
        answer.is_some()
            && expected
                .iter()
                .any(|expected| self.answer(expected) == answer)
    }
}

/// The final number of a text without what does not count: `-1234.5`.
fn final_number(text: &str) -> Option<String> {
    for mark in ["####", "answer is"] {
        let behind = text.rfind(mark).map(|at| &text[at + mark.len()..]);
        if let Some(number) = behind.and_then(|behind| numbers(behind).into_iter().next()) {
            return Some(number);
        }
    }
    numbers(text).pop()
}

/// The numbers of a text in their order.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = ' ';
    let mut rest = text.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        let is_signed = c == '-' && !before.is_alphanumeric();
        let starts = c.is_ascii_digit() || is_signed;
        before = c;
        if !starts {
            continue;
        }
        let mut end = at + 1;
        while let Some((next, c)) =
            rest.next_if(|(_, c)| c.is_ascii_digit() || [',', '.', '$'].contains(c))
        {
            (end, before) = (next + 1, c);
        }
        found.extend(canonical(&text[at..end]));
    }
    found
}

/// The number without commas, signs of currency, a point at the end, and zeros that say nothing.
fn canonical(written: &str) -> Option<String> {
    let sign = if written.starts_with('-') { "-" } else { "" };
    let kept = |c: &char| c.is_ascii_digit() || *c == '.';
    let digits: String = written.chars().filter(kept).collect();
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (whole, fraction) = (
        whole.trim_start_matches('0'),
        fraction.trim_end_matches(['0', '.']),
    );
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(match fraction.is_empty() {
        true if whole == "0" => whole.to_owned(),
        true => format!("{sign}{whole}"),
        false => format!("{sign}{whole}.{fraction}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_numbers_are_found_as_gsm8k_means_them() {
        let cases = [
            ("She has 3 + 4 = <<3+4=7>>7.\n#### 7", Some("7")),
            ("#### 1,234.50", Some("1234.5")),
            ("#### -12", Some("-12")),
            ("The answer is: $18.00.", Some("18")),
            ("The answer is 20. There are 3 left.", Some("20")),
            ("So 5 apples and 10 pears make 15.", Some("15")),
            ("It costs $2,000", Some("2000")),
            ("from 3-4 days", Some("4")),
            ("#### none, but 6", Some("6")),
            ("0.50 and -0", Some("0")),
            ("3...", Some("3")),
            ("no number", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(final_number(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_is_right_if_it_is_that_of_any_reference() {
        let expected = ["#### 72".to_owned(), "x".to_owned()];
        assert!(AnswerScorer::Gsm8k.is_right("She sold 72 clips.", &expected));
        assert!(!AnswerScorer::Gsm8k.is_right("She sold clips.", &expected));
        assert!(!AnswerScorer::Gsm8k.is_right("71", &expected));
        assert!(AnswerScorer::Exact.is_right(" x\n", &expected));
        assert!(!AnswerScorer::Exact.is_right("X", &expected));
    }
}
