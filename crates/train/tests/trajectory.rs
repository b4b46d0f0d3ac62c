//! Some optimizer steps beside transformers + peft: unequal lengths, accumulation of unequal
//! micro-batches, warm-up, clipping, weight decay, dropout off. The numbers were computed by the
//! peer (tests/golden, tools/golden).
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use lowrank_engine::{Device, Gradients, Isa};
use lowrank_formats::peft::AdapterConfig;
use lowrank_model::{Batch, LoadOptions, Model, PassOptions, Targets, Task};
use lowrank_testkit::{Golden, Labels, Tolerance, check_close};
use lowrank_train::config::OptimizationSettings;
use lowrank_train::optimizer::{Optimizer, clip_grad_norm};
use lowrank_train::schedule::{Schedule, SchedulerType};

/// Losses: the peer's own f32 run differs from its f64 numbers by up to 1.2e-6 (case.json,
/// `peer_f32_error`).
const LOSS: Tolerance = Tolerance {
    abs: 1e-5,
    rel: 1e-5,
};
/// Norms of gradients and learning rates.
const NORM: Tolerance = Tolerance {
    abs: 1e-5,
    rel: 1e-4,
};
/// Values of the final adapter, element by element: the peer's own f32 run differs by up to 4.8e-7.
const VALUES: Tolerance = Tolerance {
    abs: 2e-5,
    rel: 1e-4,
};

struct Micro {
    input_ids: Vec<u32>,
    offsets: Vec<usize>,
    labels: Vec<i64>,
}

fn micro(golden: &Golden, rows: &[usize]) -> Micro {
    let mut batch = Micro {
        input_ids: Vec::new(),
        offsets: vec![0],
        labels: Vec::new(),
    };
    for &row in rows {
        batch.input_ids.extend(&golden.rows[row].input_ids);
        batch.offsets.push(batch.input_ids.len());
        match &golden.labels {
            Labels::Classes(classes) => batch.labels.push(classes[row]),
            Labels::Tokens(tokens) => batch.labels.extend(&tokens[row]),
            Labels::Values(_) | Labels::Multi(_) => panic!("a trajectory has classes or tokens"),
        }
    }
    batch
}

fn check_trajectory(name: &str, threads: usize, recompute: bool) {
    let golden = Golden::open(name).expect("a golden case opens");
    let hyper = golden
        .hyper
        .as_ref()
        .expect("a trajectory has hyper-parameters");
    let device = Device::cpu(Isa::best(), threads).expect("threads start");
    let options = LoadOptions {
        task: match golden.task.as_str() {
            "causal_lm" => Task::CausalLm,
            _ => Task::SingleLabel,
        },
        num_labels: golden.num_labels,
        seed: 1,
        ignore_mismatched_sizes: false,
    };
    let (mut model, _) =
        Model::load(&golden.model_dir(), &options, &device).expect("the model loads");
    model
        .load_adapter(&golden.adapter_dir().expect("a start"))
        .expect("the adapter loads");
    let settings = OptimizationSettings {
        learning_rate: hyper.lr,
        weight_decay: hyper.weight_decay,
        adam_beta1: hyper.betas[0],
        adam_beta2: hyper.betas[1],
        adam_epsilon: hyper.eps,
        lr_scheduler_type: SchedulerType::Linear,
        loraplus_lr_ratio: hyper.loraplus_lr_ratio,
        ..OptimizationSettings::default()
    };
    assert_eq!(hyper.schedule, "linear");
    let schedule = Schedule {
        kind: SchedulerType::Linear,
        learning_rate: hyper.lr,
        num_warmup_steps: hyper.warmup_steps as u64,
        num_training_steps: hyper.num_steps as u64,
        num_cycles: 0.5,
        lr_end: 0.0,
        power: 1.0,
    };
    let mut optimizer = Optimizer::new(&device, model.trainables(), &settings);
    let mut gradients = Gradients::zeros(&device, model.trainables());
    assert!(hyper.num_steps >= 5);
    assert_eq!(golden.steps.len(), hyper.num_steps);
    for (i, step) in golden.steps.iter().enumerate() {
        let batches: Vec<Micro> = step
            .micro_batches
            .iter()
            .map(|rows| micro(&golden, rows))
            .collect();
        let count = |b: &Micro| Targets::Class(&b.labels).count();
        let targets: usize = batches.iter().map(count).sum();
        gradients.clear();
        let mut sum = 0.0;
        for b in &batches {
            let batch = Batch {
                input_ids: &b.input_ids,
                token_type_ids: None,
                offsets: &b.offsets,
            };
            let pass = PassOptions {
                dropout: None,
                grad_scale: 1.0 / targets as f32,
                recompute: recompute.into(),
                ..PassOptions::default()
            };
            let targets = Targets::Class(&b.labels);
            sum += model
                .forward_backward(&batch, targets, &pass, &mut gradients)
                .expect("the batch fits")
                .0;
        }
        let norm = clip_grad_norm(&device, &mut gradients, hyper.max_norm);
        let lr = schedule.lr_at(i as u64);
        check_close(
            &format!("{name} loss of step {i}"),
            &[sum / targets as f64],
            &[step.loss],
            LOSS,
        );
        check_close(
            &format!("{name} norm of step {i}"),
            &[norm],
            &[step.grad_norm],
            NORM,
        );
        check_close(
            &format!("{name} lr of step {i}"),
            &[lr],
            &[step.lr],
            Tolerance::new(1e-15, 1e-12),
        );
        optimizer.step(model.trainables_mut(), &gradients, lr, i as u64 + 1);
    }
    let end = golden.adapter_final_dir().expect("an end");
    let config = AdapterConfig::read(&end).expect("the final adapter's configuration");
    let end = config.read_tensors(&end).expect("the final adapter");
    assert_eq!(end.len(), model.trainables().len());
    for (key, expected) in end.iter() {
        let id = model.trainables().find(key).expect("the same keys");
        check_close(
            &format!("{name} {key}"),
            &model.trainables().get(id).value.read(),
            &expected.data,
            VALUES,
        );
    }
}

#[test]
fn bert_follows_the_peer() {
    check_trajectory("bert-trajectory", 2, false);
}

#[test]
fn deberta_follows_the_peer() {
    check_trajectory("deberta-v2-trajectory", 2, false);
    check_trajectory("deberta-v2-trajectory", 1, true);
    check_trajectory("modernbert-trajectory", 2, false);
}

#[test]
fn roberta_follows_the_peer() {
    check_trajectory("roberta-trajectory", 1, false);
}

#[test]
fn language_models_follow_the_peer_over_masked_prompts() {
    check_trajectory("gpt2-trajectory", 2, false);
    check_trajectory("gpt_neo-trajectory", 1, false);
    check_trajectory("opt-trajectory", 2, false);
}

#[test]
fn decoders_with_rotary_positions_follow_the_peer() {
    check_trajectory("llama-trajectory", 2, false);
    check_trajectory("gemma2-trajectory", 2, false);
    check_trajectory("gemma3_text-trajectory", 1, false);
}

#[test]
fn loraplus_follows_pefts_optimizer() {
    check_trajectory("bert-loraplus-trajectory", 2, false);
}

#[test]
fn bitfit_follows_the_peer() {
    check_trajectory("bert-bitfit-trajectory", 2, false);
    check_trajectory("bert-bitfit-trajectory", 1, true);
    check_trajectory("gpt2-bitfit-trajectory", 1, false);
}

#[test]
fn recomputation_follows_the_peer() {
    check_trajectory("roberta-trajectory", 2, true);
    check_trajectory("gpt2-trajectory", 1, true);
}
