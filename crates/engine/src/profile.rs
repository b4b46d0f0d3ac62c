//! Where a pass spends its time, by op. Knows nothing of what the ops do: they name themselves.

use std::time::Duration;

/// The half of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Forward, loss and update.
    #[default]
    Forward,
    /// Backward, with what it computes again.
    Backward,
}

impl Phase {
    /// A name for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
        }
    }
}

/// What one op took in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpTime {
    /// What the op calls itself.
    pub op: &'static str,
    /// When it ran.
    pub phase: Phase,
    /// How often.
    pub calls: u64,
    /// Wall-clock time of all calls.
    pub time: Duration,
    /// Floating-point operations of all calls, as the meter counts them (a multiply-add is two).
    pub flops: u64,
}

/// Times by op and phase, in the order of their first call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    phase: Phase,
    rows: Vec<OpTime>,
}

impl Profile {
    /// The rows, the longest first.
    pub fn longest_first(&self) -> Vec<OpTime> {
        let mut rows = self.rows.clone();
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
        rows
    }

    /// The time of all ops.
    pub fn total(&self) -> Duration {
        self.rows.iter().map(|row| row.time).sum()
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    pub(crate) fn add(&mut self, op: &'static str, time: Duration, flops: u64) {
        let phase = self.phase;
        let known = self
            .rows
            .iter()
            .position(|r| (r.op, r.phase) == (op, phase));
        let index = known.unwrap_or_else(|| {
            self.rows.push(OpTime {
                op,
                phase,
                calls: 0,
                time: Duration::ZERO,
                flops: 0,
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        row.calls += 1;
        row.time += time;
        row.flops += flops;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_one_op_and_phase_are_one_row() {
        let mut profile = Profile::default();
        let ms = Duration::from_millis;
        profile.add("add", ms(1), 0);
        profile.add("product", ms(5), 10);
        profile.enter(Phase::Backward);
        profile.add("product", ms(7), 10);
        profile.add("product", ms(2), 10);
        let rows = profile.longest_first();
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r.op, r.phase.name(), r.calls, r.time, r.flops))
            .collect();
        assert_eq!(
            seen,
            [
                ("product", "backward", 2, ms(9), 20),
                ("product", "forward", 1, ms(5), 10),
                ("add", "forward", 1, ms(1), 0),
            ]
        );
        assert_eq!(profile.total(), ms(15));
    }
}
