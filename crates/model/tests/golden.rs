//! Every family against transformers + peft on tiny random models: logits, loss, every gradient.
//! The numbers were computed in f64 by the peer (tests/golden, tools/golden).

use lowrank_engine::{Arithmetic, BaseFormat, DType, Device, Gradients, Isa, Numerics};
use lowrank_formats::peft::{AdapterConfig, LoraConfig};
use lowrank_model::{Batch, LoadOptions, Model, PassOptions, Recompute, Targets, Task};
use lowrank_testkit::{Golden, Labels};
use lowrank_testkit::{Tolerance, check_close, check_norm};

/// Logits: the peer's own f32 run differs from its f64 numbers by up to 1.2e-6 (case.json,
/// `peer_f32_error`).
const LOGITS: Tolerance = Tolerance {
    abs: 1e-5,
    rel: 1e-5,
};
/// Logits of language models: thirty products of values around 10 each. Measured worst 2.5e-5, the
/// peer's own f32 run alike.
const LM_LOGITS: Tolerance = Tolerance {
    abs: 5e-5,
    rel: 1e-5,
};
/// Gradients, relative by norm: the peer's own f32 run differs by up to 4.5e-6.
const GRADIENTS: f64 = 1e-5;

fn logits_tolerance(golden: &Golden) -> Tolerance {
    if task(golden) == Task::CausalLm {
        LM_LOGITS
    } else {
        LOGITS
    }
}

struct Rows {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    offsets: Vec<usize>,
    classes: Vec<i64>,
    values: Vec<f32>,
}

impl Rows {
    fn new(golden: &Golden) -> Self {
        let mut rows = Rows {
            input_ids: Vec::new(),
            token_type_ids: Vec::new(),
            offsets: vec![0],
            classes: Vec::new(),
            values: Vec::new(),
        };
        for row in &golden.rows {
            rows.input_ids.extend(&row.input_ids);
            let types = row
                .token_type_ids
                .clone()
                .unwrap_or_else(|| vec![0; row.input_ids.len()]);
            rows.token_type_ids.extend(types);
            rows.offsets.push(rows.input_ids.len());
        }
        match &golden.labels {
            Labels::Classes(classes) if golden.task == "regression" => {
                rows.values = classes.iter().map(|&c| c as f32).collect();
            }
            Labels::Classes(classes) => rows.classes.clone_from(classes),
            Labels::Values(values) => rows.values.clone_from(values),
            Labels::Tokens(tokens) => rows.classes = tokens.concat(),
            Labels::Multi(multi) => rows.values = multi.concat(),
        }
        rows
    }

    fn batch(&self) -> Batch<'_> {
        let token_type_ids = Some(self.token_type_ids.as_slice());
        Batch {
            input_ids: &self.input_ids,
            token_type_ids,
            offsets: &self.offsets,
        }
    }

    fn targets(&self, task: Task) -> Targets<'_> {
        match task {
            Task::SingleLabel | Task::TokenClassification | Task::CausalLm => {
                Targets::Class(&self.classes)
            }
            Task::Regression => Targets::Value(&self.values),
            Task::MultiLabel => Targets::Multi(&self.values),
        }
    }
}

fn task(golden: &Golden) -> Task {
    match golden.task.as_str() {
        "single_label" => Task::SingleLabel,
        "multi_label" => Task::MultiLabel,
        "regression" => Task::Regression,
        "token_classification" => Task::TokenClassification,
        "causal_lm" => Task::CausalLm,
        other => panic!("{}: unknown task {other}", golden.name),
    }
}

fn options(golden: &Golden) -> LoadOptions {
    LoadOptions::new(task(golden), golden.num_labels)
}

fn load(golden: &Golden, device: &Device) -> Model {
    let (mut model, report) =
        Model::load(&golden.model_dir(), &options(golden), device).expect("the model loads");
    let mut new = report.new.clone();
    new.sort();
    assert_eq!(new, golden.load.new, "{}: new tensors", golden.name);
    // Of GPT-2's stored masks transformers names one kind; they hold nothing, so that nothing is
    // said of them here.
    let unused = golden.load.unused.iter();
    let unused = unused
        .filter(|name| !name.ends_with(".masked_bias"))
        .count();
    assert_eq!(
        report.unused.len(),
        unused,
        "{}: unused tensors {:?}",
        golden.name,
        report.unused
    );
    match golden.adapter_dir() {
        Some(dir) => model
            .load_adapter(&dir)
            .map(|_| ())
            .unwrap_or_else(|e| panic!("{}: {e}", golden.name)),
        None => model
            .train_all()
            .map(|_| ())
            .expect("everything can be trained"),
    }
    model
}

