use std::collections::BTreeSet;

use super::*;

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let names: BTreeSet<&str> = METRICS.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), METRICS.len(), "every name once");
    for metric in METRICS {
        let name = metric.name;
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{name}"
        );
        assert!(
            name.starts_with("berth_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        assert_eq!(
            metric.kind == Kind::Histogram,
            is_histogram_unit(metric),
            "{name}"
        );
        assert!(
            metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '|']),
            "{name}"
        );
        assert!(!metric.labels.contains(&"le"), "{name}");
    }
}

/// All histograms here are of times, and no gauge of a time is a plugin's.
fn is_histogram_unit(metric: &Metric) -> bool {
    metric.name.ends_with("_seconds") && metric.name.starts_with("berth_")
}

/// The table in the README and the one in the code, row by row.
#[test]
fn readme_documents_every_metric_and_no_other() {
    let readme = include_str!("../../README.md");
    let heading = "| metric | type | labels | meaning |";
    let documented: Vec<&str> = readme
        .lines()
        .skip_while(|line| *line != heading)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let ours: Vec<String> = METRICS
        .iter()
        .map(|m| {
            let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
            format!(
                "| `{}` | {} | {} | {} |",
                m.name,
                m.kind.label(),
                labels.join(", "),
                m.help
            )
        })
        .collect();
    assert_eq!(documented, ours, "the rows should be:\n{}", ours.join("\n"));
}
