//! The names that GGUF files give to the ways of dividing text before a byte-level BPE merges it,
//! and the regular expressions that they stand for: those of each model's own `tokenizer.json`.
//! Which names mean the same: llama.cpp `llama-vocab.cpp`.

/// One way of dividing text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// Patterns, one after the other; what one finds and what is between its finds are divided by
    /// the next.
    pub(super) patterns: &'static [&'static str],
    /// Whether a piece that is a token is never divided.
    pub(super) ignore_merges: bool,
    /// Whether the beginning token is put before a text unless the file says otherwise.
    pub(super) adds_bos: bool,
    names: &'static [&'static str],
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const FINNISH: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
// Of the two that tell capitals apart, llama.cpp takes letters alone, where the models' own
// patterns take marks on them too.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

const fn divides(
    names: &'static [&'static str],
    patterns: &'static [&'static str],
) -> PreTokenizer {
    PreTokenizer {
        patterns,
        ignore_merges: false,
        adds_bos: false,
        names,
    }
}

static PRE_TOKENIZERS: [PreTokenizer; 17] = [
    divides(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    PreTokenizer {
        ignore_merges: true,
        adds_bos: true,
        ..divides(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
                "jina-v5-nano",
            ],
            &[LLAMA3],
        )
    },
    divides(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    divides(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    divides(&["qwen35"], &[QWEN35]),
    divides(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[DIGIT, GPT2],
    ),
    divides(
        &["falcon"],
        &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    ),
    divides(
        &["default"],
        &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    ),
    divides(&["poro-chat", "bloom", "gpt3-finnish"], &[FINNISH]),
    divides(&["viking"], &[FINNISH, DIGIT]),
    PreTokenizer {
        ignore_merges: true,
        adds_bos: true,
        ..divides(&["tekken"], &[TEKKEN])
    },
    divides(
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &[GPT4O],
    ),
    divides(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        &[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3],
    ),
    divides(
        &["deepseek-coder"],
        &[
            "[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            // Blanks between them are none of them in llama.cpp.
            "[[一-龥ࠀ-一가-\u{d7ff}]&&[^\\s]]+",
            DIGIT,
        ],
    ),
    divides(&["seed-coder"], &[SEED]),
    divides(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    divides(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
];

/// The way that a name stands for.
pub(super) fn pre_tokenizer(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|way| way.names.contains(&name))
}

/// Every name that is known.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PRE_TOKENIZERS.iter().flat_map(|way| way.names).copied()
}

impl PreTokenizer {
    /// Whether it is the one that the tokenizer library has itself.
    pub(super) fn is_gpt2(&self) -> bool {
        self.patterns == [GPT2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_there_once_and_every_pattern_is_one() {
        let all: Vec<&str> = names().collect();
        let distinct: std::collections::HashSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len());
        for way in &PRE_TOKENIZERS {
            for pattern in way.patterns {
                let pattern =
                    tokenizers::pre_tokenizers::split::SplitPattern::Regex((*pattern).to_owned());
                let behavior = tokenizers::SplitDelimiterBehavior::Isolated;
                tokenizers::pre_tokenizers::split::Split::new(pattern, behavior, false).unwrap();
            }
        }
        assert!(pre_tokenizer("gpt2").is_none());
    }
}
