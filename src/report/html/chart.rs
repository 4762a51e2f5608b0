//! Line charts as inline SVG. Lines differ in colour and in dashes, so that they can be told apart without colour.

use super::thin::{Point, is_noisy, smooth, thin};
use maud::{Markup, html};

/// Points per curve.
pub const MOST_POINTS: usize = 1000;
/// Colours and dash patterns there are; lines beyond start again.
const STYLES: usize = 6;
/// Drawing area on a canvas of 560 x 250.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 536.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 218.0;

/// Curves over one axis.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// What lies along the lower axis.
    pub x_label: String,
    /// The curves.
    pub lines: Vec<Line>,
    /// Never a logarithmic axis.
    pub linear: bool,
}

/// One curve.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points by x. Values that are no numbers are left out and counted.
    pub points: Vec<Point>,
    /// Number of its colour and dashes; the same thing keeps its number from chart to chart.
    pub style: usize,
}

/// One axis: which value lies where.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Places of `low` and `high` on the canvas.
    places: (f64, f64),
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, logarithmic: bool, places: (f64, f64)) -> Option<Self> {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if !(low.is_finite() && high.is_finite()) {
            return None;
        }
        // A single value gets room on both sides.
        let room = if high > low { 0.0 } else { (0.5 * low.abs()).max(f64::MIN_POSITIVE.sqrt()) };
        Some(Self { low: low - room, high: high + room, logarithmic: logarithmic && room == 0.0, places })
    }

    fn at(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.logarithmic { v.ln() } else { v };
        let share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        self.places.0 + share * (self.places.1 - self.places.0)
    }

    /// The distance of round values, about `count` of them on the axis.
    fn step(&self, count: usize) -> f64 {
        let rough = (self.high - self.low) / count as f64;
        let decade = 10f64.powf(rough.log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade).into_iter().find(|step| *step >= rough).unwrap_or(rough)
    }

    /// Ends at round values; logarithmic axes stay.
    fn rounded(self, count: usize) -> Self {
        let step = self.step(count);
        let (low, high) = ((self.low / step).floor() * step, (self.high / step - 1e-9).ceil() * step);
        if self.logarithmic || !(low.is_finite() && high.is_finite()) { self } else { Self { low, high, ..self } }
    }

    /// Round values within the axis, about `count` of them.
    fn ticks(&self, count: usize) -> Vec<f64> {
        if self.logarithmic {
            let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
            let factors: &[f64] = if decades.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all = decades.flat_map(|decade| factors.iter().map(move |factor| factor * 10f64.powi(decade)));
            return all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let step = self.step(count);
        let (first, last) = ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        (first..=last.min(first + 20)).map(|i| i as f64 * step).collect()
    }
}

/// A number as short as it can be read: `0.05`, `1200`, `2e-5`.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e6).contains(&size) => {
            let text = format!("{value:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        size => {
            let decimals = (2 - size.log10().floor() as i32).clamp(0, 6) as usize;
            let text = format!("{value:.decimals$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
        }
    }
}

