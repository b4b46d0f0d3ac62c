//! Checkpoints of the paper's GPT-2 code: queries and values of the fused layer, each at its own
//! rank, become one adapter that says exactly the same.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

use lowrank_engine::{Device, Isa};
use lowrank_formats::peft::{LoraConfig, Loralib};
use lowrank_formats::{Checkpoint, OutTensor, write_safetensors};
use lowrank_model::{Batch, LoadOptions, Model, Task};
use lowrank_testkit::{Golden, Random, Tolerance, check_close};

const WIDTH: usize = 32;
const RANK: usize = 2;
const ALPHA: f64 = 6.0;

fn load(dir: &std::path::Path) -> Model {
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(Isa::best(), 1).expect("threads start");
    Model::load(dir, &options, &device).expect("it loads").0
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (3..20).collect();
    let batch = Batch {
        input_ids: &ids,
        token_type_ids: None,
        offsets: &[0, 9, 17],
    };
    model.logits(&batch).expect("the batch fits")
}

/// W [in, 3 · out] of a layer with s · (B_q A_q)ᵀ in its first columns and s · (B_v A_v)ᵀ in its
/// last, in f64.
fn adapted(weight: &mut [f32], a: &[f32], b: &[f32]) {
    let scaling = ALPHA / RANK as f64;
    for (part, place) in [(0, 0), (1, 2)] {
        for i in 0..WIDTH {
            for o in 0..WIDTH {
                let delta: f64 = (0..RANK)
                    .map(|r| {
                        let b = b[(part * WIDTH + o) * RANK + r];
                        f64::from(b) * f64::from(a[(part * RANK + r) * WIDTH + i])
                    })
                    .sum();
                let at = &mut weight[i * 3 * WIDTH + place * WIDTH + o];
                *at = (f64::from(*at) + scaling * delta) as f32;
            }
        }
    }
}

#[test]
fn merged_linear_gives_the_logits_of_the_papers_formula() {
    let dir = tempfile::tempdir().expect("a folder");
    let base = Golden::open("gpt2-causal")
        .expect("a golden case")
        .model_dir();
    let layers: Vec<String> = (0..2)
        .map(|i| format!("transformer.h.{i}.attn.c_attn"))
        .collect();
    let mut random = Random::new(3);
    let values: Vec<(Vec<f32>, Vec<f32>)> = layers
        .iter()
        .map(|_| {
            (
                random.normals_f32(2 * RANK * WIDTH),
                random.normals_f32(2 * WIDTH * RANK),
            )
        })
        .collect();
    let names: Vec<[String; 2]> = layers
        .iter()
        .map(|path| [format!("{path}.lora_A"), format!("{path}.lora_B")])
        .collect();
    let tensors: Vec<OutTensor<'_>> = names
        .iter()
        .zip(&values)
        .flat_map(|([a_name, b_name], (a, b))| {
            [
                OutTensor::f32(a_name, &[2 * RANK, WIDTH], a),
                OutTensor::f32(b_name, &[2 * WIDTH, RANK], b),
            ]
        })
        .collect();
    let file = dir.path().join("lora.safetensors");
    write_safetensors(&file, &tensors, &[]).expect("written");
    let loralib = Loralib::read(&file).expect("a loralib checkpoint");
    let config = loralib.config(ALPHA);
    assert_eq!((config.r, config.lora_alpha), (2 * RANK, 2.0 * ALPHA));
    assert!(config.fan_in_fan_out);
    let mut model = load(&base);
    model
        .attach_tensors(&config.into(), loralib.tensors)
        .expect("it fits");

    // The same by hand: the adapted weights in a checkpoint of their own.
    let by_hand = dir.path().join("by-hand");
    std::fs::create_dir(&by_hand).expect("made");
    std::fs::copy(base.join("config.json"), by_hand.join("config.json")).expect("copied");
    let checkpoint = Checkpoint::open_dir(&base).expect("the checkpoint");
    let mut all = Vec::new();
    for info in checkpoint.infos() {
        let mut weight = checkpoint.read_f32_vec(&info.name).expect("a tensor");
        let layer = layers
            .iter()
            .position(|path| info.name == format!("{path}.weight"));
        if let Some(layer) = layer {
            adapted(&mut weight, &values[layer].0, &values[layer].1);
        }
        all.push((info.name.clone(), info.shape.clone(), weight));
    }
    let out: Vec<OutTensor<'_>> = all
        .iter()
        .map(|(n, s, v)| OutTensor::f32(n, s, v))
        .collect();
    write_safetensors(&by_hand.join("model.safetensors"), &out, &[]).expect("written");
    // Measured worst 2e-5: scores of some hundreds go through two layers.
    let tolerance = Tolerance::new(2e-4, 1e-5);
    let expected = logits(&load(&by_hand));
    check_close("loralib", &logits(&model), &expected, tolerance);

    // And as PEFT's files, read back.
    let peft = dir.path().join("peft");
    std::fs::create_dir(&peft).expect("made");
    model.save_adapter(&peft, Some("tiny")).expect("saved");
    let written = LoraConfig::read(&peft).expect("PEFT's configuration");
    assert_eq!((written.r, written.lora_alpha), (4, 12.0));
    let mut again = load(&base);
    again.load_adapter(&peft).expect("it fits");
    assert_eq!(logits(&again), logits(&model));
}
