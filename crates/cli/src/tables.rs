//! Tables that several commands print.

use lowrank_model::Model;

use crate::output::{TextTable, count};

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
    for m in &model.adapter_report().saved {
        table.row([
            m.path.clone(),
            "whole".into(),
            "-".into(),
            "-".into(),
            "-".into(),
            count(m.parameters),
        ]);
    }
    table
}
