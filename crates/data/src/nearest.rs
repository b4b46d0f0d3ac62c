//! The nearest of several names, for "did you mean" in errors. Knows nothing of what the names
//! stand for.

/// The candidate with the smallest edit distance to `name`, ignoring case, if one is near enough to
/// be a slip of the pen.
pub(crate) fn nearest<'a, S: AsRef<str> + 'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a S>,
) -> Option<String> {
    // A long line taken for a name would cost quadratic time, and is near to nothing.
    const LONGEST: usize = 200;
    if name.len() > LONGEST {
        return None;
    }
    let wanted = name.to_lowercase();
    let length = wanted.chars().count();
    // A name of another length is not near: of a million names, few are compared letter by letter.
    let may_be_near = |candidate: &str| {
        let other = candidate.chars().count();
        length.abs_diff(other) <= (length.max(other) / 3).max(1)
    };
    candidates
        .into_iter()
        .map(AsRef::as_ref)
        .filter(|candidate| candidate.len() <= LONGEST && *candidate != name)
        .filter(|candidate| may_be_near(candidate))
        .map(|candidate| (distance(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            let longer = wanted.chars().count().max(candidate.chars().count());
            *distance <= (longer / 3).max(1) && *distance < longer
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_string())
}

/// Edit distance in characters, where two neighbours exchanged count as one edit.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
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
    fn finds_a_slip_and_refuses_a_stranger() {
        let names = ["sentence", "label", "idx"].map(String::from);
        assert_eq!(nearest("sentense", &names).as_deref(), Some("sentence"));
        assert_eq!(nearest("Label", &names).as_deref(), Some("label"));
        assert_eq!(nearest("lable", &names).as_deref(), Some("label"));
        assert_eq!(nearest("premise", &names), None);
        assert_eq!(nearest("", &names), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("é", "e"), 1);
        assert_eq!(distance("lable", "label"), 1);
    }
}
