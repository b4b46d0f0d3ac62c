//! TER as sacreBLEU computes it (tercom's algorithm): the edits that make the output a reference,
//! where a block of words may move for the price of one, by the references' mean length.
//! Lower-cased, tokens as they stand between blanks (signature
//! `case:lc|tok:tercom|norm:no|punct:yes|asian:no`). Source: Snover et al. 2006; sacrebleu 2.6.

use crate::Segment;
use crate::ngrams::Coded;

/// Longest block that moves, and farthest move, in words.
const MAX_SHIFT_SIZE: usize = 10;
const MAX_SHIFT_DISTANCE: usize = 50;
/// Cells of the edit distance on either side of its diagonal.
const BEAM_WIDTH: usize = 25;
/// Moves that are tried for one pair before it is left as it is.
const MAX_CANDIDATES: usize = 1000;

/// The corpus score in per cent, 0 for copies, lower is better; NaN without segments.
pub fn score(segments: &[Segment]) -> f64 {
    if segments.is_empty() {
        return f64::NAN;
    }
    let lower: Vec<Segment> = segments.iter().map(|s| s.map(str::to_lowercase)).collect();
    let (mut edits, mut length) = (0, 0.0);
    for coded in Coded::all(&lower, str::split_whitespace) {
        let of_reference = |reference: &Vec<u32>| self::edits(&coded.output, reference);
        edits += coded.references.iter().map(of_reference).min().unwrap_or(0);
        let words: usize = coded.references.iter().map(Vec::len).sum();
        length += words as f64 / coded.references.len() as f64;
    }
    match (edits, length > 0.0) {
        (_, true) => 100.0 * edits as f64 / length,
        (0, false) => 0.0,
        (_, false) => 100.0,
    }
}

/// Moves and single-word edits that make `output` into `reference`, found greedily.
fn edits(output: &[u32], reference: &[u32]) -> usize {
    if reference.is_empty() {
        return output.len();
    }
    let mut words = output.to_vec();
    let mut table = Table::new(&words, reference);
    let (mut moves, mut tried) = (0, 0);
    loop {
        let best = best_move(&words, reference, &table, &mut tried);
        if tried >= MAX_CANDIDATES {
            break;
        }
        match best {
            Some(best) if best.gain > 0 => words = best.words,
            _ => break,
        }
        moves += 1;
        table = Table::new(&words, reference);
    }
    moves + table.distance()
}

/// A block that moves. Ordered as tercom prefers: most gained, longest block, earliest, nearest the
/// front.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    gain: isize,
    length: usize,
    from: std::cmp::Reverse<usize>,
    to: std::cmp::Reverse<usize>,
    words: Vec<u32>,
}

fn best_move(words: &[u32], reference: &[u32], table: &Table, tried: &mut usize) -> Option<Move> {
    let alignment = table.alignment();
    let distance = table.distance() as isize;
    let mut rows = table.rows.clone();
    let mut best: Option<Move> = None;
    for (from, target, length) in blocks(words, reference) {
        // A block moves only if it is wrong where it is and missing where it goes.
        let is_right = |wrong: &[bool]| wrong.iter().all(|wrong| !wrong);
        let (here, there) = (from..from + length, target..target + length);
        if is_right(&alignment.output_wrong[here.clone()])
            || is_right(&alignment.reference_wrong[there])
        {
            continue;
        }
        // Not within itself.
        if alignment.to_output[target].is_some_and(|at| here.contains(&at)) {
            continue;
        }
        let mut last = None;
        for place in 0..=length {
            // After the word aligned to the one before the block in the reference, or to one in it.
            let to = match (target + place).checked_sub(1) {
                None => 0,
                Some(word) => match alignment.to_output.get(word) {
                    Some(at) => at.map_or(0, |at| at + 1),
                    None => break,
                },
            };
            if last.replace(to) == Some(to) {
                continue;
            }
            let moved = move_block(words, from, length, to);
            let gain = distance - table.distance_of(&moved, words, &mut rows) as isize;
            *tried += 1;
            let candidate = Move {
                gain,
                length,
                from: std::cmp::Reverse(from),
                to: std::cmp::Reverse(to),
                words: moved,
            };
            if best.as_ref().is_none_or(|best| candidate > *best) {
                best = Some(candidate);
            }
        }
        if *tried >= MAX_CANDIDATES {
            break;
        }
    }
    best
}

/// Blocks of the output that also stand in the reference: starts in both, length.
fn blocks<'a>(
    words: &'a [u32],
    reference: &'a [u32],
) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    let starts = (0..words.len()).flat_map(|from| (0..reference.len()).map(move |to| (from, to)));
    let near = starts.filter(|(from, to)| from.abs_diff(*to) <= MAX_SHIFT_DISTANCE);
    near.flat_map(|(from, to)| {
        let pairs = words[from..].iter().zip(&reference[to..]);
        let same = pairs.take_while(|(a, b)| a == b).count();
        (1..=same.min(MAX_SHIFT_SIZE)).map(move |length| (from, to, length))
    })
}

