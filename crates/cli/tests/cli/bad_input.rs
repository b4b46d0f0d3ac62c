//! What strangers' files may hold: each a clear error with its place, exit code 1 or 2, and nothing
//! lost.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Lab, golden, lowrank};

const SHORT: [&str; 3] = ["--max-steps", "2", "--quiet"];

#[test]
fn rows() {
    let lab = Lab::new();
    let with = |name: &str, text: &str| {
        fs::write(lab.path(name), text).unwrap();
        lowrank(&[
            "train",
            "--model",
            &lab.text("model"),
            "--train-file",
            &lab.text(name),
            "--output-dir",
            &lab.text("run"),
            "--overwrite",
        ])
    };
    with("a.jsonl", "{\"text\": \"w5\", \"label\": 1}\nnot json\n")
        .fails(1, &["a.jsonl", "line 2", "not JSON"]);
    with("b.tsv", "").fails(1, &["b.tsv", "holds no row"]);
    with("c.tsv", "text\tlabel\n").fails(1, &["holds no row"]);
    with("d.tsv", "sentense\tlabel\nw5\t1\n").fails(1, &["no column", "sentense"]);
    with("e.jsonl", "{\"input_ids\": [2, 970, 3], \"label\": 1}\n")
        .fails(1, &["line 1", "970", "97"]);
    with("f.xyz", "w5\n").fails(1, &["format"]);
    lab.train(
        "run",
        &["--test-file", &lab.text("none.tsv"), "--overwrite"],
    )
    .fails(1, &["none.tsv"]);
    fs::write(lab.path("v.tsv"), "text\tlabel\nw5\thigh\nw6\thihg\n").unwrap();
    let words = [
        "train",
        "--model",
        &lab.text("model"),
        "--train-file",
        &lab.text("train.tsv"),
        "--validation-file",
        &lab.text("v.tsv"),
        "--output-dir",
        &lab.text("run"),
        "--overwrite",
    ];
    lowrank(&words).fails(1, &["v.tsv", "line 3", "hihg", "high"]);
    lab.train("run", &["--max-length", "2", "--overwrite"])
        .fails(2, &["max_length"]);
    lab.train("run", &["--max-length", "1000", "--overwrite"])
        .fails(2, &["64 positions", "--max-length 64"]);
    lab.train("run", &["--labels", "low", "other", "--overwrite"])
        .fails(1, &["label `", "not in the map"]);
}

#[test]
fn models() {
    let lab = Lab::new();
    let file = lab.path("model/model.safetensors");
    let good = fs::read(&file).unwrap();
    let train = |words: &[&str]| lab.train("run", &[words, &["--overwrite"]].concat());
    fs::write(&file, &good[..good.len() - 100]).unwrap();
    train(&SHORT).fails(1, &["model.safetensors"]);
    let mut lying = good.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&file, &lying).unwrap();
    train(&SHORT).fails(1, &["model.safetensors"]);
    let mut with_nan = good.clone();
    let end = with_nan.len();
    with_nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, &with_nan).unwrap();
    train(&SHORT).fails(1, &["NaN"]);
    fs::remove_file(&file).unwrap();
    train(&SHORT).fails(1, &["holds none of"]);
    // A pickle that would run a command.
    fs::write(
        lab.path("model/pytorch_model.bin"),
        b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    )
    .unwrap();
    train(&SHORT).fails(1, &["pytorch_model.bin"]);
    fs::remove_file(lab.path("model/pytorch_model.bin")).unwrap();
    fs::write(&file, &good).unwrap();

    let config = lab.path("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let changed = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        change(value.as_object_mut().unwrap());
        fs::write(&config, value.to_string()).unwrap();
    };
    changed(&|c| {
        drop((
            c.remove("hidden_size"),
            c.insert("num_hidden_layers".into(), (-3).into()),
        ))
    });
    train(&SHORT).fails(1, &["hidden_size", "num_hidden_layers"]);
    changed(&|c| drop(c.insert("model_type".into(), "mamba".into())));
    train(&SHORT).fails(1, &["mamba", "not supported", "bert"]);
    changed(&|c| drop(c.insert("intermediate_size".into(), 65.into())));
    train(&SHORT).fails(1, &["expected [65, 32], found [64, 32]"]);
    fs::write(&config, "{").unwrap();
    train(&SHORT).fails(1, &["config.json", "line 1"]);
    fs::write(&config, text).unwrap();
    train(&SHORT).ok();
}

