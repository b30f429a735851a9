//! The result of `bench swap`: with and without swaps, what a swap takes, what it leaves behind.

use super::super::json::Json;
use super::super::machine::Machine;
use super::super::options::Options;
use super::super::report::{median, ratio_of, rounded, thousands, time};
use super::super::servers::Servers;
use super::super::wrk::{self, Run};
use super::operator::{STEPS, Swap};
use super::{Footprint, Measured};

/// A figure of a run: its name, its name in JSON, how to find it, how to print it.
type Figure = (&'static str, &'static str, fn(&Run) -> f64, fn(f64) -> String);

const FIGURES: [Figure; 3] = [
    (
        "req/s",
        "requestsPerSecond",
        |run| run.requests_per_second,
        thousands,
    ),
    ("p50", "p50Us", |run| run.latency.p50, time),
    ("p99", "p99Us", |run| run.latency.p99, time),
];

/// Everything that was found.
pub(super) struct Report {
    machine: Machine,
    wrk: String,
    servers: Vec<String>,
    measured: Vec<Measured>,
    before: Footprint,
    after: Footprint,
}

impl Report {
    pub(super) fn new(
        machine: Machine,
        servers: &Servers,
        options: &Options,
        measured: Vec<Measured>,
        (before, after): (Footprint, Footprint),
    ) -> Self {
        let arguments = wrk::arguments(options.connections, options.seconds).join(" ");
        Self {
            machine,
            wrk: format!("wrk {arguments} [-s target/bench/CASE.lua] URL"),
            servers: servers.iter().map(|server| server.command.clone()).collect(),
            measured,
            before,
            after,
        }
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = self.machine.text("bench swap");
        text += &format!(
            "  requests     {}\n  \
             rounds       each case without and with swaps in turn, the order changes; both versions and 1 s of requests\n               \
             before; request logging on\n",
            self.wrk
        );
        for command in &self.servers {
            text += &format!("  berth        {command}\n");
        }
        for one in &self.measured {
            text += &case(one);
        }
        let mib = |bytes: f64| bytes / f64::from(1024 * 1024);
        text += &format!(
            "\nprocess            before     after\n  {:<14}{:>7.1} MiB{:>6.1} MiB\n  {:<14}{:>11}{:>10}\n  {:<14}{:>11}{:>10}\n\
             requests that failed: 0 of {}; versions in memory at the end: 1 of each plugin\n",
            "resident",
            mib(self.before.resident_bytes),
            mib(self.after.resident_bytes),
            "threads",
            self.before.threads,
            self.after.threads,
            "descriptors",
            self.before.descriptors,
            self.after.descriptors,
            thousands(self.requests()),
        );
        text
    }

    /// For a program.
    pub(super) fn json(&self) -> Json {
        let cases = self
            .measured
            .iter()
            .map(|one| (one.of.case.key.to_owned(), case_json(one)));
        let process = |at: &Footprint| {
            Json::object([
                ("residentBytes", Json::Number(at.resident_bytes)),
                ("threads", Json::Number(at.threads)),
                ("descriptors", Json::Number(at.descriptors)),
            ])
        };
        Json::object([
            ("machine", self.machine.json()),
            ("command", Json::text(&self.wrk)),
            (
                "servers",
                Json::List(self.servers.iter().map(Json::text).collect()),
            ),
            ("cases", Json::Object(cases.collect())),
            ("before", process(&self.before)),
            ("after", process(&self.after)),
            ("requests", Json::Number(self.requests())),
            ("failed", Json::Number(0.0)),
        ])
    }

    fn requests(&self) -> f64 {
        let runs = self
            .measured
            .iter()
            .flat_map(|one| one.still.iter().chain(&one.swapping));
        runs.map(|run| run.requests as f64).sum()
    }
}

fn case(one: &Measured) -> String {
    let mut text = format!(
        "\n{} ({}), {} rounds, {} swaps\n{:<17}{:>11}{:>11}{:>11}\n",
        one.of.case.key,
        one.of.case.request.describe(),
        one.swapping.len(),
        thousands(one.swaps.len() as f64),
        "",
        FIGURES[0].0,
        FIGURES[1].0,
        FIGURES[2].0
    );
    for (name, runs) in [("without swaps", &one.still), ("with swaps", &one.swapping)] {
        text += &format!("  {name:<15}");
        for (.., of, show) in FIGURES {
            text += &format!("{:>11}", show(median(runs.iter().map(of).collect())));
        }
        text.push('\n');
    }
    text += &format!("  {:<15}", "ratio");
    for (.., of, _) in FIGURES {
        text += &format!("{:>11.3}", ratio(one, of));
    }
    text += &format!("\n{:<17}{:>11}{:>11}\n", "  a swap", "median", "p99");
    for (name, [middle, late]) in parts(&one.swaps) {
        text += &format!("    {name:<13}{:>11}{:>11}\n", time(middle), time(late));
    }
    text
}

fn case_json(one: &Measured) -> Json {
    let number = |value: f64| Json::Number(rounded(value, 4));
    let runs = |runs: &[Run]| {
        let members = FIGURES.map(|(_, key, of, _)| (key, number(median(runs.iter().map(of).collect()))));
        Json::object(members)
    };
    let swap = parts(&one.swaps).into_iter().map(|(name, [middle, late])| {
        let values = [("median", number(middle)), ("p99", number(late))];
        (name.to_owned(), Json::object(values))
    });
    Json::object([
        ("request", Json::text(one.of.case.request.describe())),
        ("rounds", Json::Number(one.swapping.len() as f64)),
        ("swaps", Json::Number(one.swaps.len() as f64)),
        ("without", runs(&one.still)),
        ("with", runs(&one.swapping)),
        (
            "ratios",
            Json::object(FIGURES.map(|(_, key, of, _)| (key, number(ratio(one, of))))),
        ),
        ("swapUs", Json::Object(swap.collect())),
    ])
}

/// With swaps over without: the median of the ratios within each round.
fn ratio(one: &Measured, of: fn(&Run) -> f64) -> f64 {
    let values = |runs: &[Run]| runs.iter().map(of).collect::<Vec<f64>>();
    ratio_of(&values(&one.swapping), &values(&one.still))
}

/// Every step's median and 99th percentile, and those of the whole as the operator sees it.
fn parts(swaps: &[Swap]) -> Vec<(&'static str, [f64; 2])> {
    let figures = |of: &dyn Fn(&Swap) -> f64| {
        let values: Vec<f64> = swaps.iter().map(of).collect();
        [median(values.clone()), percentile(values, 0.99)]
    };
    let mut parts: Vec<_> = STEPS
        .iter()
        .enumerate()
        .map(|(at, (_, name))| {
            (
                *name,
                figures(&|swap| swap.steps.get(at).copied().unwrap_or(f64::NAN)),
            )
        })
        .collect();
    parts.push(("until answered", figures(&|swap| swap.asked)));
    parts
}

/// The value that this share of them doesn't exceed; NaN of nothing.
fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_a_value_that_so_many_stay_below() {
        let values: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        assert!((percentile(values.clone(), 0.99) - 990.0).abs() < 1e-9);
        assert!((percentile(values, 1.0) - 1000.0).abs() < 1e-9);
        assert!((percentile(vec![5.0], 0.99) - 5.0).abs() < 1e-9);
        assert!(percentile(Vec::new(), 0.99).is_nan());
    }
}
