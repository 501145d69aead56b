//! The HTML report: one file, no network, plots as inline SVG.

mod plot;

use std::fmt::Write;

use anyhow::Result;

use crate::experiment::criteria::{self, Over, Verdict};
use crate::experiment::distribution::LEAST_FOR_P999;
use crate::experiment::latency;
use crate::experiment::points::Point;
use crate::experiment::results::{Outcome, Row, p99_interval, p999, thousands};
use plot::{Bar, Curve};

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2430; max-width: 76rem; margin: 2.5rem auto;
  padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .25rem; } h2 { font-size: 1.2rem; margin-top: 2.25rem; }
table { border-collapse: collapse; width: 100%; font-size: .8rem; }
th, td { padding: .3rem .4rem; text-align: right; border-bottom: 1px solid #dde1e8;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: #5b6472; font-weight: 600; white-space: normal; vertical-align: bottom; } th:first-child, td:first-child, .left { text-align: left; }
td.left { white-space: normal; }
.range, .detail { color: #6b7482; } .detail { font-size: .8rem; }
.ok { color: #1a7f46; font-weight: 600; } .short { color: #b3261e; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; color: #5b6472; font-size: .85rem; }
.key i { display: inline-block; width: 1.1rem; height: .2rem; margin-right: .4rem;
  vertical-align: middle; }
figure { margin: 0; } figcaption { color: #5b6472; font-size: .85rem; }
svg { width: 100%; height: auto; } .scroll { overflow-x: auto; }
";

/// The report.
pub fn html(outcome: &Outcome) -> Result<String> {
    let mut page = String::new();
    let title = escape(&outcome.plan.title);
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n\
         <p>{}</p>\n",
        escape(&outcome.plan.claim)
    )?;
    if outcome.results.quick {
        page.push_str("<p class=\"short\">A quick run: these numbers say little.</p>\n");
    }
    verdicts(&mut page, &outcome.verdicts)?;
    plots(&mut page, outcome)?;
    page.push_str("<h2>All numbers</h2>\n");
    table(&mut page, outcome)?;
    page.push_str("<h2>What was compared</h2>\n<div class=\"scroll\"><table>");
    for config in &outcome.plan.configs {
        writeln!(
            page,
            "<tr><td>{}</td><td class=\"left\">{}</td></tr>",
            escape(config.name),
            escape(&config.what)
        )?;
    }
    page.push_str("</table></div>\n<h2>How it was measured</h2>\n");
    let results = &outcome.results;
    let statistics = format!(
        "Percentiles are those of all samples of all rounds together; the 95 % interval of p99 is \
         that of its order statistics (the number of samples above a quantile is binomial), which \
         takes requests for independent: beside it stand the smallest and largest p99 of a round. \
         Where the kernel's hash chooses the sockets each round is another draw, and there is no \
         such interval. \
         Intervals of ratios are Student's t on the logarithms of the rounds' ratios, so of their \
         geometric mean; those of the \
         max load come from a bootstrap over the rounds. p99.9 is shown where there are at least \
         {LEAST_FOR_P999} samples."
    );
    let others = match results.further_commits.as_slice() {
        [] => String::new(),
        commits => format!(" Some runs were made in the folder of {}.", commits.join(", ")),
    };
    let seed = format!("Seed {}. {}.{others}", results.seed, results.environment.sentence());
    let programs = results.environment.programs.iter().chain(&results.policies);
    let hashes: Vec<String> =
        programs.map(|(name, hash)| format!("{name} {}", &hash[..hash.len().min(12)])).collect();
    let hashes = format!("SHA-256 begin with: {}.", hashes.join(", "));
    let paragraphs = results.calibrations.iter().chain(&outcome.plan.notes);
    for paragraph in paragraphs.chain([&statistics, &seed, &hashes]) {
        writeln!(page, "<p>{}</p>", escape(paragraph))?;
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn verdicts(page: &mut String, verdicts: &[Verdict]) -> Result<()> {
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>criterion</th><th>measured</th><th>95&nbsp;%</th>\
         <th>bound</th><th></th></tr>\n",
    );
    for verdict in verdicts {
        let mark = verdict.mark().trim();
        writeln!(
            page,
            "<tr><td class=\"left\">{}<br><span class=\"detail\">{}</span></td><td>{}</td>\
             <td class=\"range\">{}</td><td>{}{}</td><td class=\"{mark}\">{mark}</td></tr>",
            escape(&verdict.text),
            escape(&verdict.detail),
            verdict.shown(),
            verdict.interval.map_or(String::new(), |(low, high)| {
                format!("{}..{}", criteria::number(low), criteria::number(high))
            }),
            escape(&verdict.bound.text()),
            verdict.low_end.map_or(String::new(), |low| format!(", lower end {low}")),
        )?;
    }
    page.push_str("</table></div>\n");
    Ok(())
}

fn plots(page: &mut String, outcome: &Outcome) -> Result<()> {
    let points = &outcome.points;
    let slo = outcome.plan.slo;
    let twins = outcome.results.rows.iter().any(|row| row.simulated_p99_us.is_some());
    let sweep = outcome.plan.configs.iter().any(|c| outcome.plan.loads_of(c).len() > 1);
    let simulated = if twins { "; dashed: simulated" } else { "" };
    let mean = slo_over(outcome) == Over::Mean;
    page.push_str("<p class=\"key\">");
    for (place, config) in outcome.plan.configs.iter().enumerate() {
        let (colour, name) = (plot::css_colour(place), escape(config.name));
        write!(page, "<span><i style=\"background: {colour}\"></i>{name}</span> ")?;
    }
    page.push_str("</p>\n<div class=\"plots\">\n");
    if sweep {
        for class in &points.classes {
            let line = slo.filter(|slo| slo.class == *class).map(|slo| slo.us);
            figure(
                page,
                &plot::latency_against_load(&curves(outcome, class), line)?,
                &format!(
                    "{class} p99 against load{}; bars: smallest and largest round{simulated}{}",
                    if mean { " (mean of the rounds)" } else { "" },
                    if line.is_some() { "; red: the objective" } else { "" }
                ),
            )?;
        }
        if let Some(slo) = slo {
            let bars: Vec<Bar> = outcome
                .plan
                .configs
                .iter()
                .enumerate()
                .filter(|(_, config)| outcome.plan.loads_of(config).len() > 1)
                .filter_map(|(place, config)| {
                    let found = criteria::max_load_of(points, config.name, &slo, slo_over(outcome));
                    let (load, (low, high)) = found?;
                    Some(Bar {
                        place,
                        name: config.name.to_owned(),
                        load: load.low,
                        crossed: load.high.is_finite(),
                        low: low.low,
                        high: high.low,
                    })
                })
                .collect();
            figure(
                page,
                &plot::max_loads(&bars)?,
                &format!(
                    "Largest load with {}{}; whiskers: 95 %, from a bootstrap over the rounds; an \
                     open bar: at all loads; none: at no load",
                    if mean { "mean " } else { "" },
                    slo.text()
                ),
            )?;
        }
    }
    for &load in &outcome.plan.closeups {
        for (class, name) in points.classes.iter().enumerate() {
            let at: Vec<(usize, &Point)> = outcome
                .plan
                .configs
                .iter()
                .enumerate()
                .filter_map(|(place, config)| Some((place, points.get(config.name, load)?)))
                .filter(|(_, point)| point.pooled(class).samples() > 0)
                .collect();
            if !at.is_empty() {
                figure(
                    page,
                    &plot::distributions(&at, class)?,
                    &format!(
                        "{name} latency at {}/s: share of requests that took longer{simulated}",
                        thousands(load)
                    ),
                )?;
            }
        }
    }
    page.push_str("</div>\n");
    Ok(())
}

/// How the criterion on the objective puts the rounds together.
fn slo_over(outcome: &Outcome) -> Over {
    let over = outcome.plan.criteria.iter().find_map(|criterion| match criterion {
        criteria::Criterion::MaxLoad { over, .. } => Some(*over),
        _ => None,
    });
    over.unwrap_or(Over::Pooled)
}

fn curves(outcome: &Outcome, class: &str) -> Vec<Curve> {
    let mean = slo_over(outcome) == Over::Mean;
    let configs = outcome.plan.configs.iter();
    configs
        .map(|config| {
            let rows = outcome.results.rows.iter();
            let rows: Vec<&Row> =
                rows.filter(|row| row.config == config.name && row.class == class).collect();
            Curve {
                measured: rows
                    .iter()
                    .map(|row| {
                        let middle = if mean { row.p99_mean_us } else { row.p99_us };
                        (row.load_rps, middle, row.p99_min_us, row.p99_max_us)
                    })
                    .collect(),
                simulated: rows
                    .iter()
                    .filter_map(|row| {
                        let twin = match mean {
                            true => row.simulated_p99_mean_us,
                            false => row.simulated_p99_us,
                        };
                        Some((row.load_rps, twin?))
                    })
                    .collect(),
            }
        })
        .collect()
}

fn table(page: &mut String, outcome: &Outcome) -> Result<()> {
    let rows = &outcome.results.rows;
    let twins = rows.iter().any(|row| row.simulated_p99_us.is_some());
    let packets = rows.iter().any(|row| row.packet_ns.is_some());
    let rescues = rows.iter().any(|row| row.rescued > 0);
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>configuration</th><th>load/s</th><th>class</th>\
         <th>p50</th><th>p99</th><th>95&nbsp;% of p99</th><th>rounds</th><th>rounds' p99</th>\
         <th>p99.9</th><th>n</th><th>replies/s</th><th>drops</th><th>kept</th><th>sender late</th>\
         <th>overslept</th>",
    );
    if twins {
        page.push_str("<th>simulated p99</th>");
    }
    if packets {
        page.push_str("<th>ns/packet</th>");
    }
    if rescues {
        page.push_str("<th>rescued</th>");
    }
    page.push_str("</tr>\n");
    for row in rows {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"range\">{}</td><td>{}</td><td class=\"range\">{}..{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{:.0}&nbsp;%</td><td>{:.1}&nbsp;%</td>\
             <td>{:.1}&nbsp;%</td>",
            escape(&row.config),
            thousands(row.load_rps),
            escape(&row.class),
            latency(row.p50_us),
            latency(row.p99_us),
            p99_interval(row),
            row.rounds,
            latency(row.p99_min_us),
            latency(row.p99_max_us),
            p999(row),
            thousands(row.n as f64),
            thousands(row.throughput_rps),
            thousands(row.drops_total as f64),
            row.kept_share * 100.0,
            row.late_sender_share * 100.0,
            row.overslept_share * 100.0,
        )?;
        if twins {
            let twin = row.simulated_p99_us.map_or(String::new(), latency);
            let full = match row.saturated_rounds {
                0 => String::new(),
                rounds if rounds == row.rounds => " (saturated)".to_owned(),
                rounds => format!(" ({rounds} rounds saturated)"),
            };
            write!(page, "<td class=\"range\">{twin}{full}</td>")?;
        }
        if packets {
            let ns = row.packet_ns.map_or(String::new(), |ns| format!("{ns:.0}"));
            write!(page, "<td>{ns}</td>")?;
        }
        if rescues {
            write!(page, "<td>{}</td>", row.rescued)?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    Ok(())
}

fn figure(page: &mut String, svg: &str, caption: &str) -> Result<()> {
    writeln!(page, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption))?;
    Ok(())
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
