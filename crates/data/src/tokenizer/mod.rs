//! Text to token ids, equal to transformers: `tokenizer.json`, or the older vocabulary files. Knows nothing of rows.
//!
//! A `tokenizer.json` may carry a truncation and a padding of its own; both are switched off here, because the caller
//! decides the length and batches are padding-free.

mod build;
mod sentencepiece;
mod settings;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{EncodeInput, Encoding, InputSequence, PostProcessor, Tokenizer as Inner};

use crate::error::TokenizerError;
use crate::labels::IGNORE_INDEX;
use settings::Settings;

/// Which older vocabulary files a model family uses, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerFamily {
    /// WordPiece, `[CLS] a [SEP] b [SEP]`, token types 0 and 1.
    Bert,
    /// Byte-level BPE, `<s> a </s></s> b </s>`.
    Roberta,
    /// Byte-level BPE, `[CLS] a [SEP] b [SEP]`, token types 0 and 1.
    Deberta,
    /// Unigram from `spm.model`, `[CLS] a [SEP] b [SEP]`, token types 0 and 1.
    #[serde(rename = "deberta-v2")]
    DebertaV2,
    /// Byte-level BPE without special tokens.
    Gpt2,
}

impl TokenizerFamily {
    /// The family of a `model_type` or a tokenizer class name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        // Other alphabets under similar names: SentencePiece, or their own splitting.
        if ["xlm", "albert", "camembert", "bertweet", "japanese"]
            .iter()
            .any(|other| name.contains(other))
        {
            return None;
        }
        if name.contains("deberta") {
            let v2 = ["v2", "v3"].iter().any(|version| name.contains(version));
            Some(if v2 { Self::DebertaV2 } else { Self::Deberta })
        } else if ["roberta", "longformer", "bart"]
            .iter()
            .any(|part| name.contains(part))
        {
            Some(Self::Roberta)
        } else if ["bert", "electra", "mpnet"]
            .iter()
            .any(|part| name.contains(part))
        {
            Some(Self::Bert)
        } else if name.contains("gpt2") || name == "gpt_neo" || name == "opt" {
            Some(Self::Gpt2)
        } else {
            None
        }
    }
}

/// A text, or a pair of texts, as a model takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Token ids, special tokens included.
    pub input_ids: Vec<u32>,
    /// Token types; `None` where all are 0.
    pub token_type_ids: Option<Vec<u32>>,
    /// Tokens of the text that did not fit.
    pub truncated_tokens: usize,
}

/// A list of words as a model takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodedWords {
    /// The tokens.
    pub encoded: Encoded,
    /// For each token the number of its word; `None` for special tokens.
    pub word_ids: Vec<Option<u32>>,
}

impl EncodedWords {
    /// One label a token: that of its word on the first token of each word, [`IGNORE_INDEX`] on all others.
    /// Words that `labels` does not reach get [`IGNORE_INDEX`].
    pub fn align(&self, labels: &[i64]) -> Vec<i64> {
        let mut previous = None;
        let mut aligned = Vec::with_capacity(self.word_ids.len());
        for word in &self.word_ids {
            let label = word
                .filter(|_| *word != previous)
                .and_then(|word| labels.get(word as usize));
            aligned.push(label.copied().unwrap_or(IGNORE_INDEX));
            previous = *word;
        }
        aligned
    }
}

/// The tokenizer files that are carried along with a model or an adapter.
const FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
];

