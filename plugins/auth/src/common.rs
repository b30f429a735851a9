//! Passwords that are guessed first.

/// The list: a header with its source and license, an empty line, then one password a line, in lower case, sorted by
/// bytes. It is searched where it lies, because each request has a fresh instance and should build nothing.
const FILE: &str = include_str!("common-passwords.txt");

/// Whether everybody who guesses passwords tries this one, in whatever case.
pub fn is_common(password: &str) -> bool {
    contains(list(), &password.to_lowercase())
}

fn list() -> &'static str {
    FILE.split_once("\n\n").map_or("", |(_, list)| list)
}

/// Binary search for a line in sorted lines, each with its line feed.
fn contains(mut lines: &str, wanted: &str) -> bool {
    while !lines.is_empty() {
        // The line that the middle byte is in. A line feed is never a part of another character.
        let bytes = lines.as_bytes();
        let middle = bytes.len() / 2;
        let start = bytes[..middle]
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let end = bytes[middle..]
            .iter()
            .position(|&b| b == b'\n')
            .map_or(bytes.len(), |at| middle + at);
        match wanted.as_bytes().cmp(&bytes[start..end]) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => lines = &lines[..start],
            std::cmp::Ordering::Greater => lines = lines.get(end + 1..).unwrap_or(""),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_sorted_and_every_line_is_found() {
        let lines: Vec<&str> = list().lines().collect();
        assert!(lines.len() >= 10_000, "{}", lines.len());
        assert!(
            lines
                .windows(2)
                .all(|pair| pair[0].as_bytes() < pair[1].as_bytes())
        );
        for line in lines {
            assert!(line.chars().count() >= 8 && line.to_lowercase() == line, "{line}");
            assert!(is_common(line), "{line}");
        }
    }

    #[test]
    fn case_does_not_hide_a_password_and_a_part_of_one_is_not_found() {
        for common in ["password", "PassWord", "12345678", "QWERTYUIOP", "trustno1"] {
            assert!(is_common(common), "{common}");
        }
        for rare in [
            "",
            "passwor",
            "password\n",
            "\npassword",
            "correct horse battery staple",
            "zzzzzzzzzzzz",
            "!",
            "пароль-日本",
        ] {
            assert!(!is_common(rare), "{rare:?}");
        }
        assert!(!contains("", "x"));
        assert!(contains("a\nb", "b") && contains("a\nb", "a") && !contains("a\nb", "c"));
    }
}
