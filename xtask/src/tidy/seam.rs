//! The rule on file calls: the product reaches the file system through one folder of `formats` and
//! nowhere else, so that pipes, ceilings, names in errors and injected faults are everywhere or
//! nowhere.

use super::files::{Repository, TextFile};

/// Where the calls are.
const SEAM: &str = "crates/formats/src/files/";

/// The crates of the product. Metrics are texts in, scores out; kernels and engine know no files.
const PRODUCT: [&str; 9] = [
    "kernels", "engine", "formats", "data", "metrics", "model", "train", "run", "cli",
];

/// What a call to the file system looks like. Split, so that this file does not hold them.
const CALLS: [&str; 12] = [
    concat!("std::", "fs"),
    concat!("fs", "::read"),
    concat!("fs", "::write"),
    concat!("File", "::open("),
    concat!("File", "::create"),
    concat!("Open", "Options"),
    concat!(".is_", "file()"),
    concat!(".is_", "dir()"),
    concat!(".exi", "sts()"),
    concat!(".canoni", "calize()"),
    concat!(".read_", "dir()"),
    concat!("symlink_", "metadata"),
];

/// Finds file calls outside the seam; tests make their own files.
pub fn file_calls(repository: &Repository) -> Vec<String> {
    let mut faults = Vec::new();
    for file in repository.files.iter().filter(|file| is_product(file)) {
        for (number, line) in without_tests(&file.text).enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(call) = CALLS.iter().find(|call| calls(code, call)) {
                faults.push(format!(
                    "{}:{}: `{call}` is a file call, expected one of `lowrank_formats::files`",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    faults
}

fn is_product(file: &TextFile) -> bool {
    let of_crate = |name: &&str| file.path.starts_with(&format!("crates/{name}/src/"));
    let is_product = PRODUCT.iter().any(of_crate);
    file.is_rust() && is_product && !file.is_test() && !file.path.starts_with(SEAM)
}

/// The lines before the tests at the foot of a file.
fn without_tests(text: &str) -> impl Iterator<Item = &str> {
    let foot = text.find("#[cfg(test)]\nmod tests {");
    text[..foot.unwrap_or(text.len())].lines()
}

/// Whether a line holds a call, not a longer name that ends so.
fn calls(code: &str, call: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(call)
        .any(|(at, _)| call.starts_with('.') || !code[..at].ends_with(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_outside_the_seam_is_found_with_its_line() {
        let call = format!("//!\n// {0}\nlet x = {0}(path);\nmy_{0}(path);\n", CALLS[1]);
        let tests = format!("//!\n#[cfg(test)]\nmod tests {{\n{call}}}\n");
        let repository = Repository::of(&[
            ("crates/data/src/a.rs", &call),
            ("crates/data/src/b.rs", &tests),
            ("crates/data/src/tests.rs", &call),
            ("crates/formats/src/files/system.rs", &call),
            ("crates/testkit/src/a.rs", &call),
            ("crates/cli/tests/cli/a.rs", &call),
        ]);
        let faults = file_calls(&repository);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(
            faults[0].starts_with("crates/data/src/a.rs:3:"),
            "{faults:?}"
        );
    }
}
