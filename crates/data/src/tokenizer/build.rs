//! Tokenizers from `vocab.txt`, and from `vocab.json` with `merges.txt`, put together as
//! transformers does it.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner, decoders};

use super::added::{Own, add_tokens};
use super::class::TokenizerFamily;
use super::read::{read, read_text};
use super::settings::{Settings, malformed, parse_object};
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
    let model = WordPiece::builder()
        .vocab(vocab.into_iter().collect::<Vocab>())
        .unk_token(unk.content.clone())
        .build()
        .map_err(|error| malformed(&path, None, error.to_string()))?;
    let mut inner = Inner::new(model);
    need(&inner, &path, "unk", &unk)?;
    bert_parts(&mut inner, settings).map_err(|error| malformed(&path, None, error.to_string()))?;
    inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
    let own = usual(TokenizerFamily::Bert);
    finish(&mut inner, &path, settings, TokenizerFamily::Bert, own)?;
    Ok(inner)
}

/// BERT's normaliser and pre-tokenizer.
pub(super) fn bert_parts(inner: &mut Inner, settings: &Settings) -> tokenizers::Result<()> {
    inner.with_normalizer(Some(bert_normalizer(true, settings)))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(())
}

/// BERT's normaliser with the class's settings. What is not set has the class's usual value,
/// whatever a file was saved with.
pub(super) fn bert_normalizer(clean_text: bool, settings: &Settings) -> BertNormalizer {
    BertNormalizer::new(
        clean_text,
        settings.flag("tokenize_chinese_chars").unwrap_or(true),
        settings.flag("strip_accents"),
        settings.flag("do_lower_case").unwrap_or(true),
    )
}

