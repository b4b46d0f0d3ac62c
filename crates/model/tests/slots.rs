//! Sequences with adapters of their own in one batch: each has, bit for bit, the logits that its
//! adapter alone gives, on every instruction set and in every precision.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_engine::{DType, Device, Isa};
use lowrank_formats::peft::{
    AdapterConfig, AdapterFile, BitFitConfig, InitLoraWeights, LoraConfig, TargetModules,
};
use lowrank_model::{
    AdapterSlot, Batch, Event, Generate, Generated, LoadOptions, Model, Request, RequestId, Task,
};
use lowrank_testkit::Golden;

/// Golden models, and the layers that two adapters adapt, each its own.
const CASES: [(&str, Task, [&[&str]; 2]); 6] = [
    (
        "gpt2-causal",
        Task::CausalLm,
        [&["c_attn", "c_fc"], &["c_attn.q", "c_attn.v"]],
    ),
    (
        "opt-causal",
        Task::CausalLm,
        [&["q_proj", "fc2"], &["v_proj", "out_proj", "fc2"]],
    ),
    (
        "gpt_neo-causal",
        Task::CausalLm,
        [&["c_fc"], &["q_proj", "c_fc", "c_proj"]],
    ),
    (
        "bert-single-label",
        Task::SingleLabel,
        [&["query", "dense"], &["value", "dense"]],
    ),
    (
        "gpt2-single-label",
        Task::SingleLabel,
        [&["c_attn"], &["c_proj", "c_fc"]],
    ),
    (
        "roberta-token-classification",
        Task::TokenClassification,
        [&["key"], &["query", "dense"]],
    ),
];

/// Lengths of sequences, with the adapter of each: neighbours share one, and one sequence has a
/// single token.
const SEQUENCES: [(usize, usize); 8] = [
    (7, 1),
    (3, 1),
    (17, 0),
    (1, 2),
    (11, 2),
    (14, 1),
    (2, 0),
    (5, 2),
];

struct Case {
    golden: Golden,
    task: Task,
}

struct Loaded {
    config: AdapterConfig,
    file: AdapterFile,
}

impl Case {
    fn model(&self, device: &Device) -> Model {
        let options = LoadOptions::new(self.task, self.golden.num_labels);
        let loaded = Model::load(&self.golden.model_dir(), &options, device);
        loaded.expect("the model loads").0
    }

    /// An adapter of low-rank terms alone, neither of whose factors is zero.
    fn adapter(&self, targets: &[&str], seed: u64, dir: &Path) -> Loaded {
        let device = Device::cpu(Isa::best(), 1).expect("threads start");
        let mut model = self.model(&device);
        let names = targets.iter().map(|name| (*name).to_owned()).collect();
        let config = LoraConfig {
            r: 2 + seed as usize,
            lora_alpha: 7.0,
            target_modules: Some(TargetModules::List(names)),
            init_lora_weights: InitLoraWeights::Random,
            ..LoraConfig::default()
        };
        model.attach_lora(&config, seed).expect("it attaches");
        model.save_adapter(dir, None).expect("it is saved");
        let mut config = LoraConfig::read(dir).expect("a configuration");
        (config.task_type, config.modules_to_save) = (None, None);
        let mut file = AdapterFile::read(dir).expect("tensors");
        let whole = |key: &str| !key.contains("lora_");
        let heads: Vec<String> = file.iter().map(|(key, _)| key.to_owned()).collect();
        for key in heads.iter().filter(|key| whole(key)) {
            file = file.without(key);
        }
        let config = config.into();
        Loaded { config, file }
    }
}

fn ids(sequence: usize, len: usize) -> Vec<u32> {
    (0..len)
        .map(|i| (3 + (i * 31 + sequence * 17 + i * i) % 90) as u32)
        .collect()
}

fn case(name: &str, task: Task) -> Case {
    let golden = Golden::open(name).expect("a golden case opens");
    Case { golden, task }
}

