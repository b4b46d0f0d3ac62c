//! Rules on single files: their first line, length and name, and words that may not stand in them.

use super::files::{Repository, TextFile};

/// Lines a file may have without its tests.
const LINE_BUDGET: usize = 600;

/// Columns a line of comment may have: those that rustfmt gives code.
const COMMENT_WIDTH: usize = 100;

/// Names that say nothing of what a file holds.
const BANNED_NAMES: [&str; 5] = ["utils.rs", "util.rs", "helpers.rs", "misc.rs", "stuff.rs"];

/// Hosts of package registries, and paths of one machine. Split, so that this file does not hold
/// them.
const BANNED: [(&str, &str); 8] = [
    (concat!("crates", ".io"), "a package registry's host"),
    (concat!("pypi", ".org"), "a package registry's host"),
    (concat!("pythonhosted", ".org"), "a package registry's host"),
    (concat!("npmjs", ".org"), "a package registry's host"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/tmp/", "plan"), "a path of one machine"),
    (concat!("/o", "pt/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
];

/// Every Rust file opens with what it holds.
pub fn file_headers(repository: &Repository) -> Vec<String> {
    rust_files(repository)
        .filter(|file| !file.text.starts_with("//!"))
        .map(|file| {
            format!(
                "{}: expected to open with `//!` (what the file holds, what it must not know)",
                file.path
            )
        })
        .collect()
}

/// No Rust file is longer than the budget, tests aside.
pub fn file_lengths(repository: &Repository) -> Vec<String> {
    rust_files(repository)
        .filter(|file| !file.is_test())
        .map(|file| (file, lines_without_tests(&file.text)))
        .filter(|(_, lines)| *lines > LINE_BUDGET)
        .map(|(file, lines)| {
            format!(
                "{}: expected at most {LINE_BUDGET} lines without tests, found {lines}",
                file.path
            )
        })
        .collect()
}

/// The tests of a file stand at its foot.
fn lines_without_tests(text: &str) -> usize {
    let mut lines = text.lines();
    let mut count = 0;
    while let Some(line) = lines.next() {
        // `#[cfg(test)]` before a `mod tests {` opens the foot; before a `mod tests;` it does not.
        if line == "#[cfg(test)]" && lines.clone().next().is_some_and(|next| next.ends_with('{')) {
            break;
        }
        count += 1;
    }
    count
}

/// No line that is a comment is wider than code may be. Rows of tables and lines that are one word
/// (an address) are free: neither can be broken.
pub fn comment_widths(repository: &Repository) -> Vec<String> {
    let mut faults = Vec::new();
    for file in rust_files(repository) {
        for (number, line) in file.text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                continue;
            };
            let said = comment.trim_start_matches(['/', '!']).trim();
            let columns = line.chars().count();
            if columns > COMMENT_WIDTH && said.contains(' ') && !said.starts_with('|') {
                faults.push(format!(
                    "{}:{}: expected at most {COMMENT_WIDTH} columns of comment, found {columns}",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    faults
}

/// No Rust file has a name that says nothing.
pub fn file_names(repository: &Repository) -> Vec<String> {
    rust_files(repository)
        .filter(|file| BANNED_NAMES.contains(&file.path.rsplit('/').next().unwrap_or_default()))
        .map(|file| format!("{}: name it for what it holds", file.path))
        .collect()
}

/// A module with children is `name.rs` beside its folder, so that no two tabs of an editor have one
/// name. What tests share stays a `mod.rs`: beside its folder it would be a test by itself.
pub fn module_layout(repository: &Repository) -> Vec<String> {
    rust_files(repository)
        .filter(|file| !file.is_test())
        .filter_map(|file| file.path.strip_suffix("/mod.rs"))
        .map(|folder| format!("{folder}/mod.rs: expected {folder}.rs"))
        .collect()
}

/// No file names a registry's host or a path of one machine.
pub fn banned_strings(repository: &Repository) -> Vec<String> {
    let mut faults = Vec::new();
    // Cargo writes its registry into lock files; vocabularies and data are kept as published.
    let ours = |file: &&TextFile| !file.path.ends_with("Cargo.lock") && !is_published(&file.path);
    for file in repository.files.iter().filter(ours) {
        for (number, line) in file.text.lines().enumerate() {
            for (word, what) in BANNED {
                if line.contains(word) {
                    faults.push(format!("{}:{}: `{word}` is {what}", file.path, number + 1));
                }
            }
        }
    }
    faults
}

fn is_published(path: &str) -> bool {
    path.starts_with("assets/") && !path.ends_with(".md")
}

/// A to-do names the issue that it waits for.
pub fn ownerless_todos(repository: &Repository) -> Vec<String> {
    let word = concat!("TO", "DO");
    let mut faults = Vec::new();
    for file in rust_files(repository) {
        for (number, line) in file.text.lines().enumerate() {
            if line
                .match_indices(word)
                .any(|(at, _)| !line[at + word.len()..].starts_with("(#"))
            {
                faults.push(format!(
                    "{}:{}: expected `{word}(#issue)`",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    faults
}

/// A page for people holds no line that waits to be filled in: `MEASURED` under a heading, and the
/// like.
pub fn placeholders(repository: &Repository) -> Vec<String> {
    let pages = repository.files.iter().filter(|f| f.path.ends_with(".md"));
    let stands_in = |line: &str| {
        let word = line.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        [concat!("MEAS", "URED"), "TBD", "FIXME", "XXX"].contains(&word)
    };
    let mut faults = Vec::new();
    for page in pages {
        for (number, line) in page.text.lines().enumerate().filter(|(_, l)| stands_in(l)) {
            let place = format!("{}:{}", page.path, number + 1);
            faults.push(format!("{place}: `{}` waits to be filled in", line.trim()));
        }
    }
    faults
}

fn rust_files(repository: &Repository) -> impl Iterator<Item = &TextFile> {
    repository.files.iter().filter(|file| file.is_rust())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_header_is_found() {
        let repository = Repository::of(&[
            ("a.rs", "//! Good.\n"),
            ("b.rs", "fn f() {}\n"),
            ("c.md", "x"),
        ]);
        let faults = file_headers(&repository);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("b.rs:"));
    }

    #[test]
    fn tests_at_the_foot_and_test_files_do_not_count() {
        let code = "x\n".repeat(LINE_BUDGET);
        let foot = format!("{code}#[cfg(test)]\nmod tests {{\n{code}}}\n");
        let long = format!("#[cfg(test)]\nmod tests;\n{code}");
        let repository = Repository::of(&[
            ("a.rs", &foot),
            ("b.rs", &long),
            ("crates/x/tests/c.rs", &long),
            ("crates/x/src/tests.rs", &long),
        ]);
        assert_eq!(
            file_lengths(&repository),
            ["b.rs: expected at most 600 lines without tests, found 602"]
        );
    }

    #[test]
    fn comments_that_are_too_wide_are_found_but_not_tables_and_addresses() {
        let columns = |n: usize| "é ".repeat(n / 2);
        let text = format!(
            "//! {}x\n    /// {}xy\n// {}\n/// | {} |\nlet x = \"{}\"; // one\n",
            columns(96),
            columns(92),
            "https://example.org/".repeat(6),
            columns(100),
            columns(100),
        );
        let repository = Repository::of(&[("crates/x/tests/a.rs", &text), ("b.md", &text)]);
        let want = ["crates/x/tests/a.rs:1", "crates/x/tests/a.rs:2"];
        let faults = comment_widths(&repository);
        let places: Vec<_> = (faults.iter())
            .filter_map(|fault| fault.split(": ").next())
            .collect();
        assert_eq!(places, want);
        assert!(faults[0].ends_with("found 101") && faults[1].ends_with("found 102"));
    }

    #[test]
    fn banned_words_are_found_with_their_line() {
        let bad = format!("one\nsee {}\n", concat!("pypi", ".org"));
        let repository = Repository::of(&[
            ("README.md", &bad),
            ("assets/m/vocab.txt", &bad),
            ("Cargo.lock", &bad),
        ]);
        let faults = banned_strings(&repository);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("README.md:2:"));
    }

    #[test]
    fn a_todo_needs_an_issue() {
        let text = format!("// {0}(#12): x\n// {0}: y\n", concat!("TO", "DO"));
        let faults = ownerless_todos(&Repository::of(&[("a.rs", &text)]));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("a.rs:2"));
    }

    #[test]
    fn a_placeholder_is_a_line_of_its_own() {
        let word = concat!("MEAS", "URED");
        let page = format!("# Measured\n\n{word}\n\n{word} values are not it.\n<!-- TBD -->\n");
        let faults = placeholders(&Repository::of(&[("README.md", &page), ("a.rs", &page)]));
        assert_eq!(faults.len(), 2);
        assert!(faults[0].starts_with("README.md:3:") && faults[1].starts_with("README.md:6:"));
    }

    #[test]
    fn a_name_that_says_nothing_is_found() {
        let repository = Repository::of(&[
            ("crates/x/src/utils.rs", "//!"),
            ("crates/x/src/order.rs", "//!"),
        ]);
        assert_eq!(file_names(&repository).len(), 1);
    }

    #[test]
    fn a_second_layout_of_modules_is_found() {
        let repository = Repository::of(&[
            ("crates/x/src/rows/mod.rs", "//!"),
            ("crates/x/src/order.rs", "//!"),
            ("crates/x/tests/common/mod.rs", "//!"),
        ]);
        let want = ["crates/x/src/rows/mod.rs: expected crates/x/src/rows.rs"];
        assert_eq!(module_layout(&repository), want);
    }
}
