//! Names that people chose and other people will read: bounded, and with nothing in them that
//! could forge a line of a log or a table.

/// The longest display name, in characters. X.509 allows a common name as many (RFC 5280, ub-common-name).
pub const MAX_NAME: usize = 64;

/// `text` as one line of at most [`MAX_NAME`] printable characters; `None` when nothing is left.
///
/// Control characters and runs of white space become one space. Characters that only change how
/// their neighbours are drawn (bidirectional overrides, zero-width ones) are left out.
pub fn printable(text: &str) -> Option<String> {
    let mut name = String::new();
    let mut len = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        let mut visible = word.chars().filter(|c| !is_invisible(*c)).peekable();
        if visible.peek().is_none() {
            continue;
        }
        if len > 0 {
            // A space needs a character after it.
            if len + 1 >= MAX_NAME {
                break;
            }
            name.push(' ');
            len += 1;
        }
        for c in visible.take(MAX_NAME - len) {
            name.push(c);
            len += 1;
        }
    }
    (!name.is_empty()).then_some(name)
}

/// Format characters of Unicode that draw nothing themselves (general category Cf, and the
/// variation and tag ranges), as far as they occur in spoofed names.
const fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_cannot_forge_a_line() {
        assert_eq!(printable("anna\r\nroot: ok\x1b[2J").as_deref(), Some("anna root: ok [2J"));
        assert_eq!(printable("\u{202e}cod.exe\u{200b}").as_deref(), Some("cod.exe"));
        assert_eq!(printable("  Anna’s   Mac\t ").as_deref(), Some("Anna’s Mac"));
    }

    #[test]
    fn nothing_printable_is_no_name() {
        assert_eq!(printable(""), None);
        assert_eq!(printable(" \n\u{200b} \u{7f}"), None);
    }

    proptest! {
        #[test]
        fn a_name_is_bounded_and_stays_as_it_is(text in ".{0,200}") {
            if let Some(name) = printable(&text) {
                prop_assert!((1..=MAX_NAME).contains(&name.chars().count()));
                prop_assert_eq!(printable(&name), Some(name.clone()));
                prop_assert_eq!(name.trim(), &name);
            }
        }
    }
}
