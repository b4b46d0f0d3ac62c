//! How values are stored and multiplied: a run with bf16 weights in f32 from training to merging,
//! and what is refused.

use std::fs;

use lowrank_formats::Checkpoint;
use serde_json::Value;

use crate::language_model::Lab;
use crate::support::{self, Ran, command, lowrank};

const WIDENED: &str = "--precision f32 --base-format bf16";
const ADAPTER: &str = "run/adapter/adapter_model.safetensors";

fn run(lab: &Lab, words: &str) -> Ran {
    let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
    lab.run(&words)
}

/// A model of random weights, and an adapter that was trained on it with these settings.
fn adapted(numerics: &str) -> Lab {
    let lab = Lab::new();
    let scratch = "train --model @base --full --from-scratch --train-file @texts.jsonl --output-dir @scratch --max-steps 4 --learning-rate 0.01 --quiet";
    run(&lab, scratch).ok();
    let train = "train --model @scratch/model --train-file @prompts.jsonl --output-dir @run --max-steps 6 --save-steps 2 --save-total-limit 9 --learning-rate 0.01 --quiet";
    run(&lab, &format!("{train} {numerics}")).ok();
    lab
}

/// The adapter's bytes of a run that notes these settings; the run is then as if it had been killed
/// before its last checkpoint.
fn killed_late(lab: &Lab, noted: [&str; 3]) -> Vec<u8> {
    let config = fs::read_to_string(lab.path("run/config.yaml")).unwrap();
    for line in noted {
        assert!(config.lines().any(|of| of == line), "{line}: {config}");
    }
    let whole = fs::read(lab.path(ADAPTER)).unwrap();
    fs::remove_dir_all(lab.path("run/checkpoint-6")).unwrap();
    fs::remove_dir_all(lab.path("run/adapter")).unwrap();
    fs::remove_file(lab.path("run/summary.json")).unwrap();
    whole
}

#[test]
fn a_run_with_bf16_weights_in_f32_goes_on_as_it_began() {
    let lab = adapted(WIDENED);
    let noted = ["precision: f32", "base_format: bf16", "arithmetic: f32"];
    let whole = killed_late(&lab, noted);
    // It goes on to the same bytes without being told again.
    let resume = "train --resume --output-dir @run";
    run(&lab, &format!("{resume} --base-format f32")).fails(
        1,
        &[
            "base_format: \"bf16\" in the run",
            "\"f32\" asked",
            "hint: --resume alone",
        ],
    );
    run(&lab, resume).ok();
    assert_eq!(fs::read(lab.path(ADAPTER)).unwrap(), whole);
    // Weights that were rounded train other adapters.
    let plain = "train --model @scratch/model --train-file @prompts.jsonl --output-dir @plain --max-steps 6 --learning-rate 0.01 --quiet --precision f32";
    run(&lab, plain).ok();
    assert_ne!(
        fs::read(lab.path("plain/adapter/adapter_model.safetensors")).unwrap(),
        whole
    );
}

#[test]
fn a_model_that_bf16_holds_says_the_same_in_f32_with_bf16_weights() {
    let lab = adapted(WIDENED);
    run(
        &lab,
        "merge --model @scratch/model --adapter @run --output-dir @merged --dtype bf16",
    )
    .ok();
    let eval = "eval --model @merged --data-file @prompts.jsonl --json";
    let generate = "generate --model @merged --prompt Zizzi --max-new-tokens 7 --json";
    for command in [eval, generate] {
        let said = |flags: &str| run(&lab, &format!("{command} {flags}")).ok().stdout;
        let wanted = said("--precision f32");
        assert_eq!(said(WIDENED), wanted);
        assert_eq!(said(&format!("{WIDENED} --arithmetic f32")), wanted);
        said("--precision bf16 --arithmetic f32");
    }
    let profile = "profile --model @merged --batch 2 --seq 8 --steps 1 --json";
    for more in ["", "--generate 2"] {
        let timed = run(&lab, &format!("{profile} {WIDENED} {more}"))
            .ok()
            .json();
        let found = ["precision", "base_format", "arithmetic"].map(|name| timed[name].clone());
        assert_eq!(found, ["f32", "bf16", "f32"], "{more}");
    }
    let frozen = |flags: &str| -> u64 {
        let planned = run(&lab, &format!("plan @merged --json {flags}"))
            .ok()
            .json();
        let bytes: &Value = &planned["lora"]["fixed_bytes"]["frozen_weights"];
        bytes.as_u64().unwrap_or_else(|| panic!("{planned}"))
    };
    let [of_f32, of_bf16] = [frozen("--precision f32"), frozen("--precision bf16")];
    assert!(of_bf16 < of_f32);
    assert_eq!(frozen(WIDENED), of_bf16);
}

