//! After the last step: the adapter's files, the table, the summary and the report.

use lowrank_engine::Purpose;
use lowrank_formats::{RunDir, read_json, write_atomic};
use lowrank_run::result::{REPORT_FILE, Results, SUMMARY_FILE};
use lowrank_run::spec::to_settings;
use lowrank_run::{RunResult, memory, yaml};
use lowrank_train::config::Method;
use lowrank_train::metrics::Metric;
use lowrank_train::metrics_log::MetricsLog;
use lowrank_train::proof::Idle;
use lowrank_train::report::Report;
use lowrank_train::trainer::headline_metric;

use crate::args::CommonArgs;
use crate::output::{self, TextTable, bytes, count, duration, percent};
use crate::tables::adapter_table;

/// Points to the results of a run that had nothing left to do. They stay as they are: this process
/// has trained nothing, so that its own figures would say less.
pub fn show_written(run: &RunDir, common: &CommonArgs) -> RunResult {
    if common.is_json() {
        let value = read_json(&run.join(SUMMARY_FILE))?;
        output::print_json(&value);
    } else if !common.is_quiet() {
        output::print(format!(
            "the run is finished already; its results stay as they are\nreport: {}\n",
            run.join(REPORT_FILE).display()
        ));
    }
    Ok(())
}

/// The results as people read them.
pub struct Shown<'a> {
    /// The results.
    pub results: &'a Results,
}

