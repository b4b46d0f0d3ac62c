//! The safetensors format: a checked header, and writers whose bytes equal those of the Python
//! library. Knows no tensor's meaning.
//!
//! Layout: 8 bytes little-endian header length; JSON
//! `{"__metadata__": {..}, name: {dtype, shape, data_offsets}}` padded with spaces to a multiple of
//! 8; then the data, contiguous, without gaps or overlaps, to the file's last byte.

mod write;

pub use write::{
    OutTensor, TensorSpec, write_model, write_safetensors, write_safetensors_streaming,
};

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::dtype::DType;

/// The reference implementation's limit for a header.
const LARGEST_HEADER_BYTES: u64 = 100_000_000;

/// The key that holds text about the file rather than a tensor.
const METADATA_KEY: &str = "__metadata__";

/// Which rule of the format a file breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsFault {
    /// There is no room for the header's length.
    #[error("it has {found} bytes, expected at least 8")]
    TooShort {
        /// The file's length.
        found: u64,
    },
    /// The header would reach past the end of the file.
    #[error("its header is said to take {header} bytes, but only {found} follow")]
    HeaderOutside {
        /// The length that the file claims.
        header: u64,
        /// The bytes after the length field.
        found: u64,
    },
    /// The header's length is beyond reason.
    #[error("its header is said to take {header} bytes, expected at most {LARGEST_HEADER_BYTES}")]
    HeaderTooLarge {
        /// The length that the file claims.
        header: u64,
    },
    /// The header is not a JSON object as the format asks for.
    #[error("its header cannot be read: {message} (header byte {column})")]
    Header {
        /// The parser's words.
        message: String,
        /// Where in the header, from 1.
        column: usize,
    },
    /// A name stands twice.
    #[error("tensor `{name}` is listed twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// An element type that does not exist, or that is not supported.
    #[error("tensor `{name}` has the unknown type `{dtype}`")]
    UnknownDType {
        /// The tensor.
        name: String,
        /// Its type as written.
        dtype: String,
    },
    /// A shape whose size cannot be counted.
    #[error("tensor `{name}` has the absurd shape {shape:?}")]
    Overflow {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Shape and data disagree.
    #[error(
        "tensor `{name}` is {dtype} {shape:?}, which takes {expected} bytes, but its data has {found}"
    )]
    SizeMismatch {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape ask for.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// A range that runs backwards.
    #[error("tensor `{name}` has its data from byte {start} to {end}")]
    BackwardRange {
        /// The tensor.
        name: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "the data of tensor `{name}` begins at byte {start}, inside the tensor before it, which ends at {previous_end}"
    )]
    Overlap {
        /// The tensor.
        name: String,
        /// Where it begins.
        start: u64,
        /// Where the one before ends.
        previous_end: u64,
    },
    /// Bytes that belong to no tensor.
    #[error(
        "the data of tensor `{name}` begins at byte {start}, expected {expected}: the bytes between belong to no tensor"
    )]
    Gap {
        /// The tensor after the gap.
        name: String,
        /// Where it begins.
        start: u64,
        /// Where it should begin.
        expected: u64,
    },
    /// The file ends before the data does.
    #[error("it has {found} bytes, but its header describes {expected}")]
    Truncated {
        /// The file's length.
        found: u64,
        /// The length that the header implies.
        expected: u64,
    },
    /// Bytes follow the last tensor.
    #[error("it has {found} bytes, {} more than its header describes", found - expected)]
    TrailingBytes {
        /// The file's length.
        found: u64,
        /// The length that the header implies.
        expected: u64,
    },
}

impl SafetensorsFault {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SafetensorsFault::TooShort { .. }
            | SafetensorsFault::Truncated { .. }
            | SafetensorsFault::HeaderOutside { .. } => {
                Some("the file is incomplete; download or copy it again")
            }
            SafetensorsFault::HeaderTooLarge { .. } | SafetensorsFault::Header { .. } => Some(
                "the file is damaged or of another format; a Git LFS pointer is a small text file",
            ),
            _ => None,
        }
    }
}

/// One tensor of a checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEntry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
    /// Where its data begins, in bytes from the start of the file.
    pub offset: u64,
}

/// A header that has been checked against the length of its file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The tensors in the order of their data.
    pub entries: Vec<HeaderEntry>,
    /// The text about the file, in the file's order.
    pub metadata: Vec<(String, String)>,
}

