//! Parts of a fused layer as targets, such as `c_attn.q`: each is adapted at its own rank, as the
//! LoRA paper adapts GPT-2. PEFT knows only the whole layer, so that the files speak of a rank of
//! n·r with alpha·n for n parts: the same scaling, and the same function where B is zero outside
//! its blocks.

use lowrank_engine::ops::blocks::{Blocks, PARTS};
use lowrank_formats::peft::{LoraConfig, TargetModules};

use crate::config::Facts;
use crate::error::ModelError;
use crate::families::{Family, Fused};

/// The parts of one kind of fused layer that are adapted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    fused: &'static Fused,
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
    /// Takes parts out of a configuration's targets and puts their layers in, with the rank and
    /// alpha of PEFT's form. Errors: a part that is named with more than its layer, the layer
    /// beside its parts, settings that do not go with parts.
    pub(super) fn take(
        config: &mut LoraConfig,
        family: &'static Family,
        facts: &Facts,
    ) -> Result<Vec<Self>, ModelError> {
        let Some(TargetModules::List(names)) = &config.target_modules else {
            return Ok(Vec::new());
        };
        let named: Vec<_> = names.iter().map(|name| part_of(name, family)).collect();
        let of_layer = |fused: &'static Fused| {
            let mut adapted = [false; PARTS];
            let parts = named.iter().flatten();
            let own = parts.filter(|part| part.fused.layer == fused.layer);
            own.for_each(|part| adapted[part.number] = true);
            let rows = (fused.rows)(facts);
            let blocks = Blocks { rows, adapted };
            (blocks.count() > 0).then_some(Parts { fused, blocks })
        };
        let layers: Vec<Parts> = family.fused.iter().filter_map(of_layer).collect();
        if layers.is_empty() {
            return Ok(layers);
        }
        let faults = faults(config, names, &named);
        ModelError::of_patterns("target_modules", faults)?;
        let mut targets: Vec<String> = (names.iter().zip(&named))
            .filter(|(_, part)| part.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        let (rank, alpha) = (config.r, config.lora_alpha);
        let of = |n: usize| (rank * n, alpha * n as f64);
        match &*layers {
            [only] if targets.is_empty() => {
                (config.r, config.lora_alpha) = of(only.blocks.count());
            }
            _ => {
                let several = layers.iter().filter(|layer| layer.blocks.count() > 1);
                for Parts { fused, blocks } in several {
                    let (rank, alpha) = of(blocks.count());
                    config.rank_pattern.push((fused.layer.to_owned(), rank));
                    config.alpha_pattern.push((fused.layer.to_owned(), alpha));
                }
            }
        }
        targets.extend(layers.iter().map(|parts| parts.fused.layer.to_owned()));
        config.target_modules = Some(TargetModules::List(targets));
        Ok(layers)
    }

    /// Those of the layer at `path`.
    pub(super) fn of(all: &[Self], path: &str) -> Option<Self> {
        let name = path.rsplit('.').next();
        all.iter()
            .find(|parts| name == Some(parts.fused.layer))
            .copied()
    }

    /// The largest rank in PEFT's form, where none is larger than its part's matrix.
    pub(super) fn most_rank(self, inp: usize) -> usize {
        let rows = self.blocks.parts().map(|part| self.blocks.rows[part]);
        rows.min().unwrap_or(0).min(inp) * self.blocks.count()
    }

    /// The adapted parts of the layer at `path` with `inp` columns, from the rank and alpha of
    /// PEFT's form.
    pub(super) fn pieces(self, path: &str, inp: usize, rank: usize, alpha: f64) -> Vec<Piece> {
        let n = self.blocks.count();
        let piece = |part: usize| Piece {
            path: format!("{path}.{}", self.fused.parts[part]),
            shape: [self.blocks.rows[part], inp],
            rank: rank / n,
            alpha: alpha / n as f64,
        };
        self.blocks.parts().map(piece).collect()
    }
}

struct Part {
    fused: &'static Fused,
    number: usize,
    /// Whether the name holds more than layer and part.
    is_path: bool,
}

impl Part {
    fn name(&self) -> String {
        format!("{}.{}", self.fused.layer, self.fused.parts[self.number])
    }
}

/// The part that a target names, if it names one.
fn part_of(name: &str, family: &'static Family) -> Option<Part> {
    let (stem, last) = name.rsplit_once('.')?;
    let layer = stem.rsplit('.').next()?;
    let fused = family.fused.iter().find(|fused| fused.layer == layer)?;
    let number = fused.parts.iter().position(|part| *part == last)?;
    Some(Part {
        fused,
        number,
        is_path: stem != layer,
    })
}

fn faults(config: &LoraConfig, names: &[String], named: &[Option<Part>]) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, part) in names.iter().zip(named) {
        match part {
            Some(part) if part.is_path => faults.push(format!(
                "`{name}`: expected `{}`; `layers_to_transform` chooses layers",
                part.name()
            )),
            Some(_) => {}
            None => {
                let last = name.rsplit('.').next();
                let mut parts = named.iter().flatten();
                if let Some(part) = parts.find(|part| last == Some(part.fused.layer)) {
                    faults.push(format!(
                        "`{name}` is the whole layer, expected it or parts of it such as `{}`",
                        part.name()
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