/// A model's tokenizer. Cheap to share between threads, not to clone.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// The same with a space put before each word, for lists of words; made when first needed.
    for_words: OnceLock<Option<Box<Inner>>>,
    dir: PathBuf,
    source: &'static str,
    direction: TruncationDirection,
    model_max_length: Option<usize>,
    family: Option<TokenizerFamily>,
    unk_id: Option<u32>,
    eos_id: Option<u32>,
    /// What stands before a text, where the files say so and the library does not do it.
    bos_id: Option<u32>,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face directory: `tokenizer.json`, else `vocab.txt`, else `vocab.json` with
    /// `merges.txt`, else DeBERTa's `spm.model`. `family` decides how the older files are used where the directory itself does not say it.
    pub fn from_dir(dir: &Path, family: Option<TokenizerFamily>) -> Result<Self, TokenizerError> {
        let has = |name: &str| dir.join(name).is_file();
        let settings = Settings::read(dir)?;
        let family = settings.family().or(family);
        let (inner, source, family) = if has("tokenizer.json") {
            (from_json(dir, &settings)?, "tokenizer.json", family)
        } else if has("vocab.txt") {
            (
                build::word_piece(dir, &settings)?,
                "vocab.txt",
                Some(TokenizerFamily::Bert),
            )
        } else if has("vocab.json") && has("merges.txt") {
            let family = family.unwrap_or(TokenizerFamily::Roberta);
            (
                build::byte_level_bpe(dir, &settings, family)?,
                "vocab.json",
                Some(family),
            )
        } else if has("vocab.json") {
            return Err(TokenizerError::NoMerges { dir: dir.into() });
        } else if has("spm.model") && family.is_none_or(|f| f == TokenizerFamily::DebertaV2) {
            (
                build::unigram(dir, &settings)?,
                "spm.model",
                Some(TokenizerFamily::DebertaV2),
            )
        } else if let Some(file) = ["spm.model", "sentencepiece.bpe.model", "tokenizer.model"]
            .into_iter()
            .find(|file| has(file))
        {
            return Err(TokenizerError::SentencePiece {
                dir: dir.into(),
                file: file.into(),
            });
        } else {
            return Err(TokenizerError::NotFound { dir: dir.into() });
        };
        let unk_id = unk_id(&inner, &settings);
        let usual = match family {
            Some(TokenizerFamily::Gpt2) => "<|endoftext|>",
            Some(TokenizerFamily::Deberta | TokenizerFamily::DebertaV2) => "[SEP]",
            Some(TokenizerFamily::Bert | TokenizerFamily::Roberta) | None => "</s>",
        };
        let special = |role| inner.token_to_id(&settings.special_token(role, usual).content);
        let eos_id = special("eos_token");
        let bos_id = special("bos_token").filter(|_| settings.flag("add_bos_token") == Some(true));
        let tokenizer = Self {
            inner,
            for_words: OnceLock::new(),
            dir: dir.into(),
            source,
            direction: if settings.truncates_left() {
                TruncationDirection::Left
            } else {
                TruncationDirection::Right
            },
            model_max_length: settings.model_max_length(),
            family,
            unk_id,
            eos_id,
            bos_id,
        };
        tokenizer.probe()?;
        Ok(tokenizer)
    }

    /// Encodes a text or a pair, with special tokens. Longer than `max_length` tokens: the longer text of a pair loses
    /// tokens first (transformers' `longest_first`).
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: Option<usize>,
    ) -> Result<Encoded, TokenizerError> {
        let first = plain(&self.inner, text.into())?;
        let second = pair
            .map(|pair| plain(&self.inner, pair.into()))
            .transpose()?;
        Ok(self.finish(&self.inner, first, second, max_length)?.0)
    }

    /// Encodes a list of words as one text, and says which token belongs to which word (transformers'
    /// `is_split_into_words`; a byte-level BPE sees a space before every word).
    pub fn encode_words(
        &self,
        words: &[String],
        max_length: Option<usize>,
    ) -> Result<EncodedWords, TokenizerError> {
        let inner = self
            .for_words
            .get_or_init(|| with_prefix_space(&self.inner).map(Box::new));
        let inner = inner.as_deref().unwrap_or(&self.inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let input = EncodeInput::Single(InputSequence::from(words.as_slice()));
        let encoding = inner.encode(input, false).map_err(refused)?;
        let (encoded, encoding) = self.finish(inner, encoding, None, max_length)?;
        Ok(EncodedWords {
            word_ids: encoding.get_word_ids().to_vec(),
            encoded,
        })
    }

    /// Truncates, then adds the special tokens.
    fn finish(
        &self,
        inner: &Inner,
        first: Encoding,
        second: Option<Encoding>,
        max_length: Option<usize>,
    ) -> Result<(Encoded, Encoding), TokenizerError> {
        let length = first.len() + second.as_ref().map_or(0, Encoding::len);
        let special = inner
            .get_post_processor()
            .map_or(0, |post| post.added_tokens(second.is_some()));
        let mut truncated_tokens = 0;
        let (first, second) = match max_length {
            Some(max_length) if max_length <= special => {
                return Err(TokenizerError::MaxLengthTooSmall {
                    max_length,
                    special,
                });
            }
            Some(max_length) if length + special > max_length => {
                truncated_tokens = length + special - max_length;
                let params = TruncationParams {
                    direction: self.direction,
                    max_length: max_length - special,
                    strategy: TruncationStrategy::LongestFirst,
                    stride: 0,
                };
                truncate_encodings(first, second, &params).map_err(refused)?
            }
            Some(_) | None => (first, second),
        };
        let encoding = inner.post_process(first, second, true).map_err(refused)?;
        let types = encoding.get_type_ids();
        let typed = match self.family {
            Some(TokenizerFamily::Bert | TokenizerFamily::Deberta | TokenizerFamily::DebertaV2)
            | None => types.iter().any(|id| *id != 0),
            // The library numbers the texts of a pair; models of these families have no types for it.
            Some(TokenizerFamily::Roberta | TokenizerFamily::Gpt2) => false,
        };
        let encoded = Encoded {
            input_ids: encoding.get_ids().to_vec(),
            token_type_ids: typed.then(|| types.to_vec()),
            truncated_tokens,
        };
        Ok((encoded, encoding))
    }

    /// Encodes a text without special tokens around it. An empty text gives nothing.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        Ok(plain(&self.inner, text.into())?.get_ids().to_vec())
    }

    /// The special tokens that stand before a text, as in OPT.
    pub fn leading_tokens(&self) -> Result<Vec<u32>, TokenizerError> {
        let plain = self.encode_plain("a")?;
        let whole = self.encode("a", None, None)?.input_ids;
        let text_at = whole.windows(plain.len().max(1)).position(|w| w == plain);
        let leading = &whole[..text_at.unwrap_or(0)];
        Ok(match self.bos_id {
            Some(bos) if leading.is_empty() => vec![bos],
            Some(_) | None => leading.to_vec(),
        })
    }

    /// The token that ends a text, if the vocabulary has it.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// A text from token ids, special tokens left visible.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(refused)
    }

    /// The token with this id, as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as it stands in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, added ones included.
    pub fn token_count(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id plus one: the least number of rows that the model's embedding must have.
    pub fn vocab_size(&self) -> usize {
        self.inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |id| *id as usize + 1)
    }

    /// The id that unknown text gets, if there is one; a byte-level BPE knows all text.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk_id
    }

    /// Special tokens around one text, or around a pair.
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.inner
            .get_post_processor()
            .map_or(0, |post| post.added_tokens(pair))
    }

    /// The limit named in `tokenizer_config.json`, for reporting; [`Self::encode`] does not apply it.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// The family, where it is known.
    pub fn family(&self) -> Option<TokenizerFamily> {
        self.family
    }

    /// The file that the vocabulary came from: `tokenizer.json`, `vocab.txt`, `vocab.json` or `spm.model`.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The tokenizer's files that are there.
    pub fn files(&self) -> Vec<PathBuf> {
        FILES
            .iter()
            .map(|name| self.dir.join(name))
            .filter(|path| path.is_file())
            .collect()
    }

    /// Copies the tokenizer's files, unchanged, into an existing directory.
    pub fn save_files(&self, dir: &Path) -> Result<(), TokenizerError> {
        for path in self.files() {
            let Some(name) = path.file_name() else {
                continue;
            };
            let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Read {
                path: path.clone(),
                source,
            })?;
            let target = dir.join(name);
            std::fs::write(&target, bytes).map_err(|source| TokenizerError::Write {
                path: target,
                source,
            })?;
        }
        Ok(())
    }

    /// Encodes a text and a pair once: a file whose parts contradict each other makes the library panic only then.
    fn probe(&self) -> Result<(), TokenizerError> {
        let probed = catch_unwind(AssertUnwindSafe(|| {
            self.encode("a", None, None)?;
            self.encode("a", Some("b"), None)
        }));
        let problem = match probed {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its parts contradict each other: a probe text cannot be encoded".into(),
        };
        Err(TokenizerError::Malformed {
            path: self.dir.join(self.source),
            line: None,
            problem,
        })
    }
}

