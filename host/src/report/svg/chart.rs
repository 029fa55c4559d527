//! A line chart: curves over updates, with their spread, a band, reference lines and on-off strips.

use std::fmt::Write;

use serde_json::json;

use super::axis::{Axis, Scale, whole_ticks};
use super::number::number;
use super::series::{Bucket, Series};

const WIDTH: f64 = 400.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 388.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 158.0;
/// Height of one on-off strip with its gap.
const STRIP: f64 = 9.0;

/// A range of values that matters.
#[derive(Debug, Clone, PartialEq)]
pub struct Band {
    /// Its ends.
    pub range: [f64; 2],
    /// What it is.
    pub label: String,
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Where.
    pub value: f64,
    /// What it is.
    pub label: String,
}

/// A state that is on or off.
#[derive(Debug, Clone, PartialEq)]
pub struct Strip {
    /// (x, whether it is on), x rising.
    pub states: Vec<(f64, bool)>,
}

/// How curves are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// Different things: different hues.
    Kinds,
    /// The first to the last of an order: a ramp.
    Order,
}

/// First and last x, the same in all charts of a page.
pub type Domain = [f64; 2];

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// The curves.
    pub series: Vec<Series>,
    /// How they are coloured.
    pub colours: Colours,
    /// The vertical axis.
    pub scale: Scale,
    /// Values that it must have room for, whatever the curves are.
    pub include: Vec<f64>,
    /// A range to mark.
    pub band: Option<Band>,
    /// Values to mark.
    pub references: Vec<Reference>,
    /// States below the curves, one for each of the first series, in its colour.
    pub strips: Vec<Strip>,
}

impl Chart {
    /// Curves on a linear axis that fits them.
    pub fn new(series: Vec<Series>) -> Self {
        Self {
            series,
            colours: Colours::Kinds,
            scale: Scale::Linear,
            include: Vec::new(),
            band: None,
            references: Vec::new(),
            strips: Vec::new(),
        }
    }

    /// The CSS colour of a curve.
    pub fn colour(&self, index: usize) -> String {
        match self.colours {
            Colours::Kinds => format!("var(--c{})", index % 6),
            Colours::Order => {
                let share = 100.0 * index as f64 / (self.series.len().max(2) - 1) as f64;
                format!("color-mix(in oklab, var(--late) {share:.0}%, var(--early))")
            }
        }
    }

