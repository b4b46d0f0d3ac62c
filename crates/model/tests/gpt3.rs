//! The GPT-3 numbers of the LoRA paper, from the code that trains: every LoRA row of its tables,
//! exactly.

use std::path::Path;

use lowrank_engine::Device;
use lowrank_formats::peft::{LoraConfig, TargetModules};
use lowrank_model::{LoadOptions, Model, ModelConfig, Task, builtin_config, builtin_names};

fn dry(name: &str) -> Model {
    let config = builtin_config(name).expect("a built-in configuration");
    let config = ModelConfig::from_value(Path::new(name), config).expect("it is sound");
    let options = LoadOptions {
        task: Task::CausalLm,
        num_labels: 1,
        seed: 0,
        ignore_mismatched_sizes: false,
    };
    Model::from_config(config, &options, &Device::dry()).expect("it is built")
}

fn trained(targets: &[&str], r: usize) -> u64 {
    let mut model = dry("gpt3-175b");
    let config = LoraConfig {
        r,
        target_modules: Some(TargetModules::List(
            targets.iter().map(ToString::to_string).collect(),
        )),
        ..LoraConfig::default()
    };
    model.attach_lora(&config, 0).expect("adapters attach");
    model.trainables().count()
}

#[test]
fn every_lora_row_of_the_papers_tables() {
    const FOUR: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];
    for (targets, r, exact) in [
        (&FOUR[..1], 2, 4_718_592),
        (&["q_proj", "v_proj"], 1, 4_718_592),
        (&["q_proj", "v_proj"], 2, 9_437_184),
        (&FOUR, 1, 9_437_184),
        (&["q_proj"], 8, 18_874_368),
        (&["k_proj"], 8, 18_874_368),
        (&["v_proj"], 8, 18_874_368),
        (&["out_proj"], 8, 18_874_368),
        (&["q_proj", "k_proj"], 4, 18_874_368),
        (&["q_proj", "v_proj"], 4, 18_874_368),
        (&FOUR, 2, 18_874_368),
        (&["q_proj", "v_proj"], 8, 37_748_736),
        (&FOUR, 4, 37_748_736),
        (&["q_proj", "v_proj"], 64, 301_989_888),
        (&FOUR, 64, 603_979_776),
    ] {
        assert_eq!(trained(targets, r), exact, "{targets:?} at rank {r}");
    }
    // Two bytes a value: the paper's 35 MB.
    assert_eq!(2 * trained(&["q_proj", "v_proj"], 4), 36 << 20);
}

#[test]
fn the_sizes_have_the_published_parameters() {
    // In millions as published (the last is 175 thousand), and how far the counts may be: the table
    // rounds.
    let published = [
        125.0, 350.0, 760.0, 1300.0, 2700.0, 6700.0, 13000.0, 175_000.0,
    ];
    for (name, millions) in builtin_names().zip(published) {
        let found = dry(name).base_parameters() as f64 / 1e6;
        assert!((found / millions - 1.0).abs() < 0.02, "{name}: {found} M");
    }
    // Of the paper's 174,604,259,328 with a bias for each projection; GPT-Neo has none for queries,
    // keys and values.
    let biases = 96 * 3 * 12_288;
    assert_eq!(dry("gpt3-175b").base_parameters() + biases, 174_604_259_328);
}
