//! Which tokenizer a folder holds: the class that its files name decides how they are read, then
//! the model's type, then the names of the files.

use std::path::{Path, PathBuf};

use lowrank_formats::files;
use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Inner};

use super::added::{Own, add_tokens};
use super::class::{Class, TokenizerFamily};
use super::read::read;
use super::settings::{Settings, malformed, parse_object};
use super::{bounds, build, spm};
use crate::error::TokenizerError;
use crate::panics::catch;

/// A tokenizer as its files make it.
pub(super) struct Opened {
    pub(super) inner: Inner,
    /// The file of the vocabulary.
    pub(super) source: &'static str,
    pub(super) family: Option<TokenizerFamily>,
    /// The id of unknown text, where the model itself says it.
    pub(super) unk_id: Option<u32>,
}

/// Opens the tokenizer of a folder. `fallback` is the model's family, where the caller knows it.
pub(super) fn open(
    dir: &Path,
    settings: &Settings,
    fallback: Option<TokenizerFamily>,
) -> Result<Opened, TokenizerError> {
    let class = settings.class();
    if let Some((name, file)) = class
        && Class::from_name(name) == Class::PythonOnly
    {
        return Err(TokenizerError::PythonClass {
            path: dir.join(file),
            class: name.into(),
        });
    }
    if there(dir, "tokenizer.json") {
        let by_type = fallback.filter(|_| class.is_none());
        return from_json(dir, settings, settings.family().or(by_type));
    }
    if let Some(class) = settings.own_code() {
        return Err(TokenizerError::UnknownClass {
            path: dir.join("tokenizer_config.json"),
            class,
        });
    }
    let family = match class {
        Some((name, file)) => settings
            .family()
            .ok_or_else(|| TokenizerError::UnknownClass {
                path: dir.join(file),
                class: name.into(),
            })?,
        None => match settings.family().or(fallback) {
            Some(family) => family,
            None => by_files(dir, settings.model_type())?,
        },
    };
    from_vocabulary(dir, settings, family)
}

/// Whether there is anything of this name: a pipe is an error when it is read, not a missing file.
fn there(dir: &Path, name: &str) -> bool {
    files::is_named(&dir.join(name))
}

/// The family that a folder's vocabulary is of, where nothing else tells it.
fn by_files(dir: &Path, model_type: Option<&str>) -> Result<TokenizerFamily, TokenizerError> {
    let usual = [
        ("vocab.txt", TokenizerFamily::Bert),
        ("vocab.json", TokenizerFamily::Roberta),
        ("spm.model", TokenizerFamily::DebertaV2),
        ("sentencepiece.bpe.model", TokenizerFamily::XlmRoberta),
        ("tokenizer.model", TokenizerFamily::Generic),
    ];
    let found = usual.into_iter().find(|(name, _)| there(dir, name));
    match (found, model_type) {
        (Some((_, family)), None) => Ok(family),
        (Some(_), Some(model_type)) => Err(TokenizerError::UnknownModelType {
            dir: dir.into(),
            model_type: model_type.into(),
        }),
        (None, _) => Err(TokenizerError::NotFound { dir: dir.into() }),
    }
}

fn from_vocabulary(
    dir: &Path,
    settings: &Settings,
    family: TokenizerFamily,
) -> Result<Opened, TokenizerError> {
    let Some(source) = family.files().iter().find(|name| there(dir, name)) else {
        let found = VOCABULARIES.into_iter().filter(|name| there(dir, name));
        let found: Vec<&'static str> = found.collect();
        if found.is_empty() {
            return Err(TokenizerError::NotFound { dir: dir.into() });
        }
        let class = settings.class().map(|(name, _)| format!("`{name}`"));
        let of_type = || match settings.model_type() {
            Some(name) => format!("the tokenizer of the model type `{name}`"),
            None => "the model's tokenizer".into(),
        };
        return Err(TokenizerError::OtherFiles {
            dir: dir.into(),
            class: class.unwrap_or_else(of_type),
            expected: family.files()[0],
            found,
        });
    };
    let mut unk_id = None;
    let inner = match family {
        TokenizerFamily::Bert => build::word_piece(dir, settings)?,
        TokenizerFamily::Roberta | TokenizerFamily::Deberta | TokenizerFamily::Gpt2 => {
            if !there(dir, "merges.txt") {
                return Err(TokenizerError::NoMerges { dir: dir.into() });
            }
            build::byte_level_bpe(dir, settings, family)?
        }
        TokenizerFamily::DebertaV2
        | TokenizerFamily::XlmRoberta
        | TokenizerFamily::Llama
        | TokenizerFamily::Gemma
        | TokenizerFamily::Generic => {
            let path = dir.join(source);
            let built = catch(|| spm::sentence_piece(&path, settings, family));
            let built =
                built.unwrap_or_else(|| Err(malformed(&path, None, CONTRADICTION.into())))?;
            unk_id = built.unk_id;
            built.inner
        }
    };
    Ok(Opened {
        inner,
        source,
        family: Some(family),
        unk_id,
    })
}