#[test]
fn an_adapter_trained_on_int8_weights_is_merged_into_the_original_ones() {
    let lab = adapted("--precision f32 --base-format int8");
    let noted = ["precision: f32", "base_format: int8", "arithmetic: f32"];
    let whole = killed_late(&lab, noted);
    run(&lab, "train --resume --output-dir @run").ok();
    assert_eq!(fs::read(lab.path(ADAPTER)).unwrap(), whole);

    let merge = "merge --model @scratch/model --adapter @run --output-dir @merged";
    run(&lab, merge).ok();
    let open = |name: &str| Checkpoint::open_dir(&lab.path(name)).unwrap();
    let (base, merged) = (open("scratch/model"), open("merged"));
    let mut kept = 0;
    for info in base.infos() {
        let name = &info.name;
        // Adapters are in the attention's fused layer; all else is the base's, bit for bit.
        let same = base.read_f32_vec(name).unwrap() == merged.read_f32_vec(name).unwrap();
        assert_eq!(same, !name.ends_with("c_attn.weight"), "{name}");
        kept += usize::from(same);
    }
    assert!(kept > 10);
    for command in [
        "eval --model @scratch/model --adapter @run --data-file @prompts.jsonl",
        "generate --model @scratch/model --adapter @run --prompt Zizzi",
    ] {
        run(&lab, &format!("{command} --base-format int8")).fails(
            2,
            &[
                "--base-format int8",
                "original weights",
                "hint: pass --base-format bf16",
            ],
        );
    }
    let frozen = |flags: &str| -> u64 {
        let planned = run(&lab, &format!("plan @scratch/model --json {flags}"))
            .ok()
            .json();
        let bytes: &Value = &planned["lora"]["fixed_bytes"]["frozen_weights"];
        bytes.as_u64().unwrap_or_else(|| panic!("{planned}"))
    };
    let of_int8 = frozen("--precision bf16 --base-format int8");
    assert!(of_int8 < frozen("--precision bf16"));
}

#[test]
fn check_tells_what_int8_does_to_the_rows() {
    let lab = support::Lab::new();
    let (model, rows) = (lab.text("model"), lab.text("test.tsv"));
    let check = |words: &[&str]| {
        let command = ["check", "--model", &model, "--train-file", &rows];
        lowrank(&[&command[..], words].concat())
    };
    let told = check(&["--base-format", "int8", "--json"]).ok().json();
    let layers = told["int8"]["layers"].as_array().unwrap().clone();
    assert!(!layers.is_empty());
    for error in layers.iter().chain([&told["int8"]["logits"]]) {
        let error = error.as_f64().unwrap();
        assert!(error > 0.0 && error < 0.2, "{told}");
    }
    let text = check(&["--base-format", "int8"]).ok().stdout;
    assert!(
        text.contains("int8: the logits of the first rows are off by"),
        "{text}"
    );
    assert!(
        check(&[])
            .ok()
            .stdout
            .lines()
            .all(|line| !line.starts_with("int8"))
    );
    check(&["--base-format", "bf16"]).fails(2, &["--base-format bf16", "int8"]);
}

#[test]
fn settings_that_exclude_each_other_are_refused_by_their_flags() {
    let lab = support::Lab::new();
    let (model, rows) = (lab.text("model"), lab.text("test.tsv"));
    let of_f32 = ["--base-format", "f32", "--arithmetic", "bf16"];
    for command in [
        vec!["eval", "--model", &model, "--data-file", &rows],
        vec!["predict", "--model", &model, "--text", "w5"],
        vec!["plan", &model],
        vec!["profile", "--model", &model],
    ] {
        lowrank(&[&command[..], &of_f32].concat()).fails(
            2,
            &[
                "--arithmetic bf16",
                "--base-format",
                "hint: pass --base-format bf16",
            ],
        );
        lowrank(&[&command[..], &["--base-format", "f16"]].concat())
            .fails(2, &["--base-format", "f16", "f32", "bf16", "auto"]);
    }
    lab.train("run", &of_f32)
        .fails(2, &["--arithmetic bf16", "--base-format"]);
    for full in [&["--full"][..], &["--full", "--precision", "bf16"]] {
        let format = if full.len() == 1 { "bf16" } else { "f32" };
        let words = [full, &["--base-format", format, "--dry-run"]].concat();
        lab.train("run", &words)
            .fails(2, &["no effect", "--base-format: with --full"]);
    }
    lab.train("run", &["--full", "--base-format", "auto", "--dry-run"])
        .ok();
    // A printed configuration reads back.
    let words = [
        "--full",
        "--precision",
        "bf16",
        "--arithmetic",
        "f32",
        "--dry-run",
    ];
    let printed = lab.train("run", &words).ok().stdout;
    fs::write(lab.path("full.yaml"), &printed).unwrap();
    let again = lowrank(&["train", "--config", &lab.text("full.yaml"), "--dry-run"]);
    assert_eq!(again.ok().stdout, printed);
}

