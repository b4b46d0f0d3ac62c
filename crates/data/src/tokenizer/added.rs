//! Tokens that stand beside a vocabulary, added in the order in which transformers adds them, so
//! that they get its ids. Source: transformers 5.24, `TokenizersBackend.__init__`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tokenizers::{AddedToken, NormalizedString, Normalizer, Tokenizer as Inner};

use super::settings::{ROLES, Settings, malformed};
use crate::error::TokenizerError;

/// What a class or a vocabulary file knows of tokens beyond the settings.
#[derive(Default)]
pub(super) struct Own {
    /// Roles with their usual tokens, for roles that no file speaks of.
    pub(super) usual: Vec<(&'static str, AddedToken)>,
    /// Special tokens without a role, where the settings list none.
    pub(super) extra: Vec<AddedToken>,
    /// Whether usual tokens that the vocabulary lacks get ids behind it even if no other token
    /// follows.
    pub(super) rows: Rows,
    /// Whether tokens with ids are looked for in the text as it is, whatever their flags say.
    pub(super) raw: bool,
}

/// Whether the models of a class have rows for usual tokens that the vocabulary lacks.
#[derive(Default, PartialEq, Eq)]
pub(super) enum Rows {
    /// They have none: such a token stays text.
    #[default]
    OfVocabulary,
    /// They have.
    OfUsualTokens,
}

/// One token to add, and what is expected of it.
struct Wanted {
    token: AddedToken,
    /// The id that a file gives it.
    id: Option<u32>,
    /// Whether only the class names it.
    usual: bool,
}

/// Adds the tokens of the settings and of the class: those with ids, then those with a role, then
/// the other special ones, in one call: each call of the library takes time of all tokens added
/// before.
pub(super) fn add_tokens(
    inner: &mut Inner,
    dir: &Path,
    settings: &Settings,
    own: Own,
) -> Result<(), TokenizerError> {
    let mut wanted = wanted(inner, settings, &own);
    if own.rows == Rows::OfVocabulary {
        // A usual token that the vocabulary lacks only counts where it moves the ids of tokens
        // behind it.
        let needless = |w: &Wanted| w.usual && inner.token_to_id(&w.token.content).is_none();
        while wanted.last().is_some_and(needless) {
            wanted.pop();
        }
    }
    let ids: Vec<(u32, String)> = wanted
        .iter()
        .filter_map(|w| Some((w.id?, w.token.content.clone())))
        .collect();
    let file = if settings.has_decoder() {
        "tokenizer_config.json"
    } else {
        "added_tokens.json"
    };
    let path = dir.join(file);
    inner
        .add_tokens(wanted.into_iter().map(|w| w.token))
        .map_err(|error| malformed(&path, None, error.to_string()))?;
    for (id, content) in ids {
        let got = inner.token_to_id(&content);
        if got != Some(id) {
            let got = got.map_or("none".to_string(), |got| got.to_string());
            let problem = format!(
                "added token `{content}` should have id {id}, beside this vocabulary it gets {got}"
            );
            return Err(malformed(&path, None, problem));
        }
    }
    distinct(inner).map_err(|problem| malformed(&path, None, problem))
}

/// Tokens that are the same text once it is normalised: the library would find the one or the
/// other, by chance.
fn distinct(inner: &Inner) -> Result<(), String> {
    let mut tokens: Vec<(u32, AddedToken)> = inner.get_added_tokens_decoder().into_iter().collect();
    tokens.retain(|(_, token)| token.normalized);
    tokens.sort_by_key(|(id, _)| *id);
    let mut seen: HashMap<String, String> = HashMap::new();
    for (_, AddedToken { content, .. }) in tokens {
        let mut text = NormalizedString::from(content.as_str());
        if let Some(normalizer) = inner.get_normalizer() {
            normalizer.normalize(&mut text).map_err(|e| e.to_string())?;
        }
        if let Some(other) = seen.insert(text.get().to_string(), content.clone()) {
            return Err(format!(
                "the added tokens `{other}` and `{content}` are the same text once it is normalised, so that chance decides which is \
                 found; give one of them `\"normalized\": false`"
            ));
        }
    }
    Ok(())
}

fn wanted(inner: &Inner, settings: &Settings, own: &Own) -> Vec<Wanted> {
    let named = named(settings, own);
    let roles: HashSet<&str> = named.iter().map(|w| w.token.content.as_str()).collect();
    let mut wanted: Vec<Wanted> = settings
        .decoder()
        .iter()
        .map(|(id, token)| Wanted {
            token: AddedToken {
                special: token.special || roles.contains(token.content.as_str()),
                normalized: token.normalized && !own.raw,
                ..token.clone()
            },
            id: Some(*id),
            usual: false,
        })
        .collect();
    let listed = wanted.iter().map(|w| w.token.content.clone());
    let there = inner.get_added_tokens_decoder().into_values();
    let present: HashSet<String> = there.map(|t| t.content).chain(listed).collect();
    let mut extra = settings.extra_list().unwrap_or_else(|| own.extra.clone());
    if settings.extra_is_from_map() {
        extra.extend(own.extra.iter().cloned());
    }
    let extra = extra.into_iter().map(|token| Wanted {
        token,
        id: None,
        usual: false,
    });
    for next in named.into_iter().chain(extra) {
        if !present.contains(&next.token.content) {
            wanted.push(next);
        }
    }
    wanted
}

/// Tokens with a role: the settings' word, or the class's where they are silent.
fn named(settings: &Settings, own: &Own) -> Vec<Wanted> {
    let mut named = settings.named_tokens();
    let mut wanted = Vec::new();
    for role in ROLES {
        if let Some(at) = named.iter().position(|(name, _)| name == role) {
            let (_, token) = named.remove(at);
            wanted.push((token, false));
        } else if let Some((_, token)) = own.usual.iter().find(|(name, _)| *name == role)
            && !settings.speaks_of(role)
        {
            wanted.push((token.clone(), true));
        }
    }
    wanted.extend(named.into_iter().map(|(_, token)| (token, false)));
    let wanted = wanted.into_iter().map(|(token, usual)| Wanted {
        token,
        id: None,
        usual,
    });
    wanted.collect()
}
