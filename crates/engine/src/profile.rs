//! Where a pass spends its time, by op. Knows nothing of what the ops do: they name themselves.

use std::time::Duration;

pub use lowrank_kernels::TaskGroup;

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

/// The tasks of one call of an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallTasks {
    /// What the op calls itself.
    pub op: &'static str,
    /// When it ran.
    pub phase: Phase,
    /// Its tasks: groups of them, one after the other.
    pub groups: Vec<TaskGroup>,
    /// What it took beside its tasks.
    pub serial: Duration,
}

/// Times by op and phase, in the order of their first call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    phase: Phase,
    rows: Vec<OpTime>,
    /// Of each call, where they are asked for.
    tasks: Option<Vec<CallTasks>>,
}

impl Profile {
    /// The rows, the longest first.
    pub fn longest_first(&self) -> Vec<OpTime> {
        let mut rows = self.rows.clone();
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
        rows
    }

    /// One that also tells the tasks of each call.
    pub(crate) fn with_tasks() -> Self {
        Self {
            tasks: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// Whether tasks are asked for.
    pub(crate) fn wants_tasks(&self) -> bool {
        self.tasks.is_some()
    }

    /// The tasks of each call, in the order of the calls; none where they were not asked for.
    pub fn tasks(&self) -> &[CallTasks] {
        self.tasks.as_deref().unwrap_or_default()
    }

    pub(crate) fn add_tasks(&mut self, op: &'static str, time: Duration, groups: Vec<TaskGroup>) {
        let phase = self.phase;
        if let Some(tasks) = &mut self.tasks {
            let in_tasks = groups.iter().map(TaskGroup::total).sum();
            tasks.push(CallTasks {
                op,
                phase,
                groups,
                serial: time.saturating_sub(in_tasks),
            });
        }
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
        assert!(profile.tasks().is_empty());
    }

    #[test]
    fn what_a_call_takes_beside_its_tasks_is_serial() {
        let ms = Duration::from_millis;
        let mut profile = Profile::with_tasks();
        profile.enter(Phase::Backward);
        let group = |times: &[u64], dealing| TaskGroup {
            times: times.iter().map(|&n| ms(n)).collect(),
            dealing: ms(dealing),
        };
        profile.add_tasks("product", ms(11), vec![group(&[3, 2], 1), group(&[4], 0)]);
        profile.add_tasks("copy", ms(1), Vec::new());
        let serial: Vec<Duration> = profile.tasks().iter().map(|call| call.serial).collect();
        assert_eq!(serial, [ms(1), ms(1)]);
        assert_eq!(profile.tasks()[0].phase, Phase::Backward);
    }
}
