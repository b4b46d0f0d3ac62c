//! What people and scripts read, word for word: help, `plan`, `check`, `inspect`, and error
//! messages. Each test compares what commands print with a file in `snapshots/`; CONTRIBUTING says
//! how a new text is accepted. What differs between machines is kept out: commands run in the
//! folder of their files, and where a test says so, all figures are replaced.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::language_model::Lab as LanguageLab;
use crate::support::{Lab, Ran, command, golden};

/// Commands and all that they printed.
struct Transcript<'a> {
    folder: &'a Path,
    text: String,
}

impl<'a> Transcript<'a> {
    fn in_folder(folder: &'a Path) -> Self {
        let text = String::new();
        Self { folder, text }
    }

    /// Runs the words of a line in the folder, so that paths are the same wherever it is.
    fn run(&self, line: &str) -> Ran {
        let ran = command(&line.split_whitespace().collect::<Vec<_>>())
            .current_dir(self.folder)
            .env("COLUMNS", "100")
            .env("HF_HOME", "hub")
            .env("LOWRANK_ISA", "scalar")
            .output();
        let ran = Ran::of(ran.expect("the binary starts"));
        assert!(![-1, 101].contains(&ran.code), "{line}: {}", ran.stderr);
        ran
    }

    /// Adds a command and what it prints.
    fn add(&mut self, line: &str) {
        self.add_seen_as(line, |text| text);
    }

    /// The same without figures, which depend on what the machine gives a process.
    fn add_without_figures(&mut self, line: &str) {
        self.add_seen_as(line, without_figures);
    }

    fn add_seen_as(&mut self, line: &str, seen: fn(String) -> String) {
        let ran = self.run(line);
        self.text.push_str(&format!("$ lowrank {line}\n"));
        for (name, text) in [("stdout", ran.stdout), ("stderr", ran.stderr)] {
            if !text.is_empty() {
                let text = seen(text);
                self.text.push_str(&format!("--- {name}\n{text}"));
            }
        }
        self.text
            .push_str(&format!("--- exit code {}\n\n", ran.code));
    }

    /// Compares all that was added with the file of this name.
    #[track_caller]
    fn matches(self, name: &str) {
        let mut settings = insta::Settings::new();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, self.text));
    }
}

/// Each number, with its unit where it is one of bytes, becomes one `#`.
fn without_figures(text: String) -> String {
    let mut seen = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if !c.is_ascii_digit() {
            seen.push(c);
            continue;
        }
        while chars.next_if(|c| c.is_ascii_digit() || *c == '.').is_some() {}
        seen.push('#');
    }
    ["# KiB", "# MiB", "# GiB", "# TiB"]
        .iter()
        .fold(seen, |text, unit| text.replace(unit, "#"))
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The words that name the lab's model and rows.
const TRAIN: &str = "train --model model --train-file train.tsv --output-dir run --batch-size 8";

#[test]
fn help() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "train", "eval", "predict", "generate", "chat", "merge", "export", "convert", "plan",
        "inspect", "check", "profile",
    ] {
        let mut transcript = Transcript::in_folder(folder.path());
        transcript.add(&format!("{line} --help"));
        transcript.matches(&format!("help_{line}"));
    }
    let mut transcript = Transcript::in_folder(folder.path());
    for line in ["", "--help"] {
        transcript.add(line);
    }
    transcript.matches("help");
}

#[test]
fn plans() {
    let lab = Lab::new();
    let folder = lab.path("");
    copy_dir(&golden("deberta-v2-v3").join("model"), &lab.path("deberta"));
    let mut text = Transcript::in_folder(&folder);
    for more in [
        "model",
        "gpt3-small --preset paper/gpt3-mnli-4.7m --precision f32",
        "gpt3-small --precision bf16 --batch-size 2 --max-length 256 --gradient-checkpointing",
        "model --target-modules all-linear --r 4 --use-rslora --task regression",
        "deberta --layers-to-transform 1 --bias lora_only --num-labels 5",
    ] {
        text.add(&format!("plan {more} --threads 1"));
    }
    text.add_without_figures("plan model --threads 1 --batch-size 3 --max-memory 1GB --json");
    text.matches("plan");
}

