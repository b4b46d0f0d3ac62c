//! Runs that are killed, stopped or refused, and what is left of them.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Lab, command, lowrank};

/// Settings under which everything that has state has some: dropout, accumulation, shuffling,
/// evaluation, best checkpoint.
const SETTINGS: [&str; 18] = [
    "--max-steps",
    "60",
    "--lr",
    "0.01",
    "--gradient-accumulation-steps",
    "3",
    "--lora-dropout",
    "0.1",
    "--eval-steps",
    "9",
    "--save-steps",
    "7",
    "--save-total-limit",
    "2",
    "--early-stopping-patience",
    "50",
    "--seed",
    "5",
];

fn start(lab: &Lab, run: &str, more: &[&str]) -> Child {
    let words = lab.train_words(run, &[SETTINGS.as_slice(), more].concat());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    command(&words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// Waits until the run's log has at least `rows` rows; false if the process ended before.
fn wait_for_rows(lab: &Lab, run: &str, rows: usize, child: &mut Child) -> bool {
    let limit = Instant::now() + Duration::from_secs(120);
    let log = lab.path(run).join("metrics.jsonl");
    loop {
        let found = fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        if found >= rows {
            return true;
        }
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(Instant::now() < limit, "the run makes no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_run_ends_with_the_same_bytes() {
    let lab = Lab::new();
    assert!(start(&lab, "whole", &[]).wait().unwrap().success());
    let expected = lab.adapter_bytes("whole");
    // Kills at ever later rows, some of them right after a checkpoint, some between two.
    let mut resume = false;
    for rows in [1, 3, 8, 15, 16, 24, 31, 44, 57] {
        let mut child = start(&lab, "killed", if resume { &["--resume"] } else { &[] });
        let alive = wait_for_rows(&lab, "killed", rows, &mut child);
        let _ = child.kill();
        child.wait().unwrap();
        resume = true;
        if !alive {
            break;
        }
    }
    assert!(
        start(&lab, "killed", &["--resume"])
            .wait()
            .unwrap()
            .success()
    );
    assert_eq!(lab.adapter_bytes("killed"), expected);
    assert_eq!(lab.log("killed"), lab.log("whole"));
    let names: Vec<_> = fs::read_dir(lab.path("killed"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|n| !n.ends_with(".tmp")), "{names:?}");
    // Once more after the end: the same result again.
    assert!(
        start(&lab, "killed", &["--resume"])
            .wait()
            .unwrap()
            .success()
    );
    assert_eq!(lab.adapter_bytes("killed"), expected);
}

/// The settings with a learning rate that trials find, and time for these.
fn with_rate(rate: &str) -> Vec<&str> {
    let mut words = SETTINGS.to_vec();
    let place = |words: &[&str], name| words.iter().position(|word| *word == name).unwrap();
    let (rate_at, steps_at) = (place(&words, "--lr") + 1, place(&words, "--max-steps") + 1);
    (words[rate_at], words[steps_at]) = (rate, "120");
    words
}

/// The trials of a run without their times.
fn trials(lab: &Lab, run: &str) -> Value {
    let text = fs::read(lab.path(run).join("learning_rate.json")).unwrap();
    let mut trials: Value = serde_json::from_slice(&text).unwrap();
    for arm in trials["arms"].as_array_mut().unwrap() {
        arm.as_object_mut().unwrap().remove("seconds");
    }
    trials
}

#[test]
fn a_run_that_finds_its_rate_is_one_with_that_rate_wherever_it_is_killed() {
    let lab = Lab::new();
    let said = lab.train("whole", &with_rate("auto")).ok();
    let found = trials(&lab, "whole")["found"].as_f64().unwrap();
    assert!(
        said.stderr
            .contains(&format!("the learning rate is {found:e}")),
        "{}",
        said.stderr
    );
    assert!(
        said.stderr.contains("resumed after step 18"),
        "{}",
        said.stderr
    );
    lab.train("given", &with_rate(&found.to_string())).ok();
    assert_eq!(lab.adapter_bytes("whole"), lab.adapter_bytes("given"));
    assert_eq!(lab.log("whole"), lab.log("given"));
    assert!(!lab.path("whole/learning_rates").exists());

    let (mut resume, limit) = (false, Instant::now() + Duration::from_secs(60));
    for rows in [2, 9, 14, 25, 40] {
        let words = lab.train_words("killed", &with_rate("auto"));
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.extend(resume.then_some("--resume"));
        let mut child = (command(&words).stdout(Stdio::null()).stderr(Stdio::null()))
            .spawn()
            .expect("the binary starts");
        // Rows of all trials so far.
        let done = || {
            let trials = fs::read_dir(lab.path("killed/learning_rates"))
                .into_iter()
                .flatten();
            let logs = trials.filter_map(|trial| {
                fs::read_to_string(trial.ok()?.path().join("metrics.jsonl")).ok()
            });
            logs.map(|log| log.lines().count()).sum::<usize>()
        };
        while done() < rows && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "the run makes no progress");
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap();
        resume = true;
    }
    lab.train("killed", &["--resume"]).ok();
    assert_eq!(trials(&lab, "killed"), trials(&lab, "whole"));
    assert_eq!(lab.adapter_bytes("killed"), lab.adapter_bytes("whole"));
    assert_eq!(lab.log("killed"), lab.log("whole"));
    // The rate stands in the settings now, and the word means it.
    let settings = fs::read_to_string(lab.path("killed/config.yaml")).unwrap();
    assert!(
        settings.contains(&format!("learning_rate: {found}")),
        "{settings}"
    );
    lab.train("killed", &["--resume", "--lr", "auto"]).ok();
    assert_eq!(lab.adapter_bytes("killed"), lab.adapter_bytes("whole"));
    let given = lab.train("given", &["--resume", "--lr", "auto"]);
    given.fails(2, &["the run was started with a rate that was given"]);
    let words = [
        "train",
        "--lr",
        "auto",
        "--model",
        &lab.text("model"),
        "--train-file",
        &lab.text("train.tsv"),
    ];
    let nothing = ["there are no validation rows", "--validation-file"];
    lowrank(&words).fails(2, &nothing);
    let wrong = ["expected a number or auto"];
    lab.train("wrong", &["--lr", "fast"]).fails(2, &wrong);
}

#[cfg(unix)]
#[test]
fn a_closed_terminal_stops_a_run_unless_nohup_says_otherwise() {
    let lab = Lab::new();
    let words = lab.train_words("run", &SETTINGS);
    for (trap, code) in [("", 130), ("trap '' HUP; ", 0)] {
        let _ = fs::remove_dir_all(lab.path("run"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let program = command(&words);
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", &format!("{trap}exec \"$0\" \"$@\"")])
            .arg(program.get_program())
            .args(program.get_args())
            .envs(program.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = shell.spawn().expect("a shell");
        assert!(wait_for_rows(&lab, "run", 10, &mut child));
        let told = std::process::Command::new("kill")
            .args(["-HUP", &child.id().to_string()])
            .status();
        assert!(told.expect("kill runs").success());
        assert_eq!(child.wait().expect("a child").code(), Some(code), "{trap}");
    }
}

#[cfg(unix)]
#[test]
fn control_c_writes_a_checkpoint_and_gives_130() {
    let lab = Lab::new();
    assert!(start(&lab, "whole", &[]).wait().unwrap().success());
    let words = lab.train_words("stopped", &SETTINGS);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut child = command(&words)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(wait_for_rows(&lab, "stopped", 10, &mut child));
    let signalled = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("interrupted: stopped after step") && stderr.contains("--resume"),
        "{stderr}"
    );
    assert!(
        !lab.path("stopped/adapter").exists(),
        "a stopped run has no result yet"
    );
    assert!(
        start(&lab, "stopped", &["--resume"])
            .wait()
            .unwrap()
            .success()
    );
    assert_eq!(lab.adapter_bytes("stopped"), lab.adapter_bytes("whole"));
    assert_eq!(lab.log("stopped"), lab.log("whole"));
}

#[test]
fn an_existing_run_is_refused_resumed_or_moved_aside() {
    let lab = Lab::new();
    let more = ["--max-steps", "3", "--quiet"];
    lab.train("run", &more).ok();
    let before = lab.adapter_bytes("run");
    lab.train("run", &more)
        .fails(1, &["already holds a run", "--resume", "--overwrite"]);
    lab.train(
        "run",
        &[more.as_slice(), &["--overwrite", "--seed", "9"]].concat(),
    )
    .ok();
    assert_eq!(
        lab.adapter_bytes("run.old-1"),
        before,
        "the old run is kept"
    );
    lab.train("fresh", &["--resume"])
        .fails(2, &["there is no run to resume"]);
}

#[test]
fn a_run_is_continued_with_its_own_settings_and_rows_only() {
    let lab = Lab::new();
    lab.train("run", &["--max-steps", "4", "--quiet"]).ok();
    lab.train("run", &["--resume", "--lr", "0.5"]).fails(
        1,
        &[
            "other settings",
            "learning_rate: 0.001 in the run, 0.5 asked for",
        ],
    );
    let kept = fs::read_to_string(lab.path("run/config.yaml")).unwrap();
    assert!(
        kept.contains("learning_rate: 0.001\n"),
        "a refused request changes nothing"
    );
    let rows = fs::read_to_string(lab.path("train.tsv")).unwrap();
    fs::write(lab.path("train.tsv"), rows.replacen("w5", "w6", 1)).unwrap();
    lab.train("run", &["--resume"])
        .fails(1, &["the training rows are not those"]);
}

#[test]
fn a_broken_checkpoint_is_passed_over() {
    let lab = Lab::new();
    let more = [
        "--max-steps",
        "9",
        "--save-steps",
        "3",
        "--eval-strategy",
        "no",
    ];
    lab.train("run", &more).ok();
    let expected = lab.adapter_bytes("run");
    let file = lab.path("run/checkpoint-9/state.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let ran = lab
        .train("run", &[more.as_slice(), &["--resume"]].concat())
        .ok();
    assert!(
        ran.stderr.contains("not a usable checkpoint")
            && ran.stderr.contains("resumed after step 6"),
        "{}",
        ran.stderr
    );
    assert_eq!(lab.adapter_bytes("run"), expected);
}

#[test]
fn a_run_that_nobody_can_wait_for_starts_all_the_same() {
    let lab = Lab::new();
    let words = lab.train_words("run", &["--epochs", "1e300", "--quiet"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut child = command(&words).spawn().unwrap();
    let alive = wait_for_rows(&lab, "run", 1, &mut child);
    let _ = child.kill();
    child.wait().unwrap();
    assert!(alive, "its plan ends");
}
