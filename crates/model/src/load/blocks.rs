//! Frozen matrices in blocks of values that share a scale: kept as the file has them, or put into
//! such. What is looked up or near the loss follows rules of its own. It knows no family.

use std::ops::Range;

use lowrank_engine::{BaseFormat, BlockFormat, BlockRows, Matrix, NF4_VALUES, PackedMatrix};
use lowrank_formats::quantised::{BlockParts, encode};

use super::{Loader, Store, Wanted};
use crate::error::ModelError;
use crate::modules::Value;

/// How a matrix of so many columns is quantised in a format of the base. What does not divide into
/// whole blocks is left alone.
fn encoder(format: BaseFormat, store: Store, cols: usize) -> Option<Encoder> {
    let is_layer = match store {
        Store::Layer | Store::Conv1d => true,
        Store::Table | Store::Vocabulary => false,
        Store::Vector | Store::Matrix => return None,
    };
    let encoder = match (format, is_layer) {
        (BaseFormat::Nf4, true) => {
            Encoder(BlockFormat::Nf4, |values| encode::nf4(values, &NF4_VALUES))
        }
        (BaseFormat::Q4_0, true) => Encoder(BlockFormat::Q4_0, encode::q4_0),
        (BaseFormat::Q8_0, _) | (BaseFormat::Q4_0, false) => {
            Encoder(BlockFormat::Q8_0, encode::q8_0)
        }
        _ => return None,
    };
    (cols > 0 && cols.is_multiple_of(encoder.0.block())).then_some(encoder)
}

/// A format and what puts whole rows into it.
struct Encoder(BlockFormat, fn(&[f32]) -> BlockParts);

impl Loader<'_> {
    /// The value in blocks, where it is to be in such.
    pub(super) fn in_blocks(
        &mut self,
        wanted: &Wanted,
        file_name: Option<&str>,
    ) -> Result<Option<Value>, ModelError> {
        if let Some(file_name) = file_name
            && let Some(matrix) = self.kept(wanted, file_name)?
        {
            return Ok(Some(wanted.value(matrix)));
        }
        let [rows, cols] = wanted.sizes();
        let columns = if wanted.store == Store::Conv1d {
            rows
        } else {
            cols
        };
        match encoder(self.device.numerics().weights, wanted.store, columns) {
            None => Ok(None),
            Some(encoder) => {
                let matrix = self.quantised(wanted, file_name, encoder)?;
                Ok(Some(wanted.value(matrix)))
            }
        }
    }

    /// The matrix in the blocks of the file.
    fn kept(
        &mut self,
        wanted: &Wanted,
        file_name: &str,
    ) -> Result<Option<PackedMatrix>, ModelError> {
        let is_kept = self.device.numerics().weights == BaseFormat::Stored
            && !matches!(wanted.store, Store::Vector | Store::Matrix);
        let Some(source) = self.source.as_ref().filter(|_| is_kept) else {
            return Ok(None);
        };
        let parted = source.checkpoint.parted(file_name);
        let parted = parted.filter(|parted| {
            let is_conv1d = wanted.store == Store::Conv1d;
            source.table(&wanted.name).is_none() && parted.is_transposed == is_conv1d
        });
        let Some((parted, format)) = parted.and_then(|p| Some((p, stored_format(p.format)?)))
        else {
            return Ok(None);
        };
        let (checkpoint, mut fault) = (source.checkpoint, None);
        let fill = |rows: Range<usize>| {
            let parts = checkpoint.read_parts(file_name, rows.clone())?;
            fault = fault
                .take()
                .or(parts.not_finite().map(|scale| (rows.start, scale)));
            Ok::<_, ModelError>(block_rows(parts))
        };
        let matrix = PackedMatrix::from_block_rows(self.device, format, parted.shape, fill)?;
        if let Some((row, scale)) = fault {
            let name = &wanted.name;
            self.body_faults += 1;
            self.faults.push(format!(
                "{name}: a scale of {} near row {row} is {scale}, expected a finite number",
                parted.format
            ));
        }
        Ok(Some(matrix))
    }

    /// The matrix put into blocks.
    fn quantised(
        &mut self,
        wanted: &Wanted,
        file_name: Option<&str>,
        Encoder(format, encode): Encoder,
    ) -> Result<PackedMatrix, ModelError> {
        let (device, [rows, cols]) = (self.device, wanted.sizes());
        let mut values = Vec::new();
        if wanted.store != Store::Conv1d {
            let fill = |part: Range<usize>| {
                values.resize(part.len() * cols, 0.0);
                self.fill(wanted, file_name, part.start * cols, &mut values)?;
                Ok(block_rows(encode(&values)))
            };
            return PackedMatrix::from_block_rows(device, format, [rows, cols], fill);
        }
        let stored = self.whole(wanted, file_name)?;
        let fill = |part: Range<usize>| {
            values.clear();
            for column in part {
                values.extend(stored.iter().skip(column).step_by(cols));
            }
            Ok::<_, ModelError>(block_rows(encode(&values)))
        };
        let matrix = PackedMatrix::from_block_rows(device, format, [cols, rows], fill)?;
        self.stored = stored;
        Ok(matrix)
    }
}

impl Wanted {
    fn value(&self, matrix: PackedMatrix) -> Value {
        let matrix = Matrix::Frozen(matrix);
        match self.store {
            Store::Conv1d => Value::Conv1d(matrix),
            _ => Value::Matrix(matrix),
        }
    }
}

/// The engine's format of what a file calls so.
fn stored_format(name: &str) -> Option<BlockFormat> {
    let is_named = |format: &BlockFormat| format.name().eq_ignore_ascii_case(name);
    BlockFormat::ALL.into_iter().find(is_named)
}

fn block_rows(parts: BlockParts) -> BlockRows {
    let BlockParts {
        codes,
        scales,
        mins,
        supers,
    } = parts;
    BlockRows {
        codes,
        scales,
        mins,
        supers,
    }
}
