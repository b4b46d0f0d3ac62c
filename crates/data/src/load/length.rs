//! Rows that are longer than the maximum length.

use super::LongRows;
use super::collect::Outcome;
use super::prompt::fault;
use super::row::RowReader;
use crate::error::{RowFault, RowFaultKind};
use crate::rows::Row;

impl RowReader<'_> {
    /// What becomes of a row of so many tokens if they are too many and it is not cut: it is left
    /// out, or refused.
    pub(super) fn too_long(
        &self,
        row: &Row,
        column: &str,
        tokens: usize,
    ) -> Result<Option<Outcome>, RowFault> {
        let Some(max_length) = self.spec.max_length.filter(|most| tokens > *most) else {
            return Ok(None);
        };
        let kind = RowFaultKind::TooLong { tokens, max_length };
        match self.spec.long_rows {
            LongRows::Truncate | LongRows::Blocks => Ok(None),
            LongRows::Drop => Ok(Some(Outcome::TooLong(tokens, fault(row, column, kind)))),
            LongRows::Refuse => Err(fault(row, column, kind)),
        }
    }

    /// The length at which the tokenizer is to cut.
    pub(super) fn cut_at(&self) -> Option<usize> {
        match self.spec.long_rows {
            LongRows::Truncate => self.spec.max_length,
            LongRows::Drop | LongRows::Refuse | LongRows::Blocks => None,
        }
    }
}
