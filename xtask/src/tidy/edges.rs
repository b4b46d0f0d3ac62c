//! The rule on crate edges: a crate depends on no crate of ours that the table in ARCHITECTURE.md
//! does not allow it. The table is read from the page, so that the page cannot say one thing and
//! the manifests another.

use super::files::Repository;
use super::map::{MAP, crates};

/// Our crates are named `lowrank-<folder>`; the facade is `lowrank`.
const PREFIX: &str = "lowrank";

/// What one row of the table allows.
#[derive(Debug, PartialEq)]
enum Allowed {
    /// Every crate but these.
    AllBut(Vec<String>),
    /// These alone.
    Only(Vec<String>),
}

impl Allowed {
    fn parse(cell: &str) -> Self {
        let list = |text: &str| {
            text.split([',', ' '])
                .filter(|w| !w.is_empty() && *w != "and")
                .map(str::to_owned)
                .collect()
        };
        match cell {
            "nothing of ours" => Self::Only(Vec::new()),
            "all" => Self::AllBut(Vec::new()),
            _ => match cell.strip_prefix("all but ") {
                Some(rest) => Self::AllBut(list(rest)),
                None => Self::Only(list(cell)),
            },
        }
    }

    fn holds(&self, name: &str) -> bool {
        match self {
            Self::AllBut(names) => !names.iter().any(|n| n == name),
            Self::Only(names) => names.iter().any(|n| n == name),
        }
    }
}

/// Checks every manifest against the table.
pub fn crate_edges(repository: &Repository) -> Vec<String> {
    let table = repository.text(MAP).map(table_of).unwrap_or_default();
    let mut faults = Vec::new();
    for krate in crates(repository) {
        let Some((_, allowed)) = table.iter().find(|(folder, _)| *folder == krate) else {
            faults.push(format!(
                "{MAP}: no row of the table says what `{krate}` may use"
            ));
            continue;
        };
        let path = format!("{krate}/Cargo.toml");
        for (name, for_tests) in our_dependencies(repository.text(&path).unwrap_or_default()) {
            // Any crate's tests may use the testkit, and nothing but tests may.
            let test_tool = name == "testkit" && for_tests;
            if !test_tool && !allowed.holds(&name) {
                faults.push(format!(
                    "{path}: `{name}` is not among what {MAP} lets `{krate}` use"
                ));
            }
        }
    }
    faults
}

/// Rows "| `folder` | … | may use |" of the map.
fn table_of(text: &str) -> Vec<(&str, Allowed)> {
    text.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line
                .trim()
                .trim_matches('|')
                .split('|')
                .map(str::trim)
                .collect();
            let folder = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
            (cells.len() == 3).then(|| (folder, Allowed::parse(cells[2])))
        })
        .collect()
}

/// Our crates that a manifest depends on, and whether only for tests.
fn our_dependencies(manifest: &str) -> Vec<(String, bool)> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
            // `[dependencies.lowrank-x]`
            if let Some((before, krate)) = name.rsplit_once("dependencies.") {
                found.extend(our_name(krate).map(|n| (n, before.ends_with("dev-"))));
            }
        } else if section.ends_with("dependencies") {
            let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.extend(our_name(key).map(|n| (n, section.ends_with("dev-dependencies"))));
        }
    }
    found
}

fn our_name(package: &str) -> Option<String> {
    let rest = package.trim_matches('"').strip_prefix(PREFIX)?;
    Some(rest.strip_prefix('-').unwrap_or(PREFIX).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
| crate | holds | may use |
| --- | --- | --- |
| `crates/low` | x | nothing of ours |
| `crates/mid` | x | low, other |
| `crates/top` | x | all |
| `crates/lowrank` | x | all but top |
";

    fn faults(krate: &str, manifest: &str) -> Vec<String> {
        let path = format!("crates/{krate}/Cargo.toml");
        crate_edges(&Repository::of(&[
            ("ARCHITECTURE.md", TABLE),
            (&path, manifest),
        ]))
    }

    #[test]
    fn allowed_edges_pass() {
        let none = Vec::<String>::new();
        assert_eq!(
            faults(
                "mid",
                "[dependencies]\nlowrank-low.workspace = true\nserde = \"1\"\n"
            ),
            none
        );
        assert_eq!(
            faults("top", "[dependencies]\nlowrank = { path = \"x\" }\n"),
            none
        );
        assert_eq!(
            faults(
                "low",
                "[dev-dependencies]\nlowrank-testkit.workspace = true\n"
            ),
            none
        );
    }

    #[test]
    fn forbidden_edges_are_found_in_every_form() {
        for manifest in [
            "[dependencies]\nlowrank-mid.workspace = true\n",
            "[dependencies]\nlowrank-mid = { workspace = true }\n",
            "[dependencies.lowrank-mid]\nworkspace = true\n",
            "[target.'cfg(unix)'.dependencies]\nlowrank-mid.workspace = true\n",
            "[dev-dependencies]\nlowrank-mid.workspace = true\n",
            "[dependencies]\nlowrank-testkit.workspace = true\n",
        ] {
            assert_eq!(faults("low", manifest).len(), 1, "{manifest}");
        }
        assert_eq!(
            faults("lowrank", "[dependencies]\nlowrank-top.workspace = true\n").len(),
            1
        );
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        assert!(faults("new", "")[0].contains("no row"));
    }
}
