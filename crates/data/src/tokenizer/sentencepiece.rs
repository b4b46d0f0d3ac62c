//! Reads a SentencePiece model file: pieces, their scores, the settings that change ids. No file
//! can make it panic or allocate more than its own size. It does not know how a tokenizer is put
//! together.
//!
//! Source: `sentencepiece_model.proto`, and `Darts::DoubleArray` for the trie in the normaliser's
//! map.

/// A model as its file holds it.
#[derive(Debug)]
pub(super) struct SentencePieceModel {
    /// In the order of their ids.
    pub(super) pieces: Vec<Piece>,
    /// How text is divided into pieces.
    pub(super) algorithm: Algorithm,
    /// The id that unknown text gets.
    pub(super) unk_id: usize,
    /// Whether characters that the vocabulary lacks become pieces of one byte.
    pub(super) byte_fallback: bool,
    /// The pieces of the beginning and the end of a text, where the model has them.
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    /// The normaliser's precompiled map, checked; empty if there is none.
    pub(super) charsmap: Vec<u8>,
    /// What the normaliser does with blanks.
    pub(super) blanks: Blanks,
}

/// How text is divided into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// The most probable pieces (type 1).
    Unigram,
    /// Neighbours are merged, the best score first (type 2).
    Bpe,
}

/// What the normaliser does with blanks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blanks {
    /// One is put before the text.
    pub(super) dummy_prefix: bool,
    /// Those at both ends are dropped, one is made of many.
    pub(super) remove_extra: bool,
    /// Each becomes `▁`.
    pub(super) escape: bool,
}

/// One piece of the vocabulary.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Text.
    Normal,
    /// A special token such as `[CLS]`.
    Control,
    /// A symbol that is never split.
    UserDefined,
    /// The unknown piece, a byte, or one that is not used.
    Other,
}

impl SentencePieceModel {
    /// Reads the content of the file. The error says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = SentencePieceModel {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            unk_id: 0,
            byte_fallback: false,
            bos: None,
            eos: None,
            charsmap: Vec::new(),
            blanks: Blanks {
                dummy_prefix: true,
                remove_extra: true,
                escape: true,
            },
        };
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => model.pieces.push(parse_piece(piece)?),
                (2, Value::Bytes(trainer)) => model.parse_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        match field? {
                            (2, Value::Bytes(map)) => model.charsmap = map.to_vec(),
                            (3, Value::Varint(flag)) => model.blanks.dummy_prefix = flag != 0,
                            (4, Value::Varint(flag)) => model.blanks.remove_extra = flag != 0,
                            (5, Value::Varint(flag)) => model.blanks.escape = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if model.unk_id >= model.pieces.len() {
            let (id, n) = (model.unk_id, model.pieces.len());
            return Err(format!("the unknown piece has id {id} of {n} pieces"));
        }
        if !model.charsmap.is_empty() {
            check_charsmap(&model.charsmap)?;
        }
        Ok(model)
    }

    fn parse_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        // A protobuf integer that is negative has all higher bits set.
        let (mut bos, mut eos) = ((1u64, "<s>".to_string()), (2u64, "</s>".to_string()));
        for field in Fields(bytes) {
            match field? {
                (3, Value::Varint(1)) => self.algorithm = Algorithm::Unigram,
                (3, Value::Varint(2)) => self.algorithm = Algorithm::Bpe,
                (3, Value::Varint(other)) => {
                    return Err(format!(
                        "expected a unigram or BPE model (type 1 or 2), found type {other}"
                    ));
                }
                (35, Value::Varint(flag)) => self.byte_fallback = flag != 0,
                (40, Value::Varint(id)) => self.unk_id = id as usize,
                (41, Value::Varint(id)) => bos.0 = id,
                (42, Value::Varint(id)) => eos.0 = id,
                (46, Value::Bytes(text)) => bos.1 = utf8(text)?,
                (47, Value::Bytes(text)) => eos.1 = utf8(text)?,
                _ => {}
            }
        }
        let named = |(id, text): (u64, String)| (id as i64 >= 0).then_some(text);
        (self.bos, self.eos) = (named(bos), named(eos));
        Ok(())
    }

    /// The text of the unknown piece.
    pub(super) fn unk(&self) -> &str {
        &self.pieces[self.unk_id].text
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a piece is not UTF-8 text".to_string())
}

