//! The files of PyTorch 1.6 and later: a zip archive of stored (never compressed) entries,
//! `<name>/data.pkl` with the value and `<name>/data/<key>` with each storage. Only what such
//! archives use of zip is read.

use std::collections::HashMap;

use super::{Region, TorchFault, fault};
use crate::Result;
use crate::error::FormatError;
use crate::pickle::{Input, Pickle, run};
use crate::source::Source;

const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
const CENTRAL_HEADER: [u8; 4] = *b"PK\x01\x02";
const END_RECORD: [u8; 4] = *b"PK\x05\x06";
const END_RECORD_64: [u8; 4] = *b"PK\x06\x06";
const END_LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
/// An end record with the longest comment.
const LONGEST_END: u64 = 22 + 65_535;

/// Reads the archive's directory and its pickle.
pub(super) fn read(source: &Source) -> Result<(Pickle, HashMap<String, Region>)> {
    let entries = Directory { source }.entries()?;
    let pickle_name = entries
        .keys()
        .filter(|name| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"))
        .min_by_key(|name| name.len())
        .cloned();
    let Some(pickle_name) = pickle_name else {
        return Err(damaged(source, "it has no `data.pkl`".into()));
    };
    let prefix = pickle_name.trim_end_matches("data.pkl");
    let data_prefix = format!("{prefix}data/");
    if entries.contains_key(&format!("{prefix}constants.pkl")) {
        return Err(fault(source, TorchFault::TorchScript));
    }
    let mut packed = entries.iter().filter(|(_, entry)| !entry.is_plain);
    if let Some((name, _)) =
        packed.find(|(name, _)| **name == pickle_name || name.starts_with(&data_prefix))
    {
        return Err(damaged(
            source,
            format!("entry `{name}` is compressed or encrypted, expected it stored plainly"),
        ));
    }
    if let Some(order) = entries.get(&format!("{prefix}byteorder"))
        && source.read_vec(order.region.offset, order.region.bytes.min(16))? == b"big"
    {
        return Err(fault(source, TorchFault::BigEndian));
    }
    let region = entries[&pickle_name].region;
    let mut input = Input::new(source, region.offset, region.offset + region.bytes);
    let pickle = run(&mut input)?;
    let regions = entries
        .iter()
        .filter_map(|(name, entry)| {
            Some((name.strip_prefix(&data_prefix)?.to_owned(), entry.region))
        })
        .collect();
    Ok((pickle, regions))
}

fn damaged(source: &Source, message: String) -> FormatError {
    fault(source, TorchFault::Archive { message })
}

/// One entry of the archive.
#[derive(Debug, Clone, Copy)]
struct Entry {
    region: Region,
    /// Neither compressed nor encrypted.
    is_plain: bool,
}

struct Directory<'a> {
    source: &'a Source,
}

