//! Numbers in readable units, for messages and reports.

use lowrank_train::metrics::Metric;

/// 1234567 as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes in the largest binary unit in which they are at least 1.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Seconds as `7.3 s`, `2 min 5 s` or `1 h 3 min`.
pub fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole % 3600 / 60, whole % 60) {
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A metric's value as people read it: shares in per cent, others with four digits; undefined ones
/// as a dash.
pub fn metric(metric: Metric, value: f64) -> String {
    if value.is_nan() {
        return "-".to_owned();
    }
    match metric {
        Metric::Accuracy => format!("{:.2}%", 100.0 * value),
        Metric::Loss
        | Metric::Perplexity
        | Metric::Precision
        | Metric::Recall
        | Metric::F1
        | Metric::F1Macro
        | Metric::F1Micro
        | Metric::Matthews
        | Metric::Pearson
        | Metric::Spearman => format!("{value:.4}"),
    }
}

/// A share in per cent.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.2}%", 100.0 * part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_readable() {
        assert_eq!(
            (count(0), count(999), count(294_912)),
            ("0".into(), "999".into(), "294,912".into())
        );
        assert_eq!(
            (bytes(12), bytes(1 << 20), bytes(1_600_000)),
            ("12 B".into(), "1.0 MiB".into(), "1.5 MiB".into())
        );
        assert_eq!(
            (duration(7.25), duration(125.0), duration(3780.0)),
            ("7.2 s".into(), "2 min 5 s".into(), "1 h 3 min".into())
        );
    }
}
