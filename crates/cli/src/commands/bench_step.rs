//! `lowrank bench-step`: times optimizer steps of a model with random weights on random rows of one length. For benches.

use std::path::Path;
use std::time::Instant;

use lowrank_engine::{DType, Device, Gradients, StepKey};
use lowrank_kernels::{
    Epilogue, Gemm, GemmBf16, MatRef, PackedBf16, bf16, fill_uniform, gemm, gemm_bf16, pack,
    pack_bf16, packed_bf16_len, packed_len,
};
use lowrank_model::{
    Batch, IGNORE_INDEX, LoadOptions, Model, ModelConfig, PassOptions, Targets, Task,
};
use lowrank_train::optimizer::{Optimizer, clip_grad_norm};
use serde_json::json;

use crate::args::train::OptimizationArgs;
use crate::args::{BenchStepArgs, PrecisionArg};
use crate::errors::{CliError, CliResult};
use crate::resolve::{default_lora, resolve_lora, resolve_optimization};
use crate::session::task_of;
use crate::{memory, output, session, settings};

/// Runs the command.
pub fn run(flags: BenchStepArgs) -> CliResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    let device = session::device(
        &args.common,
        PrecisionArg::of(args.precision, args.full != Some(true)),
    )?;
    let mut model = random_model(&args, &device)?;
    let timing = time_steps(&args, &mut model)?;
    let peak = gemm_peak(&device);
    let line = json!({
        "tokens_per_s": timing.tokens / timing.median_s,
        "median_s": timing.median_s,
        "loss": timing.loss,
        "gflop_per_token": timing.flops / timing.tokens / 1e9,
        "gflop_per_s": timing.flops / timing.median_s / 1e9,
        "gemm_peak_gflop_per_s": peak / 1e9,
        "share_of_peak": timing.flops / timing.median_s / peak,
        "peak_rss_bytes": memory::peak_resident_bytes(),
        "counted_peak_bytes": device.peak_memory().total(),
        "precision": device.precision().name(),
        "isa": device.isa().name(),
        "threads": device.threads(),
    });
    if args.common.is_json() {
        output::println(line);
    } else {
        output::print_json(&line);
    }
    Ok(())
}

fn random_model(args: &BenchStepArgs, device: &Device) -> CliResult<Model> {
    let path = args
        .model_config
        .as_deref()
        .ok_or_else(|| CliError::usage("pass --model-config FILE"))?;
    let mut config = ModelConfig::read(Path::new(path))?;
    if let Some(p) = args.dropout {
        if !(0.0..1.0).contains(&p) {
            return Err(CliError::usage(format!(
                "`dropout` is {p}, expected from 0 to below 1"
            )));
        }
        config.set_dropout(p)?;
    }
    let options = LoadOptions {
        task: task_of(&config).into(),
        num_labels: 2,
        seed: 1,
        ignore_mismatched_sizes: false,
    };
    let mut model = Model::from_config(config, &options, device)?;
    if args.full.unwrap_or(false) {
        model.train_all()?;
    } else {
        let lora = resolve_lora(&args.lora, default_lora(&model.config().model_type))?;
        model.attach_lora(&lora.to_peft("random", None), 1)?;
    }
    Ok(model)
}

/// What was measured.
struct Timing {
    median_s: f64,
    tokens: f64,
    flops: f64,
    loss: f64,
}

