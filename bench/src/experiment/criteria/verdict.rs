//! What came of a criterion.

use serde::Serialize;

use crate::experiment::results::thousands;

/// Where a measured number must lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Not below this.
    AtLeast(f64),
    /// Not above this.
    AtMost(f64),
    /// Not outside these.
    Within(f64, f64),
    /// Anywhere: it is shown, and not judged.
    Shown,
}

/// A criterion and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What is compared with what.
    pub text: String,
    /// What was measured; `None` when something is missing.
    pub measured: Option<f64>,
    /// Whether it may be more, for all that is known.
    pub at_least: bool,
    /// Where it must lie.
    pub bound: Bound,
    /// 95 % interval, where there is one.
    pub interval: Option<(f64, f64)>,
    /// What the lower end of the interval must reach.
    pub low_end: Option<f64>,
    /// What else there is to say: both terms, the points.
    pub detail: String,
    /// Whether it also holds for a quick run: it is not about how much, but
    /// about whether all went as it should.
    pub structural: bool,
}

impl Bound {
    /// Whether a number is in it.
    #[must_use]
    pub fn holds(self, number: f64) -> bool {
        match self {
            Self::AtLeast(bound) => number >= bound,
            Self::AtMost(bound) => number <= bound,
            Self::Within(low, high) => (low..=high).contains(&number),
            Self::Shown => true,
        }
    }

    /// How far beyond it a number is; negative inside.
    #[must_use]
    pub fn beyond(self, number: f64) -> f64 {
        match self {
            Self::AtLeast(bound) => bound - number,
            Self::AtMost(bound) => number - bound,
            Self::Within(low, high) => (low - number).max(number - high),
            Self::Shown => number.abs(),
        }
    }

    /// The same for numbers that may be up to so much more.
    #[must_use]
    pub fn or_more_by(self, more: f64) -> Self {
        let above = |bound: f64| ((bound + more.max(0.0)) * 100.0).round() / 100.0;
        match self {
            Self::AtMost(bound) => Self::AtMost(above(bound)),
            Self::Within(low, high) => Self::Within(low, above(high)),
            Self::AtLeast(_) | Self::Shown => self,
        }
    }

    /// In words.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("at least {bound}"),
            Self::AtMost(bound) => format!("at most {bound}"),
            Self::Within(low, high) => format!("{low} to {high}"),
            Self::Shown => "not judged".to_owned(),
        }
    }
}

impl Verdict {
    /// A criterion with its measured number.
    pub fn new(text: String, measured: Option<f64>, bound: Bound, detail: String) -> Self {
        let measured = measured.filter(|number| number.is_finite());
        let (interval, low_end) = (None, None);
        let (at_least, structural) = (false, false);
        Self { text, measured, at_least, bound, interval, low_end, detail, structural }
    }

    /// So many things that must not be.
    pub fn none(text: String, found: &[String]) -> Self {
        let measured = Some(found.len() as f64);
        let shown: Vec<&str> = found.iter().take(4).map(String::as_str).collect();
        let detail = match found.len() {
            0..=4 => shown.join("; "),
            _ => format!("{}; ...", shown.join("; ")),
        };
        Self { structural: true, ..Self::new(text, measured, Bound::AtMost(0.0), detail) }
    }

    /// Whether it holds; a number that is missing does not, where one is judged.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.bound == Bound::Shown {
            return true;
        }
        let interval = match (self.low_end, self.interval) {
            (None, _) => true,
            (Some(least), Some((low, _))) => low >= least,
            (Some(_), None) => false,
        };
        interval && self.measured.is_some_and(|number| self.bound.holds(number))
    }

    /// The number, in words.
    #[must_use]
    pub fn shown(&self) -> String {
        let at_least = if self.at_least { "at least " } else { "" };
        self.measured
            .map_or("not measured".to_owned(), |measured| format!("{at_least}{}", number(measured)))
    }

    /// One line: mark, text, number, bound.
    #[must_use]
    pub fn line(&self) -> String {
        let interval = self
            .interval
            .map_or(String::new(), |(low, high)| format!(" [{}, {}]", number(low), number(high)));
        let low_end = self.low_end.map_or(String::new(), |low| format!(", lower end {low}"));
        let detail = if self.detail.is_empty() { "" } else { ": " };
        format!(
            "{} {}: {}{interval} ({}{low_end}){detail}{}",
            self.mark(),
            self.text,
            self.shown(),
            self.bound.text(),
            self.detail
        )
    }

    /// "ok", "short", or "-" of what is not judged.
    #[must_use]
    pub fn mark(&self) -> &'static str {
        match self.holds() {
            _ if self.bound == Bound::Shown => "-    ",
            true => "ok   ",
            false => "short",
        }
    }
}

/// Three digits, or a whole number.
pub fn number(number: f64) -> String {
    match number.abs() {
        size if size >= 1000.0 => thousands(number),
        size if size >= 100.0 || number.fract() == 0.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// "p99", "p99.9".
#[must_use]
pub fn percentile(quantile: f64) -> String {
    format!("p{}", (quantile * 1e6).round() / 1e4)
}
