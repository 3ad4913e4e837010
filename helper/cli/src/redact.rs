//! Takes names and addresses out of a text, and keeps which ones are the same. Pure.
//!
//! An address becomes `<ipv4-1>`, or `<private-ipv4-1>` where that matters for finding out what is wrong; a name
//! that was given beforehand becomes `<gateway-1>`. Loopback and documentation addresses say nothing of anybody
//! and stay.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What has been replaced so far, so that the same thing gets the same word.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    /// The longest first: one name may be part of another.
    names: Vec<(String, String)>,
    addresses: BTreeMap<IpAddr, String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Redactor {
    /// Names of this kind are replaced from now on; the shortest ones are words that mean nothing.
    pub(crate) fn hide(&mut self, kind: &'static str, name: &str) {
        let is_known = self.names.iter().any(|(known, _)| known == name);
        if name.trim().is_empty() || is_known || name.parse::<IpAddr>().is_ok() {
            return;
        }
        let word = self.word(kind);
        self.names.push((name.to_owned(), word));
        self.names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    }

    /// The text without them.
    pub(crate) fn redact(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, word) in &self.names {
            text = replace_whole(&text, name, word);
        }
        self.redact_addresses(&text)
    }

    fn redact_addresses(&mut self, text: &str) -> String {
        let is_part = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_part) {
            let len = rest[start..].find(|c: char| !is_part(c)).unwrap_or(rest.len() - start);
            let (before, token) = (&rest[..start], &rest[start..start + len]);
            redacted.push_str(before);
            // The letters of a word are hexadecimal digits, too.
            let in_word = before.chars().next_back().is_some_and(char::is_alphanumeric)
                || rest[start + len..].chars().next().is_some_and(char::is_alphanumeric);
            match split(token).filter(|_| !in_word) {
                Some((address, tail)) => {
                    redacted.push_str(&self.address(address));
                    redacted.push_str(tail);
                }
                None => redacted.push_str(token),
            }
            rest = &rest[start + len..];
        }
        redacted.push_str(rest);
        redacted
    }

    fn address(&mut self, address: IpAddr) -> String {
        if let Some(word) = self.addresses.get(&address) {
            return word.clone();
        }
        let word = match kind(address) {
            Some(kind) => self.word(kind),
            None => address.to_string(),
        };
        self.addresses.insert(address, word.clone());
        word
    }

    fn word(&mut self, kind: &'static str) -> String {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        format!("<{kind}-{count}>")
    }
}

/// An address at the beginning of a token, and what follows: a port, a full stop.
fn split(token: &str) -> Option<(IpAddr, &str)> {
    let whole = token.trim_end_matches(['.', ':']);
    if let Ok(address) = whole.parse() {
        return Some((address, &token[whole.len()..]));
    }
    let colon = token.find(':')?;
    let v4: Ipv4Addr = token[..colon].parse().ok()?;
    Some((v4.into(), &token[colon..]))
}

/// What is told of an address; `None` for one that says nothing of anybody.
fn kind(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() || v4.is_documentation() || v4.is_broadcast() => None,
        IpAddr::V4(v4) if v4.is_private() => Some("private-ipv4"),
        IpAddr::V4(v4) if v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]) => Some("inner-ipv4"),
        IpAddr::V4(_) => Some("ipv4"),
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() || is_documentation(v6) => None,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local-ipv6"),
        IpAddr::V6(v6) if v6.is_unique_local() => Some("private-ipv6"),
        IpAddr::V6(_) => Some("ipv6"),
    }
}

/// 2001:db8::/32 (RFC 3849).
fn is_documentation(address: Ipv6Addr) -> bool {
    address.segments()[..2] == [0x2001, 0xdb8]
}

/// Replaces `name` where it is no part of a longer word, whatever its case.
fn replace_whole(text: &str, name: &str, word: &str) -> String {
    let (lower, wanted) = (text.to_ascii_lowercase(), name.to_ascii_lowercase());
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut replaced = String::with_capacity(text.len());
    let mut done = 0;
    for (at, found) in lower.match_indices(&wanted) {
        let before = text[..at].chars().next_back().is_some_and(is_word);
        let after = text[at + found.len()..].chars().next().is_some_and(is_word);
        if at < done || before || after {
            continue;
        }
        replaced.push_str(&text[done..at]);
        replaced.push_str(word);
        done = at + found.len();
    }
    replaced.push_str(&text[done..]);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_replaced_by_the_same_word_everywhere() {
        let mut redactor = Redactor::default();
        let text = "No reply from 8.8.4.4:443 and [2a00:1450::5]:443. Then 8.8.4.4, 8.8.8.8.";
        let expected = "No reply from <ipv4-1>:443 and [<ipv6-1>]:443. Then <ipv4-1>, <ipv4-2>.";
        assert_eq!(redactor.redact(text), expected);
        assert_eq!(redactor.redact("again 2a00:1450::5"), "again <ipv6-1>");
    }

    #[test]
    fn what_kind_of_address_it_is_stays_visible() {
        let mut redactor = Redactor::default();
        let text = "192.168.1.20/24 100.77.0.2 fe80::1%eth0 fd00:77::2 127.0.0.1 ::1 0.0.0.0/0 ::/0";
        let expected = "<private-ipv4-1>/24 <inner-ipv4-1> <link-local-ipv6-1>%eth0 <private-ipv6-1> 127.0.0.1 ::1 \
                        0.0.0.0/0 ::/0";
        assert_eq!(redactor.redact(text), expected);
    }

    #[test]
    fn times_versions_and_words_are_left_alone() {
        let mut redactor = Redactor::default();
        for text in
            ["09:12:03 WARN", "2026-05-03T09:12:00Z", "version 0.1.0", "a dead face: bad", "culvert::service", "E104"]
        {
            assert_eq!(redactor.redact(text), text);
        }
    }

    #[test]
    fn names_are_replaced_whatever_their_case_and_not_within_words() {
        let mut redactor = Redactor::default();
        redactor.hide("gateway", "vpn.acme.org");
        redactor.hide("gateway", "Acme");
        redactor.hide("user", "ann");
        redactor.hide("user", "");
        redactor.hide("gateway", "203.0.113.7");
        let text = "VPN.acme.org (ACME) says: annual plan of ann; acme";
        assert_eq!(redactor.redact(text), "<gateway-1> (<gateway-2>) says: annual plan of <user-1>; <gateway-2>");
    }

    #[test]
    fn a_name_with_odd_letters_does_no_harm() {
        let mut redactor = Redactor::default();
        redactor.hide("device", "Zoë's İMac");
        assert_eq!(redactor.redact("on Zoë's İMac now"), "on <device-1> now");
        redactor.redact("\u{130}\u{130}::\u{130}1.2.3.4\u{130}");
    }
}
