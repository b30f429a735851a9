//! Server-sent events, as much of them as the admin API uses: the data of each (WHATWG HTML, section 9.2).

use std::collections::VecDeque;
use std::mem;

/// The most bytes of one event. A refused component with every one of its faults has some 10 KiB.
const MAX_EVENT: usize = 1024 * 1024;

/// An event that is larger than any of a berth.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// From bytes as they come to events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The data of the event so far; nothing before its first line.
    data: Option<String>,
    /// The last byte ended a line and may be the first half of its end.
    after_return: bool,
    ready: VecDeque<String>,
}

impl Parser {
    /// Take more bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for byte in bytes {
            let is_second_half = mem::take(&mut self.after_return) && *byte == b'\n';
            match byte {
                b'\n' if is_second_half => {}
                b'\n' | b'\r' => {
                    self.after_return = *byte == b'\r';
                    self.end_line();
                }
                _ => self.line.push(*byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_EVENT {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    /// The data of the next event that is whole.
    pub(super) fn next(&mut self) -> Option<String> {
        self.ready.pop_front()
    }

    fn end_line(&mut self) {
        let line = mem::take(&mut self.line);
        if line.is_empty() {
            self.ready.extend(self.data.take());
            return;
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        // All else says what the data says too, or is a comment that keeps the connection open.
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed in pieces of so many bytes.
    fn parsed(text: &str, piece: usize) -> Vec<String> {
        let mut parser = Parser::default();
        text.as_bytes()
            .chunks(piece)
            .for_each(|piece| parser.feed(piece).unwrap());
        std::iter::from_fn(|| parser.next()).collect()
    }

    #[test]
    fn events_are_whole_however_they_come() {
        let text = ": hello\n\nevent: swapped\nid: 7\ndata: {\"a\":\ndata:  1}\n\n:\r\n\r\ndata:x→\r\n\r\ndata: y\r\rid\n\
                    datax: no\n\ndata\n\ndata: cut off\n";
        for piece in [1, 2, 3, 7, 1_000] {
            assert_eq!(parsed(text, piece), ["{\"a\":\n 1}", "x→", "y", ""], "{piece}");
        }
    }

    #[test]
    fn event_without_an_end_is_given_up() {
        let mut parser = Parser::default();
        let lines = "data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n".repeat(1_000);
        let fed = (0..40).try_for_each(|_| parser.feed(lines.as_bytes()));
        assert_eq!(fed, Err(TooLong));
        let mut parser = Parser::default();
        assert_eq!(parser.feed(&vec![b'x'; MAX_EVENT + 1]), Err(TooLong));
    }
}