#[test]
fn targets() {
    let lab = Lab::new();
    let train = |words: &[&str]| lab.train("run", &[&["--overwrite"], words].concat());
    train(&["--target-modules", "query", "valu"]).fails(1, &["valu", "value"]);
    train(&["--exclude-modules", "nothing"]).fails(1, &["nothing"]);
    train(&["--rank-pattern", "layer.7.query=2"]).fails(1, &["layer.7.query"]);
    train(&["--r", "100"]).fails(1, &["100", "32"]);
    train(&["--layers-to-transform", "0", "9"]).fails(1, &["9"]);
    train(&["--target-modules", "(query"]).fails(1, &["(query"]);
    train(&["--modules-to-save", "poolr"]).fails(1, &["poolr", "pooler"]);
}

#[test]
fn adapters_and_folders() {
    let lab = Lab::new();
    let other = golden("roberta-single-label")
        .join("adapter")
        .display()
        .to_string();
    let model = lab.text("model");
    let data = lab.text("test.tsv");
    lowrank(&[
        "eval",
        "--model",
        &model,
        "--adapter",
        &other,
        "--data-file",
        &data,
    ])
    .fails(1, &["roberta"]);
    // Same shapes, one other value: only the hash tells.
    lab.train("run", &SHORT).ok();
    let file = lab.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 1] ^= 0x80;
    fs::write(&file, &bytes).unwrap();
    let run = lab.text("run");
    let eval = [
        "eval",
        "--model",
        &model,
        "--adapter",
        &run,
        "--data-file",
        &data,
    ];
    lowrank(&eval).fails(1, &["trained on other weights", "--allow-other-base"]);
    lowrank(&[eval.as_slice(), &["--allow-other-base"]].concat()).ok();
    lowrank(&["eval", "--model", &model, "--data-file", &data])
        .fails(2, &["no classification head", "--adapter"]);
    lowrank(&[
        "eval",
        "--model",
        &model,
        "--adapter",
        &lab.text("none"),
        "--data-file",
        &data,
    ])
    .fails(2, &["there is no adapter"]);
    lowrank(&["eval", "--model", "no-org/no-model", "--data-file", &data])
        .fails(1, &["no-org/no-model", "--online"]);
    lowrank(&["plan", "/no/such/folder"]).fails(2, &["/no/such/folder"]);
    lowrank(&["inspect", &lab.text("train.tsv")]).fails(1, &["train.tsv"]);
    // A folder below a file can never be made.
    let below = format!("{}/run", lab.text("train.tsv"));
    let words = [
        "train",
        "--model",
        &model,
        "--train-file",
        &lab.text("train.tsv"),
        "--output-dir",
        &below,
    ];
    lowrank(&words).fails(1, &["train.tsv/run"]);
    let words = [
        "predict",
        "--model",
        &model,
        "--adapter",
        &lab.text("none"),
        "--text",
        "w5",
        "--output-file",
        &format!("{below}/x"),
    ];
    lowrank(&words).fails(2, &["there is no adapter"]);
    assert!(!Path::new(&below).exists());
}

#[test]
fn a_diverging_run_says_so_and_keeps_its_checkpoints() {
    let lab = Lab::new();
    let words = [
        "--lr",
        "1e38",
        "--warmup-steps",
        "3",
        "--max-steps",
        "50",
        "--save-steps",
        "1",
        "--eval-strategy",
        "no",
        "--max-grad-norm",
        "0",
    ];
    lab.train("run", &words)
        .fails(1, &["diverged", "--learning-rate"]);
    let kept = fs::read_dir(lab.path("run")).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("checkpoint-")
    });
    assert!(kept.count() >= 1);
}

