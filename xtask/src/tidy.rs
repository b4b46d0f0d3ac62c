//! `cargo xtask tidy`: the rules of the repository that no compiler checks. Each rule is a function
//! from the files to lines of complaint; all rules run before anything is reported.

mod commands;
mod edges;
mod files;
mod map;
mod seam;
mod signatures;
mod text;

use crate::arguments::Arguments;
use crate::root;
use files::Repository;

/// Runs every rule; the error holds one line for each fault.
pub fn run(words: &[String]) -> Result<(), String> {
    Arguments::new(words).finish()?;
    let repository = Repository::read(&root())?;
    let mut faults = Vec::new();
    faults.extend(text::file_headers(&repository));
    faults.extend(text::file_lengths(&repository));
    faults.extend(text::comment_widths(&repository));
    faults.extend(text::file_names(&repository));
    faults.extend(text::module_layout(&repository));
    faults.extend(text::banned_strings(&repository));
    faults.extend(text::ownerless_todos(&repository));
    faults.extend(text::placeholders(&repository));
    faults.extend(map::crates_and_paths(&repository));
    faults.extend(edges::crate_edges(&repository));
    faults.extend(commands::commands_stand_alone(&repository));
    faults.extend(seam::file_calls(&repository));
    faults.extend(signatures::parameters(&repository));
    if let Err(golden) = lowrank_testkit::verify_manifest(&root().join("tests/golden")) {
        faults.extend(
            golden
                .into_iter()
                .map(|fault| format!("tests/golden/{fault}")),
        );
    }
    if faults.is_empty() {
        println!("tidy: {} files, nothing to say", repository.files.len());
        return Ok(());
    }
    Err(format!(
        "tidy found {} faults\n  {}",
        faults.len(),
        faults.join("\n  ")
    ))
}
