//! Running wrk and reading what it prints.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::Tools;
use super::cases::Case;
use crate::commands;
use crate::failure::{self, Failure};
use crate::workspace;

/// The load generator, with what stays the same between runs.
pub(super) struct Wrk {
    program: PathBuf,
    folder: PathBuf,
    connections: usize,
}

/// The result of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Run {
    /// Answered; none of them otherwise than with 2xx or 3xx.
    pub(super) requests: u64,
    pub(super) requests_per_second: f64,
    pub(super) latency: Latency,
}

/// Percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p75: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
}

impl Wrk {
    pub(super) fn new(tools: &Tools, connections: usize) -> Self {
        Self {
            program: tools.wrk.clone(),
            folder: tools.folder.clone(),
            connections,
        }
    }

    /// Measures the case for some seconds. Any answer but 2xx or 3xx and any socket error is a failure.
    pub(super) fn run(
        &self,
        case: &Case,
        (address, token): (SocketAddr, Option<&str>),
        seconds: usize,
    ) -> Result<Run, Failure> {
        let mut command = Command::new(&self.program);
        command.args(arguments(self.connections, seconds));
        if let Some(script) = case.request.lua(token) {
            let file = self.folder.join(format!("{}.lua", case.key));
            std::fs::write(&file, script).map_err(failure::io(
                format!(
                    "The script {} could not be written",
                    workspace::short(&file).display()
                ),
                "Check the permissions of the target folder.",
            ))?;
            command.arg("-s").arg(file);
        }
        command.arg(format!("http://{address}{}", case.request.path));
        let said = commands::output(&mut command)?;
        parse(&said).map_err(|fault| {
            Failure::new(format!(
                "The case `{}` failed while `{}` ran: {fault}. Look at the server's log in {}.",
                case.key,
                commands::show(&command),
                workspace::short(&self.folder).display()
            ))
        })
    }
}

/// wrk's arguments, without script and URL. One thread, because the servers need the cores.
pub(super) fn arguments(connections: usize, seconds: usize) -> [String; 4] {
    [
        "-t1".to_owned(),
        format!("-c{connections}"),
        format!("-d{seconds}s"),
        "--latency".to_owned(),
    ]
}

/// Reads wrk's report; the error completes the sentence "it failed: …".
fn parse(report: &str) -> Result<Run, String> {
    let line = |label: &str| {
        report
            .lines()
            .map(str::trim)
            .find_map(|line| line.strip_prefix(label))
    };
    if let Some(errors) = line("Socket errors:") {
        return Err(format!("wrk saw socket errors ({})", errors.trim()));
    }
    if let Some(count) = line("Non-2xx or 3xx responses:") {
        return Err(format!(
            "{} answers had a status that is neither 2xx nor 3xx",
            count.trim()
        ));
    }
    let missing = |what: &str| format!("wrk's report has no {what}:\n{report}");
    let percentile = |label: &str| {
        line(label)
            .and_then(|value| microseconds(value.trim()))
            .ok_or_else(|| missing(label))
    };
    let requests_per_second = line("Requests/sec:")
        .and_then(|value| value.trim().parse::<f64>().ok())
        .ok_or_else(|| missing("Requests/sec"))?;
    if requests_per_second <= 0.0 {
        return Err("not one request was answered".to_owned());
    }
    let requests = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .ok_or_else(|| missing("requests"))?;
    let latency = Latency {
        p50: percentile("50%")?,
        p75: percentile("75%")?,
        p90: percentile("90%")?,
        p99: percentile("99%")?,
    };
    Ok(Run {
        requests,
        requests_per_second,
        latency,
    })
}

/// `1.50ms` is 1500.
fn microseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (value, unit) = text.split_at(unit);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return None,
    };
    value.parse::<f64>().ok().map(|value| value * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
Running 5s test @ http://127.0.0.1:8080/hello/world
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   312.14us  102.31us   3.02ms   83.38%
    Req/Sec   100.06k     4.31k  107.97k    72.55%
  Latency Distribution
     50%  300.00us
     75%    1.35ms
     90%   42.00ms
     99%    1.20s
  507873 requests in 5.10s, 60.05MB read
Requests/sec:  99585.32
Transfer/sec:     11.77MB
";

    #[test]
    fn report_is_read_in_every_unit() {
        let latency = Latency {
            p50: 300.0,
            p75: 1350.0,
            p90: 42_000.0,
            p99: 1_200_000.0,
        };
        assert_eq!(
            parse(REPORT),
            Ok(Run {
                requests: 507_873,
                requests_per_second: 99_585.32,
                latency
            })
        );
    }

    #[test]
    fn refused_requests_are_a_fault() {
        let report = REPORT.replace("Requests/sec", "  Non-2xx or 3xx responses: 17\nRequests/sec");
        let sentence = "17 answers had a status that is neither 2xx nor 3xx";
        assert_eq!(parse(&report), Err(sentence.to_owned()));
    }

    #[test]
    fn socket_errors_are_a_fault() {
        let errors = "  Socket errors: connect 0, read 3, write 0, timeout 1\nRequests/sec";
        let sentence = "wrk saw socket errors (connect 0, read 3, write 0, timeout 1)";
        assert_eq!(
            parse(&REPORT.replace("Requests/sec", errors)),
            Err(sentence.to_owned())
        );
    }

    #[test]
    fn silent_server_and_other_output_are_faults() {
        let silent = REPORT.replace("99585.32", "0.00");
        assert_eq!(parse(&silent), Err("not one request was answered".to_owned()));
        assert!(parse("wrk: usage").is_err());
    }

    #[test]
    fn units_are_converted() {
        assert_eq!(microseconds("0.00us"), Some(0.0));
        assert_eq!(microseconds("1.50ms"), Some(1500.0));
        assert_eq!(microseconds("2.00m"), Some(120e6));
        assert_eq!(microseconds("2.00parsecs"), None);
        assert_eq!(microseconds("2"), None);
    }
}
