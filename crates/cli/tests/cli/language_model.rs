//! Language models from the command line: trained from scratch, adapted to prompts, evaluated,
//! checked and refused.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Ran, command, lowrank};

/// A folder with the configuration and the tokenizer of a tiny GPT-2, and rows for it.
pub struct Lab(tempfile::TempDir);

impl Lab {
    pub fn new() -> Self {
        let lab = Self(tempfile::tempdir().expect("a folder"));
        let model = lab.path("base");
        fs::create_dir(&model).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/fixtures/gpt2");
        for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
            fs::copy(from.join(file), model.join(file)).unwrap();
        }
        let vocabulary: Value =
            serde_json::from_slice(&fs::read(from.join("vocab.json")).unwrap()).unwrap();
        let config = json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "vocab_size": vocabulary.as_object().unwrap().len(), "n_positions": 48, "n_embd": 32,
            "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        });
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let names = ["Aromi", "Bibimbap", "Clowns", "Zizzi"];
        let foods = ["Italian", "French", "Indian", "Chinese"];
        let mut texts = String::new();
        let mut prompts = String::new();
        for (i, name) in names.iter().enumerate() {
            for (j, food) in foods.iter().enumerate() {
                let said = format!("{name} serves {food} food.");
                texts.push_str(&format!("{}\n", json!({ "text": said })));
                let prompt = format!("name : {name} | food : {food}");
                prompts.push_str(&format!(
                    "{}\n",
                    json!({ "prompt": prompt, "completion": said, "id": 4 * i + j })
                ));
            }
        }
        fs::write(lab.path("texts.jsonl"), texts).unwrap();
        fs::write(lab.path("prompts.jsonl"), prompts).unwrap();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs with `@name` standing for a path in this folder.
    pub fn run(&self, words: &[&str]) -> Ran {
        let words: Vec<String> = words.iter().map(|word| self.place(word)).collect();
        lowrank(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The output of a command that is given `input`.
    pub fn typed(&self, words: &[&str], input: &str) -> String {
        let words: Vec<String> = words.iter().map(|word| self.place(word)).collect();
        let mut command = command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    }

    fn place(&self, word: &str) -> String {
        match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        }
    }

    pub fn scratch(&self, run: &str) -> Ran {
        self.run(&[
            "train",
            "--model",
            "@base",
            "--full",
            "--from-scratch",
            "--train-file",
            "@texts.jsonl",
            "--validation-file",
            "@texts.jsonl",
            "--output-dir",
            run,
            "--num-train-epochs",
            "20",
            "--per-device-batch-size",
            "4",
            "--learning-rate",
            "3e-3",
        ])
    }
}

fn losses(log: &Path) -> (f64, f64) {
    let text = fs::read_to_string(log).expect("a log");
    let of = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["loss"]
            .as_f64()
            .unwrap()
    };
    let (first, last) = (text.lines().next().unwrap(), text.lines().last().unwrap());
    (of(first), of(last))
}

