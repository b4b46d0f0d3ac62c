//! Which of a network's layers a pass runs, and how: the one loop that every family runs its layers in. It knows no family.

use lowrank_engine::{Tape, Var};

use crate::prefix::Prefix;

/// The layers that a pass runs.
pub struct Stretch {
    /// What stands below the first of them, where that has been computed already.
    entry: Option<(Prefix, Var)>,
    /// The layer before which the pass ends; absent where it goes through to the head.
    end: Option<usize>,
    /// Each layer keeps its input only and runs again in backward.
    recompute: bool,
}

impl Stretch {
    /// All of them.
    pub fn whole(recompute: bool) -> Self {
        Stretch {
            entry: None,
            end: None,
            recompute,
        }
    }

    /// Those above a prefix, whose state [M, D] is known: neither the embeddings nor the layers of the prefix are run.
    pub fn above(prefix: Prefix, state: Var, recompute: bool) -> Self {
        Stretch {
            entry: Some((prefix, state)),
            end: None,
            recompute,
        }
    }

    /// The embeddings and the first `layers`; the pass ends there.
    pub fn below(layers: usize) -> Self {
        Stretch {
            entry: None,
            end: Some(layers),
            recompute: false,
        }
    }

    /// Whether the pass ends before the head.
    pub(crate) fn ends_below(&self) -> bool {
        self.end.is_some()
    }

    /// What the pass does to the state that it starts from, if it starts from one.
    pub(crate) fn map_entry(mut self, map: impl FnOnce(Var) -> Var) -> Self {
        self.entry = self.entry.map(|(prefix, state)| (prefix, map(state)));
        self
    }

    /// Runs the stretch of a network of `count` layers: `embed` gives what enters the lowest, `layer(i)` is the i-th.
    pub(crate) fn run<'m, L>(
        self,
        tape: &mut Tape<'m>,
        count: usize,
        embed: impl FnOnce(&mut Tape<'m>) -> Var,
        layer: impl Fn(usize) -> L,
    ) -> Var
    where
        L: Fn(&mut Tape<'m>, Var) -> Var + 'm,
    {
        let (first, mut x) = match self.entry {
            None => (0, embed(tape)),
            Some((prefix, state)) => {
                tape.enter_at(prefix.next_site);
                (prefix.layers, state)
            }
        };
        for i in first..self.end.unwrap_or(count) {
            let run = layer(i);
            x = if self.recompute {
                tape.recompute(x, run)
            } else {
                run(tape, x)
            };
        }
        x
    }
}
