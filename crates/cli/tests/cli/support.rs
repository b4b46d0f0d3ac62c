//! A tiny model, rows for it, and the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// What a command gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The same, which must have gone well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(
            self.code, 0,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// The message of a command that must have failed with this code and these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> String {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        for word in words {
            assert!(
                self.stderr.contains(word),
                "`{word}` is missing in:\n{}",
                self.stderr
            );
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// The binary with these words.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
    command.args(words);
    // No user's cache or tables, no chosen instruction set.
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "LOWRANK_CACHE_DIR",
        "LOWRANK_ISA",
        "LOWRANK_METEOR_DIR",
    ] {
        command.env_remove(name);
    }
    // Nor measured rates, so that `auto` means the same in every process.
    command.env("LOWRANK_MEASURE", "off");
    command
}

/// Runs the binary with these words.
pub fn lowrank(words: &[&str]) -> Ran {
    Ran::of(command(words).output().expect("the binary starts"))
}

pub fn golden(case: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(case);
    assert!(path.is_dir(), "golden case `{case}` is missing");
    path
}

/// A folder with a tiny BERT (97 tokens, 2 layers, dropout 0.1, a vocabulary of words) and rows for
/// it.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let lab = Self { dir };
        let model = lab.path("model");
        fs::create_dir(&model).unwrap();
        let from = golden("bert-no-head").join("model");
        fs::copy(
            from.join("model.safetensors"),
            model.join("model.safetensors"),
        )
        .unwrap();
        let mut config: Value =
            serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
        config["hidden_dropout_prob"] = 0.1.into();
        config["attention_probs_dropout_prob"] = 0.1.into();
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let mut vocabulary = vec!["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        vocabulary.extend((5..97).map(|i| format!("w{i}")));
        fs::write(model.join("vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
        for (name, rows, seed) in [
            ("train.tsv", 60, 1),
            ("validation.tsv", 24, 2),
            ("test.tsv", 24, 3),
        ] {
            fs::write(lab.path(name), tsv(rows, seed)).unwrap();
        }
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `train` on this lab's model and rows into the folder `run`, with more words.
    pub fn train_words(&self, run: &str, more: &[&str]) -> Vec<String> {
        let mut words = vec!["train".to_owned()];
        for (flag, file) in [
            ("--model", "model"),
            ("--train-file", "train.tsv"),
            ("--validation-file", "validation.tsv"),
            ("--output-dir", run),
        ] {
            words.extend([flag.to_owned(), self.text(file)]);
        }
        words.extend(["--per-device-batch-size".to_owned(), "8".to_owned()]);
        words.extend(more.iter().map(|w| (*w).to_owned()));
        words
    }

    pub fn train(&self, run: &str, more: &[&str]) -> Ran {
        let words = self.train_words(run, more);
        lowrank(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn adapter_bytes(&self, run: &str) -> Vec<u8> {
        fs::read(self.path(run).join("adapter/adapter_model.safetensors")).expect("an adapter")
    }

    /// Rows of the run's log: steps and what must be the same in every run of the same settings.
    pub fn log(&self, run: &str) -> Vec<(u64, Value, Value, Value)> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).expect("a log");
        let rows = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("a row"));
        rows.map(|r| {
            (
                r["step"].as_u64().unwrap(),
                r["loss"].clone(),
                r["grad_norm"].clone(),
                r["eval"].clone(),
            )
        })
        .collect()
    }
}

/// Rows of words; the label says whether more words are from the upper half of the vocabulary.
pub fn tsv(rows: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut text = "text\tlabel\n".to_owned();
    for _ in 0..rows {
        let words: Vec<u64> = (0..2 + next(12)).map(|_| 5 + next(92)).collect();
        let upper = words.iter().filter(|w| **w > 50).count();
        let label = if 2 * upper > words.len() {
            "high"
        } else {
            "low"
        };
        let words: Vec<String> = words.iter().map(|w| format!("w{w}")).collect();
        text.push_str(&format!("{}\t{label}\n", words.join(" ")));
    }
    text
}
