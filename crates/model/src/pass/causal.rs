//! What a decoder runs of a batch: what comes after a sequence's last wanted row changes none of
//! them, and only wanted rows go on after the last layer's attention. It knows no network. M =
//! tokens that are run, N = rows that are wanted.

use lowrank_engine::ops::cached_attention::QueryRole;
use lowrank_engine::ops::gather::gather;
use lowrank_engine::{SequenceId, Var};

use crate::modules::Pass;
use crate::pass::context::{Addition, AttentionContext, CachedBatch, Queries, SharedCache};
use crate::pass::{Batch, LayerRange};

/// Tokens that run through a decoder.
pub struct CausalBatch {
    /// Token ids [M].
    pub(crate) input_ids: Vec<u32>,
    pub(crate) context: AttentionContext,
    /// Of a batch, the rows of it that are run.
    run: Option<Vec<usize>>,
    /// The wanted rows [N] among those that the last layer gives; all of them where absent.
    wanted: Option<Vec<usize>>,
}

/// What a sequence in a KV cache goes on with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Continuation<'a> {
    pub(crate) sequence: SequenceId,
    pub(crate) tokens: &'a [u32],
    /// The sequence's length once all of its tokens so far are read, these and later ones.
    pub(crate) length: usize,
    /// What the tokens are: a part of the prompt, or generated ones.
    pub(crate) role: QueryRole,
}

impl CausalBatch {
    /// What the rows `rows` of the batch, which rise, depend on.
    pub(crate) fn of_rows(batch: &Batch<'_>, rows: &[usize]) -> Self {
        let (mut run, mut input_ids) = (Vec::new(), Vec::new());
        let (mut positions, mut lengths) = (Vec::new(), Vec::new());
        let (mut offsets, mut query_offsets) = (vec![0], vec![0]);
        let (mut queries, mut wanted) = (Vec::new(), Vec::new());
        let mut rest = rows;
        for range in batch.offsets.windows(2) {
            let (start, end) = (range[0], range[1]);
            let here;
            (here, rest) = rest.split_at(rest.partition_point(|&row| row < end));
            let (Some(&first), Some(&last)) = (here.first(), here.last()) else {
                continue;
            };
            let shift = input_ids.len();
            wanted.extend(here.iter().map(|row| queries.len() + row - first));
            queries.extend((first..=last).map(|row| shift + row - start));
            run.extend(start..=last);
            input_ids.extend_from_slice(&batch.input_ids[start..=last]);
            positions.extend((start..=last).map(|row| (row - start) as u32));
            lengths.resize(positions.len(), (end - start) as u32);
            offsets.push(input_ids.len());
            query_offsets.push(queries.len());
        }
        let queries = Queries {
            rows: queries.into(),
            offsets: query_offsets.into(),
        };
        let queries = Some(queries).filter(|queries| queries.rows.len() < input_ids.len());
        CausalBatch {
            input_ids,
            context: AttentionContext::of_batch(offsets.into(), queries).at(positions, lengths),
            run: Some(run),
            wanted: Some(wanted),
        }
    }

    /// Sequences of a cache go on; the last token of each is wanted. Panics if one goes on with
    /// nothing.
    pub(crate) fn in_cache(cache: &SharedCache, sequences: &[Continuation<'_>]) -> Self {
        let (mut input_ids, mut positions, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let (mut offsets, mut additions) = (vec![0], Vec::new());
        let mut held = cache.lock();
        for sequence in sequences {
            let (id, tokens) = (sequence.sequence, sequence.tokens.len());
            assert!(tokens > 0, "no new token");
            let start = held.len(id);
            held.extend(id, tokens);
            input_ids.extend_from_slice(sequence.tokens);
            positions.extend((start..start + tokens).map(|place| place as u32));
            lengths.resize(positions.len(), sequence.length as u32);
            offsets.push(input_ids.len());
            additions.push(Addition {
                sequence: id,
                tokens,
                role: sequence.role,
            });
        }
        drop(held);
        let lasts: Vec<usize> = offsets[1..].iter().map(|end| end - 1).collect();
        let queries = (lasts.len() < input_ids.len()).then(|| Queries {
            rows: lasts.into(),
            offsets: (0..offsets.len()).collect(),
        });
        let batch = CachedBatch {
            cache: cache.clone(),
            additions,
            offsets: offsets.into(),
        };
        CausalBatch {
            input_ids,
            context: AttentionContext::of_cache(batch, queries).at(positions, lengths),
            run: None,
            wanted: None,
        }
    }

    /// A range that starts from what layers below gave for every row of the batch, for the rows
    /// that are run.
    pub(crate) fn narrow(&self, pass: &mut Pass<'_, '_>, range: LayerRange) -> LayerRange {
        if let Some(run) = &self.run {
            pass.narrow_rows(run);
        }
        range.map_entry(|state| match &self.run {
            Some(run) if run.len() < state.rows() => gather(pass, &state, run),
            _ => state,
        })
    }

    /// The wanted rows [N, D] of what the last layer gives.
    pub(crate) fn wanted(&self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        match &self.wanted {
            Some(wanted) if wanted.len() < x.rows() => gather(pass, &x, wanted),
            _ => x,
        }
    }
}
