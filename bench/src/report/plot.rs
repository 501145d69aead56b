//! Plots as SVG text.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::experiment::points::Point;

const SIZE: (u32, u32) = (680, 440);
const FONT: &str = "system-ui, sans-serif";
const TEXT: RGBColor = RGBColor(91, 100, 114);
const GRID: RGBColor = RGBColor(226, 230, 236);
const OBJECTIVE: RGBColor = RGBColor(213, 60, 40);

/// Distinct also for readers who do not see red and green.
const COLOURS: [RGBColor; 8] = [
    RGBColor(120, 128, 140),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(160, 110, 60),
    RGBColor(110, 80, 190),
];

/// A configuration in a plot of latency against load.
pub struct Curve {
    /// Load, latency, and the smallest and largest of a round.
    pub measured: Vec<(f64, f64, f64, f64)>,
    /// Load and latency.
    pub simulated: Vec<(f64, f64)>,
}

/// A configuration in a plot of loads.
pub struct Bar {
    /// Its place among the configurations, which decides its colour.
    pub place: usize,
    /// Its name.
    pub name: String,
    /// The load; 0 if even the smallest was too much.
    pub load: f64,
    /// Whether it is known: else it is at least this.
    pub crossed: bool,
    /// Interval.
    pub low: f64,
    /// Interval.
    pub high: f64,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Latency against load, measured and simulated, with the objective in us.
pub fn latency_against_load(curves: &[Curve], objective: Option<f64>) -> Result<String> {
    drawn(|svg| draw_curves(svg, curves, objective))
}

/// The largest load of each configuration.
pub fn max_loads(bars: &[Bar]) -> Result<String> {
    drawn(|svg| draw_max_loads(svg, bars))
}

/// Share of requests of a class above a latency, both axes logarithmic. Points
/// come with their places, which decide their colours.
pub fn distributions(points: &[(usize, &Point)], class: usize) -> Result<String> {
    drawn(|svg| draw_distributions(svg, points, class))
}

fn drawn(draw: impl FnOnce(&mut String) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg).map_err(|error| anyhow!("{error}"))?;
    Ok(svg)
}

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

/// The colour of the configuration at a place, as CSS has it. The page explains the
/// colours once: a legend inside a plot hides what it explains.
pub fn css_colour(place: usize) -> String {
    let RGBColor(red, green, blue) = colour(place);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn draw_curves(svg: &mut String, curves: &[Curve], objective: Option<f64>) -> Drawn {
    let measured = curves.iter().flat_map(|curve| &curve.measured);
    let (low, high) = decades(
        measured
            .clone()
            .flat_map(|&(_, _, min, max)| [min, max])
            .chain(curves.iter().flat_map(|curve| &curve.simulated).map(|&(_, us)| us))
            .chain(objective),
    );
    let most = measured.map(|&(load, ..)| load).fold(1.0, f64::max) * 1.04;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..most, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_label_style((FONT, 16).into_font().color(&TEXT))
        .y_label_style((FONT, 16).into_font().color(&TEXT))
        .x_label_formatter(&|load: &f64| per_second(*load))
        .y_label_formatter(&|us: &f64| axis_latency(*us))
        .draw()?;
    if let Some(us) = objective {
        chart.draw_series([PathElement::new(
            vec![(0.0, us), (most, us)],
            OBJECTIVE.stroke_width(1),
        )])?;
    }
    for (place, curve) in curves.iter().enumerate() {
        let colour = colour(place);
        chart.draw_series(DashedLineSeries::new(
            curve.simulated.iter().copied(),
            5,
            4,
            colour.stroke_width(1),
        ))?;
        chart.draw_series(curve.measured.iter().map(|&(load, _, min, max)| {
            PathElement::new(vec![(load, min), (load, max)], colour.mix(0.5).stroke_width(1))
        }))?;
        let line: Vec<(f64, f64)> =
            curve.measured.iter().map(|&(load, us, ..)| (load, us)).collect();
        chart.draw_series(line.iter().map(|&at| Circle::new(at, 4, colour.filled())))?;
        chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
    }
    root.present()?;
    Ok(())
}

fn draw_max_loads(svg: &mut String, bars: &[Bar]) -> Drawn {
    let most = bars.iter().map(|bar| bar.load.max(bar.high)).fold(1.0, f64::max) * 1.12;
    // Characters of some 7 pixels below each bar.
    let room = (SIZE.0 as usize - 90) / bars.len().max(1) / 7;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..bars.len().max(1) as f64, 0.0..most)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .y_label_style((FONT, 16).into_font().color(&TEXT))
        .y_label_formatter(&|load: &f64| per_second(*load))
        .draw()?;
    for (place, bar) in bars.iter().enumerate() {
        let (left, middle) = (place as f64, place as f64 + 0.5);
        let style = match bar.crossed {
            true => colour(bar.place).filled(),
            false => colour(bar.place).stroke_width(2),
        };
        let corners = [(left + 0.2, 0.0), (left + 0.8, bar.load)];
        chart.draw_series([Rectangle::new(corners, style)])?;
        chart.draw_series([PathElement::new(
            vec![(middle, bar.low), (middle, bar.high)],
            BLACK.mix(0.6).stroke_width(1),
        )])?;
        let font =
            |size, at: VPos| (FONT, size).into_font().color(&TEXT).pos(Pos::new(HPos::Center, at));
        let top = bar.load.max(bar.high);
        chart.draw_series([EmptyElement::at((middle, top))
            + Text::new(
                if bar.load > 0.0 { per_second(bar.load) } else { "none".to_owned() },
                (0, -5),
                font(15, VPos::Bottom),
            )])?;
        for (line, text) in name_lines(&bar.name, room).into_iter().enumerate() {
            chart.draw_series([EmptyElement::at((middle, 0.0))
                + Text::new(text, (0, 6 + 14 * line as i32), font(13, VPos::Top))])?;
        }
    }
    root.present()?;
    Ok(())
}

