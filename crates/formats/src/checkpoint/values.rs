//! Where the values of one tensor lie, and how they become row-major bytes or f32: elements in
//! their order or in another, blocks of GGUF, values packed into several tensors. Knows no format's
//! header.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::dtype::{DType, decode_f32};
use crate::quantised::packed::Files;
use crate::quantised::{BlockFormat, BlockParts, Packed};
use crate::source::Source;

/// Values read at a time.
const BLOCK_VALUES: usize = 1 << 16;

/// Where values lie and what they are.
#[derive(Debug)]
pub(crate) enum Values {
    /// Elements of the tensor's type.
    Plain(Plain),
    /// Blocks.
    Blocks(Blocks),
    /// Several stored tensors.
    Packed(PackedValues),
}

/// Elements, one after the other.
#[derive(Debug)]
pub(crate) struct Plain {
    /// Of the first value, in bytes from the start of its file.
    pub(crate) offset: u64,
    /// In which order they are taken; none if they lie row-major without gaps.
    pub(crate) walk: Option<Walk>,
    /// What is added to each when it is read as f32.
    pub(crate) plus: f32,
}

/// A view of elements: its dimensions, and the elements from one index of each to the next.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// Rows of blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) format: &'static BlockFormat,
    /// Of the first block, in bytes from the start of its file.
    pub(crate) offset: u64,
    /// The rows and their values, as they are stored.
    pub(crate) stored: [usize; 2],
    pub(crate) order: RowOrder,
}

/// Values packed into several stored tensors.
#[derive(Debug)]
pub(crate) struct PackedValues {
    pub(crate) values: Box<dyn Packed>,
    /// The rows and their values, as they are stored; of one matrix where several are transposed.
    pub(crate) stored: [usize; 2],
    pub(crate) order: RowOrder,
}

/// How stored rows stand to the tensor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// They are the tensor's.
    Same,
    /// They are its columns, or those of each of its matrices.
    Transposed,
    /// Of each of so many heads, the rows of the first and second half stand in turn. Source:
    /// llama.cpp's `permute` of queries and keys.
    HalvesInTurn {
        /// The count of heads.
        heads: usize,
    },
}

impl PackedValues {
    /// The values `start..start + out.len()` as f32; the range is inside the tensor.
    pub(super) fn read_f32(&self, of: Reading<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let files = Files(of.files);
        let decode = |start: usize, out: &mut [f32]| self.values.read(files, start, out);
        self.order.read(of, self.stored, start, out, &decode)
    }

    /// Bytes `start..start + len` of all parts, one after the other; the range is inside them.
    pub(super) fn stored_bytes(&self, of: Reading<'_>, start: u64, len: u64) -> Result<Vec<u8>> {
        let (mut bytes, mut first) = (Vec::new(), 0);
        for part in self.values.parts() {
            let (from, to) = (start.max(first), (start + len).min(first + part.byte_len()));
            if from < to {
                let offset = part.offset + (from - first);
                bytes.extend(of.files[part.file].read_vec(offset, to - from)?);
            }
            first += part.byte_len();
        }
        Ok(bytes)
    }
}

/// Decodes values in their stored order, from a first one on.
type Decode<'a> = &'a dyn Fn(usize, &mut [f32]) -> Result<()>;

impl RowOrder {
    /// The tensor's values `start..start + out.len()`, which `decode` gives in their stored order
    /// of [rows, columns].
    fn read(
        self,
        of: Reading<'_>,
        stored: [usize; 2],
        start: usize,
        out: &mut [f32],
        decode: Decode<'_>,
    ) -> Result<()> {
        let [rows, cols] = stored;
        match self {
            RowOrder::Same => decode(start, out),
            RowOrder::HalvesInTurn { heads } => {
                let (mut at, mut rest) = (start, out);
                while !rest.is_empty() {
                    let (row, within) = (at / cols, at % cols);
                    let (part, after) = rest.split_at_mut((cols - within).min(rest.len()));
                    decode(stored_row(row, rows / heads) * cols + within, part)?;
                    at += part.len();
                    rest = after;
                }
                Ok(())
            }
            RowOrder::Transposed => {
                let (mut at, mut rest) = (start, out);
                while !rest.is_empty() {
                    let (matrix, within) = (at / (rows * cols), at % (rows * cols));
                    let (part, after) = rest.split_at_mut((rows * cols - within).min(rest.len()));
                    let decode =
                        |start: usize, out: &mut [f32]| decode(matrix * rows * cols + start, out);
                    columns(of, matrix, stored, within, part, &decode)?;
                    at += part.len();
                    rest = after;
                }
                Ok(())
            }
        }
    }

