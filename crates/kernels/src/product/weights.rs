//! Packed weights: a matrix [rows, depth] in a format, by panels of rows. One packing serves the
//! product with it and, as panels are transposed in cache, the product with its transpose.
//!
//! A format is an arm of each `match` here and a file with its layout. Nothing assumes that an
//! element has a size.

use half::bf16;

use crate::aligned::{Plain, typed, typed_mut};
use crate::element::DType;
use crate::isa::Isa;
use crate::matrix::MatRef;

use super::block_forms::{BlockFormat, BlockRows};
use super::integers::{IntegerPanels, Rounding};
use super::panels::{PANEL, PanelForm, PanelPart, PanelSource, PanelsInPlace, round_pairs};
use super::{block_panels, pack_bf16, pack_f32, pack_int8};

/// How packed weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// f32 lines.
    F32,
    /// bf16 pairs.
    Bf16,
    /// Integers of eight bits with a scale for each row. Products with them are products of
    /// integers, whatever the arithmetic of other products.
    Int8,
    /// Blocks of values that share a scale, as files hold them, decoded in cache.
    Blocks(BlockFormat),
}

impl WeightFormat {
    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 => "int8",
            WeightFormat::Blocks(format) => format.name(),
        }
    }

    /// The type of a table in this format whose rows are looked up one by one.
    pub fn of_rows(self) -> DType {
        match self {
            WeightFormat::F32 => DType::F32,
            WeightFormat::Bf16 | WeightFormat::Int8 | WeightFormat::Blocks(_) => DType::Bf16,
        }
    }

    /// The format of a table whose rows are looked up, and which is multiplied with too: a
    /// vocabulary's.
    pub fn of_tables(self) -> WeightFormat {
        match self.of_rows() {
            DType::F32 => WeightFormat::F32,
            DType::Bf16 => WeightFormat::Bf16,
        }
    }

    /// How a product finds the panels of such weights, straight or transposed.
    pub fn form(self, side: Side) -> PanelForm {
        match (side, self) {
            (Side::Straight, WeightFormat::F32) => PanelForm::Lines,
            (Side::Straight, WeightFormat::Bf16) => PanelForm::Pairs,
            (Side::Transposed, WeightFormat::F32 | WeightFormat::Bf16)
            | (_, WeightFormat::Blocks(_)) => PanelForm::Decoded,
            (side, WeightFormat::Int8) => PanelForm::Integers(side),
        }
    }
}

/// Which way packed weights W are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// x·Wᵀ: b is W.
    Straight,
    /// d·W: b is Wᵀ.
    Transposed,
}

/// Bytes of the packed form of a matrix [rows, depth]. Panels of rows lie end to end, so that of a
/// matrix cut at a multiple of [`PANEL`] rows the parts' packed forms lie end to end.
pub fn packed_bytes(format: WeightFormat, rows: usize, depth: usize) -> usize {
    match format {
        WeightFormat::F32 => 4 * pack_f32::packed_len(rows, depth),
        WeightFormat::Bf16 => 2 * pack_bf16::packed_bf16_len(rows, depth),
        WeightFormat::Int8 => pack_int8::packed_int8_bytes(rows, depth),
        WeightFormat::Blocks(format) => rows.div_ceil(PANEL) * format.panel_bytes(depth),
    }
}

/// Packs w [rows, depth], any view, rounding where the format is narrower. Panics if `dst` is not
/// [`packed_bytes`] long, or not aligned for the format, and for blocks: those are packed from
/// their parts by [`pack_blocks`].
pub fn pack_weights(isa: Isa, format: WeightFormat, w: MatRef, dst: &mut [u8]) {
    match format {
        WeightFormat::F32 => pack_f32::pack(isa, w, typed_mut(dst)),
        WeightFormat::Bf16 => pack_bf16::pack_bf16(isa, w, typed_mut(dst)),
        WeightFormat::Int8 => pack_int8::pack_int8(w, dst),
        WeightFormat::Blocks(format) => panic!("{} is packed from its parts", format.name()),
    }
}

/// Packs rows [rows, depth] of values in blocks. Panics if `dst` is not [`packed_bytes`] long, or
/// the parts are not those of as many values.
pub fn pack_blocks(format: BlockFormat, rows: &BlockRows, shape: [usize; 2], dst: &mut [u8]) {
    rows.pack(format, shape, dst);
}

/// Packed weights W [rows, depth].
#[derive(Clone, Copy, Debug)]
pub struct PackedWeights<'a> {
    format: WeightFormat,
    rows: usize,
    depth: usize,
    bytes: &'a [u8],
}

impl<'a> PackedWeights<'a> {
    /// What [`pack_weights`] wrote. Panics if there are not as many bytes as [`packed_bytes`] says,
    /// or if they are not aligned for the format.
    pub fn new(format: WeightFormat, [rows, depth]: [usize; 2], bytes: &'a [u8]) -> Self {
        let (needed, name) = (packed_bytes(format, rows, depth), format.name());
        assert_eq!(bytes.len(), needed, "{name} weights [{rows}, {depth}]");
        let align = match format {
            WeightFormat::F32 | WeightFormat::Int8 => align_of::<f32>(),
            WeightFormat::Bf16 => align_of::<bf16>(),
            WeightFormat::Blocks(_) => 1,
        };
        let aligned = bytes.as_ptr().addr().is_multiple_of(align);
        assert!(aligned || bytes.is_empty(), "{name} weights are aligned");
        Self {
            format,
            rows,
            depth,
            bytes,
        }
    }

