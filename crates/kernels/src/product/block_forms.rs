//! Formats of values in small blocks that share a scale, as GGUF and bitsandbytes have them: what a
//! value is, and where its parts stand in a panel. Decoding is elsewhere.
//! Source: ggml's block types; Dettmers et al. 2023, "QLoRA" (NF4).

use half::f16;

use super::panels::PANEL;
use crate::parallel::for_each_chunk;

/// A format of values in blocks along the depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// d·(q − 8), a d for 32 values.
    Q4_0,
    /// d·q + m, d and m for 32 values.
    Q4_1,
    /// d·(q − 16), a d for 32 values.
    Q5_0,
    /// d·q + m, d and m for 32 values.
    Q5_1,
    /// d·q, a d for 32 values.
    Q8_0,
    /// (d·scale)·q − dmin·min: d and dmin for 256 values, scale and min for 32.
    Q4K,
    /// As Q4_K with a fifth bit.
    Q5K,
    /// (d·scale)·(q − 32): d for 256 values, scale for 16.
    Q6K,
    /// absmax·map\[q\], an absmax for 64 values.
    Nf4,
}

/// Where the scales of a format stand, and of how many values they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    /// f16 d of 32 values.
    Half,
    /// f16 d and m of 32 values.
    HalfAndMin,
    /// f16 d and dmin of 256 values, u8 scale and min of 32.
    Super,
    /// f16 d of 256 values, i8 scale of 16.
    SuperSigned,
    /// f32 of 64 values.
    Single,
}

/// The values of NF4's codes. Source: bitsandbytes, `get_4bit_type("nf4")`.
pub const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl BlockFormat {
    /// Every format.
    pub const ALL: [BlockFormat; 9] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
        BlockFormat::Nf4,
    ];

    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::Q4_0 => "q4_0",
            BlockFormat::Q4_1 => "q4_1",
            BlockFormat::Q5_0 => "q5_0",
            BlockFormat::Q5_1 => "q5_1",
            BlockFormat::Q8_0 => "q8_0",
            BlockFormat::Q4K => "q4_k",
            BlockFormat::Q5K => "q5_k",
            BlockFormat::Q6K => "q6_k",
            BlockFormat::Nf4 => "nf4",
        }
    }

    /// Values along the depth that are stored together: a depth is a multiple of them.
    pub fn block(self) -> usize {
        match self.scales() {
            Scales::Half | Scales::HalfAndMin => 32,
            Scales::Super | Scales::SuperSigned => 256,
            Scales::Single => 64,
        }
    }

    /// Values of one scale.
    pub fn group(self) -> usize {
        match self.scales() {
            Scales::Half | Scales::HalfAndMin | Scales::Super => 32,
            Scales::SuperSigned => 16,
            Scales::Single => 64,
        }
    }

    /// Bits of a code.
    pub(super) fn bits(self) -> usize {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4K | BlockFormat::Nf4 => 4,
            BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q5K => 5,
            BlockFormat::Q6K => 6,
            BlockFormat::Q8_0 => 8,
        }
    }

    /// What is taken from a code before it is multiplied.
    pub(super) fn offset(self) -> u8 {
        match self {
            BlockFormat::Q4_0 => 8,
            BlockFormat::Q5_0 => 16,
            BlockFormat::Q6K => 32,
            BlockFormat::Q8_0 => 128,
            BlockFormat::Q4_1
            | BlockFormat::Q5_1
            | BlockFormat::Q4K
            | BlockFormat::Q5K
            | BlockFormat::Nf4 => 0,
        }
    }

    /// Whether something is added to the scaled value.
    pub(super) fn has_min(self) -> bool {
        matches!(self.scales(), Scales::HalfAndMin | Scales::Super)
    }

    /// A code's value before it is scaled.
    pub(super) fn unscaled(self, code: u8) -> f32 {
        match self {
            BlockFormat::Nf4 => NF4_VALUES[usize::from(code & 15)],
            _ => f32::from(i16::from(code) - i16::from(self.offset())),
        }
    }

    /// What turns a stored scale into a byte from zero: signed ones have 128 added.
    fn scale_sign(self) -> u8 {
        match self.scales() {
            Scales::SuperSigned => 128,
            Scales::Half | Scales::HalfAndMin | Scales::Super | Scales::Single => 0,
        }
    }

    pub(super) fn scales(self) -> Scales {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => Scales::Half,
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => Scales::HalfAndMin,
            BlockFormat::Q4K | BlockFormat::Q5K => Scales::Super,
            BlockFormat::Q6K => Scales::SuperSigned,
            BlockFormat::Nf4 => Scales::Single,
        }
    }

    /// Bytes of the low bits of one depth of a panel.
    pub(super) fn line_bytes(self) -> usize {
        match self.bits() {
            8 => PANEL,
            _ => PANEL / 2,
        }
    }

    /// Bytes before the groups of a block of a panel.
    pub(super) fn block_head(self) -> usize {
        match self.scales() {
            Scales::Half | Scales::SuperSigned => 2 * PANEL,
            Scales::HalfAndMin | Scales::Super | Scales::Single => 4 * PANEL,
        }
    }

    /// Bytes before the codes of a group of a panel.
    pub(super) fn group_head(self) -> usize {
        match self.scales() {
            Scales::Half | Scales::HalfAndMin | Scales::Single => 0,
            Scales::SuperSigned => PANEL,
            Scales::Super => 2 * PANEL,
        }
    }

    /// Bytes of a group of a panel.
    pub(super) fn group_bytes(self) -> usize {
        self.group_head() + self.group() * PANEL * self.bits() / 8
    }

    /// Bytes of a block of a panel.
    pub(super) fn block_bytes(self) -> usize {
        self.block_head() + self.block() / self.group() * self.group_bytes()
    }

    /// Bytes of a panel.
    pub(super) fn panel_bytes(self, depth: usize) -> usize {
        depth / self.block() * self.block_bytes()
    }
}

