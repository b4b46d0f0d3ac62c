//! Greedy search and sampling: one token a step after one sequence.

use lowrank_engine::Host;

use super::live::Stand;
use super::rules::At;
use super::scores::{self, NoChoice};

/// The prompt, and what was generated after it.
pub(super) struct Single {
    pub(super) tokens: Vec<u32>,
}

impl Single {
    /// The token that follows, by the logits [V] and, with guidance, those after the same tokens
    /// without the prompt.
    pub(super) fn next_token(
        &self,
        host: Host,
        stand: Stand<'_>,
        logits: &mut [f32],
        without_prompt: Option<&mut [f32]>,
    ) -> Result<u32, NoChoice> {
        let options = &stand.request.options;
        if let Some(without_prompt) = without_prompt {
            guide(host, options.guidance_scale, logits, without_prompt);
        }
        if !options.remove_invalid_values {
            scores::check_finite(host, logits)?;
        }
        let prompt_len = stand.request.prompt.len();
        let at = At {
            tokens: &self.tokens,
            prompt_len,
            room: stand.room,
        };
        stand.rules.apply(at, logits);
        let step = self.tokens.len() - prompt_len;
        scores::choose(host, logits, &options.search, stand.request.number, step)
    }
}

/// Moves the logits away from what the model says of the sequence without its prompt. Source:
/// transformers `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
fn guide(host: Host, scale: f32, logits: &mut [f32], without_prompt: &mut [f32]) {
    // What is not finite is found later in the row itself.
    let is_finite = |x: &[f32]| scores::check_finite(host, x).is_ok();
    if !is_finite(logits) || !is_finite(without_prompt) {
        return;
    }
    host.log_softmax(logits);
    host.log_softmax(without_prompt);
    for (x, without) in logits.iter_mut().zip(without_prompt) {
        *x = scale * (*x - *without) + *without;
    }
}
