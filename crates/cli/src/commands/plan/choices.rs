//! The batches that give the rows of one optimizer step, as JSON and as a table.

use lowrank_model::Recompute;
use lowrank_run::model_plan::Choices;
use lowrank_train::fit::{BatchShape, Price};
use serde_json::{Value, json};

use crate::output::{TextTable, bytes};

/// As JSON.
pub fn to_json(choices: &Choices) -> Value {
    let choice = |(shape, price): &(BatchShape, Price)| {
        json!({
            "per_device_batch_size": shape.batch_size,
            "gradient_accumulation_steps": shape.accumulation,
            "gradient_checkpointing": shape.recompute == Recompute::Layers,
            "bytes": price.bytes,
            "flops_per_token": price.flops_per_token,
            "fits": price.bytes <= choices.limit,
        })
    };
    choices.list.iter().map(choice).collect()
}

/// As a table.
pub fn to_text(choices: &Choices) -> String {
    let limit = format!("memory, of {}", bytes(choices.limit));
    let mut table = TextTable::new(&[
        "rows a batch",
        "batches a step",
        "recomputed",
        &limit,
        "a token",
    ]);
    let taken = choices.taken().ok();
    for (shape, price) in &choices.list {
        let mark = match (Some(*shape) == taken, price.bytes <= choices.limit) {
            (true, _) => " taken",
            (false, true) => "",
            (false, false) => " too much",
        };
        table.row([
            shape.batch_size.to_string(),
            shape.accumulation.to_string(),
            match shape.recompute {
                Recompute::Off => "no",
                Recompute::Layers => "yes",
            }
            .to_owned(),
            format!("{}{mark}", bytes(price.bytes)),
            format!("{:.1} MFLOP", price.flops_per_token / 1e6),
        ]);
    }
    table.to_string()
}
