//! generation_config.json beside a model: what its fields do, that flags win over them, and what is
//! said or refused. That each field gives transformers' tokens is proved in the model's crate.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::language_model::Lab;
use crate::support::Ran;

/// A lab with an untrained model of random weights, whose probabilities are spread widely.
struct Bench(Lab);

impl Bench {
    fn new() -> Self {
        let lab = Lab::new();
        let config = lab.path("base/config.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        value["initializer_range"] = json!(0.4);
        fs::write(&config, value.to_string()).unwrap();
        let words = "train --model @base --full --from-scratch --train-file @texts.jsonl --output-dir @run --max-steps 1 --learning-rate 1e-9 --quiet";
        lab.run(&words.split(' ').collect::<Vec<_>>()).ok();
        Self(lab)
    }

    fn file(&self, text: &str) {
        fs::write(self.0.path("run/model/generation_config.json"), text).unwrap();
    }

    fn no_file(&self) {
        let _ = fs::remove_file(self.0.path("run/model/generation_config.json"));
    }

    fn run(&self, flags: &str) -> Ran {
        let mut words = vec![
            "generate",
            "--model",
            "@run/model",
            "--prompt",
            "Zizzi serves",
        ];
        words.extend(["--json", "--threads", "1"]);
        words.extend(flags.split(' ').filter(|word| !word.is_empty()));
        self.0.run(&words)
    }

    fn tokens(&self, flags: &str) -> Vec<u32> {
        let line = self.run(flags).ok().json();
        serde_json::from_value(line["tokens"].clone()).expect("token ids")
    }
}

#[test]
fn a_file_means_what_its_fields_mean_as_flags_and_flags_win() {
    let bench = Bench::new();
    let few = "--max-new-tokens 9";
    let plain = bench.tokens(few);
    let (first, third) = (plain[0], plain[2]);
    for (file, flags) in [
        (
            json!({ "repetition_penalty": 2.5 }),
            "--repetition-penalty 2.5".to_owned(),
        ),
        (
            json!({ "suppress_tokens": [first] }),
            format!("--suppress-tokens {first}"),
        ),
        (
            json!({ "begin_suppress_tokens": [first, third] }),
            format!("--begin-suppress-tokens {first},{third}"),
        ),
        (
            json!({ "bad_words_ids": [[first]] }),
            format!("--bad-words-ids [[{first}]]"),
        ),
        (
            json!({ "sequence_bias": [[[first], -50.0]] }),
            format!("--sequence-bias [[[{first}],-50]]"),
        ),
        (
            json!({ "eos_token_id": [third, 100_000] }),
            format!("--eos-token-id {third}"),
        ),
        (
            json!({ "eos_token_id": first, "min_new_tokens": 4 }),
            format!("--eos-token-id {first} --min-new-tokens 4"),
        ),
        (
            json!({ "max_new_tokens": 3 }),
            "--max-new-tokens 3".to_owned(),
        ),
        (
            json!({ "num_beams": 3, "length_penalty": -1.5, "early_stopping": "never" }),
            "--num-beams 3 --length-penalty -1.5 --early-stopping=never".to_owned(),
        ),
        (
            json!({ "do_sample": true, "temperature": 2.0, "top_p": 0.9, "typical_p": 0.9 }),
            "--temperature 2 --top-k 50 --top-p 0.9 --typical-p 0.9".to_owned(),
        ),
        (
            json!({ "max_new_tokens": 4, "forced_eos_token_id": 9, "guidance_scale": 1.7 }),
            "--max-new-tokens 4 --forced-eos-token-id 9 --guidance-scale 1.7".to_owned(),
        ),
    ] {
        bench.no_file();
        let expected = bench.tokens(&match flags.contains("max-new") {
            true => flags.clone(),
            false => format!("{few} {flags}"),
        });
        assert_ne!(expected, plain, "{flags} changes nothing");
        bench.file(&file.to_string());
        let max = if flags.contains("max-new") { "" } else { few };
        let ran = bench.run(max).ok();
        let found: Vec<u32> = serde_json::from_value(ran.json()["tokens"].clone()).unwrap();
        assert_eq!(found, expected, "{file}");
        let name = file.as_object().unwrap().keys().next().unwrap();
        let said = ran
            .stderr
            .contains(&format!("taken from generation_config.json: {name}"));
        assert!(said, "{}", ran.stderr);
        // A tokenizer without an end token of its own has the file's all the same.
        if file.get("eos_token_id").is_none() {
            assert_eq!(
                bench.tokens(&format!("{few} --generation-config none")),
                plain
            );
        }
    }
    bench.file(r#"{"repetition_penalty": 2.5, "num_beams": 4, "max_length": 8}"#);
    let own = "--repetition-penalty 1 --num-beams 1";
    let ran = bench.run(&format!("{few} {own}")).ok();
    assert!(!ran.stderr.contains("taken from"), "{}", ran.stderr);
    assert_eq!(ran.json()["tokens"], json!(plain));
}

#[test]
fn numbers_that_mean_off_are_off() {
    let bench = Bench::new();
    let greedy = bench.tokens("--max-new-tokens 8");
    for flags in [
        "--temperature 0",
        "--temperature 0 --top-k 5 --top-p 0.3",
        "--do-sample --top-p 0",
        "--do-sample --top-k 1",
        "--num-beams 1 --length-penalty 3",
        "--repetition-penalty 1.0 --no-repeat-ngram-size 0",
    ] {
        assert_eq!(
            bench.tokens(&format!("--max-new-tokens 8 {flags}")),
            greedy,
            "{flags}"
        );
    }
    let drawn = bench.tokens("--max-new-tokens 8 --do-sample --seed 4");
    assert_ne!(drawn, greedy);
    for flags in [
        "--top-k 0",
        "--top-p 1",
        "--typical-p 1 --top-k 1000000000000",
    ] {
        let same = bench.tokens(&format!("--max-new-tokens 8 --seed 4 {flags}"));
        assert_eq!(same, drawn, "{flags}");
    }
    bench.file(r#"{"do_sample": true, "top_k": 3, "temperature": 0.5}"#);
    assert_eq!(bench.tokens("--max-new-tokens 8 --temperature 0"), greedy);
    assert_eq!(bench.tokens("--max-new-tokens 8 --do-sample=false"), greedy);
    let all = "--max-new-tokens 8 --seed 4 --temperature 1 --top-k 0";
    assert_eq!(bench.tokens(all), drawn);
}

#[test]
fn older_files_and_what_is_not_obeyed_are_named() {
    let bench = Bench::new();
    bench.file(
        &json!({
            "do_sample": true, "min_p": 0.2, "stop_strings": ["."], "num_return_sequences": 2,
            "chat_format": "chatml", "use_cache": true, "transformers_version": "5.24.0", "num_beam_groups": 4,
        })
        .to_string(),
    );
    let said = bench.run("--max-new-tokens 2").ok().stderr;
    for words in [
        "taken from generation_config.json: do_sample true, min_p 0.2, stop_strings [\".\"], top_k 50",
        "`num_return_sequences` 2 is not obeyed: one text is written for each prompt",
        "not known and change nothing: `chat_format`\n",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Without beams there are no groups of them, and what changes nothing is not worth a word.
    assert!(
        !said.contains("num_beam_groups") && !said.contains("use_cache"),
        "{said}"
    );
    let beams = bench
        .run("--max-new-tokens 2 --num-beams 4 --do-sample=false")
        .ok()
        .stderr;
    assert!(
        beams.contains("`num_beam_groups` 4 is not obeyed"),
        "{beams}"
    );
    assert!(!beams.contains("min_p"), "{beams}");
    let stops = "`stop_strings` [\".\"] is not obeyed";
    assert!(beams.contains(stops), "{beams}");
    let stops = ["`stop_strings` ends one sequence", "--num-beams 1"];
    bench
        .run("--num-beams 4 --do-sample=false --stop x")
        .fails(2, &stops);
    assert_eq!(bench.run("--max-new-tokens 2 --quiet").ok().stderr, "");

    bench.no_file();
    let plain = bench.tokens("--max-new-tokens 6");
    let config = bench.0.path("run/model/config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    value["suppress_tokens"] = json!([plain[0]]);
    value["eos_token_id"] = json!([plain[1], plain[2]]);
    fs::write(&config, value.to_string()).unwrap();
    let ran = bench.run("--max-new-tokens 6").ok();
    let taken = format!("taken from config.json: suppress_tokens [{}]", plain[0]);
    assert!(ran.stderr.contains(&taken), "{}", ran.stderr);
    assert_ne!(ran.json()["tokens"][0], json!(plain[0]));
    // A generation_config.json takes the place of the older fields, but for the end that it does
    // not name.
    bench.file("{}");
    let ran = bench.run("--max-new-tokens 6").ok();
    assert_eq!(ran.json()["tokens"], json!(plain[..2]));
    assert!(
        ran.stderr
            .contains("`suppress_tokens` does not count beside"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("names no end token: texts end at"),
        "{}",
        ran.stderr
    );
}

#[test]
fn files_and_flags_that_cannot_be_obeyed_are_refused_by_name() {
    let bench = Bench::new();
    let none = "--generation-config none";
    for (file, words) in [
        (
            r#"{"top_k": -1, "repetition_penalty": "1.2"}"#,
            &["has 2 faults", "top_k: expected", "`\"1.2\"`", none][..],
        ),
        (
            r#"{"eos_token_id": "</s>"}"#,
            &["eos_token_id: expected a token id", none],
        ),
        (
            r#"{"bad_words_ids": [[]]}"#,
            &["bad_words_ids: expected a list of lists", none],
        ),
        (
            r#"{"sequence_bias": {"[1]": 2.0}}"#,
            &["sequence_bias: expected a list of [", none],
        ),
        (
            r#"{"repetition_penalty": NaN}"#,
            &["generation_config.json", "not valid JSON", none],
        ),
        ("[]", &["expected a JSON object", none]),
        (
            r#"{"repetition_penalty": -2}"#,
            &[
                "`repetition_penalty` is -2 (in generation_config.json)",
                "--repetition-penalty",
                none,
            ],
        ),
        (
            r#"{"num_beams": 100000}"#,
            &["`num_beams` is 100000", "tokens of the vocabulary", none],
        ),
        (
            r#"{"bad_words_ids": [[1], [123456]]}"#,
            &["`bad_words_ids` is 123456", "vocabulary", none],
        ),
        (
            r#"{"max_new_tokens": 0}"#,
            &["`max_new_tokens` is 0", "at least 1"],
        ),
        (
            r#"{"max_length": 1}"#,
            &["prompt 1 has", "`max_length` is 1"],
        ),
        (
            r#"{"do_sample": true, "typical_p": 0.0}"#,
            &["`typical_p` is 0", none],
        ),
    ] {
        bench.file(file);
        let ran = bench.run("--max-new-tokens 2");
        if ran.code == 0 {
            // Flags of the run win over these.
            let alone = bench.run("");
            assert_ne!(alone.code, 0, "{file}");
            words
                .iter()
                .for_each(|w| assert!(alone.stderr.contains(w), "{}", alone.stderr));
        } else {
            words
                .iter()
                .for_each(|w| assert!(ran.stderr.contains(w), "{}", ran.stderr));
        }
        bench.run(&format!("--max-new-tokens 2 {none}")).ok();
    }
    bench.file(r#"{"temperature": 0.0}"#);
    bench
        .run("--do-sample")
        .fails(2, &["`temperature` is 0 in generation_config.json"]);
    bench.no_file();
    let long: Vec<String> = (0..1_000_000).map(|id| id.to_string()).collect();
    bench.file(&format!("{{\"suppress_tokens\": [{}]}}", long.join(",")));
    bench.run("").fails(
        1,
        &["prompt 1, new token 1: the settings forbid every token"],
    );
    bench.no_file();
    for (flags, words) in [
        (
            "--top-k -1",
            &["'-1' for '--top-k <K>': expected a whole number from 0"][..],
        ),
        ("--temperature inf", &["expected a finite number"]),
        (
            "--do-sample=false --top-k 4",
            &["`top_k` counts where tokens are drawn"],
        ),
        (
            "--bad-words-ids [1]",
            &["--bad-words-ids: expected a list of lists of token ids"],
        ),
        (
            "--forced-bos-token-id 70000",
            &["`forced_bos_token_id` is 70000"],
        ),
        (
            "--guidance-scale 2 --num-beams 2",
            &["`guidance_scale` is 2, expected 1 in beam search"],
        ),
        ("--length-penalty -1", &["beam search", "--num-beams"]),
        (
            "--early-stopping=sometimes --num-beams 2",
            &["--early-stopping: expected"],
        ),
        (
            "--generation-config nowhere.json",
            &["cannot read `nowhere.json`"],
        ),
    ] {
        let ran = bench.run(flags);
        assert!(
            ran.code == 2 || flags.contains("nowhere"),
            "{flags}: {}",
            ran.stderr
        );
        words
            .iter()
            .for_each(|w| assert!(ran.stderr.contains(w), "{flags}: {}", ran.stderr));
    }
    let file = Path::new("run/model/generation_config.json");
    fs::create_dir(bench.0.path(&file.display().to_string())).unwrap();
    bench
        .run("")
        .fails(1, &["generation_config.json", "expected a regular file"]);
}
