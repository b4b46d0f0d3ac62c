//! "Did you mean": the nearest of several names. Knows nothing of what the names are for.

/// The name nearest to `wanted` by edit distance, when one is near enough to be a likely slip.
///
/// A name that ends with `wanted` after a dot (or the reverse) counts as near too: a missing or an
/// extra prefix is the most common difference between two checkpoints.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer strings are not typed by hand, and the distance is quadratic.
    const LONGEST: usize = 256;
    if wanted.is_empty() || wanted.len() > LONGEST {
        return None;
    }
    let limit = wanted.chars().count().div_ceil(3);
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        if name.len() > LONGEST {
            continue;
        }
        let distance = if is_dotted_suffix(name, wanted) || is_dotted_suffix(wanted, name) {
            1
        } else {
            edit_distance(wanted, name)
        };
        if distance <= limit && best.is_none_or(|(smallest, _)| distance < smallest) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}

fn is_dotted_suffix(long: &str, short: &str) -> bool {
    long.strip_suffix(short)
        .is_some_and(|head| head.ends_with('.'))
}

/// Levenshtein's distance over characters, ignoring ASCII case.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_a_stranger_is_not() {
        let names = ["hidden_size", "hidden_act", "vocab_size"];
        assert_eq!(nearest("hiden_size", names), Some("hidden_size"));
        assert_eq!(nearest("Vocab_Size", names), Some("vocab_size"));
        assert_eq!(nearest("zebra", names), None);
        assert_eq!(nearest("", names), None);
    }

    #[test]
    fn a_missing_prefix_is_near() {
        let names = ["roberta.embeddings.word_embeddings.weight"];
        assert_eq!(
            nearest("embeddings.word_embeddings.weight", names),
            Some(names[0])
        );
    }
}
