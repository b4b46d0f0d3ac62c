//! What the program prints when all goes well: text tables for people, JSON for programs, and numbers in readable units.

use std::io::{self, IsTerminal, Write};

use crate::printable::{cut, message, printable};

/// The most characters of a cell.
const LONGEST_CELL: usize = 500;

/// A table with aligned columns: the first to the left, the others to the right.
#[derive(Clone, Debug, Default)]
pub struct TextTable {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// An empty table with these column heads; no heads for a plain list of pairs.
    pub fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|s| (*s).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let cell = |cell: S| cut(&cell.into(), LONGEST_CELL);
        self.rows.push(cells.into_iter().map(cell).collect());
        self
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The same table for the report.
    pub fn for_report(&self, title: &str) -> lowrank_train::report::Table {
        lowrank_train::report::Table {
            title: title.to_owned(),
            header: self.header.clone(),
            rows: self.rows.clone(),
        }
    }
}

impl std::fmt::Display for TextTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = || {
            self.rows
                .iter()
                .chain((!self.header.is_empty()).then_some(&self.header))
        };
        let columns = all().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            all()
                .filter_map(|r| r.get(c))
                .map(|s| s.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let write_row = |f: &mut std::fmt::Formatter<'_>, row: &Vec<String>| {
            let mut line = String::from("  ");
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                let cell = if c == 0 {
                    format!("{cell}{pad}")
                } else {
                    format!("  {pad}{cell}")
                };
                line.push_str(&cell);
            }
            writeln!(f, "{}", line.trim_end())
        };
        if !self.header.is_empty() {
            write_row(f, &self.header)?;
            let rule = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
            writeln!(f, "  {}", "-".repeat(rule))?;
        }
        self.rows.iter().try_for_each(|row| write_row(f, row))
    }
}

/// Writes to standard output, control characters escaped. A reader that went away (`| head`) ends the program quietly; a full
/// disk is an error.
pub fn print(text: impl std::fmt::Display) {
    write_out(&printable(&text.to_string()));
}

/// Writes text that a model made: as it is into a file or pipe, control characters escaped on a terminal.
pub fn print_generated(text: &str) {
    match io::stdout().is_terminal() {
        true => print(text),
        false => write_out(text),
    }
}

/// Writes a line to standard error: a note, a warning or an error.
pub fn note(text: impl std::fmt::Display) {
    // Nobody reads standard error any more: nothing to do about it.
    let _ = writeln!(io::stderr(), "{}", message(&text.to_string()));
}

fn write_out(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => {}
        // There is nobody left to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            note(format_args!(
                "error: cannot write to standard output: {error}"
            ));
            std::process::exit(1);
        }
    }
}

/// Writes a line to standard output.
pub fn println(text: impl std::fmt::Display) {
    print(format_args!("{text}\n"));
}

/// Prints a JSON value with indentation.
pub fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => println(text),
        Err(error) => println(serde_json::json!({ "error": error.to_string() })),
    }
}

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

/// A metric's value as people read it: shares in per cent, others with four digits; undefined ones as a dash.
pub fn metric(metric: lowrank_train::metrics::Metric, value: f64) -> String {
    use lowrank_train::metrics::Metric;
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

/// A command line that a POSIX shell reads back as these words.
pub fn shell_line(words: impl IntoIterator<Item = String>) -> String {
    let quoted = words.into_iter().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let mut table = TextTable::new(&["what", "n"]);
        table.row(["a", "1,000"]).row(["long name", "5"]);
        assert_eq!(
            table.to_string(),
            "  what           n\n  ----------------\n  a          1,000\n  long name      5\n"
        );
    }

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

    #[test]
    fn shell_lines_read_back() {
        let words = ["lowrank", "--labels", "very good", "it's", ""].map(str::to_owned);
        assert_eq!(
            shell_line(words),
            r"lowrank --labels 'very good' 'it'\''s' ''"
        );
    }
}
