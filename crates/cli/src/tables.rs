//! Tables that several commands print.

use lowrank_model::Model;
use lowrank_run::merge::Verified;
use serde_json::{Value, json};

use crate::output::{TextTable, count};

fn rows_of(rows: usize) -> String {
    match rows {
        1 => "1 row".to_owned(),
        _ => format!("{} rows", count(rows as u64)),
    }
}

/// The adapted layers as a table.
pub fn adapter_table(model: &Model) -> TextTable {
    let mut table = TextTable::new(&["layer", "shape", "rank", "alpha", "scaling", "parameters"]);
    for m in &model.adapter_report().modules {
        table.row([
            m.path.clone(),
            format!("{}x{}", m.shape[0], m.shape[1]),
            m.rank.to_string(),
            m.alpha.to_string(),
            m.scaling.to_string(),
            count(m.parameters),
        ]);
    }
    let report = model.adapter_report();
    let saved = report.saved.iter();
    let saved = saved.map(|m| (m.path.as_str(), "whole", m.parameters));
    let biases = (report.biases > 0).then_some(("other modules", "biases", report.biases));
    let rows = report.rows.iter();
    let rows: Vec<(&str, String, u64)> = rows
        .map(|table| (table.path.as_str(), rows_of(table.rows), table.parameters))
        .collect();
    let rows = rows
        .iter()
        .map(|(path, what, n)| (*path, what.as_str(), *n));
    for (path, what, parameters) in rows.chain(saved).chain(biases) {
        let parameters = count(parameters);
        table.row([path, what, "-", "-", "-", &parameters].map(str::to_owned));
    }
    table
}

/// How a written model compares with the adapted one.
pub fn verified_json(v: &Verified) -> Value {
    json!({
        "rows": v.rows, "max_logit_difference": v.largest, "row": v.row, "same_prediction": v.same,
        "predictions": v.predictions, "kl": v.kl, "largest_logit": v.largest_logit,
    })
}

/// The same as rows of a table.
pub fn add_verified(table: &mut TextTable, v: &Verified) {
    table
        .row([
            "largest logit difference",
            &format!("{:.3e} over {} rows", v.largest, v.rows),
        ])
        .row([
            "same prediction",
            &format!("{} of {}", count(v.same), count(v.predictions)),
        ]);
}
