//! Text to token ids, equal to transformers: `tokenizer.json`, or the older vocabulary files. Knows
//! nothing of rows.
//!
//! A `tokenizer.json` may carry a truncation and a padding of its own; both are switched off here,
//! because the caller decides the length and batches are padding-free.

mod added;
mod bounds;
mod build;
mod class;
mod gguf;
mod long;
mod open;
mod read;
mod sentencepiece;
mod settings;
mod spans;
mod spm;
mod templates;

pub use spans::{EncodedSpans, Span};
pub use templates::{CHAT_TEMPLATE_FILE, NamedTemplate, chat_templates};

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::gguf::is_gguf;
use lowrank_formats::{to_python_json, write_atomic};
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{EncodeInput, Encoding, InputSequence, PostProcessor, Tokenizer as Inner};

use crate::error::TokenizerError;
use crate::labels::IGNORE_INDEX;
use crate::panics::catch;
use bounds::Growth;
pub use class::TokenizerFamily;
pub(crate) use long::{Part, refuse_long};
use open::{CONTRADICTION, Opened};
use settings::{Settings, Sources};

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
    /// One label a token: that of its word on the first token of each word, [`IGNORE_INDEX`] on all
    /// others. Words that `labels` does not reach get [`IGNORE_INDEX`].
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

/// A text's tokens without any special one around them, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlainSpans {
    /// The token ids.
    pub input_ids: Vec<u32>,
    /// The characters of each.
    pub spans: Vec<Range<usize>>,
}