impl Header {
    /// The header's length, from a file's first 8 bytes, checked against the length of the file.
    pub fn json_len(prefix: [u8; 8], file_len: u64) -> Result<u64, SafetensorsFault> {
        let header = u64::from_le_bytes(prefix);
        let found = file_len.saturating_sub(8);
        if header > found {
            return Err(SafetensorsFault::HeaderOutside { header, found });
        }
        if header > LARGEST_HEADER_BYTES {
            return Err(SafetensorsFault::HeaderTooLarge { header });
        }
        Ok(header)
    }

    /// Parses the JSON of a header and checks every rule of the format against a file of `file_len`
    /// bytes.
    pub fn parse(json: &[u8], file_len: u64) -> Result<Header, SafetensorsFault> {
        if json.first() != Some(&b'{') {
            return Err(SafetensorsFault::Header {
                message: "expected it to begin with `{`".into(),
                column: 1,
            });
        }
        let raw: RawHeader =
            serde_json::from_slice(json).map_err(|error| SafetensorsFault::Header {
                message: crate::pyjson::without_position(&error),
                column: error.column(),
            })?;
        let data_start = 8 + json.len() as u64;
        let mut ranges = Vec::with_capacity(raw.tensors.len());
        let mut names = HashSet::with_capacity(raw.tensors.len());
        for (name, tensor) in &raw.tensors {
            if !names.insert(name.as_str()) {
                return Err(SafetensorsFault::Duplicate { name: name.clone() });
            }
            ranges.push(check_tensor(name, tensor)?);
        }
        drop(names);
        ranges.sort_by_key(|range| (range.start, range.end));
        let data_len = check_ranges(&ranges)?;
        check_file_len(data_start, data_len, file_len)?;
        let entries = ranges
            .into_iter()
            .map(|range| HeaderEntry {
                name: range.name.to_owned(),
                dtype: range.dtype,
                shape: range.shape,
                offset: data_start + range.start,
            })
            .collect();
        Ok(Header {
            entries,
            metadata: raw.metadata,
        })
    }
}

/// A tensor whose size agrees with its range; the range is relative to the data's start.
struct Range<'a> {
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
    start: u64,
    end: u64,
}

fn check_tensor<'a>(name: &'a str, tensor: &RawTensor) -> Result<Range<'a>, SafetensorsFault> {
    let name_owned = || name.to_owned();
    let Some(dtype) = DType::from_name(&tensor.dtype) else {
        return Err(SafetensorsFault::UnknownDType {
            name: name_owned(),
            dtype: tensor.dtype.clone(),
        });
    };
    let overflow = || SafetensorsFault::Overflow {
        name: name_owned(),
        shape: tensor.shape.clone(),
    };
    // Multiplied without regard to zeros, as the reference does: [0, 2^40, 2^40] is absurd too.
    let mut expected = dtype.size_bytes() as u64;
    let mut shape = Vec::with_capacity(tensor.shape.len());
    for &dimension in &tensor.shape {
        expected = expected.checked_mul(dimension).ok_or_else(overflow)?;
        shape.push(usize::try_from(dimension).map_err(|_| overflow())?);
    }
    let (start, end) = tensor.data_offsets;
    let Some(found) = end.checked_sub(start) else {
        return Err(SafetensorsFault::BackwardRange {
            name: name_owned(),
            start,
            end,
        });
    };
    if found != expected {
        return Err(SafetensorsFault::SizeMismatch {
            name: name_owned(),
            dtype,
            shape,
            expected,
            found,
        });
    }
    Ok(Range {
        name,
        dtype,
        shape,
        start,
        end,
    })
}

/// Ranges sorted by start must follow each other exactly. Gives the length of all data.
fn check_ranges(ranges: &[Range<'_>]) -> Result<u64, SafetensorsFault> {
    let mut expected = 0;
    for range in ranges {
        let name = || range.name.to_owned();
        if range.start < expected {
            return Err(SafetensorsFault::Overlap {
                name: name(),
                start: range.start,
                previous_end: expected,
            });
        }
        if range.start > expected {
            return Err(SafetensorsFault::Gap {
                name: name(),
                start: range.start,
                expected,
            });
        }
        expected = range.end;
    }
    Ok(expected)
}

fn check_file_len(data_start: u64, data_len: u64, found: u64) -> Result<(), SafetensorsFault> {
    let expected = data_start.saturating_add(data_len);
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(SafetensorsFault::Truncated { found, expected }),
        std::cmp::Ordering::Greater => Err(SafetensorsFault::TrailingBytes { found, expected }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// The header as it stands in the file, nothing checked; a name may occur twice.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader {
                    tensors: Vec::new(),
                    metadata: Vec::new(),
                };
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA_KEY {
                        let metadata = map.next_value::<Option<Pairs>>()?;
                        header.metadata = metadata.map_or_else(Vec::new, |pairs| pairs.0);
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map of text to text that keeps its order.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
