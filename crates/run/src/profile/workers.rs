//! How a step would do on many workers: its tasks are measured on one thread, cut as for that many,
//! and dealt out on paper. Memory that workers would share, and what dealing costs, are not in it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use lowrank_engine::{CallTasks, Phase, TaskGroup};

use super::StepTiming;

/// A step on paper.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Workers.
    pub workers: usize,
    /// What one worker takes.
    pub alone: Duration,
    /// What they take together.
    pub together: Duration,
    /// By op, the longest first; what is outside ops is not in it.
    pub ops: Vec<OpSchedule>,
}

/// All calls of an op in one phase, on paper.
#[derive(Clone, Debug, PartialEq)]
pub struct OpSchedule {
    /// The op.
    pub op: &'static str,
    /// When it runs.
    pub phase: Phase,
    /// Tasks of all calls.
    pub tasks: usize,
    /// What one worker takes.
    pub alone: Duration,
    /// Part of it that is in no task.
    pub serial: Duration,
    /// What they take together.
    pub together: Duration,
}

impl Schedule {
    /// The step of a timing with tasks. Each task takes what it took in the quickest of the steps,
    /// where all steps have the same tasks.
    pub(super) fn of(timing: &StepTiming, workers: usize) -> Self {
        let calls = timing.profile.tasks();
        let steps: Vec<&[CallTasks]> = calls
            .chunks(calls.len().div_ceil(timing.steps).max(1))
            .collect();
        let quickest = quickest(&steps);
        let outside = steps.iter().zip(&timing.each_step);
        let outside =
            outside.map(|(calls, whole)| whole.saturating_sub(calls.iter().map(time).sum()));
        let outside = outside.min().unwrap_or_default();
        let mut ops: Vec<OpSchedule> = Vec::new();
        for call in &quickest {
            let known = ops
                .iter_mut()
                .find(|row| (row.op, row.phase) == (call.op, call.phase));
            let (alone, together) = (time(call), together(call, workers));
            let tasks = call.groups.iter().map(|group| group.times.len()).sum();
            match known {
                Some(row) => {
                    row.tasks += tasks;
                    row.alone += alone;
                    row.serial += call.serial;
                    row.together += together;
                }
                None => ops.push(OpSchedule {
                    op: call.op,
                    phase: call.phase,
                    tasks,
                    alone,
                    serial: call.serial,
                    together,
                }),
            }
        }
        ops.sort_by_key(|row| Reverse(row.together));
        Self {
            workers,
            alone: outside + ops.iter().map(|row| row.alone).sum::<Duration>(),
            together: outside + ops.iter().map(|row| row.together).sum::<Duration>(),
            ops,
        }
    }

    /// The share of the workers' time in which they have something to do.
    pub fn busy(&self) -> f64 {
        busy(self.alone, self.together, self.workers)
    }
}

impl OpSchedule {
    /// The share of the workers' time in which they have something to do, while it runs.
    pub fn busy(&self, workers: usize) -> f64 {
        busy(self.alone, self.together, workers)
    }
}

fn busy(alone: Duration, together: Duration, workers: usize) -> f64 {
    alone.as_secs_f64() / (workers as f64 * together.as_secs_f64()).max(1e-12)
}

/// What a call takes one worker.
fn time(call: &CallTasks) -> Duration {
    call.serial + call.groups.iter().map(TaskGroup::total).sum::<Duration>()
}

/// What a call takes the workers together.
fn together(call: &CallTasks, workers: usize) -> Duration {
    let groups = call.groups.iter().map(|group| dealt(group, workers));
    call.serial + groups.sum::<Duration>()
}

/// When the last task of a group ends, if each goes to the worker who is free first, and all of
/// them give out tasks.
fn dealt(group: &TaskGroup, workers: usize) -> Duration {
    let workers = workers.max(1);
    let mut free: BinaryHeap<Reverse<Duration>> =
        std::iter::repeat_n(Reverse(Duration::ZERO), workers).collect();
    let mut end = Duration::ZERO;
    for task in &group.times {
        let Reverse(start) = free.pop().unwrap_or(Reverse(Duration::ZERO));
        end = end.max(start + *task);
        free.push(Reverse(start + *task));
    }
    end + group.dealing / workers as u32
}

