//! What the operating system says this process holds. Only where it can be asked without unsafe code; elsewhere nothing.

/// The largest resident set so far, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    status_field("VmHWM:")
}

/// The resident set now, in bytes.
pub fn resident_bytes() -> Option<u64> {
    status_field("VmRSS:")
}

/// Memory that this process could still take, in bytes: what the system can give, within the limits of its control groups.
pub fn available_bytes() -> Option<u64> {
    let system = field_in_kib("/proc/meminfo", "MemAvailable:");
    [system, group_bytes()].into_iter().flatten().min()
}

/// What the limit of this process's control group leaves, pages of files counted as free.
fn group_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |dir: &str, name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("{dir}/{name}")).ok()?;
        text.trim().parse().ok()
    };
    // In a container the group's own path may not be there, but the root is the container's.
    let dirs = [
        format!("/sys/fs/cgroup{}", group.trim()),
        "/sys/fs/cgroup".to_owned(),
    ];
    dirs.iter().find_map(|dir| {
        let (limit, used) = (number(dir, "memory.max")?, number(dir, "memory.current")?);
        let files = std::fs::read_to_string(format!("{dir}/memory.stat")).ok()?;
        let files = files
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file "))?;
        let free: u64 = files.trim().parse().ok()?;
        Some((limit + free).saturating_sub(used))
    })
}

fn status_field(name: &str) -> Option<u64> {
    field_in_kib("/proc/self/status", name)
}

fn field_in_kib(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
