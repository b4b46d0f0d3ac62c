//! Plain text: a line a row, as `load_dataset("text")` reads it. Blank lines are passed over.

use super::{Fields, Parsed, Row};
use crate::error::{RowFault, RowFaultKind};

/// The one column of plain text.
pub(super) const COLUMN: &str = "text";

/// Each line that is not blank as a row.
pub(super) fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed {
        columns: vec![COLUMN.into()],
        ..Parsed::default()
    };
    let body = text.strip_suffix('\n').unwrap_or(text);
    for (text, line) in body.split('\n').zip(1..) {
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.trim().is_empty() {
            parsed.blank_lines += u64::from(!body.is_empty());
        } else if text.contains('\0') {
            parsed.faults.push(RowFault {
                line,
                column: None,
                kind: RowFaultKind::NulByte,
            });
        } else {
            parsed.rows.push(Row {
                line,
                fields: Fields::Text(vec![text.into()]),
            });
        }
    }
    parsed
        .notes
        .push("each line that is not blank is a row".into());
    parsed
}