#[test]
fn from_scratch_then_adapted_to_prompts_and_evaluated() {
    let lab = Lab::new();
    lab.scratch("@scratch").ok();
    let (first, last) = losses(&lab.path("scratch/metrics.jsonl"));
    assert!(last < 0.5 * first, "{first} to {last}");
    assert!(lab.path("scratch/model/model.safetensors").is_file());

    let adapt = |run: &str| {
        lab.run(&[
            "train",
            "--model",
            "@scratch/model",
            "--train-file",
            "@prompts.jsonl",
            "--output-dir",
            run,
            "--num-train-epochs",
            "10",
            "--per-device-batch-size",
            "4",
            "--learning-rate",
            "5e-3",
            "--r",
            "4",
            "--label-smoothing-factor",
            "0.1",
            "--max-length",
            "48",
        ])
        .ok()
    };
    adapt("@adapted");
    let (first, last) = losses(&lab.path("adapted/metrics.jsonl"));
    assert!(last < first, "{first} to {last}");
    let config: Value =
        serde_json::from_slice(&fs::read(lab.path("adapted/adapter/adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["fan_in_fan_out"], true);
    assert_eq!(config["target_modules"], json!(["c_attn"]));

    let perplexity = |more: &[&str]| {
        let words = [
            &[
                "eval",
                "--model",
                "@scratch/model",
                "--data-file",
                "@prompts.jsonl",
                "--json",
            ],
            more,
        ]
        .concat();
        let ran = lab.run(&words).ok();
        let found: Value = ran.json();
        found["metrics"]["perplexity"]
            .as_f64()
            .expect("a perplexity")
    };
    let (before, after) = (perplexity(&[]), perplexity(&["--adapter", "@adapted"]));
    assert!(after < before, "{before} to {after}");

    // Merged, it says the same as with the adapter apart.
    lab.run(&[
        "merge",
        "--model",
        "@scratch/model",
        "--adapter",
        "@adapted",
        "--output-dir",
        "@merged",
    ])
    .ok();
    let words = [
        "eval",
        "--model",
        "@merged",
        "--data-file",
        "@prompts.jsonl",
        "--json",
    ];
    let ran = lab.run(&words).ok();
    let merged: Value = ran.json();
    let merged = merged["metrics"]["perplexity"].as_f64().unwrap();
    assert!(
        (merged - after).abs() < 2e-2 * after,
        "{merged} against {after}"
    );
}

#[test]
fn a_folder_without_weights_is_checked() {
    let lab = Lab::new();
    let words = ["check", "--model", "@base", "--train-file", "@texts.jsonl"];
    let found = lab.run(&[&words[..], &["--json"]].concat()).ok().json();
    // c_attn of both layers, 32 values to 96 at the default rank of 8.
    assert_eq!(found["trainable_parameters"], 2 * 8 * (32 + 96));
}

#[test]
fn only_an_adapter_of_prompts_notes_how_they_are_laid_out() {
    let lab = Lab::new();
    lab.scratch("@scratch").ok();
    let noted = |rows: &str, run: &str| {
        let words = ["train", "--model", "@scratch/model", "--max-steps", "1"];
        let more = ["--train-file", rows, "--output-dir", run];
        lab.run(&[&words[..], &more[..]].concat()).ok();
        let notes = fs::read(lab.place(run) + "/adapter/lowrank.json").expect("notes");
        serde_json::from_slice::<Value>(&notes).unwrap()["template"].clone()
    };
    let template = noted("@prompts.jsonl", "@of-prompts");
    assert_eq!(template, "{prompt}{eos} {completion}{eos}");
    assert_eq!(noted("@texts.jsonl", "@of-texts"), Value::Null);
    // So that a prompt is gone on with as the text that it is.
    let written = |more: &[&str]| {
        let words = [
            "generate",
            "--model",
            "@scratch/model",
            "--adapter",
            "@of-texts",
        ];
        let prompt = ["--prompt", "Zizzi serves", "--json"];
        lab.run(&[&words[..], &prompt[..], more].concat())
            .ok()
            .stdout
    };
    let plain = written(&[]);
    assert_eq!(plain, written(&["--template", "{prompt}{completion}"]));
    assert_ne!(plain, written(&["--template", "{prompt}{eos}{completion}"]));
}

#[test]
fn text_after_prompts() {
    let lab = Lab::new();
    lab.run(&[
        "train",
        "--model",
        "@base",
        "--full",
        "--from-scratch",
        "--train-file",
        "@prompts.jsonl",
        "--output-dir",
        "@scratch",
        "--num-train-epochs",
        "150",
        "--per-device-batch-size",
        "8",
        "--learning-rate",
        "5e-3",
        "--max-length",
        "48",
    ])
    .ok();
    lab.run(&[
        "train",
        "--model",
        "@scratch/model",
        "--train-file",
        "@prompts.jsonl",
        "--output-dir",
        "@adapted",
        "--num-train-epochs",
        "4",
        "--per-device-batch-size",
        "8",
        "--max-length",
        "48",
    ])
    .ok();
    let lines = |more: &[&str]| -> Vec<Value> {
        let words = [
            &[
                "generate",
                "--model",
                "@scratch/model",
                "--adapter",
                "@adapted",
                "--quiet",
            ],
            more,
        ]
        .concat();
        let ran = lab.run(&words).ok();
        ran.stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON line"))
            .collect()
    };
    // The adapter's notes say how prompts were laid out in training.
    let found = lines(&["--prompt-file", "@prompts.jsonl", "--batch-size", "5"]);
    assert_eq!(found.len(), 16);
    let right = found.iter().filter(|line| {
        let prompt = line["prompt"].as_str().unwrap();
        let (name, food) = (
            prompt.split(' ').nth(2).unwrap(),
            prompt.rsplit(' ').next().unwrap(),
        );
        line["text"] == format!(" {name} serves {food} food.") && line["ended"] == true
    });
    let right = right.count();
    assert!(right >= 12, "{right} of 16: {:?}", found[0]);
    assert_eq!(found, lines(&["--prompt-file", "@prompts.jsonl"]));
    let merged = lines(&["--prompt-file", "@prompts.jsonl", "--merge-adapter"]);
    assert_eq!(found, merged);
    scored(&lab, right);
    let beams = lines(&[
        "--prompt-file",
        "@prompts.jsonl",
        "--num-beams",
        "4",
        "--no-repeat-ngram-size",
        "4",
    ]);
    assert!(
        beams
            .iter()
            .all(|line| line["score"].as_f64().is_some_and(|score| score < 0.0))
    );
    let drawn = [
        "--prompt-file",
        "@prompts.jsonl",
        "--temperature",
        "3",
        "--seed",
        "5",
        "--batch-size",
    ];
    let of_size = |size: &str| lines(&[&drawn[..], &[size]].concat());
    assert_eq!(of_size("3"), of_size("16"));

    let prompt = found[0]["prompt"].as_str().unwrap();
    let words = [
        "generate",
        "--model",
        "@scratch/model",
        "--adapter",
        "@adapted",
        "--quiet",
        "--prompt",
        prompt,
    ];
    let said = lab.run(&words).ok().stdout;
    assert_eq!(
        said,
        format!("{prompt}{}\n", found[0]["text"].as_str().unwrap())
    );
    let typed = lab.typed(
        &[
            "generate",
            "--model",
            "@scratch/model",
            "--adapter",
            "@adapted",
            "--quiet",
            "--interactive",
        ],
        &format!("{prompt}\n\n"),
    );
    assert_eq!(typed, format!("{}\n", found[0]["text"].as_str().unwrap()));
}

/// What is written after the prompts is scored, and the file of it scores the same again.
fn scored(lab: &Lab, right: usize) {
    let prompts = fs::read_to_string(lab.path("prompts.jsonl")).unwrap();
    let rows = prompts.lines().map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        format!(
            "{}\n",
            json!({ "prompt": row["prompt"], "references": [row["completion"], "no"] })
        )
    });
    fs::write(lab.path("rows.jsonl"), rows.collect::<String>()).unwrap();
    let base = [
        "eval",
        "--model",
        "@scratch/model",
        "--adapter",
        "@adapted",
        "--precision",
        "f32",
    ];
    let write = |more: &[&str]| {
        let words = [
            "--data-file",
            "@rows.jsonl",
            "--generate",
            "--json",
            "--output-file",
            "@out.txt",
        ];
        lab.run(&[&base[..], &words[..], more].concat()).ok()
    };
    let first = write(&[]);
    assert!(first.stderr.contains("16 texts"), "{}", first.stderr);
    let texts = fs::read_to_string(lab.path("out.txt")).unwrap();
    let same = texts.lines().zip(prompts.lines());
    let same = same.filter(|(text, line)| line.contains(&json!(text).to_string()));
    assert_eq!(same.count(), right);
    assert_eq!(first.json()["references"], json!(32));
    assert!(first.json()["scores"]["sacrebleu"].as_f64().unwrap() > 50.0);
    let again = [
        "eval",
        "--outputs",
        "@out.txt",
        "--references",
        "@rows.jsonl",
        "--json",
    ];
    assert_eq!(lab.run(&again).ok().stdout, first.stdout);
    assert_eq!(write(&["--batch-size", "3"]).stdout, first.stdout);

    // Without notes of an adapter the rows are laid out as for their perplexity.
    let bare = |more: &[&str]| {
        let words = ["eval", "--model", "@scratch/model", "--json", "--generate"];
        let rows = ["--data-file", "@rows.jsonl", "--output-file", "@bare.txt"];
        lab.run(&[&words[..], &rows[..], more].concat()).ok();
        fs::read_to_string(lab.path("bare.txt")).unwrap()
    };
    let laid_out = bare(&[]);
    assert_eq!(
        laid_out,
        bare(&["--template", "{prompt}{eos} {completion}{eos}"])
    );
    assert_ne!(laid_out, bare(&["--template", "{prompt}{completion}"]));

    // Columns of other names are read where they are named.
    let named = [
        "--data-file",
        "@named.jsonl",
        "--text-column",
        "asked",
        "--text-pair-column",
        "told",
    ];
    let row = r#"{"asked": "name : Zizzi", "told": "Zizzi serves food ."}"#;
    fs::write(lab.path("named.jsonl"), row.to_owned() + "\n").unwrap();
    let words = ["eval", "--model", "@scratch/model", "--json", "--generate"];
    lab.run(&[&words[..], &named].concat()).ok();
    for (more, word) in [
        (&["--label-column", "told"][..], "--label-column"),
        (&["--data-format", "e2e"], "--text-column"),
    ] {
        lab.run(&[&words[..], &named, more].concat())
            .fails(2, &["no effect", word]);
    }

    let refused = |more: &[&str], code: i32, words: &[&str]| {
        lab.run(&[&base[..], &["--generate"], more].concat())
            .fails(code, words);
    };
    refused(&[], 2, &["--data-file"]);
    refused(&["--data-file", "@texts.jsonl"], 1, &["--data-format"]);
    refused(
        &["--data-file", "@rows.jsonl", "--num-beams", "0"],
        2,
        &["num_beams"],
    );
    refused(
        &["--data-file", "@rows.jsonl", "--batch-size", "0"],
        2,
        &["batch size"],
    );
    refused(
        &["--data-file", "@rows.jsonl", "--metrics", "rouge"],
        2,
        &["rouge_l"],
    );
}

#[test]
fn what_generation_refuses() {
    let lab = Lab::new();
    lab.scratch("@scratch").ok();
    let refused = |code: i32, more: &[&str], words: &[&str]| {
        let all = [&["generate", "--model", "@scratch/model"], more].concat();
        lab.run(&all).fails(code, words);
    };
    refused(2, &[], &["no prompt given"]);
    refused(1, &["--prompt", ""], &["prompt 1 is empty"]);
    let long = "food ".repeat(200);
    refused(1, &["--prompt", &long], &["prompt 1 has", "48 positions"]);
    let faulty = [
        "--prompt",
        "a",
        "--temperature",
        "-1",
        "--top-p",
        "2",
        "--max-new-tokens",
        "0",
    ];
    refused(
        2,
        &faulty,
        &[
            "`temperature` is -1",
            "`top_p` is 2",
            "`max_new_tokens` is 0",
        ],
    );
    refused(
        2,
        &["--prompt", "a", "--length-penalty", "2"],
        &["beam search"],
    );
    for (more, word) in [
        (&["--text-column", "text"][..], "--text-column"),
        (&["--context-column", "none"], "--context-column"),
        (&["--no-header"], "--no-header"),
        (&["--data-format", "e2e"], "--data-format"),
        (&["--merge-adapter"], "--merge-adapter"),
        (&["--lora-alpha", "8"], "--lora-alpha"),
    ] {
        let words = [&["--prompt", "food"], more].concat();
        refused(2, &words, &["no effect", word, "hint: "]);
    }
    refused(
        2,
        &[
            "--prompt-file",
            "@prompts.jsonl",
            "--text-column",
            "nothing",
        ],
        &["no column `nothing`"],
    );
    // A vocabulary that does not match: the tokenizer knows more tokens than the model.
    let config = lab.path("scratch/model/config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    value["vocab_size"] = 20.into();
    fs::write(&config, value.to_string()).unwrap();
    refused(
        1,
        &["--prompt", "food"],
        &["does not fit its config.json", "wte.weight"],
    );
}

#[test]
fn what_a_language_model_refuses() {
    let lab = Lab::new();
    lab.run(&[
        "train",
        "--model",
        "@base",
        "--from-scratch",
        "--train-file",
        "@texts.jsonl",
    ])
    .fails(2, &["from_scratch"]);
    lab.run(&[
        "check",
        "--model",
        "@base",
        "--train-file",
        "@prompts.jsonl",
        "--template",
        "{prompt}",
    ])
    .fails(2, &["{completion}", "each once"]);
    lab.scratch("@scratch").ok();
    lab.run(&["predict", "--model", "@scratch/model", "--text", "a"])
        .fails(2, &["lowrank generate"]);
}

#[test]
fn a_profile_of_a_configuration_has_the_task_that_is_asked_for() {
    let lab = Lab::new();
    let file = lab.path("base/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("architectures");
    fs::write(&file, config.to_string()).unwrap();
    let file = file.display().to_string();
    let words = [
        "profile",
        "--model-config",
        &file,
        "--generate",
        "3",
        "--batch",
        "2",
        "--seq",
        "4",
        "--steps",
        "1",
    ];
    lowrank(&words).fails(2, &["--task causal_lm"]);
    lowrank(&[&words[..], &["--task", "causal_lm"]].concat()).ok();
}
