//! A request, in the two forms it takes: once over a plain TCP stream to look at the answer, and as a script for
//! wrk.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request and how to know its answer.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) path: &'static str,
    /// A body makes it a POST. [`TOKEN`] in it stands for the token of the signed-in user.
    pub(super) json: Option<&'static str>,
    /// Whether it carries the token of the signed-in user.
    pub(super) signed_in: bool,
    /// Must be in the answer's body.
    pub(super) answer: &'static str,
}

/// Where a body has the token.
const TOKEN: &str = "TOKEN";
/// Long enough for a component that is compiled on first use.
const PATIENCE: Duration = Duration::from_secs(10);

impl Request {
    pub(super) fn method(&self) -> &'static str {
        if self.json.is_some() { "POST" } else { "GET" }
    }

    pub(super) fn describe(&self) -> String {
        format!("{} {}", self.method(), self.path)
    }

    /// Sends it once; the error completes the sentence "it …".
    pub(super) fn ask(&self, address: SocketAddr, token: Option<&str>) -> Result<(), String> {
        let answer = self.exchange(address, token)?;
        self.judge(&answer)
    }

    /// Sends it once and gives the whole answer as text; the error completes the sentence "it …".
    pub(super) fn exchange(&self, address: SocketAddr, token: Option<&str>) -> Result<String, String> {
        let exchange = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(self.wire(address, token).as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| format!("did not answer: {error}"))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// What wrk needs to send it; nothing for a GET by nobody.
    pub(super) fn lua(&self, token: Option<&str>) -> Option<String> {
        let mut script = String::new();
        if let Some(body) = self.body(token) {
            script += &format!(
                "wrk.method = {}\nwrk.body = {}\nwrk.headers[\"Content-Type\"] = \"application/json\"\n",
                lua_string(self.method()),
                lua_string(&body)
            );
        }
        if let Some(token) = token.filter(|_| self.signed_in) {
            let value = lua_string(&format!("Bearer {token}"));
            script += &format!("wrk.headers[\"Authorization\"] = {value}\n");
        }
        (!script.is_empty()).then_some(script)
    }

    fn body(&self, token: Option<&str>) -> Option<String> {
        self.json
            .map(|json| json.replace(TOKEN, token.unwrap_or_default()))
    }

    fn wire(&self, address: SocketAddr, token: Option<&str>) -> String {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n",
            self.method(),
            self.path
        );
        if let Some(token) = token.filter(|_| self.signed_in) {
            text += &format!("Authorization: Bearer {token}\r\n");
        }
        let body = self.body(token);
        if let Some(body) = &body {
            text += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        text + "\r\n" + body.as_deref().unwrap_or_default()
    }

    fn judge(&self, answer: &str) -> Result<(), String> {
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return Err(format!("answered with something that isn't HTTP: {answer:?}"));
        };
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status != "200" {
            return Err(format!(
                "answered with status {status} instead of 200, and this body: {}",
                body.trim()
            ));
        }
        if !body.contains(self.answer) {
            return Err(format!(
                "answered without `{}` in the body: {}",
                self.answer,
                body.trim()
            ));
        }
        Ok(())
    }
}

fn lua_string(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '\\' => r"\\".to_owned(),
            '"' => r#"\""#.to_owned(),
            '\n' => r"\n".to_owned(),
            '\r' => r"\r".to_owned(),
            other => other.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: Request = Request {
        path: "/x",
        json: Some(r#"{"a":"b"}"#),
        signed_in: false,
        answer: "ok",
    };
    const GET: Request = Request {
        path: "/x",
        json: None,
        signed_in: true,
        answer: "ok",
    };

    #[test]
    fn script_sets_method_body_and_type() {
        let script = "wrk.method = \"POST\"\nwrk.body = \"{\\\"a\\\":\\\"b\\\"}\"\n\
                      wrk.headers[\"Content-Type\"] = \"application/json\"\n";
        assert_eq!(POST.lua(Some("t")).as_deref(), Some(script));
        assert_eq!(GET.lua(None), None);
        let signed_in = "wrk.headers[\"Authorization\"] = \"Bearer t\"\n";
        assert_eq!(GET.lua(Some("t")).as_deref(), Some(signed_in));
    }

    #[test]
    fn strings_are_escaped_for_lua() {
        assert_eq!(lua_string("a\\b\"c\nd\r"), r#""a\\b\"c\nd\r""#);
    }

    #[test]
    fn only_200_with_the_expected_body_is_right() {
        assert_eq!(GET.judge("HTTP/1.1 200 OK\r\na: b\r\n\r\nok then"), Ok(()));
        let refused = GET.judge("HTTP/1.1 503 Service Unavailable\r\n\r\nbusy\n");
        let sentence = "answered with status 503 instead of 200, and this body: busy";
        assert_eq!(refused, Err(sentence.to_owned()));
        assert!(GET.judge("HTTP/1.1 200 OK\r\n\r\nother").is_err());
        assert!(GET.judge("").is_err());
    }

    #[test]
    fn request_on_the_wire_has_a_length_for_its_body() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        assert_eq!(
            GET.wire(address, None),
            "GET /x HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n"
        );
        assert!(
            GET.wire(address, Some("t"))
                .contains("\r\nAuthorization: Bearer t\r\n")
        );
        assert!(
            POST.wire(address, Some("t"))
                .ends_with("Content-Length: 9\r\n\r\n{\"a\":\"b\"}")
        );
    }
}