/// The words with a block moved to before the place that `to` had.
fn move_block(words: &[u32], from: usize, length: usize, to: usize) -> Vec<u32> {
    let end = from + length;
    let block = &words[from..end];
    if to < from {
        [&words[..to], block, &words[to..from], &words[end..]].concat()
    } else if to > end {
        [&words[..from], &words[end..to], block, &words[to..]].concat()
    } else {
        // As tercom: a place inside the block is counted behind it.
        let behind = (length + to).min(words.len());
        [&words[..from], &words[end..behind], block, &words[behind..]].concat()
    }
}

/// What a cell of the table was reached by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Same,
    Substitute,
    Delete,
    Insert,
    Unreached,
}

type Cell = (usize, Edit);

/// The edit distance of prefixes: a row for each number of output words, a column for each of the
/// reference's. Cells far from the diagonal are not reached.
struct Table<'a> {
    reference: &'a [u32],
    rows: Vec<Vec<Cell>>,
}

impl<'a> Table<'a> {
    fn new(words: &[u32], reference: &'a [u32]) -> Self {
        let width = reference.len() + 1;
        let first = (0..width).map(|j| (j, Edit::Insert)).collect();
        let mut rows = vec![vec![(usize::MAX / 2, Edit::Unreached); width]; words.len() + 1];
        rows[0] = first;
        let table = Self {
            reference,
            rows: Vec::new(),
        };
        table.fill(&mut rows, words, 0);
        Self { reference, rows }
    }

    fn distance(&self) -> usize {
        self.rows[self.rows.len() - 1][self.reference.len()].0
    }

    /// The distance of other words as many as `words`, of which `rows` is the table before and
    /// after.
    fn distance_of(&self, other: &[u32], words: &[u32], rows: &mut [Vec<Cell>]) -> usize {
        let same = other.iter().zip(words).take_while(|(a, b)| a == b).count();
        rows[same].copy_from_slice(&self.rows[same]);
        self.fill(rows, other, same);
        rows[other.len()][self.reference.len()].0
    }

    /// Computes the rows after the first `done` words.
    fn fill(&self, rows: &mut [Vec<Cell>], words: &[u32], done: usize) {
        let length = self.reference.len();
        let ratio = length as f64 / words.len().max(1) as f64;
        let beam = match BEAM_WIDTH as f64 {
            beam if beam < ratio / 2.0 => (ratio / 2.0 + beam).ceil() as usize,
            _ => BEAM_WIDTH,
        };
        for i in done + 1..=words.len() {
            let diagonal = (i as f64 * ratio).floor() as usize;
            let end = match i == words.len() {
                true => length + 1,
                false => (diagonal + beam).min(length + 1),
            };
            let (above, row) = rows.split_at_mut(i);
            let (above, row) = (&above[i - 1], &mut row[0]);
            row.fill((usize::MAX / 2, Edit::Unreached));
            for j in diagonal.saturating_sub(beam)..end {
                if j == 0 {
                    row[0] = (above[0].0 + 1, Edit::Delete);
                    continue;
                }
                let (cost, edit) = match words[i - 1] == self.reference[j - 1] {
                    true => (0, Edit::Same),
                    false => (1, Edit::Substitute),
                };
                // Of equals the first: so does tercom, with insertion and deletion the other way
                // round.
                let mut cell = (above[j - 1].0 + cost, edit);
                for other in [
                    (above[j].0 + 1, Edit::Delete),
                    (row[j - 1].0 + 1, Edit::Insert),
                ] {
                    if other.0 < cell.0 {
                        cell = other;
                    }
                }
                row[j] = cell;
            }
        }
    }

    /// Which output word each reference word is aligned to, and which words are not as they should
    /// be.
    fn alignment(&self) -> Alignment {
        let (mut i, mut j) = (self.rows.len() - 1, self.reference.len());
        let mut edits = Vec::with_capacity(i + j);
        while i > 0 || j > 0 {
            let edit = self.rows[i][j].1;
            match edit {
                Edit::Same | Edit::Substitute => (i, j) = (i - 1, j - 1),
                Edit::Delete => i -= 1,
                Edit::Insert => j -= 1,
                Edit::Unreached => unreachable!("the last cell is reached from reached ones"),
            }
            edits.push(edit);
        }
        let mut alignment = Alignment::default();
        for edit in edits.into_iter().rev() {
            if edit != Edit::Insert {
                alignment.output_wrong.push(edit != Edit::Same);
            }
            if edit != Edit::Delete {
                // A missing word is where the output word before it is.
                let at = alignment.output_wrong.len().checked_sub(1);
                alignment.to_output.push(at);
                alignment.reference_wrong.push(edit != Edit::Same);
            }
        }
        alignment
    }
}

/// The trace of a table.
#[derive(Default)]
struct Alignment {
    /// By reference word; none before the first output word.
    to_output: Vec<Option<usize>>,
    reference_wrong: Vec<bool>,
    output_wrong: Vec<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_block_costs_one() {
        // "in the park" moves; nothing else differs.
        let segment = Segment::new("in the park we saw a dog", ["We saw a dog in the park"]);
        assert!((score(&[segment]) - 100.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn empty_sides() {
        assert_eq!(score(&[Segment::new("", [""])]), 0.0);
        assert_eq!(score(&[Segment::new("a b", [""])]), 100.0);
        assert_eq!(score(&[Segment::new("", ["a b"])]), 100.0);
        assert_eq!(score(&[Segment::new("a b", ["a b", "c"])]), 0.0);
    }
}
