//! Every file call of a small `train`, `merge`, `predict` and `generate` fails in turn: the process
//! is killed there, the disk is full, or it gives an error. Afterwards old or new files are whole,
//! never neither, and the next call finds no litter.
//!
//! The gate strides through the calls; `cargo xtask faults` tries each one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::language_model;
use crate::support::{Lab, Ran, command};

/// Set by `cargo xtask faults`: no call is left out.
const ALL: &str = "LOWRANK_FAULTS_ALL";

/// Calls that are tried in each case for each kind of fault, where not all are.
const TRIED: usize = 5;

const KINDS: [&str; 3] = ["kill", "full", "io"];

/// One command under faults.
struct Case<'a> {
    folder: &'a Path,
    words: Vec<String>,
    /// Puts everything as it is before the command.
    prepare: &'a dyn Fn(),
    /// What stands under the name, once the command failed: panics where that is neither the old
    /// nor the new.
    check: &'a dyn Fn(&str),
    /// The next call, after which everything must be new.
    next: &'a dyn Fn() -> Ran,
    /// Holds after the next call.
    is_new: &'a dyn Fn() -> bool,
}

impl Case<'_> {
    fn run(&self, fault: Option<&str>) -> Ran {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let mut command = command(&words);
        command.env("LOWRANK_FAULT_LOG", self.log());
        if let Some(fault) = fault {
            command.env("LOWRANK_FAULT", fault);
        }
        let _ = fs::remove_file(self.log());
        Ran::of(command.output().expect("the binary starts"))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("calls.log")
    }

    /// Counts the calls, then fails them.
    fn fail_each(&self) {
        (self.prepare)();
        self.run(None).ok();
        assert!((self.is_new)(), "the command does its work");
        let calls = fs::read_to_string(self.log()).expect("a list of calls");
        let calls: Vec<&str> = calls.lines().collect();
        assert!(calls.len() > 10, "{calls:#?}");
        let stride = match std::env::var_os(ALL) {
            Some(_) => 1,
            None => calls.len().div_ceil(TRIED),
        };
        for (k, kind) in KINDS.into_iter().enumerate() {
            // Each kind begins elsewhere, so that together they meet more of the calls.
            for at in (k * stride / KINDS.len()..calls.len()).step_by(stride) {
                self.fail_one(at + 1, kind, calls[at]);
            }
        }
    }

    fn fail_one(&self, at: usize, kind: &str, call: &str) {
        (self.prepare)();
        let ran = self.run(Some(&format!("{at}:{kind}")));
        let place = format!("{kind} at call {call}\n{}", ran.stderr);
        match (kind, ran.code) {
            ("kill", -1) => {}
            // What is done for durability's sake alone may fail: then the work is done.
            ("full" | "io", 0) => assert!((self.is_new)(), "{place}"),
            ("full" | "io", 1) => {
                assert!(ran.stderr.starts_with("error: "), "{place}");
                let folder = self.folder.display().to_string();
                let folder = folder.trim_end_matches('/');
                assert!(ran.stderr.contains(folder), "no file is named: {place}");
                assert!(
                    !ran.stderr.replace(folder, "").contains(".tmp"),
                    "a temporary name: {place}"
                );
            }
            (_, code) => panic!("exit code {code}: {place}"),
        }
        (self.check)(&place);
        let next = (self.next)();
        assert_eq!(
            next.code, 0,
            "the next call: {}\nafter {place}",
            next.stderr
        );
        assert!((self.is_new)(), "after the next call: {place}");
        let litter = litter(self.folder);
        assert!(litter.is_empty(), "{litter:?} after {place}");
    }
}

/// Hidden files that are left of writes, in all folders.
fn litter(folder: &Path) -> Vec<PathBuf> {
    let names = snapshot(folder).into_keys();
    let is_litter = |path: &PathBuf| {
        path.components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            let ends = [".tmp", ".old", ".next", ".commit"];
            name.starts_with('.') && ends.iter().any(|end| name.ends_with(end))
        })
    };
    names.filter(is_litter).collect()
}