/// RoBERTa's, DeBERTa's or GPT-2's byte-level BPE from `vocab.json` and `merges.txt`.
pub(super) fn byte_level_bpe(
    dir: &Path,
    settings: &Settings,
    family: TokenizerFamily,
) -> Result<Inner, TokenizerError> {
    let path = dir.join("vocab.json");
    let mut vocab: Vec<(String, u32)> = Vec::new();
    for (token, id) in parse_object(&path, &read(&path)?)? {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            let problem = format!("the id of `{token}` is not a token id: `{id}`");
            return Err(malformed(&path, None, problem));
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
    finish(&mut inner, &path, settings, family, usual(family))?;
    Ok(inner)
}

/// The class's usual tokens as special ones.
pub(super) fn usual(family: TokenizerFamily) -> Own {
    let tokens = family.usual_tokens().iter();
    Own {
        usual: tokens
            .map(|(role, token)| (*role, AddedToken::from(*token, true)))
            .collect(),
        ..Own::default()
    }
}

/// Adds the tokens, then puts the class's special tokens around a text. `path` is the vocabulary.
pub(super) fn finish(
    inner: &mut Inner,
    path: &Path,
    settings: &Settings,
    family: TokenizerFamily,
    own: Own,
) -> Result<(), TokenizerError> {
    let role = |role: &str| {
        let usual = family.usual_token(role).unwrap_or_default();
        settings.special_token(role, usual)
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    match family {
        TokenizerFamily::Bert | TokenizerFamily::Deberta => {
            // Looked up before tokens are added: a model without rows for them cannot classify.
            let cls = need(inner, path, "cls", &role("cls_token"))?;
            let sep = need(inner, path, "sep", &role("sep_token"))?;
            add_tokens(inner, dir, settings, own)?;
            with_cls_and_sep(inner, path, cls, sep)
        }
        TokenizerFamily::DebertaV2 => {
            add_tokens(inner, dir, settings, own)?;
            let cls = need(inner, path, "cls", &role("cls_token"))?;
            let sep = need(inner, path, "sep", &role("sep_token"))?;
            with_cls_and_sep(inner, path, cls, sep)
        }
        TokenizerFamily::Roberta => {
            let (cls, sep) = (role("cls_token"), role("sep_token"));
            let cls_id = need(inner, path, "cls", &cls)?;
            let sep_id = need(inner, path, "sep", &sep)?;
            add_tokens(inner, dir, settings, own)?;
            let post = RobertaProcessing::new((sep.content, sep_id), (cls.content, cls_id));
            inner.with_post_processor(Some(post));
            Ok(())
        }
        TokenizerFamily::XlmRoberta => {
            add_tokens(inner, dir, settings, own)?;
            let bos = need(inner, path, "bos", &role("bos_token"))?;
            let eos = need(inner, path, "eos", &role("eos_token"))?;
            let (single, pair) = ("bos $A eos", "bos $A eos eos $B eos");
            template(inner, path, [single, pair], &[("bos", bos), ("eos", eos)])
        }
        TokenizerFamily::Gpt2
        | TokenizerFamily::Llama
        | TokenizerFamily::Gemma
        | TokenizerFamily::Generic => {
            let named = |name: &str| {
                let usual = own.usual.iter().find(|(role, _)| *role == name);
                settings
                    .named(name)
                    .or_else(|| usual.map(|(_, token)| token.clone()))
            };
            let (bos, eos) = (named("bos_token"), named("eos_token"));
            add_tokens(inner, dir, settings, own)?;
            with_bos_and_eos(inner, path, settings, [bos, eos])
        }
    }
}

/// `[CLS] a [SEP] b [SEP]` with token types 0 and 1.
pub(super) fn with_cls_and_sep(
    inner: &mut Inner,
    path: &Path,
    cls: u32,
    sep: u32,
) -> Result<(), TokenizerError> {
    let (single, pair) = ("cls:0 $A:0 sep:0", "cls:0 $A:0 sep:0 $B:1 sep:1");
    template(inner, path, [single, pair], &[("cls", cls), ("sep", sep)])
}

/// The tokens that `add_bos_token` and `add_eos_token` ask for, around each text.
fn with_bos_and_eos(
    inner: &mut Inner,
    path: &Path,
    settings: &Settings,
    tokens: [Option<AddedToken>; 2],
) -> Result<(), TokenizerError> {
    let mut ids = Vec::new();
    let [bos, eos] = tokens;
    for (name, flag, token) in [("bos", "add_bos_token", bos), ("eos", "add_eos_token", eos)] {
        if let Some(token) = token.filter(|_| settings.flag(flag) == Some(true)) {
            ids.push((name, need(inner, path, name, &token)?));
        }
    }
    with_ids_around(inner, path, &ids)
}

/// Puts the tokens that are named `bos` and `eos` before and behind each text.
pub(super) fn with_ids_around(
    inner: &mut Inner,
    path: &Path,
    ids: &[(&str, u32)],
) -> Result<(), TokenizerError> {
    if ids.is_empty() {
        return Ok(());
    }
    let has = |name: &str| ids.iter().any(|(there, _)| *there == name);
    let around = |text: &str, of: usize| {
        let before = if has("bos") {
            format!("bos:{of} ")
        } else {
            String::new()
        };
        let after = if has("eos") {
            format!(" eos:{of}")
        } else {
            String::new()
        };
        format!("{before}{text}:{of}{after}")
    };
    let single = around("$A", 0);
    let pair = format!("{single} {}", around("$B", 1));
    template(inner, path, [&single, &pair], ids)
}

/// Sets what stands around a text and a pair. The pieces have names of their own: those of tokens
/// may hold any character.
fn template(
    inner: &mut Inner,
    path: &Path,
    [single, pair]: [&str; 2],
    ids: &[(&str, u32)],
) -> Result<(), TokenizerError> {
    let template = TemplateProcessing::builder()
        .try_single(single)
        .and_then(|builder| builder.try_pair(pair))
        .map(|builder| builder.special_tokens(ids.to_vec()).build());
    match template {
        Ok(Ok(template)) => inner.with_post_processor(Some(template)),
        Ok(Err(error)) => return Err(malformed(path, None, error.to_string())),
        Err(error) => return Err(malformed(path, None, error)),
    };
    Ok(())
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

/// The id of a token that the class cannot do without.
pub(super) fn need(
    inner: &Inner,
    path: &Path,
    role: &'static str,
    token: &AddedToken,
) -> Result<u32, TokenizerError> {
    inner
        .token_to_id(&token.content)
        .ok_or_else(|| TokenizerError::NoSpecialToken {
            path: path.into(),
            role,
            token: token.content.clone(),
        })
}
