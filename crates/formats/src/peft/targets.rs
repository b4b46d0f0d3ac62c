//! Which modules a configuration means: PEFT's matching of names and Python's of regular
//! expressions. Knows only paths.
//! Source: PEFT 0.21.2, `check_target_module_exists`, `get_pattern_key`, `_set_trainable`,
//! `_find_minimal_target_modules`.

use std::collections::{BTreeSet, HashSet};

use fancy_regex::Regex;

use super::config::{LoraConfig, NamePattern, TargetModules};
use crate::Result;
use crate::error::{Fault, FormatError};
use crate::suggest::nearest;

/// A configuration's patterns, compiled.
#[derive(Debug)]
pub struct Matcher {
    targets: Names,
    exclude: Option<Names>,
    modules_to_save: Vec<(String, Regex)>,
    /// The layers that count; none if all do.
    layers: Option<Layers>,
    ranks: Vec<(String, Regex, usize)>,
    alphas: Vec<(String, Regex, f64)>,
    rank: usize,
    alpha: f64,
    use_rslora: bool,
}

#[derive(Debug)]
enum Names {
    All,
    List(Vec<String>),
    Regex(&'static str, String, Regex),
}

#[derive(Debug)]
struct Layers {
    indices: Vec<i64>,
    /// Each finds the layer's number in a path; the first that matches decides.
    patterns: Vec<(String, Regex)>,
}

/// A pattern that matched nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// The field of the configuration.
    pub field: &'static str,
    /// The pattern in it.
    pub pattern: String,
    /// A module (or the last part of one) that looks like it.
    pub nearest: Option<String>,
}

impl Unmatched {
    /// As one line of an error.
    pub fn to_fault(&self) -> Fault {
        let meant = match &self.nearest {
            Some(name) => format!("; did you mean `{name}`?"),
            None => String::new(),
        };
        Fault {
            place: self.field.to_owned(),
            message: format!("`{}` matches no module{meant}", self.pattern),
        }
    }
}

impl Matcher {
    /// Compiles the patterns. `target_modules` must be set.
    pub fn new(config: &LoraConfig) -> Result<Matcher> {
        let targets = match &config.target_modules {
            Some(TargetModules::AllLinear) => Names::All,
            Some(TargetModules::List(names)) => Names::List(names.clone()),
            Some(TargetModules::Regex(pattern)) => full_match("target_modules", pattern)?,
            None => {
                return Err(FormatError::Config {
                    path: super::ADAPTER_CONFIG.into(),
                    faults: vec![Fault {
                        place: "target_modules".into(),
                        message: "missing, and this kind of model has no default".into(),
                    }],
                });
            }
        };
        let exclude = match &config.exclude_modules {
            Some(NamePattern::List(names)) if !names.is_empty() => Some(Names::List(names.clone())),
            Some(NamePattern::Regex(pattern)) if !pattern.is_empty() => {
                Some(full_match("exclude_modules", pattern)?)
            }
            _ => None,
        };
        let mut modules_to_save = Vec::new();
        for name in config.modules_to_save.iter().flatten() {
            let regex = compile(
                "modules_to_save",
                name,
                &format!(r"\A(?:(^|.*\.){name}($|\..*))"),
            )?;
            modules_to_save.push((name.clone(), regex));
        }
        let mut ranks = Vec::new();
        for (pattern, rank) in &config.rank_pattern {
            ranks.push((
                pattern.clone(),
                pattern_key("rank_pattern", pattern)?,
                *rank,
            ));
        }
        let mut alphas = Vec::new();
        for (pattern, alpha) in &config.alpha_pattern {
            alphas.push((
                pattern.clone(),
                pattern_key("alpha_pattern", pattern)?,
                *alpha,
            ));
        }
        Ok(Matcher {
            targets,
            exclude,
            modules_to_save,
            layers: layers(config)?,
            ranks,
            alphas,
            rank: config.r,
            alpha: config.lora_alpha,
            use_rslora: config.use_rslora,
        })
    }

    /// Whether the module at `path` is adapted. With `all-linear` every module is that is not
    /// excluded: ask only for linear layers, and not for the output layer.
    pub fn is_target(&self, path: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.contains(path)?
        {
            return Ok(false);
        }
        for (name, regex) in &self.modules_to_save {
            if is_match("modules_to_save", name, regex, path)? {
                return Ok(false);
            }
        }
        if !self.targets.contains(path)? {
            return Ok(false);
        }
        match (&self.targets, &self.layers) {
            // A path given in full is meant, whatever its layer.
            (Names::List(names), Some(layers)) if !names.iter().any(|name| name == path) => {
                Ok(layers
                    .index(path)?
                    .is_some_and(|index| layers.indices.contains(&index)))
            }
            _ => Ok(true),
        }
    }

