//! Codes packed into 32-bit words with groups of scales and zeros: GPTQ and AWQ, whose matrices
//! stand transposed, and compressed-tensors' `pack-quantized`. Source: AutoGPTQ and autoawq 0.2.9
//! (unpacking), compressed-tensors 0.20.

use super::packed::{Files, Packed, Part, by_rows, rounded};
use crate::Result;

/// Rows that are decoded at a time.
const ROWS_AT_ONCE: usize = 256;

/// The order in which AWQ packs eight neighbours.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How codes lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Along the inputs, one row of words for so many inputs; zeros along the outputs, stored less
    /// `less`.
    Gptq {
        /// 1 in the first version of the format.
        less: u32,
    },
    /// Along the outputs, in AWQ's order.
    Awq,
}

/// A matrix [out, in] that stands as [in, out].
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) format: &'static str,
    pub(super) packing: Packing,
    pub(super) bits: usize,
    /// [out, in].
    pub(super) shape: [usize; 2],
    pub(super) codes: Part,
    pub(super) zeros: Part,
    /// [groups, out].
    pub(super) scales: Part,
    /// Inputs a group, where no table says it.
    pub(super) group: usize,
    /// The group of each input.
    pub(super) groups: Option<Part>,
}

/// The codes of some outputs, [n, outputs].
struct Codes {
    first: usize,
    width: usize,
    values: Vec<u32>,
}

impl Columns {
    /// The codes of outputs `from..to`, packed along the outputs; `words` begin with the word that
    /// holds the first one's beginning.
    fn along_outputs(&self, words: &[u32], from: usize, to: usize) -> Vec<u32> {
        let first = from * self.bits / 32 * 32;
        let code = |output: usize| {
            let bit = match self.packing {
                Packing::Gptq { .. } => output * self.bits,
                Packing::Awq => output / 8 * 32 + AWQ_ORDER[output % 8] * self.bits,
            };
            dense(words, bit - first, self.bits)
        };
        (from..to).map(code).collect()
    }

    /// Of a row of words that are packed along the outputs, those of outputs `from..to`: the first
    /// and the count.
    fn words_of(&self, from: usize, to: usize) -> (usize, usize) {
        let first = from * self.bits / 32;
        (first, (to * self.bits).div_ceil(32) - first)
    }

    /// All codes of outputs `from..to`, an input a row.
    fn codes(&self, files: Files<'_>, from: usize, to: usize) -> Result<Codes> {
        let [out, inp] = self.shape;
        let (bits, width) = (self.bits, to - from);
        let mut values = vec![0; inp * width];
        match self.packing {
            Packing::Gptq { .. } => {
                // 32 inputs take whole words, whatever the bits.
                for first in (0..inp).step_by(32) {
                    let inputs = first..(first + 32).min(inp);
                    let word_rows = first * bits / 32..(inputs.end * bits).div_ceil(32);
                    let mut words = Vec::with_capacity(word_rows.len() * width);
                    for row in word_rows {
                        words.extend(self.codes.words(files, row * out + from, width)?);
                    }
                    for input in inputs {
                        let row = &mut values[input * width..][..width];
                        along_inputs(&words, (input - first) * bits, bits, row);
                    }
                }
            }
            Packing::Awq => {
                let (first, count) = self.words_of(from, to);
                for input in 0..inp {
                    let start = input * (out * bits / 32) + first;
                    let words = self.codes.words(files, start, count)?;
                    let row = self.along_outputs(&words, from, to);
                    values[input * width..][..width].copy_from_slice(&row);
                }
            }
        }
        Ok(Codes {
            first: from,
            width,
            values,
        })
    }

    /// Scales and zeros of outputs `from..to`, a group a row.
    fn groups(&self, files: Files<'_>, from: usize, to: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let out = self.shape[0];
        let (first, count) = self.words_of(from, to);
        let less = match self.packing {
            Packing::Gptq { less } => less,
            Packing::Awq => 0,
        };
        let mask = (1u32 << self.bits) - 1;
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        for group in 0..self.scales.shape[0] {
            scales.extend(self.scales.floats(files, group * out + from, to - from)?);
            let start = group * (out * self.bits / 32) + first;
            let words = self.zeros.words(files, start, count)?;
            let codes = self.along_outputs(&words, from, to);
            // As AutoGPTQ has it: the sum keeps the bits of a code.
            zeros.extend(codes.iter().map(|z| (z.wrapping_add(less) & mask) as f32));
        }
        Ok((scales, zeros))
    }

    /// The rows `from..to`.
    fn rows(
        &self,
        files: Files<'_>,
        of_input: &[usize],
        from: usize,
        to: usize,
    ) -> Result<Vec<f32>> {
        let inp = self.shape[1];
        let codes = self.codes(files, from, to)?;
        let (scales, zeros) = self.groups(files, from, to)?;
        debug_assert_eq!(codes.first, from);
        let width = codes.width;
        let mut rows = vec![0.0; width * inp];
        for (input, &group) in of_input.iter().enumerate() {
            for output in 0..width {
                let at = group * width + output;
                let code = codes.values[input * width + output] as f32;
                let value = (code - zeros[at]) * scales[at];
                rows[output * inp + input] = rounded(value, self.scales.dtype);
            }
        }
        Ok(rows)
    }
}

