//! What can be wrong with a GGUF file. Knows no architecture.

use crate::quantised::BlockFormat;

/// Which rule of the format a file breaks, or what it holds that is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// It does not begin as a GGUF file does.
    #[error("it begins with `{found}`, expected `GGUF`")]
    Magic {
        /// Its first bytes.
        found: String,
    },
    /// Its numbers are big-endian.
    #[error("its numbers are big-endian, expected little-endian ones")]
    BigEndian,
    /// Another version.
    #[error("it has version {found}, expected 2 or 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// Something that would reach past the end of the file.
    #[error("{what} takes {needed} bytes from byte {at} on, but the file has {len}")]
    Outside {
        /// What it is.
        what: String,
        /// Its first byte.
        at: u64,
        /// Its bytes.
        needed: u128,
        /// The file's bytes.
        len: u64,
    },
    /// A count that no file of this length can hold.
    #[error("it is said to hold {found} {what}, but its {len} bytes have room for {most} at most")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The count.
        found: u64,
        /// The most that fit.
        most: u64,
        /// The file's bytes.
        len: u64,
    },
    /// A text that is no UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// What it is.
        what: String,
        /// Its first byte.
        at: u64,
    },
    /// A name longer than the format allows.
    #[error("{what} has {found} bytes, expected at most {most}")]
    NameTooLong {
        /// Whose name.
        what: &'static str,
        /// Its bytes.
        found: u64,
        /// The most.
        most: u64,
    },
    /// A key or a tensor that stands twice.
    #[error("{what} `{name}` stands twice")]
    Duplicate {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A value of a type that does not exist.
    #[error("`{key}` is of type {found}, expected 0 to 12")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// A list of lists.
    #[error("`{key}` is a list of lists, expected a list of numbers or texts")]
    Nested {
        /// The key.
        key: String,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("`{key}` is a truth value of {found}, expected 0 or 1")]
    Bool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// A key that is missing or holds something else.
    #[error("`{key}` is {found}, expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Too many dimensions.
    #[error("tensor `{name}` has {found} dimensions, expected at most 4")]
    Dimensions {
        /// The tensor.
        name: String,
        /// Their count.
        found: u32,
    },
    /// A shape whose size cannot be counted, or is nothing.
    #[error("tensor `{name}` has the absurd shape {shape:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions, the innermost first, as the file has them.
        shape: Vec<u64>,
    },
    /// A type that does not exist.
    #[error("tensor `{name}` is of the unknown type {found}")]
    TensorType {
        /// The tensor.
        name: String,
        /// The type's number.
        found: u32,
    },
    /// Rows that do not hold whole blocks.
    #[error(
        "tensor `{name}` has rows of {row} values, which {format} cannot hold: its blocks have {values}"
    )]
    Row {
        /// The tensor.
        name: String,
        /// Values of a row.
        row: u64,
        /// The type.
        format: &'static str,
        /// Values of a block.
        values: usize,
    },
    /// An offset that is no multiple of the alignment.
    #[error(
        "tensor `{name}` begins at byte {offset} of the data, expected a multiple of {alignment}"
    )]
    Alignment {
        /// The tensor.
        name: String,
        /// Its offset.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensor `{name}` begins at byte {start} of the data, inside `{other}`, which ends at {end}"
    )]
    Overlap {
        /// The tensor.
        name: String,
        /// Where it begins.
        start: u64,
        /// The tensor before it.
        other: String,
        /// Where that ends.
        end: u64,
    },
    /// A tensor of a type that is not decoded.
    #[error(
        "tensor `{name}` is stored as {format}, expected one of {}",
        BlockFormat::read_names()
    )]
    Unread {
        /// The tensor.
        name: String,
        /// Its type.
        format: &'static str,
    },
    /// The parts of a split file contradict each other.
    #[error("{0}")]
    Split(String),
    /// An architecture whose tensors are not known.
    #[error(
        "its architecture is `{found}`, expected one of {known}{}",
        meant(nearest)
    )]
    Architecture {
        /// The name.
        found: String,
        /// Those that are known.
        known: String,
        /// The nearest of them.
        nearest: Option<&'static str>,
    },
}

fn meant(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

impl GgufFault {
    /// What the user can do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            GgufFault::BigEndian => Some(
                "convert it with `gguf-convert-endian FILE little` of the Python package gguf"
                    .into(),
            ),
            GgufFault::Version { found: 0 | 1 } => Some(
                "files of before August 2023 must be converted from the original model again"
                    .into(),
            ),
            GgufFault::Version { .. } => Some("a newer version of this program may read it".into()),
            GgufFault::Outside { .. } | GgufFault::Count { .. } => {
                Some("the file may be cut off: compare its length with the original's".into())
            }
            GgufFault::Unread { .. } => {
                Some("take a file of the model in another type, such as Q4_K_M or Q8_0".into())
            }
            _ => None,
        }
    }
}
