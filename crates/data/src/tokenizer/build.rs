//! Tokenizers from the older vocabulary files, put together as transformers does it. `tokenizer.json` needs none of this.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{
    BertNormalizer, Lowercase, NormalizerWrapper, Precompiled, Replace, Sequence as Normalizers,
    Strip,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Inner, decoders};

use super::TokenizerFamily;
use super::sentencepiece::{PieceKind, SentencePieceModel};
use super::settings::{Settings, parse_object};
use crate::error::TokenizerError;

/// BERT's WordPiece from `vocab.txt`, one token a line.
pub(super) fn word_piece(dir: &Path, settings: &Settings) -> Result<Inner, TokenizerError> {
    let path = dir.join("vocab.txt");
    let text = read_text(&path)?;
    let vocab: Vec<(String, u32)> = text
        .lines()
        .zip(0..)
        .map(|(token, id)| (token.trim_end().to_string(), id))
        .collect();
    let unk = settings.special_token("unk_token", "[UNK]");
    let cls = settings.special_token("cls_token", "[CLS]");
    let sep = settings.special_token("sep_token", "[SEP]");
    let ids: HashMap<&str, u32> = vocab
        .iter()
        .map(|(token, id)| (token.as_str(), *id))
        .collect();
    need(&path, &ids, "unk", &unk)?;
    let cls_id = need(&path, &ids, "cls", &cls)?;
    let sep_id = need(&path, &ids, "sep", &sep)?;
    let model = WordPiece::builder()
        .vocab(vocab.iter().cloned().collect::<Vocab>())
        .unk_token(unk.content.clone())
        .build()
        .map_err(|error| malformed(&path, None, error.to_string()))?;
    let mut inner = Inner::new(model);
    let normalizer = BertNormalizer::new(
        true,
        settings.flag("tokenize_chinese_chars").unwrap_or(true),
        settings.flag("strip_accents"),
        settings.flag("do_lower_case").unwrap_or(true),
    );
    inner
        .with_normalizer(Some(normalizer))
        .map_err(|error| malformed(&path, None, error.to_string()))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
    let pad = settings.special_token("pad_token", "[PAD]");
    let mask = settings.special_token("mask_token", "[MASK]");
    let special = [unk, sep.clone(), pad, cls.clone(), mask];
    add_tokens(&mut inner, dir, settings, special)?;
    with_cls_and_sep(&mut inner, &path, cls_id, sep_id)?;
    Ok(inner)
}

/// `[CLS] a [SEP] b [SEP]` with token types 0 and 1.
fn with_cls_and_sep(
    inner: &mut Inner,
    path: &Path,
    cls_id: u32,
    sep_id: u32,
) -> Result<(), TokenizerError> {
    // The names of special tokens may hold any character, so the template speaks of its own names.
    let template = TemplateProcessing::builder()
        .try_single("cls:0 $A:0 sep:0")
        .and_then(|builder| builder.try_pair("cls:0 $A:0 sep:0 $B:1 sep:1"))
        .map(|builder| {
            builder
                .special_tokens(vec![("cls", cls_id), ("sep", sep_id)])
                .build()
        });
    match template {
        Ok(Ok(template)) => inner.with_post_processor(Some(template)),
        Ok(Err(error)) => return Err(malformed(path, None, error.to_string())),
        Err(error) => return Err(malformed(path, None, error)),
    };
    Ok(())
}