/// Encodes one text without special tokens.
fn plain(inner: &Inner, text: InputSequence) -> Result<Encoding, TokenizerError> {
    inner
        .encode_fast(EncodeInput::Single(text), false)
        .map_err(refused)
}

fn refused(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode(error.to_string())
}

/// Loads `tokenizer.json`, and lets `tokenizer_config.json` overrule it where transformers does.
fn from_json(dir: &Path, settings: &Settings) -> Result<Inner, TokenizerError> {
    let path = dir.join("tokenizer.json");
    let malformed = |line, problem| TokenizerError::Malformed {
        path: path.clone(),
        line,
        problem,
    };
    let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Read {
        path: path.clone(),
        source,
    })?;
    // A plain parser first: it names the line, and the library panics on some text that is no JSON.
    settings::parse_object(&path, &bytes)?;
    // Some contradictions make it panic while it builds its tables.
    let loaded = catch_unwind(|| Inner::from_bytes(&bytes));
    let mut inner = match loaded {
        Ok(Ok(inner)) => inner,
        Ok(Err(error)) => return Err(malformed(None, error.to_string())),
        Err(_) => return Err(malformed(None, "its parts contradict each other".into())),
    };
    inner.with_padding(None);
    inner
        .with_truncation(None)
        .map_err(|error| malformed(None, error.to_string()))?;
    if settings.family() == Some(TokenizerFamily::Bert)
        && let Some(NormalizerWrapper::BertNormalizer(old)) = inner.get_normalizer().cloned()
    {
        let new = BertNormalizer::new(
            old.clean_text,
            settings
                .flag("tokenize_chinese_chars")
                .unwrap_or(old.handle_chinese_chars),
            settings.flag("strip_accents").or(old.strip_accents),
            settings.flag("do_lower_case").unwrap_or(old.lowercase),
        );
        inner
            .with_normalizer(Some(new))
            .map_err(|error| malformed(None, error.to_string()))?;
    }
    if settings.family() == Some(TokenizerFamily::Roberta)
        && let Some(add_prefix_space) = settings.flag("add_prefix_space")
        && let Some(PreTokenizerWrapper::ByteLevel(old)) = inner.get_pre_tokenizer().cloned()
    {
        inner.with_pre_tokenizer(Some(old.add_prefix_space(add_prefix_space)));
    }
    Ok(inner)
}

/// The same tokenizer with a space before each word, where it is a byte-level one that puts none.
fn with_prefix_space(inner: &Inner) -> Option<Inner> {
    let Some(PreTokenizerWrapper::ByteLevel(old)) = inner.get_pre_tokenizer().cloned() else {
        return None;
    };
    if old.add_prefix_space {
        return None;
    }
    let mut copy = inner.clone();
    copy.with_pre_tokenizer(Some(old.add_prefix_space(true)));
    Some(copy)
}

fn unk_id(inner: &Inner, settings: &Settings) -> Option<u32> {
    use tokenizers::models::ModelWrapper;
    match inner.get_model() {
        ModelWrapper::WordPiece(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::WordLevel(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::BPE(model) => inner.token_to_id(model.get_unk_token().as_deref()?),
        ModelWrapper::Unigram(_) => {
            let token = settings.special_token("unk_token", "<unk>").content;
            inner
                .token_to_id(&token)
                .or_else(|| inner.token_to_id("[UNK]"))
        }
    }
}
