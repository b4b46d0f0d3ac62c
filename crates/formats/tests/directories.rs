//! Folders: model checkpoints in their several forms, writes that are whole or not at all, and the
//! folder of a run.

mod common;

use std::fs;
use std::io::Write;

use common::{fixture, names, scratch};
use lowrank_formats::files::remove_stale;
use lowrank_formats::{
    Checkpoint, FormatError, OutTensor, PendingDir, PendingFile, RunDir, read_json, write_atomic,
    write_safetensors,
};

fn put(path: &std::path::Path, name: &str, value: f32) {
    write_safetensors(path, &[OutTensor::f32(name, &[1], &[value])], &[]).unwrap();
}

#[test]
fn a_model_folder_is_opened_in_transformers_order() {
    let dir = scratch("model_order");
    assert_eq!(
        Checkpoint::open_dir(&dir).unwrap_err().to_string(),
        format!(
            "`{}` holds none of `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin`, `pytorch_model.bin.index.json`",
            dir.display()
        )
    );
    let missing = dir.join("missing");
    assert!(
        Checkpoint::open_dir(&missing)
            .unwrap_err()
            .to_string()
            .starts_with("cannot read")
    );
    fs::copy(fixture("torch/module.bin"), dir.join("shard.bin")).unwrap();
    fs::write(
        dir.join("pytorch_model.bin.index.json"),
        r#"{"metadata":{"total_size":1},"weight_map":{"weight":"shard.bin","bias":"shard.bin"}}"#,
    )
    .unwrap();
    assert_eq!(Checkpoint::open_dir(&dir).unwrap().infos().len(), 2);
    fs::copy(fixture("torch/zip_v3.bin"), dir.join("pytorch_model.bin")).unwrap();
    assert!(Checkpoint::open_dir(&dir).unwrap().info("wide").is_some());
    put(&dir.join("part"), "a", 1.0);
    fs::write(
        dir.join("model.safetensors.index.json"),
        r#"{"weight_map":{"a":"part"}}"#,
    )
    .unwrap();
    assert!(Checkpoint::open_dir(&dir).unwrap().info("a").is_some());
    put(&dir.join("model.safetensors"), "b", 2.0);
    assert!(Checkpoint::open_dir(&dir).unwrap().info("b").is_some());
}

#[test]
fn every_contradiction_between_index_and_shards_is_reported() {
    let dir = scratch("model_index");
    put(&dir.join("s1"), "a", 1.0);
    put(&dir.join("s2"), "a", 2.0);
    let index = dir.join("model.safetensors.index.json");
    let open = |json: &str| {
        fs::write(&index, json).unwrap();
        Checkpoint::open_dir(&dir)
    };
    // Two shards hold it: the index decides.
    let checkpoint = open(r#"{"weight_map":{"a":"s2","x":"s1"}}"#);
    assert_eq!(
        checkpoint.unwrap_err().to_string(),
        format!(
            "`{}` has a fault\n  x: expected in `s1`, but it is not there",
            index.display()
        )
    );
    put(&dir.join("s3"), "c", 3.0);
    let checkpoint = open(r#"{"weight_map":{"a":"s2","c":"s3"}}"#).unwrap();
    assert_eq!(checkpoint.read_f32_vec("a").unwrap(), [2.0]);
    let error = open(r#"{"weight_map":{"a":"gone","c":"s3","d":"s3","b":"s1"}}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` has 3 faults
  gone: the shard is missing
  d: expected in `s3`, but it is not there
  b: expected in `s1`, but it is not there",
            index.display()
        )
    );
    let error = open(r#"{"weight_map":{"a":"../s1","b":"/etc/passwd","c":"..","d":1,"e":"sub/s1","f":"","g":"a\\b"}}"#).unwrap_err();
    assert!(
        error.to_string().contains(
            "has 7 faults\n  a: expected the name of a file beside the index, found `\"../s1\"`"
        ),
        "{error}"
    );
    assert!(
        open("{}")
            .unwrap_err()
            .to_string()
            .ends_with("weight_map: missing, expected an object of tensor names and file names")
    );
    assert!(matches!(
        open("{").unwrap_err(),
        FormatError::Json {
            line: 1,
            column: 1,
            ..
        }
    ));
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let dir = scratch("not_regular");
    let error = Checkpoint::open_file(&dir).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read `{}`: it is a folder, expected a regular file",
            dir.display()
        )
    );
    let error = read_json(&dir.join("none.json")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read"), "{error}");
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let dir = scratch("atomic_file");
    let path = dir.join("x");
    write_atomic(&path, b"one").unwrap();
    write_atomic(&path, b"two").unwrap();
    let mut pending = PendingFile::create(&path).unwrap();
    pending.write_all(b"three").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    drop(pending);
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(&dir), ["x"]);
    let error = write_atomic(&dir.join("none/x"), b"").unwrap_err();
    assert!(error.to_string().starts_with("cannot create"), "{error}");
    let error = write_atomic(&dir, b"").unwrap_err();
    assert!(error.to_string().ends_with("it is a folder"), "{error}");
    assert!(write_atomic(&dir.join(".."), b"").is_err());
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let dir = scratch("atomic_dir");
    let target = dir.join("deep/target");
    let pending = PendingDir::create(&target).unwrap();
    fs::create_dir(pending.path().join("sub")).unwrap();
    fs::write(pending.path().join("sub/file"), "1").unwrap();
    assert!(!target.exists());
    pending.commit().unwrap();
    assert_eq!(fs::read(target.join("sub/file")).unwrap(), b"1");

    let pending = PendingDir::create(&target).unwrap();
    fs::write(pending.path().join("file"), "2").unwrap();
    let error = pending.commit().unwrap_err();
    assert!(matches!(error, FormatError::AlreadyExists { .. }));
    assert_eq!(names(&target), ["sub"]);

    let pending = PendingDir::create(&target).unwrap();
    fs::write(pending.path().join("file"), "3").unwrap();
    pending.commit_replacing().unwrap();
    assert_eq!(names(&target), ["file"]);
    assert_eq!(names(&dir.join("deep")), ["target"]);

    // An empty folder may be there already: it is what `mkdir` before a command leaves.
    let empty = dir.join("empty");
    fs::create_dir(&empty).unwrap();
    PendingDir::create(&empty).unwrap().commit().unwrap();
}