/// DeBERTa-v2's unigram model from `spm.model`. Source: transformers `DebertaV2Converter`, which applies the normaliser that
/// the model was trained with; the class of transformers 5 puts NFC in its place and so gives other ids to some text.
pub(super) fn unigram(dir: &Path, settings: &Settings) -> Result<Inner, TokenizerError> {
    let path = dir.join("spm.model");
    let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Read {
        path: path.clone(),
        source,
    })?;
    let fault = |problem: String| malformed(&path, None, problem);
    let library = |error: tokenizers::Error| malformed(&path, None, error.to_string());
    let SentencePieceModel {
        pieces,
        unk_id,
        charsmap,
    } = SentencePieceModel::parse(&bytes).map_err(fault)?;
    let scores = pieces.iter().map(|p| (p.text.clone(), f64::from(p.score)));
    // Pieces for single bytes, where a model has them, are left alone by transformers.
    let model = Unigram::from(scores.collect(), Some(unk_id), false).map_err(library)?;
    let mut inner = Inner::new(model);
    let normalizer = unigram_normalizer(settings, &charsmap).map_err(library)?;
    inner.with_normalizer(Some(normalizer)).map_err(library)?;
    let mut splits: Vec<PreTokenizerWrapper> = Vec::new();
    if settings.flag("split_by_punct").unwrap_or(false) {
        splits.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
    }
    let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
    splits.push(metaspace.clone().into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
    inner.with_decoder(Some(metaspace));
    for piece in &pieces {
        let special = match piece.kind {
            PieceKind::Ordinary => continue,
            PieceKind::Control => true,
            PieceKind::UserDefined => false,
        };
        let token = AddedToken::from(piece.text.as_str(), special).normalized(false);
        inner.add_tokens([token]).map_err(library)?;
    }
    let role = |role: &str, usual: &str| settings.special_token(role, usual);
    let (cls, sep) = (role("cls_token", "[CLS]"), role("sep_token", "[SEP]"));
    let unk = role("unk_token", "[UNK]");
    add_tokens(&mut inner, dir, settings, [unk, sep.clone(), cls.clone()])?;
    // Unlike the other families, these models keep rows for tokens that the vocabulary lacks.
    let mask = role("mask_token", "[MASK]");
    let late = [role("pad_token", "[PAD]"), mask];
    inner.add_special_tokens(late).map_err(library)?;
    let id_of = |name: &'static str, token: &AddedToken| {
        inner
            .token_to_id(&token.content)
            .ok_or_else(|| TokenizerError::NoSpecialToken {
                path: path.clone(),
                role: name,
                token: token.content.clone(),
            })
    };
    let (cls_id, sep_id) = (id_of("cls", &cls)?, id_of("sep", &sep)?);
    with_cls_and_sep(&mut inner, &path, cls_id, sep_id)?;
    Ok(inner)
}

/// Trims, applies the model's own map, and makes one blank of many.
fn unigram_normalizer(settings: &Settings, charsmap: &[u8]) -> tokenizers::Result<Normalizers> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if settings.flag("do_lower_case").unwrap_or(false) {
        steps.push(Lowercase.into());
    }
    steps.push(Strip::new(true, true).into());
    if !charsmap.is_empty() {
        steps.push(Precompiled::from(charsmap)?.into());
    }
    let blanks = ReplacePattern::Regex(" {2,}".to_string());
    steps.push(Replace::new(blanks, " ")?.into());
    Ok(Normalizers::new(steps))
}

/// RoBERTa's, DeBERTa's or GPT-2's byte-level BPE from `vocab.json` and `merges.txt`.
pub(super) fn byte_level_bpe(
    dir: &Path,
    settings: &Settings,
    family: TokenizerFamily,
) -> Result<Inner, TokenizerError> {
    let vocab_path = dir.join("vocab.json");
    let bytes = std::fs::read(&vocab_path).map_err(|source| TokenizerError::Read {
        path: vocab_path.clone(),
        source,
    })?;
    let mut vocab: Vec<(String, u32)> = Vec::new();
    for (token, id) in parse_object(&vocab_path, &bytes)? {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return Err(malformed(
                &vocab_path,
                None,
                format!("the id of `{token}` is not a token id: `{id}`"),
            ));
        };
        vocab.push((token, id));
    }
    let ids: HashMap<&str, u32> = vocab
        .iter()
        .map(|(token, id)| (token.as_str(), *id))
        .collect();
    let merges = read_merges(&dir.join("merges.txt"), &ids)?;
    let add_prefix_space = settings.flag("add_prefix_space").unwrap_or(false);
    let model = BPE::builder()
        .vocab_and_merges(vocab.iter().cloned().collect::<Vocab>(), merges)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(String::new())
        .build()
        .map_err(|error| malformed(&dir.join("merges.txt"), None, error.to_string()))?;
    let mut inner = Inner::new(model);
    inner.with_pre_tokenizer(Some(
        ByteLevel::default().add_prefix_space(add_prefix_space),
    ));
    inner.with_decoder(Some(ByteLevel::default()));
    if family == TokenizerFamily::Gpt2 {
        let end = "<|endoftext|>";
        let special =
            ["unk_token", "bos_token", "eos_token"].map(|role| settings.special_token(role, end));
        add_tokens(&mut inner, dir, settings, special)?;
        inner.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
        return Ok(inner);
    }
    if family == TokenizerFamily::Deberta {
        deberta_special_tokens(&mut inner, dir, settings, &ids)?;
        return Ok(inner);
    }
    let cls = settings.special_token("cls_token", "<s>");
    let sep = settings.special_token("sep_token", "</s>");
    let cls_id = need(&vocab_path, &ids, "cls", &cls)?;
    let sep_id = need(&vocab_path, &ids, "sep", &sep)?;
    let post = RobertaProcessing::new((sep.content.clone(), sep_id), (cls.content.clone(), cls_id))
        .add_prefix_space(add_prefix_space);
    let others = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ];
    let special = others
        .map(|(role, usual)| settings.special_token(role, usual))
        .into_iter()
        .chain([sep, cls]);
    add_tokens(&mut inner, dir, settings, special)?;
    inner.with_post_processor(Some(post));
    Ok(inner)
}