#[test]
fn checks() {
    let lab = Lab::new();
    let folder = lab.path("");
    let rows = [
        "w5 w6\tlow",
        "w5 w6\thigh",
        "w7 zzz\tLow",
        "\tlow",
        "w8 w9\thigh",
    ];
    let odd: String = rows.iter().map(|row| format!("{row}\tx\n")).collect();
    let odd = format!("text\tlabel\tnote\n{odd}");
    fs::write(lab.path("odd.tsv"), odd).unwrap();
    let mut text = Transcript::in_folder(&folder);
    text.add("check --model model --train-file train.tsv --validation-file validation.tsv --test-file test.tsv");
    text.add("check --model model --train-file odd.tsv --validation-file odd.tsv --max-length 3 --samples 1 --strict");
    text.add("check --model model --train-file odd.tsv --samples 1 --json");
    text.add("check --model model --train-file train.tsv --target-modules all-linear --rank-pattern query=2 --modules-to-save classifier");
    text.matches("check");

    let language = LanguageLab::new();
    let folder = language.path("");
    let mut text = Transcript::in_folder(&folder);
    text.add("check --model base --train-file texts.jsonl --samples 1");
    text.add("check --model base --train-file prompts.jsonl --samples 2 --template alpaca");
    text.matches("check_language_model");
}

#[test]
fn inspections() {
    let lab = Lab::new();
    let folder = lab.path("");
    copy_dir(
        &golden("bert-pooler-saved").join("adapter"),
        &lab.path("adapter"),
    );
    let mut text = Transcript::in_folder(&folder);
    text.add("inspect model");
    text.add("inspect model/config.json --json");
    text.add("inspect model/model.safetensors --values");
    text.add("inspect adapter --tensors");
    text.add("inspect adapter --json");
    text.run(&format!("{TRAIN} --max-steps 4 --save-steps 2 --quiet"))
        .ok();
    text.add("inspect run");
    fs::remove_file(lab.path("run/summary.json")).unwrap();
    fs::write(lab.path("run/checkpoint-4/state.json"), "{").unwrap();
    text.add("inspect run");
    text.matches("inspect");
}

#[test]
fn errors_of_flags_and_settings() {
    let lab = Lab::new();
    let folder = lab.path("");
    let yaml = "r: 4\n# a slip\nlearning_rat: 0.1\nshuffle: perhaps\ncolour: red\n";
    fs::write(lab.path("a.yaml"), yaml).unwrap();
    fs::write(lab.path("b.yaml"), "r: 4\n  bad: [\n").unwrap();
    let mut text = Transcript::in_folder(&folder);
    for line in [
        "trian",
        "train --learning-rat 1",
        "train --lr fast",
        "train --task singel_label",
        "train --preset paper/gpt2-medium-e2",
        "plan",
        "plan none",
        "plan none --json",
        "inspect no-org/no-model",
    ] {
        text.add(line);
    }
    for more in [
        "--config a.yaml",
        "--config b.yaml",
        "--config none.yaml",
        "--lr -1 --r 0 --warmup-ratio 2 --metric-for-best-model pearson",
        "--full --r 4 --lr-end 1e-5 --save-strategy epoch --save-steps 1",
        "--labels low,,high",
        "--max-length 1000",
        "--target-modules all-linear --layers-to-transform 1",
    ] {
        text.add(&format!("{TRAIN} {more}"));
    }
    text.matches("errors_of_flags_and_settings");
}

