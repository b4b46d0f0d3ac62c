//! Ceilings of what a tokenizer's files may ask for: normalisers that let text grow, templates that
//! repeat it, words of any length. A file of a few kilobytes could otherwise take all memory. Reads
//! no files.

use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{NormalizedString, Normalizer, Tokenizer as Inner};

use super::sentencepiece::check_charsmap;

/// Text of up to this many bytes is normalised without asking how much of it a normaliser makes.
/// The library holds 17 bytes for each.
const MOST_BYTES: usize = 32 << 20;

/// The most that a normaliser may make of one byte when it is tried. Unicode's own decompositions
/// make 11.
const MOST_GROWTH: usize = 4096;

/// Special tokens that may stand around a text.
const MOST_SPECIAL: usize = 1024;

/// Characters of a word that WordPiece may look at: it takes the square of them. Usual is 100.
const MOST_WORD: usize = 1000;

/// Byte-level steps that may follow each other, each of which doubles the bytes of other text than
/// ASCII.
const MOST_BYTE_LEVELS: usize = 3;

/// At most how long a step's result is: `times · len + plus` bytes of `len` bytes.
#[derive(Debug, Clone, Copy)]
struct Bound {
    times: f64,
    plus: f64,
}

/// How far a tokenizer's normaliser can let text grow.
#[derive(Debug)]
pub(super) struct Growth {
    steps: Vec<(NormalizerWrapper, Bound)>,
    whole: Bound,
}

impl Growth {
    /// Tries the normaliser on texts that its own rules speak of. The error says what grows.
    pub(super) fn of(inner: &Inner) -> Result<Self, String> {
        let mut growth = Self {
            steps: Vec::new(),
            whole: Bound {
                times: 1.0,
                plus: 0.0,
            },
        };
        let mut probes = vec!["aA é".to_string(), "\u{fdfa}".to_string()];
        if let Some(normalizer) = inner.get_normalizer() {
            growth.add(normalizer, &mut probes)?;
        }
        if growth.whole.times > MOST_GROWTH as f64 {
            for text in probes {
                growth.run(&text, MOST_GROWTH.saturating_mul(text.len().max(1)))?;
            }
        }
        Ok(growth)
    }

    fn add(
        &mut self,
        normalizer: &NormalizerWrapper,
        probes: &mut Vec<String>,
    ) -> Result<(), String> {
        if let NormalizerWrapper::Sequence(steps) = normalizer {
            return steps
                .as_ref()
                .iter()
                .try_for_each(|step| self.add(step, probes));
        }
        let bound = bound(normalizer, probes)?;
        self.whole.times *= bound.times;
        self.whole.plus = self.whole.plus * bound.times + bound.plus;
        self.steps.push((normalizer.clone(), bound));
        Ok(())
    }

