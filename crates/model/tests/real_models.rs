//! Two real models in GGUF files, SmolLM2-135M-Instruct (Q4_1) and Gemma 3 270M (Q4_K_M): their
//! logits equal those of transformers from the same decoded weights. Made by
//! `tools/golden/real_models.py`; skipped aloud without the files.

use std::path::PathBuf;

use lowrank_engine::{Device, Isa};
use lowrank_formats::Checkpoint;
use lowrank_model::{Batch, LoadOptions, Model, Task};
use lowrank_testkit::{Tolerance, check_close, golden_root, real_model};

/// The peer sums in f64 and we in f32. Seen on an AMD EPYC (AVX-512, two threads): 6.9e-5
/// of SmolLM2, whose largest logit is 41, and 5.3e-5 of Gemma 3, whose largest is 35.
const LOGITS: Tolerance = Tolerance {
    abs: 1e-4,
    rel: 0.0,
};

fn check(name: &str, file: &str) {
    let Some(path) = real_model(&PathBuf::from(name).join(file)) else {
        return;
    };
    let expected = golden_root().join(format!("quantised/real/{name}.safetensors"));
    let expected = Checkpoint::open_file(&expected).expect("golden numbers");
    let numbers = |key: &str| expected.read_i64(key).expect("numbers");
    let values = |key: &str| expected.read_f32_vec(key).expect("values");
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(Isa::best(), 2).expect("threads");
    let (model, report) = Model::load(&path, &options, &device).expect("it loads");
    assert_eq!((report.new.len(), report.unused.len()), (0, 0));
    let (ids, columns, best_ids) = (
        numbers("input_ids"),
        numbers("columns"),
        numbers("best_ids"),
    );
    let (mut some, mut best, mut start) = (Vec::new(), Vec::new(), 0);
    for len in numbers("lengths") {
        let end = start + len as usize;
        let input_ids: Vec<u32> = ids[start..end].iter().map(|&id| id as u32).collect();
        let batch = Batch {
            input_ids: &input_ids,
            token_type_ids: None,
            offsets: &[0, input_ids.len()],
        };
        let logits = model.base_logits(&batch).expect("logits");
        for (token, row) in logits
            .chunks_exact(logits.len() / input_ids.len())
            .enumerate()
        {
            some.extend(columns.iter().map(|&column| row[column as usize]));
            let ids = &best_ids[(start + token) * 16..][..16];
            best.extend(ids.iter().map(|&id| row[id as usize]));
        }
        start = end;
    }
    check_close(name, &some, &values("logits"), LOGITS);
    check_close(name, &best, &values("best"), LOGITS);
    let worst = |found: &[f32], wanted: &[f32]| {
        let errors = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
        errors.fold(0.0, f32::max)
    };
    println!(
        "{name}: largest error {:e}",
        worst(&some, &values("logits")).max(worst(&best, &values("best")))
    );
}

#[test]
fn logits_of_smollm2_equal_those_of_transformers() {
    check("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
}

#[test]
fn logits_of_gemma_3_equal_those_of_transformers() {
    check("gemma3-270m", "gemma-3-270m-q4_k_m.gguf");
}