fn cases() -> Vec<Golden> {
    let names = Golden::names().expect("golden files are in the repository");
    assert!(names.len() >= 20, "only {} golden cases", names.len());
    let open = |name: &String| Golden::open(name).expect("a golden case opens");
    names
        .iter()
        .map(open)
        .filter(|g| g.steps.is_empty() && g.hyper.is_none())
        .collect()
}

fn check_case(golden: &Golden, device: &Device, recompute: bool) {
    let model = load(golden, device);
    let rows = Rows::new(golden);
    let targets = rows.targets(model.task());
    let found = model
        .evaluate(&rows.batch(), targets)
        .expect("the batch fits");
    let (sum, count) = (found.loss_sum, found.counted);
    let logits = model.logits(&rows.batch()).expect("the batch fits");
    check_close(
        &format!("{} logits", golden.name),
        &logits,
        &golden.logits().data,
        logits_tolerance(golden),
    );
    if model.task() == Task::CausalLm
        && let Targets::Class(labels) = targets
    {
        let best = |row: &[f32]| row.iter().copied().fold(f32::MIN, f32::max);
        let rows = logits.chunks_exact(logits.len() / labels.len());
        let is_hit = |(row, label): &(&[f32], &i64)| {
            usize::try_from(**label).is_ok_and(|label| row[label] == best(row))
        };
        let hits = rows.zip(&labels[1..]).filter(is_hit).count();
        assert_eq!(found.hits, hits, "{}", golden.name);
    }
    let loss = Tolerance::new(1e-5, 1e-5);
    check_close(
        &format!("{} loss", golden.name),
        &[sum / count as f64],
        &[golden.loss],
        loss,
    );

    let mut gradients = Gradients::zeros(device, model.trainables());
    let pass = PassOptions {
        dropout: None,
        grad_scale: 1.0 / count as f32,
        recompute: recompute.into(),
        ..PassOptions::default()
    };
    model
        .forward_backward(&rows.batch(), targets, &pass, &mut gradients)
        .expect("the batch fits");
    let mut names: Vec<&str> = model
        .trainables()
        .iter()
        .map(|(_, t)| t.name.as_str())
        .collect();
    names.sort_unstable();
    let mut expected: Vec<&str> = golden.grads().map(|(key, _)| key).collect();
    expected.sort_unstable();
    assert_eq!(names, expected, "{}: what is trained", golden.name);
    for (id, trainable) in model.trainables().iter() {
        let found = model.as_saved(id, gradients.get(id).read());
        if let Err(mismatch) = golden.compare_grad(&trainable.name, &found, GRADIENTS) {
            panic!("{} gradient of {}: {mismatch}", golden.name, trainable.name);
        }
    }
}

#[test]
fn logits_losses_and_every_gradient_equal_the_peers() {
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    for golden in cases() {
        check_case(&golden, &device, false);
    }
}

/// Relative error by norm of bf16 runs of tiny models, whose few units average little out: logits
/// 3.7% and gradients 15.6% at worst (gpt_neo, whose scores are not scaled). A wrong sign or a
/// missing term gives 100% and more.
const BF16_LOGITS: f64 = 0.05;
const BF16_GRADIENTS: f64 = 0.2;

/// bf16 weights, all else in f32.
const WIDENED: Numerics = Numerics {
    activations: DType::F32,
    weights: BaseFormat::Bf16,
    arithmetic: Arithmetic::F32,
};
/// The same errors where only frozen weights are rounded: 2.1% and 13.6% at worst.
const WIDENED_LOGITS: f64 = 0.03;
const WIDENED_GRADIENTS: f64 = 0.17;

