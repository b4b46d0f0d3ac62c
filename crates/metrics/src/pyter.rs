//! TER as the LoRA paper reports it for WebNLG and DART: for each output the smallest rate that
//! pyter finds with any of the references, averaged over outputs. Text is lower-cased and cut at
//! everything that is no letter, digit or underscore, as the paper's decoding script leaves it.
//! Source: GenerationEval `eval.py` (its second pass by NLTK, which only rewrites quotation marks
//! and words such as `cannot` in such text, is not repeated here); pyter 0.2.

use std::sync::LazyLock;

use regex::Regex;

use crate::Segment;

/// The mean rate, 0 for copies, lower is better; NaN without segments.
pub fn score(segments: &[Segment]) -> f64 {
    let of_segment = |segment: &Segment| {
        let segment = segment.map(tokenize);
        let rates = segment
            .references
            .iter()
            .map(|reference| rate(&segment.output, reference));
        rates.fold(f64::INFINITY, f64::min)
    };
    segments.iter().map(of_segment).sum::<f64>() / segments.len() as f64
}

/// Lower-cased words and other signs with blanks between them.
fn tokenize(text: &str) -> String {
    static SIGN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\W").expect("a fixed pattern"));
    SIGN.replace_all(&text.to_lowercase(), " $0 ").into_owned()
}

/// Edits by the reference's length. Against an empty reference everything is wrong.
fn rate(output: &str, reference: &str) -> f64 {
    let mut sorted: Vec<&str> = output.split_whitespace().collect();
    sorted.extend(reference.split_whitespace());
    sorted.sort_unstable();
    sorted.dedup();
    // Numbers in the order of the words: among moves as good as each other, pyter takes the last in
    // that order.
    let number = |word: &str| {
        sorted
            .binary_search_by(|other| (*other).cmp(word))
            .unwrap_or_default() as u32
    };
    let words = |text: &str| text.split_whitespace().map(&number).collect::<Vec<u32>>();
    let (mut output, reference) = (words(output), words(reference));
    if reference.is_empty() {
        return 1.0;
    }
    let mut moves = 0;
    loop {
        let mut table = Table::new(&output, &reference);
        let distance = table.distance();
        match best_move(&output, &reference, &mut table) {
            Some((after, words)) if after < distance => output = words,
            _ => return (moves + distance) as f64 / reference.len() as f64,
        }
        moves += 1;
    }
}

/// The words after the move that leaves the smallest distance.
fn best_move(words: &[u32], reference: &[u32], table: &mut Table) -> Option<(usize, Vec<u32>)> {
    let mut best: Option<(usize, Vec<u32>)> = None;
    for from in 0..words.len() {
        for to in (0..reference.len()).filter(|&to| to != from) {
            let pairs = words[from..].iter().zip(&reference[to..]);
            let length = pairs.take_while(|(a, b)| a == b).count();
            if length == 0 {
                continue;
            }
            let mut moved = [&words[..from], &words[from + length..]].concat();
            let to = to.min(moved.len());
            moved.splice(to..to, words[from..from + length].iter().copied());
            let distance = table.distance_of(&moved, words);
            let is_better = best.as_ref().is_none_or(|(least, last)| {
                distance < *least || distance == *least && moved > *last
            });
            if is_better {
                best = Some((distance, moved));
            }
        }
    }
    best
}

/// Levenshtein distances of prefixes: a row for each number of words, a column for each of the
/// reference's.
struct Table<'a> {
    reference: &'a [u32],
    rows: Vec<Vec<usize>>,
    /// Rows of other words, for scratch.
    other: Vec<Vec<usize>>,
}

impl<'a> Table<'a> {
    fn new(words: &[u32], reference: &'a [u32]) -> Self {
        let mut rows = vec![Vec::new(); words.len() + 1];
        rows[0] = (0..=reference.len()).collect();
        fill(&mut rows, words, reference, 0);
        let other = rows.clone();
        Self {
            reference,
            rows,
            other,
        }
    }

    fn distance(&self) -> usize {
        self.rows[self.rows.len() - 1][self.reference.len()]
    }

    /// The distance of other words, as many as `words`, whose table this is.
    fn distance_of(&mut self, other: &[u32], words: &[u32]) -> usize {
        let same = other.iter().zip(words).take_while(|(a, b)| a == b).count();
        self.other[same].clone_from(&self.rows[same]);
        fill(&mut self.other, other, self.reference, same);
        self.other[other.len()][self.reference.len()]
    }
}

/// Computes the rows after the first `done` words.
fn fill(rows: &mut [Vec<usize>], words: &[u32], reference: &[u32], done: usize) {
    for i in done + 1..=words.len() {
        let (above, row) = rows.split_at_mut(i);
        let (above, row) = (&above[i - 1], &mut row[0]);
        row.clear();
        row.push(i);
        for (j, word) in reference.iter().enumerate() {
            let same = above[j] + usize::from(words[i - 1] != *word);
            let next = same.min(above[j + 1] + 1).min(row[j] + 1);
            row.push(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_pyter() {
        let reference =
            "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times";
        let output = "THIS WEEK THE SAUDIS denied information published in the new york times";
        let found = score(&[Segment::new(output, [reference])]);
        // 0.308, as its documentation says; no word there is another one's only by its case.
        assert!((found - 4.0 / 13.0).abs() < 1e-12, "{found}");
    }

    #[test]
    fn signs_are_words_and_the_best_reference_counts() {
        assert_eq!(tokenize("It's 5-star.").split_whitespace().count(), 7);
        let segment = Segment::new("A cat.", ["a dog .", "a cat ."]);
        assert_eq!(score(&[segment]), 0.0);
        assert_eq!(score(&[Segment::new("a", [""])]), 1.0);
        assert_eq!(score(&[Segment::new("", ["a b"])]), 1.0);
    }
}
