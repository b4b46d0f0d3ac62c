//! The list of tensors: names, shapes, types and places, each checked against the file. Reads no
//! values.

use std::collections::HashSet;

use super::cursor::{Cursor, Trouble};
use super::fault::GgufFault;
use super::metadata::{Metadata, check_count, name};
use crate::quantised::BlockFormat;

/// Where the data begin and each tensor in them, unless the file says otherwise.
pub(super) const ALIGNMENT: u64 = 32;

/// The longest name of a tensor in bytes; ggml's own limit is 63.
const LONGEST_NAME: u64 = 1024;

/// The most dimensions.
const MOST_DIMENSIONS: u32 = 4;

/// A tensor and where its blocks lie.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its shape, the innermost dimension last, as everywhere else.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub format: &'static BlockFormat,
    /// Of its first byte, from the start of its file.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Which of the parts holds it.
    pub file: usize,
}

impl GgufTensor {
    /// The number of values.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Reads `count` tensors and checks that their data lie in the file, apart from each other.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    metadata: &Metadata,
    count: u64,
    file: usize,
) -> Result<Vec<GgufTensor>, Trouble> {
    // A name, no dimensions, a type and an offset.
    let most = cursor.left() / (8 + 4 + 4 + 8);
    check_count("tensors", count, most, cursor)?;
    let alignment = alignment(metadata)?;
    let mut tensors = Vec::new();
    for _ in 0..count {
        tensors.push(tensor(cursor, alignment, file)?);
    }
    if tensors.is_empty() {
        return Ok(tensors);
    }
    let data = u128::from(cursor.at()).next_multiple_of(u128::from(alignment));
    let len = cursor.len();
    for tensor in &mut tensors {
        let (start, bytes) = (data + u128::from(tensor.offset), u128::from(tensor.bytes));
        if start + bytes > u128::from(len) {
            return Err(GgufFault::Outside {
                what: format!("tensor `{}`", tensor.name),
                at: u64::try_from(start).unwrap_or(u64::MAX),
                needed: bytes,
                len,
            }
            .into());
        }
        // It is at most the file's length.
        tensor.offset = start as u64;
    }
    check_overlap(&tensors, data as u64)?;
    Ok(tensors)
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufFault> {
    let key = "general.alignment";
    let found = metadata.unsigned(key)?.unwrap_or(ALIGNMENT);
    if found.is_power_of_two() && found <= 1 << 31 {
        return Ok(found);
    }
    Err(GgufFault::Key {
        key: key.to_owned(),
        found: format!("the number {found}"),
        expected: "a power of two".to_owned(),
    })
}

/// One entry; its offset is still that in the data.
fn tensor(cursor: &mut Cursor<'_>, alignment: u64, file: usize) -> Result<GgufTensor, Trouble> {
    let name = name(cursor, "the name of a tensor", LONGEST_NAME)?;
    let count = cursor.u32(&name)?;
    if count > MOST_DIMENSIONS {
        return Err(GgufFault::Dimensions { name, found: count }.into());
    }
    let mut stored = Vec::new();
    for _ in 0..count {
        stored.push(cursor.u64(&name)?);
    }
    let found = cursor.u32(&name)?;
    let offset = cursor.u64(&name)?;
    let Some(format) = BlockFormat::from_id(found) else {
        return Err(GgufFault::TensorType { name, found }.into());
    };
    let row = stored.first().copied().unwrap_or(1);
    if !row.is_multiple_of(format.values as u64) {
        return Err(GgufFault::Row {
            name,
            row,
            format: format.name,
            values: format.values,
        }
        .into());
    }
    let Some((shape, bytes)) = sizes(&stored, format) else {
        let shape = stored;
        return Err(GgufFault::Shape { name, shape }.into());
    };
    if !offset.is_multiple_of(alignment) {
        return Err(GgufFault::Alignment {
            name,
            offset,
            alignment,
        }
        .into());
    }
    Ok(GgufTensor {
        name,
        shape,
        format,
        offset,
        bytes,
        file,
    })
}

/// The shape, outermost first, and the bytes of the values; nothing where they cannot be counted or
/// there are none.
fn sizes(stored: &[u64], format: &BlockFormat) -> Option<(Vec<usize>, u64)> {
    let count = stored.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
    if count == 0 {
        return None;
    }
    let bytes = (count / format.values as u64).checked_mul(format.bytes as u64)?;
    // As f32 it must be countable too.
    usize::try_from(count.checked_mul(4)?).ok()?;
    let shape = stored.iter().rev().map(|&d| d as usize).collect();
    Some((shape, bytes))
}

fn check_overlap(tensors: &[GgufTensor], data: u64) -> Result<(), GgufFault> {
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        let end = pair[0].offset + pair[0].bytes;
        if pair[1].offset < end {
            return Err(GgufFault::Overlap {
                name: pair[1].name.clone(),
                start: pair[1].offset - data,
                other: pair[0].name.clone(),
                end: end - data,
            });
        }
    }
    Ok(())
}

/// No name may stand twice, in one part or in two.
pub(super) fn check_names(tensors: &[GgufTensor]) -> Result<(), GgufFault> {
    let mut seen = HashSet::new();
    let twice = tensors.iter().find(|tensor| !seen.insert(&tensor.name));
    match twice {
        None => Ok(()),
        Some(tensor) => Err(GgufFault::Duplicate {
            what: "tensor",
            name: tensor.name.clone(),
        }),
    }
}
