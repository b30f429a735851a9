//! Callers behind a proxy that says whose a request is: as many as a test needs, from one machine.

use std::net::SocketAddr;

use crate::wire::{Connection, Response, head};

/// The lines of a manifest by which a proxy on this machine is believed.
pub const TRUSTED: &str = "[http]\ntrusted_proxies = [\"127.0.0.1\"]\n";

/// A proxy with one connection, which it keeps.
#[derive(Debug)]
pub struct Proxy {
    host: SocketAddr,
    connection: Connection,
}

impl Proxy {
    /// Connect.
    pub fn of(host: SocketAddr) -> Self {
        Self {
            host,
            connection: Connection::open(host),
        }
    }

    /// `GET` for a caller. A connection that the host has closed is made anew, as a proxy does.
    ///
    /// # Panics
    /// There is no answer.
    #[track_caller]
    pub fn get(&mut self, caller: u16, path: &str) -> Response {
        self.ask(caller, "GET", path, &[], b"")
    }

    /// Anything for a caller.
    ///
    /// # Panics
    /// There is no answer.
    #[track_caller]
    pub fn ask(
        &mut self,
        caller: u16,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let address = address(caller);
        let mut all = vec![("x-forwarded-for", address.as_str())];
        all.extend(headers);
        for _ in 0..2 {
            self.connection.send(head(method, path, &all, body.len()));
            self.connection.send(body);
            if let Some(answer) = self.connection.response(method) {
                return answer;
            }
            self.connection = Connection::open(self.host);
        }
        panic!("{method} {path}: closed without a response, twice");
    }
}

/// The address of a caller, of the block for tests (RFC 2544).
pub fn address(caller: u16) -> String {
    let [high, low] = caller.to_be_bytes();
    format!("198.18.{high}.{low}")
}
