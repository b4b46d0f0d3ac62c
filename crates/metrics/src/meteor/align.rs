//! METEOR's alignment of an output with a reference: all matches that some stage allows, then a
//! beam search for the set of them that covers most words, in the fewest chunks, nearest to the
//! diagonal. Source: Denkowski and Lavie 2014; the beam keeps 40 partial alignments and takes them
//! in the order of METEOR 1.5, so that its search errors are ours too.

use std::cmp::Reverse;

/// Partial alignments that are carried on.
const BEAM: usize = 40;

/// A span of the reference matched with a span of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// The stage that found it.
    pub stage: usize,
    /// First word in the reference.
    pub start: usize,
    /// Words in the reference.
    pub length: usize,
    /// First word in the output.
    pub output_start: usize,
    /// Words in the output.
    pub output_length: usize,
}

/// All possible matches of one pair.
pub(super) struct Candidates {
    /// By the first word in the reference.
    by_start: Vec<Vec<Match>>,
    /// How many matches cover each word of the reference.
    coverage: Vec<u32>,
    /// How many matches cover each word of the output.
    output_coverage: Vec<u32>,
}

impl Candidates {
    pub fn new(reference_length: usize, output_length: usize) -> Self {
        Self {
            by_start: vec![Vec::new(); reference_length],
            coverage: vec![0; reference_length],
            output_coverage: vec![0; output_length],
        }
    }

    pub fn push(&mut self, found: Match) {
        let Match {
            start,
            length,
            output_start,
            output_length,
            ..
        } = found;
        self.by_start[start].push(found);
        self.coverage[start..start + length]
            .iter_mut()
            .for_each(|n| *n += 1);
        let covered = output_start..output_start + output_length;
        self.output_coverage[covered]
            .iter_mut()
            .for_each(|n| *n += 1);
    }

    /// The best alignment: its matches in the order of the reference.
    pub fn align(&self) -> Vec<Match> {
        let mut search = Search {
            candidates: self,
            fixed: vec![None; self.by_start.len()],
            chosen: Vec::new(),
        };
        let best = search.run();
        let mut matches: Vec<Match> = search.fixed.iter().flatten().copied().collect();
        let mut last = best.chosen;
        while let Some(place) = last {
            let (found, before) = search.chosen[place];
            matches.push(found);
            last = before;
        }
        matches.sort_by_key(|found| found.start);
        matches
    }

    /// The only match of its words on both sides is certain.
    fn is_certain(&self, found: &Match) -> bool {
        let alone = |coverage: &[u32]| coverage.iter().all(|n| *n == 1);
        alone(&self.coverage[found.start..found.start + found.length])
            && alone(
                &self.output_coverage[found.output_start..found.output_start + found.output_length],
            )
    }
}

/// Chunks of an alignment: runs of matches that follow each other on both sides.
pub(super) fn chunks(matches: &[Match]) -> usize {
    let follows = |pair: &[Match]| {
        pair[1].start == pair[0].start + pair[0].length
            && pair[1].output_start == pair[0].output_start + pair[0].output_length
    };
    let breaks = matches.windows(2).filter(|pair| !follows(pair)).count();
    breaks + usize::from(!matches.is_empty())
}

/// An alignment of the reference's first words.
#[derive(Clone)]
struct Path {
    /// Words covered by matches on both sides; those of other stages than the first count half.
    weight: usize,
    chunks: usize,
    distance: usize,
    /// The first word of the reference after the last match or skipped word.
    next: usize,
    /// Where the current chunk ends in the output.
    chunk_end: Option<usize>,
    /// Words in use: those of the reference, then those of the output.
    used: Vec<u64>,
    /// The last chosen match.
    chosen: Option<usize>,
}

impl Path {
    /// Most words, then fewest chunks, then nearest.
    fn rank(&self) -> (Reverse<usize>, usize, usize) {
        (Reverse(self.weight), self.chunks, self.distance)
    }

    fn is_used(&self, word: usize) -> bool {
        self.used[word / 64] >> (word % 64) & 1 == 1
    }

    /// Goes on after the match.
    fn take(&mut self, found: &Match) {
        self.weight += match found.stage {
            0 => found.output_length + found.length,
            // Halves are rounded down on each side, as in the original's whole numbers.
            _ => found.output_length / 2 + found.length / 2,
        };
        if self.chunk_end.is_some_and(|end| end != found.output_start) {
            self.chunks += 1;
        }
        self.next = found.start + found.length;
        self.chunk_end = Some(found.output_start + found.output_length);
    }

    fn close_chunk(&mut self) {
        if self.chunk_end.take().is_some() {
            self.chunks += 1;
        }
    }
}

struct Search<'a> {
    candidates: &'a Candidates,
    /// Certain matches by their start.
    fixed: Vec<Option<Match>>,
    /// Matches chosen by any path, each with the one chosen before it.
    chosen: Vec<(Match, Option<usize>)>,
}

impl Search<'_> {
    fn run(&mut self) -> Path {
        let length = self.candidates.by_start.len();
        let mut paths = vec![self.first()];
        for current in 0..length {
            // A stable sort: of equals, the one made first goes on first.
            paths.sort_by_key(Path::rank);
            paths.truncate(BEAM);
            let mut next = Vec::with_capacity(4 * paths.len());
            let mut fallback = paths.first().cloned();
            for path in paths {
                self.step(path, current, &mut next);
            }
            if next.is_empty() {
                next.extend(fallback.take());
            }
            paths = next;
        }
        paths.sort_by_key(Path::rank);
        paths.truncate(BEAM);
        paths.iter_mut().for_each(Path::close_chunk);
        paths.sort_by_key(Path::rank);
        paths.swap_remove(0)
    }

    fn first(&mut self) -> Path {
        let candidates = self.candidates;
        let words = candidates.coverage.len() + candidates.output_coverage.len();
        let mut path = Path {
            weight: 0,
            chunks: 0,
            distance: 0,
            next: 0,
            chunk_end: None,
            used: vec![0; words.div_ceil(64)],
            chosen: None,
        };
        for matches in &candidates.by_start {
            if let [only] = matches.as_slice()
                && candidates.is_certain(only)
            {
                self.fixed[only.start] = Some(*only);
                self.words(only)
                    .for_each(|word| path.used[word / 64] |= 1 << (word % 64));
            }
        }
        path
    }

    /// The places in `used` of a match's words.
    fn words(&self, found: &Match) -> impl Iterator<Item = usize> + use<> {
        let offset = self.candidates.coverage.len() + found.output_start;
        (found.start..found.start + found.length).chain(offset..offset + found.output_length)
    }

    /// Ways to go on with one word of the reference.
    fn step(&mut self, mut path: Path, current: usize, next: &mut Vec<Path>) {
        if path.is_used(current) {
            if current < path.next {
                next.push(path);
            } else if let Some(found) = self.fixed[path.next] {
                path.take(&found);
                path.distance += found.start.abs_diff(found.output_start);
                next.push(path);
            }
            return;
        }
        for found in &self.candidates.by_start[current] {
            if self.words(found).any(|word| path.is_used(word)) {
                continue;
            }
            let mut with = path.clone();
            self.words(found)
                .for_each(|word| with.used[word / 64] |= 1 << (word % 64));
            with.take(found);
            self.chosen.push((*found, path.chosen));
            with.chosen = Some(self.chosen.len() - 1);
            // Counted for the paths that follow, not for this one: so does the original.
            path.distance += found.start.abs_diff(found.output_start);
            next.push(with);
        }
        path.close_chunk();
        path.next += 1;
        next.push(path);
    }
}