/// Curves with axes; a noisy one is drawn faintly with its moving mean on top. The y axis is logarithmic, and says so, where
/// all values are positive and most of them span more than a factor of 30.
pub fn chart(chart: &Chart) -> Markup {
    let all = || chart.lines.iter().flat_map(|line| &line.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let mut values: Vec<f64> = all().map(|point| point.1).collect();
    values.sort_by(f64::total_cmp);
    let quantile = |share: f64| values.get((share * values.len() as f64) as usize).copied().unwrap_or_default();
    let logarithmic = !chart.linear && quantile(0.0) > 0.0 && quantile(0.95) / quantile(0.05) > 30.0;
    let y = Axis::new(values.iter().copied(), logarithmic, (BOTTOM, TOP)).map(|axis| axis.rounded(5));
    let axes = Axis::new(all().map(|point| point.0), false, (LEFT, RIGHT)).zip(y);
    let lost: usize = chart.lines.iter().flat_map(|line| &line.points).filter(|(_, y)| !y.is_finite()).count();
    html! {
        figure.chart {
            figcaption {
                strong { (chart.title) }
                @if logarithmic { small { " logarithmic" } }
                @if lost > 0 { small { " left out: " (lost) " not a number" } }
            }
            @match axes {
                None => p.none { "No values." },
                Some((x, y)) => {
                    (drawing(chart, x, y))
                    (legend(chart))
                },
            }
        }
    }
}

fn drawing(chart: &Chart, x: Axis, y: Axis) -> Markup {
    let label = format!("{} over {}", chart.title, chart.x_label);
    let scale = |axis: &Axis| format!("{} {} {} {}", axis.low, axis.high, axis.places.0, axis.places.1);
    html! {
        div.scroll {
            svg viewBox="0 0 560 250" role="img" aria-label=(label) data-x=(scale(&x)) data-y=(scale(&y))
                data-log=[y.logarithmic.then_some("1")] {
                @for tick in y.ticks(5) {
                    line.grid x1=(LEFT) x2=(RIGHT) y1=(round(y.at(tick))) y2=(round(y.at(tick))) {}
                    text x=(LEFT - 7.0) y=(round(y.at(tick) + 4.0)) text-anchor="end" { (short(tick)) }
                }
                line.axis x1=(LEFT) x2=(RIGHT) y1=(BOTTOM) y2=(BOTTOM) {}
                @for tick in x.ticks(6) {
                    text x=(round(x.at(tick))) y=(BOTTOM + 16.0) text-anchor="middle" { (short(tick)) }
                }
                text.label x=(RIGHT) y=(BOTTOM + 30.0) text-anchor="end" { (chart.x_label) }
                @for line in &chart.lines { (curve(line, x, y)) }
            }
        }
    }
}

fn curve(line: &Line, x: Axis, y: Axis) -> Markup {
    let style = line.style % STYLES;
    let noisy = is_noisy(&line.points);
    let path = |points: &[Point]| {
        let place = |(at, (px, py)): (usize, &Point)| {
            format!("{}{} {}", if at == 0 { 'M' } else { 'L' }, round(x.at(*px)), round(y.at(*py)))
        };
        points.iter().enumerate().map(place).collect::<String>()
    };
    let raw = thin(&line.points, MOST_POINTS);
    let mean = if noisy { thin(&smooth(&line.points, line.points.len() / 25), MOST_POINTS) } else { Vec::new() };
    html! {
        g class={ "s" (style) } {
            @if let [(px, py)] = raw.as_slice() { circle cx=(round(x.at(*px))) cy=(round(y.at(*py))) r="3" {} }
            @else if noisy {
                path.raw d=(path(&raw)) {}
                path.line d=(path(&mean)) data-name=(line.name) {}
            } @else {
                path.line d=(path(&raw)) data-name=(line.name) {}
            }
        }
    }
}

/// The lines by name with their last values (of noisy ones the mean of the last twenty-fifth).
fn legend(chart: &Chart) -> Markup {
    let last = |line: &Line| {
        let finite: Vec<f64> = line.points.iter().map(|(_, y)| *y).filter(|y| y.is_finite()).collect();
        let count = if is_noisy(&line.points) { (finite.len() / 25).max(1) } else { 1 };
        let end = &finite[finite.len().saturating_sub(count)..];
        if end.is_empty() { "–".into() } else { short(end.iter().sum::<f64>() / end.len() as f64) }
    };
    html! {
        ul.lines {
            @for line in &chart.lines {
                li {
                    svg.key viewBox="0 0 28 8" aria-hidden="true" { g class={ "s" (line.style % STYLES) } { path.line d="M1 4L27 4" {} } }
                    (line.name) " " span.n { (last(line)) }
                }
            }
        }
    }
}

fn round(place: f64) -> f64 {
    (place * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(points: &[Point]) -> String {
        let lines = vec![Line { name: "<loss>".into(), points: points.to_vec(), style: 7 }];
        chart(&Chart { title: "Loss".into(), x_label: "step".into(), lines, linear: false }).into_string()
    }

    /// All numbers of all paths.
    fn places(svg: &str) -> Vec<f64> {
        let paths = svg.split(" d=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let drawn = paths.filter(|path| *path != "M1 4L27 4");
        drawn.flat_map(|path| path.split(['M', 'L', ' '])).filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn nothing_to_draw_is_said() {
        for points in [&[][..], &[(1.0, f64::NAN)], &[(1.0, f64::INFINITY), (2.0, f64::NAN)]] {
            let text = of(points);
            assert!(text.contains("No values.") && !text.contains("<svg"), "{text}");
        }
        assert!(of(&[(1.0, f64::NAN)]).contains("left out: 1 not a number"));
    }

    #[test]
    fn one_point_and_flat_lines_have_a_place() {
        for points in [&[(3.0, 0.0)][..], &[(3.0, 7.0)], &[(1.0, 2.0), (2.0, 2.0)], &[(1.0, -1e300), (2.0, 1e300)]] {
            let text = of(points);
            assert!(text.contains("<svg") && !text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        assert!(of(&[(3.0, 7.0)]).contains("<circle"));
    }

    #[test]
    fn curves_stay_within_the_canvas() {
        let points: Vec<Point> = (0..5000).map(|i| (f64::from(i), (f64::from(i) * 0.7).sin() + 3.0)).collect();
        let text = of(&points);
        assert!(text.contains("class=\"raw\"") && !text.contains("<loss>"), "a noisy curve gets its mean");
        let numbers = places(&text);
        assert!(numbers.len() > 1000 && numbers.len() <= 4 * MOST_POINTS, "{}", numbers.len());
        for point in numbers.chunks(2) {
            assert!((LEFT..=RIGHT).contains(&point[0]) && (TOP..=BOTTOM).contains(&point[1]), "{point:?}");
        }
        let wide = of(&[(1.0, 1e-3), (2.0, 50.0)]);
        assert!(wide.contains("logarithmic") && wide.contains(">0.01<"), "{wide}");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.05, 0.535170, 12.345, 1200.0, 40_000.0, 2e-5, 4.000001e-7, -0.5, 2.5e7].map(short);
        assert_eq!(texts, ["0", "0.05", "0.535", "12.3", "1200", "40000", "2e-5", "4e-7", "-0.5", "2.5e7"]);
    }
}
