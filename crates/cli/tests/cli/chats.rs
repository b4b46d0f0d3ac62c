//! Chats from the command line: laid out by a chat template, learned on the assistant's turns,
//! evaluated, gone on with, and talked about turn by turn.

use std::fs;

use serde_json::{Value, json};

use crate::language_model::Lab;

/// Answers by name, as an adapter is to learn them.
const ANSWERS: [(&str, &str); 3] = [
    ("Aromi", "French"),
    ("Zizzi", "Indian"),
    ("Clowns", "Italian"),
];

/// A model, and chats for it in the forms of OpenAI and ShareGPT; in `others.jsonl` with answers
/// that are wrong.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.scratch("@scratch").ok();
    let write = |file: &str, key: &str, names: [&str; 4], shift: usize| {
        let [role, content, user, assistant] = names;
        let row = |at: usize| {
            let (asked, said) = (ANSWERS[at].0, ANSWERS[(at + shift) % 3].1);
            let turns = json!([
                { role: user, content: format!("{asked}?") },
                { role: assistant, content: format!("{said} food.") },
            ]);
            format!("{}\n", json!({ key: turns }))
        };
        fs::write(lab.path(file), (0..3).map(row).collect::<String>()).unwrap();
    };
    let open_ai = ["role", "content", "user", "assistant"];
    write("chats.jsonl", "messages", open_ai, 0);
    write("others.jsonl", "messages", open_ai, 1);
    write(
        "turns.jsonl",
        "conversations",
        ["from", "value", "human", "gpt"],
        0,
    );
    lab
}

#[test]
fn a_model_learns_its_turns_and_is_asked_as_it_was_taught() {
    let lab = lab();
    let train = |model: &str, rows: &str, run: &str, more: &[&str]| {
        let files = [
            "--train-file",
            rows,
            "--validation-file",
            rows,
            "--output-dir",
            run,
        ];
        let words = ["train", "--model", model, "--num-train-epochs", "60"];
        let size = ["--per-device-batch-size", "3"];
        lab.run(&[&words[..], &files, &size, more].concat()).ok();
    };
    let full = [
        "--full",
        "--learning-rate",
        "5e-3",
        "--chat-template",
        "plain",
    ];
    train("@scratch/model", "@others.jsonl", "@taught", &full);
    // The model brings its template now.
    let lora = ["--learning-rate", "1e-2", "--target-modules", "all-linear"];
    train("@taught/model", "@chats.jsonl", "@run", &lora);
    // Both forms give the same rows, and so the same adapter.
    train("@taught/model", "@turns.jsonl", "@other", &lora);
    let adapter =
        |run: &str| fs::read(lab.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("run"), adapter("other"));
    let template = fs::read_to_string(lab.path("run/adapter/chat_template.jinja")).unwrap();
    assert!(template.contains("Assistant:"), "{template}");

    // The adapter's own template and mask hold where nothing else is asked for.
    let model = ["--model", "@taught/model", "--adapter", "@run"];
    let eval = [
        &["eval"],
        &model[..],
        &["--data-file", "@chats.jsonl", "--json"],
    ]
    .concat();
    let loss = |words: &[&str]| {
        let report = lab.run(words).ok().json();
        report["metrics"]["loss"].as_f64().unwrap()
    };
    let found = loss(&eval);
    let log = fs::read_to_string(lab.path("run/metrics.jsonl")).unwrap();
    let rows = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let evals = rows.filter_map(|row| row["eval"]["metrics"]["loss"].as_f64());
    let evals: Vec<f64> = evals.collect();
    assert!(evals.contains(&found), "{found} among {evals:?}");
    assert_ne!(loss(&[&eval[..], &["--loss-on", "all"]].concat()), found);

    // It answers as it was taught, and ends its turn.
    let ask = [
        &["generate"],
        &model[..],
        &["--prompt", "Aromi?", "Zizzi?", "--json"],
    ]
    .concat();
    let answers = lab.run(&ask).ok();
    assert!(
        answers.stderr.contains("chat template"),
        "{}",
        answers.stderr
    );
    let answer = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["ended"], true, "{line}");
        line["text"].as_str().unwrap().trim().to_owned()
    };
    let answers: Vec<String> = answers.stdout.lines().map(answer).collect();
    assert_eq!(answers, ["French food.", "Indian food."]);
    let plain = [&ask[..], &["--chat-template", "none"]].concat();
    let plain = lab.run(&plain).ok();
    assert!(!plain.stderr.contains("chat template"), "{}", plain.stderr);

    // Each answer is judged by itself, and said with what it was compared to.
    let judge = [
        "--generate",
        "--scorer",
        "exact",
        "--output-file",
        "@judged.jsonl",
    ];
    let judged = lab.run(&[&eval[..], &judge].concat()).ok().json();
    assert_eq!(
        judged["answers"],
        json!({ "scorer": "exact", "right": 3, "share": 1.0 })
    );
    assert_eq!(judged["scores"], json!({}));
    let lines = fs::read_to_string(lab.path("judged.jsonl")).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let second = json!({
        "line": 2, "text": " Indian food.", "answer": "Indian food.", "expected": ["Indian food."], "right": true,
    });
    assert_eq!((lines.len(), &lines[1]), (3, &second));
    let wrong = [
        "--data-file",
        "@others.jsonl",
        "--generate",
        "--scorer",
        "exact",
    ];
    let wrong = lab
        .run(&[&["eval"], &model[..], &wrong].concat())
        .ok()
        .stdout;
    assert!(wrong.contains("exact match    0.0000"), "{wrong}");
    let report = lab.run(&eval).ok().json();
    assert_eq!(report["metrics"]["accuracy"], 1.0, "{report}");

    // A text ends before what is to stop it.
    let stopped = lab
        .run(&[&ask[..], &["--stop", " food", "zzz"]].concat())
        .ok();
    let stopped: Vec<String> = stopped.stdout.lines().map(answer).collect();
    assert_eq!(stopped, ["French", "Indian"]);

    // A chat holds the same turns; without its adapter the model says what it was taught before.
    let talk = [&["chat"], &model[..], &["--max-new-tokens", "12"]].concat();
    let said = lab.typed(
        &talk,
        "Aromi?\n/reset\nZizzi?\n/reset\n/a\nZizzi?\n/exit\nClowns?\n",
    );
    let said: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(said, ["French food.", "Indian food.", "Italian food."]);
    let talk = [&talk[..], &["--stop", "ood"]].concat();
    assert_eq!(lab.typed(&talk, "Aromi?\n").trim(), "French f");
}

