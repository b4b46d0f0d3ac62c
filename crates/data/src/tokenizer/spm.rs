//! Tokenizers from a SentencePiece model, put together as transformers does it: for DeBERTa-v2 as
//! its converter of version 4, for the others as the classes of version 5.24.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{
    Lowercase, NormalizerWrapper, Precompiled, Replace, Sequence as Normalizers, Strip,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{
    AddedToken, DecoderWrapper, SplitDelimiterBehavior, Tokenizer as Inner, decoders,
};

use super::added::{Own, Rows};
use super::build::{finish, usual};
use super::class::TokenizerFamily;
use super::read::read;
use super::sentencepiece::{Algorithm, Piece, PieceKind, SentencePieceModel};
use super::settings::{Settings, malformed};
use crate::error::TokenizerError;

/// Deriving merges looks at all divisions of all pieces: this many bytes of text at most, some
/// seconds of work. Gemma's 256,000 pieces take 20 million.
const MOST_MERGE_BYTES: usize = 1 << 32;

/// A tokenizer, and the id that it gives to unknown text.
pub(super) struct FromPieces {
    pub(super) inner: Inner,
    pub(super) unk_id: Option<u32>,
}

/// Builds the tokenizer of `family` from the model at `path`.
pub(super) fn sentence_piece(
    path: &Path,
    settings: &Settings,
    family: TokenizerFamily,
) -> Result<FromPieces, TokenizerError> {
    let fault = |problem: String| malformed(path, None, problem);
    let model = SentencePieceModel::parse(&read(path)?).map_err(fault)?;
    let wanted = match family {
        TokenizerFamily::DebertaV2 | TokenizerFamily::XlmRoberta => Some(Algorithm::Unigram),
        TokenizerFamily::Llama | TokenizerFamily::Gemma => Some(Algorithm::Bpe),
        _ => None,
    };
    if wanted.is_some_and(|wanted| wanted != model.algorithm) {
        return Err(fault(format!(
            "expected a {wanted:?} model for this tokenizer class, found {:?}",
            model.algorithm,
            wanted = wanted.unwrap_or(model.algorithm)
        )));
    }
    let own = Own {
        extra: added_pieces(&model.pieces),
        ..usual(family)
    };
    let library = |error: tokenizers::Error| fault(error.to_string());
    let (mut inner, own) = match family {
        TokenizerFamily::DebertaV2 => (
            deberta_v2(&model, settings).map_err(library)?,
            Own {
                rows: Rows::OfUsualTokens,
                ..own
            },
        ),
        TokenizerFamily::XlmRoberta => (xlm_roberta(&model, settings).map_err(library)?, own),
        TokenizerFamily::Llama => (llama(&model, settings).map_err(fault)?, own),
        TokenizerFamily::Gemma => (gemma(&model, settings).map_err(fault)?, own),
        _ => (
            generic(&model, settings).map_err(fault)?,
            Own {
                usual: generic_roles(&model),
                // Its pre-tokenizer isolates the others behind the dummy prefix, as SentencePiece
                // does.
                extra: own
                    .extra
                    .into_iter()
                    .filter(|token| token.special)
                    .collect(),
                // So that each stretch of text between them gets its own dummy prefix.
                raw: model.blanks.dummy_prefix,
                ..Own::default()
            },
        ),
    };
    finish(&mut inner, path, settings, family, own)?;
    let unk = match family {
        TokenizerFamily::XlmRoberta => Some(3),
        _ => inner.token_to_id(model.unk()),
    };
    Ok(FromPieces { inner, unk_id: unk })
}

/// Control symbols are special, user-defined ones are not; neither is ever split.
pub(super) fn added_pieces(pieces: &[Piece]) -> Vec<AddedToken> {
    let token = |piece: &Piece| {
        let special = match piece.kind {
            PieceKind::Normal | PieceKind::Other => return None,
            PieceKind::Control => true,
            PieceKind::UserDefined => false,
        };
        Some(AddedToken::from(piece.text.as_str(), special).normalized(false))
    };
    pieces.iter().filter_map(token).collect()
}

pub(super) fn replace(
    pattern: ReplacePattern,
    content: &str,
) -> tokenizers::Result<NormalizerWrapper> {
    Ok(Replace::new(pattern, content)?.into())
}