    /// The chart as an `svg` element; `title` is what a screen reader says.
    pub fn render(&self, title: &str, domain: Domain) -> String {
        let buckets: Vec<Vec<Bucket>> = self.series.iter().map(Series::buckets).collect();
        let (axis, peak) = self.axis(&buckets);
        let plot = Plot { axis, domain };
        let height = BOTTOM + self.strips.len() as f64 * STRIP + 22.0;
        let mut svg = format!(
            r#"<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}" data-plot='{}'>"#,
            escaped(title),
            escaped(&Self::hover_data(&buckets, domain)),
        );
        plot.axes(&mut svg, height);
        if let Some(band) = &self.band {
            plot.band(&mut svg, band);
        }
        for reference in &self.references {
            plot.reference(&mut svg, reference);
        }
        for (index, (series, buckets)) in self.series.iter().zip(&buckets).enumerate() {
            let _ = write!(svg, r#"<g style="--c:{}">"#, self.colour(index));
            match &series.errors {
                Some(errors) => plot.dots(&mut svg, &series.points, errors),
                None => plot.curve(&mut svg, buckets, self.series.len() <= 4),
            }
            svg.push_str("</g>");
        }
        for (index, strip) in self.strips.iter().enumerate() {
            let _ = write!(svg, r#"<g style="--c:{}">"#, self.colour(index));
            plot.strip(&mut svg, strip, BOTTOM + 4.0 + index as f64 * STRIP);
            svg.push_str("</g>");
        }
        plot.labels(&mut svg, &self.references, self.band.as_ref());
        if let Some(peak) = peak {
            let _ = write!(
                svg,
                r#"<text class="label" x="{LEFT}" y="{}" dx="4">▲ up to {}</text>"#,
                TOP + 9.0,
                number(peak)
            );
        }
        let _ = write!(svg, r#"<line class="cross" y1="{TOP}" y2="{BOTTOM}" hidden=""/></svg>"#);
        svg
    }

    /// The vertical axis, and the greatest value where a few peaks are left outside so that the rest can be seen.
    fn axis(&self, buckets: &[Vec<Bucket>]) -> (Axis, Option<f64>) {
        let finite = |value: fn(&Bucket) -> f64| {
            let mut values: Vec<f64> = buckets.iter().flatten().map(value).filter(|y| y.is_finite()).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (means, lows, highs) =
            (finite(|bucket| bucket.mean), finite(|bucket| bucket.low), finite(|bucket| bucket.high));
        let (least, common, greatest) = (quantile(&means, 0.0), quantile(&means, 0.97), quantile(&means, 1.0));
        let many = means.len() > 40;
        let peaked = self.scale == Scale::Linear && many && greatest - least > 4.0 * (common - least) && common > least;
        let errors = self.series.iter().flat_map(|series| {
            let pairs = series.points.iter().zip(series.errors.iter().flatten());
            pairs.flat_map(|((_, y), error)| [y - error, y + error])
        });
        // The extremes of neighbouring updates may leave the plot here and there; their means may not.
        let usual = [quantile(&lows, 0.03), if many { quantile(&highs, 0.97) } else { greatest }];
        let marked = self.references.iter().map(|reference| reference.value);
        let band = self.band.iter().flat_map(|band| band.range);
        let shown = means.iter().copied().filter(|y| !peaked || *y <= common);
        let all = shown.chain(usual).chain(errors).chain(marked).chain(band).chain(self.include.iter().copied());
        (Axis::around(all, self.scale), peaked.then(|| quantile(&highs, 1.0)))
    }

    /// What the page's script shows under the pointer.
    fn hover_data(buckets: &[Vec<Bucket>], domain: Domain) -> String {
        let curves = buckets.iter().map(|buckets| {
            let finite = |y: f64| y.is_finite().then(|| number(y));
            let x: Vec<u64> = buckets.iter().map(|bucket| bucket.x.round() as u64).collect();
            json!({ "x": x, "y": buckets.iter().map(|bucket| finite(bucket.mean)).collect::<Vec<_>>() })
        });
        json!({ "domain": domain, "span": [LEFT, RIGHT], "curves": curves.collect::<Vec<_>>() }).to_string()
    }
}

/// The plane of the curves.
struct Plot {
    axis: Axis,
    domain: Domain,
}

impl Plot {
    fn x(&self, value: f64) -> f64 {
        let [first, last] = self.domain;
        let share = if last > first { (value - first) / (last - first) } else { 0.5 };
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    /// Clipped to the plot; a value that is not finite must not come here.
    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.axis.place(value).clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    fn axes(&self, svg: &mut String, height: f64) {
        for (value, text) in self.axis.ticks() {
            let y = self.y(value);
            let _ = write!(svg, r#"<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1}" y2="{y:.1}"/>"#);
            let _ = write!(svg, r#"<text class="tick end" x="{}" y="{:.1}">{text}</text>"#, LEFT - 6.0, y + 3.5);
        }
        for (index, (value, text)) in whole_ticks(self.domain[0], self.domain[1], 4).into_iter().enumerate() {
            let (class, x) = match self.x(value) {
                _ if index == 0 => ("tick", LEFT),
                x if x > RIGHT - 14.0 => ("tick end", RIGHT),
                x => ("tick middle", x),
            };
            let text = if index == 0 { format!("update {text}") } else { text };
            let _ = write!(svg, r#"<text class="{class}" x="{x:.1}" y="{}">{text}</text>"#, height - 6.0);
        }
    }

    fn band(&self, svg: &mut String, band: &Band) {
        let (top, bottom) = (self.y(band.range[1]), self.y(band.range[0]));
        let (width, height) = (RIGHT - LEFT, bottom - top);
        let _ = write!(svg, r#"<rect class="band" x="{LEFT}" y="{top:.1}" width="{width}" height="{height:.1}"/>"#);
    }

    fn reference(&self, svg: &mut String, reference: &Reference) {
        if reference.value.is_finite() {
            let y = self.y(reference.value);
            let _ = write!(svg, r#"<line class="reference" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1}" y2="{y:.1}"/>"#);
        }
    }

    /// The names of lines and band at the right edge, from the lowest up, pushed up where two would overlap.
    fn labels(&self, svg: &mut String, references: &[Reference], band: Option<&Band>) {
        let lines = references.iter().filter(|reference| reference.value.is_finite());
        let mut labels: Vec<(f64, &str)> = lines.map(|line| (self.y(line.value), line.label.as_str())).collect();
        labels.extend(band.map(|band| (self.y(band.range[0]), band.label.as_str())));
        labels.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut free = BOTTOM;
        for (y, label) in labels {
            let y = (y - 4.0).min(free).max(TOP + 9.0);
            free = y - 11.0;
            let _ = write!(svg, r#"<text class="label end" x="{}" y="{y:.1}">{}</text>"#, RIGHT - 4.0, escaped(label));
        }
    }

    /// The mean as a line, the extremes as an area behind it, and a mark where a value was not finite.
    fn curve(&self, svg: &mut String, buckets: &[Bucket], spread: bool) {
        let runs = || buckets.split(|bucket| !bucket.mean.is_finite()).filter(|run| !run.is_empty());
        if spread && buckets.iter().any(|bucket| bucket.high > bucket.low) {
            let area: String = runs().map(|run| self.area(run)).collect();
            let _ = write!(svg, r#"<path class="spread" d="{area}"/>"#);
        }
        let line: String =
            runs().map(|run| line(run.iter().map(|bucket| (self.x(bucket.x), self.y(bucket.mean))))).collect();
        if !line.is_empty() {
            let _ = write!(svg, r#"<path class="curve" d="{line}"/>"#);
        }
        for bucket in buckets.iter().filter(|bucket| bucket.broken) {
            let x = self.x(bucket.x);
            let _ = write!(svg, r#"<path class="broken" d="M{x:.1} {TOP}V{BOTTOM}"/>"#);
        }
    }

    fn area(&self, run: &[Bucket]) -> String {
        let upper = run.iter().map(|bucket| (self.x(bucket.x), self.y(bucket.high)));
        let lower = run.iter().rev().map(|bucket| (self.x(bucket.x), self.y(bucket.low)));
        let mut path = line(upper.chain(lower));
        path.push('Z');
        path
    }

    fn dots(&self, svg: &mut String, points: &[(f64, f64)], errors: &[f64]) {
        let finite = || points.iter().zip(errors).filter(|((_, y), _)| y.is_finite());
        let path = line(finite().map(|((x, y), _)| (self.x(*x), self.y(*y))));
        let _ = write!(svg, r#"<path class="curve" d="{path}"/>"#);
        for ((x, y), error) in finite() {
            let (low, high) = (self.y(y - error), self.y(y + error));
            let (x, y) = (self.x(*x), self.y(*y));
            if error.is_finite() {
                let _ = write!(svg, r#"<path class="whisker" d="M{x:.1} {low:.1}V{high:.1}"/>"#);
            }
            let _ = write!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
        }
    }

    fn strip(&self, svg: &mut String, strip: &Strip, y: f64) {
        let height = STRIP - 4.0;
        let _ = write!(svg, r#"<rect class="off" x="{LEFT}" y="{y}" width="{}" height="{height}"/>"#, RIGHT - LEFT);
        for run in strip.states.chunk_by(|(_, a), (_, b)| a == b).filter(|run| run[0].1) {
            let (first, last) = (self.x(run[0].0), self.x(run[run.len() - 1].0));
            let _ = write!(
                svg,
                r#"<rect class="on" x="{first:.1}" y="{y}" width="{:.1}" height="{height}"/>"#,
                (last - first).max(0.6)
            );
        }
    }
}

/// The value below which a share of sorted values lies; NaN of none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = share * sorted.len().saturating_sub(1) as f64;
    sorted.get(index.round() as usize).copied().unwrap_or(f64::NAN)
}

/// A path through points; a single one is a dot under round line ends.
fn line(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    if !path.contains('L') && !path.is_empty() {
        path.push_str("h0");
    }
    path
}

/// Text for XML, quotes of both kinds included.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(points: Vec<(f64, f64)>) -> String {
        Chart::new(vec![Series::new("loss", points)]).render("loss", [0.0, 10.0])
    }

    fn curve(svg: &str) -> Option<&str> {
        let rest = &svg[svg.find(r#"class="curve" d=""#)? + 17..];
        rest.split('"').next()
    }

    #[test]
    fn a_line_spans_the_plot() {
        let svg = render(vec![(0.0, 0.0), (5.0, 1.0), (10.0, 0.5)]);
        assert_eq!(curve(&svg), Some("M48.0 158.0L218.0 8.0L388.0 83.0"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
    }

    #[test]
    fn a_constant_lies_in_the_middle() {
        let svg = render(vec![(0.0, 0.5), (10.0, 0.5)]);
        assert_eq!(curve(&svg), Some("M48.0 83.0L388.0 83.0"));
    }

    #[test]
    fn nothing_or_nan_alone_draws_axes_only() {
        for points in [vec![], vec![(1.0, f64::NAN), (2.0, f64::INFINITY)]] {
            let svg = render(points);
            assert_eq!(curve(&svg), None);
            assert!(svg.contains("class=\"rule\"") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn nan_splits_a_line_and_is_marked() {
        let svg = render(vec![(0.0, 0.0), (2.0, 1.0), (4.0, f64::NAN), (6.0, 1.0), (8.0, f64::NAN), (10.0, 0.0)]);
        assert_eq!(curve(&svg), Some("M48.0 158.0L116.0 8.0M252.0 8.0h0M388.0 158.0h0"));
        assert_eq!(svg.matches("class=\"broken\"").count(), 2);
    }

    #[test]
    fn one_update_is_a_dot() {
        let svg = Chart::new(vec![Series::new("loss", vec![(7.0, 2.0)])]).render("loss", [7.0, 7.0]);
        assert_eq!(curve(&svg), Some("M218.0 83.0h0"));
    }

    #[test]
    fn a_lone_peak_does_not_flatten_the_rest() {
        let points = (0..100).map(|i| (f64::from(i), if i == 0 { 1e6 } else { 1.0 + f64::from(i % 3) / 10.0 }));
        let svg = Chart::new(vec![Series::new("loss", points.collect())]).render("loss", [0.0, 99.0]);
        assert!(svg.contains("▲ up to 1,000,000"), "{svg}");
        assert!(svg.contains(">1.20<"), "{svg}");
    }

    #[test]
    fn names_cannot_break_out_of_the_markup() {
        let svg = Chart::new(vec![]).render("a'\"<b>&", [0.0, 1.0]);
        assert!(svg.contains("aria-label=\"a&#39;&quot;&lt;b&gt;&amp;\""), "{svg}");
    }
}
