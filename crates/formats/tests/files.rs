//! The seam to the file system: what is read whole is a regular file of bounded size, streams may
//! be pipes, replacements are one step, and what a killed process left is swept while what a living
//! one holds stays.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use lowrank_formats::files::{
    self, Appender, Ceiling, DeviceFile, PendingDir, PendingFile, Stream, write_atomic,
};

const SMALL: Ceiling = Ceiling {
    bytes: 8,
    what: "a file of eight letters",
};

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("files_{name}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let entries = files::list(dir).unwrap().into_iter();
    entries.map(|e| e.name.into_string().unwrap()).collect()
}

#[test]
fn a_file_above_its_ceiling_is_named_with_what_it_should_be() {
    let dir = scratch("ceiling");
    let path = dir.join("long");
    fs::write(&path, "123456789").unwrap();
    assert_eq!(
        files::read(&path, SMALL).unwrap_err().to_string(),
        format!(
            "`{}` has 9 bytes or more, expected at most 8 in a file of eight letters",
            path.display()
        )
    );
    fs::write(&path, "12345678").unwrap();
    assert_eq!(files::read(&path, SMALL).unwrap(), b"12345678");
    fs::write(&path, b"a\nb\xff").unwrap();
    let error = files::read_text(&path, SMALL).unwrap_err().to_string();
    assert!(error.ends_with("line 2: it is not UTF-8"), "{error}");
    assert_eq!(
        files::read_if_there(&dir.join("none"), SMALL).unwrap(),
        None
    );
    assert!(
        files::read_if_there(&dir, SMALL).is_err(),
        "a folder is not a missing file"
    );
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_where_a_file_is_read_whole() {
    let dir = scratch("pipes");
    let pipe = dir.join("pipe");
    make_pipe(&pipe);
    let zero = dir.join("zero");
    std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
    for (path, found) in [(&pipe, "a pipe"), (&zero, "a device"), (&dir, "a folder")] {
        let error = files::read(path, SMALL).unwrap_err().to_string();
        let expected = format!(
            "cannot read `{}`: it is {found}, expected a regular file",
            path.display()
        );
        assert_eq!(error, expected);
    }
    assert!(Stream::open(&zero).is_err() && files::read_any(&zero, SMALL).is_err());
    assert!(Appender::open(&pipe, 0).is_err() && write_atomic(&pipe, b"x").is_err());
}

#[cfg(unix)]
#[test]
fn a_stream_reads_a_pipe_whose_writer_comes_late() {
    let pipe = scratch("late").join("pipe");
    make_pipe(&pipe);
    let target = pipe.clone();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::write(target, "row 1\nrow 2\n")
    });
    let mut text = String::new();
    Stream::open(&pipe)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "row 1\nrow 2\n");
    writer.join().unwrap().unwrap();
}

#[cfg(unix)]
#[test]
fn a_pipe_is_written_to_whose_reader_comes_late() {
    let pipe = scratch("late-reader").join("pipe");
    make_pipe(&pipe);
    let source = pipe.clone();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::read(source)
    });
    let mut device = DeviceFile::open(&pipe).unwrap().unwrap();
    // More than a pipe holds: it is waited for.
    let bytes = vec![b'x'; 1 << 18];
    device.write_all(&bytes).unwrap();
    device.flush().unwrap();
    drop(device);
    assert_eq!(reader.join().unwrap().unwrap(), bytes);
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_not_a_missing_file() {
    let dir = scratch("nowhere");
    let link = dir.join("tokenizer_config.json");
    assert!(files::read_if_there(&link, SMALL).unwrap().is_none());
    std::os::unix::fs::symlink("blobs/0123", &link).unwrap();
    let error = files::read_if_there(&link, SMALL).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

#[cfg(unix)]
fn make_pipe(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[test]
fn a_replaced_folder_is_the_new_one_and_nothing_is_left() {
    let dir = scratch("replace");
    let target = dir.join("model");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("old"), "1").unwrap();
    let pending = PendingDir::create(&target).unwrap();
    fs::write(pending.path().join("new"), "2").unwrap();
    pending.commit_replacing().unwrap();
    assert_eq!(names(&target), ["new"]);
    assert_eq!(names(&dir), ["model"]);
}

#[cfg(unix)]
#[test]
fn of_a_link_the_folder_behind_it_is_replaced() {
    let dir = scratch("link");
    fs::create_dir(dir.join("real")).unwrap();
    std::os::unix::fs::symlink(dir.join("real"), dir.join("link")).unwrap();
    let pending = PendingDir::create(&dir.join("link")).unwrap();
    fs::write(pending.path().join("new"), "2").unwrap();
    pending.commit_replacing().unwrap();
    assert_eq!(names(&dir.join("real")), ["new"]);
    assert!(fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
}

/// A process number that no process has: the largest, which Linux gives to none.
const DEAD: u32 = u32::MAX;

#[cfg(target_os = "linux")]
#[test]
fn left_overs_of_dead_processes_are_swept_and_those_of_living_ones_stay() {
    let dir = scratch("sweep");
    let target = dir.join("model");
    let left = dir.join(format!(".model.{DEAD}-0-ab.tmp"));
    fs::create_dir(&left).unwrap();
    fs::write(left.join("half"), "1").unwrap();
    let foreign = [
        ".model.tmp",
        ".other.4294967295-0-ab.tmp",
        ".model.1-2-zz.tmp",
    ];
    for name in foreign {
        fs::write(dir.join(name), "1").unwrap();
    }
    // Held by this process: another write of the same name leaves it alone.
    let held = PendingDir::create(&target).unwrap();
    assert!(!left.exists());
    let second = PendingDir::create(&target).unwrap();
    assert!(held.path().is_dir() && second.path().is_dir());
    drop((held, second));
    let mut kept = names(&dir);
    kept.sort();
    let mut expected = foreign.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(kept, expected);
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_was_moved_aside_is_put_back_by_the_next_write() {
    let dir = scratch("aside");
    let aside = dir.join(format!(".model.{DEAD}-0-ab.old"));
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("old"), "1").unwrap();
    let pending = PendingDir::create(&dir.join("model")).unwrap();
    assert_eq!(names(&dir.join("model")), ["old"]);
    drop(pending);
    assert_eq!(names(&dir), ["model"]);
}

#[test]
fn an_error_names_the_target_and_never_the_temporary() {
    let dir = scratch("shown");
    let pending = PendingDir::create(&dir.join("merged")).unwrap();
    fs::create_dir(pending.path().join("config.json")).unwrap();
    let error = write_atomic(&pending.path().join("config.json"), b"{}").unwrap_err();
    let expected = dir.join("merged/config.json").display().to_string();
    assert!(error.to_string().contains(&expected), "{error}");
    assert!(!error.to_string().contains(".tmp"), "{error}");
    let missing = PendingFile::create(&pending.path().join("none/x")).unwrap_err();
    assert!(!missing.to_string().contains(".tmp"), "{missing}");
}

#[test]
fn a_log_is_cut_and_grows() {
    let path = scratch("log").join("log");
    let mut log = Appender::open(&path, 0).unwrap();
    log.append(b"one\ntwo\n").unwrap();
    drop(log);
    let mut log = Appender::open(&path, 4).unwrap();
    log.append(b"three\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\nthree\n");
}