/// Each time of the quickest step; the last step's where they have different tasks, as with rows
/// of different lengths.
fn quickest(steps: &[&[CallTasks]]) -> Vec<CallTasks> {
    let shape = |calls: &[CallTasks]| -> Vec<_> {
        let sizes = |call: &CallTasks| -> Vec<usize> {
            call.groups.iter().map(|group| group.times.len()).collect()
        };
        calls.iter().map(|call| (call.op, sizes(call))).collect()
    };
    let Some((last, others)) = steps.split_last() else {
        return Vec::new();
    };
    let mut quickest = last.to_vec();
    let wanted = shape(last);
    if others.iter().any(|calls| shape(calls) != wanted) {
        return quickest;
    }
    for calls in others {
        for (best, call) in quickest.iter_mut().zip(*calls) {
            best.serial = best.serial.min(call.serial);
            for (best, group) in best.groups.iter_mut().zip(&call.groups) {
                best.dealing = best.dealing.min(group.dealing);
                let pairs = best.times.iter_mut().zip(&group.times);
                pairs.for_each(|(best, time)| *best = (*best).min(*time));
            }
        }
    }
    quickest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: &[u64]) -> TaskGroup {
        TaskGroup {
            times: times.iter().map(|&ms| Duration::from_millis(ms)).collect(),
            dealing: Duration::ZERO,
        }
    }

    fn call(op: &'static str, groups: &[&[u64]], serial: u64) -> CallTasks {
        CallTasks {
            op,
            phase: Phase::Forward,
            groups: groups.iter().map(|group| ms(group)).collect(),
            serial: Duration::from_millis(serial),
        }
    }

    #[test]
    fn each_task_goes_to_the_worker_who_is_free_first() {
        let ends = |times: &[u64], workers| dealt(&ms(times), workers).as_millis();
        assert_eq!(ends(&[4, 3, 2, 1], 1), 10);
        assert_eq!(ends(&[4, 3, 2, 1], 2), 5);
        assert_eq!(ends(&[4, 3, 2, 1], 64), 4);
        assert_eq!(ends(&[1; 65], 64), 2);
        assert_eq!(ends(&[], 64), 0);
        let dealing = Duration::from_millis(6);
        let group = TaskGroup {
            dealing,
            ..ms(&[4, 4])
        };
        assert_eq!(dealt(&group, 2).as_millis(), 7);
    }

    #[test]
    fn groups_wait_for_each_other_and_what_is_serial_for_all() {
        let product = call("product", &[&[2, 2], &[6]], 1);
        assert_eq!(time(&product).as_millis(), 11);
        assert_eq!(together(&product, 2).as_millis(), 9);
        let row = OpSchedule {
            op: "product",
            phase: Phase::Forward,
            tasks: 3,
            alone: time(&product),
            serial: product.serial,
            together: together(&product, 2),
        };
        assert!((row.busy(2) - 11.0 / 18.0).abs() < 1e-12);
    }

    #[test]
    fn a_task_takes_what_it_took_in_the_quickest_step() {
        let first = [call("a", &[&[5, 9]], 4), call("b", &[&[1]], 0)];
        let second = [call("a", &[&[7, 3]], 2), call("b", &[&[8]], 1)];
        let wanted = [call("a", &[&[5, 3]], 2), call("b", &[&[1]], 0)];
        assert_eq!(quickest(&[&first, &second]), wanted);
        // Steps with other tasks are not compared.
        let other = [call("a", &[&[7, 3, 1]], 2), call("b", &[&[8]], 1)];
        assert_eq!(quickest(&[&other, &second]), second);
        assert!(quickest(&[]).is_empty());
    }
}
