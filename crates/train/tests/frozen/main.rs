//! Bit hashes of short training runs, of generation and of merged files, frozen for each
//! instruction set, in f32, in bf16, in f32 with bf16 weights, and with int8 weights.
//!
//! They say that a change left the arithmetic alone: every bit of losses, gradients and trained
//! values is in a hash. Where a change must alter bits, it is a commit of its own that says why,
//! and the hashes are frozen anew with `LOWRANK_FREEZE=1 cargo test -p lowrank-train --test
//! frozen`, on a machine that has every instruction set of the file. Each instruction set is named;
//! what this machine lacks is printed, not passed over in silence.

mod networks;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lowrank_engine::{BaseFormat, DType, Device, Gradients, Isa, Numerics, StepKey};
use lowrank_model::{
    Batch, BeamSearch, Generate, MergeOptions, Model, PassOptions, Sampling, Search, Targets, Task,
};
use lowrank_train::config::OptimizationSettings;
use lowrank_train::fingerprint;
use lowrank_train::optimizer::{Optimizer, clip_grad_norm};
use lowrank_train::reduce::StepGradients;
use networks::{NETWORKS, Network, Training};

/// Every instruction set of x86-64 that has hashes.
const FROZEN: [&str; 4] = ["scalar", "avx2", "avx512", "avx512_bf16"];

/// What is hashed.
#[derive(Default)]
struct Bits(Vec<u8>);

impl Bits {
    fn values(&mut self, values: &[f32]) {
        self.0.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }

    fn number(&mut self, value: f64) {
        self.0.extend(value.to_le_bytes());
    }

    fn hash(&self) -> String {
        fingerprint::of_bytes(&self.0)[..16].to_owned()
    }
}

/// Token ids of rows of these lengths, all below the networks' vocabulary.
fn ids(lengths: &[usize], seed: usize) -> (Vec<u32>, Vec<usize>) {
    let mut offsets = vec![0];
    lengths
        .iter()
        .for_each(|n| offsets.push(offsets[offsets.len() - 1] + n));
    let total = offsets[offsets.len() - 1];
    let id = |i: usize| (5 + (i * 37 + i * i * 3 + seed * 11) % 90) as u32;
    ((0..total).map(id).collect(), offsets)
}

/// The micro-batches of one optimizer step: over 384 tokens in all, and lengths across the tiles'
/// edges.
const MICRO_BATCHES: [&[usize]; 2] = [&[33, 1, 64, 17], &[96, 80, 2, 94, 31]];

/// Micro-batches of over 384 tokens each, up to which a factor's gradient is one sum that is then
/// added.
const LONG_BATCHES: [&[usize]; 2] = [&[120, 97, 128, 3, 90], &[64, 128, 128, 101]];

fn labels(task: Task, ids: &[u32], offsets: &[usize]) -> Vec<i64> {
    if task == Task::CausalLm {
        // Nothing predicts a row's first token; some others do not count either.
        let counts = |i: &usize| !i.is_multiple_of(5) && !offsets.contains(i);
        let label = |(i, &id): (usize, &u32)| if counts(&i) { i64::from(id) } else { -100 };
        return ids.iter().enumerate().map(label).collect();
    }
    (0..offsets.len() - 1).map(|i| (i % 3) as i64).collect()
}

/// Two optimizer steps of two micro-batches with dropout: losses, norms, every gradient of the last
/// one, trained values.
fn train(
    network: &Network,
    training: Training,
    micro_batches: [&[usize]; 2],
    device: &Device,
) -> Bits {
    let mut model = network.model(training, device);
    if model.wants_outliers() {
        let (input_ids, offsets) = ids(micro_batches[0], 0);
        let labels = labels(network.task, &input_ids, &offsets);
        let batch = Batch {
            input_ids: &input_ids,
            token_type_ids: None,
            offsets: &offsets,
        };
        let pass = PassOptions {
            grad_scale: 1.0,
            ..PassOptions::default()
        };
        let mut gradients = Gradients::zeros(device, model.trainables());
        let targets = Targets::Class(&labels);
        let found = model.find_outliers(&batch, targets, &pass, &mut gradients);
        found.expect("the batch fits");
    }
    let settings = OptimizationSettings::default();
    let mut optimizer = Optimizer::new(device, model.trainables(), &settings);
    let mut gradients = StepGradients::zeros(device, model.trainables(), micro_batches.len());
    let mut bits = Bits::default();
    for step in 0..2 {
        for (i, lengths) in micro_batches.iter().enumerate() {
            let (input_ids, offsets) = ids(lengths, 2 * step + i);
            let labels = labels(network.task, &input_ids, &offsets);
            let batch = Batch {
                input_ids: &input_ids,
                token_type_ids: None,
                offsets: &offsets,
            };
            let micro_step = (2 * step + i) as u64;
            let pass = PassOptions {
                dropout: Some(StepKey {
                    seed: 7,
                    micro_step,
                }),
                grad_scale: 1.0 / 9.0,
                // The second step recomputes: the same bits, by the tests of recomputation.
                recompute: (step == 1).into(),
                ..PassOptions::default()
            };
            let targets = Targets::Class(&labels);
            let (loss, _) = gradients
                .add(i, |own| model.forward_backward(&batch, targets, &pass, own))
                .expect("the batch fits");
            bits.number(loss);
        }
        bits.number(clip_grad_norm(device, gradients.sum_mut(), 0.5));
        optimizer.step(
            model.trainables_mut(),
            gradients.sum(),
            0.01,
            step as u64 + 1,
        );
    }
    let gradients = gradients.sum().iter();
    gradients.for_each(|gradient| bits.values(&gradient.read()));
    for (_, trainable) in model.trainables().iter() {
        bits.values(&trainable.value.read());
    }
    bits
}