#[test]
fn sequences_with_adapters_of_their_own_have_the_bits_of_each_alone() {
    for (name, task, targets) in CASES {
        let case = case(name, task);
        let dir = tempfile::tempdir().expect("a folder");
        let adapters = [0, 1].map(|i| {
            let dir = dir.path().join(i.to_string());
            case.adapter(targets[i], 1 + i as u64, &dir)
        });
        for isa in Isa::available() {
            for precision in [DType::F32, DType::Bf16] {
                let device = Device::cpu_in(precision, isa, 2).expect("threads start");
                check(&case, &adapters, &device);
            }
        }
    }
}

fn check(case: &Case, adapters: &[Loaded; 2], device: &Device) {
    let name = format!("{} on {device:?}", case.golden.name);
    // Each alone, attached as a model's only adapter.
    let alone = [None, Some(&adapters[0]), Some(&adapters[1])].map(|adapter| {
        let mut model = case.model(device);
        if let Some(Loaded { config, file }) = adapter {
            let attached = model.attach_tensors(config, file.clone());
            attached.expect("it attaches");
        }
        model
    });
    let mut model = case.model(device);
    let mut slots = vec![AdapterSlot::BASE];
    for (i, Loaded { config, file }) in adapters.iter().enumerate() {
        let slot = model.add_adapter(&i.to_string(), config, file.clone());
        slots.push(slot.expect("it is loaded"));
    }
    let (mut input_ids, mut offsets, mut expected) = (Vec::new(), vec![0], Vec::new());
    for (i, (len, adapter)) in SEQUENCES.into_iter().enumerate() {
        let own = ids(i, len);
        let batch = Batch {
            input_ids: &own,
            token_type_ids: None,
            offsets: &[0, len],
        };
        expected.extend(alone[adapter].logits(&batch).expect("logits"));
        input_ids.extend(own);
        offsets.push(input_ids.len());
    }
    let batch = Batch {
        input_ids: &input_ids,
        token_type_ids: None,
        offsets: &offsets,
    };
    let of = SEQUENCES.map(|(_, adapter)| slots[adapter]);
    let found = model.logits_by_slot(&batch, &of).expect("logits");
    assert!(bits(&found) == bits(&expected), "{name}");
    // The comparison can fail: the adapters differ from each other and from none.
    for other in &slots {
        let of = [*other; SEQUENCES.len()];
        let same = model.logits_by_slot(&batch, &of).expect("logits");
        assert!(bits(&same) != bits(&expected), "{name}");
    }
    let base = model.logits(&batch).expect("logits");
    let of = [AdapterSlot::BASE; SEQUENCES.len()];
    let none = model.logits_by_slot(&batch, &of).expect("logits");
    assert!(bits(&base) == bits(&none), "{name}");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What each prompt gets, with its adapter; all in one session.
fn generated(model: &Model, prompts: &[(Vec<u32>, AdapterSlot)]) -> Vec<Generated> {
    let mut session = model.session().expect("a language model");
    session.limit_prefill(5);
    let ids: Vec<RequestId> = (prompts.iter().enumerate())
        .map(|(number, (prompt, adapter))| {
            let options = Generate {
                adapter: *adapter,
                max_new_tokens: 6 + number % 3,
                guidance_scale: if number == 2 { 1.5 } else { 1.0 },
                ..Generate::default()
            };
            let request = Request {
                prompt: prompt.clone(),
                options: options.into(),
                number,
                prefix: None,
            };
            session.add(request).expect("it is taken in")
        })
        .collect();
    let mut found = BTreeMap::new();
    while !session.is_empty() {
        for event in session.step() {
            match event {
                Event::Token(..) => {}
                Event::Finished(id, generated) => drop(found.insert(id, generated)),
                Event::Failed(_, error) => panic!("{error}"),
            }
        }
    }
    ids.iter().map(|id| found[id].clone()).collect()
}

#[test]
fn requests_of_a_session_have_adapters_of_their_own() {
    for (name, task, targets) in &CASES[..3] {
        let case = case(name, *task);
        let dir = tempfile::tempdir().expect("a folder");
        let adapters = [0, 1].map(|i| {
            let dir = dir.path().join(i.to_string());
            case.adapter(targets[i], 1 + i as u64, &dir)
        });
        for precision in [DType::F32, DType::Bf16] {
            let device = Device::cpu_in(precision, Isa::best(), 2).expect("threads start");
            let mut model = case.model(&device);
            let mut slots = vec![AdapterSlot::BASE];
            for (i, Loaded { config, file }) in adapters.iter().enumerate() {
                let slot = model.add_adapter(&i.to_string(), config, file.clone());
                slots.push(slot.expect("it is loaded"));
            }
            let prompts = SEQUENCES.into_iter().enumerate();
            let prompts: Vec<_> = prompts
                .map(|(i, (len, adapter))| (ids(i, len), slots[adapter]))
                .collect();
            let found = generated(&model, &prompts);
            for (i, slot) in slots.iter().enumerate() {
                let mut alone = case.model(&device);
                if let Some(Loaded { config, file }) = i.checked_sub(1).map(|at| &adapters[at]) {
                    let attached = alone.attach_tensors(config, file.clone());
                    attached.expect("it attaches");
                }
                let own = prompts
                    .iter()
                    .map(|(prompt, _)| (prompt.clone(), AdapterSlot::OWN));
                let expected = generated(&alone, &own.collect::<Vec<_>>());
                let of = |at: &usize| prompts[*at].1 == *slot;
                for at in (0..prompts.len()).filter(of) {
                    assert_eq!(found[at], expected[at], "{name}, prompt {at}");
                }
                assert_ne!(found, expected, "{name}: the adapters differ");
            }
        }
    }
}

#[test]
fn slots_are_named_removed_and_refused_with_a_reason() {
    let device = Device::cpu(Isa::best(), 1).expect("threads start");
    let dir = tempfile::tempdir().expect("a folder");
    let opt = case("opt-causal", Task::CausalLm);
    let Loaded { config, file } = opt.adapter(&["q_proj"], 1, dir.path());
    let mut model = opt.model(&device);
    let before = device.memory().total();
    let first = model.add_adapter("a", &config, file.clone()).expect("fits");
    let second = model.add_adapter("b", &config, file.clone()).expect("fits");
    assert_eq!(model.adapter_slot("b"), Some(second));
    let refused = |result: Result<AdapterSlot, _>, words: &str| {
        let error: lowrank_model::ModelError = result.expect_err("it is refused");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(
        model.add_adapter("a", &config, file.clone()),
        "`a` is loaded already",
    );
    let mut biased = config.lora().expect("LoRA").clone();
    biased.bias = lowrank_formats::peft::Bias::All;
    refused(
        model.add_adapter("c", &biased.into(), file.clone()),
        "trains biases too",
    );
    let bitfit = BitFitConfig::default().into();
    refused(
        model.add_adapter("c", &bitfit, file.clone()),
        "trains biases too",
    );
    // What does not fit leaves nothing behind.
    let held = device.memory().total();
    let key = file.iter().next().expect("a tensor").0.to_owned();
    refused(
        model.add_adapter("c", &config, file.clone().without(&key)),
        "does not fit",
    );
    assert_eq!(device.memory().total(), held);
    assert!(
        model.train_all().is_err(),
        "loaded adapters are not trained"
    );
    let batch = Batch {
        input_ids: &[5, 6, 7],
        token_type_ids: None,
        offsets: &[0, 2, 3],
    };
    let slots = [first, second];
    model.logits_by_slot(&batch, &slots).expect("logits");
    let few = model.logits_by_slot(&batch, &slots[..1]).expect_err("one");
    assert_eq!(few.to_string(), "1 adapter slots for 2 sequences");
    assert!(model.remove_adapter(first) && !model.remove_adapter(first));
    let gone = model.logits_by_slot(&batch, &slots).expect_err("removed");
    assert_eq!(gone.to_string(), "slot 2 holds no adapter (any more)");
    assert_eq!(model.adapters().collect::<Vec<_>>(), [("b", second)]);
    assert!(model.remove_adapter(second));
    assert_eq!(device.memory().total(), before);

    let deberta = case("deberta-v2-key", Task::SingleLabel);
    let mut model = deberta.model(&device);
    refused(model.add_adapter("a", &config, file), "projects positions");
}