/// The tokenizer files that are carried along with a model or an adapter.
const FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    templates::CHAT_TEMPLATE_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "sentencepiece.bpe.model",
    "spiece.model",
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
    /// How far its normaliser lets text grow.
    growth: Growth,
    direction: TruncationDirection,
    model_max_length: Option<usize>,
    family: Option<TokenizerFamily>,
    /// Whether token types are inputs of its models.
    typed: bool,
    /// Whether decoded text loses the blanks before punctuation.
    cleans_up: bool,
    unk_id: Option<u32>,
    eos_id: Option<u32>,
    /// Special tokens by the role that the settings give them: `bos_token`, ….
    roles: BTreeMap<String, String>,
    /// The ids of special tokens.
    special: HashSet<u32>,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face directory: `tokenizer.json` with what stands beside
    /// it, else the vocabulary of the class that `tokenizer_config.json` or `config.json` names.
    /// `family` is the model's, for folders that name no class.
    pub fn from_dir(dir: &Path, family: Option<TokenizerFamily>) -> Result<Self, TokenizerError> {
        let settings = Settings::parse(dir, &Sources::read(dir)?)?;
        let opened = open::open(dir, &settings, family)?;
        Self::from_opened(dir, &settings, opened)
    }

    /// Loads the tokenizer of a model: of a Hugging Face directory as [`Tokenizer::from_dir`] does,
    /// or the one that stands in a GGUF file.
    pub fn of_model(model: &Path, family: Option<TokenizerFamily>) -> Result<Self, TokenizerError> {
        if !is_gguf(model)? {
            return Self::from_dir(model, family);
        }
        let (opened, settings) = gguf::open(model)?;
        Self::from_opened(model, &settings, opened)
    }

    fn from_opened(
        dir: &Path,
        settings: &Settings,
        mut opened: Opened,
    ) -> Result<Self, TokenizerError> {
        let splits = settings.flag("split_special_tokens") == Some(true);
        opened.inner.set_encode_special_tokens(splits);
        let place = place(dir, opened.source);
        let fault = |problem| settings::malformed(&place, None, problem);
        let growth = catch(|| Growth::of(&opened.inner));
        let growth = growth
            .unwrap_or_else(|| Err(CONTRADICTION.into()))
            .map_err(fault)?;
        let Opened { inner, family, .. } = &opened;
        let tokenizer = Self {
            for_words: OnceLock::new(),
            growth,
            dir: dir.into(),
            direction: if settings.truncates_left() {
                TruncationDirection::Left
            } else {
                TruncationDirection::Right
            },
            model_max_length: settings.model_max_length(),
            typed: settings
                .wants_token_types()
                .unwrap_or(family.is_none_or(TokenizerFamily::has_token_types)),
            cleans_up: cleans_up(inner, settings),
            unk_id: unk_id(&opened, settings),
            eos_id: end_id(&opened, settings),
            roles: roles(&opened, settings),
            special: (inner.get_added_tokens_decoder().into_iter())
                .filter_map(|(id, token)| token.special.then_some(id))
                .collect(),
            source: opened.source,
            family: opened.family,
            inner: opened.inner,
        };
        tokenizer.probe()?;
        Ok(tokenizer)
    }

    /// Encodes a text or a pair, with special tokens. Longer than `max_length` tokens: the longer
    /// text of a pair loses tokens first (transformers' `longest_first`).
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: Option<usize>,
    ) -> Result<Encoded, TokenizerError> {
        let first = self.plain(text)?;
        let second = pair.map(|pair| self.plain(pair)).transpose()?;
        Ok(self.finish(&self.inner, first, second, max_length)?.0)
    }

    /// Encodes a list of words as one text, and says which token belongs to which word
    /// (transformers' `is_split_into_words`; a byte-level BPE sees a space before every word).
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
        for word in &words {
            self.growth.check(word).map_err(TokenizerError::Encode)?;
        }
        let input = EncodeInput::Single(InputSequence::from(words.as_slice()));
        let encoding = guarded(|| inner.encode(input, false))?;
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
                guarded(|| truncate_encodings(first, second, &params))?
            }
            Some(_) | None => (first, second),
        };
        let encoding = guarded(|| inner.post_process(first, second, true))?;
        let types = encoding.get_type_ids();
        // The library numbers the texts of a pair even where the models have no types for it.
        let typed = self.typed && types.iter().any(|id| *id != 0);
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
        Ok(self.plain(text)?.get_ids().to_vec())
    }

    /// The special tokens that stand before a text, as in OPT.
    pub fn leading_tokens(&self) -> Result<Vec<u32>, TokenizerError> {
        let plain = self.encode_plain("a")?;
        let whole = self.encode("a", None, None)?.input_ids;
        let text_at = whole.windows(plain.len().max(1)).position(|w| w == plain);
        Ok(whole[..text_at.unwrap_or(0)].to_vec())
    }

    /// Encodes a text without special tokens around it, and says where each token stands: its first
    /// character, and one past its last (Unicode code points).
    pub fn encode_plain_spans(&self, text: &str) -> Result<PlainSpans, TokenizerError> {
        if text.is_empty() {
            return Ok(PlainSpans::default());
        }
        self.growth.check(text).map_err(TokenizerError::Encode)?;
        let input = EncodeInput::Single(InputSequence::from(text));
        let encoding = guarded(|| self.inner.encode_char_offsets(input, false))?;
        let places = encoding.get_offsets().iter();
        Ok(PlainSpans {
            input_ids: encoding.get_ids().to_vec(),
            spans: places.map(|&(start, end)| start..end).collect(),
        })
    }

    /// Special tokens by the role that the files give them, as `special_tokens_map` in
    /// transformers: `bos_token`, `eos_token`, ….
    pub fn special_tokens_map(&self) -> &BTreeMap<String, String> {
        &self.roles
    }

    /// Whether this is the end token or another special one.
    pub fn is_special(&self, id: u32) -> bool {
        self.eos_id == Some(id) || self.special.contains(&id)
    }

    /// Encodes one text without special tokens.
    fn plain(&self, text: &str) -> Result<Encoding, TokenizerError> {
        self.growth.check(text).map_err(TokenizerError::Encode)?;
        let input = EncodeInput::Single(InputSequence::from(text));
        guarded(|| self.inner.encode_fast(input, false))
    }

    /// The token that ends a text: the one that the settings name, else the one whose id
    /// `config.json` or `generation_config.json` gives, else the class's usual one; `None` if the
    /// vocabulary has none of them.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// A text from token ids, special tokens left visible.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = guarded(|| self.inner.decode(ids, false))?;
        Ok(if self.cleans_up {
            clean_up(&text)
        } else {
            text
        })
    }

    /// The token with this id, as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
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

    /// The limit named in `tokenizer_config.json`, for reporting; [`Self::encode`] does not apply
    /// it.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// The family, where it is known.
    pub fn family(&self) -> Option<TokenizerFamily> {
        self.family
    }

    /// The file that the vocabulary came from: `tokenizer.json`, `vocab.txt`, `vocab.json` or
    /// `spm.model`; of a GGUF file its key.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The tokenizer's files that are there.
    pub fn files(&self) -> Vec<PathBuf> {
        FILES
            .iter()
            .map(|name| self.dir.join(name))
            .filter(|path| files::is_file(path))
            .collect()
    }

    /// Copies the tokenizer's files, unchanged, into an existing directory; one from a GGUF file
    /// becomes a `tokenizer.json` with its `tokenizer_config.json`.
    pub fn save_files(&self, dir: &Path) -> Result<(), TokenizerError> {
        if self.source == gguf::SOURCE {
            let json = self.inner.to_string(false);
            let json = json.map_err(|error| TokenizerError::Encode(error.to_string()))?;
            write_atomic(&dir.join("tokenizer.json"), json.as_bytes())?;
            let config = to_python_json(&gguf::tokenizer_config(&self.dir)?);
            write_atomic(&dir.join("tokenizer_config.json"), config.as_bytes())?;
        }
        for path in self.files() {
            let Some(name) = path.file_name() else {
                continue;
            };
            files::copy(&path, &dir.join(name), Ceiling::TOKENIZER)?;
        }
        for (name, path) in templates::additional(&self.dir)? {
            let folder = dir.join(templates::FOLDER);
            files::create_dir_all(&folder)?;
            let copy = folder.join(format!("{name}.jinja"));
            files::copy(&path, &copy, Ceiling::TOKENIZER)?;
        }
        Ok(())
    }

    /// Encodes a text and a pair once: a file whose parts contradict each other makes the library
    /// panic only then.
    fn probe(&self) -> Result<(), TokenizerError> {
        let probed = self.encode("a", None, None);
        let probed = probed.and_then(|_| self.encode("a", Some("b"), None));
        let problem = match probed {
            Ok(_) => return Ok(()),
            Err(TokenizerError::Encode(problem)) => problem,
            Err(error) => error.to_string(),
        };
        let path = place(&self.dir, self.source);
        Err(settings::malformed(&path, None, problem))
    }
}

