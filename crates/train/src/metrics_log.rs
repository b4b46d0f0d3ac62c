//! `metrics.jsonl`: one row an optimizer step, floats with all their digits.
//!
//! A row is written in one call and at once, so a killed run leaves at most one broken last line; a
//! resumed run cuts the file back to its checkpoint's step before it goes on.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use lowrank_formats::FormatError;
use lowrank_formats::files::{self, Appender, Stream};
use serde::{Deserialize, Serialize};

use crate::metrics::Evaluation;

/// One row of the log: what happened at an optimizer step. Step 0 is the evaluation before
/// training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Mean loss over the step's counted targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate of the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Norm of the gradients before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Real tokens that went through the model in this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Rows of this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Real tokens per second of this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Seconds of training up to this step, those before a resume included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_s: Option<f64>,
    /// Counted bytes on the device at their highest so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The evaluation on the validation rows after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<Evaluation>,
}

/// What can go wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum MetricsLogError {
    /// The file could not be opened, read or written.
    #[error(transparent)]
    File(#[from] FormatError),
    /// A row before the last is not a row.
    #[error("`{}`, line {line}: not a row of metrics", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    file: Appender,
}

impl MetricsLog {
    /// A new, empty log.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> Result<Self, MetricsLogError> {
        let file = Appender::open(path, 0)?;
        Ok(Self { file })
    }

    /// The log of a run that goes on after `step`: rows after it, and a broken last line, are cut
    /// off.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds something else than rows.
    pub fn resume(path: &Path, step: u64) -> Result<Self, MetricsLogError> {
        let keep = match files::exists(path) {
            true => length_up_to(path, step)?,
            false => 0,
        };
        let file = Appender::open(path, keep)?;
        Ok(Self { file })
    }

    /// What is wrong with the log of a run that has done `step` steps: it has one row for each, in
    /// order. Nothing where it is whole.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else than rows.
    pub fn lost(path: &Path, step: u64) -> Result<Option<String>, MetricsLogError> {
        let (mut next, mut missing, mut twice) = (1, 0, 0);
        for row in Self::read(path)? {
            if row.step < next {
                twice += 1;
                continue;
            }
            missing += row.step - next;
            next = row.step + 1;
        }
        missing += (step + 1).saturating_sub(next);
        let mut faults = Vec::new();
        if missing > 0 {
            faults.push(format!("{missing} of the {step} rows are missing"));
        }
        if twice > 0 {
            faults.push(format!("{twice} rows stand there twice or out of order"));
        }
        let fault = format!("`{}`: {}", path.display(), faults.join(", "));
        Ok((!faults.is_empty()).then_some(fault))
    }

    /// Adds a row.
    ///
    /// # Errors
    /// The row cannot be written.
    pub fn write(&mut self, row: &MetricsRow) -> Result<(), MetricsLogError> {
        let mut line = serde_json::to_vec(row)
            .map_err(|error| FormatError::io("write", self.file.path())(error.into()))?;
        line.push(b'\n');
        Ok(self.file.append(&line)?)
    }

    /// All rows of a log, a broken last line left out.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else than rows.
    pub fn read(path: &Path) -> Result<Vec<MetricsRow>, MetricsLogError> {
        let mut rows = Vec::new();
        for_each_row(path, |row, _| rows.push(row))?;
        Ok(rows)
    }
}

fn length_up_to(path: &Path, step: u64) -> Result<u64, MetricsLogError> {
    let mut keep = 0;
    for_each_row(path, |row, end| {
        if row.step <= step {
            keep = end;
        }
    })?;
    Ok(keep)
}

/// Calls `f` with each row and the byte at which it ends. A last line without its line feed is a
/// broken one.
fn for_each_row(path: &Path, mut f: impl FnMut(MetricsRow, u64)) -> Result<(), MetricsLogError> {
    let mut reader = Stream::open(path)?;
    let mut line = Vec::new();
    let mut end = 0;
    let mut number = 0;
    loop {
        line.clear();
        let n = reader
            .read_until(b'\n', &mut line)
            .map_err(FormatError::io("read", path))?;
        if n == 0 || line.last() != Some(&b'\n') {
            return Ok(());
        }
        number += 1;
        end += n as u64;
        let row = serde_json::from_slice(&line).map_err(|source| MetricsLogError::Row {
            path: path.to_owned(),
            line: number,
            source,
        })?;
        f(row, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, loss: f64) -> MetricsRow {
        MetricsRow {
            step,
            epoch: step as f64 / 3.0,
            loss: Some(loss),
            ..MetricsRow::default()
        }
    }

    #[test]
    fn floats_come_back_with_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let rows = [
            row(1, 0.1 + 0.2),
            row(2, f64::MIN_POSITIVE),
            row(3, 1.0 / 3.0),
        ];
        rows.iter().for_each(|r| log.write(r).unwrap());
        assert_eq!(MetricsLog::read(&path).unwrap(), rows);
    }

    #[test]
    fn resume_cuts_later_rows_and_a_broken_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        (1..=5).for_each(|s| log.write(&row(s, 1.0)).unwrap());
        log.file.append(b"{\"step\":6,\"lo").unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap().len(), 5);
        let mut log = MetricsLog::resume(&path, 3).unwrap();
        log.write(&row(4, 2.0)).unwrap();
        let steps: Vec<_> = MetricsLog::read(&path)
            .unwrap()
            .iter()
            .map(|r| (r.step, r.loss))
            .collect();
        assert_eq!(
            steps,
            [
                (1, Some(1.0)),
                (2, Some(1.0)),
                (3, Some(1.0)),
                (4, Some(2.0))
            ]
        );
    }

    #[test]
    fn lost_and_repeated_rows_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lost = |steps: &[u64], step: u64| {
            let mut log = MetricsLog::create(&path).unwrap();
            steps.iter().for_each(|&s| log.write(&row(s, 1.0)).unwrap());
            MetricsLog::lost(&path, step).unwrap().unwrap_or_default()
        };
        assert_eq!(lost(&[1, 2, 3], 3), "");
        assert_eq!(lost(&[], 0), "");
        assert!(lost(&[1, 2], 5).ends_with("3 of the 5 rows are missing"));
        assert!(lost(&[1, 4, 5], 5).ends_with("2 of the 5 rows are missing"));
        assert!(lost(&[3], 3).ends_with("2 of the 3 rows are missing"));
        assert!(lost(&[1, 2, 2, 3], 3).ends_with("1 rows stand there twice or out of order"));
        let both = lost(&[1, 1, 3], 4);
        assert!(
            both.contains("2 of the 4") && both.contains("1 rows"),
            "{both}"
        );
    }

    #[test]
    fn resume_without_a_log_starts_one_and_foreign_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsLog::resume(&path, 3).unwrap();
        std::fs::write(&path, "{\"step\":1,\"epoch\":0}\nnot a row\n").unwrap();
        let error = MetricsLog::read(&path).unwrap_err();
        assert!(
            error.to_string().ends_with("line 2: not a row of metrics"),
            "{error}"
        );
    }
}