fn draw_distributions(svg: &mut String, points: &[(usize, &Point)], class: usize) -> Drawn {
    // Fewer samples than this many do not make a curve.
    const LEAST: f64 = 5e-4;
    let lines: Vec<_> = points
        .iter()
        .map(|&(place, point)| {
            let all = point.pooled(class);
            let twin = point.pooled_twin(class).map(|twin| twin.exceedance()).unwrap_or_default();
            (place, all.exceedance(), twin)
        })
        .collect();
    let (low, high) = decades(
        lines.iter().flat_map(|(_, line, twin)| line.iter().chain(twin)).map(|&(us, _)| us),
    );
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
        .x_label_formatter(&|us: &f64| axis_latency(*us))
        .y_label_formatter(&|share: &f64| format!("{}\u{202f}%", short_number(share * 100.0)))
        .draw()?;
    for (place, line, twin) in lines {
        let colour = colour(place);
        let shown = |line: Vec<(f64, f64)>| {
            line.into_iter().map(|(us, share)| (us, share.max(LEAST))).collect::<Vec<_>>()
        };
        chart.draw_series(DashedLineSeries::new(shown(twin), 5, 4, colour.stroke_width(1)))?;
        chart.draw_series(LineSeries::new(shown(line), colour.stroke_width(2)))?;
    }
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

/// A bar has little room: a long name goes on below, from one of its hyphens on.
fn name_lines(config: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in config.split_inclusive('-') {
        match lines.last_mut() {
            Some(line) if line.len() + part.len() <= room => line.push_str(part),
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

/// A load with its unit.
fn per_second(load: f64) -> String {
    match load {
        load if load >= 1e6 => format!("{}\u{202f}M/s", short_number(load / 1e6)),
        load if load >= 1e3 => format!("{}\u{202f}K/s", short_number(load / 1e3)),
        load => format!("{}/s", short_number(load)),
    }
}

/// Where an axis spans one decade, the marks in between come too close for labels.
fn axis_latency(us: f64) -> String {
    let leading = us / 10f64.powf(us.log10().floor());
    match [1.0, 2.0, 5.0, 10.0].iter().any(|shown| (leading - shown).abs() < 0.01) {
        true => round_latency(us),
        false => String::new(),
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
    fn long_names_are_broken_at_hyphens() {
        assert_eq!(name_lines("both", 12), ["both"]);
        assert_eq!(name_lines("round-robin", 12), ["round-robin"]);
        assert_eq!(name_lines("scan-avoid-long-slice", 12), ["scan-avoid-", "long-slice"]);
        assert_eq!(name_lines("both-no-preemption", 12), ["both-no-", "preemption"]);
        assert_eq!(name_lines("both-no-preemption", 7), ["both-", "no-", "preemption"]);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(round_latency(1000.0), "1\u{202f}ms");
        assert_eq!(round_latency(20.0), "20\u{202f}us");
        assert_eq!(round_latency(5e6), "5\u{202f}s");
        assert_eq!(axis_latency(500.0), round_latency(500.0));
        assert_eq!(axis_latency(1000.0), round_latency(1000.0));
        assert_eq!(axis_latency(600.0), "");
        assert_eq!(per_second(440_000.0), "440\u{202f}K/s");
        assert_eq!(per_second(0.0), "0/s");
        assert_eq!(short_number(0.05), "0.05");
        assert_eq!(short_number(100.0), "100");
    }
}
