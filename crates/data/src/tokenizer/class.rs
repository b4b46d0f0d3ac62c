//! Which tokenizer a name in the settings means: Python classes of transformers, and model types.
//! Reads no files.

use serde::{Deserialize, Serialize};

/// A kind of tokenizer that can be put together from the older vocabulary files: the files, the
/// pipeline, the special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerFamily {
    /// WordPiece, `[CLS] a [SEP] b [SEP]`, token types 0 and 1.
    Bert,
    /// Byte-level BPE, `<s> a </s></s> b </s>`.
    Roberta,
    /// Byte-level BPE, `[CLS] a [SEP] b [SEP]`, token types 0 and 1.
    Deberta,
    /// Unigram from `spm.model`, `[CLS] a [SEP] b [SEP]`, token types 0 and 1.
    DebertaV2,
    /// Byte-level BPE without special tokens, unless `add_bos_token` or `add_eos_token` ask for
    /// them.
    Gpt2,
    /// Unigram from `sentencepiece.bpe.model` in fairseq's order of ids, `<s> a </s></s> b </s>`.
    XlmRoberta,
    /// SentencePiece BPE from `tokenizer.model`; `<s>` where `add_bos_token` asks for it. Llama 2,
    /// Mistral.
    Llama,
    /// SentencePiece BPE from `tokenizer.model` without a dummy prefix; `<bos>` where
    /// `add_bos_token` asks for it.
    Gemma,
    /// No class of its own: `tokenizer.json`, or a `tokenizer.model` as SentencePiece itself reads
    /// it.
    Generic,
}

/// What a class name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// One that we build.
    Known(TokenizerFamily),
    /// Its Python code splits text itself and reads no `tokenizer.json`.
    PythonOnly,
    /// Any other: its `tokenizer.json` is all there is to it.
    Foreign,
}

/// Class names without `Fast`, and the model types whose class they are. Source: transformers 5.24,
/// `TOKENIZER_MAPPING_NAMES` and the aliases that `tokenizer_class_from_name` resolves.
const KNOWN: [(TokenizerFamily, &[&str], &[&str]); 9] = [
    (
        TokenizerFamily::Bert,
        &[
            "BertTokenizer",
            "DistilBertTokenizer",
            "ElectraTokenizer",
            "MobileBertTokenizer",
            "ConvBertTokenizer",
            "SqueezeBertTokenizer",
            "LayoutLMTokenizer",
            "LxmertTokenizer",
            "RetriBertTokenizer",
        ],
        &[
            "bert",
            "distilbert",
            "electra",
            "mobilebert",
            "megatron-bert",
        ],
    ),
    (
        TokenizerFamily::Roberta,
        &[
            "RobertaTokenizer",
            "LongformerTokenizer",
            "BartTokenizer",
            "LEDTokenizer",
        ],
        &["roberta", "longformer", "bart", "roberta-prelayernorm"],
    ),
    (
        TokenizerFamily::Deberta,
        &["DebertaTokenizer"],
        &["deberta"],
    ),
    (
        TokenizerFamily::DebertaV2,
        &["DebertaV2Tokenizer"],
        &["deberta-v2"],
    ),
    (
        TokenizerFamily::Gpt2,
        &["GPT2Tokenizer"],
        &["gpt2", "gpt_neo", "gptj", "opt"],
    ),
    (
        TokenizerFamily::XlmRoberta,
        &["XLMRobertaTokenizer"],
        &["xlm-roberta", "xmod"],
    ),
    (TokenizerFamily::Llama, &["LlamaTokenizer"], &["llama"]),
    (
        TokenizerFamily::Gemma,
        &["GemmaTokenizer"],
        &["gemma", "gemma2", "gemma3", "gemma3_text"],
    ),
    (
        TokenizerFamily::Generic,
        &["PreTrainedTokenizer", "TokenizersBackend"],
        &["mistral", "mixtral"],
    ),
];