#[test]
fn errors_of_rows() {
    let lab = Lab::new();
    let folder = lab.path("");
    for (name, rows) in [
        ("json.jsonl", "{\"text\": \"w5\", \"label\": 1}\nnot json\n"),
        ("empty.tsv", ""),
        ("column.tsv", "sentense\tlabel\nw5\t1\n"),
        ("ids.jsonl", "{\"input_ids\": [2, 970, 3], \"label\": 1}\n"),
        ("one.tsv", "text\tlabel\nw5\tgood\nw6\tgood\n"),
        ("none.csv", "text,label\nw5,low\nw6,\nw7,high\n"),
        ("quote.csv", "text,label\n\"w5,low\nw6,high\n"),
        ("words.xyz", "w5\n"),
    ] {
        fs::write(lab.path(name), rows).unwrap();
    }
    let slip = "text\tlabel\nw5\thigh\nw6\thihg\n";
    fs::write(lab.path("slip.tsv"), slip).unwrap();
    let mut text = Transcript::in_folder(&folder);
    for file in [
        "json.jsonl",
        "empty.tsv",
        "column.tsv",
        "ids.jsonl",
        "one.tsv",
        "none.csv",
        "quote.csv",
        "words.xyz",
        "missing.tsv",
        "model",
    ] {
        text.add(&format!("check --model model --train-file {file}"));
    }
    text.add(&format!("{TRAIN} --validation-file slip.tsv"));
    text.add(&format!("{TRAIN} --labels low other"));
    text.add(&format!("{TRAIN} --task causal_lm"));
    text.add("check --model model --train-file slip.tsv --long-rows error --max-length 2");
    text.add("eval --model model --data-file slip.tsv");
    text.matches("errors_of_rows");
}

#[test]
fn errors_of_models() {
    let lab = Lab::new();
    let folder = lab.path("");
    let (weights, config) = (
        lab.path("model/model.safetensors"),
        lab.path("model/config.json"),
    );
    let (bytes, settings) = (fs::read(&weights).unwrap(), fs::read(&config).unwrap());
    let mut text = Transcript::in_folder(&folder);
    let mut train = || text.add(TRAIN);

    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    train();
    fs::write(&weights, [&u64::MAX.to_le_bytes(), &bytes[8..]].concat()).unwrap();
    train();
    let n = bytes.len() - 4;
    fs::write(&weights, [&bytes[..n], &f32::NAN.to_le_bytes()].concat()).unwrap();
    train();
    fs::remove_file(&weights).unwrap();
    train();
    let pickle = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.";
    fs::write(lab.path("model/pytorch_model.bin"), pickle).unwrap();
    train();
    fs::remove_file(lab.path("model/pytorch_model.bin")).unwrap();
    fs::write(&weights, &bytes).unwrap();

    fs::write(&config, "{\"model_type\": ").unwrap();
    train();
    let faults: [fn(&mut Value); 4] = [
        |c| c["model_type"] = json!("mamba"),
        |c| c["intermediate_size"] = json!(65),
        |c| {
            c["num_hidden_layers"] = json!(-3);
            c.as_object_mut().unwrap().remove("hidden_size");
        },
        |c| c["hidden_act"] = json!("gelo"),
    ];
    for fault in faults {
        fs::write(&config, &settings).unwrap();
        edit(&config, fault);
        train();
    }
    fs::remove_file(&config).unwrap();
    train();
    text.matches("errors_of_models");
}

#[test]
fn errors_of_targets() {
    let lab = Lab::new();
    let folder = lab.path("");
    let mut text = Transcript::in_folder(&folder);
    for more in [
        "--target-modules query valu",
        "--target-modules (query",
        "--exclude-modules nothing",
        "--rank-pattern layer.7.query=2",
        "--layers-to-transform 0 9",
        "--modules-to-save poolr",
        "--r 100",
    ] {
        text.add(&format!("{TRAIN} {more}"));
    }
    text.matches("errors_of_targets");
}