/// DeBERTa v1's special tokens, and where they stand.
fn deberta_special_tokens(
    inner: &mut Inner,
    dir: &Path,
    settings: &Settings,
    ids: &HashMap<&str, u32>,
) -> Result<(), TokenizerError> {
    let path = dir.join("vocab.json");
    let role = |role: &str, usual: &str| settings.special_token(role, usual);
    let (cls, sep) = (role("cls_token", "[CLS]"), role("sep_token", "[SEP]"));
    let cls_id = need(&path, ids, "cls", &cls)?;
    let sep_id = need(&path, ids, "sep", &sep)?;
    let (unk, pad) = (role("unk_token", "[UNK]"), role("pad_token", "[PAD]"));
    let mask = role("mask_token", "[MASK]");
    add_tokens(inner, dir, settings, [unk, sep, pad, cls, mask])?;
    with_cls_and_sep(inner, &path, cls_id, sep_id)
}

/// Reads `merges.txt`: two symbols a line, both and their union in the vocabulary.
fn read_merges(
    path: &Path,
    ids: &HashMap<&str, u32>,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let text = read_text(path)?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        let fault = |problem: String| malformed(path, Some(i + 1), problem);
        let Some((left, right)) = line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '))
        else {
            return Err(fault(format!(
                "expected two symbols with a space between them, found `{line}`"
            )));
        };
        for symbol in [left, right, &format!("{left}{right}")] {
            if !ids.contains_key(symbol) {
                return Err(fault(format!("`{symbol}` is not in `vocab.json`")));
            }
        }
        merges.push((left.to_string(), right.to_string()));
    }
    Ok(merges)
}

/// Adds what the settings add, then the special tokens. One that the vocabulary lacks is left out: it would get an
/// id for which the model has no row.
fn add_tokens(
    inner: &mut Inner,
    dir: &Path,
    settings: &Settings,
    special: impl IntoIterator<Item = AddedToken>,
) -> Result<(), TokenizerError> {
    let refused = |error: tokenizers::Error| {
        malformed(&dir.join("tokenizer_config.json"), None, error.to_string())
    };
    for (id, token) in settings.added_tokens(dir)? {
        let content = token.content.clone();
        let added = if token.special {
            inner.add_special_tokens([token])
        } else {
            inner.add_tokens([token])
        };
        added.map_err(refused)?;
        let got = inner.token_to_id(&content);
        if got != Some(id) {
            let got = got.map_or("none".to_string(), |got| got.to_string());
            let path = if settings.has("added_tokens_decoder") {
                "tokenizer_config.json"
            } else {
                "added_tokens.json"
            };
            let problem = format!(
                "added token `{content}` should have id {id}, beside this vocabulary it gets {got}"
            );
            return Err(malformed(&dir.join(path), None, problem));
        }
    }
    for token in special {
        if inner.token_to_id(&token.content).is_some() {
            inner.add_special_tokens([token]).map_err(refused)?;
        }
    }
    Ok(())
}

fn need(
    path: &Path,
    ids: &HashMap<&str, u32>,
    role: &'static str,
    token: &AddedToken,
) -> Result<u32, TokenizerError> {
    ids.get(token.content.as_str())
        .copied()
        .ok_or_else(|| TokenizerError::NoSpecialToken {
            path: path.into(),
            role,
            token: token.content.clone(),
        })
}

fn read_text(path: &Path) -> Result<String, TokenizerError> {
    let bytes = std::fs::read(path).map_err(|source| TokenizerError::Read {
        path: path.into(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        malformed(path, Some(line), "not UTF-8 text".into())
    })
}

fn malformed(path: &Path, line: Option<usize>, problem: String) -> TokenizerError {
    TokenizerError::Malformed {
        path: PathBuf::from(path),
        line,
        problem,
    }
}
