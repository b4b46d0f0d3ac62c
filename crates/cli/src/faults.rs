//! Faults that a test asks for, in a debug build: `LOWRANK_FAULT=<n>:<kill|full|io|hold>` lets the
//! n-th file call fail, and `LOWRANK_FAULT_LOG=FILE` lists all calls. A release build reads
//! neither.

use std::env;

use lowrank_formats::files::fault::{self, Fault, Plan};

/// Takes the faults from the environment.
pub fn from_environment() {
    if !fault::AVAILABLE {
        return;
    }
    let asked = env::var("LOWRANK_FAULT").ok();
    let log = env::var_os("LOWRANK_FAULT_LOG").map(Into::into);
    if asked.is_none() && log.is_none() {
        return;
    }
    let (at, fault) = asked
        .as_deref()
        .and_then(|text| text.split_once(':'))
        .map_or((None, Fault::Kill), |(at, kind)| {
            let fault = match kind {
                "full" => Fault::StorageFull,
                "io" => Fault::InputOutput,
                "hold" => Fault::Hold,
                _ => Fault::Kill,
            };
            (at.parse().ok(), fault)
        });
    fault::install(Plan { at, fault, log });
}