/// The file of a vocabulary: beside others in its folder, or the GGUF file itself.
fn place(dir: &Path, source: &str) -> PathBuf {
    match source {
        gguf::SOURCE => dir.to_owned(),
        _ => dir.join(source),
    }
}

/// Runs a call of the library, which panics where a file's parts contradict each other.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
    let problem = match catch(work) {
        Some(Ok(result)) => return Ok(result),
        Some(Err(error)) => error.to_string(),
        None => CONTRADICTION.into(),
    };
    Err(TokenizerError::Encode(problem))
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

/// The token that the settings name, or the one that the model itself knows, or the one with an id
/// in `config.json`.
fn unk_id(opened: &Opened, settings: &Settings) -> Option<u32> {
    let inner = &opened.inner;
    let by_name = match inner.get_model() {
        ModelWrapper::WordPiece(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::WordLevel(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::BPE(model) => {
            let unk = model.get_unk_token().as_deref();
            // A byte-level BPE knows all text, whatever name the settings give to an unknown token.
            return unk.and_then(|unk| inner.token_to_id(unk));
        }
        ModelWrapper::Unigram(_) => {
            let named = settings.named("unk_token");
            named.and_then(|token| inner.token_to_id(&token.content))
        }
    };
    let usual = ["<unk>", "[UNK]"].map(|token| inner.token_to_id(token));
    by_name
        .or(opened.unk_id)
        .or_else(|| settings.id("unk_token_id"))
        .or(usual[0])
        .or(usual[1])
}

fn end_id(opened: &Opened, settings: &Settings) -> Option<u32> {
    let id_of = |token: &str| opened.inner.token_to_id(token);
    let named = settings.named("eos_token");
    if let Some(id) = named.and_then(|token| id_of(&token.content)) {
        return Some(id);
    }
    if let Some(id) = settings.id("eos_token_id") {
        return Some(id);
    }
    let usual = opened.family.and_then(|f| f.usual_token("eos_token"));
    // Classes of encoders have no end token of their own: the separator ends a text.
    let separator = opened.family.and_then(|f| f.usual_token("sep_token"));
    id_of(usual.or(separator).unwrap_or("</s>"))
}

/// Special tokens by role: those that the files name, and the class's usual ones where they are
/// silent. The classes of any `tokenizer.json` have none of their own.
fn roles(opened: &Opened, settings: &Settings) -> BTreeMap<String, String> {
    let named = settings.named_tokens().into_iter();
    let mut roles: BTreeMap<String, String> =
        named.map(|(role, token)| (role, token.content)).collect();
    let class = settings.value("tokenizer_class").and_then(Value::as_str);
    if class.is_some_and(|class| ["PreTrainedTokenizerFast", "TokenizersBackend"].contains(&class))
    {
        return roles;
    }
    for (role, token) in opened.family.map_or(&[][..], TokenizerFamily::usual_tokens) {
        if !settings.speaks_of(role) && opened.inner.token_to_id(token).is_some() {
            roles.insert((*role).to_owned(), (*token).to_owned());
        }
    }
    roles
}

/// Whether the settings want blanks before punctuation taken out of decoded text. For a BPE
/// transformers ignores it: there such a blank was in the text.
fn cleans_up(inner: &Inner, settings: &Settings) -> bool {
    let is_bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
    let wanted = settings.flag("clean_up_tokenization_spaces") == Some(true);
    let forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    wanted && (!is_bpe || settings.flag(forced) == Some(true))
}

/// Takes out blanks before punctuation and English contractions. Source: transformers
/// `clean_up_tokenization`.
fn clean_up(text: &str) -> String {
    let rules = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    let mut text = text.to_string();
    for (from, to) in rules {
        text = text.replace(from, to);
    }
    text
}