    /// The view that undoes it, of rows of single elements.
    pub(super) fn walk(self, [rows, cols]: [usize; 2]) -> Option<Walk> {
        match self {
            RowOrder::Same => None,
            RowOrder::Transposed => Some(Walk {
                shape: vec![cols, rows],
                strides: vec![1, cols],
            }),
            RowOrder::HalvesInTurn { heads } => {
                let half = rows / heads / 2;
                Some(Walk {
                    shape: vec![heads, 2, half, cols],
                    strides: vec![2 * half * cols, cols, 2 * cols, 1],
                })
            }
        }
    }
}

/// The values of the matrix that was read last in another order than it is stored in: a block of a
/// transposed matrix spans nearly all of it, so that gathering block by block would read the whole
/// of it for each. The key is the number of its tensor, and its own in that.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Option<([usize; 2], Gathered)>>);

/// All values of one tensor in row-major order.
#[derive(Debug, Clone)]
enum Gathered {
    Bytes(Arc<[u8]>),
    Values(Arc<[f32]>),
}

impl Kept {
    /// Replaced as a whole, so that a panic elsewhere cannot have left it half-made.
    fn lock(&self) -> MutexGuard<'_, Option<([usize; 2], Gathered)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: [usize; 2]) -> Option<Gathered> {
        let kept = self.lock();
        let (of, values) = kept.as_ref()?;
        (*of == key).then(|| values.clone())
    }

    fn put(&self, key: [usize; 2], values: Gathered) {
        *self.lock() = Some((key, values));
    }

    /// Readers go from front to back: after the last value nobody will want it again.
    fn forget_at_end(&self, read: usize, count: usize) {
        if read == count {
            *self.lock() = None;
        }
    }
}

/// What reading a part of a tensor needs.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) source: &'a Source,
    /// All files, of which `source` is one.
    pub(super) files: &'a [Source],
    pub(super) kept: &'a Kept,
    /// The tensor's number.
    pub(super) entry: usize,
    pub(super) dtype: DType,
    /// Values of the tensor.
    pub(super) count: usize,
}

impl Plain {
    /// The values `start..start + out.len()` as f32; the range is inside the tensor and its type is
    /// a float's.
    pub(super) fn read_f32(&self, of: Reading<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        if of.dtype == DType::F32 && self.walk.is_none() && cfg!(target_endian = "little") {
            let offset = self.offset + (start * 4) as u64;
            of.source
                .read_exact_at(bytemuck::cast_slice_mut(out), offset)?;
        } else {
            let mut at = start;
            for block in out.chunks_mut(BLOCK_VALUES) {
                let bytes = self.read_bytes(of, at, block.len())?;
                decode_f32(of.dtype, &bytes, block);
                at += block.len();
            }
        }
        if self.plus != 0.0 {
            out.iter_mut().for_each(|value| *value += self.plus);
        }
        Ok(())
    }

    /// The bytes of values `start..start + len` in row-major order; the range is inside the tensor.
    pub(super) fn read_bytes(&self, of: Reading<'_>, start: usize, len: usize) -> Result<Vec<u8>> {
        let size = of.dtype.size_bytes();
        let Some(walk) = &self.walk else {
            let offset = self.offset + (start * size) as u64;
            return of.source.read_vec(offset, (len * size) as u64);
        };
        if len == 0 {
            return Ok(Vec::new());
        }
        let values = self.row_major(of, walk)?;
        let part = values[start * size..(start + len) * size].to_vec();
        of.kept.forget_at_end(start + len, of.count);
        Ok(part)
    }

    /// All values, put in row-major order.
    fn row_major(&self, of: Reading<'_>, walk: &Walk) -> Result<Arc<[u8]>> {
        if let Some(Gathered::Bytes(values)) = of.kept.get([of.entry, 0]) {
            return Ok(values);
        }
        let size = of.dtype.size_bytes();
        // No shape with a zero comes here; that every value lies inside the file was checked when
        // it was opened.
        let last: usize = walk
            .shape
            .iter()
            .zip(&walk.strides)
            .map(|(dimension, stride)| (dimension - 1) * stride)
            .sum();
        let bytes = of
            .source
            .read_vec(self.offset, ((last + 1) * size) as u64)?;
        let mut values = Vec::with_capacity(of.count * size);
        for position in Positions::new(walk).take(of.count) {
            values.extend_from_slice(&bytes[position * size..][..size]);
        }
        let values: Arc<[u8]> = values.into();
        of.kept.put([of.entry, 0], Gathered::Bytes(values.clone()));
        Ok(values)
    }
}

impl Blocks {
    /// The values `start..start + out.len()` as f32; the range is inside the tensor and its type is
    /// read.
    pub(super) fn read_f32(&self, of: Reading<'_>, start: usize, out: &mut [f32]) -> Result<()> {
        let decode = |start: usize, out: &mut [f32]| self.decode(of.source, start, out);
        self.order.read(of, self.stored, start, out, &decode)
    }

