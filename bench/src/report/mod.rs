//! The HTML report: one file, no network, plots as inline SVG.

mod plot;

use std::fmt::Write;

use anyhow::Result;

use crate::experiment::criteria::Verdict;
use crate::experiment::{Details, Point, latency, simulated};
use crate::wire::Class;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2430; max-width: 62rem; margin: 2.5rem auto;
  padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .25rem; } h2 { font-size: 1.2rem; margin-top: 2.25rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #dde1e8;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: #5b6472; font-weight: 600; } th:first-child, td:first-child, .left { text-align: left; }
td.left { white-space: normal; }
.range { color: #6b7482; } .ok { color: #1a7f46; font-weight: 600; }
.short { color: #b3261e; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { color: #5b6472; font-size: .85rem; }
svg { width: 100%; height: auto; } .scroll { overflow-x: auto; }
";

/// The report.
pub fn html(details: &Details, criterion: &str, verdicts: &[Verdict]) -> Result<String> {
    let mut page = String::new();
    let title = escape(&details.title);
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n\
         <p>{}</p>\n",
        escape(criterion)
    )?;
    criteria(&mut page, verdicts)?;
    for load in loads(details) {
        let points: Vec<&Point> =
            details.points.iter().filter(|point| point.load_rps == load).collect();
        write!(page, "<h2>At {} requests per second</h2>\n<div class=\"plots\">", thousands(load))?;
        for class in Class::ALL {
            if points.iter().all(|point| point.distribution(class).is_empty()) {
                continue;
            }
            let twins: Vec<Option<&Point>> =
                points.iter().map(|point| simulated(details, point)).collect();
            figure(
                &mut page,
                &plot::bars(&points, &twins, class)?,
                &format!(
                    "{} latency: from left to right p50, p99 and p99.9, medians of the runs; whiskers are the \
                     smallest and largest run{}",
                    class.name(),
                    if twins.iter().any(Option::is_some) { "; diamonds are simulated" } else { "" }
                ),
            )?;
            figure(
                &mut page,
                &plot::distribution(&points, class)?,
                &format!("{} latency: share of requests that took longer", class.name()),
            )?;
        }
        page.push_str("</div>\n");
        table(&mut page, details, &points)?;
    }
    page.push_str("<h2>How it was measured</h2>\n");
    for paragraph in &details.method {
        writeln!(page, "<p>{}</p>", escape(paragraph))?;
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

/// A number with its thousands apart.
fn thousands(number: f64) -> String {
    if number < 1000.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn loads(details: &Details) -> Vec<f64> {
    let mut loads: Vec<f64> = details.points.iter().map(|point| point.load_rps).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    loads
}

fn criteria(page: &mut String, verdicts: &[Verdict]) -> Result<()> {
    if verdicts.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>criterion</th><th>measured</th><th>bound</th>\
         <th></th></tr>\n",
    );
    for verdict in verdicts {
        use crate::experiment::criteria::Bound::{AtLeast, AtMost};
        let bound = match verdict.bound {
            AtLeast(bound) => format!("&ge; {bound}"),
            AtMost(bound) => format!("&le; {bound}"),
        };
        let measured = verdict.measured.map_or("not measured".to_owned(), |m| format!("{m:.2}"));
        let mark = verdict.mark().trim();
        writeln!(
            page,
            "<tr><td class=\"left\">{}</td><td>{measured}</td><td>{bound}</td>\
             <td class=\"{mark}\">{mark}</td></tr>",
            escape(&verdict.text)
        )?;
    }
    page.push_str("</table></div>\n");
    Ok(())
}

fn table(page: &mut String, details: &Details, points: &[&Point]) -> Result<()> {
    let with_twins = points.iter().any(|point| simulated(details, point).is_some());
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>configuration</th><th>class</th><th>p50</th>\
         <th>p99</th><th>p99 min..max</th><th>p99.9</th><th>replies/s</th><th>drops</th>\
         <th>kept</th>",
    );
    if with_twins {
        page.push_str("<th>simulated p99</th>");
    }
    page.push_str("</tr>\n");
    for point in points {
        for row in point.rows() {
            let class = if row.class == Class::Get.name() { Class::Get } else { Class::Scan };
            let p99 = point.spread(class, |numbers| numbers.p99_us);
            let mut kept: Vec<f64> = point.runs.iter().map(|run| run.kept_share).collect();
            write!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
                 <td class=\"range\">{}..{}</td><td>{}</td><td>{:.1}</td><td>{}</td>\
                 <td>{:.0}&nbsp;%</td>",
                escape(&row.config),
                row.class,
                latency(row.p50_us),
                latency(row.p99_us),
                latency(p99.min),
                latency(p99.max),
                latency(row.p999_us),
                row.throughput_rps,
                row.drops,
                crate::work::median(&mut kept) * 100.0,
            )?;
            if with_twins {
                let twin = simulated(details, point)
                    .map(|twin| latency(twin.spread(class, |numbers| numbers.p99_us).median));
                write!(page, "<td class=\"range\">{}</td>", twin.unwrap_or_default())?;
            }
            page.push_str("</tr>\n");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(24.18), "24.2");
        assert_eq!(thousands(150_000.0), "150\u{202f}000");
        assert_eq!(thousands(1_000.0), "1\u{202f}000");
    }
}