#[test]
fn errors_of_adapters_and_runs() {
    let lab = Lab::new();
    let folder = lab.path("");
    let adapter = |case: &str, name: &str| copy_dir(&golden(case).join("adapter"), &lab.path(name));
    adapter("roberta-all-linear", "of-roberta");
    adapter("bert-no-head", "dora");
    edit(&lab.path("dora/adapter_config.json"), |c| {
        c["use_dora"] = json!(true)
    });
    adapter("bert-no-head", "other-rank");
    edit(&lab.path("other-rank/adapter_config.json"), |c| {
        c["r"] = json!(5)
    });
    let mut text = Transcript::in_folder(&folder);
    text.run(&format!("{TRAIN} --max-steps 2 --save-steps 1 --quiet"))
        .ok();
    for adapter in ["of-roberta", "dora", "other-rank", "model", "none"] {
        let words = "predict --model model --text w5";
        text.add(&format!("{words} --adapter {adapter}"));
    }
    text.add("merge --model model --adapter run --output-dir merged --tolerance 1");
    text.add(TRAIN);

    // The run is as if it had been killed before its last step, and its base is another.
    fs::remove_dir_all(lab.path("run/checkpoint-2")).unwrap();
    fs::remove_file(lab.path("run/summary.json")).unwrap();
    let file = lab.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 1] ^= 0x80;
    fs::write(&file, &bytes).unwrap();
    text.add("predict --model model --text w5 --adapter run");
    text.add("train --quiet --resume --output-dir run");
    bytes[end - 1] ^= 0x80;
    fs::write(&file, &bytes).unwrap();
    edit(&lab.path("model/config.json"), |c| {
        c["hidden_act"] = json!("relu")
    });
    text.add("train --quiet --resume --output-dir run");
    edit(&lab.path("model/config.json"), |c| {
        c["hidden_act"] = json!("gelu")
    });
    text.add("train --quiet --resume --output-dir run --r 4");
    fs::write(lab.path("run/checkpoint-1/state.json"), "{").unwrap();
    text.add("train --quiet --resume --output-dir run");
    fs::write(lab.path("run/adapter/lowrank.json"), "[]").unwrap();
    text.add("predict --model model --text w5 --adapter run");
    text.matches("errors_of_adapters_and_runs");
}

#[test]
fn errors_of_memory_and_tokenizers() {
    let lab = Lab::new();
    let folder = lab.path("");
    let mut text = Transcript::in_folder(&folder);
    text.add(&format!("{TRAIN} --max-memory lots"));
    text.add_without_figures(&format!("{TRAIN} --max-memory 1MB"));
    text.add_without_figures("plan model --max-memory 1KB");
    let config = lab.path("model/config.json");
    let settings = fs::read(&config).unwrap();
    edit(&config, |c| {
        c["vocab_size"] = json!(10_000_000);
        c["hidden_size"] = json!(65_536);
    });
    text.add_without_figures(&format!("{TRAIN} --full --from-scratch"));
    fs::write(&config, settings).unwrap();

    let class = lab.path("model/tokenizer_config.json");
    fs::write(&class, "{\"tokenizer_class\": \"BertJapaneseTokenizer\"}").unwrap();
    text.add("check --model model --train-file train.tsv");
    fs::remove_file(class).unwrap();
    fs::write(lab.path("model/tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    text.add("check --model model --train-file train.tsv");
    fs::remove_file(lab.path("model/tokenizer.json")).unwrap();
    fs::remove_file(lab.path("model/vocab.txt")).unwrap();
    text.add("check --model model --train-file train.tsv");
    text.matches("errors_of_memory_and_tokenizers");
}

#[test]
fn errors_of_language_models_and_generation() {
    let lab = LanguageLab::new();
    let folder = lab.path("");
    let mut text = Transcript::in_folder(&folder);
    let scratch = "train --model base --full --from-scratch --train-file texts.jsonl --output-dir run --max-steps 1 --quiet";
    text.run(scratch).ok();
    text.add("train --model base --from-scratch --train-file texts.jsonl --output-dir other");
    text.add("check --model base --train-file prompts.jsonl --template {prompt}");
    text.add("predict --model run/model --text a");
    for more in [
        "",
        "--prompt a --temperature -1 --top-p 2 --max-new-tokens 0",
        "--prompt a --length-penalty 2",
        "--prompt a --do-sample=false --top-k 4",
        "--prompt a --text-column text --lora-alpha 8",
        "--prompt a --bad-words-ids [1]",
        "--prompt a --guidance-scale 2 --num-beams 2",
        "--prompt-file prompts.jsonl --text-column nothing",
        "--prompt a --generation-config nowhere.json",
    ] {
        text.add(&format!("generate --model run/model {more}"));
    }
    for file in [
        r#"{"top_k": -1, "repetition_penalty": "1.2"}"#,
        r#"{"num_beams": 100000}"#,
        r#"{"max_length": 1}"#,
    ] {
        fs::write(lab.path("run/model/generation_config.json"), file).unwrap();
        text.add("generate --model run/model --prompt a");
    }
    text.matches("errors_of_language_models_and_generation");
}
