//! The presets against the paper's tables, written out once more row by row, and applied to the
//! commands.

use clap::Parser;
use lowrank_run::rates::AskedRate;

use super::*;
use crate::args::{Cli, Command, GenerateArgs, PlanArgs, TrainArgs};

fn setting(preset: &str, key: &str) -> Value {
    let preset = Preset::find(preset).unwrap();
    preset.settings.get(key).cloned().unwrap_or(Value::Null)
}

/// One row of a table: the values of `key` for the tasks MNLI, SST-2, MRPC, CoLA, QNLI, QQP, RTE,
/// STS-B.
#[track_caller]
fn row(block: &str, key: &str, printed: &str) {
    let tasks = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"];
    let printed: Vec<f64> = printed.split(' ').map(|n| n.parse().unwrap()).collect();
    assert_eq!(printed.len(), 8, "{printed:?}");
    for (task, printed) in tasks.iter().zip(printed) {
        let name = format!("{block}-{task}");
        assert_eq!(setting(&name, key).as_f64(), Some(printed), "{name}: {key}");
    }
}

#[test]
fn table_9() {
    let base = "paper/roberta-base";
    row(base, "per_device_batch_size", "16 16 16 32 32 16 32 16");
    row(base, "num_train_epochs", "30 60 30 80 25 25 80 40");
    row(
        base,
        "learning_rate",
        "5e-4 5e-4 4e-4 4e-4 4e-4 5e-4 5e-4 4e-4",
    );
    row(base, "lora_alpha", "8 8 8 8 8 8 8 8");
    row(base, "max_length", "512 512 512 512 512 512 512 512");
    let large = "paper/roberta-large";
    row(large, "per_device_batch_size", "4 4 4 4 4 4 8 8");
    row(large, "num_train_epochs", "10 10 20 20 10 20 20 30");
    row(large, "max_length", "128 128 512 128 512 512 512 512");
    let houlsby = "paper/roberta-large-houlsby";
    row(houlsby, "per_device_batch_size", "4 4 4 4 4 4 4 4");
    row(houlsby, "num_train_epochs", "10 10 20 20 10 20 20 10");
    row(houlsby, "max_length", "128 128 128 128 128 128 128 128");
    for block in [large, houlsby] {
        row(
            block,
            "learning_rate",
            "3e-4 4e-4 3e-4 2e-4 2e-4 3e-4 4e-4 2e-4",
        );
        row(block, "lora_alpha", "16 16 16 16 16 16 16 16");
    }
    for block in [base, large, houlsby] {
        row(block, "r", "8 8 8 8 8 8 8 8");
        row(
            block,
            "warmup_ratio",
            "0.06 0.06 0.06 0.06 0.06 0.06 0.06 0.06",
        );
    }
    row(
        "scripts/roberta-base",
        "lora_alpha",
        "16 16 16 16 16 16 16 16",
    );
    row(
        "scripts/roberta-base",
        "gradient_accumulation_steps",
        "8 8 8 8 8 8 8 8",
    );
    assert_eq!(setting("paper/roberta-base-stsb", "task"), "regression");
    let cola = setting("paper/roberta-base-cola", "metric_for_best_model");
    assert_eq!(cola, "matthews");
}

#[test]
fn table_10_with_the_rank_that_its_parameters_need() {
    let paper = "paper/deberta-v2-xxlarge";
    row(paper, "per_device_batch_size", "8 8 32 4 6 8 4 4");
    row(paper, "num_train_epochs", "5 16 30 10 8 11 11 10");
    row(
        paper,
        "learning_rate",
        "1e-4 6e-5 2e-4 1e-4 1e-4 1e-4 2e-4 2e-4",
    );
    row(paper, "weight_decay", "0 .01 .01 0 .01 .01 .01 .1");
    row(paper, "classifier_dropout", ".15 0 0 .1 .1 .2 .2 .2");
    row(paper, "max_length", "256 128 128 64 512 320 320 128");
    row(paper, "warmup_ratio", ".1 .1 .1 .1 .1 .1 .1 .1");
    row(paper, "r", "16 16 16 16 16 16 16 16");
    let scripts = "scripts/deberta-v2-xxlarge";
    row(
        scripts,
        "learning_rate",
        "1e-4 6e-5 2e-4 1.3e-4 1e-4 1e-4 2.6e-4 2e-4",
    );
    row(scripts, "lora_alpha", "32 32 32 32 32 32 32 32");
    assert_eq!(
        setting("scripts/deberta-v2-xxlarge-qqp", "warmup_steps"),
        10000
    );
    assert_eq!(
        setting("scripts/deberta-v2-xxlarge-mrpc", "warmup_ratio"),
        0.1
    );
}