fn time_steps(args: &BenchStepArgs, model: &mut Model) -> CliResult<Timing> {
    let device = model.device().clone();
    let (rows, length) = (
        args.batch.unwrap_or(16).max(1),
        args.seq.unwrap_or(128).max(1),
    );
    let mut data = RandomRows::new(rows, length, model.config().facts.vocab_size);
    if model.task() == Task::CausalLm {
        data.label_every_token();
    }
    let targets = Targets::Class(&data.labels).count().max(1);
    let settings = resolve_optimization(&OptimizationArgs::default(), args.full.unwrap_or(false));
    let mut optimizer = Optimizer::new(&device, model.trainables(), &settings);
    let mut gradients = Gradients::zeros(&device, model.trainables());
    let mut seconds = Vec::new();
    let mut timing = Timing {
        median_s: 0.0,
        tokens: (rows * length) as f64,
        flops: 0.0,
        loss: f64::NAN,
    };
    for step in 0..=args.steps.unwrap_or(5).max(1) as u64 {
        let before = device.flops();
        let started = Instant::now();
        gradients.clear();
        let pass = PassOptions {
            dropout: Some(StepKey {
                seed: 1,
                micro_step: step,
            }),
            grad_scale: 1.0 / targets as f32,
            label_smoothing: 0.0,
            recompute: args.gradient_checkpointing.unwrap_or(false),
        };
        let labels = Targets::Class(&data.labels);
        let (sum, _) = model.forward_backward(&data.batch(), labels, &pass, &mut gradients)?;
        clip_grad_norm(&device, &mut gradients, settings.max_grad_norm);
        optimizer.step(
            model.trainables_mut(),
            &gradients,
            settings.learning_rate,
            step + 1,
        );
        timing.loss = sum / targets as f64;
        timing.flops = (device.flops() - before) as f64;
        // The first step warms caches and buffers and is not counted.
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    timing.median_s = seconds[seconds.len() / 2];
    Ok(timing)
}

struct RandomRows {
    ids: Vec<u32>,
    offsets: Vec<usize>,
    labels: Vec<i64>,
}

impl RandomRows {
    fn new(rows: usize, length: usize, vocab: usize) -> Self {
        let mut uniform = vec![0.0f32; rows * length];
        fill_uniform(1, 0, 0.0, 1.0, &mut uniform);
        Self {
            ids: uniform
                .iter()
                .map(|u| ((u * vocab as f32) as usize).min(vocab - 1) as u32)
                .collect(),
            offsets: (0..=rows).map(|row| row * length).collect(),
            labels: (0..rows as i64).map(|row| row % 2).collect(),
        }
    }

    /// For a language model: each token but a row's first is predicted.
    fn label_every_token(&mut self) {
        self.labels = self.ids.iter().map(|&id| id.into()).collect();
        for &first in &self.offsets[..self.offsets.len() - 1] {
            self.labels[first] = IGNORE_INDEX;
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            input_ids: &self.ids,
            token_type_ids: None,
            offsets: &self.offsets,
        }
    }
}

/// The best of a few square-ish GEMMs on this device, in FLOP/s: what a step's share is measured against.
fn gemm_peak(device: &Device) -> f64 {
    const M: usize = 1024;
    const N: usize = 768;
    const K: usize = 768;
    let mut a = vec![0.0f32; M * K];
    let mut b = vec![0.0f32; N * K];
    fill_uniform(1, 1, -1.0, 1.0, &mut a);
    fill_uniform(1, 2, -1.0, 1.0, &mut b);
    let (a_view, b_view) = (MatRef::new(&a, M, K), MatRef::new(&b, N, K));
    let isa = device.isa();
    let mut run: Box<dyn FnMut() + Send> = match device.precision() {
        DType::F32 => {
            let mut packed = vec![0.0f32; packed_len(N, K)];
            pack(isa, b_view, &mut packed);
            let mut c = vec![0.0f32; M * N];
            Box::new(move || {
                let product = Gemm {
                    a: a_view,
                    b_packed: &packed,
                    n: N,
                    bias: None,
                    alpha: 1.0,
                    accumulate: false,
                };
                gemm(isa, &product, &mut c, N);
            })
        }
        DType::Bf16 => {
            let mut packed = vec![bf16::ZERO; packed_bf16_len(N, K)];
            pack_bf16(isa, b_view, &mut packed);
            let narrow: Vec<bf16> = a.iter().map(|&v| bf16::from_f32(v)).collect();
            let mut c = vec![bf16::ZERO; M * N];
            Box::new(move || {
                let product = GemmBf16 {
                    a: MatRef::new(&narrow, M, K),
                    alpha: 1.0,
                    b: PackedBf16::Rows(&packed),
                    n: N,
                    low_rank: None,
                    bias: None,
                };
                gemm_bf16(isa, &product, Epilogue::Store(&mut c));
            })
        }
    };
    device.install(move || {
        let mut best = f64::INFINITY;
        for _ in 0..24 {
            let started = Instant::now();
            run();
            best = best.min(started.elapsed().as_secs_f64());
        }
        2.0 * (M * N * K) as f64 / best
    })
}