/// Every file below a folder with its bytes; a folder that is not there has none.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                // An empty folder counts too.
                files.insert(path.join(""), Vec::new());
                folders.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn ran(all: &[String]) -> Ran {
    crate::support::lowrank(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A release build has no faults to inject.
fn has_faults() -> bool {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: only a debug build can let file calls fail");
    }
    cfg!(debug_assertions)
}

#[test]
fn a_training_that_fails_at_any_file_call_is_resumed_to_the_same_bytes() {
    if !has_faults() {
        return;
    }
    let lab = Lab::new();
    let more = [
        "--max-steps",
        "4",
        "--save-steps",
        "2",
        "--eval-steps",
        "2",
        "--save-total-limit",
        "1",
        "--threads",
        "1",
        "--quiet",
    ];
    lab.train("whole", &more).ok();
    let expected = lab.adapter_bytes("whole");
    let run = lab.path("run");
    let all = lab.train_words("run", &more);
    let is_new = || run.join("report.html").is_file() && lab.adapter_bytes("run") == expected;
    Case {
        folder: lab.path("").as_path(),
        words: all.clone(),
        prepare: &|| drop(fs::remove_dir_all(&run)),
        check: &|place| {
            if run.join("adapter").is_dir() {
                assert_eq!(lab.adapter_bytes("run"), expected, "{place}");
            }
            for step in [2, 4] {
                let checkpoint = run.join(format!("checkpoint-{step}"));
                if checkpoint.is_dir() {
                    for file in ["state.json", "state.safetensors", "adapter_config.json"] {
                        assert!(checkpoint.join(file).is_file(), "{place}");
                    }
                }
            }
        },
        next: &|| match run.join(".lowrank-run").exists() {
            true => ran(&[all.as_slice(), &words(&["--resume"])].concat()),
            false => ran(&all),
        },
        is_new: &is_new,
    }
    .fail_each();
}

#[test]
fn a_merge_that_fails_at_any_file_call_leaves_the_old_folder_or_the_new() {
    if !has_faults() {
        return;
    }
    let lab = Lab::new();
    let more = ["--threads", "1", "--quiet", "--eval-strategy", "no"];
    for (run, seed) in [("one", "1"), ("two", "2")] {
        let seeded = ["--max-steps", "2", "--lr", "0.1", "--seed", seed];
        lab.train(run, &[more.as_slice(), &seeded].concat()).ok();
    }
    let merge = |adapter: &str, target: &str| {
        let (model, adapter, target) = (lab.text("model"), lab.text(adapter), lab.text(target));
        let flags = [
            "merge",
            "--model",
            &model,
            "--adapter",
            &adapter,
            "--output-dir",
            &target,
        ];
        words(
            &[
                flags.as_slice(),
                &["--overwrite", "--threads", "1", "--quiet"],
            ]
            .concat(),
        )
    };
    ran(&merge("one", "old")).ok();
    ran(&merge("two", "new")).ok();
    let bytes = |name: &str| -> BTreeMap<PathBuf, Vec<u8>> {
        let folder = lab.path(name);
        let relative = |path: PathBuf| path.strip_prefix(&folder).unwrap().to_owned();
        let files = snapshot(&folder).into_iter();
        files.map(|(path, bytes)| (relative(path), bytes)).collect()
    };
    let (old, new) = (bytes("old"), bytes("new"));
    assert_ne!(old, new);
    let target = lab.path("merged");
    for over_old in [true, false] {
        Case {
            folder: lab.path("").as_path(),
            words: merge("two", "merged"),
            prepare: &|| {
                let _ = fs::remove_dir_all(&target);
                if over_old {
                    copy_tree(&lab.path("old"), &target);
                }
            },
            check: &|place| {
                let found = bytes("merged");
                let is_old = if over_old {
                    found == old
                } else {
                    !target.exists()
                };
                assert!(is_old || found == new, "neither old nor new: {place}");
            },
            next: &|| ran(&merge("two", "merged")),
            is_new: &|| bytes("merged") == new,
        }
        .fail_each();
    }
}

#[test]
fn predictions_that_fail_at_any_file_call_leave_the_old_file_or_the_new() {
    if !has_faults() {
        return;
    }
    let lab = Lab::new();
    let more = [
        "--max-steps",
        "2",
        "--threads",
        "1",
        "--quiet",
        "--eval-strategy",
        "no",
    ];
    lab.train("run", &more).ok();
    let (target, model, run, rows) = (
        lab.path("out.jsonl"),
        lab.text("model"),
        lab.text("run"),
        lab.text("test.tsv"),
    );
    let flags = [
        "predict",
        "--model",
        &model,
        "--adapter",
        &run,
        "--data-file",
        &rows,
        "--output-file",
    ];
    let all = words(
        &[
            flags.as_slice(),
            &[&lab.text("out.jsonl"), "--threads", "1", "--quiet"],
        ]
        .concat(),
    );
    ran(&all).ok();
    old_file_or_new(&lab.path(""), &target, &all);
}

#[test]
fn generated_texts_that_fail_at_any_file_call_leave_the_old_file_or_the_new() {
    if !has_faults() {
        return;
    }
    let lab = language_model::Lab::new();
    let text = |name: &str| lab.path(name).display().to_string();
    let (base, rows, run, out) = (
        text("base"),
        text("texts.jsonl"),
        text("run"),
        text("out.jsonl"),
    );
    let flags = [
        "train",
        "--model",
        &base,
        "--train-file",
        &rows,
        "--output-dir",
        &run,
        "--from-scratch",
        "--full",
    ];
    let more = [
        "--task",
        "causal_lm",
        "--max-steps",
        "1",
        "--threads",
        "1",
        "--quiet",
    ];
    ran(&words(&[flags.as_slice(), &more].concat())).ok();
    let model = text("run/model");
    let flags = [
        "generate",
        "--model",
        &model,
        "--prompt",
        "Aromi serves",
        "--output-file",
        &out,
    ];
    let all = words(
        &[
            flags.as_slice(),
            &["--max-new-tokens", "4", "--threads", "1", "--quiet"],
        ]
        .concat(),
    );
    ran(&all).ok();
    old_file_or_new(&lab.path(""), &lab.path("out.jsonl"), &all);
}

/// The command writes `target`, which is there whole already.
fn old_file_or_new(folder: &Path, target: &Path, all: &[String]) {
    let new = fs::read(target).unwrap();
    let old = b"{\"line\": 0}\n".to_vec();
    Case {
        folder,
        words: all.to_vec(),
        prepare: &|| fs::write(target, &old).unwrap(),
        check: &|place| {
            let found = fs::read(target).unwrap();
            assert!(found == old || found == new, "neither old nor new: {place}");
        },
        next: &|| ran(all),
        is_new: &|| fs::read(target).unwrap() == new,
    }
    .fail_each();
}
