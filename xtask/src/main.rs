//! `cargo xtask`: the development commands. It knows the layout of the repository and nothing of
//! the product's code.

mod arguments;
mod bench;
mod bench_generate;
mod check;
mod emulate;
mod faults;
mod fuzz;
mod golden;
mod real_models;
mod sides;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

commands:
  check            what must pass before a push: format, clippy, tests, docs, tidy
  tidy             the rules of the repository that no compiler checks
  golden [CASE]    makes tests/golden anew (or the cases whose name starts with CASE)
                     --python FILE   the interpreter with tools/golden/requirements.txt (default python3)
  faults           lets every file call of train, merge, predict and generate fail in turn (some are in the gate)
  emulate          the kernels and every family on aarch64 under qemu (minutes)
  fuzz [TARGET...] the fuzz targets, one after the other; outside the gate
                     --seconds N     for each target (default 600)
  real-models DIR  logits and perplexity of the real models in DIR against the peer's, whole texts (minutes)
  bench            training steps of lowrank and of PyTorch + peft, eager and compiled, in turns; medians, ratios, spread
                     --python FILE         the interpreter with torch, transformers and peft (default python3)
                     --model-config FILE   a config.json (default tools/bench/configs/roberta-base.json)
                     --dtype f32,bf16      the precisions, one after the other (default both)
                     --peers eager,compiled  (default both)
                     --rows full|FILE      random rows of --seq tokens, or the texts of a file at their own length
                     --tokenizer DIR       for the texts (default assets/minilm-l6)
                     --mode lora|full      adapters, or all weights (default lora)
                     --batch B --seq T --steps N --rounds N   (default 16, 128, 8, 3)
                     --dropout P           in place of the config's own
                     --threads N
  bench-generate   greedy generation of lowrank and of transformers, in turns; medians, ratios, equal tokens
                     --python FILE, --dtype f32,bf16, --rounds N, --threads N   as above
                     --model-config FILE   a config.json (default tools/bench/configs/gpt2.json)
                     --peers eager,compiled  (default eager; compiled: static cache and torch.compile)
                     --batch 1,16          sizes of batches, one after the other
                     --prompt T --new N    tokens of a prompt, and new ones (default 32, 128)";

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let result = match command.as_str() {
        "check" => check::run(&rest),
        "tidy" => tidy::run(&rest),
        "golden" => golden::run(&rest),
        "faults" => faults::run(&rest),
        "emulate" => emulate::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "real-models" => real_models::run(&rest),
        "bench" => bench::run(&rest),
        "bench-generate" => bench_generate::run(&rest),
        "" | "help" | "-h" | "--help" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => Err(format!("no command named `{other}`\n{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