fn scores(pieces: &[Piece]) -> impl Iterator<Item = (String, f64)> {
    pieces.iter().map(|p| (p.text.clone(), f64::from(p.score)))
}

/// DeBERTa-v2's unigram model. Source: transformers 4 `DebertaV2Converter`, which applies the
/// normaliser that the model was trained with; the class of transformers 5 puts NFC in its place
/// and so gives other ids to some text.
fn deberta_v2(model: &SentencePieceModel, settings: &Settings) -> tokenizers::Result<Inner> {
    // Pieces for single bytes, where a model has them, are left alone by transformers.
    let unigram = Unigram::from(scores(&model.pieces).collect(), Some(model.unk_id), false)?;
    let mut inner = Inner::new(unigram);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if settings.flag("do_lower_case").unwrap_or(false) {
        steps.push(Lowercase.into());
    }
    steps.push(Strip::new(true, true).into());
    if !model.charsmap.is_empty() {
        steps.push(Precompiled::from(&model.charsmap)?.into());
    }
    steps.push(replace(ReplacePattern::Regex(" {2,}".into()), " ")?);
    inner.with_normalizer(Some(Normalizers::new(steps)))?;
    let mut splits: Vec<PreTokenizerWrapper> = Vec::new();
    if settings.flag("split_by_punct").unwrap_or(false) {
        splits.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
    }
    let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
    splits.push(metaspace.clone().into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
    inner.with_decoder(Some(metaspace));
    // This converter adds the model's own symbols whatever the settings list.
    inner.add_tokens(added_pieces(&model.pieces))?;
    Ok(inner)
}

/// XLM-R's unigram model in fairseq's order: four special tokens in the place of the model's first
/// three pieces, `<mask>` last.
fn xlm_roberta(model: &SentencePieceModel, settings: &Settings) -> tokenizers::Result<Inner> {
    let name = |role: &str, usual: &str| (settings.special_token(role, usual).content, 0.0);
    let mut vocab = vec![
        name("bos_token", "<s>"),
        name("pad_token", "<pad>"),
        name("eos_token", "</s>"),
        name("unk_token", "<unk>"),
    ];
    vocab.extend(scores(&model.pieces).skip(3));
    vocab.push(name("mask_token", "<mask>"));
    let mut inner = Inner::new(Unigram::from(vocab, Some(3), false)?);
    if !model.charsmap.is_empty() {
        inner.with_normalizer(Some(Precompiled::from(&model.charsmap)?))?;
    }
    let scheme = match settings.flag("add_prefix_space") {
        None | Some(true) => PrependScheme::Always,
        Some(false) => PrependScheme::Never,
    };
    let metaspace = Metaspace::new('▁', scheme, true);
    inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        WhitespaceSplit.into(),
        metaspace.clone().into(),
    ])));
    inner.with_decoder(Some(metaspace));
    Ok(inner)
}

/// Llama 2's BPE: a blank before the text, or with `legacy` before each stretch of text between
/// special tokens.
fn llama(model: &SentencePieceModel, settings: &Settings) -> Result<Inner, String> {
    let bpe = BPE::builder().fuse_unk(true).byte_fallback(true);
    let bpe = bpe
        .vocab_and_merges(ids(model), merges_by_id(model)?)
        .build();
    let mut inner = Inner::new(bpe.map_err(|error| error.to_string())?);
    let scheme = llama_prefix(settings);
    inner.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    decode_bytes(&mut inner, scheme).map_err(|error| error.to_string())?;
    Ok(inner)
}

/// Before which stretches of text Llama's class puts a blank.
pub(super) fn llama_prefix(settings: &Settings) -> PrependScheme {
    let prefix = settings.flag("add_prefix_space").unwrap_or(true);
    match settings.flag("legacy") {
        _ if !prefix => PrependScheme::Never,
        Some(true) => PrependScheme::Always,
        Some(false) | None => PrependScheme::First,
    }
}

