//! `lowrank profile --all`: every choice of storage and arithmetic, one after the other.

use std::time::Instant;

use lowrank_engine::{Arithmetic, BaseFormat, DType};
use lowrank_run::RunResult;
use lowrank_run::device::{NumericChoices, device};
use lowrank_run::machine::Machine;
use lowrank_run::profile::{ProfileSettings, Subject};
use lowrank_train::config::{Method, NumericSettings};
use serde_json::{Value, json};

use crate::args::CommonArgs;
use crate::output::{self, TextTable, bytes, count};

/// Each with the activations, the frozen weights and the arithmetic.
const CHOICES: [(DType, BaseFormat, Arithmetic); 6] = [
    (DType::F32, BaseFormat::F32, Arithmetic::F32),
    (DType::F32, BaseFormat::Bf16, Arithmetic::F32),
    (DType::Bf16, BaseFormat::Bf16, Arithmetic::F32),
    (DType::Bf16, BaseFormat::Bf16, Arithmetic::Bf16),
    (DType::F32, BaseFormat::Int8, Arithmetic::F32),
    (DType::Bf16, BaseFormat::Int8, Arithmetic::Bf16),
];

/// What was measured of one choice.
struct Row {
    numerics: NumericSettings,
    tokens_per_s: f64,
    counted_bytes: u64,
    loss: f64,
    is_auto: bool,
}

/// The choices that differ for a method: where nothing is frozen, frozen weights are as they are.
fn choices(method: Method) -> impl Iterator<Item = NumericSettings> {
    let choices = CHOICES.into_iter();
    let choices = choices.map(|(precision, base_format, arithmetic)| {
        NumericSettings::new(precision, Some(base_format), Some(arithmetic))
    });
    choices.filter(move |choice| {
        let own = NumericSettings::of(choice.precision).base_format;
        method != Method::Full || choice.base_format == own
    })
}

/// Times all of them and shows them.
pub(super) fn run(settings: &ProfileSettings, machine: &Machine, common: &CommonArgs) -> RunResult {
    let auto = NumericChoices::default()
        .for_method(settings.method)
        .on(machine)?;
    let mut rows = Vec::new();
    for numerics in choices(settings.method) {
        let device = device(machine.isa(), numerics, common.threads)?;
        let mut subject = Subject::open(settings.clone(), &device)?;
        let timing = subject.time_steps(Instant::now())?;
        rows.push(Row {
            numerics,
            tokens_per_s: timing.tokens_per_s,
            counted_bytes: device.peak_memory().total(),
            loss: timing.loss,
            is_auto: numerics == auto,
        });
    }
    if common.is_json() {
        output::println(Value::Array(rows.iter().map(as_json).collect()));
    } else {
        output::print(to_text(&rows));
    }
    Ok(())
}

fn as_json(row: &Row) -> Value {
    json!({
        "precision": row.numerics.precision,
        "base_format": row.numerics.base_format,
        "arithmetic": row.numerics.arithmetic,
        "tokens_per_s": row.tokens_per_s,
        "counted_peak_bytes": row.counted_bytes,
        "loss": row.loss,
        "auto": row.is_auto,
    })
}

fn to_text(rows: &[Row]) -> TextTable {
    let best = rows.iter().map(|row| row.tokens_per_s).fold(0.0, f64::max);
    let mut table = TextTable::new(&[
        "activations",
        "frozen weights",
        "products",
        "tokens/s",
        "of the best",
        "memory",
        "loss",
        "",
    ]);
    for row in rows {
        table.row([
            row.numerics.precision.name().to_owned(),
            row.numerics.base_format.name().to_owned(),
            row.numerics.arithmetic.name().to_owned(),
            count(row.tokens_per_s as u64),
            format!("{:.0}%", 100.0 * row.tokens_per_s / best),
            bytes(row.counted_bytes),
            format!("{:.4}", row.loss),
            if row.is_auto { "auto" } else { "" }.to_owned(),
        ]);
    }
    table
}