    /// The parts of some rows, of the tensor or, where it is transposed, of its columns; they are
    /// there.
    pub(super) fn parts(&self, of: Reading<'_>, rows: Range<usize>) -> Result<BlockParts> {
        let [all, cols] = self.stored;
        let row_bytes = cols / self.format.values * self.format.bytes;
        let read = |rows: Range<usize>| {
            let offset = self.offset + (rows.start * row_bytes) as u64;
            of.source.read_vec(offset, (rows.len() * row_bytes) as u64)
        };
        let bytes = match self.order {
            RowOrder::Same | RowOrder::Transposed => read(rows)?,
            RowOrder::HalvesInTurn { heads } => {
                // Those of whole heads, out of which the wanted ones are taken.
                let width = all / heads;
                let first = rows.start / width * width;
                let heads = read(first..rows.end.next_multiple_of(width).min(all))?;
                let row = |row: usize| &heads[(stored_row(row, width) - first) * row_bytes..];
                rows.flat_map(|at| &row(at)[..row_bytes]).copied().collect()
            }
        };
        Ok(self.format.parts(&bytes))
    }

    /// Values `start..start + out.len()` in their stored order, which may begin and end inside a
    /// block.
    fn decode(&self, source: &Source, start: usize, out: &mut [f32]) -> Result<()> {
        let per = self.format.values;
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let within = at % per;
            let whole = rest.len() / per * per;
            let take = match within {
                0 if whole > 0 => whole.min(BLOCK_VALUES),
                _ => (per - within).min(rest.len()),
            };
            let (part, after) = rest.split_at_mut(take);
            let blocks = take.div_ceil(per);
            let offset = self.offset + (at / per * self.format.bytes) as u64;
            let bytes = source.read_vec(offset, (blocks * self.format.bytes) as u64)?;
            if within == 0 && take.is_multiple_of(per) {
                self.format.decode(&bytes, part);
            } else {
                let mut block = vec![0.0; per];
                self.format.decode(&bytes, &mut block);
                part.copy_from_slice(&block[within..within + take]);
            }
            at += take;
            rest = after;
        }
        Ok(())
    }
}

/// Where the row `row` of heads of `width` rows is stored, whose halves stand in turn.
pub(crate) fn stored_row(row: usize, width: usize) -> usize {
    let (head, within) = (row / width, row % width);
    let (half, place) = (within / (width / 2), within % (width / 2));
    head * width + 2 * place + half
}

/// The values `start..start + out.len()` of one matrix whose columns are stored as [rows, cols].
fn columns(
    of: Reading<'_>,
    matrix: usize,
    stored: [usize; 2],
    start: usize,
    out: &mut [f32],
    decode: Decode<'_>,
) -> Result<()> {
    let count = stored[0] * stored[1];
    if out.len() == count {
        return transpose(stored, out, decode);
    }
    let key = [of.entry, matrix];
    let values = match of.kept.get(key) {
        Some(Gathered::Values(values)) => values,
        Some(Gathered::Bytes(_)) | None => {
            let mut values = vec![0.0; count];
            transpose(stored, &mut values, decode)?;
            let values: Arc<[f32]> = values.into();
            of.kept.put(key, Gathered::Values(values.clone()));
            values
        }
    };
    out.copy_from_slice(&values[start..start + out.len()]);
    of.kept.forget_at_end(start + out.len(), count);
    Ok(())
}

/// All values of a stored matrix [rows, cols], columns as rows.
fn transpose([rows, cols]: [usize; 2], out: &mut [f32], decode: Decode<'_>) -> Result<()> {
    let at_once = (BLOCK_VALUES / cols).clamp(1, rows);
    let mut block = vec![0.0; at_once * cols];
    for first in (0..rows).step_by(at_once) {
        let n = at_once.min(rows - first);
        let block = &mut block[..n * cols];
        decode(first * cols, block)?;
        for (row, values) in block.chunks_exact(cols).enumerate() {
            for (column, value) in values.iter().enumerate() {
                out[column * rows + first + row] = *value;
            }
        }
    }
    Ok(())
}

/// Where the values of a view lie, in row-major order, in elements from its first value.
struct Positions<'a> {
    walk: &'a Walk,
    /// Of the next value; counted like the digits of a clock.
    index: Vec<usize>,
}

impl<'a> Positions<'a> {
    fn new(walk: &'a Walk) -> Positions<'a> {
        Positions {
            walk,
            index: vec![0; walk.shape.len()],
        }
    }
}

impl Iterator for Positions<'_> {
    type Item = usize;

    /// Never ends: the caller takes as many as there are.
    fn next(&mut self) -> Option<usize> {
        let position = self
            .index
            .iter()
            .zip(&self.walk.strides)
            .map(|(i, stride)| i * stride)
            .sum();
        for (digit, &dimension) in self.index.iter_mut().zip(&self.walk.shape).rev() {
            *digit += 1;
            if *digit < dimension {
                break;
            }
            *digit = 0;
        }
        Some(position)
    }
}
