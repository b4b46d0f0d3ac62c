//! Generation against transformers' `generate`, token by token, and what must hold of it by itself.

use lowrank_engine::{Device, Isa};
use lowrank_model::{Generate, Generated, LoadOptions, Model, Search, Task};
use lowrank_testkit::Golden;

/// End token of the golden models.
const EOS: u32 = 2;

fn model(golden: &Golden) -> Model {
    let options = LoadOptions {
        task: Task::CausalLm,
        num_labels: 1,
        seed: 1,
        ignore_mismatched_sizes: false,
    };
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let (mut model, _) = Model::load(&golden.model_dir(), &options, &device).expect("it loads");
    let adapter = golden.adapter_dir().expect("the case has an adapter");
    model.load_adapter(&adapter).expect("it fits");
    model
}

fn prompts(golden: &Golden, most: usize) -> Vec<Vec<u32>> {
    let cut = |ids: &Vec<u32>| ids[..most.min(ids.len())].to_vec();
    golden.rows.iter().map(|row| cut(&row.input_ids)).collect()
}

fn generate(model: &Model, prompts: &[Vec<u32>], options: &Generate) -> Vec<Generated> {
    model
        .generate(prompts, options, &mut |_, _| {})
        .expect("it generates")
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
    ] {
        let golden = Golden::open(name).expect("a golden case opens");
        let model = model(&golden);
        assert!(golden.generated.len() >= 6, "{name} has decodings");
        for (kind, decoding) in &golden.generated {
            let given = &decoding.options;
            let number = |key: &str| given.get(key).and_then(serde_json::Value::as_f64);
            let search = match number("num_beams") {
                None => Search::Greedy,
                Some(beams) => Search::Beam {
                    beams: beams as usize,
                    length_penalty: number("length_penalty").unwrap_or(1.0),
                    early_stopping: given.get("early_stopping").is_some_and(|v| v == true),
                },
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
    assert_eq!(compared, 5 * 6 * 6);
}

#[test]
fn a_prompts_tokens_do_not_depend_on_the_others_and_come_as_they_are_made() {
    let golden = Golden::open("gpt_neo-causal").expect("a golden case opens");
    let (model, prompts) = (model(&golden), prompts(&golden, 5));
    for search in [
        Search::Greedy,
        Search::Beam {
            beams: 3,
            length_penalty: 1.0,
            early_stopping: false,
        },
    ] {
        let options = Generate { search, ..greedy() };
        let together = generate(&model, &prompts, &options);
        for (prompt, expected) in prompts.iter().zip(&together) {
            let alone = generate(&model, std::slice::from_ref(prompt), &options);
            assert_eq!(alone[0].tokens, expected.tokens);
        }
    }
    let mut told = vec![Vec::new(); prompts.len()];
    let options = greedy();
    let found = model
        .generate(&prompts, &options, &mut |i, token| told[i].push(token))
        .expect("it generates");
    let tokens: Vec<Vec<u32>> = found.into_iter().map(|g| g.tokens).collect();
    assert_eq!(told, tokens);
}

#[test]
fn draws_hang_on_the_seed_and_narrow_ones_are_greedy() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let (model, prompts) = (model(&golden), prompts(&golden, 5));
    let sample = |temperature, top_k, top_p, seed| {
        let search = Search::Sample {
            temperature,
            top_k,
            top_p,
            seed,
        };
        generate(&model, &prompts, &Generate { search, ..greedy() })
    };
    let best = generate(&model, &prompts, &greedy());
    assert_eq!(sample(1.0, Some(1), 1.0, 3), best);
    assert_eq!(sample(1.0, None, 1e-6, 3), best);
    let hot = sample(5.0, None, 1.0, 3);
    assert_eq!(hot, sample(5.0, None, 1.0, 3));
    assert_ne!(hot, sample(5.0, None, 1.0, 4));
    let search = Search::Sample {
        temperature: 5.0,
        top_k: None,
        top_p: 1.0,
        seed: 3,
    };
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
        adapters: false,
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
        let error = model.generate(&[vec![3], prompt.to_vec()], &options, &mut |_, _| {});
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
    let sample = Search::Sample {
        temperature: 0.0,
        top_k: Some(0),
        top_p: 1.5,
        seed: 0,
    };
    let faults = Generate {
        search: sample,
        max_new_tokens: 0,
        repetition_penalty: -1.0,
        ..Generate::default()
    };
    let names: Vec<_> = faults.faults().into_iter().map(|fault| fault.0).collect();
    let expected = [
        "max_new_tokens",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
    ];
    assert_eq!(names, expected);
    let message = refused(&[3], |o| o.repetition_penalty = f32::NAN);
    assert!(message.contains("`repetition_penalty` is NaN"), "{message}");
}
