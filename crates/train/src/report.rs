//! `report.html`: one self-contained page about a run, with its curves, its tables and the command
//! that repeats it.
//!
//! No script, no font, no link to anything outside the file; all text that comes from users is
//! escaped.

mod chart;

use std::fmt::Write as _;

use crate::metrics::Metric;
use crate::metrics_log::MetricsRow;
use chart::{Chart, Series, Style};

/// A table of the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Heading above it.
    pub title: String,
    /// Column heads; none for a plain list of pairs.
    pub header: Vec<String>,
    /// Rows of cells.
    pub rows: Vec<Vec<String>>,
}

/// Everything the page shows.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Name of the run.
    pub title: String,
    /// One sentence under the title.
    pub subtitle: String,
    /// The few figures at the top: a label and its value.
    pub highlights: Vec<(String, String)>,
    /// The rows of the run's log.
    pub rows: &'a [MetricsRow],
    /// The metric that is drawn.
    pub metric: Metric,
    /// Step of the best evaluation, marked in the curve.
    pub best_step: Option<u64>,
    /// Tables in their order: results, parameters, memory, adapters.
    pub tables: Vec<Table>,
    /// The command line that repeats the run.
    pub command: String,
    /// The resolved configuration as YAML.
    pub config: String,
}

impl Report<'_> {
    /// The page.
    pub fn to_html(&self) -> String {
        let mut page = String::with_capacity(64 << 10);
        let title = escape(&self.title);
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
             </head>\n<body>\n<main>\n<h1>{title}</h1>\n<p class=\"sub\">{}</p>\n",
            escape(&self.subtitle)
        );
        self.write_highlights(&mut page);
        page.push_str("<div class=\"charts\">\n");
        for chart in self.charts() {
            page.push_str(&chart.to_svg());
        }
        page.push_str("</div>\n");
        for table in &self.tables {
            write_table(&mut page, table);
        }
        let _ = write!(
            page,
            "<h2>Repeat this run</h2>\n<pre>{}</pre>\n<details><summary>Resolved configuration</summary>\n\
             <pre>{}</pre></details>\n</main>\n</body>\n</html>\n",
            escape(&self.command),
            escape(&self.config)
        );
        page
    }

    fn write_highlights(&self, page: &mut String) {
        if self.highlights.is_empty() {
            return;
        }
        page.push_str("<dl class=\"highlights\">\n");
        for (label, value) in &self.highlights {
            let _ = writeln!(
                page,
                "<div><dt>{}</dt><dd>{}</dd></div>",
                escape(label),
                escape(value)
            );
        }
        page.push_str("</dl>\n");
    }

    fn charts(&self) -> Vec<Chart> {
        let points = |f: &dyn Fn(&MetricsRow) -> Option<f64>| -> Vec<(f64, f64)> {
            self.rows
                .iter()
                .filter_map(|row| {
                    f(row)
                        .filter(|v| v.is_finite())
                        .map(|v| (row.step as f64, v))
                })
                .collect()
        };
        let evaluated = |metric: Metric| points(&|row| row.eval.as_ref().map(|e| e.value(metric)));
        let loss = points(&|row| row.loss);
        let mut charts = vec![
            Chart {
                title: "Loss".to_owned(),
                series: vec![
                    Series::new("training, each step", Style::Faint, chart::thin_out(&loss)),
                    Series::new(
                        "training, smoothed",
                        Style::Main,
                        chart::thin_out(&chart::smooth(&loss)),
                    ),
                    Series::new("validation", Style::Second, evaluated(Metric::Loss)),
                ],
                mark: None,
            },
            Chart {
                title: "Learning rate".to_owned(),
                series: vec![Series::new(
                    "learning rate",
                    Style::Main,
                    chart::thin_out(&points(&|row| row.learning_rate)),
                )],
                mark: None,
            },
        ];
        if self.metric != Metric::Loss {
            charts.push(Chart {
                title: format!("Validation {}", self.metric.name().replace('_', " ")),
                series: vec![Series::new(
                    "validation",
                    Style::Second,
                    evaluated(self.metric),
                )],
                mark: self.best_step.map(|s| s as f64),
            });
        }
        charts.retain_mut(|chart| {
            chart.series.retain(|s| !s.points.is_empty());
            !chart.series.is_empty()
        });
        charts
    }
}