/// Classes that transformers keeps in Python: where one is named, transformers does not read
/// `tokenizer.json`, and its ids are those of the Python code. Source: transformers 5.24,
/// subclasses of `PythonBackend` and `SentencePieceBackend`.
const PYTHON_ONLY: [&str; 36] = [
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertTokenizerLegacy",
    "BertweetTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "ByT5Tokenizer",
    "CTRLTokenizer",
    "CanineTokenizer",
    "ClvpTokenizer",
    "CpmAntTokenizer",
    "CpmTokenizer",
    "DiaTokenizer",
    "EsmTokenizer",
    "FSMTTokenizer",
    "FastSpeech2ConformerTokenizer",
    "FlaubertTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTSw3Tokenizer",
    "M2M100Tokenizer",
    "MarianTokenizer",
    "MgpstrTokenizer",
    "MyT5Tokenizer",
    "PLBartTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "ProphetNetTokenizer",
    "RoCBertTokenizer",
    "SiglipTokenizer",
    "Speech2TextTokenizer",
    "SpeechT5Tokenizer",
    "TapasTokenizer",
    "VitsTokenizer",
    "Wav2Vec2CTCTokenizer",
    "XLMTokenizer",
];

/// The name without the ending that transformers 4 gave to its faster classes.
fn without_fast(name: &str) -> &str {
    name.strip_suffix("Fast").unwrap_or(name)
}

impl Class {
    /// The class of this name.
    pub(super) fn from_name(name: &str) -> Self {
        let name = without_fast(name);
        let known = KNOWN.iter().find(|(_, names, _)| names.contains(&name));
        match known {
            Some((family, ..)) => Self::Known(*family),
            None if PYTHON_ONLY.contains(&name) => Self::PythonOnly,
            None => Self::Foreign,
        }
    }
}

/// Whether a class of this name leaves out the token types of its family: DistilBERT has no table
/// of them.
pub(super) fn drops_token_types(name: &str) -> bool {
    without_fast(name) == "DistilBertTokenizer"
}

impl TokenizerFamily {
    /// The family of a class name or of a `model_type`, if it is one that can be built.
    pub fn from_name(name: &str) -> Option<Self> {
        let class = without_fast(name);
        KNOWN
            .iter()
            .find(|(_, classes, types)| classes.contains(&class) || types.contains(&name))
            .map(|(family, ..)| *family)
    }

    /// Whether a pair's token types are inputs of the class's models.
    pub(super) fn has_token_types(self) -> bool {
        match self {
            Self::Bert | Self::Deberta | Self::DebertaV2 | Self::Generic => true,
            Self::Roberta | Self::Gpt2 | Self::XlmRoberta | Self::Llama | Self::Gemma => false,
        }
    }

    /// The files that it is built from, any one of them.
    pub(super) fn files(self) -> &'static [&'static str] {
        match self {
            Self::Bert => &["vocab.txt"],
            Self::Roberta | Self::Deberta | Self::Gpt2 => &["vocab.json"],
            Self::DebertaV2 => &["spm.model", "tokenizer.model"],
            Self::XlmRoberta => &["sentencepiece.bpe.model", "tokenizer.model"],
            Self::Llama | Self::Gemma | Self::Generic => &["tokenizer.model"],
        }
    }

    /// The special tokens that the class has where no file names them, in the order in which they
    /// get ids.
    pub(super) fn usual_tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Deberta | Self::DebertaV2 => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Roberta | Self::XlmRoberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Self::Gpt2 => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
            ],
            Self::Llama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
            ],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Generic => &[],
        }
    }

    /// The name that a role's token has where no file names one.
    pub(super) fn usual_token(self, role: &str) -> Option<&'static str> {
        let mut tokens = self.usual_tokens().iter();
        tokens
            .find(|(usual, _)| *usual == role)
            .map(|(_, token)| *token)
    }
}