/// Greedy, sampled and beam-searched tokens after prompts of several lengths, with the adapter
/// apart and merged.
fn generate(network: &Network, device: &Device) -> Bits {
    let mut model = network.model(Training::Lora, device);
    let prompts: Vec<Vec<u32>> = [1, 7, 33].map(|n| ids(&[n], n).0).into();
    let searches = [
        Search::Greedy,
        Search::Sample(Sampling {
            temperature: 0.9,
            top_k: Some(40),
            top_p: 0.95,
            seed: 3,
            ..Sampling::default()
        }),
        Search::Beam(BeamSearch {
            beams: 3,
            length_penalty: 0.8,
            ..BeamSearch::default()
        }),
    ];
    let mut bits = Bits::default();
    let is_int8 = device.numerics().weights == BaseFormat::Int8;
    for merged in [false, true] {
        // What is merged starts from the original weights.
        if merged && is_int8 {
            break;
        }
        if merged {
            model.merge_adapters().expect("it merges");
        }
        for search in searches {
            let options = Generate {
                search,
                max_new_tokens: 9,
                ..Generate::default()
            };
            let found = model.generate(&prompts, &options).expect("it generates");
            for generated in found {
                bits.0
                    .extend(generated.tokens.iter().flat_map(|id| id.to_le_bytes()));
                bits.number(generated.score.unwrap_or(0.0));
            }
        }
    }
    bits
}

/// The files of a merged model.
fn merge(network: &Network, device: &Device) -> Bits {
    let model: Model = network.model(Training::Lora, device);
    let [base, out] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    std::fs::write(
        base.path().join("config.json"),
        network.config().to_string(),
    )
    .expect("a file");
    let options = MergeOptions {
        dtype: Some(lowrank_formats::DType::F32),
        max_shard_bytes: 1 << 30,
        labels: None,
    };
    model
        .write_merged(base.path(), out.path(), &options)
        .expect("it merges");
    let file = out.path().join("model.safetensors");
    Bits(std::fs::read(file).expect("a file"))
}

fn hashes_of(isa: Isa) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let widened = Numerics {
        weights: BaseFormat::Bf16,
        ..Numerics::from(DType::F32)
    };
    let int8 = |activations: DType| Numerics {
        weights: BaseFormat::Int8,
        ..Numerics::from(activations)
    };
    for (name, numerics) in [
        ("f32", DType::F32.into()),
        ("bf16", DType::Bf16.into()),
        ("f32-bf16", widened),
        ("f32-int8", int8(DType::F32)),
        ("bf16-int8", int8(DType::Bf16)),
    ] {
        let is_int8 = numerics.weights == BaseFormat::Int8;
        let device = || Device::cpu_in(numerics, isa, 2).expect("threads start");
        for network in NETWORKS {
            let mut note = |what: &str, bits: Bits| {
                let key = format!("{} {name} {} {what}", isa.name(), network.name);
                found.insert(key.to_lowercase(), bits.hash());
            };
            for training in [Training::Lora, Training::Full, Training::BitFit] {
                if is_int8 && matches!(training, Training::Full) {
                    continue;
                }
                let bits = train(network, training, MICRO_BATCHES, &device());
                note(training.name(), bits);
            }
            let bits = train(network, Training::Lora, LONG_BATCHES, &device());
            note("lora long", bits);
            if network.task == Task::CausalLm {
                note("generate", generate(network, &device()));
            }
            if !is_int8 {
                note("merge", merge(network, &device()));
            }
        }
    }
    found
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen/hashes.txt")
}

fn frozen() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(key, hash)| (key.trim_end().to_owned(), hash.to_owned()))
        .collect()
}

/// Compares one instruction set with the file, or writes its lines anew.
fn check(name: &str) {
    let isa = Isa::from_name(name).expect("a name");
    if !isa.is_available() {
        println!("NOT TESTED: this processor has no {name}");
        return;
    }
    let found = hashes_of(isa);
    if std::env::var_os("LOWRANK_FREEZE").is_some() {
        let mut all = frozen();
        all.retain(|key, _| !key.starts_with(&format!("{name} ")));
        all.extend(found);
        let text = all.iter().fold(String::new(), |mut text, (key, hash)| {
            writeln!(text, "{key:<44} {hash}").expect("memory");
            text
        });
        std::fs::write(file(), text).expect("the file is written");
        return;
    }
    let frozen = frozen();
    let faults: Vec<String> = found
        .iter()
        .filter(|(key, hash)| frozen.get(*key) != Some(hash))
        .map(|(key, hash)| format!("{key}: frozen {:?}, found {hash}", frozen.get(key)))
        .collect();
    assert!(
        faults.is_empty(),
        "{} of {} hashes differ:\n{}",
        faults.len(),
        found.len(),
        faults.join("\n")
    );
}

// One test: freezing writes one file.
#[test]
fn runs_generation_and_merged_files_keep_their_bits() {
    FROZEN.iter().for_each(|name| check(name));
    let frozen = frozen();
    for name in FROZEN {
        let lines = frozen
            .keys()
            .filter(|key| key.starts_with(&format!("{name} ")));
        assert_eq!(
            lines.count(),
            3 * (5 * 5 + 2) + 2 * (5 * 3 + 2),
            "lines of {name}"
        );
    }
}