fn write_table(page: &mut String, table: &Table) {
    if table.rows.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>{}</h2>\n<div class=\"scroll\"><table>",
        escape(&table.title)
    );
    if !table.header.is_empty() {
        page.push_str("<thead><tr>");
        for cell in &table.header {
            let _ = write!(page, "<th>{}</th>", escape(cell));
        }
        page.push_str("</tr></thead>\n");
    }
    page.push_str("<tbody>\n");
    for row in &table.rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}</td>", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

/// Text made safe inside HTML elements and attribute values.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "\
:root{--bg:#fbfbf9;--card:#fff;--ink:#1d2126;--soft:#667079;--line:#dcdfe2;--grid:#eceef0;--main:#2463a8;--faint:#a9c5e4;--second:#c05a1c}\
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e6e8ea;--soft:#98a2ab;--line:#343a40;--grid:#272c31;--main:#7ab3f0;--faint:#34506f;--second:#f0a36b}}\
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}\
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:36px 0 10px}\
.sub{color:var(--soft);margin:4px 0 24px}.highlights{display:flex;flex-wrap:wrap;gap:12px;margin:0 0 24px}\
.highlights div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 16px;min-width:130px}\
dt{color:var(--soft);font-size:.8rem}dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px}\
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px 8px}\
figcaption{font-weight:600;display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline}.key{font-weight:400;font-size:.8rem;color:var(--soft)}\
.key::before{content:'';display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle;background:var(--c)}\
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font:11px system-ui,sans-serif}\
.grid{stroke:var(--grid)}.axis{stroke:var(--line)}.mark{stroke:var(--soft);stroke-dasharray:3 3}\
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke:var(--c)}circle{fill:var(--c)}\
.s-main{--c:var(--main)}.s-faint{--c:var(--faint)}.s-faint polyline{stroke-width:1}.s-second{--c:var(--second)}\
.scroll{overflow-x:auto}table{border-collapse:collapse;background:var(--card);border:1px solid var(--line);border-radius:8px;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:6px 14px;border-bottom:1px solid var(--grid);white-space:nowrap}th{color:var(--soft);font-weight:500;font-size:.85rem}\
td+td{text-align:right}th+th{text-align:right}\
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto;font-size:.85rem}summary{cursor:pointer;color:var(--soft);margin-top:12px}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Evaluation;

    fn rows() -> Vec<MetricsRow> {
        (0..=40)
            .map(|step| MetricsRow {
                step,
                loss: (step > 0).then(|| 1.0 / step as f64),
                learning_rate: (step > 0).then_some(1e-3),
                eval: (step % 10 == 0).then(|| Evaluation {
                    rows: 4,
                    targets: 4,
                    tokens: 40,
                    metrics: [
                        ("accuracy".to_owned(), 0.5 + step as f64 / 100.0),
                        ("loss".to_owned(), 0.4),
                    ]
                    .into(),
                }),
                ..MetricsRow::default()
            })
            .collect()
    }

    fn report(rows: &[MetricsRow]) -> Report<'_> {
        Report {
            title: "run <script>alert(1)</script>".to_owned(),
            subtitle: "a & b".to_owned(),
            highlights: vec![("accuracy".to_owned(), "83.1%".to_owned())],
            rows,
            metric: Metric::Accuracy,
            best_step: Some(40),
            tables: vec![Table {
                title: "Memory".to_owned(),
                header: vec![
                    "purpose".to_owned(),
                    "predicted".to_owned(),
                    "measured".to_owned(),
                ],
                rows: vec![vec!["frozen".to_owned(), "1".to_owned(), "1".to_owned()]],
            }],
            command: "lowrank train --model \"a<b\"".to_owned(),
            config: "r: 8".to_owned(),
        }
    }

    #[test]
    fn holds_the_three_curves_and_nothing_from_outside() {
        let rows = rows();
        let page = report(&rows).to_html();
        assert_eq!(page.matches("<svg").count(), 3);
        for needle in [
            "http:", "https:", "src=", "url(", "<script", "@import", "<link",
        ] {
            assert!(!page.contains(needle), "{needle}");
        }
        assert!(page.contains("run &lt;script&gt;"));
        assert!(page.contains("a&lt;b"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn empty_and_single_point_runs_still_make_a_page() {
        let none = report(&[]).to_html();
        assert_eq!(none.matches("<svg").count(), 0);
        let mut one = rows();
        one.truncate(2);
        one[1].loss = Some(f64::NAN);
        let page = report(&one).to_html();
        assert!(!page.contains("NaN"), "undefined values are left out");
    }
}
