//! What becomes of rows that cannot be used: the file is refused, or they are left out, counted and
//! shown, up to a share.

use serde::{Deserialize, Serialize};

use super::LoadSpec;
use crate::error::{DataError, MAX_FAULTS_SHOWN, RowFault};
use crate::rows::Table;

/// What to do with a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRows {
    /// Refuse the file.
    #[default]
    Error,
    /// Leave it out, if there are not too many: see [`LoadSpec::max_bad_rows`].
    Skip,
}

/// The largest share of rows that is left out unless told otherwise.
pub const DEFAULT_MAX_BAD_ROWS: f64 = 0.01;

/// Refuses the file if it may not lose these rows.
pub(super) fn allow(table: &Table, faults: &[RowFault], spec: &LoadSpec) -> Result<(), DataError> {
    let (total, rows) = (faults.len(), table.row_count());
    // One row is never too many of a small file, unless it is all of it.
    let most = ((spec.max_bad_rows * rows as f64) as usize).max(1);
    match spec.bad_rows {
        BadRows::Skip if total <= most && total < rows => Ok(()),
        BadRows::Skip => Err(DataError::TooManyBadRows {
            path: table.path().into(),
            total,
            rows,
            share: spec.max_bad_rows,
            faults: faults.iter().take(MAX_FAULTS_SHOWN).cloned().collect(),
        }),
        BadRows::Error => Err(table.rows_error(faults)),
    }
}

/// What a user should know of rows that were left out: how many, and the first of them with line
/// and reason.
pub(super) fn note(faults: &[RowFault], rows: usize) -> String {
    let many = match faults.len() {
        1 => format!("1 of {rows} rows cannot be used and is left out"),
        n => format!("{n} of {rows} rows cannot be used and are left out"),
    };
    let shown = faults.iter().take(MAX_FAULTS_SHOWN);
    let mut note = shown.fold(many, |text, fault| format!("{text}\n  {fault}"));
    if faults.len() > MAX_FAULTS_SHOWN {
        note.push_str(&format!("\n  and {} more", faults.len() - MAX_FAULTS_SHOWN));
    }
    note
}
