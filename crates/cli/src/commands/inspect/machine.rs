//! `lowrank inspect --machine`: the processor, how fast it computes in each way that values are
//! stored and multiplied, how exactly, and what `auto` takes.

use lowrank_engine::{BaseFormat, Isa, Processor, processor};
use lowrank_run::RunResult;
use lowrank_run::machine::{Machine, Timed, cpu_caches};
use lowrank_train::config::NumericSettings;
use serde_json::{Value, json};

use super::Found;
use crate::args::InspectArgs;
use crate::output::TextTable;
use crate::session;

/// What there is to say of this machine.
pub(super) fn show(args: &InspectArgs) -> RunResult<Found> {
    let machine = session::machine()?;
    let timed = machine.timed();
    session::say_warnings(&machine, &args.common);
    // What is wrong is shown, not refused.
    let preferred = machine.preferred().ok();
    Ok(Found {
        text: text(&machine, timed, preferred),
        json: as_json(&machine, timed, preferred),
    })
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get())
}

fn instruction_sets() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

fn text(machine: &Machine, timed: &[Timed], preferred: Option<NumericSettings>) -> String {
    let Processor {
        name,
        identity,
        features,
        ..
    } = processor();
    let caches = cpu_caches().into_iter();
    let caches: Vec<String> = caches
        .map(|cache| {
            let (level, holds, kib) = (cache.level, cache.holds.name(), cache.bytes >> 10);
            format!("L{level} {holds} {kib} KiB")
        })
        .collect();
    let mut table = TextTable::new(&[]);
    table
        .row(["processor", &name])
        .row(["identity", identity.as_deref().unwrap_or("-")])
        .row(["instructions", &features.join(" ")])
        .row(["caches of a core", &caches.join(", ")])
        .row(["threads", &threads().to_string()])
        .row(["instruction sets", &instruction_sets().join(", ")])
        .row(["computes with", machine.isa().name()]);
    let mut ways = TextTable::new(&[
        "activations",
        "frozen weights",
        "multiplied in",
        "GFLOP/s a thread",
        "error",
        "",
    ]);
    for timed in timed {
        let note = match (timed.is_right(), Some(timed.way) == preferred) {
            (false, _) => "wrong",
            (true, true) => "auto",
            (true, false) => "",
        };
        ways.row([
            timed.way.precision.name().to_owned(),
            timed.way.base_format.name().to_owned(),
            multiplied_in(timed.way).to_owned(),
            format!("{:.0}", timed.flops_per_second / 1e9),
            format!("{:.1e}", timed.error),
            note.to_owned(),
        ]);
    }
    let place = machine.cache_file();
    let kept = place.map_or(String::new(), |file| {
        format!("kept in {}\n", file.display())
    });
    match timed {
        [] => format!("{table}\nnothing is measured: LOWRANK_MEASURE is off\n"),
        _ => format!("{table}\n{ways}{kept}"),
    }
}

/// Int8 weights are multiplied as integers, whatever the arithmetic of other products.
fn multiplied_in(way: NumericSettings) -> &'static str {
    match way.base_format {
        BaseFormat::Int8 => way.base_format.name(),
        _ => way.arithmetic.name(),
    }
}

fn as_json(machine: &Machine, timed: &[Timed], preferred: Option<NumericSettings>) -> Value {
    let Processor {
        name,
        identity,
        features,
        ..
    } = processor();
    let caches: Vec<Value> = cpu_caches()
        .into_iter()
        .map(|cache| {
            json!({ "level": cache.level, "holds": cache.holds.name(), "bytes": cache.bytes })
        })
        .collect();
    let way = |timed: &Timed| {
        json!({
            "precision": timed.way.precision,
            "base_format": timed.way.base_format,
            "arithmetic": multiplied_in(timed.way),
            "gflop_per_s_a_thread": timed.flops_per_second / 1e9,
            "error": timed.error,
            "right": timed.is_right(),
        })
    };
    json!({
        "kind": "machine",
        "processor": name,
        "identity": identity,
        "instructions": features,
        "caches": caches,
        "threads": threads(),
        "instruction_sets": instruction_sets(),
        "isa": machine.isa().name(),
        "measured": timed.iter().map(way).collect::<Vec<_>>(),
        "auto": preferred,
        "cache_file": machine.cache_file(),
    })
}
