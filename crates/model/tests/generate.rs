//! Generation against transformers' `generate`, token by token, and what must hold of it by itself.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use std::path::Path;

use lowrank_engine::{Device, Isa};
use lowrank_model::{
    AdapterSlot, BeamSearch, EarlyStopping, Generate, Generated, Generation, LoadOptions,
    LoadReport, Model, Next, Sampling, Search, Task,
};
use lowrank_testkit::Golden;

/// End token of the golden models.
const EOS: u32 = 2;

/// The language model of a folder.
fn load(folder: &Path) -> (Model, LoadReport) {
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    Model::load(folder, &options, &device).expect("it loads")
}

fn model(golden: &Golden) -> Model {
    let (mut model, _) = load(&golden.model_dir());
    let adapter = golden.adapter_dir().expect("the case has an adapter");
    model.load_adapter(&adapter).expect("it fits");
    model
}

fn prompts(golden: &Golden, most: usize) -> Vec<Vec<u32>> {
    let cut = |ids: &Vec<u32>| ids[..most.min(ids.len())].to_vec();
    golden.rows.iter().map(|row| cut(&row.input_ids)).collect()
}

fn generate(model: &Model, prompts: &[Vec<u32>], options: &Generate) -> Vec<Generated> {
    model.generate(prompts, options).expect("it generates")
}

fn greedy() -> Generate {
    Generate {
        max_new_tokens: 12,
        eos: vec![EOS],
        ..Generate::default()
    }
}

#[test]
fn greedy_and_beam_search_give_the_peers_tokens() {
    let mut compared = 0;
    for name in [
        "gpt2-causal",
        "gpt2-upcast",
        "gpt_neo-causal",
        "opt-causal",
        "opt-post-norm",
        "llama-causal",
        "llama-llama3",
        "llama-token-rows",
        "llama-tables",
        "mistral-causal",
        "qwen2-causal",
        "qwen3-causal",
        "gemma-causal",
        "gemma2-causal",
        "gemma3_text-causal",
        "phi3-causal",
        "phi3-longrope-long",
        "olmo2-causal",
        "smollm3-causal",
        "granite-causal",
    ] {
        let golden = Golden::open(name).expect("a golden case opens");
        let model = model(&golden);
        assert!(golden.generated.len() >= 6, "{name} has decodings");
        for (kind, decoding) in &golden.generated {
            let given = &decoding.options;
            let number = |key: &str| given.get(key).and_then(serde_json::Value::as_f64);
            let search = match number("num_beams") {
                None => Search::Greedy,
                Some(beams) => Search::Beam(BeamSearch {
                    beams: beams as usize,
                    length_penalty: number("length_penalty").unwrap_or(1.0),
                    early_stopping: match given.get("early_stopping") {
                        Some(_) => EarlyStopping::Always,
                        None => EarlyStopping::Heuristic,
                    },
                    sampling: None,
                }),
            };
            let options = Generate {
                search,
                max_new_tokens: number("max_new_tokens").expect("a limit") as usize,
                eos: vec![EOS],
                repetition_penalty: number("repetition_penalty").unwrap_or(1.0) as f32,
                no_repeat_ngram: number("no_repeat_ngram_size").unwrap_or(0.0) as usize,
                ..Generate::default()
            };
            // All prompts at once here, each by itself there.
            let found = generate(&model, &prompts(&golden, decoding.prompt_tokens), &options);
            let found: Vec<Vec<u32>> = found.into_iter().map(|g| g.tokens).collect();
            assert_eq!(found, decoding.new_tokens, "{name} {kind}");
            compared += found.len();
        }
    }
    // Decodings of so many rows each; two models have five rows.
    assert_eq!(compared, 19 * 6 * 6 + 6 * 5);
}

#[test]
fn a_prompts_tokens_do_not_depend_on_the_others_and_come_as_they_are_made() {
    let golden = Golden::open("gpt_neo-causal").expect("a golden case opens");
    let (model, prompts) = (model(&golden), prompts(&golden, 5));
    for search in [
        Search::Greedy,
        Search::Beam(BeamSearch {
            beams: 3,
            ..BeamSearch::default()
        }),
        Search::Beam(BeamSearch {
            beams: 3,
            sampling: Some(Sampling::default()),
            ..BeamSearch::default()
        }),
    ] {
        let options = Generate { search, ..greedy() };
        let together = generate(&model, &prompts, &options);
        for (i, (prompt, expected)) in prompts.iter().zip(&together).enumerate() {
            let options = Generate {
                first_prompt: i,
                ..options.clone()
            };
            let alone = generate(&model, std::slice::from_ref(prompt), &options);
            assert_eq!(alone[0].tokens, expected.tokens);
        }
    }
    let mut told = vec![Vec::new(); prompts.len()];
    let options = greedy();
    let mut on_event = |i: usize, event: Generation<'_>| {
        if let Generation::Token(token) = event {
            told[i].push(token);
        }
        Next::GoOn
    };
    let found = model.generate_with(&prompts, &options, &mut on_event);
    let found = found.expect("it generates");
    let tokens: Vec<Vec<u32>> = found.into_iter().map(|g| g.tokens).collect();
    assert_eq!(told, tokens);
}

