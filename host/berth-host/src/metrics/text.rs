//! Writing the Prometheus text format.

use std::fmt::{Display, Write};

use super::histogram::Histogram;
use super::table::Scrape;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations by size.
    Histogram,
    /// The number of observations and their sum, without quantiles.
    Summary,
}

impl Kind {
    /// As in a `# TYPE` line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

/// One metric: all that is said of it, and where its values come from.
#[derive(Debug)]
pub struct Metric {
    /// With its unit; never changed once published.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// The names of its labels, in the order in which `read` gives their values.
    pub labels: &'static [&'static str],
    /// Writes its values down.
    pub read: fn(&Scrape<'_>, &mut Family<'_>),
}

impl Metric {
    /// Its heading and all of its values.
    pub fn write(&self, scrape: &Scrape<'_>, out: &mut String) {
        let (name, kind, help) = (self.name, self.kind.label(), self.help);
        // Writing into a String can't fail, here and below.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        (self.read)(scrape, &mut Family { metric: self, out });
    }
}

/// Takes the values of one metric.
#[derive(Debug)]
pub struct Family<'a> {
    metric: &'a Metric,
    out: &'a mut String,
}

impl Family<'_> {
    /// One value, with the values of the labels in their order.
    pub fn value(&mut self, labels: &[&str], value: impl Display) {
        self.sample("", labels, None, value);
    }

    /// One histogram.
    pub fn histogram(&mut self, labels: &[&str], histogram: &Histogram) {
        let snapshot = histogram.snapshot();
        for (bound, count) in &snapshot.cumulative {
            self.sample("_bucket", labels, Some(&bound), count);
        }
        self.sample("_bucket", labels, Some(&"+Inf"), snapshot.count);
        self.sample("_sum", labels, None, snapshot.sum);
        self.sample("_count", labels, None, snapshot.count);
    }

    /// One summary.
    pub fn summary(&mut self, labels: &[&str], sum: impl Display, count: u64) {
        self.sample("_sum", labels, None, sum);
        self.sample("_count", labels, None, count);
    }

    fn sample(&mut self, suffix: &str, labels: &[&str], le: Option<&dyn Display>, value: impl Display) {
        let out = &mut *self.out;
        out.push_str(self.metric.name);
        out.push_str(suffix);
        let mut open = '{';
        for (name, value) in self.metric.labels.iter().zip(labels) {
            let _ = write!(out, "{open}{name}=\"");
            escape(value, out);
            out.push('"');
            open = ',';
        }
        if let Some(le) = le {
            let _ = write!(out, "{open}le=\"{le}\"");
            open = ',';
        }
        if open == ',' {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
    }
}

/// The three characters that a label's value can't hold as they are.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_a_histogram_has_all_its_parts() {
        let metric = Metric {
            name: "x_seconds",
            kind: Kind::Histogram,
            help: "Help.",
            labels: &["a"],
            read: |_, _| {},
        };
        let histogram = Histogram::new(&[1_000_000]);
        histogram.observe(std::time::Duration::from_secs(2));
        let mut out = String::new();
        let mut family = Family {
            metric: &metric,
            out: &mut out,
        };
        family.histogram(&["q\"b\\n\n"], &histogram);
        let label = r#"a="q\"b\\n\n""#;
        let expected = format!(
            "x_seconds_bucket{{{label},le=\"0.001\"}} 0\nx_seconds_bucket{{{label},le=\"+Inf\"}} 1\n\
             x_seconds_sum{{{label}}} 2\nx_seconds_count{{{label}}} 1\n"
        );
        assert_eq!(out, expected);
    }

    #[test]
    fn summary_is_a_sum_and_a_count() {
        let metric = Metric {
            name: "x_bytes",
            kind: Kind::Summary,
            help: "Help.",
            labels: &["a"],
            read: |_, _| {},
        };
        let mut out = String::new();
        Family {
            metric: &metric,
            out: &mut out,
        }
        .summary(&["b"], 300, 2);
        assert_eq!(out, "x_bytes_sum{a=\"b\"} 300\nx_bytes_count{a=\"b\"} 2\n");
    }
}