/// Rows of a matrix [rows, depth] in the parts that a format has, row by row. Its values are
/// decoded to the bits of the format's source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockRows {
    /// A code for each value, from zero: of Q8_0 with 128 added.
    pub codes: Vec<u8>,
    /// Of each group: the bits of an f16 or f32, or a byte.
    pub scales: Vec<u32>,
    /// Of each group what is added, the bits of an f16, or a byte; empty where a format has none.
    pub mins: Vec<u32>,
    /// Of each block the bits of d and dmin; empty where groups stand alone.
    pub supers: Vec<[u16; 2]>,
}

impl BlockRows {
    /// Zeros for so many values.
    pub fn zeros(format: BlockFormat, values: usize) -> Self {
        let [groups, mins, supers] = Self::lengths(format, values);
        BlockRows {
            codes: vec![0; values],
            scales: vec![0; groups],
            mins: vec![0; mins],
            supers: vec![[0; 2]; supers],
        }
    }

    /// Of the parts beside the codes.
    fn lengths(format: BlockFormat, values: usize) -> [usize; 3] {
        let (groups, blocks) = (values / format.group(), values / format.block());
        match format.scales() {
            Scales::Half | Scales::Single => [groups, 0, 0],
            Scales::HalfAndMin => [groups, groups, 0],
            Scales::Super => [groups, groups, blocks],
            Scales::SuperSigned => [groups, 0, blocks],
        }
    }

    /// Panics if the lengths are not those of so many values.
    fn check(&self, format: BlockFormat, values: usize) {
        let [groups, mins, supers] = Self::lengths(format, values);
        let found = [&self.scales, &self.mins].map(Vec::len);
        assert_eq!(self.codes.len(), values, "codes of {}", format.name());
        assert_eq!(found, [groups, mins], "scales of {}", format.name());
        assert_eq!(self.supers.len(), supers, "blocks of {}", format.name());
    }

