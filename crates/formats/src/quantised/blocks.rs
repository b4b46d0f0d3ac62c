//! The table of GGUF's types: the name, the values and bytes of a block, and how it is decoded.
//! Source: gguf-py 0.19, `constants.py` (ids and sizes) and `quants.py` (values, whose bits these
//! functions give).

use super::parts::{self, BlockParts, TakeApart};
use super::{k_blocks, small_blocks};
use crate::dtype::{DType, decode_f32};

/// How values of one type are stored: in blocks, one after the other, of which none crosses a row.
#[derive(Debug)]
pub struct BlockFormat {
    /// GGUF's number of the type.
    pub id: u32,
    /// Its name in ggml.
    pub name: &'static str,
    /// Values in a block.
    pub values: usize,
    /// Bytes of a block.
    pub bytes: usize,
    kind: Kind,
}

/// What a type's blocks hold.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Single elements.
    Plain(DType),
    /// Blocks that a function decodes: whole blocks in, as many values out.
    Blocks(fn(&[u8], &mut [f32])),
    /// The same, of which another function takes one apart.
    Parts(fn(&[u8], &mut [f32]), TakeApart),
    /// Blocks of known size that are not decoded.
    Unread,
}

const fn plain(id: u32, name: &'static str, bytes: usize, dtype: DType) -> BlockFormat {
    BlockFormat {
        id,
        name,
        values: 1,
        bytes,
        kind: Kind::Plain(dtype),
    }
}

const fn packed(
    id: u32,
    name: &'static str,
    [values, bytes]: [usize; 2],
    decode: fn(&[u8], &mut [f32]),
) -> BlockFormat {
    BlockFormat {
        id,
        name,
        values,
        bytes,
        kind: Kind::Blocks(decode),
    }
}

const fn parted(
    id: u32,
    name: &'static str,
    [values, bytes]: [usize; 2],
    decode: fn(&[u8], &mut [f32]),
    take_apart: TakeApart,
) -> BlockFormat {
    BlockFormat {
        id,
        name,
        values,
        bytes,
        kind: Kind::Parts(decode, take_apart),
    }
}

const fn unread(id: u32, name: &'static str, [values, bytes]: [usize; 2]) -> BlockFormat {
    BlockFormat {
        id,
        name,
        values,
        bytes,
        kind: Kind::Unread,
    }
}

/// Every type that GGUF has today.
pub static BLOCK_FORMATS: [BlockFormat; 34] = [
    plain(0, "F32", 4, DType::F32),
    plain(1, "F16", 2, DType::F16),
    parted(2, "Q4_0", [32, 18], small_blocks::q4_0, parts::q4_0),
    parted(3, "Q4_1", [32, 20], small_blocks::q4_1, parts::q4_1),
    parted(6, "Q5_0", [32, 22], small_blocks::q5_0, parts::q5_0),
    parted(7, "Q5_1", [32, 24], small_blocks::q5_1, parts::q5_1),
    parted(8, "Q8_0", [32, 34], small_blocks::q8_0, parts::q8_0),
    unread(9, "Q8_1", [32, 40]),
    packed(10, "Q2_K", [256, 84], k_blocks::q2_k),
    packed(11, "Q3_K", [256, 110], k_blocks::q3_k),
    parted(12, "Q4_K", [256, 144], k_blocks::q4_k, parts::q4_k),
    parted(13, "Q5_K", [256, 176], k_blocks::q5_k, parts::q5_k),
    parted(14, "Q6_K", [256, 210], k_blocks::q6_k, parts::q6_k),
    unread(15, "Q8_K", [256, 292]),
    unread(16, "IQ2_XXS", [256, 66]),
    unread(17, "IQ2_XS", [256, 74]),
    unread(18, "IQ3_XXS", [256, 98]),
    unread(19, "IQ1_S", [256, 50]),
    packed(20, "IQ4_NL", [32, 18], small_blocks::iq4_nl),
    unread(21, "IQ3_S", [256, 110]),
    unread(22, "IQ2_S", [256, 82]),
    packed(23, "IQ4_XS", [256, 136], k_blocks::iq4_xs),
    plain(24, "I8", 1, DType::I8),
    plain(25, "I16", 2, DType::I16),
    plain(26, "I32", 4, DType::I32),
    plain(27, "I64", 8, DType::I64),
    plain(28, "F64", 8, DType::F64),
    unread(29, "IQ1_M", [256, 56]),
    plain(30, "BF16", 2, DType::BF16),
    unread(34, "TQ1_0", [256, 54]),
    unread(35, "TQ2_0", [256, 66]),
    packed(39, "MXFP4", [32, 17], small_blocks::mxfp4),
    unread(40, "NVFP4", [64, 36]),
    unread(41, "Q1_0", [128, 18]),
];

