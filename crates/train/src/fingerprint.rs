//! Fingerprints by which a resumed run knows that it continues the same thing.

use std::path::PathBuf;

use lowrank_data::{Example, Label};
use lowrank_formats::FormatError;
use lowrank_formats::files::Regular;
use sha2::{Digest, Sha256};

/// SHA-256 of the rows as the model sees them: token ids, token types and labels, in order.
pub fn of_examples(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    let count = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_le_bytes());
    count(&mut hash, examples.len());
    for example in examples {
        count(&mut hash, example.input_ids.len());
        example
            .input_ids
            .iter()
            .for_each(|id| hash.update(id.to_le_bytes()));
        let types = example.token_type_ids.as_deref().unwrap_or_default();
        count(&mut hash, types.len());
        types.iter().for_each(|id| hash.update(id.to_le_bytes()));
        match &example.label {
            Label::None => hash.update([0]),
            Label::Class(class) => {
                hash.update([1]);
                hash.update(class.to_le_bytes());
            }
            Label::Multi(values) => {
                hash.update([2]);
                count(&mut hash, values.len());
                values.iter().for_each(|v| hash.update(v.to_le_bytes()));
            }
            Label::Value(value) => {
                hash.update([3]);
                hash.update(value.to_le_bytes());
            }
            Label::Tokens(labels) => {
                hash.update([4]);
                labels.iter().for_each(|v| hash.update(v.to_le_bytes()));
            }
        }
    }
    hex(&hash.finalize())
}

/// SHA-256 of bytes, in hexadecimal.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of the content of files in their order, in hexadecimal. A file is never in memory as a
/// whole.
///
/// # Errors
/// A file cannot be read.
pub fn of_files(paths: &[PathBuf]) -> Result<String, FormatError> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    for path in paths {
        let file = Regular::open(path)?;
        for start in (0..file.len()).step_by(chunk.len()) {
            let n = (file.len() - start).min(chunk.len() as u64) as usize;
            file.read_exact_at(&mut chunk[..n], start)?;
            hash.update(&chunk[..n]);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// A short fingerprint of values by their bits: equal exactly when every bit is, for all practical
/// purposes.
pub fn of_values(values: &[f32]) -> u64 {
    // FNV-1a over words; to tell "moved" from "did not move" needs no cryptography.
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash, v| {
        (hash ^ u64::from(v.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], label: Label) -> Example {
        Example {
            input_ids: ids.to_vec(),
            token_type_ids: None,
            label,
            line: 1,
            truncated_tokens: 0,
        }
    }

    #[test]
    fn every_part_of_a_row_counts() {
        let base = of_examples(&[example(&[1, 2], Label::Class(0))]);
        let others = [
            vec![example(&[2, 1], Label::Class(0))],
            vec![example(&[1, 2], Label::Class(1))],
            vec![
                example(&[1], Label::Class(0)),
                example(&[2], Label::Class(0)),
            ],
            vec![example(&[1, 2], Label::Value(0.0))],
            vec![],
        ];
        assert!(others.iter().all(|o| of_examples(o) != base));
        assert_eq!(base.len(), 64);
    }

    #[test]
    fn a_flipped_sign_of_zero_is_a_move() {
        assert_ne!(of_values(&[0.0, 1.0]), of_values(&[-0.0, 1.0]));
        assert_eq!(of_values(&[0.5, 1.0]), of_values(&[0.5, 1.0]));
    }
}