    /// Refuses a text that the normaliser would make too large.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let bytes = text.len() as f64;
        if self.whole.times * bytes + self.whole.plus <= MOST_BYTES as f64 {
            return Ok(());
        }
        self.run(text, MOST_BYTES.max(text.len().saturating_mul(16)))
    }

    /// Normalises step by step, so that a text that grows past `most` bytes is given up in time.
    fn run(&self, text: &str, most: usize) -> Result<(), String> {
        let mut normalized = NormalizedString::from(text);
        for (step, bound) in &self.steps {
            let len = normalized.get().len();
            let fits = bound.times * len as f64 + bound.plus <= most as f64;
            if !fits && !fits_in_parts(step, *bound, normalized.get(), most)? {
                return Err(format!(
                    "the normaliser makes more than {most} bytes of a text of {} bytes",
                    text.len()
                ));
            }
            step.normalize(&mut normalized).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// Whether a step's result stays below `most` bytes, by the results of parts that cannot exceed it.
fn fits_in_parts(
    step: &NormalizerWrapper,
    bound: Bound,
    text: &str,
    most: usize,
) -> Result<bool, String> {
    let part = ((most as f64 - bound.plus) / bound.times) as usize;
    if part < 4 {
        return Ok(false);
    }
    let (mut rest, mut total) = (text, 0usize);
    while !rest.is_empty() && total <= most {
        let mut end = part.min(rest.len());
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let mut normalized = NormalizedString::from(&rest[..end]);
        step.normalize(&mut normalized).map_err(|e| e.to_string())?;
        total = total.saturating_add(normalized.get().len());
        rest = &rest[end..];
    }
    Ok(total <= most)
}

/// The bound of one step, and texts on which it may reach it.
fn bound(step: &NormalizerWrapper, probes: &mut Vec<String>) -> Result<Bound, String> {
    let times = match step {
        // Three spaces in the place of one ideograph, and a decomposition.
        NormalizerWrapper::BertNormalizer(_) => 8.0,
        NormalizerWrapper::StripNormalizer(_)
        | NormalizerWrapper::StripAccents(_)
        | NormalizerWrapper::Nmt(_) => 1.0,
        NormalizerWrapper::NFC(_)
        | NormalizerWrapper::NFD(_)
        | NormalizerWrapper::NFKC(_)
        | NormalizerWrapper::NFKD(_) => 12.0,
        NormalizerWrapper::Lowercase(_) => 3.0,
        NormalizerWrapper::ByteLevel(_) => 2.0,
        NormalizerWrapper::Prepend(prepend) => {
            probes.push(prepend.prepend.clone());
            let plus = prepend.prepend.len() as f64;
            return Ok(Bound { times: 1.0, plus });
        }
        NormalizerWrapper::Replace(_) => replacement(step, probes)?,
        NormalizerWrapper::Precompiled(_) => longest_replacement(&value_of(step)?)? as f64,
        // Its parts are added one by one.
        NormalizerWrapper::Sequence(_) => 1.0,
    };
    Ok(Bound { times, plus: 1.0 })
}

fn value_of(step: &NormalizerWrapper) -> Result<Value, String> {
    serde_json::to_value(step).map_err(|error| error.to_string())
}

/// A replacement takes the place of each match, and a pattern may match nothing between any two
/// characters.
fn replacement(step: &NormalizerWrapper, probes: &mut Vec<String>) -> Result<f64, String> {
    let value = value_of(step)?;
    let content = value["content"].as_str().unwrap_or_default();
    probes.push(content.to_string());
    let string = value["pattern"]["String"].as_str();
    probes.extend(string.map(str::to_string));
    Ok(match string.map_or(0, str::len) {
        0 => content.len() as f64 + 1.0,
        len => (content.len() as f64 / len as f64).max(1.0),
    })
}

/// Checks the map of a `Precompiled` step, and gives the bytes of its longest replacement.
fn longest_replacement(step: &Value) -> Result<usize, String> {
    let text = step["precompiled_charsmap"].as_str().unwrap_or_default();
    let map = base64(text).ok_or("the normaliser's map is not base64")?;
    if map.is_empty() {
        return Ok(1);
    }
    check_charsmap(&map)?;
    let trie = u32::from_le_bytes([map[0], map[1], map[2], map[3]]) as usize;
    let replacements = map[4 + trie..].split(|byte| *byte == 0);
    Ok(replacements.map(<[u8]>::len).max().unwrap_or(0).max(1))
}

/// Checks the maps of a `tokenizer.json` before the library reads it: it follows them unchecked.
pub(super) fn check_maps(normalizer: &Value) -> Result<(), String> {
    if normalizer["type"] == "Precompiled" {
        longest_replacement(normalizer)?;
    }
    let steps = normalizer["normalizers"].as_array();
    steps.into_iter().flatten().try_for_each(check_maps)
}

/// Decodes base64 with its padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|byte| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let (mut bytes, mut bits, mut n) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for digit in digits {
        bits = bits << 6 | u32::from(digit?);
        n += 6;
        if n >= 8 {
            n -= 8;
            bytes.push((bits >> n) as u8);
        }
    }
    Some(bytes)
}

/// Checks what stands around texts, and the settings whose cost is more than linear. `post` and
/// `pre` are the post-processor and the pre-tokenizer as `tokenizer.json` writes them.
pub(super) fn check_parts(post: &Value, pre: &Value) -> Result<(), String> {
    for (key, wanted) in [("single", ["A"].as_slice()), ("pair", &["A", "B"])] {
        let special = check_template(post, key, wanted)?;
        if special > MOST_SPECIAL {
            return Err(format!(
                "the template puts {special} special tokens around a text, at most {MOST_SPECIAL} are taken"
            ));
        }
    }
    let levels = byte_levels(pre);
    if levels > MOST_BYTE_LEVELS {
        return Err(format!(
            "{levels} byte-level steps follow each other, each of which doubles a text; at most {MOST_BYTE_LEVELS} are taken"
        ));
    }
    Ok(())
}

/// Counts the special tokens of a template, in which each text of `wanted` must stand once.
fn check_template(post: &Value, key: &str, wanted: &[&str]) -> Result<usize, String> {
    let processors = post["processors"].as_array();
    let mut special = 0usize;
    for processor in processors.into_iter().flatten() {
        special = special.saturating_add(check_template(processor, key, wanted)?);
    }
    let Some(pieces) = post[key].as_array() else {
        return Ok(special);
    };
    let of = |piece: &Value| piece["Sequence"]["id"].as_str().map(str::to_string);
    let texts: Vec<String> = pieces.iter().filter_map(of).collect();
    for name in ["A", "B"] {
        let found = texts.iter().filter(|text| *text == name).count();
        let expected = usize::from(wanted.contains(&name));
        if found != expected {
            return Err(format!(
                "the template `{key}` holds text {name} {found} times, expected {expected}"
            ));
        }
    }
    for piece in pieces {
        if let Some(name) = piece["SpecialToken"]["id"].as_str() {
            let ids = post["special_tokens"][name]["ids"].as_array();
            special = special.saturating_add(ids.map_or(1, Vec::len));
        }
    }
    Ok(special)
}