#[test]
fn table_11() {
    for size in ["medium", "large"] {
        let columns = [
            ("e2e", 0.01, 0.1, 0.1, 0.9),
            ("webnlg", 0.01, 0.1, 0.1, 0.8),
            ("dart", 0.0, 0.0, 0.0, 0.8),
        ];
        for (task, decay, dropout, smoothing, penalty) in columns {
            let name = format!("paper/gpt2-{size}-{task}");
            let printed = [
                ("weight_decay", decay),
                ("lora_dropout", dropout),
                ("label_smoothing_factor", smoothing),
                ("length_penalty", penalty),
                ("per_device_batch_size", 8.0),
                ("num_train_epochs", 5.0),
                ("warmup_steps", 500.0),
                ("learning_rate", 2e-4),
                ("r", 4.0),
                ("lora_alpha", 32.0),
                ("num_beams", 10.0),
                ("no_repeat_ngram_size", 4.0),
            ];
            for (key, value) in printed {
                assert_eq!(setting(&name, key).as_f64(), Some(value), "{name}: {key}");
            }
        }
    }
    assert_eq!(setting("scripts/gpt2-medium-e2e", "length_penalty"), 0.8);
}

#[test]
fn table_12() {
    for (task, length) in [("wikisql", 384), ("mnli", 768), ("samsum", 2048)] {
        for (size, rank) in [("4.7m", 1), ("37.7m", 8)] {
            let name = format!("paper/gpt3-{task}-{size}");
            assert_eq!(setting(&name, "max_length"), length);
            assert_eq!(setting(&name, "r"), rank);
            assert_eq!(setting(&name, "learning_rate"), 2e-4);
            assert_eq!(setting(&name, "weight_decay"), 0.1);
            assert_eq!(setting(&name, "per_device_batch_size"), 128);
            assert_eq!(setting(&name, "num_train_epochs"), 2);
            // 250,000 tokens of warm-up: the last step that begins below them.
            let steps = setting(&name, "warmup_steps").as_u64().unwrap();
            let tokens = |steps: u64| steps * 128 * length;
            assert!(tokens(steps) >= 250_000 && tokens(steps - 1) < 250_000);
        }
    }
}

#[test]
fn names_are_unique_and_every_setting_is_some_commands() {
    let mut names: Vec<_> = presets::all().into_iter().map(|p| p.name).collect();
    let n = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), n);
    for preset in presets::all() {
        let (mut train, mut generate) = (preset.settings.clone(), preset.settings.clone());
        settings::keep_known::<TrainArgs>(&mut train);
        settings::keep_known::<GenerateArgs>(&mut generate);
        for key in preset.settings.keys() {
            let known = train.contains_key(key) || generate.contains_key(key);
            assert!(known, "{}: `{key}`", preset.name);
        }
        for family in preset.families {
            preset.check_family(family).unwrap();
        }
    }
}

#[test]
fn a_slip_gets_the_nearest_names() {
    let error = |name: &str| format!("{:?}", Preset::find(name).unwrap_err());
    assert!(error("paper/gpt2-medium-e2").contains("paper/gpt2-medium-e2e"));
    assert!(error("gpt2-large-dart").contains("paper/gpt2-large-dart"));
    assert!(error("gpt2 e2e").contains("paper/gpt2-large-e2e"));
    assert!(error("something").contains("--list-presets"));
}

fn parse(words: &[&str]) -> TrainArgs {
    let words = ["lowrank", "train"].iter().chain(words);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Train(args) => *args,
        _ => panic!("not train"),
    }
}

#[test]
fn flags_win_over_files_over_presets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.yaml");
    std::fs::write(
        &file,
        "preset: paper/deberta-v2-xxlarge-cola\nlr: 0.5\nweight_decay: 0.25\n",
    )
    .unwrap();
    let flags = parse(&["--weight-decay", "0.125"]);
    let args = with_preset(flags, file.to_str(), |args| &args.preset).unwrap();
    let o = &args.optimization;
    assert_eq!(
        (o.learning_rate, o.weight_decay),
        (Some(AskedRate::Rate(0.5)), Some(0.125))
    );
    assert_eq!(o.classifier_dropout, Some(0.1));
    assert_eq!((args.lora.r, args.data.max_length), (Some(16), Some(64)));
}

#[test]
fn a_ratio_that_is_asked_for_is_not_beaten_by_the_presets_steps() {
    let with = |words: &[&str]| {
        let mut all = vec!["--preset", "paper/gpt2-medium-e2e"];
        all.extend(words);
        let args = with_preset(parse(&all), None, |args| &args.preset).unwrap();
        (
            args.optimization.warmup_steps,
            args.optimization.warmup_ratio,
        )
    };
    assert_eq!(with(&[]), (Some(500), None));
    assert_eq!(with(&["--warmup-ratio", "0.5"]), (None, Some(0.5)));
}

#[test]
fn a_command_takes_what_it_knows() {
    let flags = PlanArgs {
        preset: PresetArgs {
            preset: Some("paper/gpt3-mnli-4.7m".to_owned()),
        },
        ..PlanArgs::default()
    };
    let plan = with_preset(flags, None, |args| &args.preset).unwrap();
    assert_eq!((plan.lora.r, plan.max_length), (Some(1), Some(768)));
    let flags = GenerateArgs {
        preset: PresetArgs {
            preset: Some("paper/gpt2-large-dart".to_owned()),
        },
        ..GenerateArgs::default()
    };
    let generate = with_preset(flags, None, |args| &args.preset).unwrap();
    assert_eq!(
        (
            generate.decoding.num_beams,
            generate.decoding.length_penalty
        ),
        (Some(10), Some(0.8))
    );
}
