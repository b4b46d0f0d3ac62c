//! "Did you mean": the nearest of several names. Knows nothing of what the names are for.

/// The name nearest to `wanted` by edit distance, ignoring case, when one is near enough to be a
/// likely slip.
///
/// A name that ends with `wanted` after a dot (or the reverse) counts as near too: a missing or an
/// extra prefix is the most common difference between two checkpoints.
pub fn nearest<'a, S: AsRef<str> + ?Sized + 'a>(
    wanted: &str,
    names: impl IntoIterator<Item = &'a S>,
) -> Option<&'a str> {
    // Longer strings are not typed by hand, and the distance is quadratic.
    const LONGEST: usize = 256;
    let letters = lowercase(wanted);
    if letters.is_empty() || wanted.len() > LONGEST {
        return None;
    }
    let distance = |name: &str| {
        if is_dotted_suffix(name, wanted) || is_dotted_suffix(wanted, name) {
            return Some(1);
        }
        let other = lowercase(name);
        let longer = letters.len().max(other.len());
        let limit = (longer / 3).max(1).min(longer - 1);
        // A name of another length is not near: of a million, few are compared letter by letter.
        let may_be_near = letters.len().abs_diff(other.len()) <= limit;
        may_be_near
            .then(|| edit_distance(&letters, &other))
            .filter(|distance| *distance <= limit)
    };
    let names = names.into_iter().map(AsRef::as_ref);
    let others = names.filter(|name| name.len() <= LONGEST && *name != wanted);
    let near = others.filter_map(|name| Some((distance(name)?, name)));
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn lowercase(name: &str) -> Vec<char> {
    name.chars().flat_map(char::to_lowercase).collect()
}

fn is_dotted_suffix(long: &str, short: &str) -> bool {
    long.strip_suffix(short)
        .is_some_and(|head| head.ends_with('.'))
}

/// Edit distance in characters, where two neighbours exchanged count as one edit.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut current = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let substituted = previous[j] + usize::from(a[i] != b[j]);
            current[j + 1] = substituted.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                current[j + 1] = current[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_a_stranger_is_not() {
        let names = ["hidden_size", "hidden_act", "vocab_size"];
        assert_eq!(nearest("hiden_size", names), Some("hidden_size"));
        assert_eq!(nearest("Vocab_Size", names), Some("vocab_size"));
        assert_eq!(nearest("hidden_atc", names), Some("hidden_act"));
        assert_eq!(nearest("zebra", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(nearest("a", ["", "b"]), None);
        assert_eq!(nearest("premise", &["label".to_owned()]), None);
    }

    #[test]
    fn the_distance_counts_edits() {
        let distance = |a, b| edit_distance(&lowercase(a), &lowercase(b));
        assert_eq!(distance("kitten", "Sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("é", "e"), 1);
        assert_eq!(distance("lable", "label"), 1);
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
