//! Logits of a language model with an adapter, a JSON line a row: what
//! `tools/golden/check_peft_loads.py` compares with Python's peft. A loralib checkpoint is saved in
//! PEFT's form on the way.
//!
//! usage: cargo run -p lowrank-model --example logits -- MODEL_DIR ADAPTER ROWS.jsonl [ALPHA
//! PEFT_DIR] ADAPTER is PEFT's directory, or a loralib file, whose alpha is ALPHA. A row is
//! {"input_ids": [...]}.

use std::error::Error;
use std::path::Path;

use lowrank_engine::{Device, Isa};
use lowrank_formats::peft::Loralib;
use lowrank_model::{Batch, LoadOptions, Model, Task};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(model), Some(adapter), Some(rows)) = (args.first(), args.get(1), args.get(2)) else {
        return Err("expected MODEL_DIR ADAPTER ROWS.jsonl [ALPHA PEFT_DIR]".into());
    };
    let options = LoadOptions::new(Task::CausalLm, 1);
    let device = Device::cpu(Isa::best(), 0)?;
    let (mut model, _) = Model::load(Path::new(model), &options, &device)?;
    match (args.get(3), args.get(4)) {
        (Some(alpha), Some(peft)) => {
            let loralib = Loralib::read(Path::new(adapter))?;
            let mut config = loralib.config(alpha.parse()?);
            config.task_type = Some(lowrank_formats::peft::TaskType::CausalLm);
            model.attach_tensors(&config.into(), loralib.tensors)?;
            std::fs::create_dir_all(peft)?;
            model.save_adapter(Path::new(peft), None)?;
        }
        _ => {
            model.load_adapter(Path::new(adapter))?;
        }
    }
    for line in std::fs::read_to_string(rows)?.lines() {
        let row: Value = serde_json::from_str(line)?;
        let ids: Vec<u32> = serde_json::from_value(row["input_ids"].clone())?;
        let batch = Batch {
            input_ids: &ids,
            token_type_ids: None,
            offsets: &[0, ids.len()],
        };
        let logits = model.logits(&batch)?;
        let logits: Vec<&[f32]> = logits.chunks_exact(model.num_labels()).collect();
        println!("{}", json!({ "logits": logits }));
    }
    Ok(())
}
