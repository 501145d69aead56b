//! Plots as SVG text.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::experiment::{Point, latency};
use crate::load::ClassSummary;
use crate::wire::Class;

const SIZE: (u32, u32) = (680, 440);
const FONT: &str = "system-ui, sans-serif";
const TEXT: RGBColor = RGBColor(91, 100, 114);
const GRID: RGBColor = RGBColor(226, 230, 236);

/// Distinct also for readers who do not see red and green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(120, 128, 140),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

type Number = fn(&ClassSummary) -> f64;
/// p50, p99, p99.9: how strong their colour is, and whether they have a label.
const NUMBERS: [(Number, f64, bool); 3] = [
    (|class| class.p50_us, 0.35, true),
    (|class| class.p99_us, 1.0, true),
    (|class| class.p999_us, 0.6, false),
];

/// p50, p99 and p99.9 of each configuration, on a logarithmic scale.
pub fn bars(points: &[&Point], simulated: &[Option<&Point>], class: Class) -> Result<String> {
    let mut svg = String::new();
    draw_bars(&mut svg, points, simulated, class).map_err(|error| anyhow!("{error}"))?;
    Ok(svg)
}

/// Share of requests above a latency, both axes logarithmic.
pub fn distribution(points: &[&Point], class: Class) -> Result<String> {
    let mut svg = String::new();
    draw_distribution(&mut svg, points, class).map_err(|error| anyhow!("{error}"))?;
    Ok(svg)
}

/// Place among the points (for the colour), the point, share and latency.
type Curve<'a> = (usize, &'a Point, Vec<(f64, f64)>);

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_bars(
    svg: &mut String,
    points: &[&Point],
    simulated: &[Option<&Point>],
    class: Class,
) -> Drawn {
    let (low, high) = decades(points.iter().chain(simulated.iter().flatten()).flat_map(|point| {
        NUMBERS.iter().flat_map(|(number, _, _)| {
            let spread = point.spread(class, number);
            [spread.min, spread.max]
        })
    }));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let groups = points.len().max(1) as f64;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .margin_top(28)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..groups, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .y_label_style((FONT, 16).into_font().color(&TEXT))
        .y_label_formatter(&|us: &f64| round_latency(*us))
        .draw()?;

    let width = 0.8 / NUMBERS.len() as f64;
    for (group, point) in points.iter().enumerate() {
        let colour = COLOURS[group % COLOURS.len()];
        for (place, (number, strength, labelled)) in NUMBERS.iter().enumerate() {
            let spread = point.spread(class, number);
            if spread.median <= 0.0 {
                continue;
            }
            let left = group as f64 + 0.1 + place as f64 * width;
            let middle = left + width / 2.0;
            chart.draw_series([Rectangle::new(
                [(left + 0.01, low), (left + width - 0.01, spread.median)],
                colour.mix(*strength).filled(),
            )])?;
            chart.draw_series([PathElement::new(
                vec![(middle, spread.min.max(low)), (middle, spread.max)],
                BLACK.mix(0.6).stroke_width(1),
            )])?;
            let twin = simulated.get(group).copied().flatten();
            if let Some(twin) = twin.map(|twin| twin.spread(class, number).median) {
                chart.draw_series([EmptyElement::at((middle, twin.max(low)))
                    + Polygon::new(vec![(0, -6), (6, 0), (0, 6), (-6, 0)], WHITE.filled())
                    + PathElement::new(
                        vec![(0, -6), (6, 0), (0, 6), (-6, 0), (0, -6)],
                        BLACK.stroke_width(1),
                    )])?;
            }
            // p99.9 is in the table; its label would collide with that of p99.
            if *labelled {
                let label =
                    (FONT, 14).into_font().color(&TEXT).pos(Pos::new(HPos::Center, VPos::Bottom));
                chart.draw_series([EmptyElement::at((middle, spread.max))
                    + Text::new(latency(spread.median), (0, -5), label)])?;
            }
        }
        let label = (FONT, 16).into_font().color(&TEXT).pos(Pos::new(HPos::Center, VPos::Top));
        for (line, text) in name_lines(&point.config).into_iter().enumerate() {
            chart.draw_series([EmptyElement::at((group as f64 + 0.5, low))
                + Text::new(text, (0, 6 + 17 * line as i32), label.clone())])?;
        }
    }
    root.present()?;
    Ok(())
}

