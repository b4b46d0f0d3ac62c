//! How long the tasks of calls take, for who wants to know how a step would do on more threads than
//! there are. Where nobody asks, a task costs a look at a variable of its thread.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Tasks that may run at once. The next ones begin when all of them have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskGroup {
    /// What each takes, in the order in which they are given out.
    pub times: Vec<Duration>,
    /// What giving them out takes, which is done by all who work.
    pub dealing: Duration,
}

impl TaskGroup {
    /// What all of it takes one thread.
    pub fn total(&self) -> Duration {
        self.dealing + self.times.iter().sum::<Duration>()
    }
}

thread_local! {
    static RECORDED: RefCell<Option<Vec<TaskGroup>>> = const { RefCell::new(None) };
}

/// Runs `work` and tells the tasks that this thread did in it. On a pool of one thread, of which it
/// is that thread, those are all.
pub fn record_tasks<R>(work: impl FnOnce() -> R) -> (R, Vec<TaskGroup>) {
    RECORDED.set(Some(vec![TaskGroup::default()]));
    let result = work();
    let mut groups = RECORDED.take().unwrap_or_default();
    groups.retain(|group| !group.times.is_empty());
    (result, groups)
}

fn with_recorded(f: impl FnOnce(&mut Vec<TaskGroup>)) {
    RECORDED.with_borrow_mut(|recorded| {
        if let Some(groups) = recorded {
            f(groups);
        }
    });
}

/// Runs what gives out tasks, as a group of them.
pub(crate) fn as_group<R>(give_out: impl FnOnce() -> R) -> R {
    if RECORDED.with_borrow(Option::is_none) {
        return give_out();
    }
    with_recorded(|groups| groups.push(TaskGroup::default()));
    let started = Instant::now();
    let result = give_out();
    let time = started.elapsed();
    with_recorded(|groups| {
        if let Some(group) = groups.last_mut() {
            group.dealing = time.saturating_sub(group.total());
        }
        // Tasks that belong to no group follow.
        groups.push(TaskGroup::default());
    });
    result
}

/// Runs a task.
pub(crate) fn run_task<R>(task: impl FnOnce() -> R) -> R {
    if RECORDED.with_borrow(Option::is_none) {
        return task();
    }
    let started = Instant::now();
    let result = task();
    let time = started.elapsed();
    with_recorded(|groups| {
        if let Some(group) = groups.last_mut() {
            group.times.push(time);
        }
    });
    result
}

/// What is done for each item, as a task.
pub(crate) fn each_task<T>(work: impl Fn(T) + Sync + Send) -> impl Fn(T) + Sync + Send {
    move |item| run_task(|| work(item))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::{for_each_chunk, for_each_task, map_tasks};

    #[test]
    fn tasks_are_told_by_group_where_somebody_asks_and_nowhere_else() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.expect("a thread starts");
        let sizes = |groups: Vec<TaskGroup>| -> Vec<usize> {
            groups.iter().map(|group| group.times.len()).collect()
        };
        let (sum, groups) = pool.install(|| {
            record_tasks(|| {
                for_each_task(5, |_| std::thread::sleep(Duration::from_millis(1)));
                for_each_task(0, |_| ());
                for_each_chunk(&mut [0u8; 10], 4, |_, _| ());
                run_task(|| ());
                map_tasks(1, |task| task + 7).iter().sum::<usize>()
            })
        });
        assert_eq!(sum, 7);
        let first = &groups[0];
        let times = first.times.iter();
        assert!(times.min() >= Some(&Duration::from_millis(1)));
        assert!(first.total() >= Duration::from_millis(5));
        assert_eq!(sizes(groups), [5, 3, 1, 1]);
        for_each_task(2, |_| ());
        let ((), groups) = record_tasks(|| ());
        assert!(groups.is_empty());
    }
}
