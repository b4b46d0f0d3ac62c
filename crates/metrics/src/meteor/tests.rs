//! Small cases with tables of our own; the scores were given by METEOR 1.5 itself with the same
//! tables, or worked out by hand.

use super::*;

fn score(output: &str, references: &[&str]) -> f64 {
    Meteor::new(&[Segment::new(output, references.iter().copied())]).score()
}

#[test]
fn copies_are_perfect_and_strangers_worth_nothing() {
    assert_eq!(score("a fine cat", &["no", "a fine cat"]), 1.0);
    assert_eq!(score("a fine cat", &["the bad dog"]), 0.0);
    assert_eq!(score("", &["a"]), 0.0);
    assert_eq!(score("a", &[""]), 0.0);
    assert!(Meteor::new(&[]).score().is_nan());
}

#[test]
fn by_hand() {
    // Three of four words on either side, in two chunks; one of them by its stem.
    let share = (1.0 + 1.0 + 0.6) / 4.0;
    let penalty = 0.6 * (2.0f64 / 3.0).powf(0.2);
    let found = score("cats sat there today", &["a cat sat today"]);
    let chunked = share * (1.0 - penalty);
    assert!((found - chunked).abs() < 1e-12, "{found} {chunked}");
}

const FUNCTION_WORDS: &str = "the\na\nis\nof\n";
const SYNSETS: &str = "cat\n1 2\nfeline\n2\nsit\n5\nrest\n5 7\nfox\n9\nfoxy\n9\n";
const EXCEPTIONS: &str = "sit\nsat sitting\n";
const PARAPHRASES: &str =
    "0.5\nin front of\nbefore\n0.25\nbig house\nmansion\n0.1\nmansion\nlarge house\n";

/// What METEOR 1.5 gives with these tables (`-norm -s -d -a`), each segment and the corpus.
#[test]
fn every_stage_with_tables_of_our_own() {
    let segments = [
        Segment::new(
            "the cat rests in front of a big house",
            ["a feline sat before the mansion"],
        ),
        Segment::new(
            "the fox is sitting in the mansion",
            ["foxes sit in the large house", "the foxy cat rested"],
        ),
        Segment::new(
            "the cat of the house is a cat",
            ["the cat is the cat of the cat"],
        ),
        Segment::new("one two three", ["one two three"]),
        Segment::new("the dog runs", ["running dogs run"]),
    ];
    let expected = [
        0.34624216838923183,
        0.3189418706691937,
        0.3411926157302325,
        1.0,
        0.19765641187130709,
    ];
    let mut meteor = Meteor::new(&segments);
    assert_eq!(
        meteor.missing(),
        ["function words", "synonyms", "paraphrases"]
    );
    meteor
        .read_function_words(FUNCTION_WORDS.as_bytes())
        .unwrap();
    meteor
        .read_synonyms(SYNSETS.as_bytes(), EXCEPTIONS.as_bytes())
        .unwrap();
    meteor.read_paraphrases(PARAPHRASES.as_bytes()).unwrap();
    assert!(meteor.missing().is_empty());
    for (found, expected) in meteor.segment_scores().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-15, "{found} {expected}");
    }
    let corpus = meteor.score();
    assert!((corpus - 0.343368262088545).abs() < 1e-15, "{corpus}");
}

#[test]
fn broken_tables_name_the_line() {
    let mut meteor = Meteor::new(&[Segment::new("a cat", ["a cat"])]);
    let broken = meteor.read_synonyms("dog\n1\ncat\nx\n".as_bytes(), EXCEPTIONS.as_bytes());
    assert_eq!(
        broken.unwrap_err().to_string(),
        "line 4: a synset that is no number"
    );
    let broken = meteor.read_paraphrases("0.5\na\n".as_bytes());
    assert_eq!(
        broken.unwrap_err().to_string(),
        "line 3: a probability without its two phrases"
    );
}
