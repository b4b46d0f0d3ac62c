//! Which modules a LoRA configuration means, strictly: every pattern must match something.
//! Source: PEFT `check_target_module_exists`, `_set_trainable`.

use std::collections::BTreeSet;

use lowrank_engine::ops::blocks::PARTS;
use lowrank_formats::peft::{LoraConfig, Matcher, TargetModules};

use crate::adapters::HEAD_NAMES;
use crate::adapters::lora::parts::Parts;
use crate::error::ModelError;
use crate::modules::{Module, Modules};

/// What a configuration means for one model.
pub(super) struct Resolved {
    /// Paths of the linear layers and tables to adapt.
    pub(super) targets: BTreeSet<String>,
    /// Paths of the modules to train whole.
    pub(super) saved: BTreeSet<String>,
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A user's wish: every pattern must match something. Fresh values are drawn from the seed.
    New {
        /// The seed.
        seed: u64,
    },
    /// An adapter's file: PEFT may list modules there that it does not adapt. The adapter's tensors
    /// decide what fits.
    File,
}

/// Resolves `config` against a model's modules. `config.target_modules` must be set.
pub(super) fn resolve(
    config: &LoraConfig,
    modules: &Modules,
    origin: Origin,
    parts: &[Parts],
    input: &str,
) -> Result<Resolved, ModelError> {
    let matcher = Matcher::new(config)?;
    let linears: Vec<(&Module, [usize; 2])> = modules.linears().collect();
    let is_saved = |path: &&String| with_ancestors(path).any(|p| matcher.is_module_to_save(p));
    let paths = modules.iter().map(|module| &module.path);
    let saved: BTreeSet<String> = paths.filter(is_saved).cloned().collect();
    let mut targets = BTreeSet::new();
    for (linear, _) in &linears {
        // PEFT leaves the classification head out of all-linear: it trains it whole.
        let head = matches!(config.target_modules, Some(TargetModules::AllLinear))
            && HEAD_NAMES.contains(&linear.path.as_str());
        if !head && !saved.contains(&linear.path) && matcher.is_target(&linear.path)? {
            targets.insert(linear.path.clone());
        }
    }
    let is_all = matches!(config.target_modules, Some(TargetModules::AllLinear));
    let tables = modules.tables(input).filter(|_| !is_all);
    let tables: Vec<(&Module, [usize; 2])> = tables.collect();
    for (table, _) in &tables {
        if !saved.contains(&table.path) && matcher.is_target(&table.path)? {
            targets.insert(table.path.clone());
        }
    }
    check_kinds(config, &matcher, modules, &saved, &targets)?;
    let adaptable = [linears, tables].concat();
    if origin != Origin::File {
        check_matched(&matcher, &adaptable, modules)?;
    }
    if targets.is_empty() {
        let faults = vec!["no linear layer is left to adapt".to_string()];
        ModelError::of_patterns("target_modules", faults)?;
    }
    // A file may hold the parts of a fused layer as one adapter, whose rank is the sum of theirs.
    let limit = |path: &str, [out, inp]: [usize; 2]| match (origin, Parts::of(parts, path)) {
        (Origin::File, _) => inp.min(out) * PARTS,
        (Origin::New { .. }, None) => inp.min(out),
        (Origin::New { .. }, Some(parts)) => parts.most_rank(inp),
    };
    check_ranks(&matcher, &adaptable, &targets, &limit)?;
    check_scalings(&matcher, &targets)?;
    Ok(Resolved { targets, saved })
}

/// A path and the paths of the modules that it lies in.
fn with_ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.')
        .map(|(i, _)| i)
        .chain([path.len()])
        .map(|end| &path[..end])
}

/// A target that is no linear layer cannot be adapted; PEFT refuses it too, for most kinds.
fn check_kinds(
    config: &LoraConfig,
    matcher: &Matcher,
    modules: &Modules,
    saved: &BTreeSet<String>,
    targets: &BTreeSet<String>,
) -> Result<(), ModelError> {
    if matches!(config.target_modules, Some(TargetModules::AllLinear)) {
        return Ok(());
    }
    let mut faults = Vec::new();
    for module in modules.iter().filter(|m| m.features().is_none()) {
        let path = &module.path;
        if !saved.contains(path) && !targets.contains(path) && matcher.is_target(path)? {
            faults.push(format!(
                "`{path}` is {}; only linear layers and tables of tokens can be adapted",
                with_article(module.kind.name())
            ));
        }
    }
    faults.truncate(4);
    ModelError::of_patterns("target_modules", faults)
}

/// Every pattern must mean something.
fn check_matched(
    matcher: &Matcher,
    linears: &[(&Module, [usize; 2])],
    modules: &Modules,
) -> Result<(), ModelError> {
    let linear_paths: Vec<&str> = linears.iter().map(|(l, _)| l.path.as_str()).collect();
    let all: BTreeSet<&str> = modules
        .iter()
        .flat_map(|m| with_ancestors(&m.path))
        .collect();
    let all: Vec<&str> = all.into_iter().collect();
    let unmatched = matcher.unmatched(&linear_paths, &all)?;
    let Some(field) = unmatched.first().map(|u| u.field) else {
        return Ok(());
    };
    let of_field = unmatched.iter().filter(|u| u.field == field);
    Err(ModelError::Pattern {
        field,
        faults: of_field.map(|u| u.to_fault().message).collect(),
    })
}

fn check_ranks(
    matcher: &Matcher,
    linears: &[(&Module, [usize; 2])],
    targets: &BTreeSet<String>,
    limit: &dyn Fn(&str, [usize; 2]) -> usize,
) -> Result<(), ModelError> {
    let mut faults = Vec::new();
    for (Module { path, .. }, shape @ [out, inp]) in linears {
        if !targets.contains(path) {
            continue;
        }
        let rank = matcher.rank(path)?;
        let limit = limit(path, *shape);
        if rank == 0 || rank > limit {
            faults.push(format!(
                "`{path}`: rank {rank} is outside 1..={limit} (the matrix is {out} x {inp})"
            ));
        }
    }
    let more = faults.len().saturating_sub(4);
    faults.truncate(4);
    if more > 0 {
        faults.push(format!("and {more} more"));
    }
    ModelError::of_patterns("r", faults)
}

/// The scaling is stored in f32: one that is infinite there makes every logit a NaN.
fn check_scalings(matcher: &Matcher, targets: &BTreeSet<String>) -> Result<(), ModelError> {
    for path in targets {
        let scaling = matcher.scaling(path)?;
        if !(scaling as f32).is_finite() {
            let alpha = matcher.alpha(path)?;
            let message = format!(
                "lora_alpha: `{path}`: {alpha:e} at rank {} is no scaling that f32 holds",
                matcher.rank(path)?
            );
            return Err(ModelError::AdapterConfig(vec![message]));
        }
    }
    Ok(())
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}
