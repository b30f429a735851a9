//! The result: medians, spreads, ratios, for a person and for a program.

use super::cases::{Case, RATIOS, Ratio};
use super::json::Json;
use super::machine::Machine;
use super::options::Options;
use super::servers::Servers;
use super::wrk::{self, Run};

/// A case with its runs, one per round.
pub(super) struct Measured {
    pub(super) case: &'static Case,
    pub(super) runs: Vec<Run>,
}

impl Measured {
    pub(super) fn new(case: &'static Case) -> Self {
        Self {
            case,
            runs: Vec::new(),
        }
    }

    fn rates(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.requests_per_second).collect()
    }

    fn median_of(&self, value: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(value).collect())
    }
}

/// Everything that a bench has found.
pub(super) struct Report {
    machine: Machine,
    command: String,
    rounds: usize,
    servers: Vec<(&'static str, String)>,
    measured: Vec<Measured>,
}

impl Report {
    pub(super) fn new(
        machine: Machine,
        servers: &Servers,
        options: &Options,
        measured: Vec<Measured>,
    ) -> Self {
        let arguments = wrk::arguments(options.connections, options.seconds).join(" ");
        Self {
            machine,
            command: format!("wrk {arguments} [-s target/bench/CASE.lua] URL"),
            rounds: options.rounds,
            servers: servers
                .iter()
                .map(|server| (server.name, server.command.clone()))
                .collect(),
            measured,
        }
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = self.machine.text("bench");
        text += &format!(
            "  requests     {}\n  \
             rounds       {}, cases in rotated order, 1 s of warm-up per case first; request logging on\n",
            self.command, self.rounds
        );
        for (name, command) in &self.servers {
            text += &format!("  {name:<16} {command}\n");
        }

        let header = ["median req/s", "min–max", "p50", "p99"];
        let [rate, spread, p50, p99] = header;
        text += &format!(
            "\n{:<14}{rate:>13}{spread:>19}{p50:>10}{p99:>10}  request\n",
            "case"
        );
        for measured in &self.measured {
            let rates = measured.rates();
            let (least, most) = extremes(&rates);
            text += &format!(
                "{:<14}{:>13}{:>19}{:>10}{:>10}  {}\n",
                measured.case.key,
                thousands(median(rates)),
                format!("{}–{}", thousands(least), thousands(most)),
                time(measured.median_of(|run| run.latency.p50)),
                time(measured.median_of(|run| run.latency.p99)),
                measured.case.request.describe()
            );
        }

        let ratios = self.ratios();
        if !ratios.is_empty() {
            text += "\nratios (median over the rounds of the ratio within a round)\n";
        }
        for (ratio, value) in ratios {
            let cases = format!("{} / {}", ratio.over, ratio.under);
            text += &format!("{:<22}{value:>6.3}  {cases:<26}{}\n", ratio.key, ratio.meaning);
        }
        text
    }

    /// For a program.
    pub(super) fn json(&self) -> Json {
        let texts = |(name, command): &(&str, String)| ((*name).to_owned(), Json::text(command));
        let cases = self
            .measured
            .iter()
            .map(|one| (one.case.key.to_owned(), case_json(one)))
            .collect();
        let ratios = self.ratios().into_iter().map(|(ratio, value)| {
            let members = Json::Number(rounded(value, 4));
            (ratio.key.to_owned(), members)
        });
        Json::object([
            ("machine", self.machine.json()),
            ("command", Json::text(&self.command)),
            ("rounds", Json::Number(self.rounds as f64)),
            ("servers", Json::Object(self.servers.iter().map(texts).collect())),
            ("cases", Json::Object(cases)),
            ("ratios", Json::Object(ratios.collect())),
        ])
    }

    /// The ratios of which both cases were measured.
    fn ratios(&self) -> Vec<(&'static Ratio, f64)> {
        let rates = |key: &str| {
            self.measured
                .iter()
                .find(|one| one.case.key == key)
                .map(Measured::rates)
        };
        RATIOS
            .iter()
            .filter_map(|ratio| Some((ratio, ratio_of(&rates(ratio.over)?, &rates(ratio.under)?))))
            .collect()
    }
}

fn case_json(measured: &Measured) -> Json {
    let rates = measured.rates();
    let (least, most) = extremes(&rates);
    let number = |value: f64| Json::Number(rounded(value, 2));
    Json::object([
        ("server", Json::text(measured.case.server.name())),
        ("request", Json::text(measured.case.request.describe())),
        (
            "requestsPerSecond",
            Json::object([
                ("median", number(median(rates.clone()))),
                ("min", number(least)),
                ("max", number(most)),
                ("rounds", Json::List(rates.into_iter().map(number).collect())),
            ]),
        ),
        (
            "latencyMicroseconds",
            Json::object([
                ("p50", number(measured.median_of(|run| run.latency.p50))),
                ("p75", number(measured.median_of(|run| run.latency.p75))),
                ("p90", number(measured.median_of(|run| run.latency.p90))),
                ("p99", number(measured.median_of(|run| run.latency.p99))),
            ]),
        ),
    ])
}

/// The middle value, or the mean of the two middle ones; NaN of nothing.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    if values.len() % 2 == 1 {
        at(middle)
    } else {
        f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
    }
}