    /// f32 lines, as [`crate::repack_transposed`] writes them. Panics if there are not as many as
    /// the shape wants.
    pub fn of_f32(shape: [usize; 2], lines: &'a [f32]) -> Self {
        Self::new(WeightFormat::F32, shape, typed(lines))
    }

    /// The format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// [rows, depth].
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.depth]
    }

    /// The second operand of x·Wᵀ or of d·W.
    pub fn panels(self, side: Side) -> WeightPanels<'a> {
        WeightPanels {
            weights: self,
            side,
            outliers: &[],
            rounding: Rounding::Nearest,
        }
    }

    /// W, row-major, in f32. Panics if the length disagrees.
    pub fn unpack(&self, dst: &mut [f32]) {
        let (n, k) = (self.rows, self.depth);
        match self.format {
            WeightFormat::F32 => pack_f32::unpack(self.of().values, n, k, dst),
            WeightFormat::Bf16 => pack_bf16::unpack_bf16(self.of().values, n, k, dst),
            WeightFormat::Int8 => pack_int8::unpack_int8(&self.of(), dst),
            WeightFormat::Blocks(format) => block_panels::unpack(format, &self.of(), dst),
        }
    }

    /// sum += row `row` of W. Panics if there is none, or if the length disagrees.
    pub fn add_row(&self, row: usize, sum: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(sum.len(), self.depth);
        match self.format {
            WeightFormat::F32 => pack_f32::add_row(&self.of(), row, sum),
            WeightFormat::Bf16 => pack_bf16::add_row(&self.of(), row, sum),
            WeightFormat::Int8 => pack_int8::add_row(&self.of(), row, sum),
            WeightFormat::Blocks(format) => block_panels::add_row(format, &self.of(), row, sum),
        }
    }

    /// The panels, in words of four bytes where the format is made of such.
    pub(super) fn as_ptr(&self) -> *const u32 {
        self.bytes.as_ptr().cast()
    }

    /// As values of the type that the format's layout is made of.
    fn of<T: Plain>(&self) -> PackedOf<'a, T> {
        PackedOf {
            values: typed(self.bytes),
            rows: self.rows,
            depth: self.depth,
        }
    }
}

/// Packed weights [rows, depth] in a layout made of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedOf<'a, T> {
    pub values: &'a [T],
    pub rows: usize,
    pub depth: usize,
}

/// Packed weights as the second operand of a product.
#[derive(Clone, Copy, Debug)]
pub struct WeightPanels<'a> {
    weights: PackedWeights<'a>,
    side: Side,
    outliers: &'a [u32],
    rounding: Rounding,
}

impl<'a> WeightPanels<'a> {
    /// With integers, the columns of the other operand that are kept beside, each but once.
    pub fn with_outliers(self, outliers: &'a [u32]) -> Self {
        Self { outliers, ..self }
    }

    /// With integers, how the other operand becomes such.
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }
}

impl PanelSource for WeightPanels<'_> {
    fn shape(&self) -> [usize; 2] {
        let [rows, depth] = self.weights.shape();
        match self.side {
            Side::Straight => [rows, depth],
            Side::Transposed => [depth, rows],
        }
    }

    fn widen(&self, isa: Isa, part: PanelPart, out: &mut [f32]) {
        let (w, side) = (self.weights, self.side);
        match w.format {
            WeightFormat::F32 => pack_f32::widen(isa, &w.of(), side, &part, out),
            WeightFormat::Bf16 => pack_bf16::widen(isa, &w.of(), side, &part, out),
            WeightFormat::Int8 => pack_int8::widen(&w.of(), side, &part, out),
            WeightFormat::Blocks(format) => {
                block_panels::widen(isa, format, &w.of(), side, &part, out);
            }
        }
    }

    fn pairs(&self, isa: Isa, part: PanelPart, out: &mut [bf16]) {
        let (w, side) = (self.weights, self.side);
        match w.format {
            WeightFormat::F32 | WeightFormat::Int8 | WeightFormat::Blocks(_) => {
                round_pairs(self, isa, part, out);
            }
            WeightFormat::Bf16 => pack_bf16::pairs(isa, &w.of(), side, &part, out),
        }
    }

    fn in_place(&self) -> Option<PanelsInPlace<'_>> {
        let w = self.weights;
        match w.format.form(self.side) {
            PanelForm::Decoded | PanelForm::Integers(_) => None,
            PanelForm::Lines => Some(PanelsInPlace::Lines {
                values: w.of().values,
                panel_stride: w.depth * PANEL,
                depth_stride: PANEL,
                padded: true,
            }),
            PanelForm::Pairs => Some(PanelsInPlace::Pairs(w.of().values)),
        }
    }

    fn integers(&self) -> Option<IntegerPanels<'_>> {
        let w = self.weights;
        (w.format == WeightFormat::Int8).then(|| IntegerPanels {
            weights: w.of(),
            side: self.side,
            outliers: self.outliers,
            rounding: self.rounding,
        })
    }
}