/// Gemma's BPE: blanks are symbols, none is put before the text.
fn gemma(model: &SentencePieceModel, settings: &Settings) -> Result<Inner, String> {
    let unk = settings.special_token("unk_token", "<unk>").content;
    let bpe = BPE::builder()
        .fuse_unk(true)
        .byte_fallback(true)
        .unk_token(unk)
        .vocab_and_merges(ids(model), merges_by_id(model)?);
    let rest = |inner: &mut Inner| -> tokenizers::Result<()> {
        inner.with_normalizer(Some(replace(ReplacePattern::String(" ".into()), "▁")?))?;
        let behavior = SplitDelimiterBehavior::MergedWithPrevious;
        let split = Split::new(SplitPattern::String(" ".into()), behavior, false)?;
        inner.with_pre_tokenizer(Some(split));
        decode_bytes(inner, PrependScheme::Never)
    };
    let mut inner = Inner::new(bpe.build().map_err(|error| error.to_string())?);
    rest(&mut inner).map_err(|error| error.to_string())?;
    Ok(inner)
}

/// `▁` to blanks and pieces of one byte to text; a blank that encoding puts before the text goes.
fn decode_bytes(inner: &mut Inner, scheme: PrependScheme) -> tokenizers::Result<()> {
    let blank = Replace::new(ReplacePattern::String("▁".into()), " ")?;
    let mut steps: Vec<DecoderWrapper> = vec![
        blank.into(),
        decoders::byte_fallback::ByteFallback::new().into(),
        decoders::fuse::Fuse::new().into(),
    ];
    if scheme != PrependScheme::Never {
        steps.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(decoders::sequence::Sequence::new(steps)));
    Ok(())
}

/// A model without a class: what SentencePiece itself does, by the model's own settings. Source:
/// transformers 5.24, `SpmConverter.build_tokenizer_from_spm_proto`.
fn generic(model: &SentencePieceModel, settings: &Settings) -> Result<Inner, String> {
    let of_kind = |kind| {
        let pieces = model.pieces.iter().filter(move |p| p.kind == kind);
        pieces.map(|piece| piece.text.as_str())
    };
    let mut user_defined: Vec<&str> = of_kind(PieceKind::UserDefined).collect();
    let legacy = settings.flag("legacy").unwrap_or(true);
    let mut inner = match model.algorithm {
        Algorithm::Unigram => {
            let vocab = scores(&model.pieces).collect();
            let unigram = Unigram::from(vocab, Some(model.unk_id), model.byte_fallback);
            Inner::new(unigram.map_err(|error| error.to_string())?)
        }
        Algorithm::Bpe => {
            let bpe = BPE::builder()
                .fuse_unk(true)
                .byte_fallback(model.byte_fallback)
                .ignore_merges(!user_defined.is_empty())
                .unk_token(model.unk().to_string())
                .vocab_and_merges(ids(model), merges_by_score(model)?);
            Inner::new(bpe.build().map_err(|error| error.to_string())?)
        }
    };
    let scheme = if legacy {
        PrependScheme::Always
    } else {
        PrependScheme::First
    };
    let mut splits: Vec<PreTokenizerWrapper> = Vec::new();
    if model.blanks.dummy_prefix {
        splits.push(Metaspace::new('▁', scheme, false).into());
    }
    if !user_defined.is_empty() {
        // The longest first; equal lengths in the file's order.
        user_defined.sort_by_key(|piece| std::cmp::Reverse(piece.chars().count()));
        let escaped: Vec<String> = user_defined.into_iter().map(escape).collect();
        let pattern = SplitPattern::Regex(escaped.join("|"));
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        splits.push(split.map_err(|error| error.to_string())?.into());
    }
    let rest = |inner: &mut Inner| -> tokenizers::Result<()> {
        inner.with_normalizer(Some(Normalizers::new(generic_steps(model, legacy)?)))?;
        if !splits.is_empty() {
            inner.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
        }
        inner.with_decoder(Some(decoders::sequence::Sequence::new(generic_decoders(
            model,
        )?)));
        Ok(())
    };
    rest(&mut inner).map_err(|error| error.to_string())?;
    Ok(inner)
}

fn generic_steps(
    model: &SentencePieceModel,
    legacy: bool,
) -> tokenizers::Result<Vec<NormalizerWrapper>> {
    let regex = |pattern: &str, content| replace(ReplacePattern::Regex(pattern.into()), content);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !model.charsmap.is_empty() {
        steps.push(Precompiled::from(&model.charsmap)?.into());
    }
    if model.blanks.remove_extra {
        steps.push(regex(r"\A +| +\z", "")?);
        steps.push(regex(" {2,}", " ")?);
    }
    if model.blanks.escape {
        steps.push(replace(ReplacePattern::String(" ".into()), "▁")?);
    }
    if model.blanks.dummy_prefix && legacy {
        // The library leaves the prefix out where the text begins with `▁`; SentencePiece does not.
        steps.push(regex(r"\A▁", "▁▁")?);
    }
    Ok(steps)
}