#[test]
fn a_run_goes_on_with_the_instructions_that_it_began_with() {
    let lab = support::Lab::new();
    let train = |more: &[&str], isa: Option<&str>| {
        let words = lab.train_words(
            "run",
            &[&["--max-steps", "4", "--save-steps", "2"], more].concat(),
        );
        let mut command = command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        command.envs(isa.map(|isa| ("LOWRANK_ISA", isa)));
        Ran::of(command.output().expect("the binary starts")).ok()
    };
    train(&[], Some("scalar"));
    let whole = lab.adapter_bytes("run");
    // The best instruction set has other bits, unless it is the plain one.
    fs::remove_dir_all(lab.path("run/checkpoint-4")).unwrap();
    fs::remove_dir_all(lab.path("run/adapter")).unwrap();
    fs::remove_file(lab.path("run/summary.json")).unwrap();
    train(&["--resume"], None);
    assert_eq!(lab.adapter_bytes("run"), whole);
    let state = fs::read_to_string(lab.path("run/checkpoint-4/state.json")).unwrap();
    assert!(state.contains("\"instructions\": \"scalar\""), "{state}");
}

#[test]
fn inspect_shows_the_machine_and_keeps_its_rates_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let inspect = |measure: &str, more: &[&str]| {
        let mut command = command(&[&["inspect", "--machine"], more].concat());
        command.env("LOWRANK_CACHE_DIR", dir.path().join("cache"));
        command.env("LOWRANK_MEASURE", measure);
        Ran::of(command.output().expect("the binary starts"))
    };
    let shown = inspect("on", &["--json"]).ok().json();
    let measured = shown["measured"].as_array().unwrap();
    assert_eq!(measured.len(), 4, "{shown}");
    for way in measured {
        assert!(way["gflop_per_s_a_thread"].as_f64() > Some(0.0), "{way}");
        assert_eq!(way["right"], true, "{way}");
    }
    assert!(shown["auto"]["arithmetic"].is_string(), "{shown}");
    let file = shown["cache_file"].as_str().unwrap();
    assert!(fs::read(file).is_ok(), "{file}");
    // Those that come after read it.
    assert_eq!(inspect("on", &["--json"]).ok().json(), shown);
    let text = inspect("on", &[]).ok().stdout;
    for word in ["instruction sets", "multiplied in", "GFLOP/s", "auto", file] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let text = inspect("off", &[]).ok().stdout;
    assert!(text.contains("LOWRANK_MEASURE is off"), "{text}");
    inspect("on", &["model"]).fails(2, &["--machine", "path"]);
    inspect("fast", &[]).fails(2, &["LOWRANK_MEASURE is `fast`", "`off`"]);
}

#[test]
fn profile_times_every_choice_and_deals_the_tasks_out_on_paper() {
    let lab = support::Lab::new();
    let model = lab.text("model");
    let profile = |more: &[&str]| {
        let words = ["profile", "--model", &model, "--batch", "2", "--seq", "8"];
        lowrank(&[&words[..], &["--steps", "2"], more].concat())
    };
    let shown = profile(&["--all", "--json"]).ok().json();
    let rows = shown.as_array().unwrap();
    let way = |row: &Value| ["precision", "base_format", "arithmetic"].map(|n| row[n].clone());
    let ways: Vec<_> = rows.iter().map(way).collect();
    assert_eq!(ways.len(), 6);
    assert!((1..6).all(|i| !ways[..i].contains(&ways[i])), "{shown}");
    assert_eq!(rows.iter().filter(|row| row["auto"] == true).count(), 1);
    for row in rows {
        assert!(row["tokens_per_s"].as_f64() > Some(0.0), "{row}");
        assert!(row["loss"].as_f64() > Some(0.0), "{row}");
    }
    // Nothing is frozen in full fine-tuning, so that formats of frozen weights are no choice.
    let full = profile(&["--all", "--full", "--json"]).ok().json();
    assert_eq!(full.as_array().unwrap().len(), 3, "{full}");
    assert!(profile(&["--all"]).ok().stdout.contains("of the best"));

    let shown = profile(&["--workers", "64", "--json"]).ok().json();
    let number = |name: &str| shown[name].as_f64().unwrap();
    assert!(number("together_s") <= number("alone_s") && number("together_s") > 0.0);
    let busy = number("alone_s") / (64.0 * number("together_s"));
    assert!((number("busy") - busy).abs() < 1e-9, "{shown}");
    let ops = shown["ops"].as_array().unwrap();
    let tasks = |op: &Value| op["tasks"].as_u64().unwrap();
    let is_product = |op: &&Value| op["op"].as_str().unwrap().starts_with("product");
    let products = ops.iter().filter(is_product);
    assert!(products.map(tasks).sum::<u64>() > 10, "{shown}");
    // One worker is always busy.
    let alone = profile(&["--workers", "1", "--json"]).ok().json();
    assert!(alone["busy"].as_f64() > Some(0.999), "{alone}");
    assert!(
        profile(&["--workers", "8"])
            .ok()
            .stdout
            .contains("on paper")
    );
    profile(&["--workers", "0"]).fails(2, &["`workers` is 0"]);
    profile(&["--workers", "4", "--threads", "2"]).fails(2, &["--threads"]);
    profile(&["--all", "--precision", "f32"]).fails(2, &["--precision"]);
}