#[test]
fn the_left_overs_of_killed_writes_are_removed() {
    let dir = scratch("stale");
    let kept = PendingFile::create(&dir.join("a")).unwrap();
    std::mem::forget(kept);
    std::mem::forget(PendingDir::create(&dir.join("b")).unwrap());
    fs::write(dir.join("mine.tmp"), "").unwrap();
    assert_eq!(names(&dir).len(), 3);
    remove_stale(&dir).unwrap();
    assert_eq!(names(&dir), ["mine.tmp"]);
}

#[test]
fn a_folder_that_was_being_replaced_comes_back() {
    let dir = scratch("aside");
    // Killed between the two renames of a replacement: the old one aside, the new one still
    // temporary.
    fs::create_dir(dir.join(".adapter.12-0-18eaf7.old")).unwrap();
    fs::write(dir.join(".adapter.12-0-18eaf7.old/file"), "old").unwrap();
    fs::create_dir(dir.join(".adapter.12-0-18eaf7.tmp")).unwrap();
    // Killed after the second: the new one stands.
    fs::create_dir(dir.join("checkpoint-7")).unwrap();
    fs::create_dir(dir.join(".checkpoint-7.12-1-18eaf8.old")).unwrap();
    // Somebody else's.
    for name in [".mine.old", "kept.12-0-18.old"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    remove_stale(&dir).unwrap();
    assert_eq!(
        names(&dir),
        [".mine.old", "adapter", "checkpoint-7", "kept.12-0-18.old"]
    );
    assert_eq!(fs::read(dir.join("adapter/file")).unwrap(), b"old");
}

#[cfg(unix)]
#[test]
fn links_are_written_through_and_devices_are_not_replaced() {
    let dir = scratch("links");
    fs::write(dir.join("real"), "1").unwrap();
    std::os::unix::fs::symlink(dir.join("real"), dir.join("link")).unwrap();
    write_atomic(&dir.join("link"), b"2").unwrap();
    assert!(dir.join("link").is_symlink());
    assert_eq!(fs::read(dir.join("real")).unwrap(), b"2");
    let socket = dir.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = write_atomic(&socket, b"3").unwrap_err().to_string();
    assert!(error.contains("it is no regular file"), "{error}");
}

#[test]
fn a_run_folder_has_one_run_and_one_process() {
    let dir = scratch("runs");
    let path = dir.join("out/run");
    assert!(!RunDir::is_run(&path));
    assert!(matches!(
        RunDir::open(&path).unwrap_err(),
        FormatError::NotARun { .. }
    ));
    let run = RunDir::create(&path).unwrap();
    assert_eq!(run.path(), path);
    assert!(RunDir::is_run(&path));
    let error = RunDir::create(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`{}` already holds a run", path.display())
    );
    assert!(error.hint().is_some());
    let error = RunDir::open(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the run in `{}` is in use by another process",
            path.display()
        )
    );
    assert!(matches!(
        RunDir::create_moving_old(&path).unwrap_err(),
        FormatError::RunBusy { .. }
    ));
    fs::write(run.join("metrics.jsonl"), "old").unwrap();
    drop(run);
    drop(RunDir::open(&path).unwrap());

    let (run, old) = RunDir::create_moving_old(&path).unwrap();
    assert_eq!(old, Some(dir.join("out/run.old-1")));
    assert_eq!(
        fs::read(dir.join("out/run.old-1/metrics.jsonl")).unwrap(),
        b"old"
    );
    assert_eq!(names(run.path()), [".lowrank-run"]);
    drop(run);
    // Other files in the folder are no run, and stay.
    let mixed = dir.join("mixed");
    fs::create_dir(&mixed).unwrap();
    fs::write(mixed.join("notes.txt"), "mine").unwrap();
    let (_run, old) = RunDir::create_moving_old(&mixed).unwrap();
    assert_eq!(old, None);
    assert_eq!(names(&mixed), [".lowrank-run", "notes.txt"]);
}

#[test]
fn a_file_where_the_run_should_be_is_an_error() {
    let dir = scratch("run_file");
    fs::write(dir.join("x"), "").unwrap();
    assert!(matches!(
        RunDir::create(&dir.join("x")).unwrap_err(),
        FormatError::Io { .. }
    ));
}