fn draw_distribution(svg: &mut String, points: &[&Point], class: Class) -> Drawn {
    let lines: Vec<Curve> = points
        .iter()
        .enumerate()
        .map(|(place, &point)| (place, point, point.distribution(class)))
        .filter(|(_, _, line)| !line.is_empty())
        .collect();
    let (low, high) = decades(lines.iter().flat_map(|(_, _, line)| line.iter().map(|&(_, us)| us)));
    // The largest sample has share 0, which a logarithmic axis does not have.
    const LEAST: f64 = 5e-4;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d((low..high).log_scale(), (LEAST..1.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_label_style((FONT, 16).into_font().color(&TEXT))
        .y_label_style((FONT, 16).into_font().color(&TEXT))
        .x_label_formatter(&|us: &f64| round_latency(*us))
        .y_label_formatter(&|share: &f64| format!("{}\u{202f}%", short_number(share * 100.0)))
        .draw()?;
    // The corner that the curves leave free: fast ones go down on the left.
    let left_of = |us: f64| (us / low).ln() / (high / low).ln();
    let fastest = lines
        .iter()
        .filter_map(|(_, _, line)| line.iter().find(|&&(quantile, _)| quantile >= 0.99))
        .fold(1.0, |least: f64, &(_, us)| least.min(left_of(us)));
    let corner = match fastest < 0.55 {
        true => SeriesLabelPosition::UpperRight,
        false => SeriesLabelPosition::LowerLeft,
    };
    for (place, point, line) in lines {
        let colour = COLOURS[place % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(
                line.iter().map(|&(quantile, us)| (us, (1.0 - quantile).max(LEAST))),
                colour.stroke_width(2),
            ))?
            .label(point.config.clone())
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(3))
            });
    }
    chart
        .configure_series_labels()
        .position(corner)
        .background_style(WHITE.mix(0.85))
        .label_font((FONT, 16).into_font().color(&TEXT))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Whole decades around the values above 0, at least one.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for value in values.filter(|value| *value > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    if high == 0.0 {
        return (1.0, 10.0);
    }
    let low = 10f64.powf((low * 0.9).log10().floor());
    let high = 10f64.powf((high * 1.1).log10().ceil());
    (low, high.max(low * 10.0))
}

/// A bar group has little room: variants of a configuration go below its name.
fn name_lines(config: &str) -> Vec<String> {
    match config.strip_suffix("-long-slice") {
        Some(name) => vec![name.to_owned(), "long slice".to_owned()],
        None => vec![config.to_owned()],
    }
}

fn round_latency(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{}\u{202f}s", short_number(us / 1e6)),
        us if us >= 1e3 => format!("{}\u{202f}ms", short_number(us / 1e3)),
        us => format!("{}\u{202f}us", short_number(us)),
    }
}

/// Up to three significant digits, without trailing zeros.
fn short_number(number: f64) -> String {
    let digits = (2 - number.abs().max(1e-9).log10().floor() as i32).max(0) as usize;
    let text = format!("{number:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_span_whole_decades() {
        assert_eq!(decades([20.0, 3000.0].into_iter()), (10.0, 10_000.0));
        assert_eq!(decades([0.0].into_iter()), (1.0, 10.0));
        assert_eq!(decades([50.0].into_iter()), (10.0, 100.0));
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(round_latency(1000.0), "1\u{202f}ms");
        assert_eq!(round_latency(20.0), "20\u{202f}us");
        assert_eq!(round_latency(5e6), "5\u{202f}s");
        assert_eq!(short_number(0.05), "0.05");
        assert_eq!(short_number(100.0), "100");
    }
}
