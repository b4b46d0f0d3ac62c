//! What reading a quantised model costs beside the packed model: at most 100 MB. The one test of
//! this binary reads the process's own peak, so that it must stay alone. Linux only; skipped aloud
//! without the file.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::Instant;

use lowrank_engine::{DType, Device, Isa, Purpose};
use lowrank_model::{LoadOptions, Model, Task};
use lowrank_testkit::real_model;

/// Bytes of a line of `/proc/self/status`.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes
        .and_then(|n| n.parse::<u64>().ok())
        .expect("a size")
        * 1024
}

#[test]
fn a_quantised_model_is_read_in_little_more_memory_than_it_takes() {
    let place = Path::new("gemma3-270m/gemma-3-270m-q4_k_m.gguf");
    let Some(path) = real_model(place) else {
        return;
    };
    let device = Device::cpu_in(DType::Bf16, Isa::best(), 2).expect("threads");
    let options = LoadOptions {
        task: Task::CausalLm,
        num_labels: 1,
        seed: 1,
        ignore_mismatched_sizes: false,
    };
    let before = status("VmRSS:");
    let started = Instant::now();
    let (_model, _) = Model::load(&path, &options, &device).expect("it loads");
    let (seconds, peak) = (started.elapsed().as_secs_f64(), status("VmHWM:") - before);
    let packed = device.memory().of(Purpose::FrozenWeights);
    println!("packed {packed} bytes, peak of reading {peak}, {seconds:.2} s");
    assert!(packed > 500_000_000, "{packed} bytes");
    assert!(
        peak <= packed + 100_000_000,
        "{peak} bytes at the peak for {packed} of weights"
    );
}