fn byte_levels(pre: &Value) -> usize {
    let parts = pre["pretokenizers"].as_array();
    let inner: usize = parts.into_iter().flatten().map(byte_levels).sum();
    inner + usize::from(pre["type"] == "ByteLevel")
}

/// Checks a model as `tokenizer.json` writes it.
pub(super) fn check_model(model: &Value) -> Result<(), String> {
    let most = model["max_input_chars_per_word"].as_u64();
    if let Some(found) = most.filter(|most| *most > MOST_WORD as u64) {
        return Err(format!(
            "`max_input_chars_per_word` is {found}, at most {MOST_WORD} is taken: WordPiece takes the square of it"
        ));
    }
    let prefix = model["continuing_subword_prefix"].as_str();
    if let Some(found) = prefix.map(str::len).filter(|len| *len > 64) {
        return Err(format!(
            "`continuing_subword_prefix` has {found} bytes, at most 64 are taken"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::wordlevel::WordLevel;
    use tokenizers::normalizers::replace::ReplacePattern;
    use tokenizers::normalizers::{NFKD, Replace, Sequence};

    fn growth(steps: Vec<NormalizerWrapper>) -> Result<Growth, String> {
        let mut inner = Inner::new(WordLevel::default());
        inner.with_normalizer(Some(Sequence::new(steps))).unwrap();
        Growth::of(&inner)
    }

    fn string(from: &str, to: &str) -> NormalizerWrapper {
        let pattern = ReplacePattern::String(from.into());
        Replace::new(pattern, to).unwrap().into()
    }

    fn regex(from: &str, to: &str) -> NormalizerWrapper {
        let pattern = ReplacePattern::Regex(from.into());
        Replace::new(pattern, to).unwrap().into()
    }

    #[test]
    fn steps_that_double_each_other_s_text_are_refused() {
        for steps in [
            vec![string("a", "aa"); 40],
            (0..20)
                .flat_map(|_| [string("x", "yy"), string("y", "xx")])
                .collect(),
            vec![regex("[q-z]", "zz"); 40],
            vec![string("\u{20ac}", "\u{20ac}\u{20ac}\u{20ac}"); 30],
        ] {
            let error = growth(steps).unwrap_err();
            assert!(error.contains("the normaliser makes more than"), "{error}");
        }
    }

    #[test]
    fn many_rules_that_do_not_meet_are_taken() {
        let steps = (0..60u8).map(|i| string(&char::from(b'A' + i).to_string(), "..."));
        let growth = growth(steps.chain([NFKD.into()]).collect()).unwrap();
        assert!(growth.whole.times > 1e20);
        growth.check(&"Aé".repeat(500)).unwrap();
    }

    #[test]
    fn a_text_that_only_now_shows_the_growth_is_refused() {
        // A thousand-fold at most, which no probe of a few bytes shows to be too much.
        let growth = growth(vec![regex(r"\p{Greek}", "αα"); 10]).unwrap();
        growth.run(&"abc ".repeat(100), 4096).unwrap();
        let error = growth.run(&"α".repeat(100), 4096).unwrap_err();
        assert!(error.contains("of a text of 200 bytes"), "{error}");
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(base64("YWJjZA==").unwrap(), b"abcd");
        assert_eq!(base64("").unwrap(), b"");
        assert_eq!(base64("a b"), None);
    }

    #[test]
    fn a_template_holds_each_text_once() {
        let sequence = |id: &str| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
        let special = serde_json::json!({"SpecialToken": {"id": "x", "type_id": 0}});
        let template = |single: Vec<Value>| {
            let post = serde_json::json!({
                "type": "TemplateProcessing", "single": single, "pair": [sequence("A"), sequence("B")],
                "special_tokens": {"x": {"id": "x", "ids": vec![1; 40], "tokens": ["x"]}},
            });
            let posts = serde_json::json!({"type": "Sequence", "processors": [post]});
            check_parts(&posts, &Value::Null)
        };
        template(vec![special.clone(), sequence("A")]).unwrap();
        let error = template(vec![sequence("A"); 300]).unwrap_err();
        assert!(error.contains("holds text A 300 times"), "{error}");
        template(vec![sequence("B")]).unwrap_err();
        let many = [vec![special; 26], vec![sequence("A")]].concat();
        let error = template(many).unwrap_err();
        assert!(error.contains("1040 special tokens"), "{error}");
    }

    #[test]
    fn byte_levels_and_long_words_are_bounded() {
        let level = serde_json::json!({"type": "ByteLevel"});
        let pre = serde_json::json!({"type": "Sequence", "pretokenizers": vec![level.clone(); 4]});
        check_parts(&Value::Null, &level).unwrap();
        check_parts(&Value::Null, &pre).unwrap_err();
        check_model(&serde_json::json!({"max_input_chars_per_word": 100})).unwrap();
        check_model(&serde_json::json!({"max_input_chars_per_word": 1e6 as u64})).unwrap_err();
    }
}