/// ‖found - wanted‖ / ‖wanted‖ over several tensors.
fn norm_error<'a>(pairs: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> f64 {
    let (mut error, mut size) = (0.0f64, 0.0f64);
    for (found, wanted) in pairs {
        assert_eq!(found.len(), wanted.len());
        for (&f, &w) in found.iter().zip(wanted) {
            error += (f64::from(f) - f64::from(w)).powi(2);
            size += f64::from(w).powi(2);
        }
    }
    (error / size).sqrt()
}

struct Pass {
    logits: Vec<f32>,
    loss: f64,
    gradients: Vec<(String, Vec<f32>)>,
}

fn run_pass(golden: &Golden, device: &Device, recompute: bool) -> Pass {
    let model = load(golden, device);
    let rows = Rows::new(golden);
    let targets = rows.targets(model.task());
    let mut gradients = Gradients::zeros(device, model.trainables());
    let pass = PassOptions {
        grad_scale: 1.0 / targets.count() as f32,
        recompute: recompute.into(),
        ..PassOptions::default()
    };
    let (loss, _) = model
        .forward_backward(&rows.batch(), targets, &pass, &mut gradients)
        .expect("the batch fits");
    let of = |(id, t): (_, &lowrank_engine::Trainable)| {
        let gradient = model.as_saved(id, gradients.get(id).read());
        (t.name.clone(), gradient)
    };
    Pass {
        logits: model.logits(&rows.batch()).expect("the batch fits"),
        loss,
        gradients: model.trainables().iter().map(of).collect(),
    }
}

#[test]
fn bf16_follows_the_peer_on_every_case() {
    follows_the_peer(DType::Bf16.into(), [BF16_LOGITS, BF16_GRADIENTS]);
}

#[test]
fn bf16_weights_multiplied_in_f32_follow_the_peer_on_every_case() {
    follows_the_peer(WIDENED, [WIDENED_LOGITS, WIDENED_GRADIENTS]);
}

/// Every case on every instruction set, with these errors of logits and gradients at most.
fn follows_the_peer(numerics: Numerics, [most_of_logits, most_of_gradients]: [f64; 2]) {
    for isa in Isa::available() {
        println!("golden cases in {numerics} on {}", isa.name());
        let device = Device::cpu_in(numerics, isa, 2).expect("threads start");
        for golden in cases() {
            let pass = run_pass(&golden, &device, false);
            let logits = norm_error([(&pass.logits[..], &golden.logits().data[..])].into_iter());
            let wanted: std::collections::BTreeMap<_, _> = golden.grads().collect();
            let pairs = (pass.gradients.iter())
                .map(|(name, found)| (&found[..], &wanted[name.as_str()].data[..]));
            let gradients = norm_error(pairs);
            println!(
                "{:36} logits {logits:.4} gradients {gradients:.4}",
                golden.name
            );
            assert!(
                logits <= most_of_logits,
                "{}: logits are off by {logits}",
                golden.name
            );
            assert!(
                gradients <= most_of_gradients,
                "{}: gradients are off by {gradients}",
                golden.name
            );
        }
    }
}

#[test]
fn bf16_has_the_same_bits_recomputed_and_for_any_threads() {
    let one = Device::cpu_in(DType::Bf16, Isa::best(), 1).expect("threads start");
    let three = Device::cpu_in(DType::Bf16, Isa::best(), 3).expect("threads start");
    for golden in cases() {
        let (a, b) = (
            run_pass(&golden, &one, false),
            run_pass(&golden, &three, true),
        );
        assert_eq!(a.logits, b.logits, "{}", golden.name);
        assert_eq!(a.loss.to_bits(), b.loss.to_bits(), "{}", golden.name);
        for ((name, a), (_, b)) in a.gradients.iter().zip(&b.gradients) {
            assert_eq!(a, b, "{} {name}", golden.name);
        }
    }
}

#[test]
fn every_instruction_set_gives_the_peers_numbers() {
    for isa in Isa::available() {
        println!("golden cases on {}", isa.name());
        let device = Device::cpu(isa, 1).expect("threads start");
        for name in [
            "bert-all-linear-rslora",
            "roberta-single-label",
            "bert-full",
            "gpt2-full",
            "gpt_neo-causal",
        ] {
            check_case(
                &Golden::open(name).expect("a golden case opens"),
                &device,
                false,
            );
        }
    }
}

