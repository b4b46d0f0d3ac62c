//! What is shown while a run goes on, on standard error: a live line on a terminal, plain lines
//! elsewhere, nothing when told to be quiet.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lowrank_train::metrics::Metric;
use lowrank_train::trainer::Event;

use crate::args::CommonArgs;
use crate::output::{self, bytes, count, duration, metric};
use crate::printable::{cut, message};
use lowrank_run::memory::resident_bytes;

/// Plain lines come at least this far apart, evaluations and the end excepted.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows a run.
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    metric: Metric,
    started: Cell<Option<(Instant, u64)>>,
    last_line: Cell<Option<Instant>>,
    /// Exponential mean of the loss, which alone is too noisy to read.
    loss: Cell<Option<f64>>,
}

impl Progress {
    /// A reporter that shows `metric` after evaluations; of nothing where the flags ask for quiet.
    pub fn new(common: &CommonArgs, metric: Metric) -> Self {
        let quiet = common.is_quiet();
        let live = !quiet && std::io::stderr().is_terminal();
        let bar = live.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:24} {msg}");
            bar.set_style(
                style
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("━╸─"),
            );
            bar
        });
        Self {
            quiet,
            bar,
            metric,
            started: Cell::new(None),
            last_line: Cell::new(None),
            loss: Cell::new(None),
        }
    }

    /// A line of its own, above the live one.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.warn(text);
        }
    }

    /// The same even for those who want errors alone: something on disk was damaged.
    fn warn(&self, text: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.println(message(text.as_ref())),
            None => output::note(text.as_ref()),
        }
    }

    /// The live line goes away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Shows an event of a run.
    pub fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::Resumed { step } => self.line(format!("resumed after step {step}")),
            Event::PassedOver(error) => {
                self.warn(format!("warning: {error}; going on from an older one"))
            }
            Event::BestLost { error, now } => self.warn(match now {
                Some(step) => format!(
                    "warning: {error}; it was the best one, now step {step} is taken for the best"
                ),
                None => format!(
                    "warning: {error}; it was the best one, the next evaluation is taken for the best"
                ),
            }),
            Event::OtherBase(differences) => self.warn(format!(
                "warning: the base is not the one that the run was started on\n  {}",
                differences.join("\n  ")
            )),
            Event::LogLost(fault) => self.warn(format!("warning: {fault}; the values are not affected")),
            Event::Step { row, total_steps } => self.step(row, *total_steps),
            Event::Evaluating { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("evaluating {done}/{total}"));
                }
            }
            Event::Evaluated {
                step,
                evaluation,
                is_best,
            } => {
                let loss = metric(Metric::Loss, evaluation.value(Metric::Loss));
                let own = match self.metric {
                    Metric::Loss => String::new(),
                    m => format!("  {} {}", m.name(), metric(m, evaluation.value(m))),
                };
                let best = if *is_best { "  (best so far)" } else { "" };
                self.line(format!("step {step}  validation: loss {loss}{own}{best}"));
            }
            Event::Saved(path) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(cut(&format!("saved {}", path.display()), 200));
                }
            }
            Event::StoppedEarly { step } => self.line(format!("stopped early after step {step}")),
        }
    }

    fn step(&self, row: &lowrank_train::metrics_log::MetricsRow, total: u64) {
        if self.quiet {
            return;
        }
        let now = Instant::now();
        let (start, first) = self.started.get().unwrap_or((now, row.step));
        self.started.set(Some((start, first)));
        let loss = row.loss.unwrap_or(f64::NAN);
        let smooth = self.loss.get().map_or(loss, |old| old + 0.1 * (loss - old));
        self.loss.set(Some(smooth));
        let mut line = format!(
            "step {}/{total}  loss {smooth:.4}  lr {:.2e}  {} tok/s",
            row.step,
            row.learning_rate.unwrap_or(0.0),
            count(row.tokens_per_s.unwrap_or(0.0) as u64),
        );
        if row.step > first {
            let per_step = (now - start).as_secs_f64() / (row.step - first) as f64;
            line.push_str(&format!(
                "  {} left",
                duration(per_step * (total - row.step) as f64)
            ));
        }
        if let Some(resident) = resident_bytes() {
            line.push_str(&format!("  {}", bytes(resident)));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(row.step);
            bar.set_message(line);
        } else if row.step == total
            || self
                .last_line
                .get()
                .is_none_or(|at| now - at >= LINE_INTERVAL)
        {
            self.last_line.set(Some(now));
            self.line(&line);
        }
    }
}