impl Directory<'_> {
    /// Every entry and where its bytes lie, all of them inside the file.
    fn entries(&self) -> Result<HashMap<String, Entry>> {
        let (start, len) = self.location()?;
        let directory = self.source.read_vec(start, len)?;
        let mut entries = HashMap::new();
        let mut rest = directory.as_slice();
        while !rest.is_empty() {
            let (name, entry, size) = self.entry(rest)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(self.damaged(format!("entry `{name}` is listed twice")));
            }
            rest = &rest[size..];
        }
        Ok(entries)
    }

    fn damaged(&self, message: String) -> FormatError {
        damaged(self.source, message)
    }

    /// Where the central directory lies: offset and length, inside the file.
    fn location(&self) -> Result<(u64, u64)> {
        let file_len = self.source.len();
        let tail_len = file_len.min(LONGEST_END);
        let tail_start = file_len - tail_len;
        let tail = self.source.read_vec(tail_start, tail_len)?;
        let at = tail
            .windows(22)
            .rposition(|window| window[..4] == END_RECORD)
            .ok_or_else(|| self.damaged("its end is missing (no directory of entries)".into()))?;
        let record = &tail[at..];
        let mut len = u64::from(u32_at(record, 12));
        let mut start = u64::from(u32_at(record, 16));
        let locator_at = at
            .checked_sub(20)
            .filter(|&at| tail[at..][..4] == END_LOCATOR_64);
        if let Some(locator_at) = locator_at {
            let record_at = u64_at(&tail[locator_at..], 8);
            let inside = record_at.checked_add(56).is_some_and(|end| end <= file_len);
            if !inside {
                return Err(self.damaged("its 64-bit directory lies outside the file".into()));
            }
            let record = self.source.read_vec(record_at, 56)?;
            if record[..4] != END_RECORD_64 {
                return Err(self.damaged("its 64-bit directory is not where it should be".into()));
            }
            len = u64_at(&record, 40);
            start = u64_at(&record, 48);
        }
        if start.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(self.damaged("its directory of entries lies outside the file".into()));
        }
        Ok((start, len))
    }

    /// The entry at the start of `bytes`: name, entry, and the bytes that its record takes.
    fn entry(&self, bytes: &[u8]) -> Result<(String, Entry, usize)> {
        const FIXED: usize = 46;
        let cut = || self.damaged("its directory of entries is cut short".into());
        let fixed = bytes.get(..FIXED).ok_or_else(cut)?;
        if fixed[..4] != CENTRAL_HEADER {
            return Err(self.damaged("its directory of entries is garbled".into()));
        }
        let (flags, method) = (u16_at(fixed, 8), u16_at(fixed, 10));
        let name_len = usize::from(u16_at(fixed, 28));
        let extra_len = usize::from(u16_at(fixed, 30));
        let comment_len = usize::from(u16_at(fixed, 32));
        let size = FIXED + name_len + extra_len + comment_len;
        let variable = bytes.get(FIXED..size).ok_or_else(cut)?;
        let name = String::from_utf8_lossy(&variable[..name_len]).into_owned();
        let extra = &variable[name_len..name_len + extra_len];
        let mut fields = [
            u64::from(u32_at(fixed, 24)),
            u64::from(u32_at(fixed, 20)),
            u64::from(u32_at(fixed, 42)),
        ];
        widen(&mut fields, extra)
            .ok_or_else(|| self.damaged(format!("entry `{name}` lacks its 64-bit size")))?;
        let [uncompressed, compressed, local] = fields;
        let is_plain = method == 0 && flags & 1 == 0;
        if is_plain && uncompressed != compressed {
            return Err(self.damaged(format!("entry `{name}` has two sizes")));
        }
        let offset = self.data_offset(&name, local)?;
        if offset
            .checked_add(compressed)
            .is_none_or(|end| end > self.source.len())
        {
            return Err(self.damaged(format!("entry `{name}` lies outside the file")));
        }
        let region = Region {
            offset,
            bytes: compressed,
        };
        Ok((name, Entry { region, is_plain }, size))
    }

    /// Where the data behind a local header begins.
    fn data_offset(&self, name: &str, local: u64) -> Result<u64> {
        const FIXED: u64 = 30;
        if local
            .checked_add(FIXED)
            .is_none_or(|end| end > self.source.len())
        {
            return Err(self.damaged(format!("entry `{name}` lies outside the file")));
        }
        let header = self.source.read_vec(local, FIXED)?;
        if header[..4] != LOCAL_HEADER {
            return Err(self.damaged(format!("entry `{name}` is not where it should be")));
        }
        let (name_len, extra_len) = (u16_at(&header, 26), u16_at(&header, 28));
        Ok(local + FIXED + u64::from(name_len) + u64::from(extra_len))
    }
}

/// Replaces each 32-bit field that is all ones by its 64-bit value from the extra block; none if
/// that is missing.
fn widen(fields: &mut [u64; 3], mut extra: &[u8]) -> Option<()> {
    const ZIP64_TAG: u16 = 1;
    if fields.iter().all(|&field| field != u64::from(u32::MAX)) {
        return Some(());
    }
    while extra.len() >= 4 {
        let (tag, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let mut body = extra.get(4..4 + len)?;
        if tag == ZIP64_TAG {
            for field in fields
                .iter_mut()
                .filter(|field| **field == u64::from(u32::MAX))
            {
                *field = u64::from_le_bytes(*body.first_chunk::<8>()?);
                body = &body[8..];
            }
            return Some(());
        }
        extra = &extra[4 + len..];
    }
    None
}

/// Little-endian fields of records whose length has been checked.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