fn parse_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: PieceKind::Normal,
    };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => piece.text = utf8(text)?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    _ => PieceKind::Other,
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() || !piece.score.is_finite() {
        let Piece { text, score, .. } = piece;
        return Err(format!("a piece `{text}` with score {score}"));
    }
    Ok(piece)
}

/// A value of the protobuf wire format. Groups are not used by any file of this kind.
enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in their order, with their numbers. Ends after an error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "not a SentencePiece model, or cut off".to_string()))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

/// Walks every path of the trie: the tokenizer library follows them without checking, text by text.
///
/// Layout: bytes of the trie (u32), the trie (u32 each), the replacements, each ended by a zero
/// byte.
pub(super) fn check_charsmap(map: &[u8]) -> Result<(), String> {
    let fault = |what: &str| Err(format!("the normaliser's map: {what}"));
    let Some((size, rest)) = map.split_first_chunk::<4>() else {
        return fault("cut off");
    };
    let Some((trie, replacements)) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)
    else {
        return fault("its trie is longer than the map");
    };
    let Ok(replacements) = std::str::from_utf8(replacements) else {
        return fault("its replacements are not UTF-8 text");
    };
    let (units, []) = trie.as_chunks::<4>() else {
        return fault("its trie does not end with a whole unit");
    };
    let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    // Positions from which the next byte is looked up: the children of a node are at `base ^ byte`.
    let mut bases: Vec<usize> = units
        .first()
        .map(|&root| offset(root))
        .into_iter()
        .collect();
    if bases.is_empty() {
        return fault("its trie is empty");
    }
    while let Some(base) = bases.pop() {
        for byte in 1..=0xff {
            let at = base ^ byte;
            let Some(&unit) = units.get(at) else {
                return fault("its trie points outside itself");
            };
            if (unit & (1 << 31 | 0xff)) as usize != byte || seen[at] {
                continue;
            }
            seen[at] = true;
            let next = at ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = units.get(next).map(|leaf| (leaf & !(1 << 31)) as usize);
                if !leaf.is_some_and(|start| replacements.is_char_boundary(start)) {
                    return fault("a replacement lies outside of the map");
                }
            }
            bases.push(next);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map that turns `a` into `bc`: the root at 0 has its children at 256 + byte, `a` has its
    /// leaf at 512.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 768];
        units[0] = 256 << 10;
        let a = 256 ^ 97;
        units[a] = 97 | 1 << 8 | (((512 ^ a) as u32) << 10);
        units[512] = 1 << 31;
        let mut map = (units.len() as u32 * 4).to_le_bytes().to_vec();
        map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        map.extend(b"bc\0");
        map
    }

    fn set(map: &mut [u8], unit: usize, value: u32) {
        map[4 + 4 * unit..][..4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn a_sound_map_is_taken() {
        check_charsmap(&charsmap()).unwrap();
    }

    #[test]
    fn a_map_that_points_outside_itself_is_refused() {
        let mut map = charsmap();
        set(&mut map, 0, 4096 << 10);
        assert!(check_charsmap(&map).unwrap_err().contains("outside itself"));
        let mut map = charsmap();
        set(&mut map, 512, 1 << 31 | 9);
        assert!(check_charsmap(&map).unwrap_err().contains("replacement"));
        let map = charsmap();
        for len in 0..map.len() - 3 {
            assert!(check_charsmap(&map[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_trie_that_turns_in_a_circle_ends() {
        let mut map = charsmap();
        let a = 256u32 ^ 97;
        set(&mut map, a as usize, 97 | ((256 ^ a) << 10));
        check_charsmap(&map).unwrap();
    }

    #[test]
    fn lengths_are_not_trusted() {
        for bytes in [
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
            &[0xff; 12],
            &[0x0b],
            &[0x08],
        ] {
            let error = SentencePieceModel::parse(bytes).unwrap_err();
            assert!(error.contains("cut off"), "{error}");
        }
        let error = SentencePieceModel::parse(b"").unwrap_err();
        assert!(error.contains("of 0 pieces"), "{error}");
    }
}
