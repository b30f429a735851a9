//! A client of the admin API: deploys components, reads metrics.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::json::number_member;
use crate::failure::{self, Failure};

/// Long enough for a component that is compiled while the cores are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of one berth.
pub(super) struct Operator {
    address: SocketAddr,
    token: String,
}

/// The steps of a swap as berth reports them, by their names in its JSON.
pub(super) const STEPS: [(&str, &str); 7] = [
    ("readUs", "hash"),
    ("verifyUs", "signature"),
    ("compileUs", "machine code"),
    ("linkUs", "check and link"),
    ("probeUs", "probe"),
    ("switchUs", "switch"),
    ("totalUs", "until it serves"),
];

/// A swap that was made, in microseconds.
pub(super) struct Swap {
    pub(super) steps: [f64; STEPS.len()],
    /// From the first byte of the upload to the last of the answer: also what is kept on the disk.
    pub(super) asked: f64,
}

impl Operator {
    /// Of the berth with this admin API and data folder.
    pub(super) fn of(address: SocketAddr, data: &Path) -> Result<Self, Failure> {
        let file = data.join("admin.token");
        let token = std::fs::read_to_string(&file).map_err(failure::io(
            format!("The token of the admin API, {}, can't be read", file.display()),
            "Look at the log of berth-swap in target/bench.",
        ))?;
        Ok(Self {
            address,
            token: token.trim().to_owned(),
        })
    }

    /// Puts a component in the place of the one that serves. Anything but a swap is a failure.
    pub(super) fn deploy(&self, plugin: &str, component: &[u8]) -> Result<Swap, Failure> {
        let started = Instant::now();
        let head = format!(
            "POST /admin/plugins/{plugin}/deploy HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/wasm\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.token,
            component.len()
        );
        let answer = self.exchange(&head, component)?;
        let asked = started.elapsed().as_secs_f64() * 1e6;
        let steps = STEPS.map(|(name, _)| number_member(&answer, name));
        match answer.contains("\"kind\":\"swapped\"") && steps.iter().all(Option::is_some) {
            true => Ok(Swap {
                steps: steps.map(Option::unwrap_or_default),
                asked,
            }),
            false => Err(Failure::new(format!(
                "A deploy of the plugin `{plugin}` was not answered with a swap: {}",
                answer.trim()
            ))),
        }
    }

    /// A metric by its name and labels, as they are in the text.
    pub(super) fn metric(&self, name: &str) -> Result<f64, Failure> {
        let head = format!(
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        );
        let text = self.exchange(&head, b"")?;
        value(&text, name).ok_or_else(|| Failure::new(format!("berth has no metric `{name}`.")))
    }

    fn exchange(&self, head: &str, body: &[u8]) -> Result<String, Failure> {
        let exchange = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            stream.write_all(head.as_bytes())?;
            stream.write_all(body)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(failure::io(
            "The admin API did not answer",
            "Look at the log of berth-swap in target/bench.",
        ))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

fn value(text: &str, name: &str) -> Option<f64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_is_found_by_its_whole_name() {
        let text = "# HELP a A.\na_total 5\na 1.5\na{plugin=\"x\"} 2\n";
        assert_eq!(value(text, "a"), Some(1.5));
        assert_eq!(value(text, "a{plugin=\"x\"}"), Some(2.0));
        assert_eq!(value(text, "b"), None);
    }
}