impl BlockFormat {
    /// The type with this number.
    pub fn from_id(id: u32) -> Option<&'static BlockFormat> {
        BLOCK_FORMATS.iter().find(|format| format.id == id)
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<&'static BlockFormat> {
        BLOCK_FORMATS.iter().find(|format| format.name == name)
    }

    /// The element's type, where a block is one element.
    pub fn plain(&self) -> Option<DType> {
        match self.kind {
            Kind::Plain(dtype) => Some(dtype),
            Kind::Blocks(_) | Kind::Parts(..) | Kind::Unread => None,
        }
    }

    /// Whether [`BlockFormat::decode`] can read it.
    pub fn is_read(&self) -> bool {
        match self.kind {
            Kind::Plain(dtype) => dtype.is_float(),
            Kind::Blocks(_) | Kind::Parts(..) => true,
            Kind::Unread => false,
        }
    }

    /// Decodes whole blocks; `bytes` holds exactly those of `out`. The sums and products are those
    /// of gguf-py, in f32.
    ///
    /// Panics if the lengths do not fit, or if the type is not read.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(out.len() % self.values, 0, "{}: whole blocks", self.name);
        assert_eq!(
            bytes.len(),
            out.len() / self.values * self.bytes,
            "{}",
            self.name
        );
        match self.kind {
            Kind::Plain(dtype) => decode_f32(dtype, bytes, out),
            Kind::Blocks(decode) | Kind::Parts(decode, _) => decode(bytes, out),
            Kind::Unread => panic!("`{}` is not decoded; the caller checks", self.name),
        }
    }

    /// Whether [`BlockFormat::parts`] takes its blocks apart.
    pub fn has_parts(&self) -> bool {
        matches!(self.kind, Kind::Parts(..))
    }

    /// Takes whole blocks apart. Panics if the type has no parts, or a block is not whole.
    pub fn parts(&self, bytes: &[u8]) -> BlockParts {
        assert_eq!(bytes.len() % self.bytes, 0, "{}: whole blocks", self.name);
        let Kind::Parts(_, take_apart) = self.kind else {
            panic!("`{}` is not taken apart; the caller checks", self.name);
        };
        let mut parts = BlockParts::default();
        for block in bytes.chunks_exact(self.bytes) {
            take_apart(block, &mut parts);
        }
        parts
    }

    /// Names of the types that are read, for messages.
    pub fn read_names() -> String {
        let read = BLOCK_FORMATS.iter().filter(|format| format.is_read());
        let names: Vec<&str> = read.map(|format| format.name).collect();
        names.join(", ")
    }
}

/// Calls `decode` for each block of B bytes and V values.
pub(super) fn each<const B: usize, const V: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; V]),
) {
    let (blocks, values) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<V>().0);
    for (block, values) in blocks.iter().zip(values) {
        decode(block, values);
    }
}

/// The f16 at a place of a block.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_number_and_name_once() {
        for pair in BLOCK_FORMATS.windows(2) {
            assert!(pair[0].id < pair[1].id, "{}", pair[1].name);
        }
        for format in &BLOCK_FORMATS {
            assert!(std::ptr::eq(
                BlockFormat::from_name(format.name).unwrap(),
                format
            ));
            assert!(std::ptr::eq(
                BlockFormat::from_id(format.id).unwrap(),
                format
            ));
            if let Some(dtype) = format.plain() {
                assert_eq!((format.values, format.bytes), (1, dtype.size_bytes()));
            }
        }
        assert!(BlockFormat::from_id(4).is_none());
    }
}