    /// Whether the module at `path` is trained in full and saved. PEFT goes by the end of the path,
    /// dot or no dot.
    pub fn is_module_to_save(&self, path: &str) -> bool {
        self.modules_to_save
            .iter()
            .any(|(name, _)| path.ends_with(name.as_str()))
    }

    /// The rank of the adapter at `path`.
    pub fn rank(&self, path: &str) -> Result<usize> {
        Ok(first_match("rank_pattern", &self.ranks, path)?.unwrap_or(self.rank))
    }

    /// The alpha of the adapter at `path`.
    pub fn alpha(&self, path: &str) -> Result<f64> {
        Ok(first_match("alpha_pattern", &self.alphas, path)?.unwrap_or(self.alpha))
    }

    /// What the adapter's output at `path` is multiplied by: alpha/r, or alpha/√r.
    pub fn scaling(&self, path: &str) -> Result<f64> {
        let (alpha, rank) = (self.alpha(path)?, self.rank(path)? as f64);
        Ok(if self.use_rslora {
            alpha / rank.sqrt()
        } else {
            alpha / rank
        })
    }

    /// Every pattern of the configuration that means nothing in a model: `linear` are the paths
    /// that could be adapted, `all` those of every module. `modules_to_save` is left out where PEFT
    /// itself puts names of which one at most exists (`classifier`, `score`).
    pub fn unmatched(&self, linear: &[&str], all: &[&str]) -> Result<Vec<Unmatched>> {
        let mut adapted = Vec::new();
        for &path in linear {
            if self.is_target(path)? {
                adapted.push(path);
            }
        }
        let mut unmatched = self.unmatched_names(linear, all, &adapted)?;
        for (pattern, regex, _) in &self.ranks {
            check_any("rank_pattern", pattern, regex, &adapted, &mut unmatched)?;
        }
        for (pattern, regex, _) in &self.alphas {
            check_any("alpha_pattern", pattern, regex, &adapted, &mut unmatched)?;
        }
        for (name, _) in &self.modules_to_save {
            let by_default = matches!(name.as_str(), "classifier" | "score");
            if !by_default && !all.iter().any(|path| path.ends_with(name.as_str())) {
                unmatched.push(unmatched_name("modules_to_save", name, all));
            }
        }
        Ok(unmatched)
    }

    fn unmatched_names(
        &self,
        linear: &[&str],
        all: &[&str],
        adapted: &[&str],
    ) -> Result<Vec<Unmatched>> {
        let mut unmatched = Vec::new();
        match &self.targets {
            Names::List(names) => {
                for name in names.iter().collect::<BTreeSet<_>>() {
                    if !linear.iter().any(|path| is_named(path, name)) {
                        unmatched.push(unmatched_name("target_modules", name, linear));
                    }
                }
            }
            Names::Regex(_, pattern, _) if adapted.is_empty() => {
                unmatched.push(unmatched_name("target_modules", pattern, linear));
            }
            Names::All if adapted.is_empty() => {
                unmatched.push(unmatched_name("target_modules", "all-linear", &[]));
            }
            Names::All | Names::Regex(..) => {}
        }
        match &self.exclude {
            Some(Names::List(names)) => {
                for name in names {
                    if !all.iter().any(|path| is_named(path, name)) {
                        unmatched.push(unmatched_name("exclude_modules", name, linear));
                    }
                }
            }
            Some(Names::Regex(field, pattern, regex)) => {
                check_any(field, pattern, regex, all, &mut unmatched)?;
            }
            Some(Names::All) | None => {}
        }
        if let Some(layers) = &self.layers {
            let mut found = HashSet::new();
            for path in adapted {
                found.extend(layers.index(path)?);
            }
            for index in layers.indices.iter().filter(|index| !found.contains(index)) {
                unmatched.push(unmatched_name(
                    "layers_to_transform",
                    &index.to_string(),
                    &[],
                ));
            }
        }
        Ok(unmatched)
    }
}

impl Names {
    fn contains(&self, path: &str) -> Result<bool> {
        match self {
            Names::All => Ok(true),
            Names::List(names) => Ok(names.iter().any(|name| is_named(path, name))),
            Names::Regex(field, pattern, regex) => is_match(field, pattern, regex, path),
        }
    }
}

impl Layers {
    /// The number of the layer that `path` lies in.
    fn index(&self, path: &str) -> Result<Option<i64>> {
        for (pattern, regex) in &self.patterns {
            let captures = regex
                .captures(path)
                .map_err(|error| pattern_error("layers_pattern", pattern, &error))?;
            if let Some(captures) = captures {
                let index = captures.name("idx");
                return Ok(index.and_then(|index| index.as_str().parse().ok()));
            }
        }
        Ok(None)
    }
}

/// Whether a name is the whole path, or its end after a dot.
pub fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