impl Packed for Columns {
    fn format(&self) -> &'static str {
        self.format
    }

    fn parts(&self) -> Vec<&Part> {
        let parts = [&self.codes, &self.zeros, &self.scales];
        parts.into_iter().chain(&self.groups).collect()
    }

    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let inp = self.shape[1];
        let of_input: Vec<usize> = match &self.groups {
            // That they are groups of the tensor was checked when it was opened.
            Some(part) => part
                .integers(files, 0, inp)?
                .iter()
                .map(|g| *g as usize)
                .collect(),
            None => (0..inp).map(|input| input / self.group).collect(),
        };
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let from = at / inp;
            let to = (at + rest.len()).div_ceil(inp).min(from + ROWS_AT_ONCE);
            let rows = self.rows(files, &of_input, from, to)?;
            let skipped = at - from * inp;
            let (part, after) = rest.split_at_mut((rows.len() - skipped).min(rest.len()));
            part.copy_from_slice(&rows[skipped..skipped + part.len()]);
            at += part.len();
            rest = after;
        }
        Ok(())
    }
}

/// A matrix [out, in] with codes packed densely along its rows.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) bits: usize,
    /// [out, in].
    pub(super) shape: [usize; 2],
    /// [out, words].
    pub(super) codes: Part,
    /// [out, groups], or one for all.
    pub(super) scales: Part,
    /// Packed along the outputs: [words, groups].
    pub(super) zeros: Option<Part>,
    /// The group of each input.
    pub(super) groups: Option<Part>,
    /// `weight_shape`, read when the file was opened.
    pub(super) settings: Part,
}

/// The code of `bits` bits that begins at a bit of a dense row of words; it may end in the next
/// word.
fn dense(words: &[u32], bit: usize, bits: usize) -> u32 {
    let (word, shift) = (bit / 32, bit % 32);
    let next = words.get(word + 1).copied().unwrap_or(0);
    let both = u64::from(words[word]) | u64::from(next) << 32;
    (both >> shift) as u32 & ((1 << bits) - 1)
}

/// The same of each column of rows of words, as many as `codes`.
fn along_inputs(words: &[u32], bit: usize, bits: usize, codes: &mut [u32]) {
    let (width, mask, shift) = (codes.len(), (1u32 << bits) - 1, bit % 32);
    let (low, rest) = words[bit / 32 * width..].split_at(width);
    for (code, low) in codes.iter_mut().zip(low) {
        *code = low >> shift & mask;
    }
    if shift + bits > 32 {
        for (code, high) in codes.iter_mut().zip(rest) {
            *code |= high << (32 - shift) & mask;
        }
    }
}

impl Rows {
    fn group_count(&self) -> usize {
        self.scales.shape.get(1).copied().unwrap_or(1)
    }

    /// The zeros of a row, a group each; without them half of the codes.
    fn zeros(&self, files: Files<'_>, row: usize) -> Result<Vec<f32>> {
        let (groups, half) = (self.group_count(), (1u32 << (self.bits - 1)) as f32);
        let Some(part) = &self.zeros else {
            return Ok(vec![half; groups]);
        };
        let (word, rows) = (row * self.bits / 32, part.shape[0]);
        let words = part.words(files, word * groups, (rows - word).min(2) * groups)?;
        let zero = |group: usize| {
            let column: Vec<u32> = words.iter().skip(group).step_by(groups).copied().collect();
            // Within the word that its row's code begins in.
            let shift = row * self.bits % 32;
            let both = u64::from(column[0]) | u64::from(column.get(1).copied().unwrap_or(0)) << 32;
            ((both >> shift) as u32 & ((1 << self.bits) - 1)) as f32
        };
        Ok((0..groups).map(zero).collect())
    }
}

impl Packed for Rows {
    fn format(&self) -> &'static str {
        "pack-quantized"
    }

    fn parts(&self) -> Vec<&Part> {
        let parts = [&self.codes, &self.scales, &self.settings];
        parts
            .into_iter()
            .chain(&self.zeros)
            .chain(&self.groups)
            .collect()
    }

    fn read(&self, files: Files<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let (inp, groups) = (self.shape[1], self.group_count());
        let a_row = self.codes.shape[1];
        let of_input: Option<Vec<i64>> = match &self.groups {
            Some(part) => Some(part.integers(files, 0, inp)?),
            None => None,
        };
        by_rows(inp, start, out, |row, column, out| {
            let words = self.codes.words(files, row * a_row, a_row)?;
            let scales = match self.scales.count() {
                1 => self.scales.floats(files, 0, 1)?,
                _ => self.scales.floats(files, row * groups, groups)?,
            };
            let zeros = self.zeros(files, row)?;
            for (input, value) in (column..).zip(out) {
                let group = match &of_input {
                    Some(table) => table[input] as usize,
                    None => input / inp.div_ceil(groups),
                };
                let code = dense(&words, input * self.bits, self.bits) as f32;
                *value = rounded((code - zeros[group]) * scales[group], self.scales.dtype);
            }
            Ok(())
        })
    }
}
