//! What METEOR knows of English, read from the tables of its 1.5 release: function words, WordNet's
//! synonyms, paraphrases. Only what the words of one corpus can need is kept.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead};

use super::TableError;

/// The corpus's words and their numbers.
pub(super) type Words = HashMap<String, u32>;

/// Whether each word is among the listed ones, one a line.
pub(super) fn function_words(mut list: impl BufRead, words: &Words) -> io::Result<Vec<bool>> {
    let mut is_function = vec![false; words.len()];
    let mut line = String::new();
    while read_line(&mut list, &mut line)? {
        if let Some(&word) = words.get(&line) {
            is_function[word as usize] = true;
        }
    }
    Ok(is_function)
}

/// The WordNet synsets of each word and of its base forms, sorted.
pub(super) fn synsets(
    synsets: impl BufRead,
    exceptions: impl BufRead,
    words: &Words,
) -> Result<Vec<Vec<u32>>, TableError> {
    let bases = irregular_bases(exceptions, words)?;
    let mut wanted: HashSet<&str> = words.keys().map(String::as_str).collect();
    let regular: HashMap<&str, Vec<String>> = words
        .keys()
        .map(|word| (word.as_str(), regular_bases(word)))
        .collect();
    wanted.extend(regular.values().flatten().map(String::as_str));
    wanted.extend(bases.values().flatten().map(String::as_str));
    let table = sets_of(synsets, &wanted)?;
    let mut sets = vec![Vec::new(); words.len()];
    for (word, &number) in words {
        let set = &mut sets[number as usize];
        let mut add = |word: &str| set.extend(table.get(word).into_iter().flatten());
        add(word);
        match bases.get(word.as_str()) {
            Some(bases) => bases.iter().for_each(|base| add(base)),
            None => {
                let known = |base: &&String| table.contains_key(base.as_str());
                let base = regular[word.as_str()].iter().find(known);
                base.into_iter().for_each(|base| add(base));
            }
        }
        set.sort_unstable();
        set.dedup();
    }
    Ok(sets)
}

/// Pairs of lines: a word, the numbers of its synsets.
fn sets_of(
    mut table: impl BufRead,
    wanted: &HashSet<&str>,
) -> Result<HashMap<String, Vec<u32>>, TableError> {
    let mut sets = HashMap::new();
    let (mut word, mut line) = (String::new(), String::new());
    let mut number = 0;
    while read_line(&mut table, &mut word)? {
        number += 2;
        if !read_line(&mut table, &mut line)? {
            return Err(TableError::Line(number, "a word without its synsets"));
        }
        if !wanted.contains(word.as_str()) {
            continue;
        }
        let ids: Result<Vec<u32>, _> = line.split_whitespace().map(str::parse).collect();
        let ids = ids.map_err(|_| TableError::Line(number, "a synset that is no number"))?;
        sets.insert(word.clone(), ids);
    }
    Ok(sets)
}

/// Pairs of lines: a base form, the irregular forms made of it.
fn irregular_bases(
    mut table: impl BufRead,
    words: &Words,
) -> Result<HashMap<&str, Vec<String>>, TableError> {
    let mut bases: HashMap<&str, Vec<String>> = HashMap::new();
    let (mut base, mut line) = (String::new(), String::new());
    let mut number = 0;
    while read_line(&mut table, &mut base)? {
        number += 2;
        if !read_line(&mut table, &mut line)? {
            return Err(TableError::Line(number, "a base form without its forms"));
        }
        for form in line.split_whitespace() {
            if let Some((word, _)) = words.get_key_value(form) {
                bases.entry(word.as_str()).or_default().push(base.clone());
            }
        }
    }
    Ok(bases)
}

/// WordNet's rules of detachment, in its order: nouns, verbs, adjectives.
const ENDINGS: [(&str, &str); 20] = [
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("est", ""),
    ("er", "e"),
    ("est", "e"),
];

/// What a regular form may be made of.
fn regular_bases(word: &str) -> Vec<String> {
    if word.ends_with("ss") || word.chars().count() <= 2 {
        return Vec::new();
    }
    let base = |&(ending, by): &(&str, &str)| Some(format!("{}{by}", word.strip_suffix(ending)?));
    ENDINGS.iter().filter_map(base).collect()
}

/// Phrases that can stand for each other.
#[derive(Default)]
pub(super) struct Paraphrases {
    /// By the first phrase of a pair: the second ones, in the order of the table.
    pub by_source: HashMap<Vec<u32>, Vec<Vec<u32>>>,
    /// Words of the longest first phrase.
    pub longest: usize,
}

/// Triples of lines: a probability, which METEOR does not use, and two phrases. Those with a word
/// that the corpus lacks can never match.
pub(super) fn paraphrases(
    mut table: impl BufRead,
    words: &Words,
) -> Result<Paraphrases, TableError> {
    let mut found = Paraphrases::default();
    let (mut source, mut target) = (Vec::new(), Vec::new());
    let mut probability = Vec::new();
    let mut number = 0;
    while read_bytes(&mut table, &mut probability)? {
        number += 3;
        if !read_bytes(&mut table, &mut source)? || !read_bytes(&mut table, &mut target)? {
            return Err(TableError::Line(
                number,
                "a probability without its two phrases",
            ));
        }
        let (Some(source), Some(target)) = (numbers(&source, words), numbers(&target, words))
        else {
            continue;
        };
        found.longest = found.longest.max(source.len());
        found.by_source.entry(source).or_default().push(target);
    }
    Ok(found)
}

/// The words' numbers, if all are known.
fn numbers(phrase: &[u8], words: &Words) -> Option<Vec<u32>> {
    let parts = phrase
        .split(|byte| *byte == b' ')
        .filter(|part| !part.is_empty());
    let number = |part| words.get(std::str::from_utf8(part).ok()?).copied();
    parts.map(number).collect()
}

/// The next line without its end; false after the last.
fn read_line(table: &mut impl BufRead, line: &mut String) -> io::Result<bool> {
    line.clear();
    let read = table.read_line(line)?;
    line.truncate(line.trim_end_matches(['\n', '\r']).len());
    Ok(read > 0)
}

fn read_bytes(table: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = table.read_until(b'\n', line)?;
    while line
        .last()
        .is_some_and(|last| matches!(last, b'\n' | b'\r'))
    {
        line.pop();
    }
    Ok(read > 0)
}