#[test]
fn settings_that_no_run_can_have() {
    let lab = Lab::new();
    let train = |words: &[&str]| lab.train("run", words);
    train(&["--lr", "-1"]).fails(2, &["learning_rate: expected above 0, found -1"]);
    train(&["--lr", "nan"]).fails(2, &["--learning-rate", "expected a finite number"]);
    let words = lab.train_words("run", &[]);
    let at_empty: Vec<&str> = words
        .iter()
        .map(|w| {
            if *w == lab.text("run") {
                ""
            } else {
                w.as_str()
            }
        })
        .collect();
    lowrank(&at_empty).fails(2, &["output_dir: expected a folder"]);
    fs::write(lab.path("one.tsv"), "text\tlabel\nw5\tgood\nw6\tgood\n").unwrap();
    let one = lab.text("one.tsv");
    let model = lab.text("model");
    let run = lab.text("run");
    let words = ["train", "--model", &model, "--output-dir", &run];
    let with = |file: &str| lowrank(&[words.as_slice(), &["--train-file", file]].concat());
    let single = "one.tsv`, column `label`: a single class, `good`; labels: expected at least two";
    with(&one).fails(2, &[single, "--labels good OTHER"]);
    let no_name = [words.as_slice(), &["--train-file", &one, "--labels", ""]].concat();
    lowrank(&no_name).fails(2, &["--labels", "without a name"]);
    lowrank(
        &[
            words.as_slice(),
            &["--train-file", &one, "--labels", "a,,b"],
        ]
        .concat(),
    )
    .fails(2, &["--labels", "without a name"]);
    with(&model).fails(1, &["is a folder"]);
    assert!(
        !lab.path("run").exists(),
        "nothing is in the way of the next try"
    );
}

#[test]
fn predictions_that_would_be_random_are_refused() {
    let lab = Lab::new();
    lab.train("run", &SHORT).ok();
    // The adapter alone, as PEFT saves it without a `task_type`: the head is nowhere.
    let config = lab.path("run/adapter/adapter_config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    value["modules_to_save"] = Value::Null;
    value["task_type"] = Value::Null;
    fs::write(&config, value.to_string()).unwrap();
    let file = lab.path("run/adapter/adapter_model.safetensors");
    let tensors = lowrank_formats::Checkpoint::open_file(&file).unwrap();
    let kept: Vec<_> = tensors
        .infos()
        .filter(|t| t.name.contains("lora_"))
        .map(|t| {
            (
                t.name.clone(),
                t.shape.clone(),
                tensors.read_f32_vec(&t.name).unwrap(),
            )
        })
        .collect();
    let kept: Vec<_> = kept
        .iter()
        .map(|(name, shape, data)| lowrank_formats::OutTensor::f32(name, shape, data))
        .collect();
    lowrank_formats::write_safetensors(&file, &kept, &[]).unwrap();
    let (model, run) = (lab.text("model"), lab.text("run"));
    let words = ["--model", &model, "--adapter", &run];
    let predict = [&["predict", "--text", "w5"], words.as_slice()].concat();
    lowrank(&predict).fails(1, &["pooler", "would be random", "modules_to_save"]);
    let merge = [&["merge", "--output-dir", "merged"], words.as_slice()].concat();
    lowrank(&merge).fails(1, &["would be random"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_for_whoever_writes() {
    let lab = Lab::new();
    lab.train("run", &SHORT).ok();
    let (model, run) = (lab.text("model"), lab.text("run"));
    let words = ["--model", &model, "--adapter", &run];
    let predict = [&["predict", "--quiet", "--text", "w5"], words.as_slice()].concat();
    let full = [predict.as_slice(), &["--output-file", "/dev/full"]].concat();
    lowrank(&full).fails(1, &["cannot write `/dev/full`", "No space left"]);
    assert!(!Path::new("/dev/full").is_file(), "a device stays a device");
    // Standard output too.
    let device = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = crate::support::command(&predict)
        .stdout(device)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("cannot write to standard output"),
        "{stderr}"
    );
}
