//! The tokenizer that stands in a GGUF file: tokens, kinds, scores or merges in its keys, and the
//! name of the way in which text is divided. Put together so that it gives llama.cpp's ids. Knows
//! no model's weights.

mod pre_tokenizers;

use std::path::Path;

use lowrank_formats::gguf::Gguf;
use lowrank_formats::{FormatError, nearest};
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Inner, decoders};

use super::class::TokenizerFamily;
use super::open::{CONTRADICTION, Opened};
use super::sentencepiece::{Algorithm, Blanks, Piece, PieceKind, SentencePieceModel};
use super::settings::{Settings, Sources, malformed};
use super::templates::{self, NamedTemplate};
use super::{build, spm};
use crate::error::TokenizerError;
use crate::panics::catch;
use pre_tokenizers::{names, pre_tokenizer};

/// What stands for the file's name where the vocabulary comes from a GGUF file.
pub(super) const SOURCE: &str = "tokenizer.ggml.tokens";

/// The kind of a token that is a single byte, of those in `tokenizer.ggml.token_type`.
const BYTE: f64 = 6.0;

/// The roles of tokens, and their keys.
const ROLES: [(&str, &str); 6] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("mask_token", "mask_token_id"),
];

/// A file's tokens.
struct Tokens<'a> {
    gguf: &'a Gguf,
    texts: Vec<String>,
    kinds: Vec<PieceKind>,
    has_bytes: bool,
}

/// The tokenizer of a GGUF file, and what its keys say of it in the words of
/// `tokenizer_config.json`.
///
/// # Errors
/// A file without a tokenizer; one of a model or with a pre-tokenizer that is not known; parts that
/// contradict each other.
pub(super) fn open(path: &Path) -> Result<(Opened, Settings), TokenizerError> {
    let gguf = Gguf::open(path)?;
    let tokens = Tokens::read(&gguf)?;
    let settings = tokens.settings()?;
    let sources = Sources {
        tokenizer_config: serde_json::to_vec(&settings).ok(),
        ..Sources::default()
    };
    let settings = Settings::parse(path, &sources)?;
    let built = catch(|| tokens.build());
    let built = built.unwrap_or_else(|| Err(tokens.malformed(CONTRADICTION.into())))?;
    Ok((built, settings))
}

