//! `lowrank profile --workers`: how a step would do on many workers.

use lowrank_run::profile::{OpSchedule, Schedule};
use serde_json::json;

use crate::args::CommonArgs;
use crate::output::{self, TextTable, count};

/// Shows a step on paper.
pub(super) fn show(schedule: &Schedule, common: &CommonArgs) {
    if common.is_json() {
        output::println(as_json(schedule));
    } else {
        output::print(to_text(schedule));
    }
}

fn as_json(schedule: &Schedule) -> serde_json::Value {
    let op = |row: &OpSchedule| {
        json!({
            "op": row.op,
            "phase": row.phase.name(),
            "tasks": row.tasks,
            "alone_s": row.alone.as_secs_f64(),
            "serial_s": row.serial.as_secs_f64(),
            "together_s": row.together.as_secs_f64(),
            "busy": row.busy(schedule.workers),
        })
    };
    json!({
        "workers": schedule.workers,
        "alone_s": schedule.alone.as_secs_f64(),
        "together_s": schedule.together.as_secs_f64(),
        "busy": schedule.busy(),
        "ops": schedule.ops.iter().map(op).collect::<Vec<_>>(),
    })
}

fn to_text(schedule: &Schedule) -> String {
    let ms = |time: std::time::Duration| format!("{:.2}", 1e3 * time.as_secs_f64());
    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    let workers = schedule.workers;
    let mut ops = TextTable::new(&[
        "op",
        "tasks",
        "ms alone",
        "in no task",
        "ms together",
        "busy",
    ]);
    for row in &schedule.ops {
        ops.row([
            format!("{} ({})", row.op, row.phase.name()),
            count(row.tasks as u64),
            ms(row.alone),
            ms(row.serial),
            ms(row.together),
            percent(row.busy(workers)),
        ]);
    }
    let mut whole = TextTable::new(&[]);
    whole.row(["workers, on paper", &workers.to_string()]);
    whole.row(["a step alone", &format!("{} ms", ms(schedule.alone))]);
    whole.row(["a step together", &format!("{} ms", ms(schedule.together))]);
    whole.row(["busy", &percent(schedule.busy())]);
    format!("{ops}{whole}")
}