impl Shown<'_> {
    /// Writes the page about the run.
    pub fn write_report(&self) -> RunResult {
        let run = &self.results.folder;
        let rows = MetricsLog::read(&run.join("metrics.jsonl"))?;
        let report = Report {
            title: format!("lowrank: {}", run.path().display()),
            subtitle: format!(
                "{} on {}, {}",
                self.results.run.config.model,
                self.results.run.config.data.train_file,
                self.results.run.config.method.title()
            ),
            highlights: self.highlights(),
            rows: &rows,
            metric: headline_metric(&self.results.run.config),
            best_step: self.results.summary.best_step,
            tables: vec![
                self.quality_table().for_report("Before and after"),
                self.main_table().for_report("The run"),
                self.rates_table()
                    .for_report("Learning rates that were tried"),
                self.memory_table().for_report("Memory"),
                adapter_table(&self.results.model).for_report("What was trained"),
            ],
            command: repeat_command(run),
            config: yaml::to_yaml(&to_settings(&self.results.run.config)),
        };
        Ok(write_atomic(
            &run.join(REPORT_FILE),
            report.to_html().as_bytes(),
        )?)
    }

    /// The table at the end, with warnings first.
    pub fn to_text(&self) -> String {
        let run = &self.results.folder;
        let mut text = String::new();
        for line in self.proof_lines() {
            text.push_str(&line);
            text.push('\n');
        }
        let quality = self.quality_table();
        if !quality.is_empty() {
            text.push_str(&format!("\n{quality}"));
        }
        text.push_str(&format!("\n{}\n{}", self.main_table(), self.memory_table()));
        text.push_str(&format!("\nreport: {}\n", run.join(REPORT_FILE).display()));
        text
    }

    fn highlights(&self) -> Vec<(String, String)> {
        let metric = headline_metric(&self.results.run.config);
        let mut list = Vec::new();
        if let (Some(before), Some(after)) = (&self.results.before, &self.results.after) {
            list.push((
                format!("{} before", metric.name()),
                output::metric(metric, before.value(metric)),
            ));
            list.push((
                format!("{} after", metric.name()),
                output::metric(metric, after.value(metric)),
            ));
        }
        list.push((
            "trained parameters".to_owned(),
            count(self.results.model.trainables().count()),
        ));
        list.push((
            "tokens per second".to_owned(),
            count(self.results.tokens_per_s() as u64),
        ));
        list.push(("time".to_owned(), duration(self.results.summary.elapsed_s)));
        list
    }

    fn quality_table(&self) -> TextTable {
        let mut table = TextTable::new(&["", "before", "after"]);
        let (Some(before), Some(after)) = (&self.results.before, &self.results.after) else {
            return table;
        };
        let rows = if self.results.run.test.is_some() {
            "test"
        } else {
            "validation"
        };
        for &metric in Metric::of_task(self.results.run.config.data.task) {
            table.row([
                format!("{rows} {}", metric.name().replace('_', " ")),
                output::metric(metric, before.value(metric)),
                output::metric(metric, after.value(metric)),
            ]);
        }
        table
    }

    fn main_table(&self) -> TextTable {
        let mut table = TextTable::new(&[]);
        let trained = self.results.model.trainables().count();
        let total = self.results.total_parameters();
        let what = match self.results.run.config.method {
            Method::Full => "model size",
            Method::Lora | Method::BitFit => "adapter size",
        };
        let early = if self.results.summary.stopped_early {
            ", stopped early"
        } else {
            ""
        };
        table
            .row([
                "trained parameters",
                &format!(
                    "{} of {} ({})",
                    count(trained),
                    count(total),
                    percent(trained, total)
                ),
            ])
            .row([
                what,
                &format!(
                    "{} in {}",
                    bytes(self.results.saved.bytes),
                    self.results.saved.path.display()
                ),
            ])
            .row([
                "steps",
                &format!(
                    "{} (values of step {}{early})",
                    self.results.summary.steps, self.results.summary.final_step
                ),
            ])
            .row(["time", &duration(self.results.summary.elapsed_s)])
            .row([
                "tokens per second",
                &count(self.results.tokens_per_s() as u64),
            ]);
        table
    }

    fn rates_table(&self) -> TextTable {
        let mut table = TextTable::new(&["learning rate", "losses", "time"]);
        let rates = self.results.rates.iter();
        for arm in rates.flat_map(|rates| &rates.search.arms) {
            let losses = arm.losses.iter();
            let losses = losses.map(|loss| match loss {
                Some(loss) => format!("{loss:.4}"),
                None => "diverges".to_owned(),
            });
            let loss = losses.collect::<Vec<_>>().join(", ");
            table.row([
                format!("{:e}", arm.learning_rate),
                loss,
                duration(arm.seconds),
            ]);
        }
        table
    }

    fn memory_table(&self) -> TextTable {
        let counted = self.results.model.device().peak_memory();
        let mut table = TextTable::new(&["peak memory", "predicted", "counted"]);
        for purpose in Purpose::of_training() {
            table.row([
                purpose.name().replace('_', " "),
                bytes(self.results.plan.peak.of(purpose)),
                bytes(counted.of(purpose)),
            ]);
        }
        table.row([
            "all tensors".to_owned(),
            bytes(self.results.plan.peak.total()),
            bytes(counted.total()),
        ]);
        table.row([
            "the same with the holes between".to_owned(),
            bytes(self.results.plan.reserved_bytes),
            bytes(self.results.model.device().reserved_bytes()),
        ]);
        let shown = |b: Option<u64>| b.map_or("-".to_owned(), bytes);
        table.row([
            "program, tokenizer and rows".to_owned(),
            String::new(),
            shown(self.results.fixed_bytes),
        ]);
        let expected = self
            .results
            .fixed_bytes
            .map(|fixed| fixed + self.results.plan.reserved_bytes);
        table.row([
            "resident, whole process".to_owned(),
            shown(expected),
            shown(memory::peak_resident_bytes()),
        ]);
        table
    }

    /// The proof that every trained value got gradients and moved, or which did not.
    fn proof_lines(&self) -> Vec<String> {
        let proof = &self.results.summary.proof;
        let idle: Vec<_> = proof.idle().collect();
        if idle.is_empty() {
            return vec![format!(
                "all {} trained tensors got gradients and moved",
                proof.values.len()
            )];
        }
        let total = proof.values.len();
        let mut lines = Vec::new();
        for (idle_by, reason) in REASONS {
            let of_reason = idle.iter().filter(|value| value.idle == Some(idle_by));
            match of_reason.count() {
                0 => {}
                n => lines.push(format!("{n} of {total} trained tensors {reason}")),
            }
        }
        let faults: Vec<_> = idle
            .into_iter()
            .filter(|value| value.idle == Some(Idle::Unexplained))
            .collect();
        if faults.is_empty() {
            return lines;
        }
        let n = faults.len();
        lines.push(format!(
            "warning: {n} of {total} trained tensors were not trained"
        ));
        for value in faults.iter().take(8) {
            let why = if value.had_gradient {
                "did not move"
            } else {
                "got no gradient"
            };
            lines.push(format!("  {}: {why}", value.name));
        }
        if n > 8 {
            lines.push(format!("  and {} more", n - 8));
        }
        lines
    }
}

/// What is said of values that a short run leaves as they were.
const REASONS: [(Idle, &str); 2] = [
    (
        Idle::RateWasZero,
        "did not move: too few steps, the learning rate was 0 in all of them (warm-up begins at 0)",
    ),
    (
        Idle::FactorWasZero,
        "got no gradient: too few steps, an adapter's A has none while its B is still zero",
    ),
];

/// Two lines: the same words again, and the resolved configuration in a new folder.
fn repeat_command(run: &RunDir) -> String {
    let words = std::iter::once("lowrank".to_owned()).chain(std::env::args().skip(1));
    let config = run.join("config.yaml").display().to_string();
    let again = [
        "lowrank",
        "train",
        "--config",
        &config,
        "--output-dir",
        "runs/again",
    ]
    .map(str::to_owned);
    format!(
        "{}\n\n# the same from the resolved configuration:\n{}",
        output::shell_line(words),
        output::shell_line(again)
    )
}