    /// The values. Panics if the lengths are not those of as many.
    pub fn values(&self, format: BlockFormat, out: &mut [f32]) {
        self.check(format, out.len());
        let (group, per_block) = (format.group(), format.block() / format.group());
        for (at, (values, codes)) in (out.chunks_exact_mut(group))
            .zip(self.codes.chunks_exact(group))
            .enumerate()
        {
            let [scale, min] = self.factors(format, at, at / per_block);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = scale * format.unscaled(*code);
                if format.has_min() {
                    *value += min;
                }
            }
        }
    }

    /// What the values of a group are multiplied with, and what is added then.
    fn factors(&self, format: BlockFormat, group: usize, block: usize) -> [f32; 2] {
        let scale = self.scales[group];
        match format.scales() {
            Scales::Half => [half_of(scale as u16), 0.0],
            Scales::Single => [f32::from_bits(scale), 0.0],
            Scales::HalfAndMin => [half_of(scale as u16), half_of(self.mins[group] as u16)],
            Scales::SuperSigned => {
                let [d, _] = self.supers[block];
                [half_of(d) * f32::from(scale as i8), 0.0]
            }
            Scales::Super => {
                let [d, dmin] = self.supers[block].map(half_of);
                let min = self.mins[group] as u8;
                [d * f32::from(scale as u8), -(dmin * f32::from(min))]
            }
        }
    }

    /// Writes the parts of row `row` that panels hold as column `j` of one.
    fn write_row(&self, format: BlockFormat, depth: usize, row: usize, j: usize, panel: &mut [u8]) {
        let (block, group) = (format.block(), format.group());
        let (blocks, groups) = (depth / block, block / group);
        let parts = panel.chunks_exact_mut(format.block_bytes());
        for (at, bytes) in parts.take(blocks).enumerate() {
            let at = row * blocks + at;
            let (head, rest) = bytes.split_at_mut(format.block_head());
            self.write_head(format, at, j, head);
            let each = rest.chunks_exact_mut(format.group_bytes());
            for (i, bytes) in each.enumerate() {
                let (head, lines) = bytes.split_at_mut(format.group_head());
                let at = at * groups + i;
                if !head.is_empty() {
                    head[j] = self.scales[at] as u8 ^ format.scale_sign();
                }
                if let Some(min) = head.get_mut(PANEL + j) {
                    *min = self.mins[at] as u8;
                }
                let codes = &self.codes[at * group..][..group];
                for (depth, code) in codes.iter().enumerate() {
                    put(format, lines, depth, j, *code);
                }
            }
        }
    }

    fn write_head(&self, format: BlockFormat, block: usize, j: usize, head: &mut [u8]) {
        let [first, second] = match format.scales() {
            Scales::Half => [self.scales[block] as u16, 0],
            Scales::HalfAndMin => [self.scales[block] as u16, self.mins[block] as u16],
            Scales::Super | Scales::SuperSigned => self.supers[block],
            Scales::Single => {
                let bits = self.scales[block].to_le_bytes();
                head[4 * j..4 * j + 4].copy_from_slice(&bits);
                return;
            }
        };
        put_half(head, j, first);
        if head.len() > 2 * PANEL {
            put_half(&mut head[2 * PANEL..], j, second);
        }
    }

    /// Lays the rows out as panels of a matrix of such depth. Panics if the parts or `dst` are not
    /// those of as many rows.
    pub(super) fn pack(&self, format: BlockFormat, [rows, depth]: [usize; 2], dst: &mut [u8]) {
        self.check(format, rows * depth);
        let len = format.panel_bytes(depth);
        assert_eq!(
            dst.len(),
            rows.div_ceil(PANEL) * len,
            "packed [{rows}, {depth}]"
        );
        for_each_chunk(dst, len, |start, panel| {
            let first = start / len * PANEL;
            panel.fill(0);
            for row in first..(first + PANEL).min(rows) {
                self.write_row(format, depth, row, row - first, panel);
            }
        });
    }
}

/// Half a panel's columns: two of them, so far apart, share a byte or a word.
pub(super) const HALF: usize = PANEL / 2;

/// Puts a code of some depth of a group into column `j` of its lines, which were zero.
///
/// Low bits stand depth by depth, a byte for two columns. Behind them stand the fifth bits of eight
/// depths, or the fifth and sixth of four, a byte for each column.
fn put(format: BlockFormat, lines: &mut [u8], depth: usize, j: usize, code: u8) {
    let line = depth * format.line_bytes();
    if format.bits() == 8 {
        lines[line + j] = code;
        return;
    }
    lines[line + j % HALF] |= (code & 15) << (4 * (j / HALF));
    let high = format.group() * HALF;
    match format.bits() {
        5 => lines[high + depth / 8 * PANEL + j] |= (code >> 4) << (depth % 8),
        6 => lines[high + depth / 4 * PANEL + j] |= (code >> 4) << (2 * (depth % 4)),
        _ => {}
    }
}

/// What [`put`] has put there.
pub(super) fn code_at(format: BlockFormat, lines: &[u8], depth: usize, j: usize) -> u8 {
    let line = depth * format.line_bytes();
    if format.bits() == 8 {
        return lines[line + j];
    }
    let low = lines[line + j % HALF] >> (4 * (j / HALF)) & 15;
    let high = format.group() * HALF;
    match format.bits() {
        5 => low | (lines[high + depth / 8 * PANEL + j] >> (depth % 8) & 1) << 4,
        6 => low | (lines[high + depth / 4 * PANEL + j] >> (2 * (depth % 4)) & 3) << 4,
        _ => low,
    }
}

/// Puts an f16 into column `j` of a line of such: words of four bytes hold columns half a panel
/// apart.
fn put_half(line: &mut [u8], j: usize, bits: u16) {
    let at = 4 * (j % HALF) + 2 * (j / HALF);
    line[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

fn half_of(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}
