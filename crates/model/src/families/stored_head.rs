//! Which classification head a checkpoint's tensors form: their names and shapes say it, whatever
//! config.json says.

use lowrank_formats::Checkpoint;

use crate::error::ModelError;
use crate::families::{HeadTensors, family};

/// What a head's tensors are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// A sequence, and nothing else.
    Sequence,
    /// Each token, and nothing else.
    Tokens,
    /// Either, and all that a sequence's head has is there: more likely a sequence.
    LikelySequence,
    /// Either, and a part of a sequence's head (the pooler) is not there: more likely each token.
    LikelyTokens,
}

/// A head that stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHead {
    /// What it is for.
    pub kind: HeadKind,
    /// Its outputs.
    pub width: usize,
    /// The tensor that says so, by the model's name.
    pub tensor: &'static str,
}

impl StoredHead {
    /// The head in a checkpoint of this family.
    ///
    /// # Errors
    /// The family is not known, or the checkpoint's names are not those of one plain model.
    pub fn find(checkpoint: &Checkpoint, model_type: &str) -> Result<Option<Self>, ModelError> {
        let family = family(model_type)?;
        let names = family.names_in(checkpoint)?;
        let shape = |name: &str| Some(checkpoint.info(names.get(name)?)?.shape.clone());
        Ok(Self::among(family.heads, &shape))
    }

    /// The head among tensors of this family that `shape` knows by the model's names.
    ///
    /// # Errors
    /// The family is not known.
    pub fn find_among(
        model_type: &str,
        shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Option<Self>, ModelError> {
        Ok(Self::among(family(model_type)?.heads, shape))
    }

    fn among(heads: HeadTensors, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<Self> {
        let outputs = heads.sequence[0];
        let of = |kind, tensor| {
            let width = shape(tensor)?.first().copied()?;
            Some(StoredHead {
                kind,
                width,
                tensor,
            })
        };
        if heads.tokens != Some(outputs) {
            let tokens = || of(HeadKind::Tokens, heads.tokens?);
            return of(HeadKind::Sequence, outputs).or_else(tokens);
        }
        let whole = heads.sequence.iter().all(|name| shape(name).is_some());
        let kind = if whole {
            HeadKind::LikelySequence
        } else {
            HeadKind::LikelyTokens
        };
        of(kind, outputs)
    }
}