#[test]
fn recomputed_blocks_give_the_same_gradients() {
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    for name in [
        "bert-patterns",
        "roberta-all-linear",
        "roberta-full",
        "gpt2-full",
        "gpt_neo-causal",
        "opt-post-norm",
    ] {
        check_case(
            &Golden::open(name).expect("a golden case opens"),
            &device,
            true,
        );
    }
}

#[test]
fn an_adapter_survives_load_and_save_byte_for_byte() {
    let device = Device::cpu(Isa::best(), 1).expect("threads start");
    for golden in cases() {
        // peft writes keys here that nothing under that name is trained by: a second save does not
        // repeat them.
        let Some(dir) = golden
            .adapter_dir()
            .filter(|_| golden.saved_by_peft_but_not_trained.is_empty())
        else {
            continue;
        };
        if !dir.join("adapter_model.safetensors").exists() {
            continue; // This adapter is a .bin.
        }
        let model = load(&golden, &device);
        let out = tempfile::tempdir().expect("a folder");
        model
            .save_adapter(out.path(), None)
            .expect("the adapter is saved");
        let read = |dir: &std::path::Path| {
            std::fs::read(dir.join("adapter_model.safetensors")).expect("weights")
        };
        assert!(
            read(&dir) == read(out.path()),
            "{}: the tensor file changed",
            golden.name
        );
        let (before, after) = (AdapterConfig::read(&dir), AdapterConfig::read(out.path()));
        let (before, after) = (before.expect("the peer's"), after.expect("our config"));
        let rank = |config: &AdapterConfig| config.lora().map(|config| config.r);
        assert_eq!(before.method(), after.method(), "{}", golden.name);
        assert_eq!(rank(&before), rank(&after), "{}", golden.name);
    }
}

#[test]
fn without_the_adapter_the_logits_are_the_bases() {
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    for golden in cases() {
        let Some(expected) = golden.logits_base() else {
            continue;
        };
        let (model, _) =
            Model::load(&golden.model_dir(), &options(&golden), &device).expect("the model loads");
        let rows = Rows::new(&golden);
        let logits = model.logits(&rows.batch()).expect("the batch fits");
        check_close(
            &format!("{} base logits", golden.name),
            &logits,
            &expected.data,
            logits_tolerance(&golden),
        );
    }
}

#[test]
fn fresh_adapters_change_no_bit_of_the_logits() {
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let golden = Golden::open("roberta-single-label").expect("a golden case opens");
    let rows = Rows::new(&golden);
    let (mut model, _) =
        Model::load(&golden.model_dir(), &options(&golden), &device).expect("the model loads");
    let before = model.logits(&rows.batch()).expect("the batch fits");
    let config = LoraConfig {
        r: 4,
        ..LoraConfig::default()
    };
    model.attach_lora(&config, 7).expect("adapters attach");
    let after = model.logits(&rows.batch()).expect("the batch fits");
    assert_eq!(before, after);
    assert_eq!(
        model.base_logits(&rows.batch()).expect("the batch fits"),
        before
    );
}

#[test]
fn the_plan_counts_what_the_processor_counts() {
    for golden in cases() {
        let rows = Rows::new(&golden);
        let run = |device: &Device| {
            let model = load(&golden, device);
            let mut gradients = Gradients::zeros(device, model.trainables());
            let options = PassOptions {
                dropout: None,
                grad_scale: 1.0,
                recompute: Recompute::Off,
                ..PassOptions::default()
            };
            model
                .forward_backward(
                    &rows.batch(),
                    rows.targets(model.task()),
                    &options,
                    &mut gradients,
                )
                .expect("runs");
            drop(gradients);
            (device.peak_memory(), device.flops())
        };
        let in_f32 = Numerics {
            arithmetic: Arithmetic::F32,
            ..Numerics::from(DType::Bf16)
        };
        for numerics in [DType::F32.into(), DType::Bf16.into(), WIDENED, in_f32] {
            let cpu = Device::cpu_in(numerics, Isa::best(), 2).expect("threads start");
            let (planned, counted) = (run(&Device::dry_like(&cpu)), run(&cpu));
            assert_eq!(planned, counted, "{}, {numerics}", golden.name);
        }
    }
}