fn layers(config: &LoraConfig) -> Result<Option<Layers>> {
    let indices = match &config.layers_to_transform {
        Some(layers) if !layers.indices().is_empty() => layers.indices().to_vec(),
        _ => return Ok(None),
    };
    let mut patterns = Vec::new();
    for pattern in config.layers_pattern.iter().flatten() {
        let wrapped = format!(r"\A(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)");
        patterns.push((
            pattern.clone(),
            compile("layers_pattern", pattern, &wrapped)?,
        ));
    }
    if patterns.is_empty() {
        // The first part of the path that is a number and has a name before it.
        let any = r"\A.*?\.[^.]*\.(?P<idx>\d+)\.";
        patterns.push((String::new(), compile("layers_pattern", any, any)?));
    }
    Ok(Some(Layers { indices, patterns }))
}

/// Python's `re.fullmatch`.
fn full_match(field: &'static str, pattern: &str) -> Result<Names> {
    // By itself first: brackets that only balance inside the wrapping are an error in Python too.
    compile(field, pattern, pattern)?;
    let regex = compile(field, pattern, &format!(r"\A(?:{pattern})\z"))?;
    Ok(Names::Regex(field, pattern.to_owned(), regex))
}

/// PEFT's pattern of `rank_pattern` and `alpha_pattern`, with its groups, so that back-references
/// count the same.
fn pattern_key(field: &'static str, pattern: &str) -> Result<Regex> {
    compile(field, pattern, &format!(r"\A(.*\.)?({pattern})\z"))
}

fn compile(field: &'static str, pattern: &str, wrapped: &str) -> Result<Regex> {
    Regex::new(wrapped).map_err(|error| pattern_error(field, pattern, &error))
}

fn is_match(field: &'static str, pattern: &str, regex: &Regex, path: &str) -> Result<bool> {
    regex
        .is_match(path)
        .map_err(|error| pattern_error(field, pattern, &error))
}

fn pattern_error(field: &'static str, pattern: &str, error: &fancy_regex::Error) -> FormatError {
    // The parser shows the pattern over several lines; one is enough, as the pattern is in our
    // message.
    let text = error.to_string();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    FormatError::Pattern {
        field,
        pattern: pattern.to_owned(),
        message: last.unwrap_or("it does not parse").trim().to_owned(),
    }
}

fn first_match<T: Copy>(
    field: &'static str,
    patterns: &[(String, Regex, T)],
    path: &str,
) -> Result<Option<T>> {
    for (pattern, regex, value) in patterns {
        if is_match(field, pattern, regex, path)? {
            return Ok(Some(*value));
        }
    }
    // A path that its own pattern does not match (a `+` in a name) is still looked up as it stands.
    let literal = patterns.iter().find(|(pattern, ..)| pattern == path);
    Ok(literal.map(|(.., value)| *value))
}

fn check_any(
    field: &'static str,
    pattern: &str,
    regex: &Regex,
    paths: &[&str],
    unmatched: &mut Vec<Unmatched>,
) -> Result<()> {
    for path in paths {
        if is_match(field, pattern, regex, path)? {
            return Ok(());
        }
    }
    unmatched.push(unmatched_name(field, pattern, paths));
    Ok(())
}

fn unmatched_name(field: &'static str, pattern: &str, paths: &[&str]) -> Unmatched {
    // Last parts first: that is what people write.
    let last_parts: BTreeSet<&str> = paths
        .iter()
        .map(|path| path.rsplit_once('.').map_or(*path, |(_, last)| last))
        .collect();
    let nearest = nearest(pattern, last_parts).or_else(|| nearest(pattern, paths.iter().copied()));
    Unmatched {
        field,
        pattern: pattern.to_owned(),
        nearest: nearest.map(str::to_owned),
    }
}

/// The fewest suffixes that tell `targets` from all `others`, as PEFT shortens a list of 20 or
/// more; sorted. Gives the targets themselves where no suffix tells them apart.
pub fn minimal_target_modules(targets: &[&str], others: &[&str]) -> Vec<String> {
    let other_suffixes: HashSet<&str> = others.iter().flat_map(|path| suffixes(path)).collect();
    let mut items: Vec<(Vec<&str>, &str)> = targets
        .iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|path| (suffixes(path), *path))
        .collect();
    items.sort();
    let mut required: BTreeSet<&str> = BTreeSet::new();
    for (suffixes, path) in items {
        for suffix in suffixes {
            if required.contains(suffix) || other_suffixes.contains(suffix) {
                continue;
            }
            let covered = required
                .iter()
                .any(|known| path != *known && is_named(path, known));
            if !covered {
                required.insert(suffix);
                break;
            }
        }
    }
    if required.is_empty() {
        required.extend(targets);
    }
    required.into_iter().map(str::to_owned).collect()
}

/// Every end of a path that begins after a dot, the shortest first, the whole path last.
fn suffixes(path: &str) -> Vec<&str> {
    let mut suffixes: Vec<&str> = path
        .rmatch_indices('.')
        .map(|(at, _)| &path[at + 1..])
        .collect();
    suffixes.push(path);
    suffixes
}
