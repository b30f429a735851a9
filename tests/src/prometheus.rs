//! A strict reader of the Prometheus text format, version 0.0.4. Whatever a real scraper would refuse or misread is an
//! error here.

use std::collections::{BTreeMap, BTreeSet};

/// One metric with all its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `summary`; the last without quantiles.
    pub kind: String,
    /// What it means.
    pub help: String,
    /// In their order.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name, with `_bucket`, `_sum` or `_count` where it is one of several.
    pub name: String,
    /// Names and values, in their order.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// Read a whole answer of `/metrics`.
///
/// # Errors
/// The first line that breaks a rule, and which.
pub fn parse(text: &str) -> Result<Vec<Family>, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut families: Vec<Family> = Vec::new();
    let mut names = BTreeSet::new();
    let mut help: Option<(String, String)> = None;
    for line in text.lines() {
        let wrong = |why: &str| format!("{why}: {line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            if help.is_some() {
                return Err(wrong("HELP without its TYPE before it"));
            }
            help = Some((name.to_owned(), words.to_owned()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            let (helped, words) = help.take().ok_or_else(|| wrong("TYPE without HELP"))?;
            if helped != name || !is_name(name) {
                return Err(wrong("TYPE of another metric, or of no name"));
            }
            if !["counter", "gauge", "histogram", "summary"].contains(&kind) {
                return Err(wrong("no such type"));
            }
            if !names.insert(name.to_owned()) {
                return Err(wrong("a metric twice"));
            }
            families.push(Family {
                name: name.to_owned(),
                kind: kind.to_owned(),
                help: words,
                samples: Vec::new(),
            });
        } else {
            let sample = sample(line).map_err(|why| wrong(&why))?;
            let family = families.last_mut().ok_or_else(|| wrong("no metric yet"))?;
            let suffix = sample.name.strip_prefix(&family.name);
            let fits = match family.kind.as_str() {
                "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
                "summary" => matches!(suffix, Some("_sum" | "_count")),
                _ => suffix == Some(""),
            };
            if !fits {
                return Err(wrong("a sample of another metric"));
            }
            if family.kind != "gauge" && (sample.value < 0.0 || !sample.value.is_finite()) {
                return Err(wrong("a count below zero or without measure"));
            }
            if family
                .samples
                .iter()
                .any(|s| s.name == sample.name && s.labels == sample.labels)
            {
                return Err(wrong("a series twice"));
            }
            family.samples.push(sample);
        }
    }
    if help.is_some() {
        return Err("HELP without TYPE at the end".to_owned());
    }
    for family in families.iter().filter(|f| f.kind == "histogram") {
        histogram(family)?;
    }
    for family in families.iter().filter(|f| f.kind == "summary") {
        summary(family)?;
    }
    Ok(families)
}

fn is_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `name{label="value",…} number`
fn sample(line: &str) -> Result<Sample, String> {
    let name_end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(name_end);
    if !is_name(name) {
        return Err("not a name".to_owned());
    }
    let mut labels: Vec<(String, String)> = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value_on) = rest.split_once("=\"").ok_or("a label without a value")?;
            if !is_name(label) || labels.iter().any(|(n, _)| n == label) {
                return Err(format!("not a label, or twice: {label:?}"));
            }
            let mut value = String::new();
            let mut characters = value_on.char_indices();
            let end = loop {
                match characters.next().ok_or("a label's value has no end")? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, c @ ('\\' | '"'))) => value.push(c),
                        other => return Err(format!("no such escape: {other:?}")),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            let after = &value_on[end + 1..];
            if let Some(after) = after.strip_prefix(',') {
                rest = after;
            } else {
                rest = after.strip_prefix('}').ok_or("labels without an end")?;
                break;
            }
        }
    }
    let number = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let value = number.parse().map_err(|_| format!("not a number: {number:?}"))?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

type Series<'a> = BTreeMap<Vec<(&'a str, &'a str)>, Vec<&'a Sample>>;

