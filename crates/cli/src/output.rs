//! What the program prints when all goes well: text tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use lowrank_data::check::Run;

use crate::printable::{cut, message, printable};
pub use lowrank_run::text::{bytes, count, duration, metric, percent};

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

/// Writes to standard output, control characters escaped. A reader that went away (`| head`) ends
/// the program quietly; a full disk is an error.
pub fn print(text: impl std::fmt::Display) {
    write_out(&printable(&text.to_string()));
}

/// What colours tokens that are learned, and those that are not, and what ends both.
const LEARNED: &str = "\u{1b}[32m";
const NOT_LEARNED: &str = "\u{1b}[2m";
const PLAIN: &str = "\u{1b}[0m";

/// How tokens that are learned are told from others: by colours on a terminal whose user has not
/// refused them (no-color.org), by marks elsewhere.
pub fn learned() -> &'static dyn Fn(&Run) -> String {
    let refuses = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    match io::stdout().is_terminal() && !refuses && !is_dumb {
        true => &coloured,
        false => &Run::marked,
    }
}

fn coloured(run: &Run) -> String {
    let colour = if run.is_learned { LEARNED } else { NOT_LEARNED };
    format!("{colour}{}{PLAIN}", printable(&run.text))
}

/// Writes a line to standard output in which the colours of [`learned`] may stand. In a file's text
/// they colour too, which harms nobody; all else that moves a terminal is escaped.
pub fn println_painted(text: impl std::fmt::Display) {
    write_out(&format!("{}\n", painted(&text.to_string())));
}

fn painted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive('m') {
        let colours = [LEARNED, NOT_LEARNED, PLAIN];
        match colours.iter().find(|colour| part.ends_with(**colour)) {
            Some(colour) => {
                out.push_str(&printable(&part[..part.len() - colour.len()]));
                out.push_str(colour);
            }
            None => out.push_str(&printable(part)),
        }
    }
    out
}

/// Writes text that a model made: as it is into a file or pipe, control characters escaped on a
/// terminal.
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

/// Names in a cell.
pub fn names(names: &[String]) -> String {
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
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
    fn colours_pass_and_what_else_moves_a_terminal_does_not() {
        let run = |is_learned, text: &str| Run {
            is_learned,
            text: text.to_owned(),
        };
        let shown = coloured(&run(true, "4\u{1b}[2Jm")) + &coloured(&run(false, "?"));
        assert_eq!(
            painted(&shown),
            "\u{1b}[32m4\\u001b[2Jm\u{1b}[0m\u{1b}[2m?\u{1b}[0m"
        );
        assert_eq!(painted("\u{1b}[31mred"), "\\u001b[31mred");
        assert_eq!(run(true, "4").marked() + &run(false, "?").marked(), "«4»?");
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