/// The median of the ratios within each round.
pub(super) fn ratio_of(over: &[f64], under: &[f64]) -> f64 {
    median(over.iter().zip(under).map(|(over, under)| over / under).collect())
}

fn extremes(values: &[f64]) -> (f64, f64) {
    (
        values.iter().copied().fold(f64::NAN, f64::min),
        values.iter().copied().fold(f64::NAN, f64::max),
    )
}

/// `99 585`.
pub(super) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Microseconds, in the unit that suits them.
pub(super) fn time(microseconds: f64) -> String {
    if microseconds < 1e3 {
        format!("{microseconds:.0} us")
    } else if microseconds < 1e6 {
        format!("{:.2} ms", microseconds / 1e3)
    } else {
        format!("{:.2} s", microseconds / 1e6)
    }
}

pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::super::cases::CASES;
    use super::super::wrk::Latency;
    use super::*;

    fn report() -> Report {
        let run = |requests_per_second: f64| {
            let latency = Latency {
                p50: 300.0,
                p75: 400.0,
                p90: 500.0,
                p99: 1500.0,
            };
            Run {
                requests: 1_000,
                requests_per_second,
                latency,
            }
        };
        let measured = |key: &str, rates: &[f64]| {
            let case = CASES.iter().find(|case| case.key == key);
            case.map(|case| Measured {
                case,
                runs: rates.iter().copied().map(run).collect(),
            })
        };
        let machine = Machine {
            date: "today".to_owned(),
            cpu: "a \"CPU\"".to_owned(),
            cores: 2,
            kernel: "6".to_owned(),
            load: "0.1".to_owned(),
            rustc: "rustc 1".to_owned(),
            wasmtime: "48".to_owned(),
            wasmtime_cli: None,
        };
        let measured = [
            measured("hyper", &[100.0, 200.0, 90_000.0]),
            measured("typed-fresh", &[50.0, 50.0, 9000.0]),
        ];
        Report {
            machine,
            command: "wrk".to_owned(),
            rounds: 3,
            servers: vec![("plain-hyper", "plain-hyper 127.0.0.1:1".to_owned())],
            measured: measured.into_iter().flatten().collect(),
        }
    }

    #[test]
    fn median_is_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn ratio_is_taken_within_each_round() {
        // The medians alone would say 50 / 200 = 0.25, and so do the rounds: 0.5, 0.25, 0.1.
        assert!((ratio_of(&[50.0, 50.0, 9000.0], &[100.0, 200.0, 90_000.0]) - 0.25).abs() < 1e-9);
        // One slow round on both sides changes nothing.
        assert!((ratio_of(&[50.0, 1.0, 50.0], &[100.0, 2.0, 100.0]) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn ratios_without_both_cases_are_left_out() {
        let ratios: Vec<_> = report()
            .ratios()
            .into_iter()
            .map(|(ratio, _)| ratio.key)
            .collect();
        assert_eq!(ratios, ["typed-fresh/hyper"]);
    }

    #[test]
    fn json_has_the_four_parts() {
        let json = report().json().to_string();
        assert!(
            json.starts_with(r#"{"machine":{"date":"today","cpu":"a \"CPU\"","cores":2,"#),
            "{json}"
        );
        assert!(json.contains(r#""command":"wrk""#));
        assert!(json.contains(
            r#""requestsPerSecond":{"median":200,"min":100,"max":90000,"rounds":[100,200,90000]}"#
        ));
        assert!(
            json.ends_with(r#""ratios":{"typed-fresh/hyper":0.25}}"#),
            "{json}"
        );
    }

    #[test]
    fn text_shows_each_case_and_ratio() {
        let text = report().text();
        assert!(text.contains("100–90 000"), "{text}");
        assert!(text.contains("1.50 ms"), "{text}");
        assert!(text.contains("typed-fresh/hyper      0.250"), "{text}");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(99_585.32), "99 585");
        assert_eq!(thousands(585.0), "585");
        assert_eq!(thousands(1_234_567.0), "1 234 567");
    }

    #[test]
    fn times_choose_their_unit() {
        assert_eq!(
            (time(300.4), time(1350.0), time(2e6)),
            ("300 us".into(), "1.35 ms".into(), "2.00 s".into())
        );
    }
}
