//! What the operating system says this process holds. Only where it can be asked without unsafe
//! code; elsewhere nothing.

use std::path::Path;

use lowrank_engine::{MemoryReport, Purpose};
use lowrank_formats::files::{Ceiling, read_text};
use serde_json::{Value, json};

/// What a process takes while it trains beside program, rows and tensors: stacks, a block of
/// weights that is being read, the log. Measured from 2 to 3 MB.
pub const BESIDE: u64 = 4 << 20;

/// The largest resident set so far, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    status_field("VmHWM:")
}

/// The resident set now, in bytes.
pub fn resident_bytes() -> Option<u64> {
    status_field("VmRSS:")
}

/// Memory that this process could still take, in bytes: what the system can give, within the limits
/// of its control groups.
pub fn available_bytes() -> Option<u64> {
    let system = field_in_kib("/proc/meminfo", "MemAvailable:");
    [system, group_bytes()].into_iter().flatten().min()
}

/// Memory and swap of the machine, or the limit of this process's control group where that is less:
/// more cannot be had.
pub fn machine_bytes() -> Option<u64> {
    let memory = field_in_kib("/proc/meminfo", "MemTotal:")?;
    let swap = field_in_kib("/proc/meminfo", "SwapTotal:").unwrap_or(0);
    let group = group_number("memory.max").map(|limit| limit.saturating_add(swap));
    Some(memory.saturating_add(swap).min(group.unwrap_or(u64::MAX)))
}

/// What the limit of this process's control group leaves, pages of files counted as free.
fn group_bytes() -> Option<u64> {
    group_dirs().iter().find_map(|dir| {
        let (limit, used) = (number(dir, "memory.max")?, number(dir, "memory.current")?);
        let files = text(&format!("{dir}/memory.stat"))?;
        let files = files
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file "))?;
        let free: u64 = files.trim().parse().ok()?;
        Some((limit + free).saturating_sub(used))
    })
}

/// A number that the control group states.
fn group_number(name: &str) -> Option<u64> {
    group_dirs().iter().find_map(|dir| number(dir, name))
}

/// Where the control group may be found. In a container its own path may not be there, but the root
/// is the container's.
fn group_dirs() -> Vec<String> {
    let groups = text("/proc/self/cgroup").unwrap_or_default();
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Vec::new();
    };
    vec![
        format!("/sys/fs/cgroup{}", group.trim()),
        "/sys/fs/cgroup".to_owned(),
    ]
}

fn number(dir: &str, name: &str) -> Option<u64> {
    let text = text(&format!("{dir}/{name}"))?;
    text.trim().parse().ok()
}

fn status_field(name: &str) -> Option<u64> {
    field_in_kib("/proc/self/status", name)
}

fn field_in_kib(file: &str, name: &str) -> Option<u64> {
    let text = text(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A file of the system's own; nothing where there is none.
fn text(file: &str) -> Option<String> {
    read_text(Path::new(file), Ceiling::SETTINGS).ok()
}

/// Bytes by purpose, under the purposes' names.
pub fn by_purpose(report: &MemoryReport) -> Value {
    let of = |purpose: &Purpose| (purpose.name().to_owned(), json!(report.of(*purpose)));
    Value::Object(Purpose::ALL.iter().map(of).collect())
}
