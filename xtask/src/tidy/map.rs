//! Rules on pages: ARCHITECTURE.md names every crate, and every path that a page names is real.

use super::files::Repository;

/// The page with the map.
pub const MAP: &str = "ARCHITECTURE.md";

/// Checks the map both ways, and the paths of other pages.
pub fn crates_and_paths(repository: &Repository) -> Vec<String> {
    let Some(text) = repository.text(MAP) else {
        return vec![format!("{MAP}: not there")];
    };
    let mut faults = Vec::new();
    for krate in crates(repository) {
        if !text.contains(&format!("`{krate}`")) {
            faults.push(format!("{MAP}: does not name `{krate}`"));
        }
    }
    for page in repository.files.iter().filter(|file| is_page(&file.path)) {
        for path in named_paths(&page.text, repository) {
            if !repository.has(path) {
                faults.push(format!("{}: `{path}` is not there", page.path));
            }
        }
    }
    faults
}

/// A page about the repository: those at its root and in `docs/`.
fn is_page(path: &str) -> bool {
    path.ends_with(".md") && (path.starts_with("docs/") || !path.contains('/'))
}

/// Folders of the workspace's crates.
pub fn crates(repository: &Repository) -> Vec<&str> {
    repository
        .files
        .iter()
        .filter_map(|file| file.path.strip_suffix("/Cargo.toml"))
        .filter(|folder| *folder == "xtask" || folder.starts_with("crates/"))
        .collect()
}

/// Words in backticks that are paths of the repository: they start with one of its top folders.
fn named_paths<'a>(text: &'a str, repository: &Repository) -> Vec<&'a str> {
    let tops: Vec<&str> = repository
        .paths
        .iter()
        .filter(|path| !path.contains('/'))
        .map(String::as_str)
        .collect();
    // Every second piece between backticks stands inside them.
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|word| !word.contains(['<', '*', ' ', '\n']))
        .filter(|word| {
            word.split_once('/')
                .is_some_and(|(top, _)| tops.contains(&top))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        crates_and_paths(&Repository::of(&[
            ("ARCHITECTURE.md", text),
            ("crates/a/Cargo.toml", ""),
            ("crates/a/src/ops/add.rs", "//!"),
            ("xtask/Cargo.toml", ""),
        ]))
    }

    #[test]
    fn a_true_map_passes() {
        let text = "`crates/a` `xtask` `crates/a/src/ops/` `crates/a/src/ops/<op>.rs` `either/or`";
        assert_eq!(faults(text), Vec::<String>::new());
    }

    #[test]
    fn a_crate_left_out_is_found() {
        assert_eq!(
            faults("`crates/a`"),
            ["ARCHITECTURE.md: does not name `xtask`"]
        );
    }

    #[test]
    fn a_path_that_is_gone_is_found_on_any_page() {
        let repository = Repository::of(&[
            ("ARCHITECTURE.md", "`crates/a`"),
            ("docs/decisions/calls.md", "`crates/a/src/call.rs`"),
            ("crates/a/README.md", "`crates/gone`"),
            ("crates/a/Cargo.toml", ""),
        ]);
        assert_eq!(
            crates_and_paths(&repository),
            ["docs/decisions/calls.md: `crates/a/src/call.rs` is not there"]
        );
    }

    #[test]
    fn a_path_that_is_gone_is_found() {
        let found = faults("`crates/a` `xtask` `crates/a/src/ops/sub.rs`");
        assert_eq!(
            found,
            ["ARCHITECTURE.md: `crates/a/src/ops/sub.rs` is not there"]
        );
    }
}
