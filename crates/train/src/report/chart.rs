//! Line charts as inline SVG: axes with round ticks, thinned series, a key. Knows nothing of runs.

use std::fmt::Write as _;

use super::escape;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// The main line.
    Main,
    /// A thin line behind it.
    Faint,
    /// A line of another colour with its points marked.
    Second,
}

impl Style {
    fn class(self) -> &'static str {
        match self {
            Style::Main => "s-main",
            Style::Faint => "s-faint",
            Style::Second => "s-second",
        }
    }
}

/// Points (x, y), ascending in x and finite.
#[derive(Clone, Debug)]
pub(super) struct Series {
    name: &'static str,
    style: Style,
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    pub(super) fn new(name: &'static str, style: Style, points: Vec<(f64, f64)>) -> Self {
        Self {
            name,
            style,
            points,
        }
    }
}

/// One chart over the steps of a run.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) series: Vec<Series>,
    /// A vertical line at this x, the best checkpoint.
    pub(super) mark: Option<f64>,
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 30.0;

struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Chart {
    pub(super) fn to_svg(&self) -> String {
        let all = || self.series.iter().flat_map(|s| s.points.iter());
        let x_axis = axis(all().map(|p| p.0));
        let y_axis = axis(all().map(|p| p.1)).padded();
        let x_at =
            |x: f64| LEFT + (x - x_axis.low) / (x_axis.high - x_axis.low) * (WIDTH - LEFT - RIGHT);
        let y_at = |y: f64| {
            HEIGHT
                - BOTTOM
                - (y - y_axis.low) / (y_axis.high - y_axis.low) * (HEIGHT - TOP - BOTTOM)
        };
        let title = escape(&self.title);
        let mut svg = format!("<figure><figcaption>{title}");
        for s in &self.series {
            let _ = write!(
                svg,
                "<span class=\"key {}\">{}</span>",
                s.style.class(),
                s.name
            );
        }
        let _ = write!(
            svg,
            "</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title} by step\">\n"
        );
        for &t in &y_axis.ticks {
            let y = y_at(t);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                y + 4.0,
                number(t)
            );
        }
        let base = HEIGHT - BOTTOM;
        for &t in &x_axis.ticks {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x_at(t),
                base + 18.0,
                number(t)
            );
        }
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{base}\" y2=\"{base}\"/>",
            WIDTH - RIGHT
        );
        if let Some(x) = self.mark.map(x_at) {
            let _ = writeln!(
                svg,
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{base}\"/>"
            );
        }
        for s in &self.series {
            write_series(&mut svg, s, &x_at, &y_at);
        }
        svg.push_str("</svg></figure>\n");
        svg
    }
}

fn write_series(
    svg: &mut String,
    s: &Series,
    x_at: &dyn Fn(f64) -> f64,
    y_at: &dyn Fn(f64) -> f64,
) {
    let _ = write!(svg, "<g class=\"{}\"><polyline points=\"", s.style.class());
    for &(x, y) in &s.points {
        let _ = write!(svg, "{:.1},{:.1} ", x_at(x), y_at(y));
    }
    svg.push_str("\"/>");
    if s.style == Style::Second || s.points.len() == 1 {
        for &(x, y) in &s.points {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"><title>step {}: {}</title></circle>",
                x_at(x),
                y_at(y),
                number(x),
                number(y)
            );
        }
    }
    svg.push_str("</g>\n");
}

impl Axis {
    /// A little air above and below, so that extremes do not lie on the border.
    fn padded(self) -> Self {
        let air = 0.04 * (self.high - self.low);
        Self {
            low: self.low - air,
            high: self.high + air,
            ..self
        }
    }
}

/// The range of the values, widened to round ticks; never empty.
fn axis(values: impl Iterator<Item = f64>) -> Axis {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for v in values {
        low = low.min(v);
        high = high.max(v);
    }
    if low > high {
        (low, high) = (0.0, 1.0);
    }
    if high - low <= f64::EPSILON * high.abs().max(low.abs()) {
        let pad = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        (low, high) = (low - pad, high + pad);
    }
    let step = round_step((high - low) / 5.0);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    Axis {
        low,
        high,
        ticks: (first..=last).map(|i| i as f64 * step).collect(),
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|f| f * power >= raw * 0.999);
    factor.unwrap_or(10.0) * power
}

/// A short number: up to four significant digits, exponents for the very small and large.
fn number(v: f64) -> String {
    if v == 0.0 {
        return "0".to_owned();
    }
    let magnitude = v.abs();
    if !(1e-3..1e6).contains(&magnitude) {
        let text = format!("{v:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trim_zeros(digits));
    }
    let decimals = (3 - magnitude.log10().floor() as i32).clamp(0, 6) as usize;
    trim_zeros(&format!("{v:.decimals$}")).to_owned()
}

fn trim_zeros(text: &str) -> &str {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text
    }
}

/// An exponential mean over about a fiftieth of the run.
pub(super) fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let weight = 1.0 / (points.len() as f64 / 50.0).max(1.0);
    let mut mean = 0.0;
    let mut seen = 0.0;
    points
        .iter()
        .map(|&(x, y)| {
            // Debiased, so that the first values are not pulled towards 0.
            mean += weight * (y - mean);
            seen += weight * (1.0 - seen);
            (x, mean / seen)
        })
        .collect()
}

/// At most about 800 points: means of equal runs of neighbours, the last point kept as it is.
pub(super) fn thin_out(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const MOST: usize = 800;
    if points.len() <= MOST {
        return points.to_vec();
    }
    let mean = |c: &[(f64, f64)]| {
        let n = c.len() as f64;
        let sums = c.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        (sums.0 / n, sums.1 / n)
    };
    let mut out: Vec<_> = points
        .chunks(points.len().div_ceil(MOST))
        .map(mean)
        .collect();
    out.extend(points.last());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let a = axis([0.03, 0.71].into_iter());
        assert_eq!(a.ticks, [0.2, 0.4, 0.6000000000000001]);
        let flat = axis([2.0, 2.0].into_iter());
        assert!(flat.low < 2.0 && flat.high > 2.0);
        assert!(!axis(std::iter::empty()).ticks.is_empty());
    }

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> = [0.0, 0.25, 1234.0, 1e-5, 2.5e-7, 0.001, -3.5]
            .map(number)
            .into();
        assert_eq!(
            shown,
            ["0", "0.25", "1234", "1e-5", "2.5e-7", "0.001", "-3.5"]
        );
    }

    #[test]
    fn thinning_keeps_the_ends_and_smoothing_the_level() {
        let points: Vec<_> = (0..5000).map(|i| (i as f64, 3.0)).collect();
        let thin = thin_out(&points);
        assert!(thin.len() <= 801);
        assert_eq!(thin.last(), Some(&(4999.0, 3.0)));
        assert!(smooth(&points).iter().all(|p| (p.1 - 3.0).abs() < 1e-9));
    }
}