pub(super) fn generic_decoders(
    model: &SentencePieceModel,
) -> tokenizers::Result<Vec<DecoderWrapper>> {
    let blank = Replace::new(ReplacePattern::String("▁".into()), " ")?;
    let mut steps: Vec<DecoderWrapper> = vec![blank.into()];
    if model.byte_fallback {
        steps.push(decoders::byte_fallback::ByteFallback::new().into());
    }
    if model.blanks.dummy_prefix || model.byte_fallback {
        steps.push(decoders::fuse::Fuse::new().into());
    }
    if model.blanks.dummy_prefix {
        steps.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    Ok(steps)
}

/// The roles that the model itself knows.
fn generic_roles(model: &SentencePieceModel) -> Vec<(&'static str, AddedToken)> {
    let roles = [
        ("bos_token", model.bos.as_deref()),
        ("eos_token", model.eos.as_deref()),
        ("unk_token", Some(model.unk())),
    ];
    let token = |(role, text): (_, Option<&str>)| Some((role, AddedToken::from(text?, true)));
    roles.into_iter().filter_map(token).collect()
}

/// A text as a pattern that matches itself.
fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

fn ids(model: &SentencePieceModel) -> Vocab {
    let pieces = model.pieces.iter().zip(0..);
    pieces.map(|(piece, id)| (piece.text.clone(), id)).collect()
}

/// Each division of each piece into two that `takes` takes, with the place of the piece.
fn divisions<'a>(
    pieces: impl Iterator<Item = &'a str> + Clone,
    takes: &HashSet<&str>,
) -> Result<Vec<(usize, &'a str, &'a str)>, String> {
    let squares = pieces
        .clone()
        .map(|piece| piece.len().saturating_mul(piece.len()));
    if squares.fold(0, usize::saturating_add) > MOST_MERGE_BYTES {
        return Err("its pieces are too long to derive the merges of a BPE from them".into());
    }
    let mut found = Vec::new();
    for (place, piece) in pieces.enumerate() {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if takes.contains(left) && takes.contains(right) {
                found.push((place, left, right));
            }
        }
    }
    Ok(found)
}

/// Merges in the order of the ids of their results, then of the length of the left side. Source:
/// transformers 5.24, `generate_merges` without scores.
fn merges_by_id(model: &SentencePieceModel) -> Result<Vec<(String, String)>, String> {
    let last: HashMap<&str, usize> = model
        .pieces
        .iter()
        .zip(0..)
        .map(|(piece, id)| (piece.text.as_str(), id))
        .collect();
    let all: HashSet<&str> = last.keys().copied().collect();
    let mut found = divisions(model.pieces.iter().map(|p| p.text.as_str()), &all)?;
    // A text that stands there twice has the later id alone.
    found.retain(|(place, left, right)| {
        let whole = model.pieces[*place].text.as_str();
        debug_assert_eq!(whole.len(), left.len() + right.len());
        last.get(whole) == Some(place)
    });
    found.sort_by_key(|(place, left, _)| (*place, left.chars().count()));
    Ok(owned(found))
}

/// Merges of normal pieces, the best score first, then by id and text. Source: transformers 5.24,
/// `SpmConverter.build_tokenizer_from_spm_proto`.
pub(super) fn merges_by_score(model: &SentencePieceModel) -> Result<Vec<(String, String)>, String> {
    let pieces: Vec<&Piece> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind == PieceKind::Normal)
        .collect();
    let texts = pieces.iter().map(|piece| piece.text.as_str());
    let normal: HashSet<&str> = texts.clone().collect();
    let mut found = divisions(texts, &normal)?;
    found.sort_by(|a, b| {
        let scores = pieces[b.0].score.total_cmp(&pieces[a.0].score);
        scores.then(a.cmp(b))
    });
    Ok(owned(found))
}

fn owned(merges: Vec<(usize, &str, &str)>) -> Vec<(String, String)> {
    let pair = |(_, left, right): (usize, &str, &str)| (left.to_string(), right.to_string());
    merges.into_iter().map(pair).collect()
}
