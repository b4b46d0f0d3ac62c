//! Texts as numbers and their n-grams, counted. What a token is, is the caller's choice.

use std::collections::HashMap;

use crate::Segment;

/// A segment's texts as numbers, one a token.
pub struct Coded {
    /// The output.
    pub output: Vec<u32>,
    /// The references.
    pub references: Vec<Vec<u32>>,
}

impl Coded {
    /// All segments; equal tokens have equal numbers throughout.
    pub fn all<'a, T>(segments: &'a [Segment], tokens: impl Fn(&'a str) -> T) -> Vec<Self>
    where
        T: Iterator<Item = &'a str>,
    {
        let mut numbers = HashMap::new();
        let mut code = |text: &'a String| {
            let number = |token| {
                let next = numbers.len() as u32;
                *numbers.entry(token).or_insert(next)
            };
            tokens(text).map(number).collect::<Vec<u32>>()
        };
        let coded = |segment: &'a Segment| Self {
            output: code(&segment.output),
            references: segment.references.iter().map(&mut code).collect(),
        };
        segments.iter().map(coded).collect()
    }

    /// The length of the reference whose length is closest to the output's; of two, the shorter.
    pub fn closest_reference_length(&self) -> usize {
        let lengths = self.references.iter().map(Vec::len);
        lengths
            .min_by_key(|length| (length.abs_diff(self.output.len()), *length))
            .unwrap_or(0)
    }
}

/// How often each n-gram occurs. Never iterated where a float is summed: the order of a map is
/// random.
pub type Counts<'a> = HashMap<&'a [u32], u32>;

/// The n-grams of one text.
pub fn counts(text: &[u32], n: usize) -> Counts<'_> {
    let mut counts = Counts::with_capacity(text.len());
    for gram in text.windows(n) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// Each n-gram with the largest number of times that it occurs in one of the texts.
pub fn most(texts: &[Vec<u32>], n: usize) -> Counts<'_> {
    let mut most = Counts::new();
    for text in texts {
        for (gram, count) in counts(text, n) {
            let entry = most.entry(gram).or_insert(0);
            *entry = count.max(*entry);
        }
    }
    most
}

/// The n-grams of the output that occur in the references, each at most as often as in the
/// reference that has it most; in the order of the output.
pub fn hits<'a>(
    output: &'a [u32],
    references: &'a [Vec<u32>],
    n: usize,
) -> impl Iterator<Item = &'a [u32]> {
    let mut left = most(references, n);
    output.windows(n).filter(move |gram| {
        let left = left.get_mut(gram).filter(|left| **left > 0);
        left.is_some_and(|left| {
            *left -= 1;
            true
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_clipped_by_the_reference_that_has_most() {
        let segment = Segment::new(
            "the the the cat",
            ["the cat is on the mat", "there is a cat"],
        );
        let coded = &Coded::all(&[segment], |text| text.split(' '))[0];
        let hits = |n| hits(&coded.output, &coded.references, n).count();
        assert_eq!((hits(1), hits(2), hits(5)), (3, 1, 0));
    }

    #[test]
    fn of_two_lengths_as_close_the_shorter_counts() {
        let coded = Coded {
            output: vec![0; 5],
            references: vec![vec![0; 7], vec![0; 3], vec![0; 9]],
        };
        assert_eq!(coded.closest_reference_length(), 3);
    }
}