/// Files that hold a vocabulary of some class.
const VOCABULARIES: [&str; 6] = [
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
];

/// What is said where the library panics.
pub(super) const CONTRADICTION: &str = "its parts contradict each other";

/// Loads `tokenizer.json`, lets the class's settings overrule it where transformers does, and adds
/// what stands beside it.
fn from_json(
    dir: &Path,
    settings: &Settings,
    family: Option<TokenizerFamily>,
) -> Result<Opened, TokenizerError> {
    let path = dir.join("tokenizer.json");
    let fault = |problem: String| malformed(&path, None, problem);
    let bytes = read(&path)?;
    // A plain parser first: it names the line, and the library panics on some text that is no JSON.
    let mut file = parse_object(&path, &bytes)?;
    check(&file).map_err(fault)?;
    let bytes = if drops(&mut file) {
        serde_json::to_vec(&file).map_err(|error| fault(error.to_string()))?
    } else {
        bytes
    };
    let unk_id = file.get("model").and_then(|model| model["unk_id"].as_u64());
    drop(file);
    // Some contradictions make it panic while it builds its tables.
    let mut inner = match catch(|| Inner::from_bytes(&bytes)) {
        Some(Ok(inner)) => inner,
        Some(Err(error)) => return Err(fault(error.to_string())),
        None => return Err(fault(CONTRADICTION.into())),
    };
    inner.with_padding(None);
    let overruled = catch(|| -> tokenizers::Result<()> {
        inner.with_truncation(None)?;
        match family {
            Some(family) => overrule(&mut inner, settings, family),
            None => Ok(()),
        }
    });
    match overruled {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(fault(error.to_string())),
        None => return Err(fault(CONTRADICTION.into())),
    }
    let no_post = inner.get_post_processor().is_none();
    let own = family.map(build::usual).unwrap_or_default();
    match family {
        // What the file leaves open is the class's.
        Some(family) if no_post && has_special(&inner, settings, family) => {
            build::finish(&mut inner, &path, settings, family, own)?;
        }
        _ => add_beside(&mut inner, dir, settings, own)?,
    }
    Ok(Opened {
        inner,
        source: "tokenizer.json",
        family,
        unk_id: unk_id.and_then(|id| u32::try_from(id).ok()),
    })
}

fn add_beside(
    inner: &mut Inner,
    dir: &Path,
    settings: &Settings,
    own: Own,
) -> Result<(), TokenizerError> {
    let added = catch(|| add_tokens(inner, dir, settings, own));
    let path: PathBuf = dir.join("tokenizer.json");
    added.unwrap_or_else(|| Err(malformed(&path, None, CONTRADICTION.into())))
}

/// Whether a class puts special tokens around a text whatever its settings, and the vocabulary has
/// them.
fn has_special(inner: &Inner, settings: &Settings, family: TokenizerFamily) -> bool {
    let roles = match family {
        TokenizerFamily::Bert
        | TokenizerFamily::Roberta
        | TokenizerFamily::Deberta
        | TokenizerFamily::DebertaV2 => ["cls_token", "sep_token"],
        TokenizerFamily::XlmRoberta => ["bos_token", "eos_token"],
        TokenizerFamily::Gpt2
        | TokenizerFamily::Llama
        | TokenizerFamily::Gemma
        | TokenizerFamily::Generic => return false,
    };
    roles.into_iter().all(|role| {
        let usual = family.usual_token(role).unwrap_or_default();
        let token = settings.special_token(role, usual);
        inner.token_to_id(&token.content).is_some()
    })
}

/// Checks the parts whose cost the library does not bound.
fn check(file: &Map<String, Value>) -> Result<(), String> {
    let part = |name: &str| file.get(name).unwrap_or(&Value::Null);
    bounds::check_maps(part("normalizer"))?;
    bounds::check_parts(part("post_processor"), part("pre_tokenizer"))?;
    bounds::check_model(part("model"))
}

