//! Parts of a fused layer as targets, `c_attn.q`: each is adapted at its own rank, as the LoRA
//! paper adapts GPT-2. PEFT knows only the whole layer, so that the files speak of a rank of n·r
//! with alpha·n for n parts: the same scaling, and the same function where B is zero outside its
//! blocks.

use lowrank_engine::ops::blocks::{Blocks, PARTS};
use lowrank_formats::peft::{LoraConfig, TargetModules};

use crate::error::ModelError;
use crate::families::Family;

/// Names of the parts, in the order of the layer's rows.
const NAMES: [&str; PARTS] = ["q", "k", "v"];

/// The parts of one kind of fused layer that are adapted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    layer: &'static str,
    pub(super) blocks: Blocks,
}

/// What is adapted by itself: a layer, or a part of one.
pub(super) struct Piece {
    pub(super) path: String,
    /// [out, in].
    pub(super) shape: [usize; 2],
    pub(super) rank: usize,
    pub(super) alpha: f64,
}

impl Parts {
    /// Takes parts out of a configuration's targets and puts their layer in, with the rank and
    /// alpha of PEFT's form. Errors: a part that is named with more than its layer, the layer
    /// beside its parts, settings that do not go with parts.
    pub(super) fn take(
        config: &mut LoraConfig,
        family: &Family,
    ) -> Result<Option<Self>, ModelError> {
        let Some(TargetModules::List(names)) = &config.target_modules else {
            return Ok(None);
        };
        let parsed: Vec<_> = names.iter().map(|name| part_of(name, family)).collect();
        let Some(layer) = parsed.iter().flatten().map(|part| part.layer).next() else {
            return Ok(None);
        };
        let faults = faults(config, names, &parsed);
        ModelError::of_patterns("target_modules", faults)?;
        let mut adapted = [false; PARTS];
        parsed
            .iter()
            .flatten()
            .for_each(|p| adapted[p.number] = true);
        let blocks = Blocks { adapted };
        let n = blocks.count();
        let mut targets: Vec<String> = (names.iter().zip(&parsed))
            .filter(|(_, part)| part.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        let (rank, alpha) = (config.r * n, config.lora_alpha * n as f64);
        if targets.is_empty() {
            (config.r, config.lora_alpha) = (rank, alpha);
        } else if n > 1 {
            config.rank_pattern.push((layer.to_owned(), rank));
            config.alpha_pattern.push((layer.to_owned(), alpha));
        }
        targets.push(layer.to_owned());
        config.target_modules = Some(TargetModules::List(targets));
        Ok(Some(Parts { layer, blocks }))
    }

    /// Whether a path is that of such a layer.
    pub(super) fn are_of(self, path: &str) -> bool {
        path.rsplit('.').next() == Some(self.layer)
    }

    /// The adapted parts of the layer at `path` [out, in], from the rank and alpha of PEFT's form.
    pub(super) fn pieces(
        self,
        path: &str,
        [out, inp]: [usize; 2],
        rank: usize,
        alpha: f64,
    ) -> Vec<Piece> {
        let n = self.blocks.count();
        let piece = |part: usize| Piece {
            path: format!("{path}.{}", NAMES[part]),
            shape: [out / PARTS, inp],
            rank: rank / n,
            alpha: alpha / n as f64,
        };
        self.blocks.parts().map(piece).collect()
    }
}

struct Part {
    layer: &'static str,
    number: usize,
    /// Whether the name holds more than layer and part.
    is_path: bool,
}

/// The part that a target names, if it names one.
fn part_of(name: &str, family: &Family) -> Option<Part> {
    let (stem, last) = name.rsplit_once('.')?;
    let number = NAMES.iter().position(|part| *part == last)?;
    let layer = stem.rsplit('.').next()?;
    let layer = family.fused.iter().find(|fused| **fused == layer)?;
    Some(Part {
        layer,
        number,
        is_path: stem != *layer,
    })
}

fn faults(config: &LoraConfig, names: &[String], parsed: &[Option<Part>]) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, part) in names.iter().zip(parsed) {
        match part {
            Some(part) if part.is_path => faults.push(format!(
                "`{name}`: expected `{}.{}`; `layers_to_transform` chooses layers",
                part.layer, NAMES[part.number]
            )),
            Some(_) => {}
            None => {
                let last = name.rsplit('.').next();
                if let Some(part) = parsed.iter().flatten().find(|p| last == Some(p.layer)) {
                    faults.push(format!(
                        "`{name}` is the whole layer, expected it or parts of it such as `{}.{}`",
                        part.layer, NAMES[part.number]
                    ));
                }
            }
        }
    }
    if config.use_rslora {
        faults.push("`use_rslora` does not go with parts of a layer".to_string());
    }
    if !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty() {
        faults.push(
            "`rank_pattern` and `alpha_pattern` do not go with parts of a layer: their ranks are equal"
                .to_string(),
        );
    }
    faults
}