/// The samples of each series.
fn series(family: &Family) -> Series<'_> {
    let mut series = Series::new();
    for sample in &family.samples {
        let key = sample
            .labels
            .iter()
            .filter(|(n, _)| n != "le")
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        series.entry(key).or_default().push(sample);
    }
    series
}

/// Per series: one `_sum` and one `_count`.
fn summary(family: &Family) -> Result<(), String> {
    for (labels, samples) in series(family) {
        let of = |suffix: &str| {
            let name = format!("{}{suffix}", family.name);
            samples.iter().filter(|s| s.name == name).count()
        };
        if (of("_sum"), of("_count")) != (1, 1) {
            return Err(format!("{}{labels:?}: one _sum and one _count", family.name));
        }
    }
    Ok(())
}

/// Per series: bounds ascend, counts don't fall, `+Inf` is last and equals `_count`, and there is a `_sum`.
fn histogram(family: &Family) -> Result<(), String> {
    for (labels, samples) in series(family) {
        let wrong = |why: &str| format!("{}{labels:?}: {why}", family.name);
        let of = |suffix: &str| {
            samples
                .iter()
                .filter(|s| s.name == format!("{}{suffix}", family.name))
                .copied()
                .collect::<Vec<_>>()
        };
        let (buckets, sums, counts) = (of("_bucket"), of("_sum"), of("_count"));
        if sums.len() != 1 || counts.len() != 1 {
            return Err(wrong("one _sum and one _count"));
        }
        let mut last = (f64::NEG_INFINITY, 0.0);
        for bucket in &buckets {
            let le = bucket.label("le").ok_or_else(|| wrong("a bucket without le"))?;
            let bound = match le {
                "+Inf" => f64::INFINITY,
                le => le.parse().map_err(|_| wrong("le is not a number"))?,
            };
            if bound <= last.0 || bucket.value < last.1 {
                return Err(wrong("buckets fall"));
            }
            last = (bound, bucket.value);
        }
        if last != (f64::INFINITY, counts[0].value) {
            return Err(wrong("+Inf is not the count"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\",y=\"\"} 1\na_total 2\n";

    #[test]
    fn a_good_text_is_read() {
        let families = parse(GOOD).unwrap();
        assert_eq!(families[0].samples[0].label("x"), Some("q\"\\\n"));
        assert_eq!(families[0].samples[1].value, 2.0);
    }

    #[test]
    fn broken_texts_are_refused() {
        let histogram = "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
        let summary = "# HELP s S.\n# TYPE s summary\ns_sum{x=\"y\"} 3\ns_count{x=\"y\"} 2\n";
        assert!(parse(histogram).is_ok());
        assert!(parse(summary).is_ok());
        for (good, from, to) in [
            (GOOD, "# HELP a_total A.\n", ""),
            (GOOD, "# TYPE a_total counter\n", ""),
            (GOOD, "counter", "counted"),
            (GOOD, "a_total 2\n", "a_total 2"),
            (GOOD, "a_total 2\n", "b_total 2\n"),
            (GOOD, "a_total 2\n", "a_total -2\n"),
            (GOOD, "a_total 2\n", "a_total{x=\"q\\\"\\\\\\n\",y=\"\"} 2\n"),
            (GOOD, "\\n", "\\t"),
            (GOOD, "y=", "x="),
            (GOOD, "a_total 2\n", "a_total two\n"),
            (histogram, "h_sum 3\n", ""),
            (histogram, "h_count 2", "h_count 3"),
            (histogram, "h_bucket{le=\"+Inf\"} 2\n", ""),
            (histogram, "le=\"1\"} 1", "le=\"1\"} 3"),
            (histogram, "le=\"1\"", "le=\"one\""),
            (summary, "s_sum{x=\"y\"} 3\n", ""),
            (summary, "s_count{x=\"y\"} 2\n", "s_count{x=\"z\"} 2\n"),
            (summary, "s_sum", "s_bucket"),
            (summary, "s_count", "s"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