/// Takes out what makes ids random: merges that are skipped by chance, as in training. Whether
/// there was any.
fn drops(file: &mut Map<String, Value>) -> bool {
    let model = file.get_mut("model").and_then(Value::as_object_mut);
    let dropout = model.and_then(|model| model.get_mut("dropout"));
    match dropout {
        None | Some(Value::Null) => false,
        Some(dropout) => {
            *dropout = Value::Null;
            true
        }
    }
}

/// Lets the settings of a class overrule the parts of `tokenizer.json` that are the class's own
/// kind. Other parts stay as they are.
fn overrule(
    inner: &mut Inner,
    settings: &Settings,
    family: TokenizerFamily,
) -> tokenizers::Result<()> {
    match family {
        TokenizerFamily::Bert => match inner.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(old)) => {
                let clean_text = old.clean_text;
                inner.with_normalizer(Some(build::bert_normalizer(clean_text, settings)))?;
            }
            Some(_) => {}
            None if is_word_piece(inner) => build::bert_parts(inner, settings)?,
            None => {}
        },
        TokenizerFamily::Roberta | TokenizerFamily::Deberta | TokenizerFamily::Gpt2 => {
            let prefix = settings.flag("add_prefix_space").unwrap_or(false);
            if let Some(PreTokenizerWrapper::ByteLevel(old)) = inner.get_pre_tokenizer().cloned() {
                inner.with_pre_tokenizer(Some(old.add_prefix_space(prefix)));
            }
        }
        TokenizerFamily::DebertaV2 => {
            set_step(inner, settings.flag("do_lower_case"))?;
            set_split(inner, settings.flag("split_by_punct"));
            if settings.flag("add_prefix_space") == Some(false) {
                set_prefix(inner, PrependScheme::First);
            }
        }
        TokenizerFamily::XlmRoberta => match settings.flag("add_prefix_space") {
            Some(true) => set_prefix(inner, PrependScheme::Always),
            Some(false) => set_prefix(inner, PrependScheme::Never),
            None => {}
        },
        TokenizerFamily::Llama => set_prefix(inner, spm::llama_prefix(settings)),
        TokenizerFamily::Gemma | TokenizerFamily::Generic => {}
    }
    Ok(())
}

fn is_word_piece(inner: &Inner) -> bool {
    matches!(inner.get_model(), ModelWrapper::WordPiece(_))
}

/// Puts a step that makes text lower-case before the others, or takes it away.
fn set_step(inner: &mut Inner, lowercase: Option<bool>) -> tokenizers::Result<()> {
    let Some(lowercase) = lowercase else {
        return Ok(());
    };
    let mut steps: Vec<NormalizerWrapper> = match inner.get_normalizer() {
        Some(NormalizerWrapper::Sequence(steps)) => steps.as_ref().to_vec(),
        step => step.cloned().into_iter().collect(),
    };
    let is_lowercase = |step: &NormalizerWrapper| matches!(step, NormalizerWrapper::Lowercase(_));
    if steps.iter().any(is_lowercase) == lowercase {
        return Ok(());
    }
    steps.retain(|step| !is_lowercase(step));
    if lowercase {
        steps.insert(0, Lowercase.into());
    }
    inner.with_normalizer(Some(Normalizers::new(steps)))?;
    Ok(())
}

/// Puts a step that isolates punctuation before the others, or takes it away.
fn set_split(inner: &mut Inner, split: Option<bool>) {
    let Some(split) = split else { return };
    let mut steps: Vec<PreTokenizerWrapper> = match inner.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref().to_vec(),
        step => step.cloned().into_iter().collect(),
    };
    let is_split = |step: &PreTokenizerWrapper| matches!(step, PreTokenizerWrapper::Punctuation(_));
    if steps.iter().any(is_split) == split {
        return;
    }
    steps.retain(|step| !is_split(step));
    if split {
        let step = Punctuation::new(SplitDelimiterBehavior::Isolated);
        steps.insert(0, step.into());
    }
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
}

/// Says before which stretches of text a `Metaspace` step puts a blank.
fn set_prefix(inner: &mut Inner, scheme: PrependScheme) {
    fn set(step: &mut PreTokenizerWrapper, scheme: PrependScheme) {
        match step {
            PreTokenizerWrapper::Metaspace(metaspace) => metaspace.set_prepend_scheme(scheme),
            PreTokenizerWrapper::Sequence(steps) => {
                steps.as_mut().iter_mut().for_each(|step| set(step, scheme));
            }
            _ => {}
        }
    }
    if let Some(mut step) = inner.get_pre_tokenizer().cloned() {
        set(&mut step, scheme);
        inner.with_pre_tokenizer(Some(step));
    }
}
