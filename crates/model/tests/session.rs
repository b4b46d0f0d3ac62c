//! Sessions: what a request is answered does not depend on who else is there, when they came, how
//! prompts are cut or shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use lowrank_engine::{Device, Isa};
use lowrank_model::{
    AdapterSlot, BeamSearch, Event, Generate, Generated, LoadOptions, Model, Request, RequestId,
    Sampling, Search, Session, Task,
};
use lowrank_testkit::Golden;

/// Models with all that attention over a cache does here: full and windowed, norms first and last,
/// grouped heads, rotations.
const MODELS: [&str; 7] = [
    "gpt2-causal",
    "gpt_neo-causal",
    "opt-post-norm",
    "qwen3-causal",
    "gemma2-causal",
    "gemma3_text-causal",
    "phi3-longrope-long",
];

fn model(golden: &Golden, isa: Isa) -> Model {
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(isa, 2).expect("threads start");
    let (mut model, _) = Model::load(&golden.model_dir(), &options, &device).expect("it loads");
    let adapter = golden.adapter_dir().expect("the case has an adapter");
    model.load_adapter(&adapter).expect("it fits");
    model
}

/// Requests of every kind: searches, lengths, ends, adapters on and off, guidance.
fn requests(golden: &Golden) -> Vec<Request> {
    let beams = BeamSearch {
        beams: 3,
        ..BeamSearch::default()
    };
    let drawn = Sampling {
        temperature: 3.0,
        ..Sampling::default()
    };
    let settings = [
        Generate::default(),
        Generate {
            search: Search::Sample(drawn),
            ..Generate::default()
        },
        Generate {
            search: Search::Beam(beams),
            ..Generate::default()
        },
        Generate {
            adapter: AdapterSlot::BASE,
            ..Generate::default()
        },
        Generate {
            guidance_scale: 2.5,
            ..Generate::default()
        },
    ];
    let rows = golden.rows.iter().cycle().take(10).enumerate();
    rows.map(|(i, row)| {
        let prompt = row.input_ids[..row.input_ids.len().min(3 + 2 * i)].to_vec();
        let options = Generate {
            max_new_tokens: 3 + 5 * i % 11,
            eos: vec![2],
            ..settings[i % settings.len()].clone()
        };
        Request {
            prompt,
            options: options.into(),
            number: i,
            prefix: None,
        }
    })
    .collect()
}

/// Takes the events of a step; a request that fails is a fault here.
fn note(found: &mut BTreeMap<RequestId, Generated>, told: &mut Told, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Token(id, token) => told.entry(id).or_default().push(token),
            Event::Finished(id, generated) => {
                assert!(found.insert(id, generated).is_none(), "it ends once");
            }
            Event::Failed(_, error) => panic!("{error}"),
        }
    }
}

type Told = BTreeMap<RequestId, Vec<u32>>;

fn run(session: &mut Session<'_>, requests: &[Request]) -> Vec<Generated> {
    let add = |request: &Request| session.add(request.clone()).expect("it is taken in");
    let ids: Vec<RequestId> = requests.iter().map(add).collect();
    let (mut found, mut told) = (BTreeMap::new(), Told::new());
    while !session.is_empty() {
        note(&mut found, &mut told, session.step());
    }
    for (id, tokens) in &told {
        assert_eq!(&found[id].tokens, tokens, "what was told is what was found");
    }
    ids.iter().map(|id| found[id].clone()).collect()
}

fn alone(model: &Model, requests: &[Request]) -> Vec<Generated> {
    let one = |request: &Request| {
        let mut session = model.session().expect("a language model");
        run(&mut session, std::slice::from_ref(request)).remove(0)
    };
    requests.iter().map(one).collect()
}

#[test]
fn a_prefix_that_is_changed_gives_the_tokens_of_one_read_afresh() {
    for name in MODELS {
        let golden = Golden::open(name).expect("a golden case opens");
        let model = model(&golden, Isa::best());
        let rows: Vec<&Vec<u32>> = golden.rows.iter().map(|row| &row.input_ids).collect();
        let longest = rows
            .iter()
            .max_by_key(|row| row.len())
            .expect("there are rows");
        let whole = &longest[..longest.len().min(12)];
        // A chat that goes on, loses its last turns, and begins anew.
        let prompts = [&whole[..4], &whole[..7], whole, &whole[..6], &whole[1..5]];
        let options: Arc<Generate> = Generate {
            max_new_tokens: 4,
            ..Generate::default()
        }
        .into();
        let mut session = model.session().expect("a language model");
        let prefix = session.add_prefix(whole[..2].to_vec(), AdapterSlot::OWN);
        let prefix = prefix.expect("it is read");
        let mut read = Vec::new();
        for prompt in prompts {
            let before = prompt[..prompt.len() - 1].to_vec();
            read.push(session.change_prefix(prefix, before).expect("it is read"));
            let request = Request {
                prompt: prompt.to_vec(),
                options: options.clone(),
                number: 0,
                prefix: Some(prefix),
            };
            let id = session.add(request).expect("it fits");
            let mut found = None;
            while !session.is_empty() {
                for event in session.step() {
                    if let Event::Finished(of, generated) = event {
                        assert_eq!(of, id);
                        found = Some(generated.tokens);
                    }
                }
            }
            let afresh = model.generate(&[prompt.to_vec()], &options);
            let afresh = afresh.expect("it generates").remove(0).tokens;
            assert_eq!(found, Some(afresh), "{name}: {prompt:?}");
        }
        // What changes its rotations with its length is read anew there.
        if !name.contains("longrope") {
            assert_eq!(read[..4], [1, 3, whole.len() - 7, 0], "{name}");
        }
    }
}