#[test]
fn the_order_of_rows_and_the_number_of_threads_change_no_bit() {
    let golden = Golden::open("bert-long-rows").expect("a golden case opens");
    let rows = Rows::new(&golden);
    let one = Device::cpu(Isa::best(), 1).expect("threads start");
    let three = Device::cpu(Isa::best(), 3).expect("threads start");
    let model = load(&golden, &one);
    let logits = model.logits(&rows.batch()).expect("the batch fits");
    assert_eq!(
        load(&golden, &three)
            .logits(&rows.batch())
            .expect("the batch fits"),
        logits
    );
    let mut reversed = Golden::open("bert-long-rows").expect("a golden case opens");
    reversed.rows.reverse();
    let other = Rows::new(&reversed);
    let mut back = model.logits(&other.batch()).expect("the batch fits");
    back = back
        .chunks(golden.num_labels)
        .rev()
        .flatten()
        .copied()
        .collect();
    assert_eq!(back, logits);
}

#[test]
fn a_masked_label_changes_nothing() {
    let device = Device::cpu(Isa::best(), 2).expect("threads start");
    let golden = Golden::open("bert-token-classification").expect("a golden case opens");
    let model = load(&golden, &device);
    let rows = Rows::new(&golden);
    let all: Vec<i64> = rows.classes.iter().map(|&c| c.max(0)).collect();
    let masked = |keep: &dyn Fn(usize) -> bool| -> Vec<i64> {
        let of = |(i, &c): (usize, &i64)| if keep(i) { c } else { -100 };
        all.iter().enumerate().map(of).collect()
    };
    let loss_of = |classes: &[i64]| {
        let mut gradients = Gradients::zeros(&device, model.trainables());
        let options = PassOptions {
            dropout: None,
            grad_scale: 1.0,
            label_smoothing: 0.0,
            recompute: Recompute::Off,
        };
        let targets = Targets::Class(classes);
        let loss = model.forward_backward(&rows.batch(), targets, &options, &mut gradients);
        let ids = model.trainables().iter().map(|(id, _)| id);
        let values: Vec<f32> = ids.flat_map(|id| gradients.get(id).read()).collect();
        (loss.expect("runs").0, values)
    };
    let (whole, whole_gradients) = loss_of(&all);
    let (even, even_gradients) = loss_of(&masked(&|i| i % 2 == 0));
    let (odd, odd_gradients) = loss_of(&masked(&|i| i % 2 == 1));
    assert!(even > 0.0 && odd > 0.0);
    // Two halves of the labels, the other half masked, are the whole.
    check_close("loss", &[even + odd], &[whole], LOGITS);
    let sum: Vec<f32> = even_gradients
        .iter()
        .zip(&odd_gradients)
        .map(|(a, b)| a + b)
        .collect();
    check_norm("gradients", &sum, &whole_gradients, GRADIENTS, 0.0);
    let (none, gradients) = loss_of(&masked(&|_| false));
    assert_eq!(none, 0.0);
    assert!(
        gradients.iter().all(|&g| g == 0.0),
        "nothing is learned from masked labels"
    );
}

/// transformers rotates all rows of a batch by the longest of them.
#[test]
fn a_rows_own_length_chooses_its_rotation() {
    let golden = Golden::open("phi3-longrope-long").expect("a golden case");
    let model = load(
        &golden,
        &Device::cpu(Isa::best(), 2).expect("threads start"),
    );
    let ids: Vec<u32> = (3..27).collect();
    let logits = |offsets: &[usize], ids: &[u32]| {
        let batch = Batch {
            input_ids: ids,
            token_type_ids: None,
            offsets,
        };
        model.logits(&batch).expect("the batch fits")
    };
    // Ten tokens are the original length.
    let both = logits(&[0, 10, 24], &ids);
    let (short, long) = (logits(&[0, 10], &ids[..10]), logits(&[0, 14], &ids[10..]));
    assert_eq!(both, [short.clone(), long].concat());
    let eleven = logits(&[0, 11], &ids[..11]);
    assert_ne!(eleven[..short.len()], short[..]);
}
