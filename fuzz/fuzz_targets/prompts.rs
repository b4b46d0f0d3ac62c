//! Any bytes as a file of generation data (E2E, WebNLG in both forms, DART, references), its kind
//! told or given: an error or prompts with their references, never a panic. The first byte chooses
//! the file's extension.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowrank_data::NlgFormat;
use lowrank_data::nlg::read_prompts;

const EXTENSIONS: [&str; 5] = ["jsonl", "csv", "json", "xml", "txt"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let extension = EXTENSIONS[usize::from(choice) % EXTENSIONS.len()];
    let name = format!("lowrank-fuzz-prompts-{}.{extension}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, rest).expect("a file");
    let kinds = [NlgFormat::E2e, NlgFormat::Webnlg, NlgFormat::Dart, NlgFormat::References];
    for kind in std::iter::once(None).chain(kinds.map(Some)) {
        match read_prompts(&path, kind) {
            Ok(rows) => assert!(rows.iter().all(|row| !row.references.is_empty())),
            Err(error) => drop((error.to_string(), error.hint())),
        }
    }
});