#[test]
fn a_base_that_makes_other_tokens_than_the_adapters_own_is_said() {
    let lab = lab();
    let words = [
        "train",
        "--model",
        "@scratch/model",
        "--train-file",
        "@chats.jsonl",
    ];
    let short = [
        "--chat-template",
        "plain",
        "--max-steps",
        "1",
        "--output-dir",
        "@run",
    ];
    lab.run(&[&words[..], &short].concat()).ok();
    let notes = fs::read(lab.path("run/adapter/lowrank.json")).unwrap();
    let notes: Value = serde_json::from_slice(&notes).unwrap();
    assert!(
        notes["probe"]["chat"].as_array().unwrap().len() > 10,
        "{notes}"
    );
    let eval = [
        "eval",
        "--model",
        "@scratch/model",
        "--adapter",
        "@run",
        "--data-file",
        "@chats.jsonl",
    ];
    let said = lab.run(&eval).ok().stderr;
    assert!(!said.contains("warning"), "{said}");
    // Another template beside the adapter.
    let template = lab.path("run/adapter/chat_template.jinja");
    let source = fs::read_to_string(&template).unwrap();
    fs::write(&template, source.replace("Assistant:", "Model:")).unwrap();
    let said = lab.run(&eval).ok().stderr;
    assert!(
        said.contains("of a probe chat token") && said.contains("the template is another one"),
        "{said}"
    );
    fs::write(&template, source).unwrap();
    // Merges that another tokenizer lacks.
    let merges = lab.path("scratch/model/merges.txt");
    let kept = fs::read_to_string(&merges).unwrap();
    let fewer: Vec<&str> = kept.lines().take(20).collect();
    fs::write(&merges, fewer.join("\n")).unwrap();
    let said = lab.run(&eval).ok().stderr;
    assert!(
        said.contains("of a probe text token") && said.contains("its rules differ"),
        "{said}"
    );
}

const CHECK: [&str; 5] = [
    "check",
    "--model",
    "@scratch/model",
    "--train-file",
    "@chats.jsonl",
];

