//! The element types of stored tensors, and their conversion to what the engine computes in. Knows
//! nothing of files.

use half::slice::HalfFloatSliceExt;

/// The type of one stored element. The order of the variants is the order in which safetensors
/// sorts tensors (descending).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // The names are the documentation; `name()` gives the spelling in files.
pub enum DType {
    Bool,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl DType {
    /// Every type, in safetensors' order.
    pub const ALL: [DType; 19] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::F8E5M2,
        DType::F8E4M3,
        DType::F8E8M0,
        DType::F8E4M3Fnuz,
        DType::F8E5M2Fnuz,
        DType::I16,
        DType::U16,
        DType::F16,
        DType::BF16,
        DType::I32,
        DType::U32,
        DType::F32,
        DType::C64,
        DType::F64,
        DType::I64,
        DType::U64,
    ];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::F8E5M2
            | DType::F8E4M3
            | DType::F8E8M0
            | DType::F8E4M3Fnuz
            | DType::F8E5M2Fnuz => 1,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::U32 | DType::F32 => 4,
            DType::C64 | DType::F64 | DType::I64 | DType::U64 => 8,
        }
    }

    /// The spelling in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "BOOL",
            DType::U8 => "U8",
            DType::I8 => "I8",
            DType::F8E5M2 => "F8_E5M2",
            DType::F8E4M3 => "F8_E4M3",
            DType::F8E8M0 => "F8_E8M0",
            DType::F8E4M3Fnuz => "F8_E4M3FNUZ",
            DType::F8E5M2Fnuz => "F8_E5M2FNUZ",
            DType::I16 => "I16",
            DType::U16 => "U16",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I32 => "I32",
            DType::U32 => "U32",
            DType::F32 => "F32",
            DType::C64 => "C64",
            DType::F64 => "F64",
            DType::I64 => "I64",
            DType::U64 => "U64",
        }
    }

    /// The type spelled `name` in a safetensors header.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Whether [`Checkpoint::read_f32`](crate::Checkpoint::read_f32) can convert this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether [`Checkpoint::read_i64`](crate::Checkpoint::read_i64) can convert this type.
    pub fn is_integer(self) -> bool {
        matches!(
            self,
            DType::Bool
                | DType::U8
                | DType::I8
                | DType::I16
                | DType::U16
                | DType::I32
                | DType::U32
                | DType::I64
        )
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Converts little-endian elements to f32: exact from f16, bf16 and f32, rounded to nearest from
/// f64. `bytes` holds exactly `out.len()` elements and `dtype.is_float()`; both are the caller's to
/// check.
pub(crate) fn decode_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), out.len() * dtype.size_bytes());
    match dtype {
        DType::F32 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*raw);
            }
        }
        DType::F64 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*raw) as f32;
            }
        }
        DType::F16 => decode_half(bytes, out, half::f16::from_le_bytes),
        DType::BF16 => decode_half(bytes, out, half::bf16::from_le_bytes),
        other => unreachable!("{other} is no float type; the caller checks"),
    }
}

fn decode_half<T: Copy + Default>(bytes: &[u8], out: &mut [f32], from_le: fn([u8; 2]) -> T)
where
    [T]: HalfFloatSliceExt,
{
    const BLOCK: usize = 1024;
    let mut block = [T::default(); BLOCK];
    let pairs = bytes.as_chunks::<2>().0;
    for (values, raw) in out.chunks_mut(BLOCK).zip(pairs.chunks(BLOCK)) {
        let block = &mut block[..raw.len()];
        for (half, pair) in block.iter_mut().zip(raw) {
            *half = from_le(*pair);
        }
        block.convert_to_f32_slice(values);
    }
}

/// Converts little-endian elements to i64. `dtype.is_integer()` is the caller's to check.
pub(crate) fn decode_i64(dtype: DType, bytes: &[u8]) -> Vec<i64> {
    match dtype {
        DType::Bool => bytes.iter().map(|&b| i64::from(b != 0)).collect(),
        DType::U8 => bytes.iter().map(|&b| i64::from(b)).collect(),
        DType::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
        DType::I16 => chunks(bytes, |raw| i64::from(i16::from_le_bytes(raw))),
        DType::U16 => chunks(bytes, |raw| i64::from(u16::from_le_bytes(raw))),
        DType::I32 => chunks(bytes, |raw| i64::from(i32::from_le_bytes(raw))),
        DType::U32 => chunks(bytes, |raw| i64::from(u32::from_le_bytes(raw))),
        DType::I64 => chunks(bytes, i64::from_le_bytes),
        other => unreachable!("{other} is no integer type; the caller checks"),
    }
}

fn chunks<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|raw| decode(*raw))
        .collect()
}

/// Whether a value stays finite in `dtype` (f32, f16 or bf16).
pub fn fits(value: f32, dtype: DType) -> bool {
    match dtype {
        DType::F16 => half::f16::from_f32(value).is_finite(),
        DType::BF16 => half::bf16::from_f32(value).is_finite(),
        _ => value.is_finite(),
    }
}

/// Little-endian bytes of `values` in `dtype` (f32, f16 or bf16), rounded to nearest even.
pub fn encode_f32(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values
            .iter()
            .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
            .collect(),
        _ => f32_bytes(values).into_owned(),
    }
}

/// f32 values as the little-endian bytes of a file; a view where the machine stores them so.
pub fn f32_bytes(values: &[f32]) -> std::borrow::Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        bytemuck::cast_slice(values).into()
    } else {
        values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<u8>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_type() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
        assert!(DType::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn every_half_is_widened_exactly() {
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0f32; 65536];
        decode_f32(DType::F16, &bits, &mut out);
        for (i, &value) in out.iter().enumerate() {
            let expected = half::f16::from_bits(i as u16).to_f32_const();
            assert!(value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()));
        }
        decode_f32(DType::BF16, &bits, &mut out);
        for (i, &value) in out.iter().enumerate() {
            let expected = f32::from_bits((i as u32) << 16);
            assert!(value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()));
        }
    }

    #[test]
    fn integers_keep_their_sign() {
        assert_eq!(decode_i64(DType::I8, &[0xff, 1]), [-1, 1]);
        assert_eq!(decode_i64(DType::U16, &[0xff, 0xff]), [65535]);
        assert_eq!(decode_i64(DType::I32, &[0xfe, 0xff, 0xff, 0xff]), [-2]);
    }
}