#[test]
fn a_text_is_ended_from_outside_without_a_change_to_the_others() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let (model, prompts) = (model(&golden), prompts(&golden, 5));
    let whole = generate(&model, &prompts, &greedy());
    let mut told = vec![0; prompts.len()];
    let mut finished = Vec::new();
    let mut end_second = |i: usize, event: Generation<'_>| match event {
        Generation::Token(_) => {
            told[i] += 1;
            match (i, told[i]) {
                (1, 3) => Next::EndText,
                _ => Next::GoOn,
            }
        }
        Generation::Finished(generated) => {
            finished.push((i, generated.tokens.len()));
            Next::GoOn
        }
    };
    let found = model.generate_with(&prompts, &greedy(), &mut end_second);
    let found = found.expect("it generates");
    for (i, (found, whole)) in found.iter().zip(&whole).enumerate() {
        let kept = if i == 1 { 3 } else { whole.tokens.len() };
        assert_eq!(found.tokens, whole.tokens[..kept], "prompt {i}");
        assert!(finished.contains(&(i, kept)), "prompt {i}: {finished:?}");
    }
    let end_all = &mut |_: usize, _: Generation<'_>| Next::EndAll;
    let found = model.generate_with(&prompts, &greedy(), end_all);
    let found = found.expect("it generates");
    assert!(found.iter().all(|generated| generated.tokens.len() <= 1));
}

#[test]
fn draws_hang_on_the_seed_and_narrow_ones_are_greedy() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let (model, prompts) = (model(&golden), prompts(&golden, 5));
    let drawn = |temperature, top_k, top_p, seed| {
        Search::Sample(Sampling {
            temperature,
            top_k,
            top_p,
            seed,
            ..Sampling::default()
        })
    };
    let sample = |temperature, top_k, top_p, seed| {
        let search = drawn(temperature, top_k, top_p, seed);
        generate(&model, &prompts, &Generate { search, ..greedy() })
    };
    let best = generate(&model, &prompts, &greedy());
    assert_eq!(sample(1.0, Some(1), 1.0, 3), best);
    assert_eq!(sample(1.0, None, 1e-6, 3), best);
    let hot = sample(5.0, None, 1.0, 3);
    assert_eq!(hot, sample(5.0, None, 1.0, 3));
    assert_ne!(hot, sample(5.0, None, 1.0, 4));
    let search = drawn(5.0, None, 1.0, 3);
    let rest = Generate {
        search,
        first_prompt: 4,
        ..greedy()
    };
    assert_eq!(generate(&model, &prompts[4..], &rest), hot[4..]);
    assert_ne!(hot, best);
}

#[test]
fn positions_that_end_and_adapters_that_are_off() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let model = model(&golden);
    let prompt = vec![vec![5; 38]];
    let options = Generate {
        eos: Vec::new(),
        ..greedy()
    };
    assert_eq!(generate(&model, &prompt, &options)[0].tokens.len(), 2);
    let prompts = prompts(&golden, 5);
    let off = Generate {
        adapter: AdapterSlot::BASE,
        ..options.clone()
    };
    assert_ne!(
        generate(&model, &prompts, &off),
        generate(&model, &prompts, &options)
    );
}

#[test]
fn what_is_refused() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let model = model(&golden);
    let refused = |prompt: &[u32], change: fn(&mut Generate)| {
        let mut options = greedy();
        change(&mut options);
        let error = model.generate(&[vec![3], prompt.to_vec()], &options);
        error.expect_err("refused").to_string()
    };
    for (prompt, words) in [
        (&[][..], "prompt 2 is empty"),
        (&[5; 40], "40 tokens, but the model has 40 positions"),
        (&[97], "token id 97, outside the vocabulary of 97"),
    ] {
        let message = refused(prompt, |_| {});
        assert!(message.contains(words), "{message}");
    }
    let sample = Search::Sample(Sampling {
        temperature: 0.0,
        top_k: Some(0),
        top_p: 1.5,
        min_p: 1.1,
        typical_p: 0.0,
        epsilon_cutoff: 1.0,
        eta_cutoff: -0.1,
        top_h: Some(2.0),
        seed: 0,
    });
    let faults = Generate {
        search: sample,
        max_new_tokens: 0,
        repetition_penalty: -1.0,
        guidance_scale: f32::INFINITY,
        exponential_decay_length_penalty: Some((1, 2.0)),
        ..Generate::default()
    };
    let names: Vec<_> = faults
        .faults()
        .into_iter()
        .map(|fault| fault.name)
        .collect();
    let expected = [
        "max_new_tokens",
        "repetition_penalty",
        "guidance_scale",
        "exponential_decay_length_penalty",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    ];
    assert_eq!(names, expected);
    let message = refused(&[3], |o| o.repetition_penalty = f32::NAN);
    assert!(message.contains("`repetition_penalty` is NaN"), "{message}");
    for (change, words) in [
        (
            (|o| o.bad_words = vec![vec![3, 97]]) as fn(&mut Generate),
            "`bad_words_ids` is 97, expected token ids below the vocabulary of 97",
        ),
        (
            |o| o.forced_bos = Some(1000),
            "`forced_bos_token_id` is 1000",
        ),
        (
            |o| o.forced_eos = vec![2, 97],
            "`forced_eos_token_id` is 97",
        ),
        (
            |o| o.sequence_bias = vec![(vec![99], 1.0)],
            "`sequence_bias` is 99",
        ),
        (|o| o.max_length = 1, "`max_length` is 1: none is left"),
        (
            |o| o.suppress = (0..2_000_000).collect(),
            "forbid every token",
        ),
    ] {
        let message = refused(&[3], change);
        assert!(message.contains(words), "{message}");
    }
    for beams in [98, 1 << 32, 1 << 63, usize::MAX] {
        let search = Search::Beam(BeamSearch {
            beams,
            ..BeamSearch::default()
        });
        let options = Generate { search, ..greedy() };
        let error = model.generate(&[vec![3]], &options);
        let message = error.expect_err("too many beams").to_string();
        assert!(message.contains("`num_beams` is"), "{message}");
        assert_eq!(model.generation_bytes(&[3], &options) > 1 << 40, beams > 98);
    }
}