#[test]
fn requests_that_join_and_leave_get_what_each_gets_alone() {
    let isas = [Isa::best(), Isa::Scalar].into_iter().cycle();
    for (name, isa) in MODELS.into_iter().zip(isas) {
        let golden = Golden::open(name).expect("a golden case opens");
        let model = model(&golden, isa);
        let requests = requests(&golden);
        let expected = alone(&model, &requests);
        for prefill in [usize::MAX, 7, 1] {
            let mut session = model.session().expect("a language model");
            session.limit_prefill(prefill);
            assert_eq!(run(&mut session, &requests), expected, "{name}, {prefill}");
            // One joins at every other step.
            let (mut found, mut told) = (BTreeMap::new(), Told::new());
            let mut ids = Vec::new();
            for request in &requests {
                ids.push(session.add(request.clone()).expect("it is taken in"));
                for _ in 0..2 {
                    note(&mut found, &mut told, session.step());
                }
            }
            while !session.is_empty() {
                note(&mut found, &mut told, session.step());
            }
            for (id, expected) in ids.iter().zip(&expected) {
                assert_eq!(&found[id], expected, "{name}, {prefill}");
            }
            assert_eq!(session.cached_tokens(), 0, "pages come back");
        }
    }
}

#[test]
fn a_shared_prefix_is_read_once_and_changes_no_bit() {
    for name in MODELS {
        let golden = Golden::open(name).expect("a golden case opens");
        let model = model(&golden, Isa::best());
        let prefix = [golden.rows[0].input_ids.clone(), vec![7; 12]].concat();
        let prefix = prefix[..prefix.len().min(21)].to_vec();
        let mut requests = requests(&golden);
        for request in &mut requests {
            let rest: Vec<u32> = request.prompt.iter().copied().take(4).collect();
            request.prompt = [prefix.clone(), rest].concat();
        }
        let expected = alone(&model, &requests);
        let mut session = model.session().expect("a language model");
        session.limit_prefill(5);
        let [on, off] = [AdapterSlot::OWN, AdapterSlot::BASE].map(|adapter| {
            let added = session.add_prefix(prefix.clone(), adapter);
            added.expect("it is read")
        });
        let held = session.cached_tokens();
        for request in &mut requests {
            request.prefix = Some(match request.options.adapter {
                AdapterSlot::BASE => off,
                _ => on,
            });
        }
        assert_eq!(run(&mut session, &requests), expected, "{name}");
        assert_eq!(session.cached_tokens(), held, "only the prefixes are left");
        let mut wrong = requests[0].clone();
        wrong.prefix = Some(off);
        let error = session.add(wrong.clone()).expect_err("another adapter");
        assert!(error.to_string().contains("another adapter"), "{error}");
        wrong.prefix = Some(on);
        wrong.prompt.clone_from(&prefix);
        let error = session.add(wrong.clone()).expect_err("nothing after it");
        assert!(error.to_string().contains("no token after it"), "{error}");
        session.remove_prefix(on);
        session.remove_prefix(off);
        let error = session.add(wrong).expect_err("it is gone");
        assert!(error.to_string().contains("does not hold"), "{error}");
        assert_eq!(session.cached_tokens(), 0);
    }
}

#[test]
fn a_request_that_is_removed_gives_what_it_has_and_leaves_the_others_alone() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let model = model(&golden, Isa::best());
    let requests: Vec<Request> = requests(&golden).into_iter().take(3).collect();
    let expected = alone(&model, &requests);
    let mut session = model.session().expect("a language model");
    let add = |request: &Request| session.add(request.clone()).expect("it is taken in");
    let ids: Vec<RequestId> = requests.iter().map(add).collect();
    let (mut found, mut told) = (BTreeMap::new(), Told::new());
    note(&mut found, &mut told, session.step());
    let partial = session.remove(ids[0]).expect("it is there");
    assert_eq!(partial.tokens, expected[0].tokens[..1]);
    assert_eq!(session.remove(ids[0]), None);
    while !session.is_empty() {
        note(&mut found, &mut told, session.step());
    }
    assert_eq!(
        [&found[&ids[1]], &found[&ids[2]]],
        [&expected[1], &expected[2]]
    );
    assert_eq!(session.cached_tokens(), 0);
}

#[test]
fn one_request_that_fails_does_not_end_the_others() {
    let golden = Golden::open("gpt2-causal").expect("a golden case opens");
    let model = model(&golden, Isa::best());
    let vocab = model.config().facts.vocab_size as u32;
    let mut requests: Vec<Request> = requests(&golden).into_iter().take(2).collect();
    let expected = alone(&model, &requests[1..]);
    requests[0].options = Arc::new(Generate {
        suppress: (0..vocab).collect(),
        ..Generate::default()
    });
    let mut session = model.session().expect("a language model");
    let add = |request: &Request| session.add(request.clone()).expect("it is taken in");
    let ids: Vec<RequestId> = requests.iter().map(add).collect();
    let (mut failed, mut found) = (Vec::new(), Vec::new());
    while !session.is_empty() {
        for event in session.step() {
            match event {
                Event::Failed(id, error) => failed.push((id, error.to_string())),
                Event::Finished(id, generated) => found.push((id, generated)),
                Event::Token(..) => {}
            }
        }
    }
    assert_eq!(found, [(ids[1], expected[0].clone())]);
    let [(id, message)] = &failed[..] else {
        panic!("one fails: {failed:?}");
    };
    assert_eq!(*id, ids[0]);
    assert!(message.contains("forbid every token"), "{message}");
}