#[test]
fn the_check_shows_what_of_chats_is_learned() {
    let lab = lab();
    let shown = lab
        .run(&[&CHECK[..], &["--chat-template", "plain"]].concat())
        .ok()
        .stdout;
    for words in [
        "the loss is on the assistant's turns",
        "chats `messages`",
        "3 of 3 rows end with an end token",
        "chats, as messages (OpenAI)",
        "3 of the assistant in 3 chats; 0 without anything learned",
        "User: Aromi?\\nAssistant:« French food.<|endoftext|>»",
    ] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "{shown}");
    // What a template leaves out is said.
    fs::write(
        lab.path("deaf.jinja"),
        "{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant:{% endif %}",
    )
    .unwrap();
    let turns = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "a" }, { "role": "assistant", "content": "b" },
    ]);
    fs::write(
        lab.path("system.jsonl"),
        json!({ "messages": turns }).to_string(),
    )
    .unwrap();
    let deaf = [
        "check",
        "--model",
        "@scratch/model",
        "--train-file",
        "@system.jsonl",
        "--chat-template",
        "@deaf.jinja",
    ];
    let shown = lab.run(&deaf).ok().stdout;
    let left_out = "train: 1 chat holds system prompts, which the chat template leaves out: line 1";
    assert!(shown.contains(left_out), "{shown}");
    lab.run(&[&deaf[..], &["--strict"]].concat())
        .fails(1, &["deserve a look"]);
    // A row that loses its end is counted.
    let short = ["--chat-template", "plain", "--max-length", "12"];
    let shown = lab.run(&[&CHECK[..], &short].concat()).ok().stdout;
    assert!(shown.contains("lost the end of the last turn"), "{shown}");
}

#[test]
fn chats_are_trained_by_their_recipe_where_nothing_else_is_asked_for() {
    let lab = lab();
    let resolved = |rows: &str, more: &[&str]| {
        let words = [
            "train",
            "--dry-run",
            "--model",
            "@scratch/model",
            "--train-file",
            rows,
        ];
        lab.run(&[&words[..], more].concat()).ok()
    };
    let chats = resolved("@chats.jsonl", &["--chat-template", "plain", "--r", "4"]);
    for line in [
        "r: 4",
        "lora_alpha: 32.0",
        "target_modules: all-linear",
        "learning_rate: 0.0002",
    ] {
        assert!(chats.stdout.contains(line), "{line}\n{}", chats.stdout);
    }
    assert!(
        chats.stdout.contains("chat_template: plain"),
        "{}",
        chats.stdout
    );
    let words = [
        "train",
        "--model",
        "@scratch/model",
        "--train-file",
        "@chats.jsonl",
    ];
    let short = [
        "--chat-template",
        "plain",
        "--max-steps",
        "1",
        "--output-dir",
        "@run",
    ];
    let trained = lab.run(&[&words[..], &short].concat()).ok();
    assert!(
        trained.stderr.contains("--preset sft"),
        "{}",
        trained.stderr
    );
    let texts = resolved("@texts.jsonl", &[]);
    assert!(
        texts.stdout.contains("lora_alpha: 16.0"),
        "{}",
        texts.stdout
    );
    let asked = resolved("@texts.jsonl", &["--preset", "sft"]);
    assert!(
        asked.stdout.contains("lora_alpha: 32.0"),
        "{}",
        asked.stdout
    );
}

#[test]
fn what_cannot_lay_out_chats_is_refused_by_name() {
    let lab = lab();
    let refused = |more: &[&str], code: i32, words: &[&str]| {
        lab.run(&[&CHECK[..], more].concat()).fails(code, words);
    };
    refused(
        &[],
        1,
        &["column `messages` holds chats", "--chat-template"],
    );
    let unknown = [
        "there is no chat template `chatmll`",
        "did you mean `chatml`?",
    ];
    refused(&["--chat-template", "chatmll"], 2, &unknown);
    let both = [
        "--chat-template",
        "plain",
        "--template",
        "{prompt}{completion}",
    ];
    refused(&both, 2, &["expected one of them"]);
    fs::write(lab.path("broken.jinja"), "{% if %}").unwrap();
    refused(
        &["--chat-template", "@broken.jinja"],
        1,
        &["line 1 of the chat template"],
    );
    fs::write(
        lab.path("strict.jinja"),
        "{{ raise_exception('no chats today') }}",
    )
    .unwrap();
    let raised = [
        "line 1, column `messages`",
        "refuses this chat: no chats today",
    ];
    refused(&["--chat-template", "@strict.jinja"], 1, &raised);
    lab.run(&["chat", "--model", "@scratch/model"])
        .fails(2, &["has no chat template"]);
    let system = [
        "generate",
        "--model",
        "@scratch/model",
        "--prompt",
        "a",
        "--system",
        "b",
    ];
    lab.run(&system)
        .fails(2, &["`system` is said before a chat"]);
}