#[test]
fn as_many_beams_as_tokens_and_lists_of_settings_that_are_long() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let model = model(&golden);
    let options = Generate {
        search: Search::Beam(BeamSearch {
            beams: 97,
            ..BeamSearch::default()
        }),
        max_new_tokens: 3,
        suppress: (50..1_000_000).collect(),
        eos: (1..300).collect(),
        ..Generate::default()
    };
    let found = generate(&model, &[vec![5, 6]], &options);
    assert!(found[0].tokens.iter().all(|id| *id < 50), "{found:?}");
}

/// The golden model with the last norm's shift replaced.
fn with_shift(value: f32) -> (tempfile::TempDir, Model) {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let dir = tempfile::tempdir().expect("a folder");
    let from = golden.model_dir();
    let config = std::fs::read(from.join("config.json")).expect("it is there");
    std::fs::write(dir.path().join("config.json"), config).expect("it is written");
    let mut bytes = std::fs::read(from.join("model.safetensors")).expect("it is there");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let place = |end: usize| {
        let offset = header["transformer.ln_f.bias"]["data_offsets"][end].as_u64();
        8 + length + offset.expect("the tensor is there") as usize
    };
    let tensor = &mut bytes[place(0)..place(1)];
    for bytes in tensor.chunks_exact_mut(4) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    std::fs::write(dir.path().join("model.safetensors"), bytes).expect("it is written");
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let (model, _) = Model::load(dir.path(), &options, &device).expect("it loads");
    (dir, model)
}

#[test]
fn numbers_that_are_none_never_become_tokens() {
    let beams = Search::Beam(BeamSearch {
        beams: 2,
        ..BeamSearch::default()
    });
    let sample = Search::Sample(Sampling::default());
    // Finite weights whose products are not.
    for value in [3e38, -2e38] {
        let (_dir, model) = with_shift(value);
        for (search, guidance_scale) in [
            (Search::Greedy, 1.0),
            (Search::Greedy, 2.0),
            (sample, 1.0),
            (beams, 1.0),
        ] {
            let options = Generate {
                search,
                guidance_scale,
                first_prompt: 6,
                ..greedy()
            };
            let error = model.generate(&[vec![5], vec![6, 7]], &options);
            let message = error.expect_err("no numbers").to_string();
            let known = "prompt 7, new token 1: the model's logit of";
            assert!(message.contains(known), "{message}");
        }
        let replaced = Generate {
            remove_invalid_values: true,
            ..greedy()
        };
        assert!(!generate(&model, &[vec![5]], &replaced)[0].tokens.is_empty());
    }
}

/// A Llama that was really trained (TinyStories, 260,000 parameters), with the greedy tokens of
/// llama2.c.
#[test]
fn a_pretrained_llama_tells_its_story() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = repository.join("../shared/data/models/stories260k");
    if !folder.join("model.safetensors").exists() {
        println!("SKIPPED: no pretrained model at {}", folder.display());
        return;
    }
    let (model, report) = load(&folder);
    assert!(report.new.is_empty(), "{:?}", report.new);
    let text = std::fs::read(folder.join("expected_greedy.json")).expect("it is read");
    let expected: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let ids = |key: &str| -> Vec<u32> {
        serde_json::from_value(expected[key].clone()).expect("token ids")
    };
    let (prompt, all) = (ids("prompt_ids"), ids("greedy_ids"));
    let options = Generate {
        max_new_tokens: all.len() - prompt.len(),
        ..Generate::default()
    };
    let found = generate(&model, std::slice::from_ref(&prompt), &options);
    assert_eq!(found[0].tokens, all[prompt.len()..]);
}
