//! The files of before PyTorch 1.6: pickles in a row (a magic number, a version, facts about the
//! machine, the value, the keys of the storages), then each storage as its length and its values.

use std::collections::HashMap;

use super::{Region, TorchFault, fault};
use crate::Result;
use crate::pickle::{Input, Node, Pickle, ValueRef, run};
use crate::source::Source;

/// `0x1950a86a20f9469cfc6c`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL_VERSION: i64 = 1001;

/// Reads the pickles and finds the storages behind them.
pub(super) fn read(source: &Source) -> Result<(Pickle, HashMap<String, Region>)> {
    let not_torch = |message: &str| {
        fault(
            source,
            TorchFault::NotTorch {
                message: message.to_owned(),
            },
        )
    };
    let mut input = Input::new(source, 0, source.len());
    let magic = run(&mut input)?;
    if !matches!(magic.root().node(), Node::BigInt(bytes) if bytes.as_slice() == MAGIC) {
        return Err(not_torch("it does not begin with PyTorch's magic number"));
    }
    if run(&mut input)?.root().as_i64() != Some(PROTOCOL_VERSION) {
        return Err(not_torch("its protocol version is not 1001"));
    }
    let machine = run(&mut input)?;
    if machine
        .root()
        .get("little_endian")
        .and_then(ValueRef::as_bool)
        == Some(false)
    {
        return Err(fault(source, TorchFault::BigEndian));
    }
    let value = run(&mut input)?;
    let keys = run(&mut input)?;
    let mut storages = element_sizes(&value);
    let mut position = input.position();
    let mut regions = HashMap::new();
    for key in keys.root().elements() {
        let Some(key) = key.as_str() else {
            return Err(not_torch("a storage key is not text"));
        };
        // A storage that no tensor uses has no known element size, so what follows it could not be
        // found.
        let Some(size) = storages.remove(key) else {
            return Err(not_torch(&format!(
                "storage `{key}` is listed twice or never used"
            )));
        };
        let mut len = [0; 8];
        source.read_exact_at(&mut len, position)?;
        let offset = position + 8;
        let bytes = u64::from_le_bytes(len).checked_mul(size);
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        match (bytes, end) {
            (Some(bytes), Some(end)) if end <= source.len() => {
                regions.insert(key.to_owned(), Region { offset, bytes });
                position = end;
            }
            _ => {
                let message = format!(
                    "storage `{key}` is said to have {} values, more than the rest of the file",
                    u64::from_le_bytes(len)
                );
                return Err(fault(source, TorchFault::Archive { message }));
            }
        }
    }
    Ok((value, regions))
}

/// Bytes of one element of each storage that the value mentions.
fn element_sizes(value: &Pickle) -> HashMap<std::sync::Arc<str>, u64> {
    value
        .storages()
        .map(|storage| {
            let size = storage.dtype.map_or(1, |dtype| dtype.size_bytes() as u64);
            (std::sync::Arc::clone(&storage.key), size)
        })
        .collect()
}