/// What the keys of a GGUF file say of its tokenizer, as the object of a `tokenizer_config.json`.
pub(super) fn tokenizer_config(path: &Path) -> Result<Value, TokenizerError> {
    let gguf = Gguf::open(path)?;
    let tokens = Tokens::read(&gguf)?;
    Ok(Value::Object(tokens.settings()?))
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

impl<'a> Tokens<'a> {
    fn read(gguf: &'a Gguf) -> Result<Tokens<'a>, TokenizerError> {
        let missing = || TokenizerError::NotFound {
            dir: gguf.path().to_owned(),
        };
        let texts = gguf.texts(SOURCE)?.ok_or_else(missing)?;
        let kinds = gguf.numbers(&key("token_type"))?;
        let kinds = kinds.unwrap_or_else(|| vec![1.0; texts.len()]);
        let tokens = Tokens {
            gguf,
            has_bytes: kinds.contains(&BYTE),
            kinds: kinds.iter().map(|kind| kind_of(*kind)).collect(),
            texts,
        };
        match tokens.kinds.len() == tokens.texts.len() {
            true => Ok(tokens),
            false => Err(tokens.malformed(format!(
                "{} kinds in `tokenizer.ggml.token_type` for {} tokens",
                tokens.kinds.len(),
                tokens.texts.len()
            ))),
        }
    }

    fn malformed(&self, problem: String) -> TokenizerError {
        malformed(self.gguf.path(), None, problem)
    }

    fn flag(&self, name: &str, usual: bool) -> Result<bool, FormatError> {
        Ok(self.gguf.bool(&key(name))?.unwrap_or(usual))
    }

    /// The token whose id a key holds; ids that no token has mean none, as in llama.cpp.
    fn named(&self, name: &str) -> Result<Option<(u32, &str)>, FormatError> {
        let id = self.gguf.unsigned(&key(name))?;
        Ok(id.and_then(|id| {
            let text = self.texts.get(usize::try_from(id).ok()?)?;
            Some((u32::try_from(id).ok()?, text.as_str()))
        }))
    }

    fn settings(&self) -> Result<Map<String, Value>, TokenizerError> {
        let mut settings = Map::new();
        settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        let roles = ROLES.iter().chain([&("cls_token", "cls_token_id")]);
        for (role, key) in roles {
            if let Some((_, text)) = self.named(key)? {
                settings.insert((*role).into(), json!(text));
            }
        }
        match &templates::of_gguf(self.gguf)?[..] {
            [] => {}
            [NamedTemplate { name: None, text }] => {
                settings.insert("chat_template".into(), json!(text));
            }
            // The older form, which stands in the same file.
            named => {
                let named = named.iter().map(|NamedTemplate { name, text }| {
                    let name = name.as_deref().unwrap_or("default");
                    json!({ "name": name, "template": text })
                });
                settings.insert("chat_template".into(), named.collect());
            }
        }
        settings.insert("clean_up_tokenization_spaces".into(), json!(false));
        Ok(settings)
    }

    fn build(&self) -> Result<Opened, TokenizerError> {
        let model = self.gguf.text(&key("model"))?.unwrap_or_default();
        let (mut inner, family) = match model {
            "gpt2" => (self.byte_level()?, TokenizerFamily::Gpt2),
            "llama" => (self.sentence_piece()?, TokenizerFamily::Llama),
            "bert" => (self.word_piece()?, TokenizerFamily::Bert),
            "t5" => {
                // llama.cpp applies its map of characters by the longest match, the library by
                // graphemes: ids would differ where marks are combined.
                return Err(self.malformed(
                    "`tokenizer.ggml.model` is `t5`, a unigram model of SentencePiece, which is not read \
                     from GGUF files: take the model's own directory with its `tokenizer.json`"
                        .into(),
                ));
            }
            other => {
                return Err(self.malformed(format!(
                    "`tokenizer.ggml.model` is `{other}`, expected one of `gpt2`, `llama`, `bert`"
                )));
            }
        };
        let added = spm::added_pieces(&self.pieces(&[])?);
        let library = |error: tokenizers::Error| self.malformed(error.to_string());
        inner.add_tokens(added).map_err(library)?;
        match family {
            TokenizerFamily::Bert => self.around_bert(&mut inner)?,
            _ => self.around(&mut inner, model)?,
        }
        Ok(Opened {
            inner,
            source: SOURCE,
            family: Some(family),
            unk_id: self.named("unknown_token_id")?.map(|(id, _)| id),
        })
    }

    /// Text, score and kind of each token; scores are 0 where none are given.
    fn pieces(&self, scores: &[f64]) -> Result<Vec<Piece>, TokenizerError> {
        let pieces = self.texts.iter().zip(&self.kinds).enumerate();
        let pieces = pieces.map(|(id, (text, kind))| Piece {
            text: text.clone(),
            score: scores.get(id).map_or(0.0, |score| *score as f32),
            kind: *kind,
        });
        Ok(pieces.collect())
    }

    /// The ids of the tokens. A text that stands there twice has the later id.
    fn vocab(&self, text_of: impl Fn(&str) -> String) -> Vocab {
        let ids = self.texts.iter().zip(0..);
        ids.map(|(text, id)| (text_of(text), id)).collect()
    }

    /// A byte-level BPE with merges.
    fn byte_level(&self) -> Result<Inner, TokenizerError> {
        let name = self.gguf.text(&key("pre"))?.unwrap_or("default");
        let Some(way) = pre_tokenizer(name) else {
            let meant = nearest(name, names());
            let meant = meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            return Err(self.malformed(format!(
                "`tokenizer.ggml.pre` is `{name}`, which is no way of dividing text that is known{meant}"
            )));
        };
        let vocab = self.vocab(str::to_owned);
        let lines = self.gguf.texts(&key("merges"))?.unwrap_or_default();
        let mut merges = Vec::with_capacity(lines.len());
        for line in &lines {
            // The blank between them is not that of a token, which byte-level tokens write as
            // another character.
            let pair = line.split_once(' ').filter(|(left, right)| {
                [*left, *right, &format!("{left}{right}")]
                    .iter()
                    .all(|symbol| vocab.contains_key(*symbol))
            });
            let Some((left, right)) = pair else {
                return Err(self.malformed(format!(
                    "`tokenizer.ggml.merges` has `{line}`, expected two tokens whose union is one"
                )));
            };
            merges.push((left.to_owned(), right.to_owned()));
        }
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(way.ignore_merges)
            .build();
        let library = |error: tokenizers::Error| self.malformed(error.to_string());
        let mut inner = Inner::new(bpe.map_err(library)?);
        let prefix = self.flag("add_space_prefix", false)?;
        let bytes = ByteLevel::default().add_prefix_space(prefix);
        if way.is_gpt2() {
            inner.with_pre_tokenizer(Some(bytes));
        } else {
            let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
            for pattern in way.patterns {
                let pattern = SplitPattern::Regex((*pattern).to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                steps.push(split.map_err(library)?.into());
            }
            steps.push(bytes.use_regex(false).into());
            inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
        }
        inner.with_decoder(Some(ByteLevel::default()));
        Ok(inner)
    }

    /// SentencePiece's BPE: neighbours are merged, the best score first.
    fn sentence_piece(&self) -> Result<Inner, TokenizerError> {
        let scores = self.gguf.numbers(&key("scores"))?.unwrap_or_default();
        if scores.len() != self.texts.len() || scores.iter().any(|score| !score.is_finite()) {
            return Err(self.malformed(format!(
                "`tokenizer.ggml.scores` has {} values for {} tokens, expected a finite number for each",
                scores.len(),
                self.texts.len()
            )));
        }
        let unk = self
            .named("unknown_token_id")?
            .map_or(0, |(id, _)| id as usize);
        let model = SentencePieceModel {
            pieces: self.pieces(&scores)?,
            algorithm: Algorithm::Bpe,
            unk_id: unk,
            byte_fallback: self.has_bytes,
            bos: None,
            eos: None,
            charsmap: Vec::new(),
            blanks: Blanks {
                dummy_prefix: self.flag("add_space_prefix", true)?,
                remove_extra: false,
                escape: true,
            },
        };
        if model.pieces.is_empty() {
            return Err(self.malformed("it has no tokens".into()));
        }
        let fault = |problem: String| self.malformed(problem);
        let library = |error: tokenizers::Error| fault(error.to_string());
        let merges = spm::merges_by_score(&model).map_err(fault)?;
        let bpe = BPE::builder()
            .fuse_unk(true)
            .byte_fallback(model.byte_fallback)
            .unk_token(model.unk().to_owned())
            .vocab_and_merges(self.vocab(str::to_owned), merges)
            .build();
        let mut inner = Inner::new(bpe.map_err(library)?);
        let mut steps = vec![blanks().map_err(library)?];
        if model.blanks.dummy_prefix {
            // The library leaves the prefix out where the text begins with `▁`; llama.cpp does not.
            let doubled = spm::replace(ReplacePattern::Regex(r"\A▁".into()), "▁▁");
            steps.push(doubled.map_err(library)?);
            inner.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::Always, false)));
        }
        inner
            .with_normalizer(Some(Normalizers::new(steps)))
            .map_err(library)?;
        let decoders = spm::generic_decoders(&model).map_err(library)?;
        inner.with_decoder(Some(decoders::sequence::Sequence::new(decoders)));
        Ok(inner)
    }

    /// BERT's WordPiece. llama.cpp writes `▁` before words and nothing before their ends.
    fn word_piece(&self) -> Result<Inner, TokenizerError> {
        let vocab = self.vocab(|text| match text.strip_prefix('▁') {
            _ if text.starts_with('[') && text.ends_with(']') => text.to_owned(),
            Some(word) if !word.is_empty() => word.to_owned(),
            Some(_) => text.to_owned(),
            None => format!("##{text}"),
        });
        let unk = self.named("unknown_token_id")?;
        let unk = unk.map_or("[UNK]", |(_, text)| text).to_owned();
        if !vocab.contains_key(&unk) {
            return Err(self.malformed(format!(
                "its unknown token `{unk}` is not in the vocabulary"
            )));
        }
        let model = WordPiece::builder().vocab(vocab).unk_token(unk).build();
        let library = |error: tokenizers::Error| self.malformed(error.to_string());
        let mut inner = Inner::new(model.map_err(library)?);
        let lowercase = self.flag("normalizer.lowercase", true)?;
        let accents = self.flag("normalizer.strip_accents", lowercase)?;
        let normalizer = BertNormalizer::new(true, true, Some(accents), lowercase);
        inner.with_normalizer(Some(normalizer)).map_err(library)?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
        Ok(inner)
    }

    /// `[CLS] a [SEP] b [SEP]`.
    fn around_bert(&self, inner: &mut Inner) -> Result<(), TokenizerError> {
        let first = match self.named("cls_token_id")? {
            Some(cls) => Some(cls),
            None => self.named("bos_token_id")?,
        };
        let role = |role: &'static str, found: Option<(u32, &str)>, usual: &str| match found {
            Some((id, _)) => Ok(id),
            None => {
                let token = AddedToken::from(usual, true);
                build::need(inner, self.gguf.path(), role, &token)
            }
        };
        let cls = role("cls", first, "[CLS]")?;
        let sep = role("sep", self.named("seperator_token_id")?, "[SEP]")?;
        build::with_cls_and_sep(inner, self.gguf.path(), cls, sep)
    }

    /// The beginning and end tokens that the switches ask for.
    fn around(&self, inner: &mut Inner, model: &str) -> Result<(), TokenizerError> {
        let name = self.gguf.text(&key("pre"))?.unwrap_or("default");
        let usual = model == "llama" || pre_tokenizer(name).is_some_and(|way| way.adds_bos);
        let mut ids = Vec::new();
        for (role, flag, usual) in [
            ("bos", "add_bos_token", usual),
            ("eos", "add_eos_token", false),
        ] {
            if self.flag(flag, usual)?
                && let Some((id, _)) = self.named(&format!("{role}_token_id"))?
            {
                ids.push((role, id));
            }
        }
        build::with_ids_around(inner, self.gguf.path(), &ids)
    }
}

/// The kinds of ggml's `llama_token_type`.
fn kind_of(kind: f64) -> PieceKind {
    match kind as i64 {
        1 => PieceKind::Normal,
        // Unknown text has a token of its own that a text may also hold.
        2 | 3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        _ => PieceKind::Other,
    }
}

fn blanks() -> tokenizers::Result<NormalizerWrapper> {
    spm::replace(ReplacePattern::String(" ".into()), "▁")
}
